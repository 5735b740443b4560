"""PSNR and SSIM of views against their reconstruction from the other views."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spad.data.view_sets import ViewSet
from spad.evaluation.psnr_ssim import ssim_map
from spad.reconstruction.visual_hull import FEWEST_VIEWS, reconstruct_views


def reconstruction_psnr(view_set: ViewSet) -> float:
    """PSNR of each view against its reconstruction from the other views, inside its mask, in dB.

    Formula: 10 log10(1 / e), e the mean over views of the mean squared error over the pixels of the
    view's own mask; pixels without reconstruction are white. So neither the size of the object nor
    its white surroundings count. An empty view has error 1.
    Range: 0 to 50; renders of low-poly objects reach 14 to 27 (mean 21) with 8 views, and on
    average 24 with 12: the visual hull of few views bulges where the object is hollow. An alpha
    estimated from the background costs 1 dB, so compare sets whose alpha has one origin.
    NaN: fewer than 3 views.
    Source: the held-out views of 3DiM (Watson et al. 2022, section 3.3, "3D consistency scoring"),
    with a visual hull (Laurentini 1994) in place of a trained field.
    Cannot see: copies of an object that looks alike from all sides; errors outside the mask (see
    `silhouette_iou`); what the object is. Blur changes it little.
    Cost: with `reconstruction_ssim` together about 1 s for 8 views on one CPU core.
    """
    if len(view_set) < FEWEST_VIEWS:
        return math.nan
    reconstructed = reconstruct_views(view_set)
    error = (reconstructed.images - reconstructed.true_images).square().mean(1)
    mse = _mean_in_masks(error, reconstructed.true_alpha, empty=1.0)
    return min(-10 * math.log10(max(mse, 1e-5)), 50.0)


def reconstruction_ssim(view_set: ViewSet) -> float:
    """SSIM of each view and its reconstruction from the other views, inside its mask.

    Formula: SSIM of Wang et al. 2004 (Gaussian window, sigma 1.5 pixels of the 64 x 64
    reconstruction), mean over colors, pixels of the mask, and views; 0 for an empty view.
    Range: -1 to 1; renders of low-poly objects, 8 views, reach 0.4 to 0.9.
    NaN, source, cost, and what it cannot see: as `reconstruction_psnr`.
    """
    if len(view_set) < FEWEST_VIEWS:
        return math.nan
    reconstructed = reconstruct_views(view_set)
    similarity = ssim_map(reconstructed.images, reconstructed.true_images)
    return _mean_in_masks(similarity, reconstructed.true_alpha, empty=0.0)


def _mean_in_masks(values: Tensor, alpha: Tensor, empty: float) -> float:
    """Mean over views of the mean of values (v, h, w) in each mask; `empty` for empty masks."""
    masks = (alpha > 0.5).float()
    area = masks.sum((1, 2))
    means = (values * masks).sum((1, 2)) / area.clamp(min=1)
    return float(torch.where(area > 0, means, empty).mean())
