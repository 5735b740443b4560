"""Laws of finding the view that disagrees."""

import pytest
import torch

from spad.cameras import Cameras
from spad.geometry.focus import object_ball
from spad.reconstruction.agreement import disagreeing_views
from spad.reconstruction.hull_field import cuts_off, outline_distance


def views_of_points(num_views: int, size: int = 64):
    """Masks and cameras of a lopsided thing: three balls, drawn as discs."""
    cameras = Cameras.orbit(
        20.0, [360 * view / num_views for view in range(num_views)], height=size, width=size
    )
    centers = torch.tensor([[0.0, 0.0, 0.4], [0.5, 0.1, -0.3], [-0.3, -0.5, -0.2]])
    xy, depth = cameras.project(centers)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    radius = 0.35 * cameras.intrinsics[0, 0, 0] / depth
    away = (torch.stack([x, y], -1) - xy[:, :, None, None]).norm(dim=-1)
    return (away < radius[..., None, None]).any(1).float(), cameras


def named(masks, cameras) -> list[int]:
    found = disagreeing_views(
        outline_distance(masks), cameras, cuts_off(masks), object_ball(cameras)
    )
    assert all(one.filled_without > one.filled_with for one in found)
    return [one.view for one in found]


@pytest.mark.parametrize("num_views", [4, 8, 13])
def test_views_that_agree_are_all_kept(num_views):
    assert named(*views_of_points(num_views)) == []


@pytest.mark.parametrize("wrong", [1, 3, 7])
def test_a_view_turned_round_is_named(wrong):
    masks, cameras = views_of_points(8)
    masks[wrong] = masks[wrong].flip(0)
    assert named(masks, cameras) == [wrong]


def test_two_wrong_views_are_named():
    masks, cameras = views_of_points(9)
    masks[2], masks[5] = masks[2].flip(0), masks[5].flip(0)
    assert sorted(named(masks, cameras)) == [2, 5]


def test_a_wrong_camera_is_named():
    masks, cameras = views_of_points(8)
    order = [0, 1, 2, 6, 4, 5, 6, 7]
    assert named(masks, cameras[order]) == [3]


def test_three_views_stay():
    masks = views_of_points(3)[0]
    masks[1] = masks[1].flip(0)
    assert named(masks, views_of_points(3)[1]) == []
