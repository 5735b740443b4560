"""Polygons as triangles: convex ones by fans, concave ones by cutting off ears."""

from __future__ import annotations

import numpy as np

# Of a turn: how far the angles of a convex outline may be from one round.
_SLACK = 1e-3


def triangulated(
    points: np.ndarray, corners: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of flat polygons, wound as these are.

    Args:
        points: (n, 3) finite.
        corners: (c,) numbers of points, one polygon after the other.
        sizes: (p,) corners of each polygon; those of less than three give no triangle.

    Returns: (f, 3) positions in `corners`, and (f,) polygons; in order of the polygons.
    """
    starts = np.cumsum(sizes) - sizes
    found, owners = [], []
    for size in np.unique(sizes[sizes >= 3]):
        polygons = np.nonzero(sizes == size)[0]
        places = starts[polygons, None] + np.arange(size)
        if size == 4:
            found.append(_halves(points[corners[places]], places))
            owners.append(np.repeat(polygons, 2))
            continue
        convex = np.ones(len(polygons), dtype=bool)
        if size > 3:
            convex = _are_convex(points[corners[places]])
        fan = np.stack(
            [np.zeros(size - 2, int), np.arange(1, size - 1), np.arange(2, size)], axis=-1
        )
        found.append(places[convex][:, fan].reshape(-1, 3))
        owners.append(np.repeat(polygons[convex], size - 2))
        # Few meshes have concave faces, and these are few.
        for polygon, place in zip(polygons[~convex], places[~convex], strict=True):
            triangles = _ears(points[corners[place]])
            found.append(place[triangles])
            owners.append(np.full(len(triangles), polygon))
    if not found:
        return np.zeros((0, 3), int), np.zeros(0, int)
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return np.concatenate(found)[order], owner[order]


def _halves(outlines: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Quads (p, 4, 3) cut where both halves face the way of the whole; (2 p, 3) of their places."""
    normals = _normals(outlines)[:, None]
    least = []
    cuts = np.array([[[0, 1, 2], [0, 2, 3]], [[1, 2, 3], [1, 3, 0]]])
    for cut in cuts:
        a, b, c = (outlines[:, cut[:, i]] for i in range(3))
        least.append((np.cross(b - a, c - a) * normals).sum(axis=-1).min(axis=-1))
    # The first cut where both will do, as everybody makes it.
    second = (least[0] < 0) & (least[1] > least[0])
    chosen = cuts[second.astype(int)].reshape(-1, 6)
    return np.take_along_axis(places, chosen, axis=1).reshape(-1, 3)


def _normals(outlines: np.ndarray) -> np.ndarray:
    """(p, 3) unit normals of outlines (p, k, 3), by Newell's sums; zero where there is no area."""
    centered = outlines - outlines.mean(axis=1, keepdims=True)
    sums = np.cross(centered, np.roll(centered, -1, axis=1)).sum(axis=1)
    return sums / np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-300)


def _are_convex(outlines: np.ndarray) -> np.ndarray:
    """Whether outlines (p, k, 3) turn one way, and once round."""
    edges = np.roll(outlines, -1, axis=1) - outlines
    after = np.roll(edges, -1, axis=1)
    normals = _normals(outlines)[:, None]
    turns = np.arctan2(
        (np.cross(edges, after) * normals).sum(axis=-1), (edges * after).sum(axis=-1)
    )
    rounds = turns.sum(axis=-1) / (2 * np.pi)
    return (turns >= -_SLACK).all(axis=-1) & (np.abs(rounds - 1) < _SLACK)


def _ears(outline: np.ndarray) -> np.ndarray:
    """(f, 3) triangles of one outline (k, 3), wound as it is."""
    # Few files need it, and a command that only names the formats has it not.
    import mapbox_earcut

    (normal,) = _normals(outline[None])
    # Seen from where it runs counter-clockwise, or from the far side of its thinnest axis.
    axis = int(np.abs(normal).argmax())
    u, v = (axis + 1) % 3, (axis + 2) % 3
    if normal[axis] < 0:
        u, v = v, u
    flat = np.ascontiguousarray(outline[:, [u, v]])
    ends = np.array([len(flat)], dtype=np.uint32)
    triangles = mapbox_earcut.triangulate_float64(flat, ends).reshape(-1, 3).astype(int)
    a, b, c = (flat[triangles[:, i]] for i in range(3))
    (abx, aby), (acx, acy) = (b - a).T, (c - a).T
    clockwise = abx * acy - aby * acx < 0
    return np.where(clockwise[:, None], triangles[:, ::-1], triangles)
