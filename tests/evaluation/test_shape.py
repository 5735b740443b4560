"""Laws of distances between surfaces."""

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from spad.evaluation.shape import compare_shapes, surface_points, visible_points
from spad.meshes.mesh import load_object


def ball(radius: float = 1.0, seed: int = 0):
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    return surface_points(mesh.vertices, mesh.faces, 40_000, seed)


def test_points_are_spread_by_area():
    box = trimesh.creation.box((4, 1, 1))
    found = surface_points(box.vertices, box.faces, 20_000)
    on_ends = (np.abs(found.points[:, 0]) > 1.999).mean()
    assert on_ends == pytest.approx(2 / 18, abs=0.01)
    assert np.allclose(np.abs(found.normals).max(1), 1)
    assert np.allclose(np.linalg.norm(found.normals, axis=1), 1)


def test_a_surface_is_like_itself():
    scores = compare_shapes(ball(seed=0), ball(seed=1))
    assert scores.chamfer < 0.01
    assert scores.f_score > 0.9
    assert scores.normals > 0.99


@settings(max_examples=4)
@given(st.floats(0.05, 0.5))
def test_the_distance_of_nested_balls_is_that_of_their_radii(gap):
    one, other = ball(), ball(1 + gap)
    scores = compare_shapes(one, other, within=gap / 2)
    assert scores.chamfer == pytest.approx(gap, rel=0.1, abs=0.01)
    assert scores.f_score < 0.1
    swapped = compare_shapes(other, one, within=gap / 2)
    assert swapped.chamfer == pytest.approx(scores.chamfer)
    assert swapped.normals == pytest.approx(scores.normals)


def test_what_is_inside_is_not_seen(tmp_path):
    outer = trimesh.creation.icosphere(subdivisions=4)
    inner = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    trimesh.util.concatenate([outer, inner]).export(tmp_path / "nested.ply")
    found = visible_points(load_object(tmp_path / "nested.ply"), 2000)
    assert len(found.points) == 2000
    assert np.linalg.norm(found.points, axis=1).min() > 0.95


def test_a_mesh_without_area_is_refused():
    with pytest.raises(ValueError, match="without area"):
        surface_points(np.zeros((3, 3)), np.array([[0, 1, 2]]))
