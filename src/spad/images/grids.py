"""Image grids of views, and turntable animations."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageDraw, ImageFont

_GAP = 2
_TEXT_SIZE = 12
_TURN_MS = 2400


def view_grid(images: Sequence[Image.Image]) -> Image.Image:
    """Grid of images of one size with thin white gaps, up to six in a row."""
    count = len(images)
    columns = count
    if count > 6:
        square = math.ceil(math.sqrt(count))
        # The fullest last row, then the squarest.
        columns = min(range(square, 2 * square), key=lambda c: (-count % c, c))
    return _tiled(images, columns)


def prompt_grid(images: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Grid of prompts, each with its views above it; two columns from seven prompts on."""
    blocks = [_captioned(view_grid(views), prompt) for prompt, views in images.items()]
    return _tiled(blocks, 1 if len(blocks) <= 6 else 2)


def image_html(image: Image.Image) -> str:
    """An image as an element of HTML that needs no file."""
    memory = BytesIO()
    image.save(memory, "PNG")
    data = base64.b64encode(memory.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" width="{image.width}">'


def save_turntable(
    path: Path | BinaryIO, images: Sequence[Image.Image], azimuth_deg: Sequence[float]
) -> None:
    """Save a looping animation of the views in order of azimuth, starting at view 0."""
    start = azimuth_deg[0]
    # Rounded, so that views at one azimuth keep their order.
    order = sorted(range(len(images)), key=lambda i: round((azimuth_deg[i] - start) % 360, 3) % 360)
    first, *rest = (images[i] for i in order)
    duration = min(600, max(60, _TURN_MS // len(images)))
    first.save(
        path, save_all=True, append_images=rest, duration=duration, loop=0, quality=90, method=4
    )


def _tiled(images: Sequence[Image.Image], columns: int) -> Image.Image:
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    rows = math.ceil(len(images) / columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    canvas = Image.new("RGB", size, "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        canvas.paste(image, (column * (width + _GAP), row * (height + _GAP)))
    return canvas


def _captioned(image: Image.Image, text: str) -> Image.Image:
    """Image with a one-line caption underneath, cut where it is too long."""
    font = ImageFont.load_default(_TEXT_SIZE)
    # The built-in font has no more letters than these.
    text = " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")
    canvas = Image.new("RGB", (image.width, image.height + _TEXT_SIZE + 8), "white")
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    shown = text
    while shown and draw.textlength(shown, font) > canvas.width - 8:
        text = text[:-1]
        shown = text.rstrip() + "..." if text else ""
    left = (canvas.width - draw.textlength(shown, font)) // 2
    draw.text((left, image.height + 2), shown, "black", font)
    return canvas
