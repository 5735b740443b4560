"""`load_cameras`, which reads every known camera file, and cameras as JSON.

Readers keep the world and the order of the views as the file has them, need no image to exist,
and answer every malformed file with a one-line `ValueError` that names the file and the field.
Files are written whole or not at all. The conventions are tabled in docs/conventions.md.
"""

from __future__ import annotations

import mimetypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spad.cameras.blender import blender_from_json
from spad.cameras.cameras import Cameras
from spad.cameras.colmap import load_colmap
from spad.cameras.colmap_model import find_model
from spad.cameras.nerfstudio import transforms_from_json
from spad.cameras.parsing import LoadedCameras
from spad.files import as_kind, read_json, short

# In the order in which they are looked for.
_JSON_FILES = ("transforms.json", "cameras.json", "transforms_train.json")
_COLMAP_FILES = ("cameras.txt", "images.txt", "cameras.bin", "images.bin")


def load_cameras(
    path: str | os.PathLike, height: int | None = None, width: int | None = None
) -> LoadedCameras:
    """Load cameras from a file or folder of any known format, recognized by its content.

    Args:
        path: a nerfstudio `transforms.json` or a folder with one, or with NeRF-synthetic's
            `transforms_train.json`; a COLMAP model, text or binary, as its folder, one of its
            files or a project with it (`load_colmap` says where); JSON with a list `cameras`
            of Blender's `matrix_world`, or a folder with such a `cameras.json`; or a `run.json`.
        height, width: image size in pixels, for files that do not state it.

    Raises: ValueError: nothing known at `path`, or what the reader of that kind raises.
    """
    path = camera_file(Path(path))
    kind = (mimetypes.guess_type(path)[0] or "").partition("/")[0]
    if kind in ("image", "video") and path.is_file():
        raise ValueError(
            f"{path}: expected cameras, got one {kind}; give the folder of images with its "
            "transforms.json, cameras.json or COLMAP model"
        )
    if path.name in _COLMAP_FILES:
        return load_colmap(path.parent)
    data = read_json(path, dict)
    if "frames" in data:
        return transforms_from_json(path, data, height, width)
    if isinstance(data.get("cameras"), dict):
        return LoadedCameras(_cameras_from_record(path, data["cameras"]), ())
    if "cameras" in data:
        return blender_from_json(path, data, height, width)
    raise ValueError(
        f"{path}: expected a list 'frames' (nerfstudio) or 'cameras' (Blender), got neither"
    )


def has_cameras(folder: Path) -> bool:
    """Whether `load_cameras` finds a camera file in a folder, malformed or not."""
    try:
        camera_file(folder)
    except ValueError:
        return False
    return True


def camera_file(path: Path) -> Path:
    """The camera file of a folder, of COLMAP's that of the images; a file itself.

    Raises: ValueError: a folder without one.
    """
    if not path.is_dir():
        return path
    for name in _JSON_FILES:
        if (path / name).is_file():
            return path / name
    if (found := find_model(path)) is not None:
        model, suffix = found
        return model / f"images{suffix}"
    if others := sorted(file.name for file in path.glob("transforms_*.json")):
        raise ValueError(
            f"{path}: expected transforms.json or transforms_train.json, got "
            f"{short(', '.join(others))}; name the file"
        )
    raise ValueError(
        f"{path}: expected transforms.json, cameras.json, or COLMAP's cameras and images (.txt "
        "or .bin) here, in sparse or in sparse/0, got none"
    )


@dataclass(frozen=True)
class _Recorded:
    """What is needed of a `cameras_record`."""

    height: int
    width: int
    world_from_cam: list[list[list[float]]]
    intrinsics: list[list[list[float]]]
    rest: dict[str, Any]


def _cameras_from_record(path: Path, record: dict[str, Any]) -> Cameras:
    """The same cameras, to the last bit. Raises: ValueError: they are malformed."""
    found = as_kind(record, _Recorded, f"{path}: cameras")
    try:
        poses, intrinsics = torch.tensor(found.world_from_cam), torch.tensor(found.intrinsics)
        return Cameras(poses, intrinsics, found.height, found.width)
    except ValueError as error:
        raise ValueError(f"{path}: cameras: {error}") from None


def cameras_record(cameras: Cameras) -> dict[str, Any]:
    """Cameras as JSON values: poses and intrinsics, plus elevation, azimuth and radius."""
    return {
        "height": cameras.height,
        "width": cameras.width,
        "elevation_deg": [round(x, 4) for x in cameras.elevation_deg.tolist()],
        "azimuth_deg": [round(x, 4) for x in cameras.azimuth_deg.tolist()],
        "radius": [round(x, 4) for x in cameras.radius.tolist()],
        "world_from_cam": cameras.world_from_cam.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
    }
