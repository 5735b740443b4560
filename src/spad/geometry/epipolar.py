"""Epipolar masks, and the rays of pixels as segments in other views. Needs nothing but torch.

Functions take tensors with any leading batch dimensions, so that a training batch of many
objects is one call; `epipolar_mask` takes `Cameras`.
"""

import math

import torch
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.rays import ball_depths, pixel_grid, pixel_rays, scale_intrinsics

# A point within half a pixel diagonal of a pixel's center may lie in that pixel. A narrower band
# could miss the pixel that holds the projection of a point on the ray.
NARROWEST_BAND = math.sqrt(2)


def epipolar_mask_from_matrices(
    world_from_cam: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    band_width: float = 3.0,
    near: float = 0.0,
    far: float = math.inf,
    radius: float | None = None,
) -> Tensor:
    """The `exact` epipolar mask: allowed pairs of tokens among all views.

    A token sees its whole own view, and in every other view the cells whose center lies within
    `band_width / 2` cells of the projection of its ray in front of both cameras.

    Args:
        world_from_cam: (..., v, 4, 4), OpenCV camera axes; any poses, also coinciding centers
            (the band is then a disc around the one point the ray projects to).
        intrinsics: (..., v, 3, 3) in units of the cells of a height x width grid.
        band_width: in cells, at least sqrt(2), so that no point on the ray can be missed.
        near, far: depths along the query camera's axis that the ray is cut to, world units.
        radius: the ray is also cut to this ball about the origin, which holds the object; a ray
            that misses it sees its own view alone. None: not cut.

    Returns: bool (..., v * height * width, v * height * width); rows are queries, columns keys,
        view-major, then row-major within a view.

    Source: SPAD, section 3.2. Differs from the release, which draws quantized full lines between
    image borders at one resolution and resizes the flattened matrix.
    """
    if not 0 <= near < far:
        raise ValueError(f"expected 0 <= near < far, got near={near}, far={far}")
    if not band_width >= NARROWEST_BAND - 1e-6:
        raise ValueError(f"expected a band of at least sqrt(2) cells, got {band_width}")
    num_views, num_cells = world_from_cam.shape[-3], height * width
    grid = pixel_grid(height, width, intrinsics)
    perpendicular, before, after = ray_segments(
        world_from_cam, intrinsics, grid, near, far, radius=radius
    )
    cells = grid.T
    # One query view at a time bounds the memory; pixels and target views stay vectorized.
    rows = []
    for view in range(num_views):
        across = perpendicular[..., view, :, :, :] @ cells
        along = torch.maximum(before[..., view, :, :, :] @ cells, after[..., view, :, :, :] @ cells)
        inside = across.square_().add_(along.clamp_(min=0).square_()) <= (band_width / 2) ** 2
        inside[..., view, :, :] = True
        rows.append(inside.transpose(-3, -2).flatten(-2))
    return torch.stack(rows, dim=-3).reshape(
        *world_from_cam.shape[:-3], num_views * num_cells, num_views * num_cells
    )


def epipolar_mask(
    cameras: Cameras,
    height: int,
    width: int,
    band_width: float = 3.0,
    near: float = 0.0,
    far: float = math.inf,
    radius: float | None = None,
) -> Tensor:
    """The `exact` epipolar mask of `cameras` on a height x width grid over their images."""
    intrinsics = scale_intrinsics(
        cameras.intrinsics, (cameras.height, cameras.width), (height, width)
    )
    return epipolar_mask_from_matrices(
        cameras.world_from_cam, intrinsics, height, width, band_width, near, far, radius
    )


def ray_segments(
    world_from_cam: Tensor,
    intrinsics: Tensor,
    pixels: Tensor,
    near: float = 0.0,
    far: float = math.inf,
    queries: slice = slice(None),
    radius: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The rays of pixels as segments in every view, as three affine functions of (x, y, 1).

    Args:
        world_from_cam, intrinsics: (..., v, 4, 4) and (..., v, 3, 3), as in
            `epipolar_mask_from_matrices`.
        pixels: (n, 3) positions (x, y, 1).
        near, far: depths along the query camera's axis that the rays are cut to, world units.
        queries: the views whose rays these are.
        radius: of a ball about the origin that the rays are cut to as well.

    Returns: three tensors (..., v_query, v_key, n, 3): signed distance across the line, and how
        far a point lies before the segment's start and behind its end (negative inside).
    """
    # The ends of a segment come from differences of nearly equal numbers: double, which MPS lacks.
    device = "cpu" if world_from_cam.device.type == "mps" else world_from_cam.device
    poses = world_from_cam.to(device, torch.float64)
    intrinsics = intrinsics.to(device, torch.float64)
    centers, directions = pixel_rays(
        poses[..., queries, :, :], intrinsics[..., queries, :, :], pixels.to(intrinsics)
    )
    rotations = poses[..., :3, :3].transpose(-1, -2)
    project = intrinsics @ rotations
    # Homogeneous image of center + depth * direction: at_zero + depth * per_depth.
    offsets = centers[..., :, None, :] - poses[..., None, :, :3, 3]
    at_zero = torch.einsum("...jkl,...ijl->...ijk", project, offsets)[..., None, :]
    per_depth = torch.einsum("...jkl,...inl->...ijnk", project, directions)
    at_zero = at_zero.expand_as(per_depth)
    first, last = (torch.full_like(directions[..., :1], depth) for depth in (near, far))
    if radius is not None:
        entry, exit_ = ball_depths(centers[..., None, :], directions, radius)
        first, last = torch.maximum(first, entry), torch.minimum(last, exit_)
    # Of a query's ray, the same in all views.
    first, last = (depth.unsqueeze(-3) for depth in (first, last))
    start, end, empty = _clip_to_front(at_zero, per_depth, first, last)

    # Direction of travel on the image plane; a weight (third entry) <= 0 is at infinity.
    travel = end[..., :2] * start[..., 2:] - start[..., :2] * end[..., 2:]
    length = travel.norm(dim=-1, keepdim=True)
    is_point = length < 1e-12
    unit = torch.where(is_point, travel.new_tensor([1.0, 0.0]), travel / length.clamp(min=1e-300))
    normal = torch.stack([-unit[..., 1], unit[..., 0]], dim=-1)

    def anchored(vector: Tensor, point: Tensor) -> Tensor:
        """(x, y, 1) -> vector · (position - point)."""
        weight = point[..., 2:]
        position = point[..., :2] / torch.where(weight == 0, torch.ones_like(weight), weight)
        return torch.cat([vector, -(vector * position).sum(-1, keepdim=True)], dim=-1)

    # A line is anchored at its end that is not at infinity; nothing lies behind infinity.
    never = travel.new_tensor([0.0, 0.0, -1.0])
    start_at_infinity, end_at_infinity = start[..., 2:] <= 0, end[..., 2:] <= 0
    anchor = torch.where(start_at_infinity, end, start)
    across = anchored(normal, anchor)
    before = torch.where(start_at_infinity, never, anchored(-unit, start))
    after = torch.where(end_at_infinity, never, anchored(unit, end))
    nowhere = travel.new_tensor([0.0, 0.0, 1e6])
    across, before, after = (
        torch.where(empty[..., None], nowhere, x).to(world_from_cam)
        for x in (across, before, after)
    )
    return across, before, after


def _clip_to_front(at_zero, per_depth, near, far) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of the part of a ray before the key camera, homogeneous, scaled to unit length.

    Also says where no part of it is, (...,) bool. An end on or behind the camera's plane stands for
    where the ray meets that plane, at infinity: its weight is not positive, and the direction from
    one end to the other is the same.
    """
    # Rounding leaves a weight of about 1e-17 where the camera plane is met; call that the plane.
    scale = (at_zero.norm(dim=-1) + per_depth.norm(dim=-1))[..., None]

    def cleaned(point: Tensor) -> Tensor:
        return torch.where(point.abs() < 1e-9 * scale, 0.0, point)

    at_near = cleaned(at_zero + near * per_depth)
    is_endless = far.isinf()
    at_end = at_zero + torch.where(is_endless, 0.0, far) * per_depth
    at_far = cleaned(torch.where(is_endless, per_depth, at_end))
    # A camera's own center has no image; the ray then starts where all of it projects.
    at_near = torch.where((at_near == 0).all(-1, keepdim=True), at_far, at_near)
    near_weight, far_weight = at_near[..., 2:], at_far[..., 2:]
    start, end = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300) for x in (at_near, at_far))
    is_behind = (near_weight <= 0) & (far_weight <= 0)
    return start, end, (is_behind | (far < near))[..., 0]
