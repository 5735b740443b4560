"""Strict parsing shared by all camera file formats.

`where` is the file and position; error messages start with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spad.cameras.cameras import Cameras
from spad.cameras.checks import check_size
from spad.files import short

# OpenCV's camera axes (y down, z forward) and OpenGL's (y up, z back) differ by this sign.
FLIP_YZ = torch.tensor([1.0, -1.0, -1.0, 1.0])
MOST_VIEWS = 100_000


@dataclass(frozen=True, eq=False)
class LoadedCameras:
    """Contents of a camera file.

    Attributes:
        cameras: in the world and order of the file, float32 on the CPU.
        image_paths: one per view, relative to the file's folder (in COLMAP to the folder of
            images) unless absolute, with forward slashes also where the file has backslashes;
            empty when the file names none.
    """

    cameras: Cameras
    image_paths: tuple[str, ...]


def build_cameras(
    path: Path, poses: Tensor, intrinsics: Tensor, sizes: Sequence[tuple[int, int]]
) -> Cameras:
    """Float32 cameras from one (height, width) per view; errors name the file."""
    check_one_size(path, sizes)
    try:
        return Cameras(poses.float(), intrinsics.float(), *sizes[0])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_one_size(path: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Raises: ValueError: views of different (height, width)."""
    for view, (height, width) in enumerate(sizes):
        if (height, width) != sizes[0]:
            raise ValueError(
                f"{path}: expected images of one size, got {sizes[0][1]}x{sizes[0][0]} of view 0 "
                f"and {width}x{height} of view {view} (width x height)"
            )


def tensor(values: Sequence) -> Tensor:
    """Nested numbers as float64: files hold more digits than float32 does."""
    return torch.tensor(values, dtype=torch.float64)


def number_of(where: str, fields: Mapping, name: str, default: float | None = None) -> float:
    """Field `name`, or `default` where it is missing; a `ValueError` if not a finite number."""
    value = fields.get(name, default)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    got = short(value) if name in fields else "none"
    raise ValueError(f"{where}: expected {name} to be a finite number, got {got}")


def numbers_of(where: str, what: str, words: Sequence[str]) -> list[float]:
    """The words of a line as finite numbers; `what` names them in the message."""
    if not all(map(is_number, words)):
        raise ValueError(f"{where}: expected finite numbers {what}, got {short(' '.join(words))}")
    return [float(word) for word in words]


def is_number(word: str) -> bool:
    """Whether a word of a text file is a finite number."""
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def image_names(cameras: Cameras, image_paths: Sequence[str | os.PathLike]) -> list[str]:
    """One path per view as text with forward slashes, or a `ValueError`."""
    if isinstance(image_paths, (str, os.PathLike)) or len(image_paths) != len(cameras):
        count = "1 path" if isinstance(image_paths, (str, os.PathLike)) else len(image_paths)
        raise ValueError(f"expected {len(cameras)} image paths, one per view, got {count}")
    # Every reader of these files understands forward slashes, also on Windows.
    return [Path(path).as_posix() for path in image_paths]


def forward_slashes(name: str) -> str:
    """A path from a file that may have been written on Windows."""
    return name.replace("\\", "/")


def list_of_objects(path: Path, data: Mapping, name: str) -> list[tuple[str, Mapping]]:
    """The list in field `name`, each object with the words that place it in a message."""
    items = data.get(name)
    if not isinstance(items, list) or not items:
        raise ValueError(
            f"{path}: expected a list '{name}' with at least 1 entry, got {short(items)}"
        )
    if len(items) > MOST_VIEWS:
        raise ValueError(
            f"{path}: expected up to {MOST_VIEWS} '{name}', got {len(items)}; leave some out"
        )
    placed = [(f"{path}: {name}[{i}]", item) for i, item in enumerate(items)]
    for where, item in placed:
        if not isinstance(item, dict):
            raise ValueError(f"{where}: expected an object, got {short(item)}")
    return placed


def image_size(
    where: str,
    path: Path,
    fields: Mapping,
    names: tuple[str, str],
    image_field: str,
    given: tuple[int | None, int | None],
) -> tuple[int, int]:
    """(height, width): as the file states it, as the caller gives it, or as the image has it."""
    if names[0] in fields or names[1] in fields:
        size = tuple(number_of(where, fields, name) for name in names)
        if any(side < 1 or side != int(side) for side in size):
            raise ValueError(
                f"{where}: expected whole positive {names[0]} and {names[1]}, got {size}"
            )
        return int(size[0]), int(size[1])
    height, width = given
    if height is not None and width is not None:
        check_size(height, width)
        return height, width
    image = fields.get(image_field)
    if isinstance(image, str):
        # NeRF-synthetic files leave the ".png" out.
        image = forward_slashes(image)
        for candidate in (path.parent / image, path.parent / f"{image}.png"):
            size = _size_of_image(candidate)
            if size is not None:
                return size
    raise ValueError(
        f"{where}: expected {names[0]} and {names[1]} or a readable image, got neither; "
        "give height and width"
    )


def _size_of_image(path: Path) -> tuple[int, int] | None:
    """(height, width) from the header of an image file; None if it cannot be read."""
    # Most camera files state the size, and need no Pillow.
    from PIL import Image

    damage = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
    with suppress(*damage), Image.open(path) as image:
        return image.height, image.width
    return None


def paths_of(items: Sequence[tuple[str, Mapping]], name: str) -> tuple[str, ...]:
    """Field `name` of every object; empty where none has it."""
    if not any(name in item for _, item in items):
        return ()
    for where, item in items:
        if not isinstance(item.get(name), str):
            raise ValueError(f"{where}: expected {name} to be text, got {short(item.get(name))}")
    return tuple(forward_slashes(item[name]) for _, item in items)


def matrix_of(where: str, fields: Mapping, name: str) -> list[list[float]]:
    rows = fields.get(name)
    if not (
        isinstance(rows, list)
        and len(rows) == 4
        and all(isinstance(row, list) and len(row) == 4 for row in rows)
    ):
        raise ValueError(f"{where}: expected {name} to be 4 rows of 4 numbers, got {short(rows)}")
    return [[number_of(where, {name: entry}, name) for entry in row] for row in rows]
