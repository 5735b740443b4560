"""Cameras in and out of Blender."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spad.cameras.cameras import Cameras, intrinsics_from_fov
from spad.cameras.checks import Scalars, broadcast_views, check_size
from spad.cameras.parsing import (
    FLIP_YZ,
    LoadedCameras,
    check_one_size,
    image_names,
    image_size,
    list_of_objects,
    matrix_of,
    number_of,
    paths_of,
)
from spad.files import json_text, write_text


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
        fov_rad: `camera.data.angle_x`: across the width of the image.
        height, width: of the images in pixels; pixels are square.
        shift_x, shift_y: `camera.data.shift_x` and `shift_y` under horizontal sensor fit: how far
            the frame lies right of and above the optical axis, in image widths.

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
    poses = poses.reshape(-1, 4, 4) * FLIP_YZ
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
            f"{float(k[view, 1, 1]):g}; resize the images so that they are"
        )
    right = (cameras.width / 2 - k[:, 0, 2]) / cameras.width
    above = (k[:, 1, 2] - cameras.height / 2) / cameras.width
    matrix_world = cameras.world_from_cam * FLIP_YZ.to(cameras.world_from_cam)
    return matrix_world, cameras.fov_rad, torch.stack([right, above], dim=-1)


def save_blender(
    path: str | os.PathLike, cameras: Cameras, image_paths: Sequence[str | os.PathLike]
) -> None:
    """Write `cameras.json`, the Blender cameras that `load_cameras` reads.

    Args:
        path: file to write; one that is there is replaced.
        cameras: v views with square pixels.
        image_paths: v names, relative to the folder of the file.

    Raises: ValueError: lists of another length, or what `to_blender` raises.
    """
    names = image_names(cameras, image_paths)
    matrix_world, angle_x, shift = (part.double().tolist() for part in to_blender(cameras))
    views = [
        {
            "image": name,
            "matrix_world": matrix,
            "fov_rad": fov,
            "shift_x": right,
            "shift_y": above,
        }
        for name, matrix, fov, (right, above) in zip(
            names, matrix_world, angle_x, shift, strict=True
        )
    ]
    record = {"height": cameras.height, "width": cameras.width, "cameras": views}
    write_text(Path(path), json_text(record))


def blender_from_json(
    path: Path, data: Mapping, height: int | None, width: int | None
) -> LoadedCameras:
    poses, fovs, shifts, sizes = [], [], [], []
    views = list_of_objects(path, data, "cameras")
    for where, view in views:
        fields = {**data, **view}
        poses.append(matrix_of(where, view, "matrix_world"))
        fovs.append(number_of(where, fields, "fov_rad"))
        if fovs[-1] <= 0:
            raise ValueError(f"{where}: expected fov_rad above 0 radians, got {fovs[-1]:g}")
        shifts.append([number_of(where, fields, name, 0.0) for name in ("shift_x", "shift_y")])
        size = image_size(where, path, fields, ("height", "width"), "image", (height, width))
        sizes.append(size)
    check_one_size(path, sizes)
    try:
        cameras = from_blender(poses, fovs, *sizes[0], *zip(*shifts, strict=True))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LoadedCameras(cameras, paths_of(views, "image"))
