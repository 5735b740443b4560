"""Images of Gaussian splats: in plain torch, or by gsplat where it is installed and CUDA is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras

# Added to the variance of every splat in an image, in pixels², as Kerbl et al. do.
_BLUR = 0.3
# Standard deviations that a splat reaches.
_REACH = 3.0
_LEAST_ALPHA, _MOST_ALPHA = 1 / 255, 0.999
_NEAREST = 1e-3


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Gaussian splats, world frame.

    Attributes:
        means: (n, 3).
        log_scales: (n, 3) natural logarithms of standard deviations along their own axes.
        quaternions: (n, 4) w first, of any length.
        opacity_logits: (n,).
        colors: (n, 3) sRGB, the same from all sides.
    """

    means: Tensor
    log_scales: Tensor
    quaternions: Tensor
    opacity_logits: Tensor
    colors: Tensor

    def tensors(self) -> list[Tensor]:
        """The five, in order."""
        return [
            self.means,
            self.log_scales,
            self.quaternions,
            self.opacity_logits,
            self.colors,
        ]

    def to(self, device: torch.device) -> Gaussians:
        return Gaussians(*(tensor.to(device) for tensor in self.tensors()))

    def covariances(self) -> Tensor:
        """(n, 3, 3)."""
        w, x, y, z = F.normalize(self.quaternions, dim=1).unbind(1)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        rotations = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
        spread = rotations * self.log_scales.exp()[:, None]
        return spread @ spread.mT


def draw_gaussians(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """Images (v, 4, h, w): color premultiplied by alpha, and alpha; differentiable.

    Source: Kerbl et al. 2023, section 4, with colors of degree 0.
    """
    if gaussians.means.is_cuda and find_spec("gsplat") is not None:
        return _by_gsplat(gaussians, cameras)
    return torch.stack([_draw(gaussians, cameras[view]) for view in range(len(cameras))])


def _draw(gaussians: Gaussians, camera: Cameras) -> Tensor:
    """One image (4, h, w). Every splat is spread over the pixels that it reaches, the pairs are
    sorted by pixel and depth, and composited."""
    height, width = camera.height, camera.width
    cam_from_world = camera.cam_from_world[0]
    x, y, z = (gaussians.means @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]).unbind(1)
    z = z.clamp(min=_NEAREST)
    intrinsics = camera.intrinsics[0]
    fx, fy = intrinsics[0, 0], intrinsics[1, 1]
    zero = torch.zeros_like(z)
    # How the image moves with the point, to first order.
    jacobian = torch.stack(
        [
            torch.stack([fx / z, zero, -fx * x / z**2], dim=1),
            torch.stack([zero, fy / z, -fy * y / z**2], dim=1),
        ],
        dim=1,
    )
    turned = jacobian @ cam_from_world[:3, :3]
    covariance = turned @ gaussians.covariances() @ turned.mT
    a = covariance[:, 0, 0] + _BLUR
    b = covariance[:, 0, 1]
    c = covariance[:, 1, 1] + _BLUR
    determinant = (a * c - b * b).clamp(min=1e-9)
    center = torch.stack([fx * x / z + intrinsics[0, 2], fy * y / z + intrinsics[1, 2]], dim=1)
    with torch.no_grad():
        reach = _REACH * torch.stack([a, c], dim=1).sqrt()
        limit = center.new_tensor([width, height])
        low = (center - reach).floor().clamp(min=0)
        high = torch.minimum((center + reach).ceil(), limit)
        sides = (high - low).clamp(min=0).long() * (z > _NEAREST)[:, None]
        counts = sides.prod(1)
        splat = torch.repeat_interleave(torch.arange(len(z), device=z.device), counts)
        number = torch.arange(len(splat), device=z.device) - (counts.cumsum(0) - counts)[splat]
        row = low[splat, 1].long() + number // sides[splat, 0]
        column = low[splat, 0].long() + number % sides[splat, 0]
        by_depth = z[splat].argsort()
        pixel = (row * width + column)[by_depth]
        order = by_depth[pixel.argsort(stable=True)]
        splat, row, column = splat[order], row[order], column[order]
        pixel = row * width + column
    # Pixel centers are half a pixel from the corner.
    dx = column + 0.5 - center[splat, 0]
    dy = row + 0.5 - center[splat, 1]
    power = c[splat] * dx * dx - 2 * b[splat] * dx * dy + a[splat] * dy * dy
    falloff = torch.exp(-0.5 * power / determinant[splat])
    alpha = (torch.sigmoid(gaussians.opacity_logits)[splat] * falloff).clamp(max=_MOST_ALPHA)
    alpha = torch.where(alpha < _LEAST_ALPHA, 0.0, alpha)
    # What passes the splats before, by sums of logarithms in each pixel's run; over an image these
    # are too long for float32.
    passed = torch.log1p(-alpha).double()
    until = passed.cumsum(0) - passed
    is_first = torch.ones_like(pixel, dtype=torch.bool)
    is_first[1:] = pixel[1:] != pixel[:-1]
    starts = is_first.nonzero()[:, 0]
    before = until - until[starts[is_first.cumsum(0) - 1]]
    weight = before.exp().float() * alpha
    layers = torch.cat([gaussians.colors, torch.ones_like(z)[:, None]], dim=1)
    total = torch.zeros(height * width, 4, device=z.device)
    total = total.index_add(0, pixel, weight[:, None] * layers[splat])
    return total.T.reshape(4, height, width)


def _by_gsplat(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    color, alpha, _ = rasterization(
        gaussians.means,
        F.normalize(gaussians.quaternions, dim=1),
        gaussians.log_scales.exp(),
        torch.sigmoid(gaussians.opacity_logits),
        gaussians.colors,
        cameras.cam_from_world,
        cameras.intrinsics,
        cameras.width,
        cameras.height,
        eps2d=_BLUR,
    )
    return torch.cat([color, alpha], dim=-1).movedim(-1, 1)
