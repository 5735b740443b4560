"""`load_cameras`, which reads every known camera file, and cameras as JSON.

Readers keep the world and the order of the views as the file has them, need no picture to exist,
and answer every malformed file with a one-line `ValueError` that names the file and the field.
Files are written whole or not at all. The conventions are tabled in docs/conventions.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spad.cameras.blender import blender_from_json
from spad.cameras.cameras import Cameras
from spad.cameras.colmap import load_colmap
from spad.cameras.nerfstudio import load_transforms, transforms_from_json
from spad.cameras.parsing import LoadedCameras
from spad.files import read_json


def load_cameras(
    path: str | os.PathLike, height: int | None = None, width: int | None = None
) -> LoadedCameras:
    """Load cameras from a file or folder of any known format, recognized by its content.

    Args:
        path: a nerfstudio `transforms.json` or a folder with one; a COLMAP text model, as its
            folder or one with `sparse/0`; or JSON with a list `cameras` of Blender's
            `matrix_world`, or a folder with such a `cameras.json`.
        height, width: picture size in pixels, for files that do not state it.

    Raises: ValueError: nothing known at `path`, or what the reader of that kind raises.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "transforms.json").is_file():
            return load_transforms(path / "transforms.json", height, width)
        if (path / "cameras.json").is_file():
            return load_cameras(path / "cameras.json", height, width)
        return load_colmap(path)
    if path.name in ("cameras.txt", "images.txt"):
        return load_colmap(path.parent)
    data = read_json(path, dict)
    if "frames" in data:
        return transforms_from_json(path, data, height, width)
    if "cameras" in data:
        return blender_from_json(path, data, height, width)
    raise ValueError(
        f"{path}: expected a list 'frames' (nerfstudio) or 'cameras' (Blender), got neither"
    )


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
