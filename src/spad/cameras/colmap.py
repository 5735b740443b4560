"""Cameras out of COLMAP's models, text and binary, and into text models.

COLMAP has our camera axes and pixels, but writes camera from world, as quaternion and translation.
Source: https://colmap.github.io/format.html
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spad.cameras.cameras import Cameras
from spad.cameras.colmap_model import find_model, read_model
from spad.cameras.parsing import (
    LoadedCameras,
    build_cameras,
    forward_slashes,
    image_names,
    tensor,
)
from spad.files import short, write_texts


def load_colmap(path: str | os.PathLike) -> LoadedCameras:
    """Cameras of a COLMAP model, text or binary, in the order of the images in its file.

    COLMAP's world has an arbitrary origin, orientation and scale: nothing makes its z point up.
    `Cameras.transformed` moves the result.

    Args:
        path: the model's folder, or one that has it in `sparse`, `sparse/0` or `colmap/sparse/0`,
            searched in this order. Where a folder has both kinds, its text is read.

    Raises: ValueError: a malformed file, lens distortion that is not zero, a lens that is not
        perspective, images of different sizes, a name twice, or no model there.
    """
    found = find_model(Path(path))
    if found is None:
        raise ValueError(
            f"{path}: expected transforms.json, or COLMAP's cameras and images (.txt or .bin) "
            "here, in sparse or in sparse/0, got none"
        )
    folder, suffix = found
    lenses, images = read_model(folder, suffix)
    file = folder / f"images{suffix}"
    if not images:
        raise ValueError(f"{file}: expected at least 1 image, got none")
    names = set()
    for image in images:
        if not any(image.quaternion):
            raise ValueError(f"{image.where}: expected a quaternion QW QX QY QZ, got zeros")
        if image.lens not in lenses:
            raise ValueError(
                f"{image.where}: expected a CAMERA_ID of cameras{suffix}, got {image.lens}"
            )
        if image.name in names:
            raise ValueError(
                f"{image.where}: expected every image once, got {short(image.name)} again"
            )
        names.add(image.name)
    quaternions = tensor([image.quaternion for image in images])
    translations = tensor([image.translation for image in images])
    world_from_cam = _rotations_from_quaternions(quaternions).mT
    centers = -world_from_cam @ translations[:, :, None]
    poses = torch.eye(4, dtype=torch.float64).repeat(len(images), 1, 1)
    poses[:, :3] = torch.cat([world_from_cam, centers], dim=-1)
    of_images = [lenses[image.lens] for image in images]
    intrinsics = tensor([lens.intrinsics for lens in of_images])
    cameras = build_cameras(
        file, poses, intrinsics, [(lens.height, lens.width) for lens in of_images]
    )
    return LoadedCameras(cameras, tuple(forward_slashes(image.name) for image in images))


def save_colmap(
    path: str | os.PathLike, cameras: Cameras, image_paths: Sequence[str | os.PathLike]
) -> None:
    """Write a COLMAP text model into folder `path`, with no 3D points.

    Args:
        path: the model's folder, made if need be; its three text files are replaced.
        cameras: v views; those with equal intrinsics share one PINHOLE camera.
        image_paths: v names, relative to the folder of images; blanks inside are fine.

    Raises: ValueError: lists of another length, or a name a line of text cannot hold.
    """
    names = image_names(cameras, image_paths)
    for name in names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise ValueError(
                f"expected image names without line breaks or outer blanks, got {name!r}"
            )
    lenses: dict[tuple[float, ...], int] = {}
    images = []
    poses = cameras.to("cpu").cam_from_world.double()
    quaternions = _quaternions_from_rotations(poses[:, :3, :3]).tolist()
    for view, (k, quaternion, translation) in enumerate(
        zip(cameras.intrinsics.tolist(), quaternions, poses[:, :3, 3].tolist(), strict=True)
    ):
        lens = lenses.setdefault((k[0][0], k[1][1], k[0][2], k[1][2]), len(lenses) + 1)
        numbers = " ".join(repr(number) for number in quaternion + translation)
        images.append(f"{view + 1} {numbers} {lens} {names[view]}\n\n")
    lens_lines = [
        f"{number} PINHOLE {cameras.width} {cameras.height} {' '.join(map(repr, lens))}\n"
        for lens, number in lenses.items()
    ]
    folder = Path(path)
    write_texts(
        {
            folder / "cameras.txt": "# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY\n"
            + "".join(lens_lines),
            folder / "images.txt": "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME\n"
            "# (each followed by a line of 2D points, here empty)\n" + "".join(images),
            folder / "points3D.txt": "# no 3D points\n",
        }
    )


def _rotations_from_quaternions(quaternions: Tensor) -> Tensor:
    """(v, 3, 3) rotations from (v, 4) quaternions w x y z of any length but 0."""
    w, x, y, z = (quaternions / quaternions.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _quaternions_from_rotations(rotations: Tensor) -> Tensor:
    """(v, 4) unit quaternions w x y z, w not negative, from (v, 3, 3) rotations."""
    r = rotations
    xx, yy, zz = r.diagonal(dim1=-2, dim2=-1).unbind(-1)
    wx, wy, wz = r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]
    xy, xz, yz = r[:, 0, 1] + r[:, 1, 0], r[:, 0, 2] + r[:, 2, 0], r[:, 1, 2] + r[:, 2, 1]
    # Four times the outer product of the quaternion with itself. Any row is the quaternion up to
    # its length; the one with the largest diagonal entry is never small.
    outer = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, wx, wy, wz], dim=-1),
            torch.stack([wx, 1 + xx - yy - zz, xy, xz], dim=-1),
            torch.stack([wy, xy, 1 - xx + yy - zz, yz], dim=-1),
            torch.stack([wz, xz, yz, 1 - xx - yy + zz], dim=-1),
        ],
        dim=-2,
    )
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    quaternions = outer[torch.arange(len(outer), device=outer.device), best]
    quaternions = quaternions / quaternions.norm(dim=-1, keepdim=True)
    return torch.where(quaternions[:, :1] < 0, -quaternions, quaternions)
