"""Distance of a reconstructed surface from the true one: Chamfer, F-score, normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree

from spad.cameras import Cameras
from spad.meshes.mesh import TriangleMesh
from spad.meshes.raycast import render_views

# Points of a surface, and how many of them are compared with all of the other's.
POINTS, COMPARED = 200_000, 20_000
# A point is seen if it lies at most so far behind what a view sees there, in radii of the object.
_SLACK = 0.012
_WATCHERS, _WATCHER_SIZE = 48, 256


@dataclass(frozen=True)
class SurfacePoints:
    """Points spread over a surface at random, in no order.

    Attributes:
        points: (n, 3).
        normals: (n, 3), unit, either way.
    """

    points: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class ShapeScores:
    """How near two surfaces are.

    Attributes:
        chamfer: mean distance from a point of one surface to the nearest of the other, mean of both
            directions, in units of the surfaces; 0 is best. Two samples of one sphere of radius 1
            reach 0.004.
        f_score: harmonic mean of the shares of points of each that lie within a distance of the
            other; 1 is best.
        normals: mean |cosine| between the normals of nearest points, mean of both directions; 1 is
            best, 0.5 what directions at random have.
    """

    chamfer: float
    f_score: float
    normals: float


def surface_points(
    vertices: np.ndarray, faces: np.ndarray, count: int = POINTS, seed: int = 0
) -> SurfacePoints:
    """`count` points of a mesh at random, as many on each bit of its area.

    Raises: ValueError: the mesh has no area.
    """
    rng = np.random.default_rng(seed)
    corners = vertices[faces].astype(np.float64)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=1)
    if not area.sum() > 0:
        raise ValueError("expected a surface, got a mesh without area")
    face = rng.choice(len(area), count, p=area / area.sum())
    root, share = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - root, root * (1 - share), root * share], axis=1)
    points = np.einsum("nk,nkc->nc", weights, corners[face])
    return SurfacePoints(points, across[face] / area[face, None])


def visible_points(mesh: TriangleMesh, count: int = POINTS, seed: int = 0) -> SurfacePoints:
    """Points of the parts of a mesh that can be seen from outside, from any side.

    Models have faces inside that no view shows; a reconstruction is not to be blamed for them.

    Args:
        mesh: within about 1 of the origin.
        count: at most.
    """
    found = surface_points(mesh.vertices, mesh.faces, 3 * count, seed)
    number = np.arange(_WATCHERS) + 0.5
    elevation = np.degrees(np.arcsin(1 - 2 * number / _WATCHERS))
    # The golden angle spreads points over a sphere.
    azimuth = 180 * (3 - 5**0.5) * number % 360
    cameras = Cameras.orbit(
        elevation.tolist(), azimuth.tolist(), height=_WATCHER_SIZE, width=_WATCHER_SIZE
    )
    views = render_views(mesh, cameras, samples_per_side=1)
    seen = np.zeros(len(found.points), dtype=bool)
    for view in range(_WATCHERS):
        xy, depth = cameras[view].project(torch.from_numpy(found.points).float())
        column, row = xy[0].numpy().astype(int).clip(0, _WATCHER_SIZE - 1).T
        seen |= depth[0].numpy() <= views.depth[view, row, column] + _SLACK
    chosen = seen.nonzero()[0][:count]
    return SurfacePoints(found.points[chosen], found.normals[chosen])


def compare_shapes(one: SurfacePoints, other: SurfacePoints, within: float = 0.02) -> ShapeScores:
    """Scores of two surfaces in one frame; which is first does not matter.

    Args:
        within: distance that counts as met in the F-score.

    Source: the metrics of Tatarchenko et al. 2019 (F-score) and Mescheder et al. 2019 (Chamfer L1,
        normal consistency).
    """
    there, cosine = _to_nearest(one, other)
    back, cosine_back = _to_nearest(other, one)
    shares = (there <= within).mean(), (back <= within).mean()
    return ShapeScores(
        float(there.mean() + back.mean()) / 2,
        float(2 * shares[0] * shares[1] / max(sum(shares), 1e-12)),
        float(cosine.mean() + cosine_back.mean()) / 2,
    )


def _to_nearest(one: SurfacePoints, other: SurfacePoints) -> tuple[np.ndarray, np.ndarray]:
    """Distances from points of one to the nearest of the other, and |cosines| of normals there."""
    points, normals = one.points[:COMPARED], one.normals[:COMPARED]
    distances, nearest = KDTree(other.points).query(points)
    return distances, np.abs((normals * other.normals[nearest]).sum(1))
