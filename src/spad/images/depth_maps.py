"""Depth maps from files: the depth of an EXR among its layers and parts, PNG, NPY."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

DEPTH_SUFFIXES = (".exr", ".png", ".npy")
# Modes of Pillow with one number a pixel.
_GRAY = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Layers whose Z is no depth.
_OTHER_LAYERS = ("mist", "normal", "position", "vector")


def read_depth_map(path: Path) -> np.ndarray:
    """The numbers of a depth map as they are stored, float32 (h, w).

    Raises: ValueError: it cannot be read, or no channel of it, or more than one, is depth.
        ModuleNotFoundError: EXR needs the extra `exr`.
    """
    readers = {".npy": _read_npy, ".png": _read_png, ".exr": _read_exr}
    try:
        return readers[path.suffix](path).astype(np.float32)
    # Pillow, numpy and OpenEXR answer damage with any of these.
    except (OSError, EOFError, SyntaxError, RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from error


def _read_npy(path: Path) -> np.ndarray:
    # Mapped, so that a file that claims to be large takes no memory before that is found out.
    values = np.load(path, allow_pickle=False, mmap_mode="r")
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise ValueError("expected an array of numbers, got something else")
    return _one_channel(values)


def _read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode not in _GRAY and image.mode not in ("RGB", "RGBA"):
            raise ValueError(f"expected gray pixels, got Pillow's mode {image.mode}")
        return _one_channel(np.asarray(image))


def _one_channel(values: np.ndarray) -> np.ndarray:
    """(h, w) of gray pixels, however many channels say the same."""
    if values.ndim == 2:
        return values
    if values.ndim != 3 or not 1 <= values.shape[2] <= 4:
        raise ValueError(f"expected height x width numbers, got an array of shape {values.shape}")
    colors = values[..., :3] if values.shape[2] > 2 else values[..., :1]
    if (colors != colors[..., :1]).any():
        raise ValueError("expected one channel of depth, got a color image")
    return values[..., 0]


def _read_exr(path: Path) -> np.ndarray:
    import OpenEXR

    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {}
        for part in file.parts:
            for name, channel in part.channels.items():
                # Parts have names of their own where their channels have none.
                layered = "." in name or len(file.parts) == 1
                channels[name if layered else f"{part.name()}.{name}"] = channel
        pixels = channels[depth_channel(list(channels))].pixels
        gray = [channels[n].pixels for n in ("R", "G", "B") if n in channels]
        if any(pixels is one for one in gray) and not all(np.array_equal(pixels, g) for g in gray):
            raise ValueError("expected a channel of depth, got the channels of a color image")
        return pixels


def depth_channel(names: list[str]) -> str:
    """Which channel of an EXR file is its depth, by the names that renderers give.

    A layer stands before the last dot of a name. In this order: Z alone; Z of a layer called
    depth, as Blender's; a channel called depth; V, Y or R of a layer called depth; Z of any other
    layer that has no X and Y beside it; V, Y or R alone; the only one there is.

    Raises: ValueError: there is none, or several are as likely.
    """
    split = {name: name.rpartition(".")[::2] for name in names}
    layers = {name: layer.rpartition(".")[2].lower() for name, (layer, _) in split.items()}
    last = {name: channel.lower() for name, (_, channel) in split.items()}

    def is_axis(name: str) -> bool:
        beside = {last[other] for other in names if split[other][0] == split[name][0]}
        return {"x", "y", "z"} <= beside or layers[name] in _OTHER_LAYERS

    rules = [
        lambda n: last[n] == "z" and not layers[n] and not is_axis(n),
        lambda n: last[n] == "z" and layers[n] == "depth",
        lambda n: last[n] == "z" and "depth" in layers[n],
        lambda n: last[n] == "depth",
        lambda n: "depth" in last[n],
        *(lambda n, c=c: last[n] == c and layers[n] == "depth" for c in "vyr"),
        *(lambda n, c=c: last[n] == c and "depth" in layers[n] for c in "vyr"),
        lambda n: last[n] == "z" and not is_axis(n),
        *(lambda n, c=c: last[n] == c and not layers[n] for c in "vyr"),
        lambda n: len(names) == 1,
    ]
    for rule in rules:
        found = [name for name in names if rule(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"expected one channel of depth, got {', '.join(sorted(found))}")
    shown = ", ".join(sorted(names)[:12]) or "none"
    raise ValueError(f"expected a channel of depth, such as Z, got the channels {shown}")
