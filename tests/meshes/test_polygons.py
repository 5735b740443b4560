"""Polygons as triangles: same area, same side, every corner, whatever the outline."""

import numpy as np
import pytest

from spad.meshes.polygons import triangulated

NOTCHED = np.array([[0, 0], [2, 0], [2, 2], [1, 1], [0, 2]], float)
DART = np.array([[0, 0], [2, -1], [0.5, 0], [2, 1]], float)
STAR = np.array([[np.cos(a), np.sin(a)] for a in np.arange(10) * np.pi / 5]) * np.tile(
    [[1.0], [0.3]], (5, 1)
)
SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
COLLINEAR = np.array([[0, 0], [1, 0], [2, 0], [2, 2], [0, 2]], float)


def outline_area(points: np.ndarray) -> np.ndarray:
    centered = points - points.mean(axis=0)
    return np.cross(centered, np.roll(centered, -1, axis=0)).sum(axis=0) / 2


def assert_covers(outline: np.ndarray) -> None:
    """The triangles' areas add up to the outline's, none facing the other way."""
    triangles, polygons = triangulated(outline, np.arange(len(outline)), np.array([len(outline)]))
    assert len(triangles) <= len(outline) - 2 and (polygons == 0).all()
    a, b, c = (outline[triangles[:, i]] for i in range(3))
    areas = np.cross(b - a, c - a) / 2
    whole = outline_area(outline)
    assert np.allclose(areas.sum(axis=0), whole)
    assert np.isclose(np.linalg.norm(areas, axis=-1).sum(), np.linalg.norm(whole))


@pytest.mark.parametrize("flat", [NOTCHED, DART, STAR, SQUARE, COLLINEAR], ids=len)
@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("turned", [False, True])
def test_outlines_in_every_plane_from_every_corner(flat, first, turned):
    rng = np.random.default_rng(first)
    flat = np.roll(flat, first, axis=0)[:: -1 if turned else 1]
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    for plane in (np.eye(3)[:2], np.eye(3)[1:], np.eye(3)[[2, 0]], axes[:2]):
        assert_covers(flat @ plane + rng.normal(size=3))


def test_random_outlines_around_a_point():
    rng = np.random.default_rng(0)
    for _ in range(200):
        num = rng.integers(4, 15)
        angles = (np.arange(num) + rng.uniform(0, 0.9, num)) * 2 * np.pi / num
        radius = rng.uniform(0.1, 1, num)
        flat = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=-1)
        assert_covers(flat @ np.linalg.qr(rng.normal(size=(3, 3)))[0][:2])


def test_many_polygons_keep_their_order_and_owners():
    points = np.concatenate([np.pad(p, ((0, 0), (0, 1))) for p in (SQUARE, NOTCHED, DART, SQUARE)])
    corners = np.concatenate([np.arange(4), np.arange(4, 9), np.arange(9, 13), np.arange(13, 16)])
    sizes = np.array([4, 5, 4, 1, 2])
    triangles, polygons = triangulated(points, corners, sizes)
    assert polygons.tolist() == [0, 0, 1, 1, 1, 2, 2]
    starts = np.cumsum(sizes) - sizes
    within = triangles - starts[polygons, None]
    assert (within >= 0).all() and (within < sizes[polygons, None]).all()


def test_outlines_without_area_do_no_harm():
    points = np.zeros((12, 3))
    points[:6, 0] = np.arange(6)
    triangles, _ = triangulated(points, np.arange(12), np.array([6, 6]))
    assert triangles.shape[1] == 3
    assert len(triangulated(points, np.zeros(0, int), np.zeros(0, int))[0]) == 0
