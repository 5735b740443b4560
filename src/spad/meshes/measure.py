"""Count the triangles, vertices and animations of a model file, and hash its geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spad.meshes.readers import read_model


@dataclass(frozen=True)
class Measurement:
    """Counts of a model, instances included, and a hash of its triangles."""

    faces: int
    vertices: int
    animations: int
    geometry: str


def measure_model(path: Path) -> Measurement:
    """Count triangles, vertices and animations of a GLB, glTF, OBJ, PLY or STL file.

    `geometry` depends only on the set of triangles: not on the order of triangles, vertices and
    nodes, nor on materials. A moved or scaled copy has another geometry.

    Raises: ValueError: the file is missing or unreadable, or has vertices that are not finite.
    """
    path = Path(path)
    model = read_model(path, with_textures=False)
    triangles = [np.zeros((0, 3, 3)), *(part.corners for part in model.parts)]
    with np.errstate(over="ignore"):
        corners = np.concatenate(triangles).astype(np.float32)
    if not np.isfinite(corners).all():
        raise ValueError(f"{path.name}: expected finite vertices, got NaN or infinity")
    return Measurement(
        len(corners), model.num_vertices, model.num_animations, _hash_triangles(corners)
    )


def _hash_triangles(corners: np.ndarray) -> str:
    """64-bit hash of (f, 3, 3) float32 triangles, independent of their order and their corners'.

    A sum of mixed values does not depend on the order. Source of the mixing: the finalizer of
    MurmurHash3, by Austin Appleby.
    """
    # Adding zero turns -0.0 into 0.0, which is the same coordinate.
    bits = np.ascontiguousarray(corners + np.float32(0)).view(np.uint32).astype(np.uint64)
    places = np.zeros(bits.shape[:2], dtype=np.uint64)
    for axis in range(3):
        places = _mix(places + bits[..., axis] + np.uint64(axis + 1))
    total = int(_mix(places.sum(axis=1, dtype=np.uint64)).sum(dtype=np.uint64))
    return f"{total:016x}"


def _mix(values: np.ndarray) -> np.ndarray:
    shift = np.uint64(33)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> shift)) * np.uint64(factor)
    return values ^ (values >> shift)
