"""Laws of textures: every surface point shows what the views that see it show."""

import numpy as np
import pytest
import torch

from made_views import NO_LIGHT, colored_ball, views_of
from spad.cameras import Cameras
from spad.images.color import linear_from_srgb
from spad.meshes.raycast import Light
from spad.reconstruction.mesh_extraction import ClosedMesh
from spad.reconstruction.texture import _rasterized, depth_maps, texture_mesh


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return colored_ball(tmp_path_factory.mktemp("ball"))


def closed(ball) -> ClosedMesh:
    return ClosedMesh(ball.vertices, ball.faces, 1)


def ring(elevation=20.0, count: int = 6, size: int = 96) -> Cameras:
    azimuth = [360 * view / count for view in range(count)]
    return Cameras.orbit(elevation, azimuth, height=size, width=size)


def texture_of(ball, cameras, light=NO_LIGHT, delight=None):
    views = views_of(ball, cameras, light)
    premultiplied = (views.images - 1 + views.alpha[:, None]).clamp(0, 1)
    return texture_mesh(closed(ball), premultiplied, views.alpha, cameras, 256, delight)


def true_colors(obj) -> np.ndarray:
    """(n, 3) linear, of the object's vertices."""
    colors = np.zeros((len(obj.vertices), 3))
    colors[obj.faces.reshape(-1)] = obj.corner_colors[..., :3].reshape(-1, 3)
    return colors


def error(mesh, obj, chosen) -> np.ndarray:
    """Largest difference of a channel in linear light, at the chosen vertices."""
    found = linear_from_srgb(mesh.vertex_colors()[chosen] / 255)
    return np.abs(found - true_colors(obj)[chosen]).max(1)


def test_texels_lie_in_one_triangle_each():
    # A square of two triangles and another triangle elsewhere.
    uv = np.array(
        [[0.1, 0.1], [0.6, 0.1], [0.6, 0.6], [0.1, 0.6], [0.7, 0.7], [0.9, 0.7], [0.7, 0.9]]
    )
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    texels = _rasterized(uv, faces, 40)
    places = np.stack([(texels.column + 0.5) / 40, (texels.row + 0.5) / 40], axis=1)
    assert len(np.unique(places, axis=0)) == len(places)
    assert np.allclose(texels.of(uv, faces), places)
    # 20 by 20 texels of the square, 8 by 8 / 2 and half a diagonal of the triangle.
    assert (texels.face < 2).sum() == 400
    assert 28 <= (texels.face == 2).sum() <= 36


def test_depth_maps_are_those_of_a_ball(ball):
    cameras = ring(size=32)
    depth = depth_maps(closed(ball), cameras)
    assert torch.allclose(depth[:, 15:17, 15:17].mean((1, 2)), torch.tensor(2.5), atol=0.02)
    assert torch.isinf(depth[:, 0]).all()


def test_seen_points_show_their_color(ball):
    mesh = texture_of(ball, ring())
    seen = np.abs(ball.vertices[:, 2]) < 0.6
    assert np.median(error(mesh, ball, seen)) < 0.02
    assert np.quantile(error(mesh, ball, seen), 0.98) < 0.08
    assert not mesh.is_lit


def test_white_surroundings_stay_out_and_holes_take_colors_from_around(ball):
    # The bottom of the ball, which is blue, is seen by none of these.
    mesh = texture_of(ball, ring(elevation=40.0))
    bottom = ball.vertices[:, 2] < -0.8
    colors = mesh.vertex_colors()[bottom]
    assert (colors[:, 2] > colors[:, 0]).all()
    assert colors.max() < 250


def test_known_light_is_divided_out(ball):
    cameras, seen = ring(), np.abs(ball.vertices[:, 2]) < 0.6
    lit = texture_of(ball, cameras, Light())
    delit = texture_of(ball, cameras, Light(), Light())
    assert delit.is_lit
    assert np.median(error(delit, ball, seen)) < 0.5 * np.median(error(lit, ball, seen))


def test_a_part_that_hides_another_does_not_color_it(tmp_path):
    pair = colored_ball(tmp_path, beside=True)
    mesh = texture_of(pair, ring(elevation=0.0, count=8))
    red, green, _ = true_colors(pair).T
    gray_side = (red < 2 * green) & (np.abs(pair.vertices[:, 2]) < 0.3)
    colors = mesh.vertex_colors()[gray_side].astype(int)
    assert np.quantile(colors[:, 0] - colors[:, 1], 0.99) < 30
