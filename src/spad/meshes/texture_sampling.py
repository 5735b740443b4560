"""Textures at any coordinates: wrapped, filtered, in linear light."""

from __future__ import annotations

import numpy as np

from spad.images.color import linear_from_srgb
from spad.meshes.model_file import Texture

_LINEAR_FROM_BYTE = linear_from_srgb(np.arange(256) / 255.0).astype(np.float32)


def sample_texture(texture: Texture, uv: np.ndarray) -> np.ndarray:
    """Linear RGBA (n, 4) of a texture at uv (n, 2) from the top left, wrapped and filtered."""
    height, width = texture.pixels.shape[:2]
    flat = texture.pixels.reshape(height * width, 4)

    def texels(left: np.ndarray, top: np.ndarray) -> np.ndarray:
        cols = _wrapped(left, width, texture.wrap[0])
        picked = flat[_wrapped(top, height, texture.wrap[1]) * width + cols]
        linear = _LINEAR_FROM_BYTE[picked]
        linear[:, 3] = picked[:, 3] * np.float32(1 / 255)
        return linear

    x, y = (uv.astype(np.float64) * (width, height)).T
    if texture.nearest:
        return texels(np.floor(x).astype(np.int64), np.floor(y).astype(np.int64))
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right_share = (x - left).astype(np.float32)[:, None]
    bottom_share = (y - top).astype(np.float32)[:, None]
    upper, lower = (
        texels(left, row) * (1 - right_share) + texels(left + 1, row) * right_share
        for row in (top, top + 1)
    )
    return upper * (1 - bottom_share) + lower * bottom_share


def _wrapped(index: np.ndarray, size: int, wrap: str) -> np.ndarray:
    """Texels, of `size` in a row, at any indices, by the wrap mode."""
    if wrap == "clamp":
        return index.clip(0, size - 1)
    if wrap == "mirror":
        index = index % (2 * size)
        return np.minimum(index, 2 * size - 1 - index)
    return index % size
