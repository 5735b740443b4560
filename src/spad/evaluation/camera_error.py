"""The best-camera test: which of the cameras does a view look taken by, as the others show it?"""

from __future__ import annotations

import math

import torch

from spad.data.view_sets import ViewSet
from spad.geometry.focus import angles_between
from spad.reconstruction.visual_hull import FEWEST_VIEWS, rebuilt_views

# A camera must explain a view this much better than the one asked for to be preferred.
_CLEARLY_BETTER = 0.8
# A rebuilt view explains a picture if it leaves less than this of what a blank one leaves.
_EXPLAINED = 0.5
# The mean angle of a guess.
_GUESS_DEG = 90.0


def camera_error_deg(view_set: ViewSet) -> float:
    """How far from the camera asked for the one is that explains a view best; in degrees.

    Formula: every view is rebuilt from the others (`spad.reconstruction.visual_hull`), and each
    picture compared with all rebuilt views by the mean squared difference of colour and alpha. The
    cameras whose difference is at most 1 / 0.8 of the least explain it about as well as the best
    one; of them the nearest to the camera asked for counts, by the angle between the two, seen from
    the object. A view counts 90, what guessing gives, if the best camera's rebuilt view leaves more
    than half of the difference that a blank picture leaves, and 180 if it shows nothing. Mean over
    views.
    Range: 0 to 180, mostly in steps of the angles between the set's cameras; renders reach 0 to 5,
    those of thin plants, which cannot be rebuilt, 90.
    NaN: fewer than 3 views.
    Source: the question is that of the paper's flipped views (SPAD, section 1).
    Cannot see: errors of less than half of the angle between cameras; turns of an object that looks
    alike from several sides; a set that is turned as a whole; a set of nothing but copies, of which
    every camera explains every view.
    Cost: none beyond that of `reconstruction_psnr`.
    """
    if len(view_set) < FEWEST_VIEWS:
        return math.nan
    rebuilt = rebuilt_views(view_set)
    shown = torch.cat([rebuilt.true_images, rebuilt.true_alpha[:, None]], dim=1).flatten(1)
    drawn = torch.cat([rebuilt.images, rebuilt.alpha[:, None]], dim=1).flatten(1)
    # Pictures in rows, cameras in columns; one row at a time bounds the memory.
    difference = torch.stack([(drawn - picture).square().mean(1) for picture in shown])
    as_good = difference <= difference.amin(1, keepdim=True) / _CLEARLY_BETTER
    errors = torch.where(as_good, angles_between(view_set.cameras), 180.0).amin(1)
    blank = torch.cat([1 - rebuilt.true_images, rebuilt.true_alpha[:, None]], dim=1).flatten(1)
    explained = difference.amin(1) <= _EXPLAINED * blank.square().mean(1)
    errors = torch.where(explained, errors, _GUESS_DEG)
    nothing = (rebuilt.true_alpha <= 0.5).flatten(1).all(1)
    return float(torch.where(nothing, 180.0, errors).mean())
