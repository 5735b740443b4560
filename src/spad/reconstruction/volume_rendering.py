"""Volume rendering of a signed-distance grid: samples near the surface, composited along rays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from scipy.sparse import csc_array
except ModuleNotFoundError:  # It belongs to the extra `mesh`, and views agree without.
    csc_array = None

# Samples along a ray are looked for in blocks of so many grid points a side.
BLOCK = 4


@dataclass(frozen=True, eq=False)
class Grid:
    """Points of a regular grid in a box.

    Attributes:
        low: (3,) the first point, world.
        cell: distance of neighbors, world units.
        shape: points along x, y, z.
    """

    low: Tensor
    cell: float
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return math.prod(self.shape)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Steps of the flat index along x, y, z: x is fastest."""
        return 1, self.shape[0], self.shape[0] * self.shape[1]

    def index(self, flat: Tensor) -> Tensor:
        """(n, 3) whole coordinates x, y, z of flat indices (n,)."""
        nx, ny, _ = self.shape
        return torch.stack([flat % nx, flat // nx % ny, flat // (nx * ny)], dim=-1)

    def points(self) -> Tensor:
        """(n, 3) world."""
        flat = torch.arange(len(self), device=self.low.device)
        return self.low + self.cell * self.index(flat)

    def volume(self, values: Tensor) -> Tensor:
        """Values (..., n) as (..., z, y, x)."""
        return values.unflatten(-1, self.shape[::-1])


@dataclass(frozen=True, eq=False)
class RaySamples:
    """Points along rays, in order, each as a mix of eight values of a table.

    Attributes:
        ray: (s,) int64, ascending.
        rows: (s, 8) int64 into the table.
        weights: (s, 8) trilinear.
    """

    ray: Tensor
    rows: Tensor
    weights: Tensor

    def between(self, start: int, end: int, first_ray: int) -> RaySamples:
        """The samples from `start` to before `end`; `first_ray` becomes ray 0."""
        part = slice(start, end)
        return RaySamples(self.ray[part] - first_ray, self.rows[part], self.weights[part])


def occupied_blocks(near: Tensor) -> Tensor:
    """(bz, by, bx) bool: blocks of `BLOCK` points a side in which `near` (z, y, x) is ever true."""
    missing = [-size % BLOCK for size in reversed(near.shape)]
    padded = F.pad(near[None, None].float(), [n for size in missing for n in (0, size)])
    return F.max_pool3d(padded, BLOCK)[0, 0] > 0


def samples_along(
    origins: Tensor, directions: Tensor, grid: Grid, blocks: Tensor, jitter: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Points on rays through occupied blocks, `step` cells apart, in order along each ray.

    Args:
        origins, directions: (r, 3) world, directions of length 1.
        blocks: as `occupied_blocks` gives.
        jitter: (r,) in [0, 1], the share of a step by which each ray's samples are moved on.

    Returns:
        ray: (s,) ascending. place: (s, 3) in cells from the grid's first point.
    """
    origins = (origins - grid.low) / grid.cell
    directions = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    shape = torch.tensor(grid.shape, device=origins.device)
    ends = [(x - origins) / directions for x in (torch.zeros_like(shape), shape - 1)]
    start = torch.minimum(*ends).amax(1).clamp(min=0)
    end = torch.maximum(*ends).amin(1)
    hits = (end > start).nonzero()[:, 0]
    origins, directions, start, end = (x[hits] for x in (origins, directions, start, end))
    stride = step * BLOCK
    most = math.ceil(float((end - start).amax()) / stride) if len(hits) else 0
    begins = start[:, None] + stride * torch.arange(most, device=origins.device)
    middle = origins[:, None] + (begins + stride / 2)[..., None] * directions[:, None]
    block = (middle / BLOCK).long()
    block = torch.minimum(block.clamp(min=0), (shape - 1) // BLOCK)
    x, y, z = block.unbind(-1)
    ray, number = (blocks[z, y, x] & (begins < end[:, None])).nonzero(as_tuple=True)
    offsets = torch.arange(BLOCK, device=origins.device) + jitter[hits][ray, None]
    distance = begins[ray, number][:, None] + step * offsets
    place = origins[ray, None] + distance[..., None] * directions[ray, None]
    # The far side of a cell is reached only by what lies inside of the grid.
    limit = (shape - 1) - 1e-3
    inside = ((place >= 0) & (place <= limit)).all(-1)
    return hits[ray][:, None].expand_as(distance)[inside], place[inside]


def interpolation(place: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Flat indices (s, 8) of the corners of the cells that places (s, 3) are in, and weights."""
    base = place.long()
    share = place - base
    x, y, z = (torch.stack([1 - part, part], dim=1) for part in share.unbind(1))
    weights = (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)
    strides = torch.tensor(grid.strides, device=place.device)
    corner = torch.tensor([0, 1], device=place.device)
    offsets = corner[:, None, None] * strides[2] + corner[:, None] * strides[1] + corner
    return (base * strides).sum(1, keepdim=True) + offsets.flatten(), weights


class TableMix(torch.autograd.Function):
    """Rows of a table (a, c) mixed: (s, c) = sum over k of weights[s, k] * table[rows[s, k]].

    What `embedding_bag` does, with a gradient that is many times as fast on a CPU.
    """

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.length = len(table)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        return transposed_mix(gradients[0], rows, weights, ctx.length), None, None


def transposed_mix(values: Tensor, rows: Tensor, weights: Tensor, length: int) -> Tensor:
    """Sums (length, c) of `weights[s, k] * values[s]` over all s and k by `rows[s, k]`.

    Args:
        values: (s, c).
        rows, weights: (s, k).
    """
    if csc_array is not None and values.device.type == "cpu":
        # Three times as fast as torch.
        ends = np.arange(0, rows.numel() + 1, rows.shape[1])
        entries = (weights.reshape(-1).numpy(), rows.reshape(-1).numpy(), ends)
        return torch.from_numpy(csc_array(entries, shape=(length, len(rows))) @ values.numpy())
    total = values.new_zeros(values.shape[1], length)
    for column, part in zip(total, values.unbind(1), strict=True):
        column.index_add_(0, rows.reshape(-1), (weights * part[:, None]).reshape(-1))
    return total.T


def composite(distance: Tensor, color: Tensor, ray: Tensor, rays: int, sharpness: float) -> Tensor:
    """Premultiplied color and coverage (rays, 4) of surfaces seen along rays.

    Between two samples light is stopped as the logistic function of the distance falls; on a ray
    that passes a convex surface, coverage is that function of the smallest distance, so outlines
    lie where the distance is zero.

    Args:
        distance: (s,) signed, negative inside, of samples in order along rays.
        color: (s, 3).
        ray: (s,) ascending.
        sharpness: of the logistic function, per unit of `distance`.

    Source: NeuS (Wang et al. 2021), equation 13.
    """
    passing = F.logsigmoid(sharpness * distance)
    same = ray[1:] == ray[:-1]
    # Logarithm of the share of light that passes from one sample to the next.
    passed = torch.where(same, (passing[1:] - passing[:-1]).clamp(max=0), 0.0)
    # Sums over all rays run into the ten thousands: too long for float32.
    until = passed.double().cumsum(0) - passed
    first = torch.cat([torch.ones_like(same[:1]), ~same])
    starts = first.nonzero()[:, 0].clamp(max=len(passed) - 1)
    before = until - until[starts][first.cumsum(0)[:-1] - 1]
    weight = torch.exp(before).float() * -torch.expm1(passed)
    between = torch.cat([(color[1:] + color[:-1]) / 2, torch.ones_like(color[1:, :1])], dim=1)
    total = torch.zeros(rays, 4, device=color.device, dtype=color.dtype)
    return total.index_add(0, ray[:-1], weight[:, None] * between)
