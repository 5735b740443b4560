"""3D model files as triangle soups ready for ray casting: z up, normalised, colours linear."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from spad.images.color import linear_from_srgb
from spad.meshes.gltf import GLTF_SUFFIXES, ModelFiles

log = logging.getLogger(__name__)

MODEL_SUFFIXES = (*GLTF_SUFFIXES, ".obj", ".ply", ".stl")
NORMALIZATIONS = ("sphere", "cube")

Z_UP_FROM_Y_UP = np.array(
    [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=np.float64
)

# A surface nothing is said about: light enough to shade, dark enough to stand out on white.
DEFAULT_ALBEDO = 0.6
CREASE_DEG = 40.0
# Corners around one point are compared pair by pair; fans larger than this stay faceted
# so that a degenerate mesh cannot ask for a quadratic amount of memory.
MAX_FAN = 256


@contextmanager
def unreadable_files_named(path: Path) -> Iterator[None]:
    """Turn whatever a parser of `path` raises into a ValueError that names the file."""
    try:
        yield
    except MemoryError:
        raise
    # Parsers fail on damaged bytes with whatever the damage leads to (KeyError, struct.error,
    # IndexError, ...): at this one boundary all of it means "unreadable file".
    except Exception as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"cannot read {path.name}: {kind}{error}") from error


@dataclass(frozen=True)
class Material:
    """One surface: linear factors, and which textures of the object multiply them (-1: none)."""

    base_factor: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    base_texture: int = -1
    emissive_factor: tuple[float, float, float] = (0.0, 0.0, 0.0)
    emissive_texture: int = -1
    alpha_mode: str = "OPAQUE"
    alpha_cutoff: float = 0.5


@dataclass(frozen=True)
class RenderObject:
    """A model as one triangle mesh, in object coordinates: z up, centred, normalised.

    Attributes:
        vertices: (n, 3) float32.
        faces: (f, 3) int32.
        face_normals: (f, 3) float32, unit, by the right-hand rule.
        corner_normals: (f, 3, 3) float32, unit: shading normal of each corner of each face.
        corner_uvs: (f, 3, 2) float32, origin at the texture's top left, v down.
        corner_colors: (f, 3, 4) float32 linear RGBA, or None when the model has none.
        face_materials: (f,) int32 into `materials`.
        materials: the object's surfaces.
        textures: (h, w, 4) float32 each, linear RGB and alpha, in [0, 1].
        object_from_asset: (4, 4) float64, takes the file's coordinates to object coordinates.
    """

    vertices: np.ndarray
    faces: np.ndarray
    face_normals: np.ndarray
    corner_normals: np.ndarray
    corner_uvs: np.ndarray
    corner_colors: np.ndarray | None
    face_materials: np.ndarray
    materials: tuple[Material, ...]
    textures: tuple[np.ndarray, ...]
    object_from_asset: np.ndarray


_LINEAR_FROM_BYTE = linear_from_srgb(np.arange(256) / 255.0).astype(np.float32)


def load_object(
    path: str | Path,
    normalize: str = "sphere",
    up: str | None = None,
    max_faces: int | None = None,
) -> RenderObject:
    """Read a GLB, glTF, OBJ, PLY or STL file as a `RenderObject`.

    Node transforms and instances are applied. Normals are computed, not read: faces around a
    point that differ by less than 40 degrees share a smooth normal, others meet in a crease.

    Args:
        path: the model file.
        normalize: "sphere" puts the bounding box's centre at the origin and the farthest vertex
            at distance 1; "cube" the same centre with the longest side 1, in [-0.5, 0.5].
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
    if path.suffix.lower() not in MODEL_SUFFIXES:
        raise ValueError(f"expected a model file ({', '.join(MODEL_SUFFIXES)}), got {path.name}")
    if not path.is_file():
        raise ValueError(f"expected a model file, got {path}, which does not exist")
    is_gltf = path.suffix.lower() in GLTF_SUFFIXES
    with unreadable_files_named(path):
        scene = trimesh.load_scene(path, process=False, resolver=ModelFiles(str(path)))
    try:
        _check_size(scene, max_faces)
        soup = _collect(scene, is_gltf)
        for note in sorted(soup.notes):
            log.warning("%s: %s", path.name, note)
        y_up = up == "y" or (up is None and is_gltf)
        return _build(soup, Z_UP_FROM_Y_UP if y_up else np.eye(4), normalize)
    except ValueError as error:
        raise ValueError(f"cannot use {path.name}: {error}") from error


def _check_size(scene: trimesh.Scene, max_faces: int | None) -> None:
    """Count before anything is laid out: what follows takes memory for every corner."""
    names = (scene.graph[node][1] for node in scene.graph.nodes_geometry)
    total = sum(len(getattr(scene.geometry[name], "faces", ())) for name in names)
    if max_faces is not None and total > max_faces:
        raise ValueError(f"{total:,} triangles are more than --max-faces {max_faces:,}")


@dataclass
class _Soup:
    """Corner attributes of every instance in a scene, in file coordinates, ready to join."""

    points: list[np.ndarray]
    uvs: list[np.ndarray]
    colors: list[np.ndarray | None]
    material_ids: list[np.ndarray]
    materials: list[Material]
    textures: list[np.ndarray]
    notes: set[str]


def _collect(scene: trimesh.Scene, is_gltf: bool) -> _Soup:
    soup = _Soup([], [], [], [], [], [], set())
    texture_ids: dict[int, int] = {}
    surfaces: dict[str, tuple] = {}
    for node in sorted(scene.graph.nodes_geometry):
        asset_from_node, name = scene.graph[node]
        mesh = scene.geometry[name]
        if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
            continue
        if name not in surfaces:
            material, colors = _read_surface(mesh, is_gltf, texture_ids, soup)
            soup.materials.append(material)
            surfaces[name] = (len(soup.materials) - 1, colors)
        material_id, colors = surfaces[name]
        faces = np.asarray(mesh.faces)
        vertices = np.asarray(mesh.vertices, dtype=np.float64)
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ValueError("a face points at a vertex that does not exist")
        order = slice(None)
        if np.linalg.det(asset_from_node[:3, :3]) < 0:
            order = slice(None, None, -1)  # a mirrored instance would turn inside out
        faces = faces[:, order]
        vertices = vertices @ asset_from_node[:3, :3].T + asset_from_node[:3, 3]
        soup.points.append(vertices[faces])
        soup.material_ids.append(np.full(len(faces), material_id, dtype=np.int32))
        soup.uvs.append(_corner_uvs(mesh, faces))
        soup.colors.append(None if colors is None else colors[:, order])
    if not soup.points:
        raise ValueError("expected triangles, got none; is it a point cloud or an empty scene?")
    return soup


def _corner_uvs(mesh: trimesh.Trimesh, faces: np.ndarray) -> np.ndarray:
    uv = getattr(mesh.visual, "uv", None)
    if uv is None or len(uv) != len(mesh.vertices):
        return np.zeros((len(faces), 3, 2), dtype=np.float32)
    # trimesh counts v from the bottom whatever the format; pictures are stored from the top.
    return (np.array([0.0, 1.0]) + np.array([1.0, -1.0]) * uv[:, :2])[faces].astype(np.float32)


def _read_surface(
    mesh: trimesh.Trimesh, is_gltf: bool, texture_ids: dict[int, int], soup: _Soup
) -> tuple[Material, np.ndarray | None]:
    """The material and the (f, 3, 4) linear corner colours of one mesh."""
    visual = mesh.visual
    corner_colors = None
    if isinstance(visual, trimesh.visual.ColorVisuals):
        if visual.kind is None:
            return Material(base_factor=(DEFAULT_ALBEDO,) * 3 + (1.0,)), None
        if visual.kind == "face":
            corner_colors = np.repeat(np.asarray(visual.face_colors)[:, None], 3, axis=1)
        else:
            corner_colors = np.asarray(visual.vertex_colors)[mesh.faces]
        # glTF stores linear vertex colours; PLY and OBJ files come from tools that show them as is.
        return Material(), _linear_colors(corner_colors, encoded=not is_gltf, notes=soup.notes)

    def texture_id(image: Image.Image | None) -> int:
        if image is None or getattr(visual, "uv", None) is None:
            return -1
        if id(image) not in texture_ids:
            texture_ids[id(image)] = len(soup.textures)
            soup.textures.append(_linear_texture(image))
        return texture_ids[id(image)]

    source = visual.material
    attributes = getattr(visual, "vertex_attributes", None) or {}
    if "color" in attributes and len(attributes["color"]) == len(mesh.vertices):
        colors = np.asarray(attributes["color"])[mesh.faces]
        corner_colors = _linear_colors(colors, encoded=not is_gltf, notes=soup.notes)
    if isinstance(source, trimesh.visual.material.PBRMaterial):
        factor = _rgba(source.baseColorFactor)
        emissive = np.zeros(3) if source.emissiveFactor is None else source.emissiveFactor
        material = Material(
            base_factor=tuple(factor.tolist()),
            base_texture=texture_id(source.baseColorTexture),
            emissive_factor=tuple(np.asarray(emissive, dtype=np.float64)[:3].tolist()),
            emissive_texture=texture_id(source.emissiveTexture),
            alpha_mode=source.alphaMode or "OPAQUE",
            alpha_cutoff=0.5 if source.alphaCutoff is None else float(source.alphaCutoff),
        )
        return material, corner_colors
    image_id = texture_id(getattr(source, "image", None))
    if image_id >= 0:
        return Material(base_texture=image_id), corner_colors
    factor = _rgba(source.main_color)
    factor[:3] = linear_from_srgb(factor[:3])  # MTL colours are what a colour picker showed
    return Material(base_factor=tuple(factor.tolist())), corner_colors


def _rgba(value) -> np.ndarray:
    """Four floats in [0, 1] from trimesh's bytes or floats, three or four of them, or None."""
    if value is None:
        return np.ones(4)
    value = np.asarray(value)
    scale = np.iinfo(value.dtype).max if np.issubdtype(value.dtype, np.unsignedinteger) else 1.0
    rgba = np.ones(4)
    rgba[: value.size] = value.reshape(-1)[:4] / scale
    return rgba


def _linear_colors(colors: np.ndarray, encoded: bool, notes: set[str]) -> np.ndarray:
    integer = np.issubdtype(colors.dtype, np.unsignedinteger)
    scale = np.iinfo(colors.dtype).max if integer else 1.0
    # Some exporters cast floats in [0, 1] to bytes without scaling them. Read literally, such a
    # mesh is black and nearly transparent, which no file means to say.
    if integer and colors.max() <= 1:
        notes.add("vertex colours are floats cut to integers; reading 1 as full strength")
        scale = 1.0
    linear = np.ones((*colors.shape[:2], 4), dtype=np.float32)
    linear[..., : colors.shape[2]] = colors / scale
    if encoded:
        linear[..., :3] = linear_from_srgb(linear[..., :3])
    return linear


def _linear_texture(image: Image.Image) -> np.ndarray:
    try:
        pixels = np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError) as error:  # trimesh reads no further than a picture's size
        raise ValueError(f"a texture is damaged: {error}") from error
    texture = _LINEAR_FROM_BYTE[pixels]
    texture[..., 3] = pixels[..., 3] * np.float32(1 / 255)
    return texture


def _build(soup: _Soup, z_up_from_asset: np.ndarray, normalize: str) -> RenderObject:
    points = np.concatenate(soup.points) @ z_up_from_asset[:3, :3].T
    if not np.isfinite(points).all():
        raise ValueError("expected finite vertices, got NaN or infinity")
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    center = (low + high) / 2
    centered = points - center
    if normalize == "sphere":
        extent = np.sqrt((centered**2).sum(axis=-1).max())
    else:
        extent = (high - low).max()
    if extent <= 0:
        raise ValueError("expected a surface, got a single point")
    centered /= extent
    object_from_z_up = np.diag([1 / extent] * 3 + [1.0])
    object_from_z_up[:3, 3] = -center / extent

    area_normals = np.cross(centered[:, 1] - centered[:, 0], centered[:, 2] - centered[:, 0])
    doubled_areas = np.linalg.norm(area_normals, axis=-1)
    keep = doubled_areas > 1e-12
    if not keep.any():
        raise ValueError("expected a surface, got only triangles without area")
    centered, area_normals = centered[keep], area_normals[keep]
    # Joined by position, faces smooth across the seams that UVs and materials cut. Adding zero
    # turns -0.0 into 0.0, which would count as another place.
    places = np.round(centered.reshape(-1, 3), 6) + 0.0
    vertices, inverse = np.unique(places, axis=0, return_inverse=True)
    faces = inverse.reshape(-1, 3).astype(np.int32)
    colors = None
    if any(part is not None for part in soup.colors):
        filled = [
            np.ones((len(ids), 3, 4), dtype=np.float32) if part is None else part
            for part, ids in zip(soup.colors, soup.material_ids, strict=True)
        ]
        colors = np.concatenate(filled)[keep]
    return RenderObject(
        vertices=vertices.astype(np.float32),
        faces=faces,
        face_normals=(area_normals / doubled_areas[keep, None]).astype(np.float32),
        corner_normals=crease_normals(faces, area_normals).astype(np.float32),
        corner_uvs=np.concatenate(soup.uvs)[keep],
        corner_colors=colors,
        face_materials=np.concatenate(soup.material_ids)[keep],
        materials=tuple(soup.materials),
        textures=tuple(soup.textures),
        object_from_asset=object_from_z_up @ z_up_from_asset,
    )


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
