"""Rebuild each view from the others: a voxel shape from their masks, coloured by what they see.

For a held-out view, voxels are filled where the masks of all others agree (their visual hull) and
drawn from its camera. A surface point takes its colour from the other views that see it, from those
of nearby directions most. Nothing of the held-out view is used, but for how far the grid of voxels
reaches. Nothing is trained, so there is no seed and no number of steps to choose.
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
# A voxel is in a mask where the alpha at its centre's place is above this; half would lose poles
# and blades thinner than a voxel.
_INSIDE = 0.25
# How much more a view from the same direction counts than one from the side.
_SHARPNESS = 8.0
# Voxels by which a point may lie behind what a view sees and still be seen by it.
_SLACK = 2.0
FEWEST_VIEWS = 3
_MOST_FOLDS = 8


@dataclass(frozen=True, eq=False)
class Voxels:
    """A cube of voxels around the object, and for every view which of them its mask allows.

    Attributes:
        low: (3,) the cube's lowest corner, world.
        cell: a voxel's side, world units.
        cells: voxels along a side.
        allowed: bool (v, cells³), x fastest.
    """

    low: Tensor
    cell: float
    cells: int
    allowed: Tensor

    def without(self, views: Collection[int]) -> Tensor:
        """(cells³,) the visual hull of all but some views."""
        return self.allowed[[i for i in range(len(self.allowed)) if i not in views]].all(0)


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """The views of a set as the others of them tell.

    Attributes:
        images, alpha: (v, 3, h, w) on white and (v, h, w): rebuilt.
        true_images, true_alpha: the set's, resized to the same pixels.
    """

    images: Tensor
    alpha: Tensor
    true_images: Tensor
    true_alpha: Tensor


def voxels_of(alpha: Tensor, cameras: Cameras, cells: int = CELLS) -> Voxels | None:
    """The voxels of masks (v, h, w), in a cube that just holds what all views but one agree on.

    None if they agree on nothing.
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
    """Distance along the ray of every pixel to the first filled voxel: (f, v, h * w), -1 for none.

    Args:
        filled: bool (f, cells³): several fillings of the grid.
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
def rebuilt_views(view_set: ViewSet) -> Rebuilt:
    """Every view of a set, rebuilt from the others; kept, as several metrics ask for it.

    Up to eight views are held out one at a time; of more, those eight apart together.
    """
    images, alpha, cameras = resized(view_set, SIDE)
    new_images, new_alpha = torch.ones_like(images), torch.zeros_like(alpha)
    voxels = voxels_of(alpha, cameras)
    views, folds = range(len(cameras)), min(len(cameras), _MOST_FOLDS)
    if voxels is None or len(cameras) < FEWEST_VIEWS:
        return Rebuilt(new_images, new_alpha, images, alpha)
    colors = _without_white(images, alpha, view_set.alpha_is_estimated)
    held_out = [views[fold::folds] for fold in range(folds)]
    filled = torch.stack([voxels.without(held) for held in held_out])
    hits = first_hits(voxels, filled, cameras)
    for fold, held in enumerate(held_out):
        others = [i for i in views if i not in held]
        known = (colors[others], alpha[others], cameras[others], hits[fold, others])
        for view in held:
            hit = hits[fold, view] > 0
            points = _on_rays(cameras[view], hits[fold, view])
            seen = _colors_of(points, cameras[view].centers, *known, voxels.cell)
            new_images[view].view(3, -1)[:, hit] = seen
            new_alpha[view].view(-1)[hit] = 1.0
    return Rebuilt(new_images, new_alpha, images, alpha)


def _colors_of(
    points: Tensor,
    eye: Tensor,
    colors: Tensor,
    alpha: Tensor,
    cameras: Cameras,
    hits: Tensor,
    cell: float,
) -> Tensor:
    """Colours (3, n) of surface points (n, 3), from the views that see them.

    Args:
        eye: (1, 3) centre of the camera to draw for.
        colors, alpha, cameras: v views.
        hits: (v, h * w) as `first_hits` gives for them.
    """
    height, width = alpha.shape[-2:]
    places = _places(points, cameras)[:, :, None]
    layers = torch.cat([colors, alpha[:, None]], dim=1)
    seen = F.grid_sample(layers, places, align_corners=False, padding_mode="border")[..., 0]
    color, cover = seen[:, :3], seen[:, 3]
    surface = F.max_pool2d(hits.reshape(-1, 1, height, width), 3, stride=1, padding=1)
    surface = F.grid_sample(surface, places, mode="nearest", align_corners=False)[:, 0, :, 0]
    towards = points - cameras.centers[:, None]
    # Points that no view sees take the mean of all.
    weight = (towards.norm(dim=-1) <= surface + _SLACK * cell) + 1e-4
    cosine = F.cosine_similarity(towards, (points - eye)[None], dim=-1)
    weight = weight * ((cosine + 1) / 2) ** _SHARPNESS * (cover + 1e-4)
    return (color * (weight / weight.sum(0))[:, None]).sum(0)


def _without_white(images: Tensor, alpha: Tensor, alpha_is_estimated: bool) -> Tensor:
    """Pictures (v, 3, h, w) whose outlines, which are part white, take the colours of the object.

    Every point of a visual hull lies on some view's outline, so outlines count. An alpha told from
    the background does not say how white they are; then they take the colours inside of them.
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
    """The points (n, 3) that one camera's n pixels with a hit (h * w,) see."""
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
    """Places of points (n, 3) in the pictures, as `grid_sample` counts: (v, n, 2)."""
    xy, _ = cameras.project(points)
    # Behind a camera is outside of its picture.
    return (xy / torch.tensor([cameras.width, cameras.height]) * 2 - 1).nan_to_num(nan=-2.0)


def _allowed(points: Tensor, alpha: Tensor, cameras: Cameras, threshold: float) -> Tensor:
    """Whether points (n, 3) lie in every mask: bool (v, n); outside of a picture they do not."""
    places = _places(points, cameras)[:, None]
    return F.grid_sample(alpha[:, None], places, align_corners=False)[:, 0, 0] > threshold
