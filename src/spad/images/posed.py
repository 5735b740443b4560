"""Read images with cameras, and optionally depth maps: nerfstudio, COLMAP, Blender folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spad.cameras import Cameras, load_cameras
from spad.cameras.formats import camera_file
from spad.files import short
from spad.images.depth_maps import DEPTH_SUFFIXES, read_depth_map
from spad.images.pixels import read_on_white

# Renderers write so much, or the largest half number, where they see nothing.
_NOTHING = 65504.0
# nerfstudio's unit of 16-bit depth, and that of `spad render`.
_PNG_UNIT = 1e-3


@dataclass(frozen=True, eq=False)
class PosedImages:
    """Images of one size with their cameras.

    Attributes:
        cameras: v views.
        pictures: uint8 (v, h, w, 3), of the cameras' size.
        names: one per view, such as "view 3".
        depth: (v, h, w) z-depth in world units, infinite where there is nothing; or None.
    """

    cameras: Cameras
    pictures: np.ndarray
    names: tuple[str, ...]
    depth: Tensor | None = None

    def resized(self, longer_side: int) -> tuple[Cameras, np.ndarray]:
        """Cameras and images resized to a longer side of so many pixels."""
        cameras = self.cameras.fit(longer_side)
        size = (cameras.width, cameras.height)
        pictures = [
            np.asarray(Image.fromarray(p).resize(size, Image.Resampling.LANCZOS))
            for p in self.pictures
        ]
        return cameras, np.stack(pictures)

    def chosen(self, indices: Sequence[int]) -> PosedImages:
        """A selection of the views."""
        indices = list(indices)
        depth = None if self.depth is None else self.depth[indices]
        names = tuple(self.names[i] for i in indices)
        return PosedImages(self.cameras[indices], self.pictures[indices], names, depth)


def load_posed_pictures(
    source: Path,
    images: Path | None = None,
    depth: Path | None = None,
    depth_scale: float | None = None,
) -> PosedImages:
    """Cameras and pictures of a folder or camera file, with depth maps on request.

    Args:
        source: whatever `spad.cameras.load_cameras` reads.
        images: folder of the pictures; else they are looked for at the paths that the camera file
            gives, from its folder, from `images` in it, and as COLMAP lays a project out.
        depth: folder of depth maps (EXR, PNG or NPY) named as the pictures.
        depth_scale: world units per unit of the depth maps; 0.001 for PNG and 1 for others if
            left out.

    Raises: ValueError: cameras as `load_cameras` refuses them, pictures or depth maps that are
        missing, unreadable or of another size than the cameras say; the message names file and
        view. ModuleNotFoundError: EXR needs the extra `exr`.
    """
    loaded = load_cameras(source)
    cameras = loaded.cameras
    paths = find_images(source, loaded.image_paths, images)
    pictures = [_read_picture(path, cameras, view) for view, path in enumerate(paths)]
    maps = None
    if depth is not None:
        maps = torch.stack(
            [
                _read_depth(_find_depth(depth, path, view), cameras, view, depth_scale)
                for view, path in enumerate(paths)
            ]
        )
    names = tuple(f"view {view}" for view in range(len(cameras)))
    return PosedImages(cameras, np.stack(pictures), names, maps)


def find_images(source: Path, image_paths: Sequence[str], images: Path | None = None) -> list[Path]:
    """The files of the pictures that the cameras in `source` name.

    Args:
        images: folder of the pictures; if left out, `load_posed_pictures` says where they are
            looked for.

    Raises: ValueError: it names none or one twice, or one is missing.
    """
    file = camera_file(source)
    if not image_paths:
        raise ValueError(f"{file}: expected cameras with pictures, got a file that names none")
    name, times = Counter(image_paths).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{file}: expected an image per view, got {short(name)} {times} times")
    folders = [images] if images is not None else _picture_folders(source)
    return [_find_picture(file, folders, name, i) for i, name in enumerate(image_paths)]


def _picture_folders(source: Path) -> list[Path]:
    folder = source if source.is_dir() else source.parent
    # COLMAP keeps its model in sparse/0, the pictures in images beside sparse.
    around = [folder, folder.absolute().parent, folder.absolute().parent.parent]
    return [folder, *(place / "images" for place in around)]


def _find_picture(file: Path, folders: Sequence[Path], name: str, view: int) -> Path:
    for folder in folders:
        # NeRF-synthetic files leave the ".png" out.
        for path in (folder / name, folder / f"{name}.png"):
            # Path.is_file raises an error where the name is too long.
            if os.path.isfile(path):
                return path
    raise ValueError(
        f"{file}: expected the image {short(name)} of view {view}, got no such file in "
        f"{folders[0]}; "
        "give the folder of pictures with --images"
    )


def _read_picture(path: Path, cameras: Cameras, view: int) -> np.ndarray:
    try:
        picture = read_on_white(path)
    # Pillow answers damage with SyntaxError and ValueError too.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected a picture of view {view}: {error}") from error
    _check_shape(path, picture.shape[:2], cameras, view)
    return picture


def _find_depth(folder: Path, picture: Path, view: int) -> Path:
    for suffix in DEPTH_SUFFIXES:
        path = folder / f"{picture.stem}{suffix}"
        if path.is_file():
            return path
    raise ValueError(
        f"{folder}: expected a depth map {picture.stem}{{{','.join(DEPTH_SUFFIXES)}}} of view "
        f"{view}, got none; depth maps are named as their pictures"
    )


def _read_depth(path: Path, cameras: Cameras, view: int, scale: float | None) -> Tensor:
    """(h, w) z-depth in world units, infinite where the map has none."""
    try:
        values = read_depth_map(path)
    except ValueError as error:
        raise ValueError(f"{path}: expected a depth map of view {view}: {error}") from error
    _check_shape(path, values.shape, cameras, view)
    unit = (_PNG_UNIT if path.suffix == ".png" else 1.0) if scale is None else scale
    nothing = ~np.isfinite(values) | (values <= 0)
    if path.suffix != ".png":
        nothing |= values >= _NOTHING
    return torch.from_numpy(np.where(nothing, np.float32(np.inf), values * np.float32(unit)))


def _check_shape(path: Path, shape: tuple[int, ...], cameras: Cameras, view: int) -> None:
    if tuple(shape) != (cameras.height, cameras.width):
        got = "x".join(str(side) for side in reversed(shape))
        raise ValueError(
            f"{path}: expected {cameras.width}x{cameras.height} pixels (width x height) of view "
            f"{view}, as its camera has, got {got}"
        )
