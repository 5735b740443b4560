"""PSNR and SSIM of views drawn from a visual hull of the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spad.data.view_sets import ViewSet
from spad.evaluation.psnr_ssim import ssim_map
from spad.reconstruction.visual_hull import FEWEST_VIEWS, rebuilt_views


def reconstruction_psnr(view_set: ViewSet) -> float:
    """How well the views are foretold by each other: PSNR in dB of rebuilt against held-out views.

    Formula: 10 log10(1 / e), e the mean over views of the mean squared error over the pixels of the
    view's own mask; where nothing was rebuilt there, white is compared. So neither the size of the
    object nor its white surroundings count. A view that shows nothing has error 1.
    Range: 0 to 50; renders of low-poly objects reach 14 to 27 (mean 21) with 8 views, and 24 in the
    mean with 12: the visual hull of few views bulges where the object is hollow. Alpha told from
    the background costs 1 dB, so compare sets whose alpha has one origin.
    NaN: fewer than 3 views.
    Source: the held-out views of 3DiM (Watson et al. 2022, section 3.3, "3D consistency scoring"),
    with a visual hull (Laurentini 1994) in place of a trained field.
    Cannot see: copies of an object that looks alike from all sides; what lies beyond the mask (see
    `silhouette_iou`); what the object shows. Blur moves it little.
    Cost: with `reconstruction_ssim` together about 1 s for 8 views on one CPU core.
    """
    if len(view_set) < FEWEST_VIEWS:
        return math.nan
    rebuilt = rebuilt_views(view_set)
    error = (rebuilt.images - rebuilt.true_images).square().mean(1)
    mse = _mean_in_masks(error, rebuilt.true_alpha, nothing=1.0)
    return min(-10 * math.log10(max(mse, 1e-5)), 50.0)


def reconstruction_ssim(view_set: ViewSet) -> float:
    """Structural similarity of rebuilt and held-out views, over the pixels of the views' own masks.

    Formula: SSIM of Wang et al. 2004 (Gaussian window, sigma 1.5 pixels of the 64 x 64 pictures
    that are rebuilt), mean over colours, pixels of the mask, and views; 0 for a view that shows
    nothing.
    Range: -1 to 1; renders of low-poly objects, 8 views, reach 0.4 to 0.9.
    NaN, source, cost, and what it cannot see: as `reconstruction_psnr`.
    """
    if len(view_set) < FEWEST_VIEWS:
        return math.nan
    rebuilt = rebuilt_views(view_set)
    similarity = ssim_map(rebuilt.images, rebuilt.true_images)
    return _mean_in_masks(similarity, rebuilt.true_alpha, nothing=0.0)


def _mean_in_masks(values: Tensor, alpha: Tensor, nothing: float) -> float:
    """Mean over views of the mean of values (v, h, w) in each mask; `nothing` for empty masks."""
    masks = (alpha > 0.5).float()
    area = masks.sum((1, 2))
    means = (values * masks).sum((1, 2)) / area.clamp(min=1)
    return float(torch.where(area > 0, means, nothing).mean())
