"""Wavefront MTL libraries: color, opacity, emission and textures of OBJ files' materials.

Source: Wavefront, "MTL material format", version 4.2. A texture takes the place of its color, and
colors are what a color picker shows, both as in Blender.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spad.images.color import linear_from_srgb
from spad.meshes.model_file import DEFAULT_ALBEDO, Material, Surfaces, Texture, check_uvs
from spad.meshes.neighbors import Neighbors
from spad.meshes.texture_files import decode_texture

# Options before the name of a texture, and most of the values that follow.
_OPTIONS = {
    "-blendu": 1, "-blendv": 1, "-bm": 1, "-boost": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1,
    "-mm": 2, "-o": 3, "-s": 3, "-t": 3, "-texres": 1, "-type": 1,
}  # fmt: skip
_CHANGES_LOOKS = ("-boost", "-mm", "-t")
_OPTION_LATER = re.compile(rf"\s({'|'.join(_OPTIONS)})\s")
_MAPS = {"map_kd": "base", "map_ke": "emissive", "map_d": "opacity"}
_CHANNELS = {"r": 0, "g": 1, "b": 2, "m": 3}
_WHITE = (1.0, 1.0, 1.0)

Placing = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class TextureMap:
    """A texture statement.

    Attributes:
        path: of the image.
        offset, scale: of u and v.
        clamp: whether the image's edge goes on outside of it, in place of the image.
        channel: of a map_d: "r", "g", "b", "m" (alpha) or "l" (luminance); "" if not said.
    """

    path: Path
    offset: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    clamp: bool = False
    channel: str = ""

    def texture(self, kind: str) -> Texture:
        """The image, as colors or, for "opacity", with the channel as its alpha."""
        pixels = decode_texture(self.path.read_bytes(), f"texture {self.path.name!r}")
        if kind == "opacity":
            alpha = _opacity(pixels, self.channel)
            pixels = np.full_like(pixels, 255)
            pixels[..., 3] = alpha
        else:
            # Its alpha means nothing here: that is what map_d is for.
            pixels = pixels.copy()
            pixels[..., 3] = 255
        wrap = "clamp" if self.clamp else "repeat"
        return Texture(pixels, (wrap, wrap))

    def place(self, uv: np.ndarray) -> np.ndarray:
        """Coordinates from the bottom left to ones on the image, from the top left."""
        moved = uv * np.array(self.scale) + np.array(self.offset)
        moved[..., 1] = 1 - moved[..., 1]
        check_uvs(moved, "a texture coordinate")
        return moved.astype(np.float32)


@dataclass
class MtlMaterial:
    """The statements of a library about one material; None where there is none."""

    color: list[float] | None = None
    emission: list[float] | None = None
    dissolve: float | None = None
    transparency: float | None = None
    maps: dict[str, TextureMap] = field(default_factory=dict)
    missing: str = ""

    @property
    def has_textures(self) -> bool:
        """Whether the material has a texture that is shown."""
        return bool(self.maps)

    def surface(
        self, surfaces: Surfaces, with_textures: bool
    ) -> tuple[Material, list[Placing | None]]:
        """The material, and how coordinates come to lie on its base, emission and opacity.

        Raises: ValueError: a texture is missing or damaged.
        """
        if self.missing:
            raise ValueError(f"texture {self.missing!r} is missing")
        color = (DEFAULT_ALBEDO, DEFAULT_ALBEDO, DEFAULT_ALBEDO)
        if self.color is not None:
            color = _linear(self.color)
        emission = (0.0, 0.0, 0.0)
        if self.emission is not None:
            emission = _linear(self.emission)
        # Files that have both mean the same by d, and not always by Tr.
        alpha = 1 - (self.transparency or 0.0) if self.dissolve is None else self.dissolve
        ids, placing = {}, []
        for kind in ("base", "emissive", "opacity"):
            found = self.maps.get(kind) if with_textures else None
            ids[f"{kind}_texture"] = -1
            placing.append(None)
            if found is None:
                continue
            key = (found.path, found.clamp, kind == "opacity" and (found.channel or "a"))
            ids[f"{kind}_texture"] = surfaces.texture(key, lambda f=found, k=kind: f.texture(k))
            placing[-1] = found.place
        red, green, blue = _WHITE if ids["base_texture"] >= 0 else color
        material = Material(
            base_factor=(red, green, blue, alpha),
            emissive_factor=_WHITE if ids["emissive_texture"] >= 0 else emission,
            alpha_mode="BLEND" if alpha < 1 or ids["opacity_texture"] >= 0 else "OPAQUE",
            **ids,
        )
        return material, placing


def _linear(srgb: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = linear_from_srgb(np.array(srgb)).tolist()
    return red, green, blue


def read_mtl(path: Path, neighbors: Neighbors) -> dict[str, MtlMaterial]:
    """Materials of a library by name.

    Raises: ValueError: a malformed line.
    """
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    materials: dict[str, MtlMaterial] = {}
    material = MtlMaterial()
    for line in text.split("\n"):
        word, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
        word, rest = word.lower(), rest.strip()
        if word == "newmtl":
            # The first of a name counts, as in Blender.
            material = MtlMaterial()
            materials.setdefault(rest, material)
        elif word == "kd":
            material.color = _color(line, rest, neighbors.notes)
        elif word == "ke":
            material.emission = _color(line, rest, neighbors.notes)
        elif word == "d":
            material.dissolve = _fraction(line, rest.removeprefix("-halo"))
        elif word == "tr":
            material.transparency = _fraction(line, rest)
        elif word in _MAPS and rest:
            found = _texture_map(rest, path, neighbors)
            if found is None:
                material.missing = _split_options(rest)[1]
            else:
                material.maps[_MAPS[word]] = found
    return materials


def _color(line: str, rest: str, notes: set[str]) -> list[float] | None:
    if rest.startswith(("spectral", "xyz")):
        notes.add(f"{line.strip()!r} is left out")
        return None
    numbers = [_number(line, word) for word in rest.partition("#")[0].split()[:3]]
    if not numbers:
        raise ValueError(f"expected a color, got {line.strip()!r}")
    numbers = (numbers + numbers[:1] * 2)[:3] if len(numbers) < 3 else numbers
    kept = [min(max(x, 0.0), 1.0) for x in numbers]
    if kept != numbers:
        notes.add(f"{line.strip()!r} is cut off to 0 to 1")
    return kept


def _fraction(line: str, rest: str) -> float:
    words = rest.partition("#")[0].split()
    if not words:
        raise ValueError(f"expected a number, got {line.strip()!r}")
    return min(max(_number(line, words[0]), 0.0), 1.0)


def _number(line: str, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"expected numbers, got {line.strip()[:60]!r}")
    return number


def _texture_map(rest: str, library: Path, neighbors: Neighbors) -> TextureMap | None:
    """None if there is no such file."""
    options, name = _split_options(rest)
    path = neighbors.find(name, library)
    if path is None:
        return None
    for option in _CHANGES_LOOKS:
        if option in options:
            neighbors.notes.add(f"the option {option} of texture {path.name!r} is left out")

    def pair(option: str, default: float) -> tuple[float, float]:
        numbers = [_number(rest, word) for word in options.get(option, [])]
        first, second, *_ = *numbers, default, default
        return first, second

    return TextureMap(
        path,
        pair("-o", 0.0),
        pair("-s", 1.0),
        options.get("-clamp", ["off"])[:1] == ["on"],
        "".join(options.get("-imfchan", [])),
    )


def _split_options(rest: str) -> tuple[dict[str, list[str]], str]:
    """Options of a texture statement and the name of its file, which may have spaces."""
    options: dict[str, list[str]] = {}
    while rest.startswith("-"):
        word, _, after = rest.partition(" ")
        if word not in _OPTIONS:
            break
        values: list[str] = []
        rest = after.strip()
        while len(values) < _OPTIONS[word] and rest:
            value, _, after = rest.partition(" ")
            # Of up to three numbers two may be left out; what follows is the name.
            if values and not _is_number(value):
                break
            values.append(value)
            rest = after.strip()
        options[word] = values
    # Some write them behind the name.
    later = _OPTION_LATER.search(rest)
    if later is not None:
        more, _ = _split_options(rest[later.start() :].strip() + " ")
        return options | more, rest[: later.start()].strip()
    return options, rest


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word) is not None


def _opacity(pixels: np.ndarray, channel: str) -> np.ndarray:
    """(h, w) uint8: the channel that was asked for, else alpha if there is any, else gray."""
    if not channel:
        channel = "m" if (pixels[..., 3] < 255).any() else "l"
    if channel in _CHANNELS:
        return pixels[..., _CHANNELS[channel]]
    # Luminance by the weights of ITU-R BT.601, as image programs turn color to gray.
    return np.rint(pixels[..., :3] @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
