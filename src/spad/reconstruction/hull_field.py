"""Signed distance to the visual hull of masks, at any point, finer than a pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.focus import Ball
from spad.reconstruction.volume_rendering import Grid

# Masks are enlarged so many times before distances are taken: outlines to a sixth of a pixel.
_FINER = 3
# Distances beyond so many pixels are not told apart.
REACH = 10.0
# Behind a camera, or outside of images that cut nothing off, no point is of the object.
_FAR_OUT = 30.0
# Parts that a view misses are looked for on a grid of so many points a side.
_CELLS = 64
# So many views must show a missed part, and have nothing else to show there.
_WITNESSES = 2
# So many views may miss one, and one of four: a ring sees a fin's edge from the front and the back.
_MOST_MISSING = 2


@dataclass(frozen=True, eq=False)
class MissedParts:
    """Where masks show something that is not in the visual hull of all views.

    The hull has what every view shows, so it lacks a fin that a view sees from its edge, thinner
    than a pixel.

    Attributes:
        shown: (v, h, w) bool: pixels of masks, enlarged, that the hull does not explain.
        cameras: v, of that image size.
    """

    shown: Tensor
    cameras: Cameras

    def witnesses(self, points: Tensor) -> Tensor:
        """(v, n) bool: which views show points (n, 3) where the hull explains nothing."""
        return self.shown.flatten(1).gather(1, flat_pixels(self.cameras, points))


def outline_distance(alpha: Tensor) -> Tensor:
    """Signed distance in pixels from every pixel's center to the outline of its mask.

    Negative inside; clamped to plus and minus `REACH`. The outline is where alpha crosses one half
    between pixels, so soft edges place it finer than a pixel.

    Args:
        alpha: (v, h, w) in [0, 1].

    Returns: (v, h, w).
    """
    large = F.interpolate(alpha[:, None], scale_factor=_FINER, mode="bilinear")[:, 0] > 0.5
    reach = int(REACH * _FINER)
    inside, outside = pixels_to(~large, reach), pixels_to(large, reach)
    # Half a pixel lies between a pixel's center and the outline.
    signed = torch.where(large, 0.5 - inside, outside - 0.5) / _FINER
    return F.avg_pool2d(signed[:, None], _FINER)[:, 0].clamp(-REACH, REACH)


def cuts_off(alpha: Tensor) -> list[bool]:
    """Whether each mask (v, h, w) reaches its image's border, so that more may lie beyond it."""
    borders = torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], dim=1)
    return (borders.amax(1) > 0.5).tolist()


def view_distances(
    points: Tensor, outlines: Tensor, cameras: Cameras, cut_off: Sequence[bool]
) -> Iterator[Tensor]:
    """For each view, how far points (n, 3) lie outside of the cone of its mask: (n,), world units.

    The distance to the outline in pixels becomes a length at the point's depth; negative inside.

    Args:
        outlines: (v, h, w) as `outline_distance` gives.
        cut_off: one per view: outside of this image, nothing is known.
    """
    focal = (cameras.intrinsics[:, 0, 0] + cameras.intrinsics[:, 1, 1]) / 2
    size = points.new_tensor([cameras.width, cameras.height])
    for view in range(len(cameras)):
        xy, depth = (x[0] for x in cameras[view].project(points))
        xy = xy.nan_to_num(nan=-1e4)
        place = (xy / size * 2 - 1)[None, None]
        pixels = F.grid_sample(
            outlines[view][None, None], place, padding_mode="border", align_corners=False
        )[0, 0, 0]
        beyond = torch.hypot(*(xy - torch.minimum(xy.clamp(min=0), size)).unbind(-1))
        outside = torch.full_like(pixels, -REACH) if cut_off[view] else pixels.clamp(min=0) + beyond
        pixels = torch.where(beyond > 0, outside, pixels).clamp(max=_FAR_OUT)
        distance = pixels * (depth / focal[view]).clamp(min=0)
        yield torch.where(depth > 0, distance, torch.inf)


def hull_distance(
    points: Tensor,
    outlines: Tensor,
    cameras: Cameras,
    cut_off: Sequence[bool],
    dissenting: int = 0,
    missed: MissedParts | None = None,
) -> Tensor:
    """Signed distance of points (n, 3) to the visual hull, world units, negative inside: (n,).

    The largest of `view_distances`: right at outlines; farther out up to a tenth too long where the
    field of view is 50 degrees.

    Args:
        dissenting: the hull has what all views but so many contain.
        missed: parts that stay in the hull, though one view or two miss them.
    """
    distances = view_distances(points, outlines, cameras, cut_off)
    if dissenting > 0:
        return torch.stack(list(distances)).topk(dissenting + 1, dim=0).values[-1]
    if missed is None:
        return reduce(torch.maximum, distances)
    most = min(_MOST_MISSING, len(cameras) // 4)
    largest, views = torch.stack(list(distances)).topk(most + 1, dim=0)
    witnesses = missed.witnesses(points).long()
    others, found = witnesses.sum(0), largest[0]
    for missing in range(most):
        others = others - witnesses.gather(0, views[missing : missing + 1])[0]
        stays = (found > 0) & (others >= _WITNESSES)
        found = torch.where(stays, largest[missing + 1], found)
    return found


def missed_parts(
    outlines: Tensor, cameras: Cameras, cut_off: Sequence[bool], ball: Ball
) -> MissedParts | None:
    """What masks show and the visual hull of all views lacks; None if it lacks nothing.

    Args:
        outlines: (v, h, w) as `outline_distance` gives.
        cut_off: one per view, as `view_distances` takes it.
        ball: where the object is.
    """
    cell = 2 * ball.radius / (_CELLS - 1)
    points = Grid(ball.center - ball.radius, cell, (_CELLS, _CELLS, _CELLS)).points()
    # Parts between the points count, so a point near the outline is inside.
    inside = points[hull_distance(points, outlines, cameras, cut_off) < 0.87 * cell]
    masks, small = small_masks(outlines, cameras, cell, ball)
    explained = widened(hit_pixels(masks, flat_pixels(small, inside)))
    # They reach to what is explained, so that a part is not cut off from the rest.
    shown = widened(masks & ~explained) & masks
    return MissedParts(shown, small) if bool(shown.any()) else None


def small_masks(
    outlines: Tensor, cameras: Cameras, apart: float, ball: Ball
) -> tuple[Tensor, Cameras]:
    """Masks (v, h, w) with pixels about as wide as points `apart` from each other, and cameras."""
    focal = cameras.intrinsics[:, 0, 0] / (cameras.centers - ball.center).norm(dim=1)
    factor = max(1, round(float(focal.median()) * apart))
    size = [max(1, n // factor) for n in (cameras.height, cameras.width)]
    inside = (outlines < 0).float()[:, None]
    return F.interpolate(inside, size, mode="area")[:, 0] > 0.5, cameras.resized(*size)


def flat_pixels(cameras: Cameras, points: Tensor) -> Tensor:
    """(v, n) the flat pixel of every point (n, 3), or the nearest one of the image."""
    xy, _ = cameras.project(points)
    column, row = xy.nan_to_num(nan=-1.0).floor().long().unbind(-1)
    column, row = column.clamp(0, cameras.width - 1), row.clamp(0, cameras.height - 1)
    return row * cameras.width + column


def hit_pixels(masks: Tensor, pixels: Tensor) -> Tensor:
    """Images (v, h, w) like masks, true at flat pixels (v, n)."""
    hit = torch.zeros_like(masks).flatten(1)
    return hit.scatter_(1, pixels, True).view(masks.shape)


def widened(masks: Tensor) -> Tensor:
    """Masks (v, h, w) bool and the eight pixels around each of theirs."""
    return F.max_pool2d(masks[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def pixels_to(mask: Tensor, reach: int) -> Tensor:
    """Distance (v, h, w) from every pixel to the nearest true one, at most about `reach`."""
    height, width = mask.shape[-2:]
    column = torch.arange(width, device=mask.device)
    nowhere = 10**6
    left = torch.where(mask, column, -nowhere).cummax(-1).values
    right = torch.where(mask, column, nowhere).flip(-1).cummin(-1).values.flip(-1)
    along = torch.minimum(column - left, right - column).clamp(max=reach + 1).float().square()
    rows = F.pad(along, (0, 0, reach, reach), value=(reach + 1.0) ** 2)
    nearest = along.clone()
    for step in range(2 * reach + 1):
        candidate = rows[:, step : step + height] + float(step - reach) ** 2
        torch.minimum(nearest, candidate, out=nearest)
    return nearest.sqrt()
