"""Conversion of images of every Pillow mode to 8-bit RGBA, by the range of their values."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms

# Modes of one number a pixel that Pillow's own conversion cuts off at 255.
_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Formats whose gray of mode "I" has 16 bits, in older versions of Pillow.
_GRAY16 = ("PNG", "PPM")
# The field of TIFF that says whether integers are signed, and its value where they are not.
_SAMPLE_FORMAT, _UNSIGNED = 339, (1, (1,))
# Filters leave a float image of 0 to 1 a little beyond both.
_OVERSHOOT = 2.0


def rgba_pixels(image: Image.Image) -> np.ndarray:
    """An image's pixels (h, w, 4), uint8, straight alpha.

    16-bit gray is taken from 0 to 65,535. Gray of 32-bit integers and floats does not tell its
    range: it is the smallest of 1 (floats alone), 255 and 65,535 that holds the largest value;
    beyond that, and for floats between 1 and 2, it is the largest value itself.

    Raises: ValueError: values below 0, NaN or infinity. What damaged files raise in Pillow.
    """
    if image.mode in _WIDE:
        return _from_wide(image)
    if image.mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None, "None is what conversions in place return"
        image = converted
    elif image.mode == "La":  # premultiplied gray
        image = image.convert("LA")
    return np.asarray(image.convert("RGBA"))


def as_rgba(image: Image.Image) -> Image.Image:
    """An image of mode "RGBA". Raises: as `rgba_pixels`."""
    return Image.fromarray(rgba_pixels(image))


def _from_wide(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("expected gray values, got NaN or infinity")
    if getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT) in _UNSIGNED:
        # Unsigned numbers of 32 bits come as signed ones.
        values = np.where(values < 0, values + 2.0**32, values)
    top = _range(image, float(values.max()))
    low = float(values.min())
    if low < -top / 255:
        raise ValueError(f"expected gray values of at least 0, got {low:g}")
    levels = np.rint(values * (255 / top)).clip(0, 255).astype(np.uint8)
    rgba = np.repeat(levels[..., None], 4, axis=-1)
    clear = image.info.get("transparency")
    rgba[..., 3] = np.where(values == clear, 0, 255) if isinstance(clear, int) else 255
    return rgba


def _range(image: Image.Image, largest: float) -> float:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _GRAY16):
        return 65535.0
    if image.mode == "F" and largest < _OVERSHOOT:
        return max(1.0, largest)
    return next((top for top in (255.0, 65535.0) if largest <= top), largest)
