"""Content copying: do views show the same picture though their cameras differ?"""

from __future__ import annotations

import math

import torch

from spad.data.view_sets import ViewSet, resized
from spad.evaluation.psnr_ssim import ssim_map
from spad.geometry.focus import angles_between

# So few pixels average out noise, which would hide copies.
_SIDE = 32
_LEAST_DEG = 30.0


def copying(view_set: ViewSet) -> float:
    """How much views that should differ look alike, pixel on pixel.

    Formula: for each view the largest similarity with a view at least 30 degrees away: SSIM in
    pictures of 32 pixels, mean over the pixels that either mask holds, 0 if negative. Then the mean
    over views. Two views that show nothing are copies.
    Range: 0 to 1; 1 if every view is a copy of another. The floor depends on the object: renders of
    objects that look alike from several sides reach 0.98, others 0.2 to 0.5. So compare with
    renders of the same objects, or with another model on the same prompts.
    NaN: no two cameras are 30 degrees apart.
    Source: none that we know of; content copying is described in SPAD, section 1.
    Cannot see: copies that were shifted, scaled, recoloured or mirrored; whether the object may
    look alike from there. Blur raises it, noise lowers it.
    Cost: about 0.05 s for 8 views on one CPU core.
    """
    images, alpha, cameras = resized(view_set, _SIDE)
    first, second = (angles_between(cameras) >= _LEAST_DEG).triu(1).nonzero(as_tuple=True)
    if len(first) == 0:
        return math.nan
    either = (torch.maximum(alpha[first], alpha[second]) > 0.5).float()
    area = either.sum((1, 2))
    likeness = (ssim_map(images[first], images[second]) * either).sum((1, 2)) / area.clamp(min=1)
    table = torch.zeros(len(cameras), len(cameras))
    table[first, second] = torch.where(area > 0, likeness, 1.0).clamp(min=0)
    has_other = torch.cat([first, second]).unique()
    return float(torch.maximum(table, table.T).amax(1)[has_other].mean())
