"""Images as another tool reads them: its names, order, background and size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from spad.cameras import Cameras, save_transforms
from spad.files import json_text, write_text
from spad.generation.presets import Files
from spad.images.alpha import estimate_alpha
from spad.images.pixels import to_floats
from spad.images.reading import on_white

# That of Zero123++, the zero of its autoencoder.
_GRAY = 127


def write_tool_files(
    folder: Path, images: Sequence[Image.Image], cameras: Cameras, files: Files
) -> None:
    """Write the images of one object into a new folder, as a tool reads them.

    Raises: ValueError: another background than white is asked for, and that of the images is not
        white enough to be told from the object.
    """
    pixels = np.stack([on_white(image) for image in images])
    if files.background != "white":
        alpha = estimate_alpha(to_floats(pixels), "the generated images")
        pixels = _with_alpha(pixels, (255 * alpha.numpy()).astype(np.uint8))
    made = [Image.fromarray(one) for one in pixels]
    if files.image_size is not None:
        size = (files.image_size, files.image_size)
        made = [image.resize(size, Image.Resampling.LANCZOS) for image in made]
    if files.background == "gray":
        made = [_on_gray(image) for image in made]
    if files.columns is not None:
        made = [_sheet(made, files.columns)]
    for name, image in zip(files.names, made, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    if files.with_cameras:
        _write_cameras(folder, files.names, cameras)


def _with_alpha(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (v, h, w, 4) of images (v, h, w, 3) on white and their alpha (v, h, w), 0 or 255.

    Pixels on the outline are partly background: they get the color of the object beside them, so
    that no white rim shows on another background.
    """
    inside = -F.max_pool2d(-torch.from_numpy(alpha / 255.0)[:, None], 3, stride=1, padding=1)
    colors = to_floats(pixels).double()
    near = F.avg_pool2d(inside, 5, stride=1, padding=2)
    spread = F.avg_pool2d(inside * colors, 5, stride=1, padding=2)
    is_rim = (inside < 1) & (near > 0)
    colors = torch.where(is_rim, spread / near.clamp(min=1e-6), colors)
    rgb = (255 * colors).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).numpy()
    return np.concatenate([rgb, alpha[..., None]], axis=-1)


def _on_gray(image: Image.Image) -> Image.Image:
    gray = Image.new("RGBA", image.size, (_GRAY, _GRAY, _GRAY, 255))
    return Image.alpha_composite(gray, image).convert("RGB")


def _sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """All images side by side, without gaps."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (_GRAY, _GRAY, _GRAY))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * width, row * height))
    return sheet


def _write_cameras(folder: Path, names: Sequence[str], cameras: Cameras) -> None:
    """Write the cameras of the images in each folder, as NeRF-synthetic files, none for testing."""
    for parent in sorted({Path(name).parent for name in names}):
        views = [view for view, name in enumerate(names) if Path(name).parent == parent]
        # Readers of such files add the suffix.
        stems = [Path(names[view]).stem for view in views]
        save_transforms(folder / parent / "transforms_train.json", cameras[views], stems)
        none = {"camera_angle_x": float(cameras.fov_rad[0]), "frames": []}
        write_text(folder / parent / "transforms_test.json", json_text(none))
