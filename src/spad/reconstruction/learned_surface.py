"""A surface from posed images in one pass: a network that lifts what views show into a volume."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from spad.cameras import Cameras
from spad.geometry.focus import Ball
from spad.hub.loading import load_exactly
from spad.reconstruction.hull_field import REACH, cuts_off, hull_distance, outline_distance
from spad.reconstruction.surface import DistanceGrid, box_of_hull, grid_over
from spad.reconstruction.volume_rendering import Grid

_FAR = 6.0
# Red, green, blue, alpha, distance to the outline.
_LAYERS = 5


class SurfaceNetwork(ModelMixin, ConfigMixin):
    """Predicts a signed-distance grid with colors from any number of posed views.

    A small network makes features of each view. Where a point of the grid projects to, these are
    read; their mean and their spread over the views, the mean color, and the distance to the visual
    hull go through a U-Net over the volume. It says how far the surface lies from the hull, and how
    far colors are from the mean ones, so an untrained one gives the hull. The order of views does
    not matter.

    Args:
        view_channels: features of a pixel.
        channels: of the volume at full and at half resolution.

    Source: features of views lifted into a volume are those of MVSNet (Yao et al. 2018) and of
        SparseNeuS (Long et al. 2022).
    """

    @register_to_config
    def __init__(self, view_channels: int = 12, channels: tuple[int, int] = (24, 48)):
        super().__init__()
        full, half = channels
        self.view_layers = nn.Sequential(
            nn.Conv2d(_LAYERS, 2 * view_channels, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * view_channels, 2 * view_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * view_channels, view_channels, 3, padding=1),
        )
        # Mean and spread of features and of colors, the hull, and the number of views.
        self.first = _volume_layers(2 * (view_channels + 3) + 2, full)
        self.down = nn.Conv3d(full, half, 2, stride=2)
        self.deep = nn.Sequential(_volume_layers(half, half), _volume_layers(half, half))
        self.up = nn.ConvTranspose3d(half, full, 2, stride=2)
        self.last = _volume_layers(2 * full, full)
        self.out = nn.Conv3d(full, 4, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor, alpha: Tensor, cameras: Cameras, grid: Grid) -> DistanceGrid:
        """The surface at the points of a grid.

        Args:
            images: (v, 3, h, w) sRGB in [0, 1], premultiplied by alpha.
            alpha: (v, h, w).
            cameras: v.
        """
        outlines, points = outline_distance(alpha), grid.points()
        hull = hull_distance(points, outlines, cameras, cuts_off(alpha))
        hull = (hull / grid.cell).clamp(-_FAR, _FAR)
        layers = torch.cat([images, alpha[:, None], outlines[:, None] / REACH], dim=1)
        features = self.view_layers(layers)
        places = _places(points, cameras)
        read = [
            F.grid_sample(one, places, padding_mode="border", align_corners=False)[:, :, 0]
            for one in (features, images)
        ]
        values = torch.cat(read, dim=1)
        mean = values.mean(0)
        # The root has no derivative at zero.
        spread = (values.var(0, unbiased=False) + 1e-6).sqrt()
        count = torch.full_like(hull, 1 / len(cameras))
        volume = torch.cat([mean, spread, hull[None] / _FAR, count[None]])
        change = self._over_volume(grid.volume(volume)[None])[0].flatten(1)
        color = mean[-3:] + change[1:]
        return DistanceGrid(grid, hull + change[0], color.T, hull)

    def _over_volume(self, volume: Tensor) -> Tensor:
        """(1, c, z, y, x) -> (1, 4, z, y, x)."""
        size = volume.shape[-3:]
        padded = F.pad(volume, [n for side in reversed(size) for n in (0, side % 2)])
        full = self.first(padded)
        deep = self.deep(F.silu(self.down(full)))
        result = self.out(self.last(torch.cat([full, self.up(deep)], dim=1)))
        return result[..., : size[0], : size[1], : size[2]]


def load_network(folder: Path) -> SurfaceNetwork:
    """The network of a folder that `spad train-reconstructor` wrote, on the CPU.

    Raises: ValueError: it holds none, or a damaged one.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"expected a network of spad train-reconstructor in {folder}, got no config.json; its "
            "run folder has it in model/"
        )
    try:
        return load_exactly(SurfaceNetwork, folder, use_safetensors=True).eval()
    except ValueError as error:
        raise ValueError(f"expected the network in {folder} to be whole, but it {error}") from error


def _volume_layers(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.SiLU())


def _places(points: Tensor, cameras: Cameras) -> Tensor:
    """Image positions (v, 1, n, 2) of points (n, 3), in the coordinates of `grid_sample`."""
    xy, _ = cameras.project(points)
    size = points.new_tensor([cameras.width, cameras.height])
    return (xy / size * 2 - 1).nan_to_num(nan=-2.0).clamp(-2, 2)[:, None]


def volume_of_views(alpha: Tensor, cameras: Cameras, ball: Ball, cells: int) -> Grid:
    """A grid over the visual hull of masks (v, h, w), `cells` points along its longest side.

    Raises: ValueError: the masks agree on nothing.
    """
    box = box_of_hull(outline_distance(alpha), cameras, cuts_off(alpha), ball)
    if box is None:
        raise ValueError("expected views of one object, got masks that no point agrees with")
    return grid_over(*box, cells)


@torch.no_grad()
def predict_surface(
    network: SurfaceNetwork,
    images: Tensor,
    alpha: Tensor,
    cameras: Cameras,
    ball: Ball,
    cells: int | None = None,
) -> DistanceGrid:
    """As `fit_surface`, by a network in one pass.

    Args:
        cells: of the grid, along the longest side; 64 if None.

    Raises: ValueError: the masks agree on nothing.
    """
    grid = volume_of_views(alpha, cameras, ball, cells or 64)
    nn.Module.to(network, images.device)
    return network(images, alpha, cameras, grid)
