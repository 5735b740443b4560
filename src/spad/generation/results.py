"""The folder a run of `spad generate` leaves: pictures, cameras, a turntable, and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from spad.files import RECORD, json_text, slug, whole_folder, write_text
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
    """Write the views of one object, whole or not at all.

    Args:
        folder: made by this function; with `overwrite` that of an earlier run is replaced.
        images: one per camera.
        run: what `run.json` holds, next to the cameras.

    Raises: ValueError: the folder exists or cannot be made. OSError: the machine failed.
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
    """Write several objects, by prompt: a folder of each, and a grid and a record of all."""
    with whole_folder(folder, overwrite) as temporary:
        for index, (prompt, views) in enumerate(images.items()):
            one = temporary / f"{index:03d}-{slug(prompt)}"
            one.mkdir()
            write_views(one, views, cameras, {**run, "prompts": [prompt]})
        prompt_grid(images).save(temporary / "grid.png")
        _write_record(temporary, cameras, run)


def write_views(
    folder: Path, images: Sequence[Image.Image], cameras: Cameras, run: Mapping[str, Any]
) -> None:
    """Fill an existing folder with the views of one object."""
    from spad.cameras import save_transforms

    names = [f"images/{view:03d}.png" for view in range(len(images))]
    (folder / "images").mkdir()
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    save_transforms(folder / "transforms.json", cameras, names)
    view_grid(images).save(folder / "grid.png")
    azimuth = cameras.azimuth_deg.tolist()
    save_turntable(folder / "turntable.webp", images, azimuth)
    _write_record(folder, cameras, run)


def _write_record(folder: Path, cameras: Cameras, run: Mapping[str, Any]) -> None:
    from spad.cameras.formats import cameras_record

    record = {**run, "cameras": cameras_record(cameras)}
    write_text(folder / RECORD, json_text(record))
