"""Plain twins of fast code: slow, obvious, for comparison only."""

import torch
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.rays import pixel_grid, rays


def sampled_epipolar_mask(
    cameras: Cameras, height: int, width: int, band_width: float, radius: float = float("inf")
) -> Tensor:
    """The exact mask by walking along every ray: project many points, keep the cells near one."""
    small = cameras.resized(height, width).to(dtype=torch.float64)
    origins, directions = (
        x.flatten(1, 2) for x in rays(small.world_from_cam, small.intrinsics, height, width)
    )
    depths = torch.logspace(-4, 4, 3000, dtype=torch.float64)[:, None]
    cells = pixel_grid(height, width, small.intrinsics)[:, :2]
    num_cells = height * width
    mask = torch.zeros(len(cameras), num_cells, len(cameras), num_cells, dtype=torch.bool)
    for view in range(len(cameras)):
        for cell in range(num_cells):
            points = origins[view, cell] + depths * directions[view, cell]
            positions, depth = small.project(points)
            for other in range(len(cameras)):
                in_front = (depth[other] > 0) & (points.norm(dim=-1) <= radius)
                if other == view:
                    mask[view, cell, other] = True
                elif in_front.any():
                    distances = torch.cdist(positions[other][in_front], cells).min(dim=0).values
                    mask[view, cell, other] = distances <= band_width / 2
    return mask.reshape(len(cameras) * num_cells, -1)


def plain_multiview_attention(query, key, value, num_views, mask=None) -> Tensor:
    """`multiview_attention` one object, head and query at a time; arguments as there."""
    batch_views, heads, tokens, channels = query.shape
    output = torch.zeros_like(query)
    for first in range(0, batch_views, num_views):
        views = slice(first, first + num_views)
        for head in range(heads):
            q, k, v = (x[views, head].reshape(-1, channels) for x in (query, key, value))
            for row in range(num_views * tokens):
                scores = k @ q[row] / channels**0.5
                if mask is not None:
                    allowed = mask[first // num_views if len(mask) > 1 else 0, row]
                    scores = scores.masked_fill(~allowed, float("-inf"))
                view, token = divmod(row, tokens)
                output[first + view, head, token] = scores.softmax(dim=0) @ v
    return output
