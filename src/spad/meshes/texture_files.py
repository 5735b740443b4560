"""Images on surfaces: read from bytes of the formats that model files come with."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from spad.images.modes import rgba_pixels

# None that runs another program or reads another file.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TGA", "TIFF", "GIF", "DDS", "PPM", "PCX", "SGI")
# What no graphics card takes either.
_LONGEST_SIDE = 16384


def decode_texture(data: bytes, words: str) -> np.ndarray:
    """(h, w, 4) uint8, sRGB and straight alpha, of an encoded image that `words` name.

    Raises: ValueError: it is damaged, of another format, or too large.
    """
    try:
        Image.init()
        formats = [name for name in _FORMATS if name in Image.OPEN]  # older Pillow lacks some
        with Image.open(BytesIO(data), formats=formats) as image:
            if max(image.size) > _LONGEST_SIDE:
                raise ValueError(f"{image.size[0]}x{image.size[1]} pixels are too many")
            return rgba_pixels(image)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{words} cannot be read: no image of a known format") from None
    # Pillow's decoders answer damage with either; SyntaxError is a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{words} cannot be read: {error}") from error
