"""Wavefront OBJ files: polygons with the materials of their MTL libraries.

Source: Wavefront, "Object Files (.obj)", appendix B1 of the Advanced Visualizer manual; colors of
vertices behind their coordinates, as MeshLab and ZBrush write them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from spad.images.color import linear_from_srgb
from spad.meshes.model_file import BARE, Material, Model, Part, Surfaces, check_faces, check_uvs
from spad.meshes.mtl import MtlMaterial, read_mtl
from spad.meshes.neighbors import Neighbors
from spad.meshes.polygons import triangulated

_LEFT_OUT = {
    "p": "points", "l": "lines", "curv": "curves", "curv2": "curves", "surf": "free-form surfaces"
}  # fmt: skip


@dataclass
class _Statements:
    """The lines of a file, sorted by what they say."""

    points: list[str] = field(default_factory=list)
    texcoords: list[str] = field(default_factory=list)
    faces: list[str] = field(default_factory=list)
    # Of each face: points and texture coordinates above it, and the number of its material.
    above: list[tuple[int, int]] = field(default_factory=list)
    face_materials: list[int] = field(default_factory=list)
    materials: dict[str, int] = field(default_factory=dict)
    libraries: list[str] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Corners:
    """Corners of all faces, one face after the other: numbers from 0 on, -1 for none."""

    points: np.ndarray
    texcoords: np.ndarray
    sizes: np.ndarray


def read_obj(path: Path, max_faces: int | None = None, with_textures: bool = True) -> Model:
    """All faces of an OBJ file as triangles, with their colors, textures and opacity.

    A material that no library has counts as none, and is noted, as a missing library is.

    Args: as of `spad.meshes.gltf.read_gltf`.

    Raises: ValueError: a malformed line, a face at a point that does not exist, a texture that is
        missing or damaged, or too many faces.
    """
    statements = _sorted_lines(path)
    rows, widths = _numbers(statements.points, "v", 3)
    points = rows[:, :3]
    corners = _corners(statements, len(points), len(statements.texcoords))
    check_faces(int((corners.sizes - 2).clip(min=0).sum()), max_faces)
    if not np.isfinite(points).all():
        raise ValueError("expected finite vertices, got NaN or infinity")
    places, faces = triangulated(points, corners.points, corners.sizes)
    colors = _vertex_colors(rows, widths, statements.notes) if with_textures else None
    uv = None
    if with_textures:
        uv, _ = _numbers(statements.texcoords, "vt", 1)
    surfaces = Surfaces(with_textures)
    library = _Library(path, statements, surfaces) if with_textures else None
    parts = []
    materials = np.asarray(statements.face_materials, dtype=np.int64)[faces]
    textured = (corners.texcoords[places] >= 0).all(axis=1)
    groups, group_of = np.unique(materials * 2 + textured, return_inverse=True)
    for number, group in enumerate(groups):
        chosen = places[group_of == number]
        triangles = points[corners.points[chosen]]
        if library is None:
            parts.append(Part(triangles, surfaces.material(BARE)))
            continue
        painted = None if colors is None else colors[corners.points[chosen]]
        coordinates = None
        if group % 2:
            assert uv is not None, "corners with coordinates were checked"
            coordinates = uv[corners.texcoords[chosen]]
        parts.append(library.part(int(group // 2), triangles, painted, coordinates))
    return Model(
        tuple(parts),
        tuple(surfaces.materials),
        tuple(surfaces.textures),
        tuple(sorted(statements.notes)),
        len(points),
    )


class _Library:
    """The materials of a file, read as faces ask for them."""

    def __init__(self, path: Path, statements: _Statements, surfaces: Surfaces):
        self._surfaces, self._notes = surfaces, statements.notes
        self._neighbors = Neighbors(path.parent, statements.notes)
        self._names = list(statements.materials)
        self._materials: dict[str, MtlMaterial] = {}
        for line in statements.libraries:
            for library in self._libraries(line):
                self._materials |= read_mtl(library, self._neighbors)

    def _libraries(self, line: str) -> Iterable[Path]:
        """Files of an mtllib line: one name with spaces, or several without."""
        whole = self._neighbors.find(line)
        if whole is not None:
            return [whole]
        found = []
        for name in line.split():
            library = self._neighbors.find(name)
            if library is None:
                self._notes.add(f"its material library {line!r} is missing")
            else:
                found.append(library)
        return found

    def part(
        self,
        number: int,
        triangles: np.ndarray,
        colors: np.ndarray | None,
        uv: np.ndarray | None,
    ) -> Part:
        """Triangles (f, 3, 3) of a material, with uv (f, 3, 2) from the bottom left."""
        name = self._names[number]
        own = None if uv is None else (uv * [1, -1] + [0, 1]).astype(np.float32)
        found = self._materials.get(name)
        if found is None:
            if name:
                self._notes.add(f"its material {name!r} is in no library that is there")
            bare = BARE if colors is None else Material()
            return Part(triangles, self._surfaces.material(bare), colors, own_uvs=own)
        if uv is None and found.has_textures:
            self._notes.add(f"faces of material {name!r} have no texture coordinates")
        material, transforms = found.surface(self._surfaces, uv is not None)
        on_texture = [None if t is None or uv is None else t(uv) for t in transforms]
        number = self._surfaces.material(material)
        return Part(triangles, number, colors, *on_texture, own_uvs=own)


def _sorted_lines(path: Path) -> _Statements:
    # Names of files may be in any encoding: such bytes come through as they are.
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\\\n", " ")
    text = text.replace("\t", " ")
    found = _Statements(materials={"": 0})
    material = 0
    for line in text.split("\n"):
        word, _, rest = line.partition(" ")
        if not word:  # it is empty or begins with spaces
            word, _, rest = line.lstrip().partition(" ")
        if word == "v":
            found.points.append(rest)
        elif word == "vt":
            found.texcoords.append(rest)
        elif word in ("f", "fo"):
            found.faces.append(rest)
            found.above.append((len(found.points), len(found.texcoords)))
            found.face_materials.append(material)
        elif word == "usemtl":
            material = found.materials.setdefault(rest.strip(), len(found.materials))
        elif word == "mtllib":
            found.libraries.append(rest.strip())
        elif word in _LEFT_OUT:
            found.notes.add(f"has {_LEFT_OUT[word]}, which are left out")
    return found


def _words(lines: list[str]) -> list[list[str]]:
    """Words of each line, up to a comment."""
    if any("#" in line for line in lines):
        lines = [line.partition("#")[0] for line in lines]
    return [line.split() for line in lines]


def _numbers(lines: list[str], word: str, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of lines, (n, 7) filled up with zeros, and how many each line has."""
    rows = _words(lines)
    widths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    if len(widths) and widths.min() < least:
        short = lines[int(widths.argmin())].strip()[:40]
        raise ValueError(f"expected {least} numbers after {word!r}, got {short!r}")
    try:
        flat = np.array(list(chain.from_iterable(rows)), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"expected numbers after {word!r} ({error})") from None
    table = np.zeros((len(rows), 7))
    row = np.repeat(np.arange(len(rows)), widths)
    column = np.arange(len(flat)) - np.repeat(np.cumsum(widths) - widths, widths)
    table[row[column < 7], column[column < 7]] = flat[column < 7]
    if word == "vt":
        check_uvs(table[:, :2], "a texture coordinate")
        table = table[:, :2]
    return table, widths


def _corners(statements: _Statements, num_points: int, num_texcoords: int) -> _Corners:
    """What "a", "a/b", "a//c" and "a/b/c" of all faces mean; negative numbers count backwards."""
    rows = _words(statements.faces)
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    tokens = list(chain.from_iterable(rows))
    # Most corners are shared, so each is taken apart once.
    distinct = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    parsed = np.array([_parse_corner(token) for token in distinct], np.int64).reshape(-1, 2)
    numbers = parsed[np.fromiter(map(distinct.get, tokens), dtype=np.int64, count=len(tokens))]
    above = np.repeat(np.array(statements.above, dtype=np.int64).reshape(-1, 2), sizes, axis=0)
    found = np.where(numbers < 0, above + numbers, numbers - 1)
    missing = numbers[:, 1] == 0
    found[missing, 1] = -1
    for column, (name, most) in enumerate(
        (("vertex", num_points), ("texture coordinate", num_texcoords))
    ):
        given = found[~missing, 1] if column else found[:, 0]
        if len(given) and (given.min() < 0 or given.max() >= most):
            raise ValueError(f"a face points at a {name} that does not exist")
    return _Corners(found[:, 0], found[:, 1], sizes)


def _parse_corner(token: str) -> tuple[int, int]:
    """The numbers of its point and of its texture coordinate, 0 for none."""
    first, _, rest = token.partition("/")
    second = rest.partition("/")[0]
    try:
        point, texcoord = int(first), int(second or 0)
    except ValueError:
        raise ValueError(f"expected a corner such as 1/2/3, got {token[:40]!r}") from None
    if point == 0 or max(abs(point), abs(texcoord)) >= 2**62:
        raise ValueError(f"expected corners to count from 1, got {token[:40]!r}")
    return point, texcoord


def _vertex_colors(rows: np.ndarray, widths: np.ndarray, notes: set[str]) -> np.ndarray | None:
    """(n, 4) float32 linear; white where a line has none; None where no line has."""
    given = widths >= 6
    if not given.any():
        return None
    colors = np.ones((len(rows), 4))
    colors[given, :3] = rows[given, 3:6]
    colors[widths >= 7, 3] = rows[widths >= 7, 6]
    if not np.isfinite(colors).all():
        raise ValueError("expected finite colors of vertices, got NaN or infinity")
    if colors[given, :3].max() > 1:
        notes.add("colors of vertices above 1; read as 0 to 255")
        colors[given, :3] /= 255
        colors[widths >= 7, 3] /= 255
    colors = colors.clip(0, 1)
    # They come from tools that show them as they are.
    colors[:, :3] = linear_from_srgb(colors[:, :3])
    return colors.astype(np.float32)
