"""Reading camera files strictly and writing them whole: what all their formats share.

A function that reads takes as `where` the file and the place in it, which start its message.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spad.cameras import Cameras


@dataclass(frozen=True, eq=False)
class LoadedCameras:
    """What a camera file holds.

    Attributes:
        cameras: in the world and order of the file, float32 on the CPU.
        image_paths: one per view, as the file writes them (relative to its folder; in COLMAP to
            the folder of images); empty when the file names none.
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
                f"{path}: expected pictures of one size, got {sizes[0][1]}x{sizes[0][0]} of view 0 "
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


def short(value: Any) -> str:
    """One short line that shows `value` in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def image_names(cameras: Cameras, image_paths: Sequence[str | os.PathLike]) -> list[str]:
    """One path per view as text with forward slashes, or a `ValueError`."""
    if isinstance(image_paths, (str, os.PathLike)) or len(image_paths) != len(cameras):
        count = "1 path" if isinstance(image_paths, (str, os.PathLike)) else len(image_paths)
        raise ValueError(f"expected {len(cameras)} image paths, one per view, got {count}")
    # Every reader of these files understands forward slashes, also on Windows.
    return [Path(path).as_posix() for path in image_paths]


def read_text(path: Path) -> str:
    """The text of a file; a `ValueError` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file in UTF-8, got other bytes") from error


def write_whole(texts: Mapping[Path, str]) -> None:
    """Write every file, or none of them if one cannot be written."""
    parts = {path.with_name(f".{path.name}.{os.getpid()}.part"): path for path in texts}
    try:
        for part, path in parts.items():
            part.write_text(texts[path], encoding="utf-8", newline="\n")
        for part, path in parts.items():
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
