"""Materials of a glTF file, reduced to what diffuse shading shows, with textures and samplers.

Sections in brackets are those of the Khronos glTF 2.0 specification.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spad.meshes.gltf_file import Entry, GltfFile
from spad.meshes.model_file import BARE, Material, Surfaces, Texture
from spad.meshes.texture_files import decode_texture

# [5.26] What goes on outside of [0, 1], and how texels are mixed, by the numbers of OpenGL.
_WRAPS = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_NEAREST, _LINEAR = (9728, 9984, 9986), (9729, 9985, 9987)
# Extensions that name an image in a format the core does not know, the preferred one first.
_SOURCES = ("EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds")
_UNREAD_SOURCES = ("KHR_texture_basisu",)
# Of emission; an image shows no more than 1 of it.
_STRONGEST = 1e9
_ALPHA_MODES = ("OPAQUE", "MASK", "BLEND")


@dataclass(frozen=True)
class TextureUse:
    """Where on a texture the points of a mesh lie.

    Attributes:
        texture: its number in the model; -1 for none.
        texcoord: n of the attribute TEXCOORD_n.
        matrix: (2, 3), takes (u, v, 1) to the texture's own u and v.
    """

    texture: int = -1
    texcoord: int = 0
    matrix: np.ndarray | None = None


@dataclass(frozen=True)
class Surface:
    """A material, and where its textures lie."""

    material: int
    base: TextureUse
    emissive: TextureUse


def bare_surface(surfaces: Surfaces, is_colored: bool) -> Surface:
    """The surface of a primitive without material; vertex colors are shown unchanged."""
    material = surfaces.material(Material() if is_colored else BARE)
    return Surface(material, TextureUse(), TextureUse())


def read_surface(file: GltfFile, index: int, place: str, surfaces: Surfaces) -> Surface:
    """A material of the file.

    Of physically based materials only base color, emission and alpha show in matt light.

    Raises: ValueError: malformed, or an image that is missing, damaged or of an unread format.
    """
    entry = file.item("materials", index, place)
    glossy = entry.extension("KHR_materials_pbrSpecularGlossiness")
    factor, base = (
        _base(file, entry, surfaces) if glossy is None else _glossy(file, glossy, surfaces)
    )
    unlit = entry.extension("KHR_materials_unlit") is not None
    emissive, glow = [0.0, 0.0, 0.0], TextureUse()
    if not unlit:
        emissive = _fractions(file, entry, "emissiveFactor", [0.0, 0.0, 0.0])
        strong = entry.extension("KHR_materials_emissive_strength")
        if strong is not None:
            strength = strong.number("emissiveStrength", 1.0)
            if not 0 <= strength <= _STRONGEST:
                raise ValueError(
                    f"{strong.place}: expected a strength of 0 to {_STRONGEST:g}, got {strength:g}"
                )
            emissive = [strength * x for x in emissive]
        if any(emissive):
            glow = _use(file, entry, "emissiveTexture", surfaces)
    mode = entry.text("alphaMode", "OPAQUE")
    if mode not in _ALPHA_MODES:
        raise ValueError(f"{entry.place}.alphaMode: expected one of {_ALPHA_MODES}, got {mode!r}")
    material = Material(
        base_factor=(factor[0], factor[1], factor[2], factor[3]),
        base_texture=base.texture,
        emissive_factor=(emissive[0], emissive[1], emissive[2]),
        emissive_texture=glow.texture,
        alpha_mode=mode,
        alpha_cutoff=entry.number("alphaCutoff", 0.5),
        unlit=unlit,
    )
    return Surface(surfaces.material(material), base, glow)


def place_on(use: TextureUse, uv: np.ndarray) -> np.ndarray:
    """Coordinates (n, 2) of a mesh on a texture, by KHR_texture_transform."""
    return uv if use.matrix is None else uv @ use.matrix[:, :2].T + use.matrix[:, 2]


def _fractions(file: GltfFile, entry: Entry, name: str, default: list[float]) -> list[float]:
    """Numbers that the specification limits to 0 to 1."""
    found = entry.numbers(name, default)
    kept = [min(max(x, 0.0), 1.0) for x in found]
    if max(abs(a - b) for a, b in zip(found, kept, strict=True)) > 1e-3:
        file.notes.add(f"{entry.place}.{name} is cut off to 0 to 1")
    return kept


def _base(file: GltfFile, entry: Entry, surfaces: Surfaces) -> tuple[list[float], TextureUse]:
    pbr = entry.entry("pbrMetallicRoughness")
    factor = _fractions(file, pbr, "baseColorFactor", [1.0, 1.0, 1.0, 1.0])
    return factor, _use(file, pbr, "baseColorTexture", surfaces)


def _glossy(file: GltfFile, glossy: Entry, surfaces: Surfaces) -> tuple[list[float], TextureUse]:
    """The extension's model in place of the core's, which is for clients that do not know it.

    Metals are black in diffuse light there; without reflections, their specular color is shown.
    """
    factor = _fractions(file, glossy, "diffuseFactor", [1.0, 1.0, 1.0, 1.0])
    is_metal = not any(factor[:3])
    if is_metal and ("specularFactor" in glossy or "specularGlossinessTexture" in glossy):
        specular = _fractions(file, glossy, "specularFactor", [1.0, 1.0, 1.0])
        use = _use(file, glossy, "specularGlossinessTexture", surfaces, without_alpha=True)
        return specular + factor[3:], use
    return factor, _use(file, glossy, "diffuseTexture", surfaces)


def _use(
    file: GltfFile, owner: Entry, name: str, surfaces: Surfaces, without_alpha: bool = False
) -> TextureUse:
    """A textureInfo [5.30] of a material."""
    if name not in owner:
        return TextureUse()
    info = owner.entry(name)
    number = info.integer("index")
    texcoord, matrix = info.integer("texCoord", 0), None
    transform = info.extension("KHR_texture_transform")
    if transform is not None:
        texcoord = transform.integer("texCoord", texcoord)
        matrix = _matrix(transform)

    def read() -> Texture:
        return _read_texture(file, number, info.place, without_alpha)

    return TextureUse(surfaces.texture((number, without_alpha), read), texcoord, matrix)


def _matrix(transform: Entry) -> np.ndarray:
    """Scale, then a turn counter-clockwise as the image is seen (v points down), then offset."""
    offset, scale = transform.numbers("offset", [0.0, 0.0]), transform.numbers("scale", [1.0, 1.0])
    angle = transform.number("rotation", 0.0)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array(
        [
            [cos * scale[0], sin * scale[1], offset[0]],
            [-sin * scale[0], cos * scale[1], offset[1]],
        ]
    )


def _read_texture(file: GltfFile, index: int, place: str, without_alpha: bool) -> Texture:
    texture = file.item("textures", index, place)
    wrap, nearest = ("repeat", "repeat"), False
    if "sampler" in texture:
        sampler = file.item("samplers", texture.integer("sampler"), texture.place)
        wrap = (_wrap(sampler, "wrapS"), _wrap(sampler, "wrapT"))
        nearest = _is_nearest(sampler)
    pixels = _texture_pixels(file, texture)
    if without_alpha:
        pixels = pixels.copy()
        pixels[..., 3] = 255
    return Texture(pixels, wrap, nearest)


def _texture_pixels(file: GltfFile, texture: Entry) -> np.ndarray:
    """Pixels of the first readable source: that of an extension, else that of the core."""
    failed = None
    for name in _SOURCES:
        source = texture.extension(name)
        if source is None:
            continue
        data, words = file.image_bytes(source.integer("source"), source.place)
        try:
            return decode_texture(data, words)
        except ValueError as error:
            failed = error
    if "source" in texture:
        data, words = file.image_bytes(texture.integer("source"), texture.place)
        return decode_texture(data, words)
    for name in _UNREAD_SOURCES:
        if texture.extension(name) is not None:
            raise ValueError(f"{texture.place}: its image is a {name} one, which is not read")
    raise failed or ValueError(f"{texture.place}: expected a source, got none that spad reads")


def _wrap(sampler: Entry, name: str) -> str:
    number = sampler.integer(name, 10497)
    if number not in _WRAPS:
        raise ValueError(f"{sampler.place}.{name}: expected one of {[*_WRAPS]}, got {number}")
    return _WRAPS[number]


def _is_nearest(sampler: Entry) -> bool:
    """Whether texels are not interpolated, by the magnification filter, else by the other one."""
    chosen = sampler.integer("magFilter", sampler.integer("minFilter", 9729))
    if chosen not in (*_NEAREST, *_LINEAR):
        raise ValueError(f"{sampler.place}: expected a filter of 9728 to 9987, got {chosen}")
    return chosen in _NEAREST
