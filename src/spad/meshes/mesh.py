"""3D model files as triangle soups ready for ray casting: z up, normalized, colors linear."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spad.meshes.gltf_file import GLTF_SUFFIXES
from spad.meshes.model_file import Material, Model, Texture
from spad.meshes.readers import read_model

NORMALIZATIONS = ("sphere", "cube")

Z_UP_FROM_Y_UP = np.array(
    [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=np.float64
)

CREASE_DEG = 40.0
# Corners around one point are compared pair by pair; fans larger than this stay faceted
# so that a degenerate mesh cannot ask for a quadratic amount of memory.
MAX_FAN = 256
# Of a triangle's length, and of the whole.
THINNEST = 1e-6
# Larger coordinates have squares of squares that no float64 holds.
LARGEST = 1e60


@dataclass(frozen=True)
class TriangleMesh:
    """A model as one triangle mesh, in object coordinates: z up, centered, normalized.

    Attributes:
        vertices: (n, 3) float32.
        faces: (f, 3) int32.
        face_normals: (f, 3) float32, unit, by the right-hand rule.
        corner_normals: (f, 3, 3) float32, unit: shading normal of each corner of each face.
        base_uvs, emissive_uvs, opacity_uvs: (f, 3, 2) float32, where the corners lie on these
            textures, origin at the top left, v down; None where no material has any.
        own_uvs: (f, 3, 2) float32, the first texture coordinates of the file, whether or not an
            image lies there; None unless all faces have some.
        corner_colors: (f, 3, 4) float32 linear RGBA, or None when the model has none.
        face_materials: (f,) int32 into `materials`.
        materials: the object's surfaces.
        textures: the images on them.
        object_from_asset: (4, 4) float64, takes the file's coordinates to object coordinates.
        notes: sentences on what of the file is left out or was read otherwise than it says.
    """

    vertices: np.ndarray
    faces: np.ndarray
    face_normals: np.ndarray
    corner_normals: np.ndarray
    base_uvs: np.ndarray | None
    emissive_uvs: np.ndarray | None
    opacity_uvs: np.ndarray | None
    corner_colors: np.ndarray | None
    face_materials: np.ndarray
    materials: tuple[Material, ...]
    textures: tuple[Texture, ...]
    object_from_asset: np.ndarray
    notes: tuple[str, ...] = ()
    own_uvs: np.ndarray | None = None


def load_object(
    path: str | Path,
    normalize: str = "sphere",
    up: str | None = None,
    max_faces: int | None = None,
) -> TriangleMesh:
    """Read a GLB, glTF, OBJ, PLY or STL file as a `TriangleMesh`.

    Node transforms and instances are applied. Normals are computed, not read: faces around a
    point that differ by less than 40 degrees share a smooth normal, others meet in a crease.
    Triangles too thin or too small to be seen are left out, and take no room.

    Args:
        path: the model file.
        normalize: "sphere" puts the bounding box's center at the origin and the farthest vertex
            at distance 1; "cube" the same center with the longest side 1, in [-0.5, 0.5].
        up: "y" or "z", the file's up axis; None takes y for glTF, as that format says, and z
            for the others. y up becomes z up by (x, y, z) -> (x, -z, y), as in Blender.
        max_faces: most triangles, instances counted; None takes any number.

    Raises:
        ValueError: the file is missing, of another kind, unreadable, holds no surface, or has
            too many triangles.
    """
    path = Path(path)
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"expected normalize in {NORMALIZATIONS}, got {normalize!r}")
    if up not in (None, "y", "z"):
        raise ValueError(f"expected up 'y', 'z' or None, got {up!r}")
    model = read_model(path, max_faces)
    y_up = up == "y" or (up is None and path.suffix.lower() in GLTF_SUFFIXES)
    try:
        return _build(model, Z_UP_FROM_Y_UP if y_up else np.eye(4), normalize)
    except ValueError as error:
        raise ValueError(f"cannot use {path.name}: {error}") from error


def _build(model: Model, z_up_from_asset: np.ndarray, normalize: str) -> TriangleMesh:
    if not model.parts:
        raise ValueError("expected triangles, got none; is it a point cloud or an empty scene?")
    points = np.concatenate([part.corners for part in model.parts])
    if not np.isfinite(points).all():
        raise ValueError("expected finite vertices, got NaN or infinity")
    if np.abs(points).max() > LARGEST:
        raise ValueError(f"expected coordinates within ±{LARGEST:g}, got larger ones")
    points = points @ z_up_from_asset[:3, :3].T
    keep = visible_triangles(points, normalize)
    points = points[keep]
    center, extent = bounds(points, normalize)
    centered = (points - center) / extent
    object_from_z_up = np.diag([1 / extent] * 3 + [1.0])
    object_from_z_up[:3, 3] = -center / extent

    area_normals = np.cross(centered[:, 1] - centered[:, 0], centered[:, 2] - centered[:, 0])
    # Joined by position, faces smooth across the seams that UVs and materials cut. Adding zero
    # turns -0.0 into 0.0, which would count as another place.
    places = np.round(centered.reshape(-1, 3), 6) + 0.0
    vertices, inverse = np.unique(places, axis=0, return_inverse=True)
    faces = inverse.reshape(-1, 3).astype(np.int32)
    materials = [np.full(len(part.corners), part.material, np.int32) for part in model.parts]
    lengths = np.linalg.norm(area_normals, axis=-1, keepdims=True)
    return TriangleMesh(
        vertices=vertices.astype(np.float32),
        faces=faces,
        face_normals=(area_normals / lengths).astype(np.float32),
        corner_normals=crease_normals(faces, area_normals).astype(np.float32),
        base_uvs=_joined(model, "base_uvs", keep, np.zeros(2)),
        emissive_uvs=_joined(model, "emissive_uvs", keep, np.zeros(2)),
        opacity_uvs=_joined(model, "opacity_uvs", keep, np.zeros(2)),
        corner_colors=_joined(model, "colors", keep, np.ones(4)),
        face_materials=np.concatenate(materials)[keep],
        materials=model.materials,
        textures=model.textures,
        object_from_asset=object_from_z_up @ z_up_from_asset,
        notes=model.notes,
        own_uvs=None
        if any(part.own_uvs is None for part in model.parts)
        else _joined(model, "own_uvs", keep, np.zeros(2)),
    )


def _joined(model: Model, name: str, keep: np.ndarray, filling: np.ndarray) -> np.ndarray | None:
    """An attribute (f, 3, c) of the corners of all parts, filled where one has none."""
    values = [getattr(part, name) for part in model.parts]
    if all(value is None for value in values):
        return None
    filled = [
        np.broadcast_to(filling.astype(np.float32), (len(part.corners), 3, len(filling)))
        if value is None
        else value
        for part, value in zip(model.parts, values, strict=True)
    ]
    return np.concatenate(filled)[keep]


def bounds(points: np.ndarray, normalize: str) -> tuple[np.ndarray, float]:
    """The middle (3,) of the box around points (..., 3), and the length that becomes 1."""
    points = points.reshape(-1, 3)
    low, high = points.min(axis=0), points.max(axis=0)
    center = (low + high) / 2
    if normalize == "cube":
        return center, float((high - low).max())
    return center, float(np.sqrt(((points - center) ** 2).sum(axis=-1).max()))


def visible_triangles(points: np.ndarray, normalize: str) -> np.ndarray:
    """Which triangles (f, 3, 3) are neither lines nor points: (f,) bool.

    Left out is what is thinner than a millionth of its own length, then what is shorter than a
    millionth of the rest. By triangles at one point or below a node of scale 0, files hide
    things.

    Raises: ValueError: none is left.
    """
    edges = np.roll(points, -1, axis=1) - points
    longest = (edges**2).sum(axis=-1).max(axis=1)
    doubled_areas = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1)
    keep = doubled_areas > THINNEST * longest
    if not keep.any():
        raise ValueError("expected a surface, got only triangles without area")
    _, extent = bounds(points[keep], normalize)
    return keep & (longest > (THINNEST * extent) ** 2)


def crease_normals(
    faces: np.ndarray, area_normals: np.ndarray, crease_deg: float = CREASE_DEG
) -> np.ndarray:
    """Unit shading normals (f, 3, 3) of each corner, smooth up to a crease angle.

    A corner's normal is the area-weighted mean over the faces around its vertex that deviate
    from its own face by less than `crease_deg`.

    Args:
        faces: (f, 3) vertex indices, vertices at one position merged.
        area_normals: (f, 3) face normals, longer for larger faces, none zero.
    """
    unit = area_normals / np.linalg.norm(area_normals, axis=-1, keepdims=True)
    corner_vertex = faces.reshape(-1)
    order = np.argsort(corner_vertex, kind="stable")
    sizes = np.bincount(corner_vertex)
    starts = np.cumsum(sizes) - sizes
    fan = np.where(sizes[corner_vertex] <= MAX_FAN, sizes[corner_vertex], 0)
    # Every corner is paired with every corner at its vertex, itself included.
    first = np.repeat(np.arange(len(corner_vertex)), fan)
    within = np.arange(len(first)) - np.repeat(np.cumsum(fan) - fan, fan)
    second = order[starts[corner_vertex[first]] + within]
    face_a, face_b = first // 3, second // 3
    smooth = (unit[face_a] * unit[face_b]).sum(axis=-1) > np.cos(np.radians(crease_deg))
    first, face_b = first[smooth], face_b[smooth]
    sums = np.stack(
        [
            np.bincount(first, weights=area_normals[face_b, axis], minlength=len(corner_vertex))
            for axis in range(3)
        ],
        axis=-1,
    )
    lengths = np.linalg.norm(sums, axis=-1, keepdims=True)
    own = np.repeat(unit, 3, axis=0)
    return np.where(lengths > 0, sums / np.maximum(lengths, 1e-30), own).reshape(-1, 3, 3)
