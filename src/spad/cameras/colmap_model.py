"""Lenses and images of COLMAP's sparse models, text and binary, as the files state them.

Source: https://colmap.github.io/format.html
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spad.cameras.parsing import is_number, numbers_of
from spad.files import read_lines, short

# Folders of a project that may hold its model: the model's own, `image_undistorter`'s, that of
# `mapper`, and nerfstudio's.
_PLACES = (".", "sparse", "sparse/0", "colmap/sparse/0")
# Camera models in the order of their numbers in binary files.
_BINARY_MODELS = (
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
)
# (number of focal lengths, of distortion coefficients) by model. Fisheye models are left out: with
# zero coefficients they still are no pinhole.
_MODELS = {
    "SIMPLE_PINHOLE": (1, 0),
    "PINHOLE": (2, 0),
    "SIMPLE_RADIAL": (1, 1),
    "RADIAL": (1, 2),
    "OPENCV": (2, 4),
    "FULL_OPENCV": (2, 8),
}
_LONGEST_NAME = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class Lens:
    """A camera of COLMAP: image size, and intrinsics (3, 3) in pixels."""

    width: int
    height: int
    intrinsics: list[list[float]]


@dataclass(frozen=True)
class PosedImage:
    """An image of COLMAP: camera from world as quaternion w x y z and translation."""

    where: str
    quaternion: list[float]
    translation: list[float]
    lens: int
    name: str


def find_model(folder: Path) -> tuple[Path, str] | None:
    """The folder of the model in a project, and ".txt" or ".bin"; text where it has both."""
    for place in _PLACES:
        for suffix in (".txt", ".bin"):
            if (folder / place / f"images{suffix}").is_file():
                return folder / place, suffix
    return None


def read_model(folder: Path, suffix: str) -> tuple[dict[int, Lens], list[PosedImage]]:
    """Lenses by CAMERA_ID, and the images in the order of the file.

    Raises: ValueError: a malformed file, lens distortion that is not zero, or a lens that is not
        perspective.
    """
    cameras, images = folder / f"cameras{suffix}", folder / f"images{suffix}"
    if suffix == ".txt":
        return _text_lenses(cameras), list(_text_images(images))
    pairs = list(_read_binary(cameras, _binary_lens))
    if len(lenses := dict(pairs)) < len(pairs):
        raise ValueError(f"{cameras}: expected every CAMERA_ID once, got one again")
    return lenses, list(_read_binary(images, _binary_image))


def _lens(where: str, model: str, width: float, height: float, params: list[float]) -> Lens:
    if model not in _MODELS:
        raise ValueError(
            f"{where}: expected a perspective model ({', '.join(_MODELS)}), got {model}; "
            "try colmap image_undistorter first"
        )
    if min(width, height) < 1 or width != int(width) or height != int(height):
        raise ValueError(
            f"{where}: expected whole positive WIDTH HEIGHT, got {width:g} and {height:g}"
        )
    num_focals, num_distortion = _MODELS[model]
    if len(params) != num_focals + 2 + num_distortion:
        raise ValueError(
            f"{where}: expected {num_focals + 2 + num_distortion} PARAMS of {model}, got "
            f"{len(params)}"
        )
    if any(params[num_focals + 2 :]):
        raise ValueError(
            f"{where}: expected no lens distortion, got {params[num_focals + 2 :]}; "
            "try colmap image_undistorter first"
        )
    fx, fy, (cx, cy) = params[0], params[num_focals - 1], params[num_focals : num_focals + 2]
    return Lens(int(width), int(height), [[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _text_lenses(file: Path) -> dict[int, Lens]:
    lenses = {}
    for where, line in read_lines(file):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 5:
            raise ValueError(
                f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, got {short(line)}"
            )
        width, height = numbers_of(where, "WIDTH HEIGHT", words[2:4])
        number = _whole(where, "CAMERA_ID", words[0])
        if number in lenses:
            raise ValueError(f"{where}: expected every CAMERA_ID once, got {number} again")
        params = numbers_of(where, "PARAMS", words[4:])
        lenses[number] = _lens(where, words[1], width, height, params)
    return lenses


def _text_images(file: Path) -> Iterator[PosedImage]:
    lines = read_lines(file)
    for where, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        # The name, which is last, may hold blanks.
        words = line.strip().split(maxsplit=9)
        if len(words) < 10:
            raise ValueError(
                f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, got {short(line)}"
            )
        below, points = next(lines, (where, ""))
        # Editors that drop empty lines would otherwise cost every second view.
        if len(points.split()) % 3 or not all(map(is_number, points.split())):
            raise ValueError(
                f"{below}: expected the 2D points X Y POINT3D_ID of the image "
                "above or an empty line, got something else"
            )
        quaternion = numbers_of(where, "QW QX QY QZ", words[1:5])
        translation = numbers_of(where, "TX TY TZ", words[5:8])
        lens = _whole(where, "CAMERA_ID", words[8])
        yield PosedImage(where, quaternion, translation, lens, words[9])


def _whole(where: str, what: str, word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 20):
        raise ValueError(f"{where}: expected a whole number {what}, got {short(word)}")
    return int(word)


class _Bytes:
    """Little-endian values of a binary file, one after the other."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self._data, self._at = path, data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        """Values of a `struct` layout, which move the place behind them."""
        start = self._at
        self.skip(struct.calcsize(f"<{layout}"))
        return struct.unpack_from(f"<{layout}", self._data, start)

    def take_name(self, where: str) -> str:
        """Text that ends with a zero byte."""
        start, end = self._at, self._data.find(b"\0", self._at, self._at + _LONGEST_NAME)
        if end < 0:
            raise ValueError(f"{where}: expected the name of an image, got no end of it")
        self.skip(end + 1 - start)
        try:
            return self._data[start:end].decode()
        except UnicodeDecodeError:
            raise ValueError(f"{where}: expected a name in UTF-8, got other bytes") from None

    def skip(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise ValueError(f"{self.path}: expected a whole COLMAP model, got a file cut short")
        self._at += size

    def check_end(self) -> None:
        if left := len(self._data) - self._at:
            raise ValueError(f"{self.path}: expected a COLMAP model, got {left} bytes behind it")


def _read_binary(path: Path, read: Callable[[str, _Bytes], T]) -> Iterator[T]:
    """The entries of a binary file, whose number stands in front of them."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of a COLMAP model, got no such file")
    if path.stat().st_size < struct.calcsize("<Q"):
        raise ValueError(f"{path}: expected a whole COLMAP model, got a file cut short")
    # Observed points, which nobody asked for, are most of such a file, and are never read.
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        values = _Bytes(path, data)
        (number,) = values.take("Q")
        for index in range(number):
            yield read(f"{path}, entry {index}", values)
        values.check_end()


def _binary_lens(where: str, values: _Bytes) -> tuple[int, Lens]:
    number, kind, width, height = values.take("IiQQ")
    model = _BINARY_MODELS[kind] if 0 <= kind < len(_BINARY_MODELS) else f"model {kind}"
    num_focals, num_distortion = _MODELS.get(model, (0, 0))
    params = list(values.take(f"{num_focals and num_focals + 2 + num_distortion}d"))
    return number, _lens(where, model, width, height, _finite(where, "PARAMS", params))


def _binary_image(where: str, values: _Bytes) -> PosedImage:
    _, *pose, lens = values.take("I7dI")
    pose = _finite(where, "QW QX QY QZ TX TY TZ", pose)
    name = values.take_name(where)
    (num_points,) = values.take("Q")
    values.skip(num_points * struct.calcsize("<ddQ"))
    return PosedImage(where, pose[:4], pose[4:], lens, name)


def _finite(where: str, what: str, numbers: list[float]) -> list[float]:
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: expected finite numbers {what}, got {short(numbers)}")
    return numbers
