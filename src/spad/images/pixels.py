"""Conversions between images and tensors; compositing on white."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spad.images.modes import as_rgba

# Pillow tries these alone, which takes less time than all it knows.
_PICTURE_FORMATS = ("WEBP", "PNG", "JPEG")


def read_on_white(path: Path) -> np.ndarray:
    """One picture with its transparency composited on white, uint8 (h, w, 3)."""
    with Image.open(path) as picture:
        return on_white(picture)


def on_white(picture: Image.Image) -> np.ndarray:
    """A picture's pixels with transparency composited on white, uint8 (h, w, 3)."""
    rgba = as_rgba(picture)
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def image_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (..., h, w, 3) -> float (..., 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).movedim(-1, -3).float().div_(127.5).sub_(1)


def open_image(data: bytes, where: str) -> Image.Image:
    """A picture, decoded. `where` starts the message. Raises: ValueError: it is none."""
    try:
        picture = Image.open(BytesIO(data), formats=_PICTURE_FORMATS)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: expected a readable picture ({error})") from None
    return picture


def to_floats(pictures: np.ndarray) -> torch.Tensor:
    """(v, 3, h, w) in [0, 1] of uint8 (v, h, w, 3)."""
    return torch.from_numpy(pictures).movedim(-1, 1).float() / 255


def to_levels(images: torch.Tensor) -> np.ndarray:
    """uint8 (v, h, w, 3) of (v, 3, h, w) in [0, 1]."""
    return images.mul(255).round().to(torch.uint8).movedim(1, -1).numpy()


def picture_tensor(image: Image.Image, height: int, width: int) -> Tensor:
    """A picture on white, padded to the shape asked for, resized: (3, height, width), [-1, 1]."""
    rgba = as_rgba(image)
    scale = min(width / rgba.width, height / rgba.height)
    size = (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale)))
    canvas = Image.new("RGBA", (width, height), "white")
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.alpha_composite(rgba.resize(size, Image.Resampling.LANCZOS), corner)
    pixels = torch.from_numpy(np.array(canvas.convert("RGB"), dtype=np.float32))
    return pixels.movedim(-1, 0) / 127.5 - 1
