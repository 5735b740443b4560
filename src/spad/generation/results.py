"""Output folder of `spad generate`: images, cameras, a turntable and `run.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from spad.files import RECORD, json_text, slug, whole_file, write_text
from spad.generation.presets import PRESETS, PresetName
from spad.images.grids import prompt_grid, save_turntable, view_grid
from spad.images.reading import read_image

if TYPE_CHECKING:
    from spad.cameras import Cameras


def prompt_folders(folder: Path, prompts: Sequence[str]) -> dict[str, Path]:
    """The folder of each of several prompts."""
    return {prompt: folder / f"{index:03d}-{slug(prompt)}" for index, prompt in enumerate(prompts)}


def write_summary(
    folder: Path, folders: Mapping[str, Path], cameras: Cameras, run: Mapping[str, Any]
) -> None:
    """Write the common grid and record of several prompts, whose folders are written."""
    images = {prompt: _read_views(place, len(cameras)) for prompt, place in folders.items()}
    with whole_file(folder / "grid.png") as unfinished:
        prompt_grid(images).save(unfinished)
    _write_record(folder, cameras, run)


def _read_views(folder: Path, num_views: int) -> list[Image.Image]:
    return [read_image(folder / _view_name(view)).convert("RGB") for view in range(num_views)]


def _view_name(view: int) -> str:
    return f"images/{view:03d}.png"


def write_views(
    folder: Path,
    images: Sequence[Image.Image],
    cameras: Cameras,
    run: Mapping[str, Any],
    tool: PresetName | None = None,
) -> None:
    """Write the files of one object into an existing folder.

    Args:
        tool: also write the images into `for-TOOL`, as this tool reads them.

    Raises: ValueError: the background of the images is not white enough for the tool.
    """
    from spad.cameras import save_transforms

    names = [_view_name(view) for view in range(len(images))]
    (folder / "images").mkdir()
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    save_transforms(folder / "transforms.json", cameras, names)
    view_grid(images).save(folder / "grid.png")
    save_turntable(folder / "turntable.webp", images, cameras.azimuth_deg.tolist())
    if tool is not None:
        from spad.generation.tool_files import write_tool_files

        write_tool_files(folder / f"for-{tool}", images, cameras, PRESETS[tool].files)
    _write_record(folder, cameras, run)


def _write_record(folder: Path, cameras: Cameras, run: Mapping[str, Any]) -> None:
    from spad.cameras.formats import cameras_record

    record = {**run, "cameras": cameras_record(cameras)}
    write_text(folder / RECORD, json_text(record))
