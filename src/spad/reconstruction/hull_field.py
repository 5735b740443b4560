"""Signed distance to the visual hull of masks, at any point, finer than a pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras

# Masks are enlarged so many times before distances are taken: outlines to a sixth of a pixel.
_FINER = 3
# Distances beyond so many pixels are not told apart.
REACH = 10.0
# Behind a camera, or outside of images that cut nothing off, no point is of the object.
_FAR_OUT = 30.0


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
) -> Tensor:
    """Signed distance of points (n, 3) to the visual hull, world units, negative inside: (n,).

    The largest of `view_distances`: right at outlines; farther out up to a tenth too long where the
    field of view is 50 degrees.

    Args:
        dissenting: the hull has what all views but so many contain.
    """
    distances = view_distances(points, outlines, cameras, cut_off)
    if dissenting == 0:
        return reduce(torch.maximum, distances)
    return torch.stack(list(distances)).topk(dissenting + 1, dim=0).values[-1]


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
