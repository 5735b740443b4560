"""Recolor rendered objects whose captions name a color: a red cow becomes a blue cow.

Works on rendered images. They are lit by white light, so a surface has the same hue in light and
shadow, and is found by its hue in all views alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spad.data.renders import VARIANT, is_held_out
from spad.images.color import oklab_from_srgb, srgb_from_oklab

# Typical colors of these names, as sRGB bytes.
COLORS = {
    "red": (200, 40, 40),
    "orange": (235, 125, 35),
    "yellow": (240, 200, 50),
    "green": (70, 150, 60),
    "blue": (55, 95, 200),
    "purple": (130, 70, 170),
    "pink": (240, 140, 175),
    "brown": (130, 85, 50),
    "black": (45, 45, 48),
    "white": (235, 235, 235),
    "gray": (140, 140, 140),
}
_SAME = {"grey": "gray"}
# Other color names, without a color: objects of these are not recolored.
_OTHERS = "gold golden silver beige tan teal turquoise cyan cream bronze copper olive".split()
# Names of similar colors, such as "reddish".
_NEAR_COLOR = re.compile(
    r"\b(?:redd|orang|yellow|green|blu|purpl|pink|brown|black|whit|gray|grey)ish\b", re.IGNORECASE
)
_COLOR_WORD = re.compile(rf"\b({'|'.join([*COLORS, *_SAME, *_OTHERS])})\b", re.IGNORECASE)
# Words that introduce a part, as in "a barrel with a red stripe".
_PART_WORD = re.compile(r"\b(?:with|and|in|of|on)\b", re.IGNORECASE)
# Distance from a color up to which a surface belongs to it fully, and from which not at all.
_HUE_DEG = (30.0, 50.0)
_CHROMA = (0.03, 0.06)
# Ranges of lightness of colors without hue, in light and shadow.
_GRAYS = {"black": (0.0, 0.5), "gray": (0.3, 0.97), "white": (0.6, 1.0)}
# Lightness from which it is compressed, and its limit.
_SHOULDER = (0.8, 0.98)
# Minimum share of the object in the named color; below it, the caption probably means something
# else.
LEAST_SHARE = 0.15
_LAB = {name: oklab_from_srgb(np.array(srgb) / 255) for name, srgb in COLORS.items()}


@dataclass(frozen=True)
class Variant:
    """A recolored variant of an object.

    Attributes:
        uid: id of the variant, "ID~COLOR".
        source, target: old and new color, names in `COLORS`.
        captions: captions of the object that name its color, with the new color instead. Captions
            without a color, such as "a barrel", stay with the original object.
    """

    uid: str
    source: str
    target: str
    captions: tuple[str, ...]


def color_caption(captions: Sequence[str]) -> str | None:
    """The shortest caption, not counting the color, that names one color of the whole object."""
    candidates = [
        caption
        for caption in captions
        if len(colors := _colors_in(caption)) == 1
        and colors[0] in COLORS
        and _colors_in(_PART_WORD.split(caption)[0])
    ]
    # The color is not counted, so that a variant has the same kind as its source.
    return min(candidates, key=lambda caption: len(_without_color(caption)), default=None)


def named_color(captions: Sequence[str]) -> str | None:
    """The color in `COLORS` that the captions name for the whole object; None if there is none."""
    told = color_caption(captions)
    return _colors_in(told)[0] if told else None


def renamed(caption: str, source: str, target: str) -> str | None:
    """The caption with color `target` instead of `source`; None if it does not name `source` once.

    Also None if it already names `target`: "a red house with a blue door" has no blue variant.
    """
    found = _colors_in(caption)
    if found.count(source) != 1 or target in found or _NEAR_COLOR.search(caption):
        return None
    names = "|".join([source, *(other for other, name in _SAME.items() if name == source)])
    article = "an" if target[0] in "aeiou" else "a"
    caption = re.sub(rf"\ban? ({names})\b", f"{article} {target}", caption, flags=re.IGNORECASE)
    return re.sub(rf"\b({names})\b", target, caption, flags=re.IGNORECASE)


def kind_of(captions: Sequence[str]) -> str:
    """Kind of object: its color caption, else its shortest caption, without colors, article and
    commas.
    """
    return _without_color(color_caption(captions) or min(captions, key=len))


def is_unseen(color: str, captions: Sequence[str]) -> bool:
    """Whether a color and kind of object is held out for tests: one in sixteen combinations."""
    return is_held_out(f"{color} {kind_of(captions)}")


def variants(uid: str, captions: Sequence[str], count: int, seed: int = 0) -> list[Variant]:
    """Up to `count` variants of an object, in colors chosen by a hash of its id."""
    told = color_caption(captions)
    if told is None:
        return []
    source = _colors_in(told)[0]

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{uid}:{name}".encode()).digest()

    found = []
    for target in sorted(COLORS, key=rank):
        others = [new for c in captions if (new := renamed(c, source, target)) is not None]
        if renamed(told, source, target) is not None and not is_unseen(target, captions):
            found.append(Variant(f"{uid}{VARIANT}{target}", source, target, tuple(others)))
    return found[:count]


def _without_color(caption: str) -> str:
    return " ".join(_COLOR_WORD.sub("", re.sub(r"^an? |,", "", caption)).split())


def _colors_in(caption: str) -> list[str]:
    return [_SAME.get(word, word) for word in map(str, _COLOR_WORD.findall(caption.lower()))]


def share_of(color: str, images: np.ndarray) -> float:
    """Share of an object, uint8 (v, h, w, 4), that has a color."""
    opaque = images[..., 3] >= 128
    lab = oklab_from_srgb(images[opaque][:, :3] / 255)
    return float(_membership(lab, color).mean()) if len(lab) else 0.0


def recolored(images: np.ndarray, source: str, target: str) -> np.ndarray:
    """Images uint8 (v, h, w, 4) of an object with its `source` color changed to `target`.

    Lightness and chroma are scaled from one color to the other, which preserves shading.
    """
    visible = images[..., 3] > 0
    lab = oklab_from_srgb(images[visible][:, :3] / 255)
    share = _membership(lab, source)
    if share.sum() < 1:
        return images
    was, becomes = np.average(lab, axis=0, weights=share), _LAB[target]
    lightness = _below_white(lab[:, 0] * becomes[0] / max(was[0], 0.05))
    if source in _GRAYS:
        # Without a hue, take the target's, with chroma in proportion to lightness.
        tint = becomes[1:] * (lab[:, :1] / max(was[0], 0.05))
    else:
        # Rotate by the angle between the two hues, and scale.
        turn = (becomes[1] + 1j * becomes[2]) / (was[1] + 1j * was[2])
        turned = (lab[:, 1] + 1j * lab[:, 2]) * turn
        tint = np.stack([turned.real, turned.imag], axis=1)
    changed = np.concatenate([lightness[:, None], tint], axis=1)
    mixed = lab + share[:, None] * (changed - lab)
    result = images.copy()
    result[visible, :3] = np.rint(srgb_from_oklab(mixed) * 255)
    return result


def _membership(lab: np.ndarray, color: str) -> np.ndarray:
    """Membership of OKLab colors (n, 3) in a named color, 0 to 1."""
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    if color in _GRAYS:
        low, high = _GRAYS[color]
        return _falling(chroma, _CHROMA) * ((low <= lab[:, 0]) & (lab[:, 0] <= high))
    hue, center = np.arctan2(lab[:, 2], lab[:, 1]), np.arctan2(*_LAB[color][:0:-1])
    vivid = 1 - _falling(chroma, _CHROMA)

    def near(center: float) -> np.ndarray:
        distance = np.abs((hue - center + np.pi) % (2 * np.pi) - np.pi)
        return vivid * _falling(np.degrees(distance), _HUE_DEG)

    # First around the hue of the name, then around the mean hue of the colors found.
    share = near(center)
    return share if share.sum() < 1 else near(np.angle((share * chroma * np.exp(1j * hue)).sum()))


def _below_white(lightness: np.ndarray) -> np.ndarray:
    """Lightness compressed below white, so that a white surface still shows shading."""
    start, end = _SHOULDER
    room = end - start
    compressed = end - room * np.exp(-np.maximum(lightness - start, 0) / room)
    return np.where(lightness > start, compressed, lightness)


def _falling(x: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Linear ramp from 1 at the first end to 0 at the second."""
    return np.clip((ends[1] - x) / (ends[1] - ends[0]), 0, 1)
