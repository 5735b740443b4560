"""Cameras in and out of nerfstudio's `transforms.json` and Blender, and `load_cameras` for all.

Readers keep the world and the order of the views as the file has them, need no picture to exist,
and answer every malformed file with a one-line `ValueError` that names the file and the field.
Files are written whole or not at all. The conventions are tabled in docs/conventions.md.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spad.camera_checks import Scalars, broadcast_views, check_size
from spad.camera_colmap import load_colmap, save_colmap
from spad.camera_parsing import (
    LoadedCameras,
    build_cameras,
    check_one_size,
    image_names,
    number_of,
    read_text,
    short,
    tensor,
    write_whole,
)
from spad.cameras import Cameras, intrinsics_from_fov

__all__ = [
    "LoadedCameras",
    "from_blender",
    "load_cameras",
    "load_colmap",
    "load_transforms",
    "save_colmap",
    "save_transforms",
    "to_blender",
]

# OpenCV's camera axes (y down, z forward) and OpenGL's (y up, z back) differ by this sign.
_FLIP_YZ = torch.tensor([1.0, -1.0, -1.0, 1.0])

_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


def load_cameras(
    path: str | os.PathLike, height: int | None = None, width: int | None = None
) -> LoadedCameras:
    """Cameras from a file or folder of any known kind, told apart by its content.

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
    data = _read_json(path)
    if "frames" in data:
        return _transforms_from_json(path, data, height, width)
    if "cameras" in data:
        return _blender_from_json(path, data, height, width)
    raise ValueError(
        f"{path}: expected a list 'frames' (nerfstudio) or 'cameras' (Blender), got neither"
    )


def load_transforms(
    path: str | os.PathLike, height: int | None = None, width: int | None = None
) -> LoadedCameras:
    """Cameras of a nerfstudio (or instant-ngp, or NeRF-synthetic) `transforms.json`.

    Focal lengths come from `fl_x` and `fl_y`, else from `camera_angle_x` and `camera_angle_y`; a
    missing principal point is the image centre. A frame's own value wins over the shared one.

    Args:
        path: the file.
        height, width: picture size in pixels, for files without `h` and `w`; without either the
            header of the picture itself (PNG or JPEG) is read.

    Raises: ValueError: malformed fields, lens distortion that is not zero, a lens that is not
        perspective, pictures of different sizes, or no way to know the size.
    """
    path = Path(path)
    return _transforms_from_json(path, _read_json(path), height, width)


def save_transforms(
    path: str | os.PathLike,
    cameras: Cameras,
    image_paths: Sequence[str | os.PathLike],
    **extra: Sequence[Any],
) -> None:
    """Write a `transforms.json` that nerfstudio reads; intrinsics per frame where they differ.

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
    poses = cameras.world_from_cam.cpu() * _FLIP_YZ
    for frame, pose in zip(frames, poses.tolist(), strict=True):
        frame["transform_matrix"] = pose
    _add_fields(frames, extra, {*shared, *frames[0], *fields[0]})
    write_whole({Path(path): _json_text(shared | {"frames": frames})})


def from_blender(
    matrix_world: Tensor | Sequence,
    fov_rad: Scalars,
    height: int,
    width: int,
    shift_x: Scalars = 0.0,
    shift_y: Scalars = 0.0,
) -> Cameras:
    """Cameras from Blender's.

    Args:
        matrix_world: (v, 4, 4) or (4, 4), world from camera, looking along -z with y up.
        fov_rad: `camera.data.angle_x`: across the width of the picture.
        height, width: of the pictures in pixels; pixels are square.
        shift_x, shift_y: `camera.data.shift_x` and `shift_y` under horizontal sensor fit: how far
            the frame lies right of and above the optical axis, in picture widths.

    Raises: ValueError: lists of unequal length, and what `Cameras` raises.
    """
    try:
        poses = torch.as_tensor(matrix_world, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError("expected matrix_world to be numbers of shape (views, 4, 4)") from error
    if poses.shape[-2:] != (4, 4) or poses.ndim > 3:
        raise ValueError(
            f"expected matrix_world of shape (views, 4, 4) or (4, 4), got {tuple(poses.shape)}"
        )
    poses = poses.reshape(-1, 4, 4) * _FLIP_YZ
    check_size(height, width)
    per_view = broadcast_views(fov_rad=fov_rad, shift_x=shift_x, shift_y=shift_y)
    if len(per_view[0]) not in (1, len(poses)):
        raise ValueError(
            f"expected {len(poses)} values of fov_rad and shifts, as many as of matrix_world, got "
            f"{len(per_view[0])}; give one per view or a single value"
        )
    fov, right, above = (value.expand(len(poses)) for value in per_view)
    intrinsics = intrinsics_from_fov(fov, height, width)
    intrinsics[:, 0, 2] -= right * width
    intrinsics[:, 1, 2] += above * width
    return Cameras(poses.float(), intrinsics.float(), height, width)


def to_blender(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Blender's `matrix_world` (v, 4, 4), `angle_x` (v,) in radians, and `shift` (v, 2).

    The inverse of `from_blender`, which says what they mean.

    Raises: ValueError: a view whose pixels are not square; in Blender their aspect belongs to the
        scene, not to a camera.
    """
    k = cameras.intrinsics
    uneven = ~torch.isclose(k[:, 0, 0], k[:, 1, 1], rtol=1e-5, atol=0)
    if uneven.any():
        view = int(uneven.nonzero()[0])
        raise ValueError(
            f"expected square pixels (fx = fy) in camera {view}, got {float(k[view, 0, 0]):g} and "
            f"{float(k[view, 1, 1]):g}; resize the pictures so that they are"
        )
    right = (cameras.width / 2 - k[:, 0, 2]) / cameras.width
    above = (k[:, 1, 2] - cameras.height / 2) / cameras.width
    matrix_world = cameras.world_from_cam * _FLIP_YZ.to(cameras.world_from_cam)
    return matrix_world, cameras.fov_rad, torch.stack([right, above], dim=-1)


def _transforms_from_json(
    path: Path, data: Mapping, height: int | None, width: int | None
) -> LoadedCameras:
    poses, intrinsics, sizes = [], [], []
    frames = _list_of_objects(path, data, "frames")
    for where, frame in frames:
        fields = {**data, **frame}
        _check_lens(where, fields)
        h, w = _picture_size(where, path, fields, ("h", "w"), "file_path", (height, width))
        fx = _focal(where, (frame, data), "x", w)
        if fx is None:
            raise ValueError(f"{where}: expected fl_x or camera_angle_x, got neither")
        fy = _focal(where, (frame, data), "y", h)
        fy = fx if fy is None else fy
        cx, cy = number_of(where, fields, "cx", w / 2), number_of(where, fields, "cy", h / 2)
        poses.append(_matrix(where, frame, "transform_matrix"))
        intrinsics.append([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        sizes.append((h, w))
    cameras = build_cameras(path, tensor(poses) * _FLIP_YZ, tensor(intrinsics), sizes)
    return LoadedCameras(cameras, _paths_of(frames, "file_path"))


def _blender_from_json(
    path: Path, data: Mapping, height: int | None, width: int | None
) -> LoadedCameras:
    poses, fovs, shifts, sizes = [], [], [], []
    views = _list_of_objects(path, data, "cameras")
    for where, view in views:
        fields = {**data, **view}
        poses.append(_matrix(where, view, "matrix_world"))
        fovs.append(number_of(where, fields, "fov_rad"))
        if fovs[-1] <= 0:
            raise ValueError(f"{where}: expected fov_rad above 0 radians, got {fovs[-1]:g}")
        shifts.append([number_of(where, fields, name, 0.0) for name in ("shift_x", "shift_y")])
        size = _picture_size(where, path, fields, ("height", "width"), "image", (height, width))
        sizes.append(size)
    check_one_size(path, sizes)
    try:
        cameras = from_blender(poses, fovs, *sizes[0], *zip(*shifts, strict=True))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LoadedCameras(cameras, _paths_of(views, "image"))


def _list_of_objects(path: Path, data: Mapping, name: str) -> list[tuple[str, Mapping]]:
    """The list in field `name`, each object with the words that place it in a message."""
    items = data.get(name)
    if not isinstance(items, list) or not items:
        raise ValueError(
            f"{path}: expected a list '{name}' with at least 1 entry, got {short(items)}"
        )
    placed = [(f"{path}: {name}[{i}]", item) for i, item in enumerate(items)]
    for where, item in placed:
        if not isinstance(item, dict):
            raise ValueError(f"{where}: expected an object, got {short(item)}")
    return placed


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
                "undistort the pictures first"
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


def _picture_size(
    where: str,
    path: Path,
    fields: Mapping,
    names: tuple[str, str],
    image_field: str,
    given: tuple[int | None, int | None],
) -> tuple[int, int]:
    """(height, width): as the file states it, as the caller gives it, or as the picture has it."""
    if names[0] in fields or names[1] in fields:
        size = tuple(number_of(where, fields, name) for name in names)
        if any(side < 1 or side != int(side) for side in size):
            raise ValueError(
                f"{where}: expected whole positive {names[0]} and {names[1]}, got {size}"
            )
        return int(size[0]), int(size[1])
    if given != (None, None):
        check_size(*given)
        return given
    image = fields.get(image_field)
    if isinstance(image, str):
        # NeRF-synthetic files leave the ".png" out.
        for candidate in (path.parent / image, path.parent / f"{image}.png"):
            size = _size_of_picture(candidate)
            if size is not None:
                return size
    raise ValueError(
        f"{where}: expected {names[0]} and {names[1]} or a readable PNG or JPEG, got neither; "
        "give height and width"
    )


def _size_of_picture(path: Path) -> tuple[int, int] | None:
    """(height, width) from the header of a PNG or JPEG file; None for anything else."""
    with suppress(OSError, ValueError, struct.error), path.open("rb") as file:
        head = file.read(24)
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack(">II", head[16:24])
            return height, width
        if head.startswith(b"\xff\xd8"):
            file.seek(2)
            while True:
                mark, kind, length = struct.unpack(">BBH", file.read(4))
                if mark != 0xFF:
                    return None
                # Start-of-frame segments hold the size; C4, C8 and CC lie among them but are none.
                if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                    _, height, width = struct.unpack(">BHH", file.read(5))
                    return height, width
                file.seek(length - 2, os.SEEK_CUR)
    return None


def _paths_of(items: Sequence[tuple[str, Mapping]], name: str) -> tuple[str, ...]:
    """Field `name` of every object; empty where none has it."""
    if not any(name in item for _, item in items):
        return ()
    for where, item in items:
        if not isinstance(item.get(name), str):
            raise ValueError(f"{where}: expected {name} to be text, got {short(item.get(name))}")
    return tuple(item[name] for _, item in items)


def _matrix(where: str, fields: Mapping, name: str) -> list[list[float]]:
    rows = fields.get(name)
    if not (
        isinstance(rows, list)
        and len(rows) == 4
        and all(isinstance(row, list) and len(row) == 4 for row in rows)
    ):
        raise ValueError(f"{where}: expected {name} to be 4 rows of 4 numbers, got {short(rows)}")
    return [[number_of(where, {name: entry}, name) for entry in row] for row in rows]


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


def _read_json(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON with numbers and nesting of a usual size, got {short(text)}"
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, got {short(data)}")
    return data


def _json_text(data: Mapping) -> str:
    try:
        return json.dumps(data, indent=2, allow_nan=False, default=os.fspath) + "\n"
    except TypeError as error:
        raise ValueError(f"expected extra fields of text, numbers and lists: {error}") from error
