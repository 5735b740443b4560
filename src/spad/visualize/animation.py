"""Animations of a source pixel that wanders over its view while its bands sweep the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spad.files import whole_file
from spad.geometry import pixel_bands
from spad.visualize.figures import COLORS, in_rows
from spad.visualize.views import ShownViews

FRAME_MS = 60
_GAP = 4
# Colors of the images. The palette holds them three times (plain, under the band, under its middle
# line) and four more for marks. All frames share it, so no frame needs its own quantization.
_BASE_COLORS = 84
_DARK, _WHITE, _ACCENT = 3 * _BASE_COLORS, 3 * _BASE_COLORS + 1, 3 * _BASE_COLORS + 2


def wandering_pixels(height: int, width: int, count: int) -> Tensor:
    """Pixel centers (count, 2) on a closed curve over the middle of an image, evenly in time."""
    turn = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    x = width * (0.5 + 0.30 * torch.sin(2 * turn))
    y = height * (0.5 + 0.32 * torch.sin(3 * turn + math.pi / 3))
    return (torch.stack([x, y], dim=-1).floor() + 0.5).float()


def sweep_frames(
    views: ShownViews,
    view: int,
    xy: Tensor,
    band_width: float,
    panel: int = 256,
    near: float = 0.0,
    far: float = math.inf,
) -> Iterator[Image.Image]:
    """One frame for each source pixel (n, 2): all views, the pixel marked, its bands tinted.

    Frames are palette images (mode P) with one palette.

    Args:
        xy, band_width: in pixels of the images.
        panel: longer side of a view in the frames, in pixels.
        near, far: depths that the rays are cut to, world units.
    """
    cameras, images = views.resized(panel)
    scale = cameras.width / views.cameras.width
    rows = in_rows(range(len(images)))
    corners = [
        (c * (cameras.width + _GAP), r * (cameras.height + _GAP))
        for r, row in enumerate(rows)
        for c, _ in enumerate(row)
    ]
    size = (
        len(rows[0]) * (cameras.width + _GAP) - _GAP,
        len(rows) * (cameras.height + _GAP) - _GAP,
    )
    base, palette = _base_frame(views.names, images, corners, size)
    bands = pixel_bands(cameras, view, xy * scale, near, far)
    half = max(band_width * scale / 2, 1.5)
    for index, (x, y) in enumerate((xy * scale).tolist()):
        distance = bands.distance_maps(index)
        level = (distance <= half).to(torch.uint8) + (distance <= 1.0).to(torch.uint8)
        level[view] = 0
        level = level.numpy() * np.uint8(_BASE_COLORS)
        frame = base.copy()
        for (left, top), add in zip(corners, level, strict=True):
            frame[top : top + cameras.height, left : left + cameras.width] += add
        image = Image.frombytes("P", size, frame.tobytes())
        image.putpalette(palette)
        left, top = corners[view]
        _ring(ImageDraw.Draw(image), left + x, top + y)
        yield image


def save_sweep(path: Path, frames: Iterator[Image.Image]) -> None:
    """Write frames as an endless GIF or WebP, by the path's suffix, whole or not at all."""
    if path.suffix == ".webp":
        frames = (frame.convert("RGB") for frame in frames)
        how: dict[str, Any] = {"quality": 82, "method": 2}
    else:
        how = {"optimize": False, "disposal": 1}
    with whole_file(path) as unfinished:
        next(frames).save(
            unfinished, save_all=True, append_images=frames, duration=FRAME_MS, loop=0, **how
        )


def _base_frame(names, images, corners, size) -> tuple[np.ndarray, list[int]]:
    """All views as palette numbers below 84, and the palette with its tinted copies."""
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for name, image, corner in zip(names, images, corners, strict=True):
        canvas.paste(Image.fromarray(image), corner)
        draw.text(
            (corner[0] + 5, corner[1] + 3),
            name,
            (90, 90, 90),
            font,
            stroke_width=2,
            stroke_fill="white",
        )
    numbers = canvas.quantize(_BASE_COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colors = np.array(numbers.getpalette() or [], np.float32).reshape(-1, 3)[:_BASE_COLORS]
    colors = np.concatenate([colors, np.zeros((_BASE_COLORS - len(colors), 3), np.float32)])
    accent = np.array(COLORS[0], np.float32)
    tinted = [colors + share * (accent - colors) for share in (0, 0.42, 0.92)]
    marks = np.array([(20, 20, 20), (255, 255, 255), COLORS[0], (0, 0, 0)], np.float32)
    palette = np.concatenate([*tinted, marks]).round().astype(np.uint8)
    return np.asarray(numbers), palette.flatten().tolist()


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    for radius, color, width in ((8, _WHITE, 4), (7, _ACCENT, 2)):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], None, color, width)
    draw.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], _ACCENT)
