"""Accessors of a glTF file as arrays: strides, sparse parts, normalized integers.

Sections in brackets are those of the Khronos glTF 2.0 specification.
"""

from __future__ import annotations

import numpy as np

from spad.meshes.gltf_file import Entry, GltfFile

# [3.6.2.2] Little-endian, as all of a glTF file.
_COMPONENTS = {
    5120: np.dtype("i1"),
    5121: np.dtype("u1"),
    5122: np.dtype("<i2"),
    5123: np.dtype("<u2"),
    5125: np.dtype("<u4"),
    5126: np.dtype("<f4"),
}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
# What has no bytes in the file must not ask for any amount of memory.
_MOST_ZEROS = 1 << 24


def count_of(file: GltfFile, index: int, place: str) -> int:
    """Elements of an accessor, none of which is read."""
    return file.item("accessors", index, place).integer("count", low=1)


def read_floats(file: GltfFile, index: int, place: str, *types: str) -> np.ndarray:
    """An accessor of one of these types as float64 (n, width), integers as their flag says.

    Raises: ValueError: it is of another type, cut short, or not finite.
    """
    accessor = file.item("accessors", index, place)
    values = _read(file, accessor, types)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{accessor.place}: expected finite numbers, got NaN or infinity")
    if accessor.truth("normalized", False):
        return normalized(values)
    return values.astype(np.float64)


def read_fractions(file: GltfFile, index: int, place: str, *types: str) -> tuple[np.ndarray, bool]:
    """An accessor of colors or weights as float64, and whether its integers are all 0 or 1.

    Integers count as normalized: the specification allows no others there [3.7.2.1].
    """
    accessor = file.item("accessors", index, place)
    values = _read(file, accessor, types)
    if values.dtype.kind == "f":
        return read_floats(file, index, place, *types), False
    if not accessor.truth("normalized", False):
        file.notes.add(f"{place}: integers that are not marked as normalized; read as if they were")
    return normalized(values), bool(values.max() <= 1)


def read_integers(file: GltfFile, index: int, place: str, kind: str) -> np.ndarray:
    """An accessor of unsigned integers as int64 (n, width)."""
    accessor = file.item("accessors", index, place)
    values = _read(file, accessor, (kind,))
    if values.dtype.kind != "u":
        raise ValueError(f"{accessor.place}: expected unsigned integers, got another componentType")
    return values.astype(np.int64)


def normalized(values: np.ndarray) -> np.ndarray:
    """Integers as float64 fractions of their type's largest value [3.6.2.2]; floats as they are."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    return np.maximum(values / np.iinfo(values.dtype).max, -1.0)


def component_type(accessor: Entry) -> np.dtype:
    """Component type of an accessor."""
    number = accessor.integer("componentType")
    if number not in _COMPONENTS:
        raise ValueError(f"{accessor.place}.componentType: expected 5120 to 5126, got {number}")
    return _COMPONENTS[number]


def _read(file: GltfFile, accessor: Entry, types: tuple[str, ...]) -> np.ndarray:
    """Numbers of an accessor as they are stored, (n, width), with the sparse ones in place."""
    kind, dtype = accessor.text("type"), component_type(accessor)
    if kind not in types:
        raise ValueError(f"{accessor.place}.type: expected {' or '.join(types)}, got {kind!r}")
    width, count = _WIDTHS[kind], accessor.integer("count", low=1)
    if "bufferView" in accessor:
        values = _strided(file, accessor, dtype, width, count)
    elif count > _MOST_ZEROS:
        raise ValueError(
            f"{accessor.place}: expected at most {_MOST_ZEROS:,} elements without a bufferView, "
            f"got {count:,}"
        )
    else:  # [3.6.2.3] Zeros, where an extension does not say otherwise.
        values = np.zeros((count, width), dtype)
    if "sparse" not in accessor:
        return values
    sparse = accessor.entry("sparse")
    changed = sparse.integer("count", low=1)
    if changed > count:
        raise ValueError(f"{sparse.place}: expected at most {count:,} elements, got {changed:,}")
    indices, replaced = sparse.entry("indices"), sparse.entry("values")
    index_type = component_type(indices)
    if index_type.kind != "u":
        raise ValueError(f"{indices.place}: expected unsigned integers, got another componentType")
    where = _strided(file, indices, index_type, 1, changed)[:, 0].astype(np.int64)
    if where[-1] >= count or (np.diff(where) <= 0).any():
        raise ValueError(f"{indices.place}: expected rising numbers below {count:,}, got others")
    values = values.copy()
    values[where] = _strided(file, replaced, dtype, width, changed)
    return values


def _strided(file: GltfFile, part: Entry, dtype: np.dtype, width: int, count: int) -> np.ndarray:
    """(count, width) numbers in the file's own memory [3.6.2.4]."""
    data, stride = file.view(part.integer("bufferView"), part.place)
    size, start = dtype.itemsize * width, part.integer("byteOffset", 0)
    stride = stride or size
    end = start + stride * (count - 1) + size
    if end > len(data):
        raise ValueError(
            f"{part.place}: expected {count:,} elements, {end:,} bytes, got {len(data):,} bytes; "
            "is it cut short?"
        )
    if stride < size:
        raise ValueError(f"{part.place}: expected a byteStride of at least {size}, got {stride}")
    return np.ndarray((count, width), dtype, data, start, (stride, dtype.itemsize))
