"""Cameras in and out of COLMAP's text models: `cameras.txt`, `images.txt`, `points3D.txt`.

COLMAP has our camera axes and pixels, but writes camera from world, as quaternion and translation.
Source: https://colmap.github.io/format.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spad.cameras.cameras import Cameras
from spad.cameras.parsing import (
    LoadedCameras,
    build_cameras,
    image_names,
    is_number,
    numbers_of,
    tensor,
)
from spad.files import read_lines, short, write_texts

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


def load_colmap(path: str | os.PathLike) -> LoadedCameras:
    """Cameras of a COLMAP text model (`cameras.txt`, `images.txt`), in the order of the images.

    COLMAP's world has an arbitrary origin, orientation and scale: nothing makes its z point up.
    `Cameras.transformed` moves the result.

    Args:
        path: the model's folder, or one that has it in `sparse/0`.

    Raises: ValueError: malformed lines, lens distortion that is not zero, a lens that is not
        perspective, pictures of different sizes, or no text model there.
    """
    folders = (Path(path), Path(path) / "sparse" / "0")
    folder = next((f for f in folders if (f / "images.txt").is_file()), None)
    if folder is None:
        if any((f / "images.bin").is_file() for f in folders):
            raise ValueError(
                f"{path}: expected a COLMAP text model, got a binary one; try "
                "colmap model_converter --output_type TXT"
            )
        raise ValueError(
            f"{path}: expected transforms.json, or COLMAP's cameras.txt and images.txt here or in "
            "sparse/0, got none"
        )
    lenses = _read_lenses(folder / "cameras.txt")
    file = folder / "images.txt"
    quaternions, translations, intrinsics, sizes, names = [], [], [], [], []
    for where, words in _read_images(file):
        quaternions.append(numbers_of(where, "QW QX QY QZ", words[1:5]))
        if not any(quaternions[-1]):
            raise ValueError(f"{where}: expected a quaternion QW QX QY QZ, got zeros")
        translations.append(numbers_of(where, "TX TY TZ", words[5:8]))
        if words[8] not in lenses:
            raise ValueError(f"{where}: expected a CAMERA_ID of cameras.txt, got {words[8]!r}")
        size, matrix = lenses[words[8]]
        sizes.append(size)
        intrinsics.append(matrix)
        names.append(words[9])
    if not names:
        raise ValueError(f"{file}: expected at least 1 image, got none")
    world_from_cam = _rotations_from_quaternions(tensor(quaternions)).mT
    centers = -world_from_cam @ tensor(translations)[:, :, None]
    poses = torch.eye(4, dtype=torch.float64).repeat(len(names), 1, 1)
    poses[:, :3] = torch.cat([world_from_cam, centers], dim=-1)
    return LoadedCameras(build_cameras(file, poses, tensor(intrinsics), sizes), tuple(names))


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


def _read_lenses(file: Path) -> dict[str, tuple[tuple[int, int], list[list[float]]]]:
    """(height, width) and intrinsics by CAMERA_ID."""
    lenses = {}
    for where, line in read_lines(file):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 5:
            raise ValueError(f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, got {line!r}")
        name, model = words[:2]
        if model not in _MODELS:
            raise ValueError(
                f"{where}: expected a perspective model ({', '.join(_MODELS)}), got {model}; "
                "try colmap image_undistorter first"
            )
        width, height = numbers_of(where, "WIDTH HEIGHT", words[2:4])
        if min(width, height) < 1 or width != int(width) or height != int(height):
            raise ValueError(f"{where}: expected whole positive WIDTH HEIGHT, got {words[2:4]}")
        params = numbers_of(where, "PARAMS", words[4:])
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
        lenses[name] = ((int(height), int(width)), [[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return lenses


def _read_images(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The ten words of each image (the last may hold blanks), with their place in the file."""
    lines = read_lines(file)
    for where, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
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
        yield where, words


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
