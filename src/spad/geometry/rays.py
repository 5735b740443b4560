"""Rays and their Plücker coordinates. Needs nothing but torch.

Functions take tensors with any leading batch dimensions; `plucker_map` takes `Cameras`.
"""

import torch
from torch import Tensor

from spad.cameras import Cameras


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Pixel centers (x, y, 1), row-major: (height * width, 3); the first is (0.5, 0.5, 1)."""
    ys = torch.arange(height, device=like.device, dtype=like.dtype) + 0.5
    xs = torch.arange(width, device=like.device, dtype=like.dtype) + 0.5
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)


def scale_intrinsics(
    intrinsics: Tensor, image_size: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Intrinsics (..., 3, 3) of an image (h, w) in units of the cells of a grid (h, w) over it."""
    rows = [grid[1] / image_size[1], grid[0] / image_size[0], 1.0]
    return intrinsics * intrinsics.new_tensor(rows)[:, None]


def rays(
    world_from_cam: Tensor, intrinsics: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Rays through pixel centers, world frame.

    Args:
        world_from_cam: (..., 4, 4), OpenCV camera axes.
        intrinsics: (..., 3, 3) in pixels of a height x width image.

    Returns: origins and unit directions, both (..., height, width, 3).
    """
    origins, directions = depth_rays(world_from_cam, intrinsics, height, width)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    shape = (*directions.shape[:-2], height, width, 3)
    return origins[..., None, :].expand_as(directions).reshape(shape), directions.reshape(shape)


def plucker(origins: Tensor, directions: Tensor) -> Tensor:
    """Plücker coordinates (d, o × d) of rays, world frame, in the last dimension.

    Source: SPAD, section 3.3. The moment does not depend on the point chosen on the ray.
    """
    moments = torch.linalg.cross(origins.expand_as(directions), directions, dim=-1)
    return torch.cat([directions, moments], dim=-1)


def plucker_map_from_matrices(
    world_from_cam: Tensor, intrinsics: Tensor, height: int, width: int
) -> Tensor:
    """Plücker coordinates of all pixels as channels: (..., 6, height, width)."""
    return plucker(*rays(world_from_cam, intrinsics, height, width)).movedim(-1, -3)


def plucker_map(cameras: Cameras, height: int, width: int) -> Tensor:
    """Plücker maps (v, 6, h, w) of `cameras`, on a height x width grid over their images."""
    intrinsics = scale_intrinsics(
        cameras.intrinsics, (cameras.height, cameras.width), (height, width)
    )
    return plucker_map_from_matrices(cameras.world_from_cam, intrinsics, height, width)


def depth_rays(world_from_cam, intrinsics, height, width) -> tuple[Tensor, Tensor]:
    """Camera centers (..., 3), directions (..., h * w, 3) of length one along the camera axis."""
    return pixel_rays(world_from_cam, intrinsics, pixel_grid(height, width, intrinsics))


def pixel_rays(world_from_cam, intrinsics, pixels) -> tuple[Tensor, Tensor]:
    in_camera = pixels @ torch.linalg.inv(intrinsics).transpose(-1, -2)
    return world_from_cam[..., :3, 3], in_camera @ world_from_cam[..., :3, :3].transpose(-1, -2)


def ball_depths(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Where rays (..., 3) enter and leave a ball about the origin, in lengths of `directions`.

    Returns: two tensors (..., 1), from 0 on; the exit lies before the entry where a ray misses it.
    """
    if not radius > 0:
        raise ValueError(f"expected a positive radius, got {radius}")
    squared = directions.square().sum(-1, keepdim=True)
    middle = -(origins * directions).sum(-1, keepdim=True) / squared
    nearest = (origins + middle * directions).square().sum(-1, keepdim=True)
    half = ((radius**2 - nearest) / squared).clamp(min=0).sqrt()
    entry, exit_ = (middle - half).clamp(min=0), middle + half
    return entry, torch.where(nearest < radius**2, exit_, -1.0)
