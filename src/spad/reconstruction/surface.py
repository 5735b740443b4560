"""A surface from posed images: a signed-distance grid fitted to their masks and colors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.focus import Ball
from spad.geometry.rays import rays
from spad.reconstruction.adam import Adam
from spad.reconstruction.hull_field import (
    MissedParts,
    cuts_off,
    hull_distance,
    missed_parts,
    outline_distance,
    widened,
)
from spad.reconstruction.volume_rendering import (
    Grid,
    RaySamples,
    TableMix,
    composite,
    interpolation,
    occupied_blocks,
    samples_along,
)

# Unless told otherwise, so many cells are as wide as the object is thick, by the mean of its masks:
# fewer lose thin parts, and more hold the carving of thick ones back.
_ACROSS_THICKNESS = 20
# And not more than so many are as wide as a pixel.
_MOST_BY_PIXEL = 1.5
_FEWEST_CELLS, _MOST_CELLS = 48, 160
# The box around the hull is found in this many cells, in so much more than the cameras' ball: one
# wrong camera moves that.
_BOX_CELLS, _ROOM = 44, 1.2
# Cells around that box, for the distance outside.
_MARGIN = 4
# Grid points within so many pixels of the surface are fitted, the others only say in or out.
_BAND = 2.5
# Rays are sampled from so many pixels and a cell before the surface, where it stops next to no
# light.
_REACH = 1.5
_FAR = 6.0
# Coarse cells from the hull's surface, within which it is found anew on the finer grid; what is
# farther is `_FAR` fine cells away.
_NEAR_HULL = 4.0
# Rays start from pixels so near to a mask.
_AROUND_MASK = 3
# Of the surface of views that a model drew: they disagree in detail, which makes it rough.
DRAWN_SMOOTHNESS = 0.5
# From this share of the steps on, the surface is polished.
_POLISH_FROM = 0.6
# Cosine of the angle between a surface's normal and the direction to a view from which on the view
# sees it fully.
_SEEN_FROM = 0.2
# After so many steps the surface may leave its samples behind, and new ones are taken.
_STEPS_BY_SAMPLES = 40


@dataclass(frozen=True)
class FitSettings:
    """How a grid is fitted; weights are of terms that are means over rays or grid points.

    Attributes:
        coarse_steps, fine_steps: of the optimizer, at half the cells and at all.
        rays: in a step.
        most_rays: that are gone through before new ones are chosen, for memory.
        coarse_rate, fine_rate: learning rates at first, in cells.
        final_rate: the share of them that is left at the end.
        mask: weight of the masks beside the colors.
        eikonal: that the distance grows by one a cell.
        smoothness: that the surface does not bend.
        polish: how many times as much, at last: while it is carved, that would hold it back, and
            carving leaves it rough.
        area: that it is small.
        unseen: how many times as much where no view sees it, such as the side an object stands on,
            which is flattened so.
        color_smoothness: that colors change little from cell to cell.
        sharpness: of the surface, per pixel: how soft the edges of masks are.
        sample_step: cells from one sample on a ray to the next.
        dissenting: views that may lack what the others' hull contains, at the start.
        seed: of the choice of rays.
    """

    coarse_steps: int = 200
    fine_steps: int = 120
    rays: int = 4096
    most_rays: int = 60_000
    coarse_rate: float = 0.3
    fine_rate: float = 0.1
    final_rate: float = 0.1
    mask: float = 10.0
    eikonal: float = 0.02
    smoothness: float = 0.3
    polish: float = 10.0
    area: float = 0.25
    unseen: float = 3.0
    color_smoothness: float = 0.02
    sharpness: float = 4.0
    sample_step: float = 0.8
    dissenting: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class DistanceGrid:
    """Signed distance, negative inside, and color, at the points of a grid.

    Attributes:
        grid: where.
        distance: (n,) in cells; beyond a few cells only its sign counts.
        color: (n, 3) sRGB; of use near the surface.
        hull: (n,) distance to the visual hull, in cells, likewise.
    """

    grid: Grid
    distance: Tensor
    color: Tensor
    hull: Tensor


def fit_surface(
    images: Tensor,
    alpha: Tensor,
    cameras: Cameras,
    ball: Ball,
    cells: int | None = None,
    settings: FitSettings = FitSettings(),
) -> DistanceGrid:
    """Fit a signed-distance grid to masks and colors, from their visual hull on, coarse to fine.

    Rays through the images' pixels are drawn by volume rendering of the grid and compared with
    them, while the surface is kept smooth and small. Only grid points near the surface are computed
    with, so the cost grows with its area.

    Args:
        images: (v, 3, h, w) sRGB in [0, 1], premultiplied by alpha.
        alpha: (v, h, w).
        cameras: v, on the images' device.
        ball: where the object is.
        cells: of the finest grid, along the longest side; as the object's thickness asks if None.

    Raises: ValueError: the masks agree on nothing.
    Source: NeuS (Wang et al. 2021), with a grid of distances and colors in place of networks.
    """
    generator = torch.Generator(device=images.device).manual_seed(settings.seed)
    outlines, cut_off = outline_distance(alpha), cuts_off(alpha)
    missed = None
    if settings.dissenting == 0:
        missed = missed_parts(outlines, cameras, cut_off, ball)
    box = box_of_hull(outlines, cameras, cut_off, ball, settings.dissenting, missed)
    if box is None:
        raise ValueError(
            "expected views of one object, got masks that no point in space agrees with; are the "
            "cameras those of these views?"
        )
    if cells is None:
        across = float((box[1] - box[0]).amax()) / _pixel_size(cameras, ball.center)
        by_pixel = min(_MOST_BY_PIXEL, _ACROSS_THICKNESS / _thickness(alpha))
        cells = min(_MOST_CELLS, max(_FEWEST_CELLS, round(across * by_pixel)))

    def to_hull(points: Tensor) -> Tensor:
        return hull_distance(points, outlines, cameras, cut_off, settings.dissenting, missed)

    result = None
    for count, steps, rate in (
        (cells // 2, settings.coarse_steps, settings.coarse_rate),
        (cells, settings.fine_steps, settings.fine_rate),
    ):
        grid = grid_over(*box, count)
        views = _resized(images, alpha, cameras, grid.cell, ball.center)
        if result is None:
            hull = (to_hull(grid.points()) / grid.cell).clamp(max=_FAR)
            color = torch.full((len(grid), 3), 0.5, device=hull.device)
            start, deepest = DistanceGrid(grid, hull.clone(), color, hull), math.inf
        else:
            start, deepest = _finer(result, grid, to_hull), _BAND
        fit = _Fit(start, deepest, *views, ball.center, settings)
        fit.run(steps, rate, generator)
        result = fit.result()
    return result


def box_of_hull(
    outlines: Tensor,
    cameras: Cameras,
    cut_off: list[bool],
    ball: Ball,
    dissenting: int = 0,
    missed: MissedParts | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Lowest and highest corner (3,) of a box around the visual hull; None if that is empty.

    Args: as of `hull_distance`.
    """
    radius = _ROOM * ball.radius
    grid = Grid(
        ball.center - radius, 2 * radius / (_BOX_CELLS - 1), (_BOX_CELLS, _BOX_CELLS, _BOX_CELLS)
    )
    points = grid.points()
    # Half a cell's diagonal: parts between the points count.
    distance = hull_distance(points, outlines, cameras, cut_off, dissenting, missed)
    inside = points[distance < 0.87 * grid.cell]
    if not len(inside):
        return None
    return inside.amin(0) - grid.cell, inside.amax(0) + grid.cell


@torch.no_grad()
def draw_surface(
    surface: DistanceGrid, cameras: Cameras, step: float = 0.5, sharpness: float = 4.0
) -> Tensor:
    """Images of a grid by volume rendering: (v, 4, h, w), color premultiplied by alpha, alpha.

    Args:
        step: cells from one sample on a ray to the next.
        sharpness: of the surface, per cell.
    """
    origins, directions = rays(
        cameras.world_from_cam, cameras.intrinsics, cameras.height, cameras.width
    )
    images = []
    for origin, direction in zip(origins, directions, strict=True):
        start, towards = origin.reshape(-1, 3), direction.reshape(-1, 3)
        middle = torch.full((len(start),), 0.5, device=start.device)
        drawn = draw_rays(surface, start, towards, middle, step, sharpness)
        images.append(drawn.T.reshape(4, cameras.height, cameras.width))
    return torch.stack(images)


def draw_rays(
    surface: DistanceGrid,
    origins: Tensor,
    directions: Tensor,
    jitter: Tensor,
    step: float,
    sharpness: float = 4.0,
) -> Tensor:
    """What rays (r, 3) see of a grid: color premultiplied by alpha, and alpha (r, 4).

    It has derivatives by the grid's distances and colors.

    Args:
        jitter: (r,) as of `samples_along`.
        step: cells from one sample to the next.
        sharpness: of the surface, per cell.
    """
    grid = surface.grid
    blocks = occupied_blocks(grid.volume(surface.distance.detach().abs() < _BAND))
    ray, place = samples_along(origins, directions, grid, blocks, jitter, step)
    rows, weights = interpolation(place, grid)
    table = torch.cat([surface.distance[:, None], surface.color], dim=1)
    values = TableMix.apply(table, rows, weights)
    return composite(values, ray, len(origins), sharpness)


def grid_over(low: Tensor, high: Tensor, cells: int) -> Grid:
    """A grid over a box and a margin, `cells` points along its longest side."""
    size = high - low
    cell = float(size.amax()) / (cells - 1 - 2 * _MARGIN)
    shape = [math.ceil(side / cell) + 1 + 2 * _MARGIN for side in size.tolist()]
    half = cell * (torch.tensor(shape, device=low.device) - 1) / 2
    return Grid((low + high) / 2 - half, cell, (shape[0], shape[1], shape[2]))


def _finer(coarse: DistanceGrid, grid: Grid, to_hull: Callable[[Tensor], Tensor]) -> DistanceGrid:
    """A fitted grid on the points of a finer one.

    What is handed on is how far the surface lies inside of the hull, so that parts of the hull that
    are thinner than a coarse cell stay. Outside of it, where coarse cells make thin parts thick, it
    is put back.

    Args:
        to_hull: distance of points (n, 3) to the hull, world units; it is asked for near the hull's
            surface, and farther off the coarse grid tells.
    """
    ratio = coarse.grid.cell / grid.cell
    carved = (coarse.distance - coarse.hull).clamp(min=0)
    near = (coarse.hull.abs() < _NEAR_HULL).float()
    distances = torch.stack([carved * ratio, coarse.hull * ratio, near])
    volume = coarse.grid.volume(torch.cat([distances, coarse.color.T]))
    last = torch.tensor(coarse.grid.shape, device=near.device) - 1
    points = grid.points()
    place = (points - coarse.grid.low) / coarse.grid.cell / last * 2 - 1
    found = F.grid_sample(
        volume[None], place[None, None, None], align_corners=True, padding_mode="border"
    )[0, :, 0, 0]
    hull, nearby = found[1].clamp(max=_FAR), found[2].nonzero()[:, 0]
    hull[nearby] = (to_hull(points[nearby]) / grid.cell).clamp(max=_FAR)
    return DistanceGrid(grid, hull + found[0], found[3:].T, hull)


def _resized(
    images: Tensor, alpha: Tensor, cameras: Cameras, cell: float, center: Tensor
) -> tuple[Tensor, Tensor, Cameras]:
    """Views made smaller by a whole factor, if their pixels are finer than cells."""
    factor = math.floor(cell / _pixel_size(cameras, center))
    if factor <= 1:
        return images, alpha, cameras
    size = [math.ceil(side / factor) for side in (cameras.height, cameras.width)]
    small = F.interpolate(torch.cat([images, alpha[:, None]], dim=1), size, mode="area")
    return small[:, :3], small[:, 3], cameras.resized(*size)


def _thickness(alpha: Tensor) -> float:
    """Width in pixels of a strip as long and as large as the masks (v, h, w) together."""
    masks = alpha > 0.5
    outlines = masks & widened(~masks)
    # A strip has an outline on either side.
    return 2 * float(masks.sum() / outlines.sum())


def _pixel_size(cameras: Cameras, center: Tensor) -> float:
    """Width of a pixel at the object, world units, mean over views."""
    distance = (cameras.centers - center).norm(dim=1)
    return float((distance / cameras.intrinsics[:, 0, 0]).mean())


class _Fit:
    """The values near the surface of one grid, in a table, and the rays they are fitted to."""

    def __init__(
        self,
        start: DistanceGrid,
        deepest: float,
        images: Tensor,
        alpha: Tensor,
        cameras: Cameras,
        center: Tensor,
        settings: FitSettings,
    ):
        """`deepest`: points so many pixels inside are fitted too."""
        self._start, self._settings = start, settings
        grid, device = start.grid, alpha.device
        pixel = max(_pixel_size(cameras, center) / grid.cell, 1.0)
        self._band = _BAND * pixel
        self._sharpness = settings.sharpness / pixel
        near = (start.distance < self._band) & (start.hull < self._band)
        near &= start.distance > -deepest * pixel
        self._blocks = occupied_blocks(grid.volume(near))
        self._points = near.nonzero()[:, 0]
        count = len(self._points)
        # Two more rows of the table stand for all that is far outside, and far inside.
        self._row = torch.where(start.distance > 0, count, count + 1)
        self._row[self._points] = torch.arange(count, device=device)
        far = torch.tensor([[_FAR, 0, 0, 0], [-_FAR, 0, 0, 0]], device=device)
        values = torch.cat([start.distance[:, None], start.color], dim=1)[self._points]
        self._table = torch.cat([values, far]).requires_grad_()
        self._neighbors = self._rows_beside()
        # The same by axis: (3, 2, a).
        self._beside = self._neighbors.T.contiguous().view(3, 2, count)
        self._inner = (self._neighbors < count).all(1).float()[:, None]
        self._rays = PixelRays.near_masks(images, alpha, cameras)
        self._towards_views = F.normalize(cameras.centers - center, dim=1)
        self._optimizer = Adam([self._table])

    def run(self, steps: int, rate: float, generator: torch.Generator) -> None:
        settings, done = self._settings, 0
        while done < steps:
            device = self._table.device
            rays = torch.randperm(len(self._rays), generator=generator, device=device)
            rays = rays[: settings.most_rays]
            samples, targets = self._samples(rays, generator)
            area = self._area(samples)
            batches = math.ceil(len(rays) / settings.rays)
            firsts = torch.arange(batches + 1, device=device) * settings.rays
            ends = torch.searchsorted(samples.ray, firsts).tolist()
            for number in range(min(steps - done, max(batches, _STEPS_BY_SAMPLES))):
                batch = number % batches
                part = samples.between(ends[batch], ends[batch + 1], batch * settings.rays)
                target = targets[batch * settings.rays : (batch + 1) * settings.rays]
                if len(part.ray) > 1:
                    share = done / steps
                    smoothness = settings.smoothness * (
                        settings.polish if share >= _POLISH_FROM else 1
                    )
                    self._step(part, target, rate * settings.final_rate**share, smoothness, area)
                done += 1

    def result(self) -> DistanceGrid:
        distance = self._start.distance.clamp(-_FAR, _FAR)
        color = self._start.color.clone()
        values = self._table.detach()[: len(self._points)]
        distance[self._points], color[self._points] = values[:, 0], values[:, 1:]
        return DistanceGrid(self._start.grid, distance, color, self._start.hull)

    def _rows_beside(self) -> Tensor:
        """(a, 6): rows of the points before and after along x, y and z; a where none is fitted."""
        grid, count = self._start.grid, len(self._points)
        place = grid.index(self._points)
        rows = []
        for axis, stride in enumerate(grid.strides):
            for sign in (-1, 1):
                moved = place[:, axis] + sign
                there = (moved >= 0) & (moved < grid.shape[axis])
                row = self._row[torch.where(there, self._points + sign * stride, 0)]
                rows.append(torch.where(there, row, count).clamp(max=count))
        return torch.stack(rows, dim=1)

    @torch.no_grad()
    def _samples(self, rays: Tensor, generator: torch.Generator) -> tuple[RaySamples, Tensor]:
        """Samples of rays near the surface as it is now, none behind where a ray enters it, and
        what the rays should show (r, 4)."""
        grid = self._start.grid
        random = torch.rand(len(rays), 3, generator=generator, device=rays.device)
        origins, directions, targets = self._rays.through(rays, random[:, 1:])
        ray, place = samples_along(
            origins, directions, grid, self._blocks, random[:, 0], self._settings.sample_step
        )
        distance = self._start.distance.clone()
        distance[self._points] = self._table[: len(self._points), 0]
        # The nearest grid point is less than a cell away.
        value = distance.index_select(0, grid.flat((place + 0.5).long()))
        reach = _REACH * self._band / _BAND + 1
        # Half a pixel before what is fitted ends, no light is left.
        deep = (value < 0.5 * self._band / _BAND - self._band).long()
        count = deep.cumsum(0)
        is_first = torch.cat([torch.ones_like(ray[:1], dtype=torch.bool), ray[1:] != ray[:-1]])
        first = is_first.nonzero()[:, 0]
        before_ray = (count - deep)[first].index_select(0, is_first.cumsum(0) - 1)
        kept = ((value < reach) & (count == before_ray)).nonzero()[:, 0]
        rows, weights = interpolation(place[kept], grid)
        return RaySamples(ray[kept], self._row[rows], weights), targets

    def _step(
        self, samples: RaySamples, target: Tensor, rate: float, smoothness: float, area: Tensor
    ) -> None:
        values = TableMix.apply(self._table, samples.rows, samples.weights)
        drawn = composite(values, samples.ray, len(target), self._sharpness)
        loss = 3 * F.smooth_l1_loss(drawn[:, :3], target[:, :3], beta=0.1)
        loss = loss + self._settings.mask * F.mse_loss(drawn[:, 3], target[:, 3])
        (gradient,) = torch.autograd.grad(loss, self._table)
        gradient[: len(self._points)] += self._regularization(smoothness, area)
        gradient[len(self._points) :] = 0
        self._optimizer.step([gradient], [rate])

    @torch.no_grad()
    def _area(self, samples: RaySamples) -> Tensor:
        """(a,) weight of the area at each point, larger where no view looks at the surface, or none
        of the samples is."""
        count, settings = len(self._points), self._settings
        reached = torch.zeros(len(self._table), device=self._table.device)
        reached[samples.rows.reshape(-1)] = 1
        normals = F.normalize(self._slope(self._table[:count, 0]), dim=0)
        facing = (self._towards_views @ normals).amax(0)
        seen = reached[:count] * (facing / _SEEN_FROM).clamp(0, 1)
        return settings.area * (settings.unseen + (1 - settings.unseen) * seen)

    def _slope(self, distance: Tensor) -> Tensor:
        """(3, a) derivatives along x, y, z; of use where all neighbors are fitted."""
        padded = F.pad(distance, (0, 1))
        around = padded.index_select(0, self._beside.reshape(-1)).view(3, 2, len(distance))
        return (around[:, 1] - around[:, 0]) / 2

    @torch.no_grad()
    def _regularization(self, smoothness: float, area: Tensor) -> Tensor:
        """(a, 4) gradient of the terms that only neighbors take part in, by sums over them."""
        settings, count, inner = self._settings, len(self._points), self._inner
        # A last row of nothing stands for neighbors that are not fitted.
        table = F.pad(self._table[:count], (0, 0, 0, 1))
        bend = (F.embedding_bag(self._neighbors, table, mode="sum") / 6 - table[:count]) * inner
        spread = F.embedding_bag(self._neighbors, F.pad(bend, (0, 0, 0, 1)), mode="sum") / 6
        weights = [smoothness, *[settings.color_smoothness] * 3]
        gradient = 2 * bend.new_tensor(weights) * (spread - bend)
        slope = self._slope(table[:count, 0])
        length = (slope.square().sum(0) + 1e-8).sqrt()
        push = F.pad(inner[:, 0] * (1 - 1 / length) * slope, (0, 1))
        pushed = [
            along.index_select(0, before) - along.index_select(0, after)
            for along, (before, after) in zip(push, self._beside, strict=True)
        ]
        # Where the distance bends outward, the surface is drawn in: its area falls fastest so.
        gradient[:, 0] += settings.eikonal * sum(pushed) - area * bend[:, 0]
        return gradient / count


@dataclass(frozen=True, eq=False)
class PixelRays:
    """Rays through the pixels in or near masks.

    Attributes:
        layers: (4, v, h, w) premultiplied color and alpha.
        cameras: v.
        view, row, column: (r,) of each pixel.
    """

    layers: Tensor
    cameras: Cameras
    view: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def near_masks(cls, images: Tensor, alpha: Tensor, cameras: Cameras) -> PixelRays:
        side = 2 * _AROUND_MASK + 1
        near = F.max_pool2d(alpha[:, None], side, stride=1, padding=_AROUND_MASK)[:, 0] > 0.02
        layers = torch.cat([images, alpha[:, None]], dim=1).transpose(0, 1)
        return cls(layers, cameras, *near.nonzero(as_tuple=True))

    def __len__(self) -> int:
        return len(self.view)

    def through(self, chosen: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Origins and unit directions (n, 3) of some rays, and the values (n, 4) of the images.

        Args:
            shift: (n, 2) in [0, 1], right and down: where in its pixel a ray goes through. Were it
                always the center, the surface could shrink between the rays.
        """
        cameras, view = self.cameras, self.view[chosen]
        xy = torch.stack([self.column[chosen], self.row[chosen]], dim=1) + shift
        pixels = torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1)
        world_from_pixel = cameras.world_from_cam[:, :3, :3] @ torch.linalg.inv(cameras.intrinsics)
        directions = (world_from_pixel[view] @ pixels[..., None])[..., 0]
        size = pixels.new_tensor([cameras.width, cameras.height, len(cameras)])
        # Views are the third axis, each at the center of its layer.
        place = torch.cat([xy, view[:, None] + 0.5], dim=1) / size * 2 - 1
        values = F.grid_sample(
            self.layers[None], place[None, None, None], padding_mode="border", align_corners=False
        )[0, :, 0, 0].T
        return cameras.centers[view], F.normalize(directions, dim=1), values
