"""The checks of renders: each finds what it is for, and leaves good objects alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from spad.cameras import Cameras
from spad.data.camera_sampling import cameras_of
from spad.data.checks import check_views
from spad.data.config import CHECKS, REJECTING_CHECKS, RenderConfig
from spad.meshes.mesh import load_object
from spad.meshes.raycast import RenderBuffers, render_views

SIZE = 64


def scene_of_boxes() -> trimesh.Trimesh:
    """Something without symmetry, in two colors, so that every camera sees it differently."""
    large = trimesh.creation.box((1.0, 0.6, 0.4))
    small = trimesh.creation.box((0.3, 0.3, 0.8))
    small.apply_translation((0.4, 0.1, 0.5))
    large.visual.vertex_colors = (200, 60, 40, 255)
    small.visual.vertex_colors = (40, 90, 200, 255)
    return trimesh.util.concatenate([large, small])


def rendered(mesh: trimesh.Trimesh, tmp_path: Path, cameras: Cameras) -> RenderBuffers:
    path = tmp_path / "model.ply"
    mesh.export(path)
    return render_views(load_object(path), cameras)


@pytest.fixture
def cameras() -> Cameras:
    azimuth = torch.arange(8) * 45.0
    return Cameras.orbit([25.0, -10.0] * 4, azimuth, height=SIZE, width=SIZE)


@pytest.fixture
def views(tmp_path, cameras) -> RenderBuffers:
    return rendered(scene_of_boxes(), tmp_path, cameras)


def test_a_good_object_passes(views, cameras):
    assert check_views(views, cameras) == {}


def test_an_empty_picture_is_blank(views, cameras):
    rgba = views.rgba.copy()
    rgba[3] = 0
    failed = check_views(replace(views, rgba=rgba), cameras)
    assert failed["blank"] == "nothing is visible in view 3"
    empty = replace(views, rgba=np.zeros_like(rgba), mask=np.zeros_like(views.mask))
    assert list(check_views(empty, cameras)) == ["blank"]


def test_glass_is_transparent_and_half_glass_is_not(views, cameras):
    rgba = views.rgba.copy()
    rgba[..., 3] //= 4
    assert "transparent" in check_views(replace(views, rgba=rgba), cameras)
    rgba[..., : SIZE // 2, 3] = views.rgba[..., : SIZE // 2, 3]
    assert "transparent" not in check_views(replace(views, rgba=rgba), cameras)


def test_black_is_black_and_one_color_at_once(tmp_path, cameras):
    mesh = scene_of_boxes()
    mesh.visual.vertex_colors = (0, 0, 0, 255)
    assert {"black", "single-color"} <= check_views(
        rendered(mesh, tmp_path, cameras), cameras
    ).keys()


@pytest.mark.parametrize("color", [(128, 128, 128, 255), (200, 60, 40, 255), (255, 255, 255, 255)])
def test_shading_does_not_count_as_color(tmp_path, cameras, color):
    mesh = scene_of_boxes()
    mesh.visual.vertex_colors = color
    views = rendered(mesh, tmp_path, cameras)
    assert len(np.unique(views.rgba[views.mask], axis=0)) > 3
    assert list(check_views(views, cameras)) == ["single-color"]


def test_two_crumbs_far_apart_are_tiny(tmp_path, cameras):
    crumbs = [scene_of_boxes(), scene_of_boxes().apply_translation((30, 0, 0))]
    views = rendered(trimesh.util.concatenate(crumbs), tmp_path, cameras)
    assert "tiny" in check_views(views, cameras)


def test_a_camera_too_near_clips(tmp_path, cameras):
    near = cameras.world_from_cam.clone()
    near[2, :3, 3] *= 0.4
    moved = replace(cameras, world_from_cam=near)
    failed = check_views(rendered(scene_of_boxes(), tmp_path, moved), moved)
    assert list(failed) == ["clipped"] and failed["clipped"].endswith("in view 2")


def test_reversed_triangles_are_inside_out(tmp_path, cameras):
    mesh = scene_of_boxes()
    mesh.faces = mesh.faces[:, ::-1]
    assert list(check_views(rendered(mesh, tmp_path, cameras), cameras)) == ["inside-out"]


def quarter_turn(poses: torch.Tensor) -> torch.Tensor:
    turn = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return turn @ poses


def opengl_axes(poses: torch.Tensor) -> torch.Tensor:
    return poses @ torch.diag(torch.tensor([1.0, -1, -1, 1]))


@pytest.mark.parametrize("wrong", [quarter_turn, opengl_axes], ids=lambda f: f.__name__)
@pytest.mark.parametrize("view", [0, 5])
def test_a_wrong_camera_is_named(views, cameras, wrong, view):
    poses = cameras.world_from_cam.clone()
    poses[view] = wrong(poses[view])
    failed = check_views(views, replace(cameras, world_from_cam=poses))
    assert list(failed) == ["reprojection"] and failed["reprojection"].endswith(f"of view {view}")


def turned_lens(poses: torch.Tensor) -> torch.Tensor:
    """Pictures that lie on their side."""
    return poses @ quarter_turn(torch.eye(4))


@pytest.mark.parametrize("wrong", [turned_lens, opengl_axes], ids=lambda f: f.__name__)
def test_cameras_that_are_all_wrong_in_one_way_are_found(views, cameras, wrong):
    poses = wrong(cameras.world_from_cam)
    assert "reprojection" in check_views(views, replace(cameras, world_from_cam=poses))


def test_depth_in_another_unit_is_found(views, cameras):
    assert "reprojection" in check_views(replace(views, depth=views.depth * 1.1), cameras)


def test_ray_length_in_place_of_depth_is_found(tmp_path):
    cameras = Cameras.orbit(20.0, torch.arange(8) * 45.0, 1.7, 1.4, height=SIZE, width=SIZE)
    views = rendered(trimesh.creation.box((1, 1, 1)), tmp_path, cameras)
    assert "reprojection" not in check_views(views, cameras)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    cam_from_pixel = np.linalg.inv(cameras.intrinsics[0].numpy())
    directions = np.stack([x, y, np.ones_like(x)], -1) @ cam_from_pixel.T
    longer = views.depth * np.linalg.norm(directions, axis=-1).astype(np.float32)
    assert "reprojection" in check_views(replace(views, depth=longer), cameras)


def test_checks_come_in_order_and_reject_all_but_one_color():
    assert set(CHECKS) - set(REJECTING_CHECKS) == {"single-color"}
    with pytest.raises(ValueError, match="expected reject to be one of"):
        RenderConfig(assets=Path("a"), output=Path("b"), reject=("ugly",))


def test_a_blade_edge_on_is_no_wrong_camera(tmp_path):
    """Its edge is thinner than a pixel, so that view shows it in dashes or not at all."""
    cameras = Cameras.orbit(3.0, torch.arange(12) * 30.0 + 0.5, height=SIZE, width=SIZE)
    blade = trimesh.creation.box((1, 0.01, 0.3))
    views = rendered(blade, tmp_path, cameras)
    assert views.mask.sum((1, 2)).min() < 0.2 * views.mask.sum((1, 2)).max()
    assert "reprojection" not in check_views(views, cameras)


def test_real_models_pass(shared_models):
    config = RenderConfig(assets=Path("a"), output=Path("b"), num_random=6, num_orthogonal_sets=1)
    for path in shared_models(3):
        cameras = cameras_of(config, path.stem)
        views = render_views(load_object(path), cameras)
        assert check_views(views, cameras) == {}, path.name
