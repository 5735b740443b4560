"""Images and depth maps that belong to cameras: where they are, and whether their sizes agree."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spad.cameras import Cameras
from spad.cameras.formats import camera_file
from spad.files import short
from spad.images.depth_maps import DEPTH_SUFFIXES, read_depth_map

# Renderers write so much, or the largest half number, where they see nothing.
_NOTHING = 65504.0
# nerfstudio's unit of 16-bit depth, and that of `spad render`.
PNG_UNIT = 1e-3


def read_depth_maps(
    folder: Path, images: Sequence[Path], cameras: Cameras, scale: float | None = None
) -> Tensor:
    """(v, h, w) z-depth of views in world units, infinite where there is nothing.

    Args:
        folder: folder of depth maps (EXR, PNG or NPY) named as the images.
        images: one image file per view.
        scale: world units per unit of the depth maps. Default: 0.001 for PNG, 1 for others.

    Raises: ValueError: a depth map is missing, unreadable or of another size than its camera.
        ModuleNotFoundError: EXR needs the extra `exr`.
    """
    paths = [_find_depth(folder, image, view) for view, image in enumerate(images)]
    return torch.stack([_read_depth(path, cameras, view, scale) for view, path in enumerate(paths)])


def find_images(source: Path, image_paths: Sequence[str], folder: Path | None = None) -> list[Path]:
    """The files of the images that the cameras in `source` name.

    Args:
        folder: folder of the images. Default: they are looked for at the paths that the camera
            file gives, from its folder, from `images` in it, and as COLMAP lays a project out.

    Raises: ValueError: it names none or one twice, or one is missing.
    """
    file = camera_file(source)
    if not image_paths:
        raise ValueError(f"{file}: expected cameras with images, got a file that names none")
    name, times = Counter(image_paths).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{file}: expected an image per view, got {short(name)} {times} times")
    folders = [folder] if folder is not None else _image_folders(source)
    return [_find_image(file, folders, name, i) for i, name in enumerate(image_paths)]


def _image_folders(source: Path) -> list[Path]:
    folder = source if source.is_dir() else source.parent
    # COLMAP keeps its model in sparse/0, the images in images beside sparse.
    around = [folder, folder.absolute().parent, folder.absolute().parent.parent]
    return [folder, *(place / "images" for place in around)]


def _find_image(file: Path, folders: Sequence[Path], name: str, view: int) -> Path:
    for folder in folders:
        # NeRF-synthetic files leave the ".png" out.
        for path in (folder / name, folder / f"{name}.png"):
            # Path.is_file raises an error where the name is too long.
            if os.path.isfile(path):
                return path
    raise ValueError(
        f"{file}: expected the image {short(name)} of view {view}, got no such file in "
        f"{folders[0]}; "
        "give the folder of images with --images"
    )


def _find_depth(folder: Path, image: Path, view: int) -> Path:
    for suffix in DEPTH_SUFFIXES:
        path = folder / f"{image.stem}{suffix}"
        if path.is_file():
            return path
    raise ValueError(
        f"{folder}: expected a depth map {image.stem}{{{','.join(DEPTH_SUFFIXES)}}} of view "
        f"{view}, got none; depth maps are named as their images"
    )


def _read_depth(path: Path, cameras: Cameras, view: int, scale: float | None) -> Tensor:
    """(h, w) z-depth in world units, infinite where the map has none."""
    try:
        values = read_depth_map(path)
    except ValueError as error:
        raise ValueError(f"{path}: expected a depth map of view {view}: {error}") from error
    check_size(path, values, cameras)
    unit = (PNG_UNIT if path.suffix == ".png" else 1.0) if scale is None else scale
    nothing = ~np.isfinite(values) | (values <= 0)
    if path.suffix != ".png":
        nothing |= values >= _NOTHING
    return torch.from_numpy(np.where(nothing, np.float32(np.inf), values * np.float32(unit)))


def check_size(where: object, pixels: np.ndarray, cameras: Cameras) -> None:
    """Raises: ValueError: pixels (h, w, ...) are not of the cameras' size."""
    if pixels.shape[:2] != (cameras.height, cameras.width):
        raise ValueError(
            f"{where}: expected {cameras.width}x{cameras.height} pixels (width x height), as its "
            f"camera has, got {pixels.shape[1]}x{pixels.shape[0]}"
        )
