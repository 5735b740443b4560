"""Epipolar bands of a few pixels, on demand: no matrix of all pixels is ever made.

A band holds exactly the cells of that pixel's row of `spad.geometry.epipolar_mask`, in images of
any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.epipolar import ray_segments
from spad.geometry.rays import pixel_grid


@dataclass(frozen=True)
class PixelBands:
    """The rays of n pixels of one view as segments in the images of all v views.

    Attributes:
        view: the view the pixels lie in.
        xy: (n, 2) their positions in the images.
        across, before, after: (n, v, 3) affine functions of a position (x, y, 1): signed distance
            across the line, and how far it lies before the segment's start and behind its end.
        height, width: of the images; distances are in their pixels.
    """

    view: int
    xy: Tensor
    across: Tensor
    before: Tensor
    after: Tensor
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.across)

    def distances_to(self, points: Tensor) -> Tensor:
        """Distances of points (n, v, 2) to their pixel's segment in their view: (n, v)."""
        points = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1).to(self.across)
        across, before, after = (
            (function * points).sum(-1) for function in (self.across, self.before, self.after)
        )
        return torch.hypot(across, torch.maximum(before, after).clamp(min=0))

    def distance_maps(self, index: int) -> Tensor:
        """Distance of every pixel's center to the segments of one source pixel: (v, h, w).

        In the pixel's own view, the distance to the pixel.
        """
        cells = pixel_grid(self.height, self.width, self.across).T
        along = torch.maximum(self.before[index] @ cells, self.after[index] @ cells)
        maps = torch.hypot(self.across[index] @ cells, along.clamp_(min=0))
        return maps.reshape(-1, self.height, self.width)

    def masks(self, index: int, band_width: float) -> Tensor:
        """Which pixels of every view one source pixel may see: bool (v, h, w).

        The row of `epipolar_mask` for that pixel, without the other rows.
        """
        inside = self.distance_maps(index) <= band_width / 2
        inside[self.view] = True
        return inside


def pixel_bands(
    cameras: Cameras, view: int, xy: Tensor, near: float = 0.0, far: float = math.inf
) -> PixelBands:
    """The epipolar bands of pixels (n, 2) of one view, in the images of all views.

    Args:
        cameras: v views; `cameras.resized(h, w)` gives bands in images of another size.
        view: whose pixels these are.
        xy: positions in pixels (x right, y down); the center of row r, column c is
            (c + 0.5, r + 0.5).
        near, far: depths along that camera's axis that the rays are cut to, world units.

    Raises: ValueError: no such view, positions of another shape, or an empty range of depths.
    Source: SPAD, section 3.2, as `spad.geometry.epipolar_mask_from_matrices`.
    """
    if not 0 <= view < len(cameras):
        raise ValueError(f"expected a view from 0 to {len(cameras) - 1}, got {view}")
    if not 0 <= near < far:
        raise ValueError(f"expected 0 <= near < far, got near={near}, far={far}")
    xy = torch.as_tensor(xy).to(cameras.intrinsics)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"expected positions of shape (n, 2), got {tuple(xy.shape)}")
    pixels = torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1)
    functions = ray_segments(
        cameras.world_from_cam, cameras.intrinsics, pixels, near, far, slice(view, view + 1)
    )
    across, before, after = (f[0].transpose(0, 1).contiguous() for f in functions)
    return PixelBands(view, xy, across, before, after, cameras.height, cameras.width)
