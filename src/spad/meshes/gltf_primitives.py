"""Mesh primitives of a glTF file as triangles: topology, morph targets, Draco, vertex colors.

Sections in brackets are those of the Khronos glTF 2.0 specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spad.meshes import gltf_accessors
from spad.meshes.gltf_accessors import component_type, normalized
from spad.meshes.gltf_file import Entry, GltfFile

DRACO = "KHR_draco_mesh_compression"
# [3.7.2.1]
_POINTS, _LINES, _TRIANGLES, _STRIP, _FAN = range(0, 1), range(1, 4), 4, 5, 6


@dataclass(frozen=True)
class Primitive:
    """Triangles of one material, before any node places them.

    Attributes:
        positions: (n, 3) float64, morph targets applied.
        triangles: (f, 3) int64 into the positions.
        texcoords: (n, 2) float64 by the n of TEXCOORD_n.
        colors: (n, 4) float64 linear RGBA, or None.
        joints, weights: (n, k) int64 and float64, k influences of a skin's joints; or None.
        material: its number in the file, or None.
    """

    positions: np.ndarray
    triangles: np.ndarray
    texcoords: Mapping[int, np.ndarray]
    colors: np.ndarray | None
    joints: np.ndarray | None
    weights: np.ndarray | None
    material: int | None


def count_triangles(file: GltfFile, primitive: Entry) -> int:
    """Triangles that a primitive has, which are not read."""
    mode = _mode(primitive)
    if mode < _TRIANGLES or "POSITION" not in primitive.entry("attributes"):
        return 0
    index = _index(primitive, "indices")
    if index is None:
        index = primitive.entry("attributes").integer("POSITION")
    corners = gltf_accessors.count_of(file, index, primitive.place)
    return corners // 3 if mode == _TRIANGLES else max(0, corners - 2)


def read_primitive(
    file: GltfFile, primitive: Entry, morph_weights: Sequence[float], with_colors: bool = True
) -> Primitive | None:
    """Decode one; None for points and lines, and for what has no positions.

    Args:
        morph_weights: one for each morph target.
        with_colors: also read what only shows on the surface.

    Raises: ValueError: malformed or cut short; the message says where.
    """
    mode, place = _mode(primitive), primitive.place
    attributes = primitive.entry("attributes")
    if mode < _TRIANGLES:
        kind = "points" if mode in _POINTS else "lines"
        file.notes.add(f"{place} is of {kind}, which are left out")
        return None
    if "POSITION" not in attributes:  # [3.7.2.1] Nothing that spad knows gives other positions.
        file.notes.add(f"{place} has no positions and is left out")
        return None
    source = _Attributes(file, primitive)
    positions = source.floats("POSITION", "VEC3")
    num = len(positions)
    corners = source.corners if source.corners is not None else _corners(file, primitive, num)
    if len(corners) and corners.max() >= num:
        raise ValueError(f"{place}: a triangle has vertex {corners.max():,} of {num:,}")
    is_list = mode == _TRIANGLES or source.corners is not None
    triangles = _triangles(file, place, corners, _TRIANGLES if is_list else mode)
    names = attributes.names() if with_colors else []
    texcoords = {
        int(name[9:]): source.floats(name, "VEC2", count=num)
        for name in names
        if name.startswith("TEXCOORD_") and name[9:].isdecimal()
    }
    colors = source.colors(num) if "COLOR_0" in names else None
    targets = primitive.entries("targets")
    if len(targets) != len(morph_weights):
        raise ValueError(
            f"{place}: expected a weight for each of {len(targets)} morph targets, got "
            f"{len(morph_weights)}"
        )
    for target, weight in zip(targets, morph_weights, strict=True):
        if weight == 0:
            continue
        moved = _Attributes(file, primitive, target)
        if "POSITION" in target:
            positions = positions + weight * moved.floats("POSITION", "VEC3", count=num)
        for n in texcoords:
            if f"TEXCOORD_{n}" in target:
                more = moved.floats(f"TEXCOORD_{n}", "VEC2", count=num)
                texcoords[n] = texcoords[n] + weight * more
        if colors is not None and "COLOR_0" in target:
            more = moved.floats("COLOR_0", "VEC3", "VEC4", count=num)
            colors[:, : more.shape[1]] += weight * more
    if colors is not None:  # [3.7.2.2] Colors are clamped after morphing.
        colors = colors.clip(0, 1)
    joints, weights = source.influences(num)
    material = _index(primitive, "material")
    return Primitive(positions, triangles, texcoords, colors, joints, weights, material)


class _Attributes:
    """Attributes of a primitive, or of one of its morph targets, compressed or not."""

    def __init__(self, file: GltfFile, primitive: Entry, target: Entry | None = None):
        self._file = file
        self._entry = primitive.entry("attributes") if target is None else target
        self._draco: Mapping[str, np.ndarray] = {}
        self.corners: np.ndarray | None = None
        draco = primitive.extension(DRACO)
        if target is None and draco is not None:
            self._draco, self.corners = _decode_draco(file, draco)

    def floats(self, name: str, *types: str, count: int | None = None) -> np.ndarray:
        """float64 (n, width); ValueError if there are not `count`."""
        index = self._entry.integer(name)
        where = f"{self._entry.place}.{name}"
        if name in self._draco:
            values = self._converted(name)
        else:
            self._check_count(index, where, count)
            values = gltf_accessors.read_floats(self._file, index, where, *types)
        if count is not None and len(values) != count:
            raise ValueError(f"{where}: expected {count:,} elements, got {len(values):,}")
        return values

    def colors(self, count: int) -> np.ndarray:
        """COLOR_0 as (n, 4) RGBA."""
        index, where = self._entry.integer("COLOR_0"), f"{self._entry.place}.COLOR_0"
        if "COLOR_0" in self._draco:
            values, is_cut = normalized(self._draco["COLOR_0"]), False
            self._check_length(values, where, count)
        else:
            self._check_count(index, where, count)
            values, is_cut = gltf_accessors.read_fractions(self._file, index, where, "VEC3", "VEC4")
        if is_cut:
            # Some exporters cast floats in [0, 1] to integers without scaling them. Read
            # literally, such a mesh is black and nearly transparent, which no file means to say.
            self._file.notes.add(
                "vertex colors are floats cut to integers; reading 1 as full strength"
            )
            values = np.where(values > 0, 1.0, 0.0)
        colors = np.ones((len(values), 4))
        colors[:, : values.shape[1]] = values[:, :4]
        return colors

    def influences(self, count: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """All sets of JOINTS_n and WEIGHTS_n [3.7.3.3] side by side."""
        joints, weights = [], []
        while f"JOINTS_{len(joints)}" in self._entry and f"WEIGHTS_{len(joints)}" in self._entry:
            name, other = f"JOINTS_{len(joints)}", f"WEIGHTS_{len(joints)}"
            where = self._entry.place
            for one in (name, other):
                if one in self._draco:
                    self._check_length(self._draco[one], f"{where}.{one}", count)
                else:
                    self._check_count(self._entry.integer(one), f"{where}.{one}", count)
            if name in self._draco:
                joints.append(self._draco[name].astype(np.int64))
            else:
                index = self._entry.integer(name)
                joints.append(gltf_accessors.read_integers(self._file, index, where, "VEC4"))
            if other in self._draco:
                weights.append(normalized(self._draco[other]))
            else:
                index = self._entry.integer(other)
                found, _ = gltf_accessors.read_fractions(self._file, index, where, "VEC4")
                weights.append(found)
        if not joints:
            return None, None
        return np.concatenate(joints, axis=1), np.concatenate(weights, axis=1)

    def _converted(self, name: str) -> np.ndarray:
        """A Draco attribute as its accessor's componentType and flag say."""
        accessor = self._file.item("accessors", self._entry.integer(name), self._entry.place)
        values = self._draco[name].astype(component_type(accessor))
        if accessor.truth("normalized", False):
            return normalized(values)
        if not np.isfinite(values).all():
            raise ValueError(f"{accessor.place}: expected finite numbers, got NaN or infinity")
        return values.astype(np.float64)

    def _check_count(self, index: int, where: str, count: int | None) -> None:
        got = gltf_accessors.count_of(self._file, index, where)
        if count is not None and got != count:
            raise ValueError(f"{where}: expected {count:,} elements, got {got:,}")

    def _check_length(self, values: np.ndarray, where: str, count: int) -> None:
        if len(values) != count:
            raise ValueError(f"{where}: expected {count:,} elements, got {len(values):,}")


def _mode(primitive: Entry) -> int:
    mode = primitive.integer("mode", _TRIANGLES)
    if mode > _FAN:
        raise ValueError(f"{primitive.place}.mode: expected 0 to 6, got {mode}")
    return mode


def _index(entry: Entry, name: str) -> int | None:
    return entry.integer(name) if name in entry else None


def _corners(file: GltfFile, primitive: Entry, num: int) -> np.ndarray:
    """Vertex numbers in the order in which they are drawn."""
    index = _index(primitive, "indices")
    if index is None:
        return np.arange(num)
    where = f"{primitive.place}.indices"
    return gltf_accessors.read_integers(file, index, where, "SCALAR")[:, 0]


def _triangles(file: GltfFile, place: str, corners: np.ndarray, mode: int) -> np.ndarray:
    """(f, 3) of a list, a strip or a fan [3.7.2.1]."""
    if mode == _TRIANGLES:
        whole = len(corners) // 3 * 3
        if whole < len(corners):
            file.notes.add(f"{place}: {len(corners) - whole} corners over are left out")
        return corners[:whole].reshape(-1, 3)
    if len(corners) < 3:
        return np.zeros((0, 3), dtype=np.int64)
    first = np.arange(len(corners) - 2)
    if mode == _STRIP:
        # Every other one is turned round, so that all face one way.
        odd = first % 2
        return corners[np.stack([first, first + 1 + odd, first + 2 - odd], axis=-1)]
    return corners[np.stack([first + 1, first + 2, np.zeros_like(first)], axis=-1)]


def _decode_draco(file: GltfFile, draco: Entry) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Attributes by name, and triangles' corners, of KHR_draco_mesh_compression."""
    import DracoPy

    data, _ = file.view(draco.integer("bufferView"), draco.place)
    try:
        mesh = DracoPy.decode(bytes(data))
    # It has exceptions of its own, and raises C++'s as they are.
    except (DracoPy.FileTypeException, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{draco.place}: its Draco data is damaged ({error})") from None
    if not hasattr(mesh, "faces"):
        raise ValueError(f"{draco.place}: expected triangles, got a point cloud")
    by_id = {one["unique_id"]: np.asarray(one["data"]) for one in mesh.attributes}
    names = draco.entry("attributes")
    found = {}
    for name in names.names():
        number = names.integer(name)
        if number not in by_id:
            raise ValueError(f"{names.place}.{name}: expected attribute {number}, got none")
        found[name] = by_id[number]
    return found, np.asarray(mesh.faces, dtype=np.int64).reshape(-1)
