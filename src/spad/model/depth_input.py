"""Depth maps as an input of a MultiViewUNet: the shape of the object is given, its look drawn."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spad.cameras import Cameras

LARGEST_PATCH = 64
# Nearness of the origin, and how much it changes over a world unit: 0.2 to 1 in the unit ball.
_AT_ORIGIN, _PER_UNIT = 0.6, 0.4


def nearness(depth: Tensor, cameras: Cameras) -> Tensor:
    """How near to its camera each pixel's surface is: 0.2 to 1 inside the unit ball, 0 for none.

    Args:
        depth: (v, h, w) z-depth in world units, 0 or infinity where nothing is visible.

    Returns: (v, h, w), 0.6 at the depth of the origin, 0.4 more for each unit nearer.
    """
    of_origin = cameras.cam_from_world[:, 2, 3].to(depth)[:, None, None]
    near = _AT_ORIGIN + _PER_UNIT * (of_origin - depth)
    return torch.where((depth > 0) & depth.isfinite(), near, 0.0)


class DepthProjection(nn.Module):
    """A learned linear function of the depth behind each latent and its neighbors, zero at the
    start.

    Args:
        patch: pixels along the side of the image area behind a latent.
        channels: of the features that the summand joins.
    """

    def __init__(self, patch: int, channels: int):
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(patch**2, channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, near: Tensor) -> Tensor:
        """`nearness` (b, v, patch * h, patch * w) -> summand (b, v, c, h, w)."""
        cells = F.pixel_unshuffle(near.flatten(0, 1)[:, None].to(self.conv.weight), self.patch)
        return self.conv(cells).unflatten(0, near.shape[:2])


class ConvInWithSummand(nn.Conv2d):
    """The first convolution of a UNet, which adds further channels of its input to its output.

    diffusers hands nothing but the sample to it. Without further channels it is the plain one, and
    its weights have the same names.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(n, in_channels, h, w), or (n, in_channels + out_channels, h, w) -> (n, out_channels,
        h, w)."""
        latents, summand = input[:, : self.in_channels], input[:, self.in_channels :]
        output = super().forward(latents)
        return output + summand if summand.shape[1] else output
