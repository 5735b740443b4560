"""Color spaces: sRGB, linear light, and OKLab, in which hues and lightness look evenly spaced."""

from __future__ import annotations

import numpy as np


def linear_from_srgb(srgb: np.ndarray) -> np.ndarray:
    """Linear light from sRGB values in [0, 1] (IEC 61966-2-1), any shape."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(linear: np.ndarray) -> np.ndarray:
    """sRGB values from linear light in [0, 1] (IEC 61966-2-1), any shape."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


# Source of the numbers: Ottosson 2020, "A perceptual color space for image processing".
_CONES_FROM_LINEAR = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB_FROM_ROOTS = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab_from_srgb(srgb: np.ndarray) -> np.ndarray:
    """OKLab (..., 3): lightness of 0 to 1, green to red, blue to yellow; from sRGB in [0, 1]."""
    return np.cbrt(linear_from_srgb(srgb) @ _CONES_FROM_LINEAR.T) @ _LAB_FROM_ROOTS.T


def srgb_from_oklab(lab: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] from OKLab (..., 3); colors that no screen shows are clipped."""
    linear = (lab @ np.linalg.inv(_LAB_FROM_ROOTS).T) ** 3 @ np.linalg.inv(_CONES_FROM_LINEAR).T
    return srgb_from_linear(linear.clip(0, 1))
