"""Camera error: which camera of the set best explains each view, given the other views?"""

from __future__ import annotations

import math

import torch

from spad.data.view_sets import ViewSet
from spad.geometry.focus import angles_between
from spad.reconstruction.visual_hull import FEWEST_VIEWS, reconstruct_views

# Errors within this factor of the least one count as equally good.
_CLEARLY_BETTER = 0.8
# A reconstruction explains a view if its error is at most this share of a blank image's.
_EXPLAINED = 0.5
# Mean angle of a random guess.
_GUESS_DEG = 90.0


def camera_error_deg(view_set: ViewSet) -> float:
    """Mean angle in degrees between the requested camera and the one that best explains a view.

    Formula: every view is reconstructed from the others (`spad.reconstruction.visual_hull`), and
    compared with all reconstructions by the mean squared difference of color and alpha. Cameras
    whose difference is at most 1 / 0.8 of the least count as equally good; of them, the one nearest
    to the requested camera is taken, by the angle seen from the object. A view counts 90, as for a
    random guess, if the least difference is more than half of that to a blank image, and 180 if it
    is empty. Mean over views.
    Range: 0 to 180, mostly in steps of the angles between the set's cameras; renders reach 0 to 5,
    those of thin plants, which cannot be reconstructed, 90.
    NaN: fewer than 3 views.
    Source: ours, for the flipped views that SPAD, section 1, describes.
    Cannot see: errors below half of the angle between cameras; rotations of an object that looks
    alike from several sides; a rotation of the whole set; a set of copies only, where every camera
    explains every view.
    Cost: none beyond that of `reconstruction_psnr`.
    """
    if len(view_set) < FEWEST_VIEWS:
        return math.nan
    reconstructed = reconstruct_views(view_set)
    shown = torch.cat(
        [reconstructed.true_images, reconstructed.true_alpha[:, None]], dim=1
    ).flatten(1)
    drawn = torch.cat([reconstructed.images, reconstructed.alpha[:, None]], dim=1).flatten(1)
    # Images in rows, cameras in columns; one row at a time bounds the memory.
    difference = torch.stack([(drawn - image).square().mean(1) for image in shown])
    as_good = difference <= difference.amin(1, keepdim=True) / _CLEARLY_BETTER
    errors = torch.where(as_good, angles_between(view_set.cameras), 180.0).amin(1)
    blank = torch.cat(
        [1 - reconstructed.true_images, reconstructed.true_alpha[:, None]], dim=1
    ).flatten(1)
    explained = difference.amin(1) <= _EXPLAINED * blank.square().mean(1)
    errors = torch.where(explained, errors, _GUESS_DEG)
    nothing = (reconstructed.true_alpha <= 0.5).flatten(1).all(1)
    return float(torch.where(nothing, 180.0, errors).mean())
