"""The released model's epipolar masks: quantized lines, as its weights were trained with.

Use these with weights trained on them; `spad.geometry.epipolar` has the masks that are right at
every resolution. They differ in three ways: a line is drawn between the pixels where it enters and
leaves the image, also where the ray is behind the camera; it is widened by moving its two ends;
and coarser layers read the mask of the finest one by token number, not by place.
"""

import torch
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.rays import depth_rays, scale_intrinsics

# The side in tokens at which the release draws its masks.
RELEASE_SIZE = 32


def released_mask_from_matrices(
    world_from_cam: Tensor, intrinsics: Tensor, size: int = RELEASE_SIZE, dilate: bool = True
) -> Tensor:
    """Epipolar attention mask over the tokens of all views, computed as the release does.

    Args:
        world_from_cam: (..., v, 4, 4), OpenCV camera axes.
        intrinsics: (..., v, 3, 3) in units of the cells of a size x size grid.
        dilate: draw each line nine times, its ends moved by up to one cell each way.

    Returns: bool (..., v * size^2, v * size^2); rows are queries, columns keys. A token sees its
        whole own view. A row of another view is empty where the line misses the image, where
        both ends fall on cell (0, 0), and where the two centers coincide or one lies on the
        other's camera plane, for which the release is undefined.

    Source: SPAD's release, `geometry.py`, without its line cache.
    """
    ends = line_ends(world_from_cam, intrinsics, size)
    cells = (ends - 0.5).long()
    numbers = cells[..., 1] * size + cells[..., 0]
    codes = numbers[..., 0] * size**2 + numbers[..., 1]
    # Pixels on one epipolar plane share a line. Ordered as rows of the mask: query, cell, key.
    codes, line_of_row = codes.transpose(-1, -2).unique(return_inverse=True)
    starts, stops = codes // size**2, codes % size**2
    pixels = torch.stack([starts, stops], dim=-1)
    lines = _draw_lines(torch.stack([pixels % size, pixels // size], dim=-1), size, dilate)
    # Ends that were never set read (0, 0), so the release takes such a line for a missing one.
    lines[codes == 0] = False
    # Eight cells at a time where they fit: rows of bytes are gathered ten times slower.
    word = torch.bool if size**2 % 8 else torch.int64
    mask = lines.view(word).index_select(0, line_of_row.flatten()).view(torch.bool)
    mask = mask.view(*line_of_row.shape, size**2)
    mask.diagonal(dim1=-4, dim2=-2).fill_(True)
    return mask.flatten(-2).flatten(-3, -2)


def released_mask(cameras: Cameras, size: int = RELEASE_SIZE, dilate: bool = True) -> Tensor:
    """`released_mask_from_matrices` of `cameras` on a size x size grid over their images.

    Raises: ValueError: the images are not square, which the release never draws.
    """
    if cameras.height != cameras.width:
        raise ValueError(
            f"expected square images for original masks, got {cameras.height}x{cameras.width}; "
            "try exact masks"
        )
    intrinsics = scale_intrinsics(cameras.intrinsics, (cameras.height, cameras.width), (size, size))
    return released_mask_from_matrices(cameras.world_from_cam, intrinsics, size, dilate)


def flat_resize(mask: Tensor, num_views: int, tokens: int) -> Tensor:
    """A mask (..., v * m, v * m) for layers of fewer tokens per view, as the release resizes it.

    Every (m / tokens)-th row and column is kept. Token numbers run row by row, so a token of the
    coarser layer reads the mask of a place that is mostly not its own: 16 x 16 tokens, number 1,
    that of row 0, column 4 of 32 x 32. The released weights were trained with this.
    """
    step, rest = divmod(mask.shape[-1] // num_views, tokens)
    if rest:
        raise ValueError(f"expected tokens that divide {mask.shape[-1] // num_views}, got {tokens}")
    return mask[..., ::step, ::step]


def line_ends(world_from_cam: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    """Where every pixel's epipolar line meets the border of every image.

    Args: as for `released_mask_from_matrices`.

    Returns: (..., v_query, v_key, size^2, 2, 2), two points (x, y) in cells, in the order top,
        bottom, right, left. Where the query's center projects into the image, the line is cut
        there, and that point is the second. Zero where the line misses the image.
    """
    device = "cpu" if world_from_cam.device.type == "mps" else world_from_cam.device
    poses, intrinsics = (x.to(device, torch.float64) for x in (world_from_cam, intrinsics))
    centers, directions = depth_rays(poses, intrinsics, size, size)
    project = intrinsics @ poses[..., :3, :3].transpose(-1, -2)
    offsets = centers[..., :, None, :] - centers[..., None, :, :]
    epipole = torch.einsum("...jkl,...ijl->...ijk", project, offsets)[..., None, :]
    far_point = torch.einsum("...jkl,...inl->...ijnk", project, directions)
    epipole = epipole.expand_as(far_point)
    a, b, c = torch.linalg.cross(epipole, far_point, dim=-1).unbind(-1)

    # In the release's order; x and y apart, for that halves the work of picking.
    zero, full = torch.zeros_like(a), torch.full_like(a, size)
    borders = [
        (-c / a, zero),
        (-(b * size + c) / a, full),
        (full, -(a * size + c) / b),
        (zero, -c / b),
    ]
    hits = [(x >= 0) & (x <= size) & (y >= 0) & (y <= size) for x, y in borders]
    first, second = (zero, zero), (zero, zero)
    for (x, y), hit in zip(borders, hits, strict=True):
        second = (torch.where(hit, x, second[0]), torch.where(hit, y, second[1]))
    for (x, y), hit in zip(reversed(borders), reversed(hits), strict=True):
        first = (torch.where(hit, x, first[0]), torch.where(hit, y, first[1]))
    is_seen = sum(hit.to(torch.int8) for hit in hits) > 1

    # From an epipole inside the image the line runs one way only, that of the ray.
    start_x, start_y = epipole[..., 0] / epipole[..., 2], epipole[..., 1] / epipole[..., 2]
    starts_inside = (start_x >= 0) & (start_x <= size) & (start_y >= 0) & (start_y <= size)
    travel = far_point[..., :2] * epipole[..., 2:] - epipole[..., :2] * far_point[..., 2:]
    gap_x, gap_y = second[0] - first[0], second[1] - first[1]
    is_second = starts_inside & (gap_x * travel[..., 0] + gap_y * travel[..., 1] > 0)
    first = [torch.where(is_second, y, x) for x, y in zip(first, second, strict=True)]
    start = (start_x, start_y)
    second = [torch.where(starts_inside, x, y) for x, y in zip(start, second, strict=True)]
    ends = torch.stack([torch.stack(first, dim=-1), torch.stack(second, dim=-1)], dim=-2)
    return torch.where((is_seen | starts_inside)[..., None, None], ends, 0.0)


def _draw_lines(ends: Tensor, size: int, dilate: bool) -> Tensor:
    """Bresenham lines between pairs of cells (n, 2, 2), as (x, y): bool (n, size * size)."""
    shifts = torch.arange(-1, 2) if dilate else torch.zeros(1, dtype=torch.long)
    shifts = torch.cartesian_prod(shifts, shifts).to(ends.device)
    # (n, shift, 1, xy)
    start, stop = ((ends[:, None, end] + shifts).clamp(0, size - 1)[:, :, None] for end in range(2))
    length = (stop - start).abs()
    longer = length.amax(dim=-1, keepdim=True)
    step = torch.arange(size, device=ends.device)[:, None].minimum(longer)
    # Division of integers is slow; of numbers this small, that of floats rounds no quotient up.
    moved = ((2 * length * step + longer) / (2 * longer).clamp(min=1)).long()
    cells = start + (stop - start).sign() * moved
    numbers = (cells[..., 1] * size + cells[..., 0]).flatten(1)
    drawn = torch.zeros(len(ends), size**2, dtype=torch.bool, device=ends.device)
    return drawn.scatter_(1, numbers, True)
