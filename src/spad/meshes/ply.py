"""PLY models: polygons and strips, with colors or textures of vertices or faces."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from spad.images.color import linear_from_srgb
from spad.meshes.model_file import (
    BARE,
    Material,
    Model,
    Part,
    Surfaces,
    Texture,
    check_faces,
    check_uvs,
)
from spad.meshes.neighbors import Neighbors
from spad.meshes.ply_file import ListValues, PlyFile, read_ply_file
from spad.meshes.polygons import triangulated
from spad.meshes.texture_files import decode_texture

_INDICES = ("vertex_indices", "vertex_index")
_COLORS = (
    ("red", "green", "blue", "alpha"),
    ("r", "g", "b", "a"),
    ("diffuse_red", "diffuse_green", "diffuse_blue", "diffuse_alpha"),
)
_UVS = (("u", "v"), ("s", "t"), ("texture_u", "texture_v"))
_TEXTURE_COMMENT = "TextureFile"

Columns = dict[str, "np.ndarray | ListValues"]


def read_ply(path: Path, max_faces: int | None = None, with_textures: bool = True) -> Model:
    """All faces of a PLY file as triangles, colors by vertex or by face, or a texture.

    Args: as of `spad.meshes.gltf.read_gltf`.

    Raises: ValueError: malformed, cut short, a face at a vertex that does not exist, a texture
        that is missing or damaged, or too many faces.
    """
    file = read_ply_file(path)
    vertex = file.elements.get("vertex", {})
    axes = _arrays(vertex, "xyz")
    if axes is None:
        raise ValueError("expected vertices with x, y and z, got none")
    points = np.stack(axes, axis=-1).astype(np.float64)
    face = file.elements.get("face", {})
    corners, sizes = _faces(file)
    check_faces(int((sizes - 2).clip(min=0).sum()), max_faces)
    if len(corners) and (corners.min() < 0 or corners.max() >= len(points)):
        raise ValueError("a face points at a vertex that does not exist")
    if not np.isfinite(points).all():
        raise ValueError("expected finite vertices, got NaN or infinity")
    places, faces = triangulated(points, corners, sizes)
    notes: set[str] = set()
    if "edge" in file.elements:
        notes.add("has lines, which are left out")
    surfaces = Surfaces(with_textures)
    triangles = points[corners[places]]
    if not with_textures:
        parts = [Part(triangles, surfaces.material(BARE))] if len(places) else []
    else:
        colors = _corner_colors(vertex, face, corners[places], faces, notes)
        painter = _Painter(path, file, surfaces, notes)
        parts = painter.parts(triangles, colors, corners, places, faces, sizes)
    return Model(
        tuple(parts),
        tuple(surfaces.materials),
        tuple(surfaces.textures),
        tuple(sorted(notes)),
        len(points),
    )


def _faces(file: PlyFile) -> tuple[np.ndarray, np.ndarray]:
    """Corners of all polygons one after the other, and how many each has."""
    lists = file.elements.get("face", {})
    found = next((lists[name] for name in _INDICES if name in lists), None)
    if isinstance(found, ListValues):
        return found.values.astype(np.int64), found.lengths
    strips = file.elements.get("tristrips", {})
    found = next((strips[name] for name in _INDICES if name in strips), None)
    if isinstance(found, ListValues):
        triangles = _strips(found)
        return triangles.reshape(-1), np.full(len(triangles), 3)
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _strips(strips: ListValues) -> np.ndarray:
    """(f, 3) triangles of strips; -1 begins another one."""
    ends = np.cumsum(strips.lengths)
    chain = np.insert(strips.values.astype(np.int64), ends, -1)
    position = np.arange(len(chain))
    # Behind the last -1 before it, so counts each corner from the start of its strip.
    start = np.maximum.accumulate(np.where(chain == -1, position + 1, 0))
    first = np.arange(max(0, len(chain) - 2))
    whole = (chain[first] != -1) & (chain[first + 1] != -1) & (chain[first + 2] != -1)
    first = first[whole]
    odd = (first - start[first]) % 2
    return chain[np.stack([first, first + 1 + odd, first + 2 - odd], axis=-1)]


def _corner_colors(
    vertex: Columns, face: Columns, corners: np.ndarray, faces: np.ndarray, notes: set[str]
) -> np.ndarray | None:
    """(f, 3, 4) float32 linear of triangles: of their vertices, else of their faces, else None."""
    of_vertices = _colors(vertex, notes)
    if of_vertices is not None:
        return of_vertices[corners]
    of_faces = _colors(face, notes)
    if of_faces is None or not len(of_faces):
        return None
    return np.repeat(of_faces[faces][:, None], 3, axis=1)


def _arrays(columns: Columns, names: Iterable[str]) -> list[np.ndarray] | None:
    """The columns of these names; None if one is missing or holds lists."""
    found = [columns.get(name) for name in names]
    arrays = [values for values in found if isinstance(values, np.ndarray)]
    return arrays if len(arrays) == len(found) else None


def _colors(columns: Columns, notes: set[str]) -> np.ndarray | None:
    """(n, 4) linear RGBA, whatever names and types the columns have."""
    by_name = {name.lower(): values for name, values in columns.items()}
    for names in _COLORS:
        found = _arrays(by_name, names) or _arrays(by_name, names[:3])
        if found is None:
            continue
        count = len(found)
        if not len(found[0]):
            return np.zeros((0, 4), np.float32)
        scale = _scale(found, notes)
        colors = np.ones((len(found[0]), 4))
        colors[:, :count] = np.stack([c.astype(np.float64) for c in found], axis=-1)
        if not np.isfinite(colors).all():
            raise ValueError("expected finite colors, got NaN or infinity")
        colors[:, :count] /= scale
        colors = colors.clip(0, 1)
        # They come from tools that show them as they are.
        colors[:, :3] = linear_from_srgb(colors[:, :3])
        return colors.astype(np.float32)
    return None


def _scale(columns: list[np.ndarray], notes: set[str]) -> float:
    """The value of a channel at full strength."""
    dtype, largest = columns[0].dtype, max(float(c.max()) for c in columns)
    if dtype.kind == "f":
        if largest > 1:
            notes.add("float colors above 1; read as 0 to 255")
            return 255.0
        return 1.0
    if largest <= 1:
        notes.add("colors are floats cut to integers; reading 1 as full strength")
        return 1.0
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return float(np.iinfo(dtype).max)
    return 255.0 if largest <= 255 else 65535.0


class _Painter:
    """The materials of a file: one for each of its textures, or none at all."""

    def __init__(self, path: Path, file: PlyFile, surfaces: Surfaces, notes: set[str]):
        self._file, self._surfaces = file, surfaces
        neighbors = Neighbors(path.parent, notes)
        self._images = []
        for comment in file.comments:
            word, _, name = comment.partition(" ")
            if word != _TEXTURE_COMMENT:
                continue
            image = neighbors.find(name)
            if image is None:
                raise ValueError(f"texture {name.strip()!r} is missing")
            self._images.append(image)

    def parts(
        self,
        triangles: np.ndarray,
        colors: np.ndarray | None,
        corners: np.ndarray,
        places: np.ndarray,
        faces: np.ndarray,
        sizes: np.ndarray,
    ) -> list[Part]:
        """Triangles (f, 3, 3) of polygons `faces`, by the texture they have."""
        uv = self._corner_uvs(corners, places, faces, sizes) if self._images else None
        if uv is None:
            material = self._surfaces.material(BARE if colors is None else Material())
            return [Part(triangles, material, colors)] if len(triangles) else []
        numbers = self._texture_numbers(faces)
        parts = []
        for number in np.unique(numbers):
            chosen = numbers == number
            material = self._surfaces.material(Material(base_texture=self._texture(int(number))))
            part_colors = None if colors is None else colors[chosen]
            here = uv[chosen]
            parts.append(Part(triangles[chosen], material, part_colors, here, own_uvs=here))
        return parts

    def _texture(self, number: int) -> int:
        image = self._images[number]

        def read() -> Texture:
            pixels = decode_texture(image.read_bytes(), f"texture {image.name!r}").copy()
            pixels[..., 3] = 255
            return Texture(pixels)

        return self._surfaces.texture((image,), read)

    def _texture_numbers(self, faces: np.ndarray) -> np.ndarray:
        numbers = self._file.elements.get("face", {}).get("texnumber")
        if not isinstance(numbers, np.ndarray):
            return np.zeros(len(faces), np.int64)
        numbers = numbers.astype(np.int64)[faces]
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(self._images)):
            raise ValueError(f"expected one of {len(self._images)} textures, got another")
        return numbers

    def _corner_uvs(
        self, corners: np.ndarray, places: np.ndarray, faces: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray | None:
        """(f, 3, 2) float32 from the top left: of faces' corners, else of vertices, else None."""
        wedges = self._file.elements.get("face", {}).get("texcoord")
        if isinstance(wedges, ListValues):
            if (wedges.lengths != 2 * sizes).any():
                raise ValueError("expected two texture coordinates for each corner, got others")
            uv = wedges.values.astype(np.float64).reshape(-1, 2)[places]
        else:
            vertex = self._file.elements["vertex"]
            pairs = (_arrays(vertex, names) for names in _UVS)
            pair = next((pair for pair in pairs if pair is not None), None)
            if pair is None:
                return None
            uv = np.stack(pair, axis=-1).astype(np.float64)[corners[places]]
        uv = uv * [1, -1] + [0, 1]
        check_uvs(uv, "a texture coordinate")
        return uv.astype(np.float32)
