"""The region of interest of a set of cameras: the ball that all of them look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spad.cameras import Cameras


@dataclass(frozen=True)
class Ball:
    """A ball in the world.

    Attributes:
        center: (3,) world.
        radius: world units.
    """

    center: Tensor
    radius: float


def object_ball(cameras: Cameras) -> Ball:
    """The ball that the cameras look at: about the point nearest to their optical axes, as large
    as half of them see whole. For orbits of this project's radius and field of view its radius is
    1.2 about the origin; other worlds may have any origin and scale.

    Where all axes are parallel the point nearest to the origin is taken.

    Raises: ValueError: the point lies behind a camera.
    """
    poses = cameras.world_from_cam.double()
    centers, forward = poses[:, :3, 3], poses[:, :3, 2]
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    normal = across.sum(0)
    # Parallel axes leave the depth of the point open.
    if len(cameras) > 1 and float(torch.linalg.eigvalsh(normal)[0]) > 1e-4 * len(cameras):
        center = torch.linalg.solve(normal, (across @ centers[:, :, None]).sum(0)[:, 0])
    else:
        # One view, or views from one side: as far off as the origin, if that lies before them.
        depth = -(centers * forward).sum(1, keepdim=True)
        center = (centers + torch.where(depth > 0, depth, 1.0) * forward).mean(0)
    depth = ((center - centers) * forward).sum(1)
    if (depth <= 0).any():
        view = int((depth <= 0).nonzero()[0])
        raise ValueError(
            f"expected cameras that look at one object, got camera {view} that looks away from "
            "where the others' axes meet"
        )
    half_side = min(cameras.height, cameras.width) / 2
    focal = torch.maximum(cameras.intrinsics[:, 0, 0], cameras.intrinsics[:, 1, 1]).double()
    radii = depth * half_side / torch.hypot(focal, torch.tensor(half_side).double())
    return Ball(center.float(), float(radii.median()))


def angles_between(cameras: Cameras) -> Tensor:
    """(v, v) degrees between the directions from the object's ball to the cameras."""
    towards = cameras.centers - object_ball(cameras).center
    towards = (towards / towards.norm(dim=1, keepdim=True)).double()
    cosine = (towards @ towards.T).clamp(-1, 1)
    return torch.rad2deg(torch.acos(cosine)).fill_diagonal_(0).float()
