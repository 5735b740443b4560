"""How alike two pictures of one view are: PSNR and SSIM, of all pixels or of chosen ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Equal pictures have no finite PSNR, and a mean needs one.
LARGEST_PSNR = 60.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(one: Tensor, other: Tensor, where: Tensor | None = None) -> Tensor:
    """(v,) peak signal-to-noise ratio −10 log10(MSE) in dB of pictures (v, 3, h, w) in [0, 1].

    Equal pictures get 60 dB.

    Args:
        where: (v, h, w) weights of the pixels, such as a mask; NaN where they are all 0.
    """
    squares = (one - other).square().mean(1)
    error = squares.mean((1, 2)) if where is None else _mean_where(squares, where)
    return -10 * error.clamp_min(10 ** (-LARGEST_PSNR / 10)).log10()


def ssim(one: Tensor, other: Tensor, where: Tensor | None = None) -> Tensor:
    """(v,) mean structural similarity of pictures (v, 3, h, w) in [0, 1], at most 1.

    Args:
        where: (v, h, w) weights of the pixels, such as a mask; NaN where they are all 0.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity": Gaussian window of 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03. Every channel
    by itself; the border is mirrored, so that every pixel counts.
    """
    values = ssim_map(one, other)
    return values.mean((1, 2)) if where is None else _mean_where(values, where)


def ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """(v, h, w) structural similarity around every pixel, mean of the channels."""
    views = len(one)
    moments = _blurred(torch.cat([one, other, one * one, other * other, one * other]))
    mean_a, mean_b, aa, bb, ab = moments.split(views)
    var_a, var_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    structure = (2 * covariance + _C2) / (var_a + var_b + _C2)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return (luminance * structure).mean(1)


def _blurred(pictures: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=pictures.dtype) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).to(pictures)
    channels, half = pictures.shape[1], _WINDOW // 2
    # Mirroring needs more pixels than the window reaches over the border.
    mode = "reflect" if min(pictures.shape[-2:]) > half else "replicate"
    padded = F.pad(pictures, (half,) * 4, mode=mode)
    rows = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(padded, rows, groups=channels), columns, groups=channels)


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    weights = where.to(values)
    # 0 / 0 is NaN: no pixel was chosen.
    return (values * weights).sum((1, 2)) / weights.sum((1, 2))
