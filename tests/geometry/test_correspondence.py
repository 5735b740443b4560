"""True corresponding points from depth, and the cameras they expose."""

import math
from dataclasses import replace

import pytest
import torch

from spad.cameras import Cameras
from spad.geometry import epipolar_mask
from spad.geometry.correspondence import (
    FOUND,
    HIDDEN,
    MISSING,
    OUTSIDE,
    agreement_table,
    corresponding_points,
    pair_table,
    suspect_views,
    twin_views,
    views_at_origin,
)
from spad.visualize.toy_bear import render_stand_in

# The bear faces azimuth -90: six views round it, two of them from above.
CAMERAS = Cameras.orbit([10, 20, 10, 35, 5, 50], [-90, -40, 20, 80, 140, -140], height=96, width=96)


@pytest.fixture(scope="module")
def depth() -> torch.Tensor:
    return render_stand_in(CAMERAS, samples_per_side=1)[1]


def moved(view: int, pose: torch.Tensor) -> Cameras:
    """The cameras with a wrong pose written for one view."""
    poses = CAMERAS.world_from_cam.clone()
    poses[view] = pose
    return replace(CAMERAS, world_from_cam=poses)


def test_a_surface_point_is_found_where_it_is(depth):
    pixels = depth[0].isfinite().nonzero()[::37].flip(-1) + 0.5
    true = corresponding_points(CAMERAS, depth, 0, pixels)
    torch.testing.assert_close(true.xy[:, 0], pixels, atol=1e-3, rtol=0)
    assert (true.state[:, 0] == FOUND).all()
    # In any view a point is on the surface or behind it, but at silhouettes never before it.
    assert (true.state == MISSING).float().mean() < 0.01
    assert (true.state == HIDDEN).any() and (true.state[:, 1] == FOUND).any()


def test_pixels_without_surface_and_points_off_the_picture_are_outside(depth):
    assert not depth[0, 0, 0].isfinite()
    nothing = corresponding_points(CAMERAS, depth, 0, torch.tensor([[0.5, 0.5]]))
    assert (nothing.state == OUTSIDE).all()
    away = moved(3, Cameras.look_at([0.0, -3.5, 0.6], [0.0, -9.0, 0.6]).world_from_cam[0])
    pixel = torch.tensor([[48.5, 48.5]])
    assert corresponding_points(away, depth, 0, pixel).state[0, 3] == OUTSIDE


def test_a_surface_is_missing_where_the_depth_map_sees_past_it(depth):
    emptied = depth.clone()
    emptied[1] = torch.inf
    true = corresponding_points(CAMERAS, emptied, 0, torch.tensor([[48.5, 40.5]]))
    assert true.state[0, 1] == MISSING


def test_right_cameras_put_true_points_into_the_bands(depth):
    mask = epipolar_mask(CAMERAS, 24, 24)
    table = pair_table(CAMERAS, depth, cells=24, masks={"same": mask}, points_per_view=400)
    off_diagonal = ~torch.eye(6, dtype=torch.bool)
    share = table.share(table.inside["exact"])[off_diagonal & (table.points > 0)]
    assert float(share.min()) > 0.95
    # The same question asked of the matrix gives the same numbers.
    assert torch.equal(table.inside["exact"], table.inside["same"])
    assert suspect_views(table) == []


ROTATED = Cameras.orbit(10, 20).world_from_cam[0] @ torch.tensor(
    [
        [math.cos(0.1), 0, math.sin(0.1), 0],
        [0, 1, 0, 0],
        [-math.sin(0.1), 0, math.cos(0.1), 0],
        [0, 0, 0, 1.0],
    ]
)


@pytest.mark.parametrize(
    "pose",
    [
        torch.cat([CAMERAS.world_from_cam[2, :, :3], torch.tensor([[0.0, 0, 0, 1]]).T], dim=1),
        CAMERAS.world_from_cam[4],
        ROTATED,
        CAMERAS.world_from_cam[2] + torch.tensor([[0.0, 0, 0, 0.3], *[[0.0] * 4] * 3]),
    ],
    ids=["zero translation", "another's pose", "turned by 6 degrees", "shifted by 0.3"],
)
def test_a_wrong_camera_is_named(depth, pose):
    table = pair_table(moved(2, pose), depth, points_per_view=500)
    suspects = suspect_views(table)
    assert [suspect.view for suspect in suspects] == [2]
    assert not suspects[0].share >= 0.85 and suspects[0].others > 0.97


def test_two_wrong_cameras_are_named(depth):
    poses = CAMERAS.world_from_cam.clone()
    poses[[1, 4], 0, 3] += torch.tensor([0.5, -0.4])
    wrong = replace(CAMERAS, world_from_cam=poses)
    suspects = suspect_views(pair_table(wrong, depth, points_per_view=500))
    assert sorted(suspect.view for suspect in suspects) == [1, 4]


def test_of_two_views_both_are_named(depth):
    wrong = moved(1, CAMERAS.world_from_cam[3])[[0, 1]]
    suspects = suspect_views(pair_table(wrong, depth[[0, 1]], points_per_view=500))
    assert sorted(suspect.view for suspect in suspects) == [0, 1]


def test_one_view_has_no_pairs(depth):
    table = pair_table(CAMERAS[0], depth[:1])
    assert suspect_views(table) == [] and table.share(table.found).isnan().all()


def test_what_poses_alone_give_away():
    poses = CAMERAS.world_from_cam.clone()
    poses[3, :3, 3] = 0
    poses[5] = poses[1]
    odd = replace(CAMERAS, world_from_cam=poses)
    assert views_at_origin(odd) == [3] and twin_views(odd) == [(1, 5)]
    assert views_at_origin(CAMERAS) == [] and twin_views(CAMERAS) == []


def test_cameras_that_all_turn_at_the_origin_are_nothing_odd():
    poses = CAMERAS.world_from_cam.clone()
    poses[:, :3, 3] = 0
    assert views_at_origin(replace(CAMERAS, world_from_cam=poses)) == []


@pytest.mark.parametrize(
    "size, xy, message",
    [(95, 4.0, "expected depth of shape"), (96, 96.5, "expected positions inside 96x96 pixels")],
)
def test_what_corresponding_points_refuses(size, xy, message):
    with pytest.raises(ValueError, match=message):
        corresponding_points(CAMERAS, torch.ones(6, size, 96), 0, torch.tensor([[xy, 4.0]]))


def test_the_lynx_has_one_wrong_camera(shared_dir):
    from spad.visualize.views import load_views

    pytest.importorskip("OpenEXR")
    lynx = shared_dir / "samples" / "lynx"
    views = load_views(lynx, depth=lynx / "depths", depth_scale=10.0)
    table = pair_table(views.cameras, views.depth, points_per_view=200)
    assert [suspect.view for suspect in suspect_views(table)] == [6]
    assert views_at_origin(views.cameras) == [6]


@pytest.mark.parametrize("cameras", [CAMERAS, moved(2, CAMERAS.world_from_cam[0])])
def test_agreement_table_is_the_pair_table_of_as_many_points(depth, cameras):
    everywhere = int(depth.isfinite().flatten(1).sum(1).max())
    quick = agreement_table(cameras, depth, points_per_view=everywhere)
    slow = pair_table(cameras, depth, points_per_view=everywhere)
    assert torch.equal(quick.points, slow.points) and torch.equal(quick.found, slow.found)


def test_agreement_table_tries_distinct_pixels(depth):
    few = agreement_table(CAMERAS, depth, points_per_view=50)
    own = few.found.diagonal()
    assert (own == 50).all()
    empty = depth.clone()
    empty[1] = torch.inf
    assert agreement_table(CAMERAS, empty).points[1].sum() == 0
