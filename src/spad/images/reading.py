"""Image files and encoded images: read, turned upright, composited on white."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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


def open_image(data: bytes, where: str) -> Image.Image:
    """An image, decoded. `where` starts the message. Raises: ValueError: it is none."""
    with _readable(where):
        image = Image.open(BytesIO(data), formats=_IMAGE_FORMATS)
        image.load()
    return image


def on_white(image: Image.Image) -> np.ndarray:
    """An image's pixels with transparency composited on white, uint8 (h, w, 3)."""
    rgba = as_rgba(image)
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


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
