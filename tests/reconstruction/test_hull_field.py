"""Laws of the distance to a visual hull."""

import numpy as np
import pytest
import torch

from spad.cameras import Cameras
from spad.geometry.focus import object_ball
from spad.reconstruction.hull_field import (
    REACH,
    cuts_off,
    hull_distance,
    missed_parts,
    outline_distance,
)


def disc(size: int, x: float, y: float, radius: float, finer: int = 8) -> torch.Tensor:
    """(size, size) share of each pixel that a disc covers."""
    line = (torch.arange(size * finer) + 0.5) / finer
    inside = ((line[None] - x) ** 2 + (line[:, None] - y) ** 2).sqrt() < radius
    return torch.nn.functional.avg_pool2d(inside.float()[None], finer)[0]


def ball_views(num_views: int = 6, size: int = 64, radius: float = 0.6):
    """Masks and cameras of a ball at the origin."""
    azimuth = [360 * view / num_views for view in range(num_views)]
    cameras = Cameras.orbit(20.0, azimuth, height=size, width=size)
    # A ball's outline is a circle where the camera looks straight at its middle.
    distance, focal = float(cameras.radius[0]), float(cameras.intrinsics[0, 0, 0])
    in_pixels = focal * radius / (distance**2 - radius**2) ** 0.5
    return disc(size, size / 2, size / 2, in_pixels).repeat(num_views, 1, 1), cameras


def test_outlines_are_found_finer_than_a_pixel():
    masks = torch.stack([disc(48, 24.3, 23.6, radius) for radius in (7.0, 7.5, 12.2)])
    found = outline_distance(masks)
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    from_center = ((x - 24.3) ** 2 + (y - 23.6) ** 2).sqrt()
    true = torch.stack([from_center - radius for radius in (7.0, 7.5, 12.2)])
    near = true.abs() < 5
    assert float((found - true)[near].abs().max()) < 0.45
    assert float((found - true)[near].abs().mean()) < 0.12


def test_far_from_an_outline_only_the_side_is_told():
    found = outline_distance(disc(64, 32, 32, 20)[None])[0]
    assert float(found[0, 0]) == REACH
    assert float(found[32, 32]) == -REACH
    nothing = outline_distance(torch.zeros(1, 16, 16))
    assert (nothing > 0).all()


def test_a_mask_at_the_border_is_cut_off():
    masks = torch.stack([disc(32, 16, 16, 9), disc(32, 2, 16, 9)])
    assert cuts_off(masks) == [False, True]


def test_the_hull_holds_the_object_and_is_no_farther_than_it():
    masks, cameras = ball_views()
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform(-1, 1, (4000, 3))).float()
    found = hull_distance(points, outline_distance(masks), cameras, cuts_off(masks))
    # Deeper inside than ten pixels, the depth is not told.
    true = (points.norm(dim=1) - 0.6).clamp(min=-0.35)
    pixel = 3.5 / float(cameras.intrinsics[0, 0, 0])
    # Lengths are taken across the optical axis, which is a little more than across the ray.
    assert (found < torch.where(true > 0, 1.1, 0.9) * true + pixel).all()
    assert (found[true < -pixel] < 0).all()


def test_points_beyond_a_picture_are_outside_unless_it_cuts_the_object_off():
    mask = torch.zeros(1, 32, 32)
    mask[:, :, 20:] = 1
    camera = Cameras.orbit(0.0, 0.0, height=32, width=32)
    beyond = camera.unproject(torch.tensor([[[40.0, 16.0]]]), torch.tensor([[3.5]]))[0]
    outlines = outline_distance(mask)
    assert float(hull_distance(beyond, outlines, camera, [False])) > 0
    assert float(hull_distance(beyond, outlines, camera, [True])) < 0


def test_nothing_behind_a_camera_is_of_the_object():
    camera = Cameras.orbit(0.0, 0.0, height=16, width=16)
    behind = torch.tensor([[10.0, 0.0, 0.0]])
    outlines = outline_distance(torch.ones(1, 16, 16))
    assert float(hull_distance(behind, outlines, camera, [True])) == torch.inf


def two_balls(num_views: int = 8, size: int = 64) -> tuple[torch.Tensor, Cameras, torch.Tensor]:
    """Masks of each of two balls (2, v, h, w), drawn as discs, cameras and their centers (2, 3)."""
    azimuth = [360 * view / num_views for view in range(num_views)]
    cameras = Cameras.orbit(20.0, azimuth, height=size, width=size)
    centers = torch.tensor([[0.0, 0.0, -0.3], [0.0, 0.0, 0.5]])
    xy, depth = cameras.project(centers)
    radius = 0.25 * cameras.intrinsics[0, 0, 0] / depth
    discs = [
        torch.stack(
            [disc(size, *xy[view, i].tolist(), float(radius[view, i])) for view in range(8)]
        )
        for i in range(2)
    ]
    return torch.stack(discs), cameras, centers


def hull_with_missed(masks: torch.Tensor, cameras: Cameras, points: torch.Tensor) -> torch.Tensor:
    outlines, cut_off = outline_distance(masks), cuts_off(masks)
    missed = missed_parts(outlines, cameras, cut_off, object_ball(cameras))
    return hull_distance(points, outlines, cameras, cut_off, missed=missed)


def test_views_that_agree_miss_nothing():
    discs, cameras, _ = two_balls()
    masks = discs.amax(0)
    outlines, cut_off = outline_distance(masks), cuts_off(masks)
    assert missed_parts(outlines, cameras, cut_off, object_ball(cameras)) is None


@pytest.mark.parametrize("missing", [[3], [3, 7]])
def test_what_one_view_or_two_miss_stays_in_the_hull(missing):
    discs, cameras, centers = two_balls()
    masks = discs.amax(0)
    masks[missing] = discs[0, missing]
    plain = hull_distance(centers, outline_distance(masks), cameras, cuts_off(masks))
    assert plain[0] < -0.15
    assert plain[1] > 0
    assert (hull_with_missed(masks, cameras, centers) < -0.15).all()
    # The rest of the hull is as it was.
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    below = points[points[:, 2] < 0]
    plain = hull_distance(below, outline_distance(masks), cameras, cuts_off(masks))
    assert torch.equal(hull_with_missed(masks, cameras, below), plain)


def test_what_three_views_of_eight_miss_is_not_in_the_hull():
    discs, cameras, centers = two_balls()
    masks = discs.amax(0)
    masks[[0, 3, 6]] = discs[0, [0, 3, 6]]
    assert float(hull_with_missed(masks, cameras, centers)[1]) > 0


def test_what_one_view_alone_shows_is_not_in_the_hull():
    discs, cameras, centers = two_balls()
    masks = discs[0].clone()
    masks[3] = discs[:, 3].amax(0)
    assert float(hull_with_missed(masks, cameras, centers)[1]) > 0
