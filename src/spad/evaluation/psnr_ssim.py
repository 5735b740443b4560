"""PSNR and SSIM of images, over all pixels or in a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# PSNR of equal images, whose true value is infinite.
LARGEST_PSNR = 60.0


def psnr(one: Tensor, other: Tensor, where: Tensor | None = None) -> Tensor:
    """(v,) peak signal-to-noise ratio −10 log10(MSE) in dB of images (v, 3, h, w) in [0, 1].

    60 dB for equal images.

    Args:
        where: (v, h, w) weights of the pixels, such as a mask; the result is NaN if all are 0.
    """
    squares = (one - other).square().mean(1)
    error = squares.mean((1, 2)) if where is None else _mean_where(squares, where)
    return -10 * error.clamp_min(10 ** (-LARGEST_PSNR / 10)).log10()


def ssim(one: Tensor, other: Tensor, where: Tensor | None = None) -> Tensor:
    """(v,) mean structural similarity of images (v, 3, h, w) in [0, 1], at most 1.

    Args:
        where: (v, h, w) weights of the pixels, such as a mask; the result is NaN if all are 0.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity": Gaussian window of 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03. Channels are
    averaged; borders are replicated, so that every pixel counts.
    """
    values = ssim_map(one, other)
    return values.mean((1, 2)) if where is None else _mean_where(values, where)


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    weights = where.to(values)
    # 0 / 0 is NaN for an empty mask.
    return (values * weights).sum((1, 2)) / weights.sum((1, 2))


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """SSIM (v, h, w) of every pixel of images (v, 3, h, w) in [0, 1], mean over colors.

    Source: Wang et al. 2004, with a Gaussian window of sigma 1.5 pixels cut off at 5.
    """
    offsets = torch.arange(-5, 6, dtype=first.dtype)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()

    def smooth(x: Tensor) -> Tensor:
        x = F.pad(x, (5, 5, 5, 5), mode="replicate")
        x = F.conv2d(x, window.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)
        return F.conv2d(x, window.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)

    m1, m2 = smooth(first), smooth(second)
    v1, v2 = smooth(first**2) - m1**2, smooth(second**2) - m2**2
    covariance = smooth(first * second) - m1 * m2
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * m1 * m2 + c1) * (2 * covariance + c2)
    return (similarity / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))).mean(1)
