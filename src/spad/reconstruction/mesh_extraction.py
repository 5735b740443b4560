"""A closed triangle mesh of a signed-distance grid: marching cubes, cleaned up and simplified."""

from __future__ import annotations

from dataclasses import dataclass

import fast_simplification
import numpy as np
import trimesh
from manifold3d import Error, Manifold, Mesh
from skimage.measure import marching_cubes
from trimesh.smoothing import filter_taubin

from spad.reconstruction.surface import DistanceGrid

# Parts of less than this share of the largest one's volume are specks that no view asked for.
_SPECK = 1e-3
# A surface through a grid point makes triangles without area; it is moved by so much of a cell.
_OFF_POINTS = 0.02
# Sheets of the surface that touch are parted by so much of a cell.
_APART = 0.02
_TOLERANCES = np.geomspace(0.02, 3.0, 10)


@dataclass(frozen=True, eq=False)
class BareMesh:
    """A triangle mesh without colors.

    Attributes:
        vertices: (n, 3) float32, world; those at one place are one.
        faces: (f, 3) int32, counter-clockwise seen from outside.
    """

    vertices: np.ndarray
    faces: np.ndarray

    @property
    def normals(self) -> np.ndarray:
        """(n, 3) unit: mean over the faces around each vertex, by area."""
        corners = self.vertices[self.faces].astype(np.float64)
        by_face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        sums = np.stack(
            [
                np.bincount(
                    self.faces.reshape(-1), np.repeat(by_face[:, axis], 3), len(self.vertices)
                )
                for axis in range(3)
            ],
            axis=1,
        )
        return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)).astype("f4")


@dataclass(frozen=True, eq=False)
class ClosedMesh(BareMesh):
    """A watertight triangle mesh: every edge has two faces, normals point out.

    Attributes:
        num_parts: how many separate parts it has.
    """

    num_parts: int


def extract_mesh(surface: DistanceGrid, num_faces: int, filter_rounds: int = 0) -> ClosedMesh:
    """The surface where the distance is zero, as a closed mesh of about `num_faces` triangles.

    Hollows inside, which no view can see, are filled; specks are dropped.

    Args:
        filter_rounds: of Taubin's filter (1995), which takes away bumps of a cell or two and does
            not shrink the rest.

    Raises: ValueError: the distance is nowhere negative.
    """
    values = surface.grid.volume(surface.distance).cpu().numpy()
    # Where images cut the object off, the grid's border closes it.
    values = np.pad(values, 1, constant_values=1.0)
    values = np.where(np.abs(values) < _OFF_POINTS, np.float32(_OFF_POINTS), values)
    if values.min() >= 0:
        raise ValueError("expected views whose masks agree on a shape, got an empty one")
    vertices, faces, _, _ = marching_cubes(values, 0.0)
    low = surface.grid.low.cpu().numpy() - surface.grid.cell
    solid = _solid(vertices[:, ::-1] * surface.grid.cell + low, faces[:, ::-1])
    assert solid.status() == Error.NoError, solid.status()
    parts = solid.decompose()
    # A hollow is a part of its own, with a negative volume.
    least = _SPECK * max(part.volume() for part in parts)
    kept = [part for part in parts if part.volume() > least]
    solid = Manifold.compose(kept)
    if filter_rounds > 0:
        solid = _filtered(solid, filter_rounds)
    return _simplified(solid, num_faces, len(kept), surface.grid.cell)


def is_watertight(vertices: np.ndarray, faces: np.ndarray) -> bool:
    """Whether every edge has exactly two faces, once in each direction, vertices at one place
    being one."""
    _, place = np.unique(vertices, axis=0, return_inverse=True)
    joined = place.reshape(-1)[faces].astype(np.int64)
    if (joined == np.roll(joined, 1, axis=1)).any():
        return False
    start, end = joined.reshape(-1), np.roll(joined, -1, axis=1).reshape(-1)
    edges = np.sort(start * len(vertices) + end)
    return bool((np.diff(edges) > 0).all()) and np.array_equal(
        edges, np.sort(end * len(vertices) + start)
    )


def _solid(vertices: np.ndarray, faces: np.ndarray) -> Manifold:
    return Manifold(
        Mesh(
            np.ascontiguousarray(vertices, dtype=np.float32),
            np.ascontiguousarray(faces, dtype=np.uint32),
        )
    )


def _filtered(solid: Manifold, rounds: int) -> Manifold:
    mesh = solid.to_mesh()
    even = trimesh.Trimesh(mesh.vert_properties[:, :3], mesh.tri_verts, process=False)
    filter_taubin(even, iterations=rounds)
    return _solid(even.vertices, even.faces)


def _simplified(solid: Manifold, num_faces: int, num_parts: int, cell: float) -> ClosedMesh:
    if solid.num_tri() <= num_faces:
        return _closed(solid, num_parts, cell)
    mesh = solid.to_mesh()
    # Quadric errors keep more of the shape at few faces, but may leave an edge with four.
    vertices, faces, *_ = fast_simplification.simplify(
        np.array(mesh.vert_properties[:, :3]),
        np.array(mesh.tri_verts, dtype=np.int32),
        target_count=num_faces,
    )
    fewer = _solid(vertices, faces)
    if fewer.status() == Error.NoError:
        closed = _closed(fewer, num_parts, cell)
        if is_watertight(closed.vertices, closed.faces):
            return closed
    for tolerance in _TOLERANCES:
        fewer = solid.simplify(float(tolerance) * cell)
        if fewer.num_tri() <= num_faces:
            break
    return _closed(fewer, num_parts, cell)


def _closed(solid: Manifold, num_parts: int, cell: float) -> ClosedMesh:
    """The mesh of a solid whose sheets touch nowhere: at an edge of four faces, or a corner where
    two tips meet, each gets vertices of its own a little inside."""
    mesh = solid.to_mesh()
    vertices = np.array(mesh.vert_properties[:, :3], dtype=np.float32)
    faces = np.array(mesh.tri_verts, dtype=np.int32)
    _, place, counts = np.unique(vertices, axis=0, return_inverse=True, return_counts=True)
    shared = counts[place.reshape(-1)] > 1
    closed = ClosedMesh(vertices, faces, num_parts)
    vertices[shared] -= np.float32(_APART * cell) * closed.normals[shared]
    return closed
