"""Bands on demand are the rows of the mask matrix."""

import math

import pytest
import torch

from spad.cameras import Cameras
from spad.geometry import epipolar_mask, pixel_bands
from spad.geometry.rays import pixel_grid


def mixed_cameras() -> Cameras:
    """One sees another's center, two share a place, one looks away."""
    around = Cameras.orbit([20, -5, 80], [0, 100, 250], height=24, width=36)
    inward = Cameras.look_at([[1.2, 0, 0.4]], [[3.0, 0, 1.0]], height=24, width=36)
    return Cameras.cat([around, inward, around[0]])


@pytest.mark.parametrize("depths", [(0.0, math.inf), (2.0, 4.0)])
def test_bands_are_rows_of_the_mask(depths):
    cameras, (h, w) = mixed_cameras(), (8, 12)
    grid = cameras.resized(h, w)
    mask = epipolar_mask(cameras, h, w, 3.0, *depths).reshape(5, h * w, 5, h, w)
    centers = pixel_grid(h, w, cameras.intrinsics)[:, :2]
    for view in range(5):
        bands = pixel_bands(grid, view, centers, *depths)
        for pixel in range(h * w):
            assert torch.equal(bands.masks(pixel, 3.0), mask[view, pixel])


def test_a_point_on_the_ray_lies_in_the_band_at_any_size():
    cameras = Cameras.ring(3, elevation_deg=15, height=70, width=50)
    xy, depth = torch.tensor([[12.25, 40.75]]), torch.linspace(2, 6, 9)
    ray = cameras[1].unproject(xy.expand(1, 9, 2), depth[None])[0]
    places, _ = cameras.project(ray)
    bands = pixel_bands(cameras, 1, xy)
    for sample in range(9):
        assert float(bands.distances_to(places[None, :, sample]).max()) < 1e-3


def test_distance_maps_agree_with_distances_of_points():
    cameras = mixed_cameras().resized(6, 9)
    bands = pixel_bands(cameras, 0, torch.tensor([[4.5, 2.5]]))
    maps = bands.distance_maps(0)
    point = torch.tensor([7.5, 4.5]).expand(1, 5, 2)
    torch.testing.assert_close(bands.distances_to(point)[0], maps[:, 4, 7])


def test_a_moved_world_changes_no_band():
    cameras = Cameras.ring(3, height=20, width=20)
    motion = Cameras.orbit(33, 72, radius=2).world_from_cam[0]
    xy = torch.tensor([[3.5, 8.5]])
    before = pixel_bands(cameras, 0, xy).distance_maps(0)
    after = pixel_bands(cameras.transformed(motion), 0, xy).distance_maps(0)
    torch.testing.assert_close(before, after, atol=1e-3, rtol=1e-3)


def test_grids_keep_the_shape_of_the_picture():
    grid = Cameras.orbit(0, 0, height=96, width=128).fit(32)
    assert (grid.height, grid.width) == (24, 32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda c: pixel_bands(c, 5, torch.ones(1, 2)), "expected a view from 0 to 4, got 5"),
        (lambda c: pixel_bands(c, 0, torch.ones(1, 2), 2.0, 1.0), "expected 0 <= near < far"),
        (lambda c: pixel_bands(c, 0, torch.ones(2)), r"expected positions of shape \(n, 2\)"),
    ],
)
def test_what_bands_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call(mixed_cameras())
