"""Cameras in and out of nerfstudio's `transforms.json`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spad.cameras.cameras import Cameras
from spad.cameras.parsing import (
    FLIP_YZ,
    LoadedCameras,
    build_cameras,
    image_names,
    image_size,
    list_of_objects,
    matrix_of,
    number_of,
    paths_of,
    tensor,
)
from spad.files import json_text, read_json, short, write_text

_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
# From so few images, nerfstudio takes all for training and finds none to evaluate with.
_FEW_VIEWS = 10
_PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


def load_transforms(
    path: str | os.PathLike, height: int | None = None, width: int | None = None
) -> LoadedCameras:
    """Cameras of a nerfstudio (or instant-ngp, or NeRF-synthetic) `transforms.json`.

    Focal lengths come from `fl_x` and `fl_y`, else from `camera_angle_x` and `camera_angle_y`; a
    missing principal point is the image center. A frame's own value wins over the shared one.

    Args:
        path: the file.
        height, width: image size in pixels, for files without `h` and `w`; without either the
            header of the image itself is read.

    Raises: ValueError: malformed fields, lens distortion that is not zero, a lens that is not
        perspective, images of different sizes, or no way to know the size.
    """
    path = Path(path)
    return transforms_from_json(path, read_json(path, dict), height, width)


def save_transforms(
    path: str | os.PathLike,
    cameras: Cameras,
    image_paths: Sequence[str | os.PathLike],
    **extra: Sequence[Any],
) -> None:
    """Write a `transforms.json` that nerfstudio reads; intrinsics per frame where they differ.

    nerfstudio holds out every tenth image. Of fewer than ten it trains on all, and evaluates with
    the first, which is no new view then.

    Args:
        path: the file, replaced if it exists.
        cameras: v views.
        image_paths: v paths, best relative to the file's folder.
        extra: more fields of the frames by name, v values each, such as `depth_file_path`.

    Raises: ValueError: lists of another length, or a field this function writes itself.
    """
    names = image_names(cameras, image_paths)
    fields = [
        {"fl_x": k[0][0], "fl_y": k[1][1], "cx": k[0][2], "cy": k[1][2]}
        for k in cameras.intrinsics.tolist()
    ]
    shared: dict[str, Any] = {"camera_model": "PINHOLE", "w": cameras.width, "h": cameras.height}
    frames: list[dict[str, Any]] = [{"file_path": name} for name in names]
    if all(field == fields[0] for field in fields):
        shared |= {"camera_angle_x": float(cameras.fov_rad[0])} | fields[0]
    else:
        frames = [frame | field for frame, field in zip(frames, fields, strict=True)]
    poses = cameras.world_from_cam.cpu() * FLIP_YZ
    for frame, pose in zip(frames, poses.tolist(), strict=True):
        frame["transform_matrix"] = pose
    _add_fields(frames, extra, {*shared, *frames[0], *fields[0]})
    if len(names) < _FEW_VIEWS:
        shared |= {f"{split}_filenames": names[:1] for split in ("val", "test")}
        shared["train_filenames"] = names
    try:
        text = json_text(shared | {"frames": frames})
    except TypeError as error:
        raise ValueError(f"expected extra fields of text, numbers and lists: {error}") from error
    write_text(Path(path), text)


def transforms_from_json(
    path: Path, data: Mapping, height: int | None, width: int | None
) -> LoadedCameras:
    poses, intrinsics, sizes = [], [], []
    frames = list_of_objects(path, data, "frames")
    for where, frame in frames:
        fields = {**data, **frame}
        _check_lens(where, fields)
        h, w = image_size(where, path, fields, ("h", "w"), "file_path", (height, width))
        fx = _focal(where, (frame, data), "x", w)
        if fx is None:
            raise ValueError(f"{where}: expected fl_x or camera_angle_x, got neither")
        fy = _focal(where, (frame, data), "y", h)
        fy = fx if fy is None else fy
        cx, cy = number_of(where, fields, "cx", w / 2), number_of(where, fields, "cy", h / 2)
        poses.append(matrix_of(where, frame, "transform_matrix"))
        intrinsics.append([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        sizes.append((h, w))
    cameras = build_cameras(path, tensor(poses) * FLIP_YZ, tensor(intrinsics), sizes)
    return LoadedCameras(cameras, paths_of(frames, "file_path"))


def _check_lens(where: str, fields: Mapping) -> None:
    model = fields.get("camera_model", "PINHOLE")
    if model not in _PINHOLE_MODELS or fields.get("is_fisheye"):
        kind = "a fisheye" if model in _PINHOLE_MODELS else short(model)
        raise ValueError(
            f"{where}: expected a perspective camera_model, got {kind}; undistort them first"
        )
    params = fields.get("distortion_params", [])
    if not isinstance(params, list):
        raise ValueError(f"{where}: expected a list distortion_params, got {short(params)}")
    named = {name: fields[name] for name in _DISTORTION if name in fields}
    named |= {f"distortion_params[{i}]": value for i, value in enumerate(params)}
    for name in named:
        if number_of(where, named, name) != 0:
            raise ValueError(
                f"{where}: expected no lens distortion, got {name} = {named[name]}; "
                "undistort the images first"
            )


def _focal(where: str, levels: Sequence[Mapping], axis: str, side: int) -> float | None:
    """Focal length in pixels along `axis`, of the first level that states it in any way."""
    for level in levels:
        if f"fl_{axis}" in level:
            return number_of(where, level, f"fl_{axis}")
        if f"camera_angle_{axis}" in level:
            angle = number_of(where, level, f"camera_angle_{axis}")
            if not 0 < angle < math.pi:
                raise ValueError(
                    f"{where}: expected camera_angle_{axis} between 0 and pi radians, got {angle:g}"
                )
            return side / (2 * math.tan(angle / 2))
    return None


def _add_fields(
    frames: Sequence[dict[str, Any]], extra: Mapping[str, Sequence[Any]], taken: set[str]
) -> None:
    for name, values in extra.items():
        if name in taken:
            raise ValueError(f"expected extra fields other than {sorted(taken)}, got {name!r}")
        if isinstance(values, str) or len(values) != len(frames):
            raise ValueError(
                f"expected {len(frames)} values of {name}, one per view, got {values!r}"
            )
        for frame, value in zip(frames, values, strict=True):
            frame[name] = value
