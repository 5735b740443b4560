"""The folder a run of `spad generate` leaves: pictures, cameras, a turntable, and its record."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from spad.images.grids import prompt_grid, save_turntable, view_grid

if TYPE_CHECKING:
    from spad.cameras import Cameras

RECORD = "run.json"


def slug(text: str, longest: int = 40) -> str:
    """A text as part of a file name: lower-case words and hyphens, never empty."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return "-".join(words)[:longest].strip("-") or "object"


def check_output(folder: Path, overwrite: bool) -> None:
    """Raises: ValueError: `folder` may not be made or replaced; the message says what to do."""
    folder = Path(folder)
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir() or folder.is_symlink():
            raise ValueError(f"expected a new output folder, got {folder}, which is no folder")
        is_ours = (folder / RECORD).is_file() or not any(folder.iterdir())
        if overwrite and not is_ours:
            raise ValueError(
                f"expected --overwrite to replace the folder of an earlier run, got {folder}, "
                f"which holds no {RECORD}; choose another --output"
            )
        if not overwrite:
            advice = "use --overwrite or another --output" if is_ours else "use another --output"
            raise ValueError(f"expected a new output folder, got {folder}, which exists; {advice}")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(
            f"expected an output folder that can be made, got {folder}: cannot write in {parent}"
        )


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well.

    On any error, Ctrl-C included, nothing of it is left and an older `folder` stays.
    """
    check_output(folder, overwrite)
    folder = Path(folder).absolute()
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            os.rename(replaced, folder)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)


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
    text = json.dumps(record, indent=2, ensure_ascii=False, default=os.fspath)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
