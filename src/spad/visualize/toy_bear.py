"""A toy bear for cameras that come without images: its views and their exact depth, in torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.rays import depth_rays

_FUR, _DARK, _CREAM = (0.72, 0.46, 0.24), (0.16, 0.11, 0.09), (0.95, 0.84, 0.66)
_RED, _BLUE, _GREEN = (0.85, 0.18, 0.16), (0.16, 0.42, 0.80), (0.20, 0.60, 0.30)

# Ellipsoids: center, radii, color. It looks along -y, as all our objects do; the paws and the
# button differ in color, so that no view can be taken for another.
_PARTS = (
    ((0.00, 0.00, -0.28), (0.40, 0.33, 0.46), _FUR),
    ((0.00, -0.12, -0.30), (0.29, 0.25, 0.34), _CREAM),
    ((0.00, 0.00, 0.14), (0.29, 0.27, 0.09), _RED),
    ((0.13, -0.27, 0.02), (0.08, 0.05, 0.16), _RED),
    ((0.00, 0.00, 0.46), (0.35, 0.32, 0.32), _FUR),
    ((0.00, -0.27, 0.37), (0.16, 0.14, 0.12), _CREAM),
    ((0.00, -0.40, 0.42), (0.06, 0.04, 0.045), _DARK),
    ((-0.14, -0.28, 0.54), (0.045, 0.04, 0.05), _DARK),
    ((0.14, -0.28, 0.54), (0.045, 0.04, 0.05), _DARK),
    ((-0.27, 0.02, 0.74), (0.13, 0.08, 0.13), _FUR),
    ((0.27, 0.02, 0.74), (0.13, 0.08, 0.13), _FUR),
    ((-0.27, -0.04, 0.74), (0.08, 0.05, 0.08), _CREAM),
    ((0.27, -0.04, 0.74), (0.08, 0.05, 0.08), _CREAM),
    ((-0.44, -0.10, -0.10), (0.13, 0.15, 0.24), _FUR),
    ((0.44, -0.10, -0.10), (0.13, 0.15, 0.24), _FUR),
    ((-0.46, -0.18, -0.30), (0.10, 0.10, 0.10), _BLUE),
    ((0.46, -0.18, -0.30), (0.10, 0.10, 0.10), _GREEN),
    ((-0.24, -0.26, -0.70), (0.17, 0.24, 0.15), _FUR),
    ((0.24, -0.26, -0.70), (0.17, 0.24, 0.15), _FUR),
    ((-0.24, -0.48, -0.69), (0.11, 0.05, 0.10), _CREAM),
    ((0.24, -0.48, -0.69), (0.11, 0.05, 0.10), _CREAM),
    ((0.00, 0.34, -0.52), (0.11, 0.11, 0.11), _CREAM),
)
_LIGHT = (-0.45, -0.65, 0.75)


def render_stand_in(cameras: Cameras, samples_per_side: int = 2) -> tuple[np.ndarray, Tensor]:
    """Images of the bear on white, uint8 (v, h, w, 3), and its z-depth at pixel centers.

    The depth (v, h, w), in world units, is infinite where there is no bear.
    """
    height, width, samples = cameras.height, cameras.width, samples_per_side
    fine = cameras.resized(height * samples, width * samples)
    images = []
    for view in range(len(cameras)):
        _, colors = _cast(fine[view])
        linear = colors.reshape(height, samples, width, samples, 3).mean((1, 3))
        images.append((linear.clamp(0, 1) ** (1 / 2.2) * 255).round().to(torch.uint8).numpy())
    depth = torch.stack([_cast(cameras[view])[0] for view in range(len(cameras))])
    return np.stack(images), depth


def _cast(camera: Cameras) -> tuple[Tensor, Tensor]:
    """Depth (h, w) and linear color (h, w, 3) of one view, one ray a pixel."""
    center, directions = depth_rays(
        camera.world_from_cam[0], camera.intrinsics[0], camera.height, camera.width
    )
    depth = torch.full((len(directions),), torch.inf)
    colors = torch.ones(len(directions), 3)
    light = torch.nn.functional.normalize(torch.tensor(_LIGHT), dim=0)
    for middle, radii, color in _PARTS:
        middle, radii = torch.tensor(middle), torch.tensor(radii)
        # In a space where the ellipsoid is the unit sphere; the ray's parameter stays the depth.
        start, way = (center - middle) / radii, directions / radii
        a, half_b, c = way.square().sum(1), way @ start, start.square().sum() - 1
        root = half_b.square() - a * c
        hit = (root > 0).nonzero()[:, 0]
        at = (-half_b[hit] - root[hit].sqrt()) / a[hit]
        closer = (at > 0) & (at < depth[hit])
        hit, at = hit[closer], at[closer]
        normal = torch.nn.functional.normalize((start + at[:, None] * way[hit]) / radii, dim=1)
        shade = 0.42 + 0.58 * ((normal @ light + 0.4) / 1.4).clamp(min=0)
        depth[hit] = at
        colors[hit] = shade[:, None] * torch.tensor(color) ** 2.2
    return depth.reshape(camera.height, camera.width), colors.reshape(
        camera.height, camera.width, 3
    )
