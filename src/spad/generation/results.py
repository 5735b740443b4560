"""Output folder of `spad generate`: images, cameras, a turntable and `run.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from spad.files import RECORD, json_text, slug, whole_folder, write_text
from spad.generation.presets import PRESETS, PresetName
from spad.images.grids import prompt_grid, save_turntable, view_grid

if TYPE_CHECKING:
    from spad.cameras import Cameras


def save_results(
    folder: Path,
    images: Sequence[Image.Image],
    cameras: Cameras,
    run: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write the output folder of one object, whole or not at all.

    Args:
        folder: output folder; with `overwrite` that of an earlier run is replaced.
        images: one per camera.
        run: content of `run.json`, beside the cameras.

    Raises: ValueError: the folder exists or cannot be made. OSError: it cannot be written.
    """
    with whole_folder(folder, overwrite) as temporary:
        write_views(temporary, images, cameras, run)


def save_many_results(
    folder: Path,
    images: Mapping[str, Sequence[Image.Image]],
    cameras: Cameras,
    run: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write the output folder of several prompts: one folder each, a common grid and record."""
    with whole_folder(folder, overwrite) as temporary:
        _write_many(temporary, images, cameras, run)


def write_results(
    folder: Path,
    images: Mapping[str, Sequence[Image.Image]],
    cameras: Cameras,
    run: Mapping[str, Any],
    tool: PresetName | None = None,
) -> None:
    """Write the files of one prompt or several into an existing folder.

    Args:
        tool: also write the images into `for-TOOL`, as this tool reads them.

    Raises: ValueError: the background of the images is not white enough for the tool.
    """
    if len(images) == 1:
        write_views(folder, next(iter(images.values())), cameras, run, tool)
    else:
        _write_many(folder, images, cameras, run, tool)


def _write_many(
    folder: Path,
    images: Mapping[str, Sequence[Image.Image]],
    cameras: Cameras,
    run: Mapping[str, Any],
    tool: PresetName | None = None,
) -> None:
    for index, (prompt, views) in enumerate(images.items()):
        one = folder / f"{index:03d}-{slug(prompt)}"
        one.mkdir()
        write_views(one, views, cameras, {**run, "prompts": [prompt]}, tool)
    prompt_grid(images).save(folder / "grid.png")
    _write_record(folder, cameras, run)


def write_views(
    folder: Path,
    images: Sequence[Image.Image],
    cameras: Cameras,
    run: Mapping[str, Any],
    tool: PresetName | None = None,
) -> None:
    """Write the files of one object into an existing folder."""
    from spad.cameras import save_transforms

    names = [f"images/{view:03d}.png" for view in range(len(images))]
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
