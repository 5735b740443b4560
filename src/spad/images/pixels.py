"""Image files, and conversions between images and tensors; compositing on white."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from spad.images.modes import as_rgba

# Pillow tries these alone, which takes less time than all it knows.
_IMAGE_FORMATS = ("WEBP", "PNG", "JPEG")


def read_image(path: Path, upright: bool = False) -> Image.Image:
    """An image file of any format, in mode RGBA.

    Args:
        upright: turn it as its EXIF orientation says.

    Raises: ValueError: it cannot be read.
    """
    with _readable(path), Image.open(path) as image:
        return as_rgba(ImageOps.exif_transpose(image) if upright else image)


def read_on_white(path: Path) -> np.ndarray:
    """An image file composited on white, uint8 (h, w, 3). Raises: as `read_image`."""
    return on_white(read_image(path))


def on_white(image: Image.Image) -> np.ndarray:
    """An image's pixels with transparency composited on white, uint8 (h, w, 3)."""
    rgba = as_rgba(image)
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def image_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (..., h, w, 3) -> float (..., 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).movedim(-1, -3).float().div_(127.5).sub_(1)


def open_image(data: bytes, where: str) -> Image.Image:
    """An image, decoded. `where` starts the message. Raises: ValueError: it is none."""
    with _readable(where):
        image = Image.open(BytesIO(data), formats=_IMAGE_FORMATS)
        image.load()
    return image


def to_floats(images: np.ndarray) -> torch.Tensor:
    """(v, 3, h, w) in [0, 1] of uint8 (v, h, w, 3)."""
    return torch.from_numpy(images).movedim(-1, 1).float() / 255


def to_levels(images: torch.Tensor) -> np.ndarray:
    """uint8 (v, h, w, 3) of (v, 3, h, w) in [0, 1]."""
    return images.mul(255).round().to(torch.uint8).movedim(1, -1).numpy()


def fitted_image_tensor(image: Image.Image, height: int, width: int) -> Tensor:
    """An image on white, padded to the shape asked for, resized: (3, height, width), [-1, 1]."""
    rgba = as_rgba(image)
    scale = min(width / rgba.width, height / rgba.height)
    size = (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale)))
    canvas = Image.new("RGBA", (width, height), "white")
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.alpha_composite(rgba.resize(size, Image.Resampling.LANCZOS), corner)
    pixels = torch.from_numpy(np.array(canvas.convert("RGB"), dtype=np.float32))
    return pixels.movedim(-1, 0) / 127.5 - 1


@contextmanager
def _readable(where: object) -> Iterator[None]:
    """Raises: ValueError: in the place of what Pillow raises for a damaged image."""
    try:
        yield
    # Some decoders answer damage with SyntaxError and ValueError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged or not an image"
        if type(error) is ValueError:
            reason = str(error)
        raise ValueError(f"{where}: expected a readable image: {reason}") from error
