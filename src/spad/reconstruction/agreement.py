"""Which views' masks can belong to one shape, and which one says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.focus import Ball
from spad.reconstruction.hull_field import (
    flat_pixels,
    hit_pixels,
    small_masks,
    view_distances,
    widened,
)
from spad.reconstruction.volume_rendering import Grid

_CELLS = 48
# A view is left out if the others' masks are filled so much better without it, and that is so much
# of what was missing: drawn views all disagree a little, and no one of them is to blame.
_GAIN, _LEAST_BLAME = 0.02, 0.4
# What is left of the views after leaving some out.
_FEWEST = 3
_LARGEST_SHARE = 1 / 3


@dataclass(frozen=True)
class Disagreement:
    """A view that was left out of the hull.

    Attributes:
        view: its number.
        filled_with, filled_without: mean share of the other views' masks that the hull fills with
            this view, and without it.
    """

    view: int
    filled_with: float
    filled_without: float


def disagreeing_views(
    outlines: Tensor, cameras: Cameras, cut_off: Sequence[bool], ball: Ball
) -> list[Disagreement]:
    """The views without which the visual hull fills the other masks much better, worst first.

    Of views that agree the hull fills all masks. A wrong camera, or a view of something else, cuts
    off what the others show. At most a third of the views is named, and three stay.
    """
    grid = Grid(ball.center - ball.radius, 2 * ball.radius / (_CELLS - 1), (_CELLS, _CELLS, _CELLS))
    points = grid.points()
    # Parts between the points count, so a point near the outline is inside.
    distances = view_distances(points, outlines, cameras, cut_off)
    outside = torch.stack([distance > 0.87 * grid.cell for distance in distances])
    masks, small = small_masks(outlines, cameras, grid.cell, ball)
    places = flat_pixels(small, points)
    left, found = list(range(len(cameras))), []
    while len(left) > max(_FEWEST, len(cameras) * (1 - _LARGEST_SHARE)):
        out = outside[left]
        votes = out.sum(0)
        hull = hit_pixels(masks[left], places[left][:, votes == 0])
        filled = _filled(masks[left], hull)
        best = None
        for number, view in enumerate(left):
            added = (votes == 1) & out[number]
            more = _filled(masks[left], hull | hit_pixels(hull, places[left][:, added]))
            before, after = (
                _mean([share for n, share in enumerate(each) if n != number])
                for each in (filled, more)
            )
            if best is None or after - before > best.filled_without - best.filled_with:
                best = Disagreement(view, before, after)
        assert best is not None, "three views at least are left"
        gain, missing = best.filled_without - best.filled_with, 1 - best.filled_with
        if gain < max(_GAIN, _LEAST_BLAME * missing):
            break
        found.append(best)
        left.remove(best.view)
    return found


def _filled(masks: Tensor, hit: Tensor) -> list[float]:
    """Share of each mask (v, h, w) that hit pixels (v, h, w) cover, each three wide."""
    covered = (widened(hit) & masks).sum((1, 2))
    return (covered / masks.sum((1, 2)).clamp(min=1)).tolist()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
