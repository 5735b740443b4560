"""STL models, ASCII and binary, with the colors that some tools put into binary ones.

Source: the formats as Wikipedia's "STL (file format)" describes them: 3D Systems' two kinds of
file, and the colors of VisCAM and SolidView, and of Materialise Magics.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from spad.images.color import linear_from_srgb
from spad.meshes.model_file import (
    BARE,
    DEFAULT_ALBEDO,
    Material,
    Model,
    Part,
    Surfaces,
    check_faces,
)

_HEADER = 80
_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("color", "<u2")])
_VERTEX = re.compile(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", re.IGNORECASE)
_END = re.compile(rb"\bendfacet\b", re.IGNORECASE)
_IS_COLORED = 1 << 15


def read_stl(path: Path, max_faces: int | None = None, with_textures: bool = True) -> Model:
    """All triangles of an STL file.

    Args: as of `spad.meshes.gltf.read_gltf`.

    Raises: ValueError: no STL file, cut short, or too many triangles.
    """
    data = path.read_bytes()
    colors = None
    if _is_ascii(data):
        corners = _read_ascii(data, max_faces)
    else:
        facets = _read_binary(data, max_faces)
        corners = facets["corners"].astype(np.float64)
        if with_textures:
            colors = _facet_colors(data[:_HEADER], facets["color"])
    surfaces = Surfaces(with_textures)
    material = surfaces.material(BARE if colors is None else Material())
    parts = (Part(corners, material, colors),) if len(corners) else ()
    return Model(parts, tuple(surfaces.materials), (), num_vertices=3 * len(corners))


def _num_facets(data: bytes) -> int:
    if len(data) < _HEADER + 4:
        return -1
    return int(np.frombuffer(data, "<u4", 1, _HEADER)[0])


def _is_ascii(data: bytes) -> bool:
    # Binary headers may begin with "solid" too, so a size that fits decides.
    if len(data) == _HEADER + 4 + _num_facets(data) * _FACET.itemsize:
        return False
    return data.lstrip()[:5].lower() == b"solid"


def _read_ascii(data: bytes, max_faces: int | None) -> np.ndarray:
    vertices = _VERTEX.findall(data)
    facets = len(_END.findall(data))
    if len(vertices) != 3 * facets:
        raise ValueError(
            f"expected three vertices for each of {facets:,} facets, got {len(vertices):,}; "
            "is it cut short?"
        )
    check_faces(facets, max_faces)
    try:
        numbers = np.array(vertices, dtype=np.bytes_).astype(np.float64)
    except ValueError as error:
        raise ValueError(f"expected numbers after 'vertex' ({error})") from None
    return numbers.reshape(-1, 3, 3)


def _read_binary(data: bytes, max_faces: int | None) -> np.ndarray:
    num = _num_facets(data)
    if num < 0 or len(data) < _HEADER + 4 + num * _FACET.itemsize:
        raise ValueError(
            f"expected {max(num, 0):,} triangles of 50 bytes, got {len(data):,} bytes in all; "
            "is it an STL file, and whole?"
        )
    check_faces(num, max_faces)
    return np.frombuffer(data, _FACET, num, _HEADER + 4)


def _facet_colors(header: bytes, fields: np.ndarray) -> np.ndarray | None:
    """(f, 3, 4) float32 linear from two bytes of each facet, five bits a color; or None."""
    bits = np.stack([fields >> shift & 31 for shift in (0, 5, 10)], axis=-1) / 31
    whole = header.find(b"COLOR=")
    if whole >= 0 and whole + 10 <= len(header):
        # Magics: red in the lowest bits, and the highest bit where the header's color counts.
        common = np.frombuffer(header, np.uint8, 3, whole + 6) / 255
        srgb = np.where((fields & _IS_COLORED)[:, None] != 0, common, bits)
        linear = linear_from_srgb(srgb)
    else:
        # VisCAM and SolidView: blue in the lowest bits, and the highest bit where there is a color.
        colored = (fields & _IS_COLORED) != 0
        if not colored.any():
            return None
        linear = np.where(colored[:, None], linear_from_srgb(bits[:, ::-1]), DEFAULT_ALBEDO)
    rgba = np.concatenate([linear, np.ones((len(linear), 1))], axis=-1).astype(np.float32)
    return np.repeat(rgba[:, None], 3, axis=1)
