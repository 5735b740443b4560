"""Reconstruct each view of a set from the others: a visual hull with colors of the other views.

For a held-out view, voxels inside the masks of all other views (their visual hull) are filled and
rendered from its camera. A surface point has the colors of the other views that see it, weighted by
similarity of direction. The held-out view affects nothing but the extent of the voxel grid. Nothing
is trained, so there is no seed and no number of steps.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras
from spad.data.view_sets import ViewSet, resized
from spad.geometry.focus import object_ball
from spad.geometry.rays import rays

SIDE = 64
CELLS = 48
_COARSE_CELLS = 32
# Alpha above which a voxel's center is inside a mask; 0.5 would lose parts thinner than a voxel.
_INSIDE = 0.25
# Exponent of a view's weight by the cosine of its direction.
_SHARPNESS = 8.0
# Voxels by which a point may be behind a view's surface and still count as visible.
_SLACK = 2.0
FEWEST_VIEWS = 3
_MOST_FOLDS = 8


@dataclass(frozen=True, eq=False)
class Voxels:
    """A cubic voxel grid, with the voxels inside the mask of each view.

    Attributes:
        low: (3,) lowest corner of the grid, world.
        cell: side of a voxel, world units.
        cells: voxels along a side.
        allowed: bool (v, cells³), x fastest.
    """

    low: Tensor
    cell: float
    cells: int
    allowed: Tensor

    def without(self, views: Collection[int]) -> Tensor:
        """(cells³,) visual hull of all views except some."""
        return self.allowed[[i for i in range(len(self.allowed)) if i not in views]].all(0)


@dataclass(frozen=True, eq=False)
class ReconstructedViews:
    """Each view of a set, reconstructed from the other views.

    Attributes:
        images, alpha: (v, 3, h, w) on white and (v, h, w), reconstructed.
        true_images, true_alpha: those of the set at the same resolution.
    """

    images: Tensor
    alpha: Tensor
    true_images: Tensor
    true_alpha: Tensor


def fit_voxels(alpha: Tensor, cameras: Cameras, cells: int = CELLS) -> Voxels | None:
    """Voxels of masks (v, h, w), in a cube that fits the points inside all masks but one.

    None if there are no such points.
    """
    ball = object_ball(cameras)
    low, size = ball.center - ball.radius, 2 * ball.radius
    coarse = size / _COARSE_CELLS
    loose = F.max_pool2d(alpha[:, None], 3, stride=1, padding=1)[:, 0]
    centers = _centers(low, coarse, _COARSE_CELLS)
    found = (~_allowed(centers, loose, cameras, 0.1)).sum(0) <= 1
    if not found.any():
        return None
    low = centers[found].amin(0) - coarse
    cell = float((centers[found].amax(0) + coarse - low).amax()) / cells
    allowed = _allowed(_centers(low, cell, cells), alpha, cameras, _INSIDE)
    return Voxels(low, cell, cells, allowed)


def first_hits(voxels: Voxels, filled: Tensor, cameras: Cameras) -> Tensor:
    """Distance (f, v, h * w) along every pixel's ray to the first filled voxel; -1 for none.

    Args:
        filled: bool (f, cells³), f sets of filled voxels.
    """
    origins, directions = rays(
        cameras.world_from_cam, cameras.intrinsics, cameras.height, cameras.width
    )
    hits = torch.full((len(filled), len(cameras), cameras.height * cameras.width), -1.0)
    ever = filled.any(0)
    steps = torch.arange(int(1.75 * voxels.cells)) + 0.5
    for view in range(len(cameras)):
        origin, direction = origins[view].reshape(-1, 3), directions[view].reshape(-1, 3)
        direction = torch.where(direction.abs() < 1e-6, 1e-6, direction)
        ends = [(voxels.low + x - origin) / direction for x in (0, voxels.cell * voxels.cells)]
        start = torch.minimum(*ends).amax(1).clamp(min=0)
        pixels = (torch.maximum(*ends).amin(1) > start).nonzero()[:, 0]
        distance = start[pixels, None] + steps * voxels.cell
        points = origin[pixels, None] + distance[..., None] * direction[pixels, None]
        place = ((points - voxels.low) / voxels.cell).floor().long()
        inside = ((place >= 0) & (place < voxels.cells)).all(-1)
        x, y, z = place.clamp(0, voxels.cells - 1).unbind(-1)
        index = (z * voxels.cells + y) * voxels.cells + x
        kept = (ever[index] & inside).any(1)
        pixels, distance, index, inside = (a[kept] for a in (pixels, distance, index, inside))
        for number, filling in enumerate(filled):
            hit = filling[index] & inside
            nearest = distance.gather(1, hit.float().argmax(1, keepdim=True))[:, 0]
            hits[number, view, pixels] = torch.where(hit.any(1), nearest, -1.0)
    return hits


@lru_cache(maxsize=2)
def reconstruct_views(view_set: ViewSet) -> ReconstructedViews:
    """Reconstruct every view of a set from the other views; cached for several metrics.

    Up to eight views are held out one at a time; of more, every eighth together.
    """
    images, alpha, cameras = resized(view_set, SIDE)
    new_images, new_alpha = torch.ones_like(images), torch.zeros_like(alpha)
    voxels = fit_voxels(alpha, cameras)
    views, folds = range(len(cameras)), min(len(cameras), _MOST_FOLDS)
    if voxels is None or len(cameras) < FEWEST_VIEWS:
        return ReconstructedViews(new_images, new_alpha, images, alpha)
    colors = _object_colors(images, alpha, view_set.alpha_is_estimated)
    held_out = [views[fold::folds] for fold in range(folds)]
    filled = torch.stack([voxels.without(held) for held in held_out])
    hits = first_hits(voxels, filled, cameras)
    for fold, held in enumerate(held_out):
        others = [i for i in views if i not in held]
        known = (colors[others], alpha[others], cameras[others], hits[fold, others])
        for view in held:
            hit = hits[fold, view] > 0
            points = _on_rays(cameras[view], hits[fold, view])
            seen = _blend_colors(points, cameras[view].centers, *known, voxels.cell)
            new_images[view].view(3, -1)[:, hit] = seen
            new_alpha[view].view(-1)[hit] = 1.0
    return ReconstructedViews(new_images, new_alpha, images, alpha)


def _blend_colors(
    points: Tensor,
    eye: Tensor,
    colors: Tensor,
    alpha: Tensor,
    cameras: Cameras,
    hits: Tensor,
    cell: float,
) -> Tensor:
    """Colors (3, n) of surface points (n, 3), from the views that see them.

    Args:
        eye: (1, 3) center of the camera to render for.
        colors, alpha, cameras: v views.
        hits: (v, h * w) of these views, from `first_hits`.
    """
    height, width = alpha.shape[-2:]
    places = _places(points, cameras)[:, :, None]
    layers = torch.cat([colors, alpha[:, None]], dim=1)
    seen = F.grid_sample(layers, places, align_corners=False, padding_mode="border")[..., 0]
    color, cover = seen[:, :3], seen[:, 3]
    surface = F.max_pool2d(hits.reshape(-1, 1, height, width), 3, stride=1, padding=1)
    surface = F.grid_sample(surface, places, mode="nearest", align_corners=False)[:, 0, :, 0]
    towards = points - cameras.centers[:, None]
    # Points that no view sees get the mean of all views.
    weight = (towards.norm(dim=-1) <= surface + _SLACK * cell) + 1e-4
    cosine = F.cosine_similarity(towards, (points - eye)[None], dim=-1)
    weight = weight * ((cosine + 1) / 2) ** _SHARPNESS * (cover + 1e-4)
    return (color * (weight / weight.sum(0))[:, None]).sum(0)


def _object_colors(images: Tensor, alpha: Tensor, alpha_is_estimated: bool) -> Tensor:
    """Images (v, 3, h, w) with the white background removed from pixels on the outline.

    Every point of a visual hull is on the outline in some view, so outlines matter. An alpha
    estimated from the background does not tell their share of white; they then get the colors
    of the pixels inside.
    """
    alpha = alpha[:, None]
    inside = -F.max_pool2d(-alpha, 3, stride=1, padding=1) if alpha_is_estimated else alpha
    known = (inside > 0.5).float()
    cover = alpha.clamp(min=0.5)
    bare = ((images - 1 + cover) / cover).clamp(0, 1)
    colors, weight = (F.avg_pool2d(x, 7, stride=1, padding=3) for x in (bare * known, known))
    near = torch.where(weight > 0, colors / weight.clamp(min=1e-6), bare)
    return torch.where(known > 0, bare, near)


def _on_rays(camera: Cameras, hits: Tensor) -> Tensor:
    """Points (n, 3) of one camera's pixels with a hit; hits are (h * w,) distances."""
    origins, directions = rays(
        camera.world_from_cam, camera.intrinsics, camera.height, camera.width
    )
    hit = hits > 0
    return origins.reshape(-1, 3)[hit] + hits[hit, None] * directions.reshape(-1, 3)[hit]


def _centers(low: Tensor, cell: float, cells: int) -> Tensor:
    line = (torch.arange(cells) + 0.5) * cell
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3) + low


def _places(points: Tensor, cameras: Cameras) -> Tensor:
    """Image positions (v, n, 2) of points (n, 3) in the coordinates of `grid_sample`."""
    xy, _ = cameras.project(points)
    # Points behind a camera are outside its image.
    return (xy / torch.tensor([cameras.width, cameras.height]) * 2 - 1).nan_to_num(nan=-2.0)


def _allowed(points: Tensor, alpha: Tensor, cameras: Cameras, threshold: float) -> Tensor:
    """Whether points (n, 3) are inside each mask: bool (v, n); False outside the image."""
    places = _places(points, cameras)[:, None]
    return F.grid_sample(alpha[:, None], places, align_corners=False)[:, 0, 0] > threshold
