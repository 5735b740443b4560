"""Which views' masks can belong to one shape, and which one says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.focus import Ball
from spad.reconstruction.hull_field import view_distances
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
    masks, places = _small_masks(outlines, cameras, points, ball)
    left, found = list(range(len(cameras))), []
    while len(left) > max(_FEWEST, len(cameras) * (1 - _LARGEST_SHARE)):
        out = outside[left]
        votes = out.sum(0)
        hull = [_hit(masks[view], places[view][votes == 0]) for view in left]
        best = None
        for number, view in enumerate(left):
            added = (votes == 1) & out[number]
            others = [(n, other) for n, other in enumerate(left) if n != number]
            before = _mean([_filled(masks[o], hull[n]) for n, o in others])
            after = [
                _filled(masks[o], hull[n] | _hit(masks[o], places[o][added])) for n, o in others
            ]
            if best is None or _mean(after) - before > best.filled_without - best.filled_with:
                best = Disagreement(view, before, _mean(after))
        assert best is not None, "three views at least are left"
        gain, missing = best.filled_without - best.filled_with, 1 - best.filled_with
        if gain < max(_GAIN, _LEAST_BLAME * missing):
            break
        found.append(best)
        left.remove(best.view)
    return found


def _small_masks(
    outlines: Tensor, cameras: Cameras, points: Tensor, ball: Ball
) -> tuple[Tensor, Tensor]:
    """Masks (v, h, w) with pixels about as wide as the points are apart, and the flat pixel of
    every point in every view (v, n)."""
    apart = 2 * ball.radius / (_CELLS - 1)
    focal = cameras.intrinsics[:, 0, 0] / (cameras.centers - ball.center).norm(dim=1)
    factor = max(1, round(float(focal.median()) * apart))
    size = [max(1, n // factor) for n in (cameras.height, cameras.width)]
    inside = (outlines < 0).float()[:, None]
    masks = F.interpolate(inside, size, mode="area")[:, 0] > 0.5
    xy, _ = cameras.resized(*size).project(points)
    column, row = xy.nan_to_num(nan=-1.0).floor().long().unbind(-1)
    column, row = column.clamp(0, size[1] - 1), row.clamp(0, size[0] - 1)
    return masks, row * size[1] + column


def _hit(mask: Tensor, pixels: Tensor) -> Tensor:
    """(h w,) bool: the flat pixels that points fall on, in an image of the size of a mask."""
    hit = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
    hit[pixels] = True
    return hit


def _filled(mask: Tensor, hit: Tensor) -> float:
    """Share of a mask (h, w) that hit pixels cover, each three wide."""
    wide = F.max_pool2d(hit.view(1, 1, *mask.shape).float(), 3, stride=1, padding=1)[0, 0]
    return float((wide * mask).sum() / mask.sum().clamp(min=1))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
