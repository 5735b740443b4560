"""Other colours for objects whose captions name one: a red cow becomes a blue cow.

Works on finished pictures. They are lit by white light, so a surface keeps its hue in light and
shade, and is found by it in all views alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spad.data.renders import VARIANT, is_held_out
from spad.images.color import oklab_from_srgb, srgb_from_oklab

# What people call by these names, as sRGB bytes.
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
# Colours that are known by name alone: objects of these are left as they are.
_OTHERS = "gold golden silver beige tan teal turquoise cyan cream bronze copper olive".split()
# "Reddish" is none of them.
_NEAR_COLOR = re.compile(
    r"\b(?:redd|orang|yellow|green|blu|purpl|pink|brown|black|whit|gray|grey)ish\b", re.IGNORECASE
)
_COLOR_WORD = re.compile(rf"\b({'|'.join([*COLORS, *_SAME, *_OTHERS])})\b", re.IGNORECASE)
# What follows one of these is said of a part: "a barrel with a red stripe".
_PART_WORD = re.compile(r"\b(?:with|and|in|of|on)\b", re.IGNORECASE)
# A surface belongs to a colour wholly up to the first, not at all from the second on.
_HUE_DEG = (30.0, 50.0)
_CHROMA = (0.03, 0.06)
# Lightness, in light and shade, of what has no hue.
_GRAYS = {"black": (0.0, 0.5), "gray": (0.3, 0.97), "white": (0.6, 1.0)}
# Lightness is compressed from the first on, and stays below the second.
_SHOULDER = (0.8, 0.98)
# Less of an object in the colour that its caption names, and the caption means something else.
LEAST_SHARE = 0.15
_LAB = {name: oklab_from_srgb(np.array(srgb) / 255) for name, srgb in COLORS.items()}


@dataclass(frozen=True)
class Variant:
    """An object in another colour.

    Attributes:
        uid: of the variant, "ID~COLOUR".
        source, target: names of colours, of `COLORS`.
        captions: those of the object that name its color, with the other in its place. "A barrel"
            is none of them: a word alone is for the color that the thing has.
    """

    uid: str
    source: str
    target: str
    captions: tuple[str, ...]


def color_caption(captions: Sequence[str]) -> str | None:
    """The caption that names one color, of the whole object and not of a part, in fewest letters
    beside it.
    """
    telling = [
        caption
        for caption in captions
        if len(colors := _colors_in(caption)) == 1
        and colors[0] in COLORS
        and _colors_in(_PART_WORD.split(caption)[0])
    ]
    # Letters of the color itself must not choose: a variant is the same sort of thing.
    return min(telling, key=lambda caption: len(_without_color(caption)), default=None)


def named_color(captions: Sequence[str]) -> str | None:
    """The color that the captions give the whole object, if they do, and one of `COLORS`."""
    told = color_caption(captions)
    return _colors_in(told)[0] if told else None


def renamed(caption: str, source: str, target: str) -> str | None:
    """The caption with another colour; None where it does not name the first exactly once.

    None too where it says the other already: "a red house with a blue door" has no blue variant.
    """
    found = _colors_in(caption)
    if found.count(source) != 1 or target in found or _NEAR_COLOR.search(caption):
        return None
    names = "|".join([source, *(other for other, name in _SAME.items() if name == source)])
    article = "an" if target[0] in "aeiou" else "a"
    caption = re.sub(rf"\ban? ({names})\b", f"{article} {target}", caption, flags=re.IGNORECASE)
    return re.sub(rf"\b({names})\b", target, caption, flags=re.IGNORECASE)


def kind_of(captions: Sequence[str]) -> str:
    """What sort of thing it is: the caption that tells its color, else the shortest one, without
    colors, article and commas.
    """
    return _without_color(color_caption(captions) or min(captions, key=len))


def is_unseen(color: str, captions: Sequence[str]) -> bool:
    """Whether this colour of this sort of thing is kept for tests: one of sixteen combinations."""
    return is_held_out(f"{color} {kind_of(captions)}")


def variants(uid: str, captions: Sequence[str], count: int, seed: int = 0) -> list[Variant]:
    """Up to `count` variants of an object, in colours drawn by its id."""
    told = color_caption(captions)
    if told is None:
        return []
    source = _colors_in(told)[0]

    def drawn(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{uid}:{name}".encode()).digest()

    found = []
    for target in sorted(COLORS, key=drawn):
        others = [new for c in captions if (new := renamed(c, source, target)) is not None]
        if renamed(told, source, target) is not None and not is_unseen(target, captions):
            found.append(Variant(f"{uid}{VARIANT}{target}", source, target, tuple(others)))
    return found[:count]


def _without_color(caption: str) -> str:
    return " ".join(_COLOR_WORD.sub("", re.sub(r"^an? |,", "", caption)).split())


def _colors_in(caption: str) -> list[str]:
    return [_SAME.get(word, word) for word in _COLOR_WORD.findall(caption.lower())]


def share_of(color: str, pictures: np.ndarray) -> float:
    """How much of an object, uint8 (v, h, w, 4), has a colour."""
    opaque = pictures[..., 3] >= 128
    lab = oklab_from_srgb(pictures[opaque][:, :3] / 255)
    return float(_membership(lab, color).mean()) if len(lab) else 0.0


def recolored(pictures: np.ndarray, source: str, target: str) -> np.ndarray:
    """Pictures uint8 (v, h, w, 4) of an object, what is `source` in them drawn in `target`.

    Light and shade stay: lightness and chroma are scaled by what the two colours differ in.
    """
    seen = pictures[..., 3] > 0
    lab = oklab_from_srgb(pictures[seen][:, :3] / 255)
    share = _membership(lab, source)
    if share.sum() < 1:
        return pictures
    was, becomes = np.average(lab, axis=0, weights=share), _LAB[target]
    lightness = _below_white(lab[:, 0] * becomes[0] / max(was[0], 0.05))
    if source in _GRAYS:
        # What has no hue gets that of the target, the stronger the lighter it is.
        tint = becomes[1:] * (lab[:, :1] / max(was[0], 0.05))
    else:
        # Turned by the angle between the two hues, and scaled.
        turn = (becomes[1] + 1j * becomes[2]) / (was[1] + 1j * was[2])
        turned = (lab[:, 1] + 1j * lab[:, 2]) * turn
        tint = np.stack([turned.real, turned.imag], axis=1)
    changed = np.concatenate([lightness[:, None], tint], axis=1)
    mixed = lab + share[:, None] * (changed - lab)
    result = pictures.copy()
    result[seen, :3] = np.rint(srgb_from_oklab(mixed) * 255)
    return result


def _membership(lab: np.ndarray, color: str) -> np.ndarray:
    """How far each colour (n, 3) is one that goes by this name: 0 to 1."""
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    if color in _GRAYS:
        low, high = _GRAYS[color]
        return _falling(chroma, _CHROMA) * ((low <= lab[:, 0]) & (lab[:, 0] <= high))
    hue, center = np.arctan2(lab[:, 2], lab[:, 1]), np.arctan2(*_LAB[color][:0:-1])
    vivid = 1 - _falling(chroma, _CHROMA)
    for _ in range(2):
        # First about the name's own hue, then about that of what was found.
        apart = np.abs((hue - center + np.pi) % (2 * np.pi) - np.pi)
        share = vivid * _falling(np.degrees(apart), _HUE_DEG)
        if share.sum() < 1:
            break
        center = np.angle((share * chroma * np.exp(1j * hue)).sum())
    return share


def _below_white(lightness: np.ndarray) -> np.ndarray:
    """Lightness of any size, compressed so that a white surface still shows light and shade."""
    start, end = _SHOULDER
    room = end - start
    compressed = end - room * np.exp(-np.maximum(lightness - start, 0) / room)
    return np.where(lightness > start, compressed, lightness)


def _falling(x: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """1 up to the first end, 0 from the second on."""
    return np.clip((ends[1] - x) / (ends[1] - ends[0]), 0, 1)
