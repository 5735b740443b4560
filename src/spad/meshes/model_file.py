"""The contents of a 3D model file: triangles in the file's axes, and their surfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

# A surface nothing is said about: light enough to shade, dark enough to stand out on white.
DEFAULT_ALBEDO = 0.6
# Of a texture, from the first to the last.
MOST_REPEATS = 1e9


@dataclass(frozen=True)
class Texture:
    """An image on a surface.

    Attributes:
        pixels: (h, w, 4) uint8, sRGB and straight alpha.
        wrap: what goes on outside of [0, 1] along u and v: "repeat", "mirror" or "clamp".
        nearest: whether a magnified pixel is a square; else neighbors are mixed.
    """

    pixels: np.ndarray
    wrap: tuple[str, str] = ("repeat", "repeat")
    nearest: bool = False


@dataclass(frozen=True)
class Material:
    """One surface: linear factors, and which textures of the model multiply them (-1: none).

    Attributes:
        base_factor: RGBA.
        base_texture: its RGBA multiplies the factor.
        emissive_factor: RGB, any strength.
        emissive_texture: its RGB multiplies the factor.
        opacity_texture: its alpha multiplies that of the base.
        alpha_mode: "OPAQUE", "MASK" or "BLEND", as glTF says.
        alpha_cutoff: of "MASK".
        unlit: the base color is shown as it is, whatever the light.
    """

    base_factor: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    base_texture: int = -1
    emissive_factor: tuple[float, float, float] = (0.0, 0.0, 0.0)
    emissive_texture: int = -1
    opacity_texture: int = -1
    alpha_mode: str = "OPAQUE"
    alpha_cutoff: float = 0.5
    unlit: bool = False


BARE = Material(base_factor=(DEFAULT_ALBEDO, DEFAULT_ALBEDO, DEFAULT_ALBEDO, 1.0))


@dataclass(frozen=True)
class Part:
    """Triangles of one surface.

    Attributes:
        corners: (f, 3, 3) float64, in the file's axes and units.
        material: number of it in the model.
        colors: (f, 3, 4) float32, linear RGBA that multiplies the base; or None.
        base_uvs, emissive_uvs, opacity_uvs: (f, 3, 2) float32, where the corners lie on those
            textures, origin at the top left, v down; or None.
        own_uvs: the file's first texture coordinates as they stand there, whether or not an image
            lies on them; form and origin as before.
    """

    corners: np.ndarray
    material: int
    colors: np.ndarray | None = None
    base_uvs: np.ndarray | None = None
    emissive_uvs: np.ndarray | None = None
    opacity_uvs: np.ndarray | None = None
    own_uvs: np.ndarray | None = None


@dataclass(frozen=True)
class Model:
    """All triangles of a file, instances laid out.

    Attributes:
        notes: sentences on what was left out or read otherwise than it stands in the file.
        num_vertices: of its meshes, those of every instance counted.
        num_animations: in the file; none is applied.
    """

    parts: tuple[Part, ...]
    materials: tuple[Material, ...]
    textures: tuple[Texture, ...]
    notes: tuple[str, ...] = ()
    num_vertices: int = 0
    num_animations: int = 0


@dataclass
class Surfaces:
    """Materials and textures in the order in which they are met, each read once.

    `with_textures` False leaves all images unread.
    """

    with_textures: bool = True
    materials: list[Material] = field(default_factory=list)
    textures: list[Texture] = field(default_factory=list)
    _material_ids: dict = field(default_factory=dict)
    _texture_ids: dict = field(default_factory=dict)

    def material(self, material: Material) -> int:
        """The index of a material; equal materials have one."""
        if material not in self._material_ids:
            self._material_ids[material] = len(self.materials)
            self.materials.append(material)
        return self._material_ids[material]

    def texture(self, key: tuple, read: Callable[[], Texture]) -> int:
        """The number of a texture, which is read if there is none of this key; or -1."""
        if not self.with_textures:
            return -1
        if key not in self._texture_ids:
            self._texture_ids[key] = len(self.textures)
            self.textures.append(read())
        return self._texture_ids[key]


def check_faces(faces: int, max_faces: int | None) -> None:
    """Called before triangles are laid out, which takes memory for every corner.

    Raises: ValueError: there are more than `max_faces`.
    """
    if max_faces is not None and faces > max_faces:
        raise ValueError(f"{faces:,} triangles are more than --max-faces {max_faces:,}")


def check_uvs(uv: np.ndarray, place: str) -> None:
    """Raise ValueError if texture coordinates are too large to tell one texel from the next."""
    if not (np.abs(uv) <= MOST_REPEATS).all():
        raise ValueError(f"{place}: expected texture coordinates within ±{MOST_REPEATS:g}")
