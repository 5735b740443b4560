"""Laws of `Cameras`: where orbit and look-at cameras stand, what they see, what they refuse."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spad.cameras import DEFAULT_FOV_RAD, Cameras

ROOT = Path(__file__).parents[2]
ORIGIN = torch.zeros(3)


def off_center_cameras(num_views=5, height=48, width=64, seed=0):
    """Free poses, each with its own focal lengths and off-center principal point."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    directions = torch.nn.functional.normalize(uniform(num_views, 3) - 0.5, dim=-1)
    target, up = uniform(num_views, 3) - 0.5, uniform(3) - 0.5
    cameras = Cameras.look_at(3 * directions, target, up, height=height, width=width)
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, 0, 0] = 50 + 30 * uniform(num_views)
    intrinsics[:, 1, 1] = 50 + 30 * uniform(num_views)
    intrinsics[:, :2, 2] += (20 * uniform(num_views, 2) - 10).float()
    return Cameras(cameras.world_from_cam, intrinsics, height, width)


def rigid_motion(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, :3] = q * torch.linalg.det(q)
    motion[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
    return motion


ANGLES = [(e, a) for e in (-90.0, -89.9, -30.0, 0.0, 45.0, 90.0) for a in (0.0, 77.0, 200.0, 359.0)]


@pytest.fixture
def orbit():
    elevation, azimuth = zip(*ANGLES, strict=True)
    return Cameras.orbit(elevation, azimuth, radius=2.5, height=60, width=80)


def test_orbit_cameras_are_proper_rotations(orbit):
    rotation = orbit.world_from_cam[:, :3, :3]
    assert_close(rotation.mT @ rotation, torch.eye(3).expand_as(rotation))
    assert_close(torch.linalg.det(rotation), torch.ones(len(orbit)))


def test_orbit_cameras_see_the_target_in_the_center_at_the_radius():
    target = torch.tensor([0.3, -0.2, 0.5])
    cameras = Cameras.orbit([-90, 0, 20, 90], [10, 20, 30, 40], 2.5, target=target)
    xy, depth = cameras.project(target)
    assert_close(xy, torch.full((4, 2), 128.0), atol=1e-3, rtol=0)
    assert_close(depth, torch.full((4,), 2.5))


def test_up_in_the_world_is_up_in_the_picture(orbit):
    xy, _ = orbit.project(torch.tensor([0.0, 0.0, 0.3]))
    elevation = torch.tensor([e for e, _ in ANGLES])
    between_poles = elevation.abs() < 89
    assert (xy[between_poles, 1] < 29).all()
    assert_close(xy[:, 0], torch.full((len(orbit),), 40.0), atol=1e-3, rtol=0)


def test_azimuth_turns_counter_clockwise_from_x_seen_from_above():
    cameras = Cameras.orbit(0, [0, 90, 180, -90], radius=2)
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]])
    assert_close(cameras.centers, expected, atol=1e-6, rtol=0)


def test_elevation_is_measured_from_the_horizon():
    assert_close(Cameras.orbit([90, -90], 0, radius=2).centers[:, 2], torch.tensor([2.0, -2.0]))


def test_what_is_right_in_the_world_is_right_in_the_picture():
    # Seen from the front (-y), +x is on the right.
    xy, _ = Cameras.orbit(0, -90).project(torch.tensor([0.5, 0.0, 0.0]))
    assert xy[0, 0] > 128


def test_angles_and_radius_read_back_what_orbit_was_given(orbit):
    assert_close(orbit.elevation_deg, torch.tensor([e for e, _ in ANGLES]), atol=1e-3, rtol=0)
    assert_close(orbit.azimuth_deg, torch.tensor([a for _, a in ANGLES]), atol=1e-2, rtol=0)
    assert_close(orbit.radius, torch.full((len(orbit),), 2.5))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_pole_is_the_limit_of_cameras_climbing_to_it(sign):
    at_pole = Cameras.orbit(sign * 90, 130)
    near = Cameras.orbit(sign * 89.999, 130)
    assert_close(at_pole.world_from_cam, near.world_from_cam, atol=1e-4, rtol=0)


def test_angles_of_a_camera_at_the_origin_are_those_of_backing_away():
    cameras = Cameras.orbit([30, 90], [50, 60])
    poses = cameras.world_from_cam.clone()
    poses[:, :3, 3] = 0
    inside = Cameras(poses, cameras.intrinsics, 256, 256)
    assert_close(inside.elevation_deg, cameras.elevation_deg, atol=2e-2, rtol=0)
    assert_close(inside.azimuth_deg, cameras.azimuth_deg, atol=1e-3, rtol=0)
    assert (inside.radius == 0).all()


def test_fov_spans_the_width():
    cameras = Cameras.orbit(0, 0, radius=2, fov_rad=[0.5, 1.0], height=30, width=90)
    assert_close(cameras.fov_rad, torch.tensor([0.5, 1.0]))
    for camera, fov in zip(cameras, (0.5, 1.0), strict=True):
        edge = torch.tensor([0.0, 2 * math.tan(fov / 2), 0.0])
        xy, _ = camera.project(edge)
        assert_close(xy[0], torch.tensor([90.0, 15.0]))


def test_a_ring_steps_the_azimuth():
    cameras = Cameras.ring(8, elevation_deg=20, start_azimuth_deg=10)
    assert_close(cameras.azimuth_deg, 10 + 45.0 * torch.arange(8), atol=1e-3, rtol=0)
    assert_close(cameras.elevation_deg, torch.full((8,), 20.0))


def test_look_at_from_an_orbit_position_is_the_orbit_camera(orbit):
    elevation = torch.tensor([e for e, _ in ANGLES])
    away_from_poles = (elevation.abs() < 89).nonzero()[:, 0]
    expected = orbit[away_from_poles]
    got = Cameras.look_at(expected.centers, height=60, width=80)
    assert_close(got.world_from_cam, expected.world_from_cam, atol=1e-5, rtol=0)


def test_look_at_along_up_is_the_orbit_camera_at_azimuth_zero():
    got = Cameras.look_at([[0, 0, 2], [0, 0, -2]])
    expected = Cameras.orbit([90, -90], 0, radius=2)
    assert_close(got.world_from_cam, expected.world_from_cam, atol=1e-6, rtol=0)


def test_look_at_along_an_up_of_y_works():
    cameras = Cameras.look_at([0, 2, 0], up=(0, 1, 0))
    assert_close(cameras.project(ORIGIN)[0], torch.tensor([[128.0, 128.0]]))


def test_project_agrees_with_the_matrices_and_unproject_inverts_it():
    cameras = off_center_cameras()
    points = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    xy, depth = cameras.project(points)
    assert xy.shape == (5, 4, 6, 2) and depth.shape == (5, 4, 6)
    cam = torch.einsum("vij,abj->vabi", cameras.cam_from_world[:, :3, :3], points)
    cam = cam + cameras.cam_from_world[:, None, None, :3, 3]
    pixels = torch.einsum("vij,vabj->vabi", cameras.intrinsics, cam)
    assert_close(xy, pixels[..., :2] / pixels[..., 2:], atol=1e-3, rtol=1e-4)
    assert_close(depth, cam[..., 2])
    assert_close(cameras.unproject(xy, depth), points.expand(5, 4, 6, 3), atol=1e-4, rtol=0)


def test_points_behind_or_beside_a_camera_have_no_pixel():
    cameras = Cameras.orbit(0, 0, radius=1)
    xy, depth = cameras.project(torch.tensor([[2.0, 0, 0], [1.0, 1, 0], [0.0, 0, 0]]))
    assert xy.isnan().all(-1).tolist() == [[True, True, False]]
    assert_close(depth, torch.tensor([[-1.0, 0.0, 1.0]]))


def test_cam_from_world_inverts_the_pose():
    cameras = off_center_cameras()
    product = cameras.cam_from_world @ cameras.world_from_cam
    assert_close(product, torch.eye(4).expand(5, 4, 4), atol=1e-5, rtol=0)


def test_resizing_pictures_scales_pixels():
    cameras = off_center_cameras()
    xy, depth = cameras.project(ORIGIN)
    small_xy, small_depth = cameras.resized(24, 16).project(ORIGIN)
    assert_close(small_xy, xy * torch.tensor([16 / 64, 24 / 48]))
    assert_close(small_depth, depth)


def test_moving_world_and_points_together_changes_no_pixel():
    cameras, motion = off_center_cameras(), rigid_motion()
    points = torch.rand(7, 3, generator=torch.Generator().manual_seed(2)) - 0.5
    moved_points = points @ motion[:3, :3].mT.float() + motion[:3, 3].float()
    xy, depth = cameras.project(points)
    moved_xy, moved_depth = cameras.transformed(motion).project(moved_points)
    assert_close(moved_xy, xy, atol=1e-3, rtol=1e-4)
    assert_close(moved_depth, depth, atol=1e-5, rtol=1e-5)


def test_ndc_of_an_off_center_wide_view_points_left_and_up():
    cameras = Cameras.orbit(0, 0, fov_rad=math.pi / 2, height=100, width=200)
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2, 2] += torch.tensor([25.0, 50.0])
    shifted = Cameras(cameras.world_from_cam, intrinsics, 100, 200)
    assert_close(shifted.intrinsics_ndc, torch.tensor([[2.0, 2.0, -0.5, -1.0]]))


def test_views_are_picked_and_joined_in_order():
    cameras = off_center_cameras()
    picks = [cameras[1], cameras[-1], cameras[np.int64(0)], cameras[2:4], cameras[[3, 1]]]
    assert [len(pick) for pick in picks] == [1, 1, 1, 2, 2]
    joined = Cameras.cat(picks)
    assert_close(joined.intrinsics, cameras.intrinsics[[1, 4, 0, 2, 3, 3, 1]])
    assert_close(cameras[torch.tensor([3, 1])].centers, cameras.centers[[3, 1]])
    assert len(list(cameras)) == 5
    with pytest.raises(IndexError, match="expected a view below 5, got 5"):
        cameras[5]
    with pytest.raises(ValueError, match="at least 1 camera"):
        cameras[5:]


def test_to_changes_type_and_default_is_float32():
    cameras = Cameras.orbit(0, 0)
    assert cameras.world_from_cam.dtype == cameras.intrinsics.dtype == torch.float32
    assert cameras.to(dtype=torch.float64).centers.dtype == torch.float64


def test_cameras_may_share_a_place():
    cameras = Cameras.orbit(10, [20, 20, 380])
    assert_close(cameras.azimuth_deg, torch.full((3,), 20.0), atol=1e-3, rtol=0)


def test_a_size_that_is_not_given_is_left_to_the_model():
    """It survives what changes the poses alone."""
    ring = Cameras.ring(3)
    assert (ring.height, ring.width, ring.has_own_size) == (256, 256, False)
    turned = Cameras.cat([ring[1:].to(dtype=torch.float64).transformed(torch.eye(4))] * 2)
    assert not turned.has_own_size and turned.resized(64, 64).has_own_size
    for square in (Cameras.orbit(0, 0, height=64), Cameras.look_at((1, 0, 0), width=64)):
        assert (square.height, square.width, square.has_own_size) == (64, 64, True)


def test_poses_and_intrinsics_are_the_original_releases(shared_dir):
    recorded = np.load(shared_dir / "golden" / "geom_cameras.npz")
    polar, azimuth = torch.from_numpy(recorded["angles_deg"]).unbind(-1)
    cameras = Cameras.orbit(90 - polar, azimuth, 3.5, DEFAULT_FOV_RAD, height=32, width=32)
    for got, name in (
        (cameras.world_from_cam * torch.tensor([1.0, -1, -1, 1]), "blender"),
        (cameras.cam_from_world[:, :3, :3], "cv_R"),
        (cameras.cam_from_world[:, :3, 3], "cv_T"),
        (cameras.intrinsics, "cv_K"),
        (cameras.resized(256, 256).intrinsics[0], "cv_K_256"),
        (cameras.intrinsics_ndc[:, :2], "p3d_focal_ndc"),
        (cameras.intrinsics_ndc[:, 2:], "p3d_pp_ndc"),
        (cameras.centers, "p3d_center"),
    ):
        assert_close(got, torch.from_numpy(recorded[name]), atol=2e-6, rtol=1e-6, msg=name)


def pose_of_view_1(change):
    """Three orbit poses, view 1 changed in place by `change`."""
    cameras = Cameras.orbit(20, [0, 120, 240])
    poses, intrinsics = cameras.world_from_cam.clone(), cameras.intrinsics.clone()
    change(poses[1], intrinsics[1])
    return Cameras(poses, intrinsics, 256, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, k: m[:3, 0].neg_(), "camera 1, got a mirrored one"),
        (lambda m, k: m[:3, :3].mul_(2), "camera 1, got one scaled by 2;"),
        (lambda m, k: m[:3, 0].mul_(2), "camera 1, got axes that are not perpendicular"),
        (lambda m, k: m[:3, :3].zero_(), "camera 1, got axes that are not perpendicular"),
        (lambda m, k: m.copy_(m.mT.clone()), "last row of the pose of camera 1 to be 0 0 0 1"),
        (lambda m, k: m[0, 3].fill_(math.nan), "finite numbers in the pose of camera 1"),
        (lambda m, k: k[0, 0].neg_(), "focal lengths above 0 pixels for camera 1"),
        (lambda m, k: k[1, 1].fill_(0), "focal lengths above 0 pixels for camera 1"),
        (lambda m, k: k[0, 2].fill_(math.inf), "finite intrinsics of camera 1"),
        (lambda m, k: k[0, 1].fill_(3), "of camera 1, got .* skew is not supported"),
    ],
)
def test_a_wrong_view_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        pose_of_view_1(change)


@pytest.mark.parametrize(
    ("poses", "intrinsics", "height", "message"),
    [
        (torch.eye(4), torch.eye(3)[None], 8, r"world_from_cam to be a tensor \(views, 4, 4\)"),
        (np.eye(4)[None], torch.eye(3)[None], 8, "got ndarray"),
        (torch.eye(4)[None], torch.eye(4)[None], 8, r"intrinsics to be a tensor \(views, 3, 3\)"),
        (torch.eye(4)[None], torch.eye(3).repeat(2, 1, 1), 8, "as many intrinsics as poses"),
        (torch.eye(4)[None].half(), torch.eye(3)[None], 8, "float32 or float64"),
        (torch.eye(4)[None].double(), torch.eye(3)[None], 8, "of one type"),
        (torch.empty(0, 4, 4), torch.empty(0, 3, 3), 8, "at least 1 camera, got 0"),
        (torch.eye(4)[None], torch.eye(3)[None], 0, "height to be a positive int"),
        (torch.eye(4)[None], torch.eye(3)[None], 8.0, "height to be a positive int"),
    ],
)
def test_wrong_tensors_are_refused(poses, intrinsics, height, message):
    with pytest.raises(ValueError, match=message):
        Cameras(poses, intrinsics, height, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Cameras.orbit([0, 1], [0, 1, 2]), "expected 3 values of elevation_deg.*got 2"),
        (lambda: Cameras.orbit([], 0), "at least 1 value of elevation_deg"),
        (lambda: Cameras.orbit("high", 0), "elevation_deg to be a number or a list, got 'high'"),
        (lambda: Cameras.orbit([[1]], 0), "a flat list, got shape"),
        (lambda: Cameras.orbit(math.nan, 0), "finite values of elevation_deg"),
        (lambda: Cameras.orbit([0, 91], 0), "elevation_deg from -90 to 90 .* got 91; a polar"),
        (lambda: Cameras.orbit(0, 0, radius=0), "a radius above 0 world units, got 0"),
        (lambda: Cameras.orbit(0, 0, radius=[1, -2]), "a radius above 0 world units, got -2"),
        (lambda: Cameras.orbit(0, 0, fov_rad=40), "got 40; if these are degrees, try 0.6981"),
        (lambda: Cameras.orbit(0, 0, fov_rad=0), "between 0 and pi radians, got 0$"),
        (lambda: Cameras.orbit(0, 0, target=(0, 0)), r"target of shape \(3,\), got \(2,\)"),
        (lambda: Cameras.orbit(0, 0, width=-1), "width to be a positive int"),
        (lambda: Cameras.ring(0), "a whole number of views, 1 or more, got 0"),
        (lambda: Cameras.ring(-3), "got -3"),
        (lambda: Cameras.ring(2.5), "got 2.5"),
        (lambda: Cameras.look_at([[1, 0, 0], [0, 0, 0]]), "camera 1 away from its target"),
        (lambda: Cameras.look_at([1, 0, 0], up=(0, 0, 0)), "expected up to be a direction"),
        (lambda: Cameras.look_at([1, 0]), r"eye of shape \(views, 3\) or \(3,\)"),
        (lambda: Cameras.look_at([[1, 0, 0]] * 2, [[0, 0, 0]] * 3), "expected 3 values of eye"),
        (lambda: Cameras.cat([]), "at least 1 set of cameras"),
        (
            lambda: Cameras.cat([Cameras.orbit(0, 0), Cameras.orbit(0, 0, width=64)]),
            r"images of one size, got \[\(64, 64\), \(256, 256\)\]",
        ),
        (
            lambda: Cameras.cat([Cameras.orbit(0, 0), Cameras.orbit(0, 0).to(dtype=torch.float64)]),
            "one device and type",
        ),
        (lambda: Cameras.orbit(0, 0).transformed(torch.eye(3)), r"shape \(4, 4\), got \(3, 3\)"),
        (
            lambda: Cameras.orbit(0, 0).transformed(2 * torch.eye(4)),
            "last row of the pose of world",
        ),
        (
            lambda: Cameras.orbit(0, 0).transformed(torch.diag(torch.tensor([3.0, 3, 3, 1]))),
            "world_from_old, got one scaled by 3",
        ),
        (lambda: Cameras.orbit(0, 0).project(torch.zeros(2)), r"points of shape \(..., 3\)"),
        (lambda: Cameras.orbit(0, 0).unproject(torch.zeros(3, 2), torch.zeros(3)), "expected pix"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
