"""Photo-consistency: do other views show a pixel's color on its epipolar line?"""

from __future__ import annotations

import math

import torch

from spad.data.view_sets import ViewSet, resized
from spad.evaluation.silhouettes import lookup_pixels, ray_points
from spad.geometry.focus import angles_between, object_ball

_SIDE = 48
_DEPTHS = 64
_WITNESSES = 2
# Views farther apart see other sides; views from one place see all points of a ray as one.
_MOST_DEG, _LEAST_DEG = 100.0, 5.0
_TOLERANCE = 0.08


def photo_consistency(view_set: ViewSet) -> float:
    """Share of the object's pixels whose color two other views confirm at one point in space.

    Formula: a pixel inside the mask is confirmed if at some point of its ray inside the ball that
    the cameras look at, two or more of the views from 5 to 100 degrees away show the object in its
    color, up to 0.08 in every channel of [0, 1]. Mean over the pixels of a view, in images of 48
    pixels, then over the views that have two such others. An empty view scores 0.
    Range: 0 to 1; renders of low-poly objects reach 0.7 to 1.
    NaN: no view has two others from 5 to 100 degrees away.
    Source: Seitz and Dyer 1999, voxel coloring; two agreeing views are enough, since the point
    may be hidden in others.
    Cannot see: errors on an object of one color; blur; copies, except where colors change from left
    to right.
    Cost: about 0.2 s for 8 views on one CPU core; grows with the square of the views.
    """
    images, alpha, cameras = resized(view_set, _SIDE)
    masks = alpha > 0.5
    ball = object_ball(cameras)
    angles = angles_between(cameras)
    # Pixels with less alpha do not show the object.
    layers = torch.cat([images, (alpha > 0.05).float()[:, None]], dim=1).movedim(1, -1)
    shares = []
    for view, mask in enumerate(masks):
        beside = (angles[view] > _LEAST_DEG) & (angles[view] <= _MOST_DEG)
        near = beside.nonzero()[:, 0]
        if len(near) < _WITNESSES:
            continue
        if not mask.any():
            shares.append(0.0)
            continue
        points = ray_points(cameras, view, mask, ball, _DEPTHS)
        seen = lookup_pixels(cameras[near], layers[near], points, 0.0)
        difference = (seen[..., :3] - layers[view, ..., :3][mask]).abs().amax(-1)
        witnesses = ((difference < _TOLERANCE) & (seen[..., 3] > 0)).sum(0)
        shares.append(float((witnesses >= _WITNESSES).any(0).float().mean()))
    return sum(shares) / len(shares) if shares else math.nan
