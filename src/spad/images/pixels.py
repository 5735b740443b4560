"""Conversions between images and tensors."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spad.images.modes import as_rgba


def image_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (..., h, w, 3) -> float (..., 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).movedim(-1, -3).float().div_(127.5).sub_(1)


def to_floats(images: np.ndarray) -> torch.Tensor:
    """(v, 3, h, w) in [0, 1] of uint8 (v, h, w, 3)."""
    return torch.from_numpy(images).movedim(-1, 1).float() / 255


def to_levels(images: torch.Tensor) -> np.ndarray:
    """uint8 (v, h, w, 3) of (v, 3, h, w) in [0, 1]."""
    return images.mul(255).round().to(torch.uint8).movedim(1, -1).numpy()


def fitted_image_tensor(image: Image.Image, height: int, width: int) -> Tensor:
    """An image on white, padded to the shape asked for, resized: (3, height, width), [-1, 1]."""
    pixels = torch.from_numpy(np.array(fitted_image(image, height, width), dtype=np.float32))
    return pixels.movedim(-1, 0) / 127.5 - 1


def fitted_image(image: Image.Image, height: int, width: int) -> Image.Image:
    """An image on white, padded to the shape asked for and resized, in mode RGB."""
    rgba = as_rgba(image)
    scale = min(width / rgba.width, height / rgba.height)
    size = (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale)))
    canvas = Image.new("RGBA", (width, height), "white")
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.alpha_composite(rgba.resize(size, Image.Resampling.LANCZOS), corner)
    return canvas.convert("RGB")
