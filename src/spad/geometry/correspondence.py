"""True corresponding points from depth maps: what an epipolar band should hold, and wrong cameras.

A surface point seen by one view has one place in every other. The cameras say where; the other
view's own depth map says whether the surface is there. Right cameras agree with the depth maps
wherever nothing stands in between; a wrong one disagrees with every other view. Needs nothing but
torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.bands import pixel_bands

# States of a surface point in another view.
FOUND, HIDDEN, MISSING, OUTSIDE = range(4)

# A view is suspect when its pairs agree by less than this share of how the other pairs agree.
SUSPICIOUS = 0.85
# Fewer points than this say nothing about a pair or a view.
FEW_POINTS = 30


@dataclass(frozen=True)
class Correspondences:
    """Positions in all v views of n surface points that one view sees.

    Attributes:
        xy: (n, v, 2) places in the images, pixels; NaN behind a camera.
        depth: (n, v) z-depths there, world units.
        state: (n, v) uint8. FOUND: the view's depth map has the surface there. HIDDEN: something
            is in front of it. MISSING: the depth map sees past that place, so a camera or a depth
            map is wrong. OUTSIDE: not in the image, or the pixel shows no surface.
    """

    xy: Tensor
    depth: Tensor
    state: Tensor


@dataclass(frozen=True)
class PairTable:
    """How surface points of each view (row) fare in each other view (column).

    Attributes:
        points: (v, v) long, points that the column's view should see: FOUND and MISSING ones.
        found: (v, v) long, those its depth map confirms.
        inside: by name of a mask, (v, v) long: confirmed ones whose token lies in the mask's row.
    """

    points: Tensor
    found: Tensor
    inside: dict[str, Tensor]

    def share(self, counts: Tensor) -> Tensor:
        """`counts` as shares of `points`: (v, v), NaN on the diagonal and where there are none."""
        share = counts / self.points
        return share.fill_diagonal_(torch.nan)


@dataclass(frozen=True)
class Suspect:
    """A view whose camera or depth disagrees with the other views.

    Attributes:
        share: of its points, and of the others' points in it, that are confirmed; NaN if it shares
            no visible surface with any other view.
        others: the same share among the views that are not suspect.
    """

    view: int
    share: float
    others: float


def corresponding_points(
    cameras: Cameras, depth: Tensor, view: int, xy: Tensor, tolerance: float = 0.01
) -> Correspondences:
    """Positions in all views of the surface points at pixels (n, 2) of one view.

    Args:
        cameras: v views.
        depth: (v, h, w) z-depth in world units, infinite where a view sees nothing.
        xy: positions inside the image, pixels.
        tolerance: share of the depth by which two depths may differ and be one surface. The
            surface's depth is read from 3 x 3 pixels, so that its slope does no harm.

    Raises: ValueError: depth maps of another shape, or positions outside the image.
    """
    expected = (len(cameras), cameras.height, cameras.width)
    if tuple(depth.shape) != expected:
        raise ValueError(f"expected depth of shape {expected}, got {tuple(depth.shape)}")
    size = torch.tensor([cameras.width, cameras.height])
    if not ((xy >= 0) & (xy < size)).all():
        raise ValueError(f"expected positions inside {cameras.width}x{cameras.height} pixels")
    column, row = xy.floor().long().unbind(-1)
    own_depth = depth[view, row, column]
    points = cameras[view].unproject(xy[None], own_depth[None])[0]
    return _looked_up(cameras, depth, points, own_depth.isfinite(), tolerance)


def _looked_up(
    cameras: Cameras, depth: Tensor, points: Tensor, exists: Tensor, tolerance: float
) -> Correspondences:
    """Positions in all views of surface points (n, 3), not all of which exist."""
    size = torch.tensor([cameras.width, cameras.height])
    places, depths = (x.transpose(0, 1) for x in cameras.project(points))
    # Looked up at the nearest pixel; NaN and places outside read pixel 0 and are sorted out below.
    in_image = ((places >= 0) & (places < size)).all(-1) & exists[:, None]
    column, row = torch.where(in_image[..., None], places, 0.0).floor().long().unbind(-1)
    views = torch.arange(len(cameras))
    nearest = -F.max_pool2d(-depth[:, None], 3, stride=1, padding=1)[:, 0]
    surface = torch.where(depth.isfinite(), depth, -torch.inf)
    farthest = F.max_pool2d(surface[:, None], 3, stride=1, padding=1)[:, 0]
    slack = tolerance * depths
    state = torch.full(depths.shape, FOUND, dtype=torch.uint8)
    state[depths > farthest[views, row, column] + slack] = HIDDEN
    state[depths < nearest[views, row, column] - slack] = MISSING
    state[~in_image] = OUTSIDE
    return Correspondences(places, depths, state)


def agreement_table(
    cameras: Cameras, depth: Tensor, points_per_view: int = 128, tolerance: float = 0.01
) -> PairTable:
    """`pair_table` without bands and masks, for all views at once: a check on many objects.

    Args:
        depth: (v, h, w) z-depth, infinite where a view sees nothing.
        points_per_view: places tried in each view, the same share of its surface pixels each.
    """
    num_views = len(cameras)
    surface = depth.isfinite().flatten(1)
    counts = surface.sum(1, keepdim=True)
    taken = counts.clamp(max=points_per_view)
    order = torch.arange(points_per_view)
    exists = order < taken
    # The k-th surface pixel of a view is the first pixel with k + 1 of them up to it.
    rank = ((order + 0.5) / taken.clamp(min=1) * counts).long() + 1
    pixel = torch.where(exists, torch.searchsorted(surface.cumsum(1), rank), 0)
    xy = torch.stack([pixel % cameras.width, pixel // cameras.width], dim=-1) + 0.5
    points = cameras.unproject(xy.to(depth.dtype), depth.flatten(1).gather(1, pixel))
    state = _looked_up(cameras, depth, points.flatten(0, 1), exists.flatten(), tolerance).state
    state = state.unflatten(0, (num_views, points_per_view))
    found, missing = (state == FOUND).sum(1), (state == MISSING).sum(1)
    return PairTable(found + missing, found, {})


def pair_table(
    cameras: Cameras,
    depth: Tensor,
    cells: int = 32,
    band_width: float = 3.0,
    masks: dict[str, Tensor] | None = None,
    points_per_view: int = 2000,
    tolerance: float = 0.01,
) -> PairTable:
    """Count for every pair of views the points that are confirmed and lie inside the bands.

    Points and their correspondences are counted by the token they fall in, as attention sees
    them: the exact band runs from the middle of the source's token and is asked for the middle of
    the other's.

    Args:
        depth: (v, h, w) z-depth, infinite where a view sees nothing.
        cells: tokens along the images' longer side.
        band_width: of the mask `exact`, in tokens.
        masks: by name, other masks of these tokens to ask as well: bool (v h w, v h w).
        points_per_view: surface pixels taken of each view, evenly spread; fewer if it has fewer.
    """
    grid = cameras.fit(cells)
    num_views, num_cells = len(cameras), grid.height * grid.width
    scale = torch.tensor([grid.width / cameras.width, grid.height / cameras.height])
    masks = masks or {}
    names = ("exact", *masks)
    points, found, *inside = torch.zeros(2 + len(names), num_views, num_views, dtype=torch.long)
    for view in range(num_views):
        pixels = depth[view].isfinite().nonzero()
        chosen = torch.linspace(0, len(pixels) - 1, min(points_per_view, len(pixels))).long()
        xy = pixels[chosen].flip(-1) + 0.5
        true = corresponding_points(cameras, depth, view, xy, tolerance)
        is_found = true.state == FOUND
        found[view] = is_found.sum(0)
        points[view] = found[view] + (true.state == MISSING).sum(0)
        source = (xy * scale).floor()
        target = (torch.where(is_found[..., None], true.xy, 0.0) * scale).floor()
        distances = pixel_bands(grid, view, source + 0.5).distances_to(target + 0.5)
        inside[0][view] = (is_found & (distances <= band_width / 2)).sum(0)
        row = view * num_cells + _token(source, grid.width)
        columns = torch.arange(num_views) * num_cells + _token(target, grid.width)
        for name, count in zip(names[1:], inside[1:], strict=True):
            count[view] = (is_found & masks[name][row[:, None], columns]).sum(0)
    return PairTable(points, found, dict(zip(names, inside, strict=True)))


def suspect_views(table: PairTable) -> list[Suspect]:
    """The views whose cameras or depth maps are probably wrong, worst first.

    Takes away the view that agrees least with those left for as long as it agrees clearly less
    than they do with each other. Of two views that disagree nobody can say which is wrong: both
    are named.
    """
    off_diagonal = 1 - torch.eye(len(table.points), dtype=torch.long)
    points, found = table.points * off_diagonal, table.found * off_diagonal
    points, found = points + points.T, found + found.T
    left = list(range(len(points)))
    suspects = []
    while len(left) >= 2:
        of_view = points[left][:, left].sum(1)
        share = torch.where(
            of_view >= FEW_POINTS, found[left][:, left].sum(1) / of_view.clamp(min=1), torch.nan
        )
        worst = int(torch.where(share.isnan(), -1.0, share).argmin())
        rest = left[:worst] + left[worst + 1 :]
        total = int(points[rest][:, rest].sum())
        # Without other pairs to compare with, right cameras agree in nearly all points.
        others = int(found[rest][:, rest].sum()) / total if total >= FEW_POINTS else 1.0
        if share[worst] >= SUSPICIOUS * others:
            break
        names = left if len(left) == 2 else [left[worst]]
        suspects += [Suspect(view, float(share[worst]), others) for view in names]
        left = [] if len(left) == 2 else rest
    return suspects


def twin_views(cameras: Cameras) -> list[tuple[int, int]]:
    """Pairs of views with one pose and one lens: usually a camera that was written twice."""
    numbers = torch.cat([cameras.world_from_cam.flatten(1), cameras.intrinsics.flatten(1)], dim=1)
    size = numbers.abs().amax().clamp(min=1)
    same = (numbers[:, None] - numbers[None]).abs().amax(-1) < 1e-6 * size
    return [tuple(pair) for pair in same.triu(1).nonzero().tolist()]


def views_at_origin(cameras: Cameras) -> list[int]:
    """Views whose center is the world's origin while others' is not: a translation left at zero."""
    at_origin = cameras.radius <= 1e-6 * cameras.radius.max().clamp(min=1e-30)
    return [] if at_origin.all() else at_origin.nonzero()[:, 0].tolist()


def _token(cells: Tensor, width: int) -> Tensor:
    column, row = cells.long().unbind(-1)
    return row * width + column
