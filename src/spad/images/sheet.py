"""Rows of captioned images as one figure: PNG through Pillow, PDF and SVG through matplotlib.

Both are laid out by the same numbers, so that a figure looks the same in every format; in PDF and
SVG the text and the marks stay vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spad.files import whole_file

Color = tuple[int, int, int]
Shape = Literal["ring", "dot", "circle", "cross"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Of panels 400 pixels wide; larger panels have somewhat larger text.
_TEXT_SIZE = 20
_GAP = 14
_MARGIN = 18
_TEXT, _FAINT = (32, 32, 32), (110, 110, 110)
# Two hundred pixels of a sheet are an inch of paper.
_PIXELS_PER_INCH = 200
_POINTS_PER_PIXEL = 72 / _PIXELS_PER_INCH


@dataclass(frozen=True)
class Mark:
    """A mark at (x, y), in pixels of its panel's image."""

    x: float
    y: float
    color: Color
    shape: Shape


@dataclass(frozen=True)
class Panel:
    """An image, uint8 (h, w, 3), with a line above it.

    `labels` divide a matrix into as many equal parts along both sides, and name them.
    """

    image: np.ndarray
    title: str = ""
    marks: tuple[Mark, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """Rows of panels of one size; the legend pairs a color, or the shape of a mark, with words."""

    rows: tuple[tuple[Panel, ...], ...]
    title: str = ""
    row_labels: tuple[str, ...] = ()
    legend: tuple[tuple[Color | Shape, str], ...] = ()

    def save(self, path: Path) -> None:
        """Write the sheet whole; the suffix .png, .pdf or .svg says how.

        Raises: ModuleNotFoundError: PDF and SVG need matplotlib, the extra `plot`.
        """
        with whole_file(path) as unfinished:
            if path.suffix == ".png":
                draw_sheet(self).save(unfinished)
            else:
                _save_vector(self, unfinished)


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels of the sheet and of what every panel has around it."""

    panel_height: int
    panel_width: int
    text: int
    left: int
    tops: tuple[int, ...]
    label_space: int
    width: int
    height: int

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Top-left corner (x, y) of a panel's image."""
        x = self.left + column * (self.panel_width + self.label_space + _GAP) + self.label_space
        return x, self.tops[row]


def draw_sheet(sheet: Sheet) -> Image.Image:
    """Rasterized sheet."""
    layout = _layout(sheet)
    canvas = Image.new("RGB", (layout.width, layout.height), "white")
    draw = ImageDraw.Draw(canvas)
    font, large = (ImageFont.load_default(size) for size in (layout.text, layout.text + 4))
    draw.text((layout.left, _MARGIN), _plain(sheet.title), _TEXT, large)
    for row, column, panel in _placed(sheet):
        x, y = layout.corner(row, column)
        canvas.paste(Image.fromarray(panel.image), (x, y))
        above = y - layout.label_space - layout.text - 7
        draw.text((x, above), _plain(panel.title), _TEXT, font)
        h, w = panel.image.shape[:2]
        for index, label in enumerate(panel.labels):
            at = (index + 0.5) / len(panel.labels)
            draw.text((x + at * w, y - 4), label, _FAINT, font, anchor="mb")
            draw.text((x - 6, y + at * h), label, _FAINT, font, anchor="rm")
            if index:
                cut = index / len(panel.labels)
                draw.line([(x + cut * w, y), (x + cut * w, y + h - 1)], _FAINT)
                draw.line([(x, y + cut * h), (x + w - 1, y + cut * h)], _FAINT)
        draw.rectangle([x - 1, y - 1, x + w, y + h], outline=(205, 205, 205))
        for mark in panel.marks:
            _draw_mark(canvas, x + mark.x, y + mark.y, mark)
    for row, label in enumerate(sheet.row_labels):
        _, y = layout.corner(row, 0)
        text = Image.new("RGB", (layout.panel_height, layout.text + 6), "white")
        ImageDraw.Draw(text).text(
            (layout.panel_height / 2, 0), _plain(label), _TEXT, font, anchor="ma"
        )
        canvas.paste(text.rotate(90, expand=True), (_MARGIN, y))
    for x, y, key, words in _legend(sheet, layout):
        if isinstance(key, str):
            _draw_mark(canvas, x + 9, y + layout.text * 0.6, Mark(0, 0, _TEXT, key))
        else:
            draw.rectangle([x, y + 3, x + layout.text - 2, y + layout.text + 1], fill=key)
        draw.text((x + layout.text + 6, y), _plain(words), _TEXT, font)
    return canvas


def _save_vector(sheet: Sheet, path: Path) -> None:
    import matplotlib
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    layout = _layout(sheet)
    size = (layout.width / _PIXELS_PER_INCH, layout.height / _PIXELS_PER_INCH)
    figure = Figure(figsize=size, dpi=_PIXELS_PER_INCH)

    def text(x: float, y: float, words: str, pixels: int = layout.text, **how) -> None:
        figure.text(
            x / layout.width,
            1 - y / layout.height,
            words,
            fontsize=0.86 * pixels * _POINTS_PER_PIXEL,
            **{"color": _fraction(_TEXT), "va": "top"} | how,
        )

    def axes(x: float, y: float, w: float, h: float):
        at = (x / layout.width, 1 - (y + h) / layout.height, w / layout.width, h / layout.height)
        made = figure.add_axes(at)
        made.set(xticks=[], yticks=[], xlim=(0, w), ylim=(h, 0))
        made.spines[:].set(color="0.8", linewidth=0.4)
        return made

    text(layout.left, _MARGIN, sheet.title, layout.text + 4)
    for row, column, panel in _placed(sheet):
        x, y = layout.corner(row, column)
        h, w = panel.image.shape[:2]
        place = axes(x, y, w, h)
        place.imshow(panel.image, extent=(0, w, h, 0), interpolation="none", aspect="auto")
        text(x, y - layout.label_space - layout.text - 7, panel.title)
        for index, label in enumerate(panel.labels):
            at = (index + 0.5) / len(panel.labels)
            text(x + at * w, y - 4, label, ha="center", va="bottom", color="0.43")
            text(x - 6, y + at * h, label, ha="right", va="center", color="0.43")
            if index:
                cut = index / len(panel.labels)
                place.axvline(cut * w, color="0.43", linewidth=0.4)
                place.axhline(cut * h, color="0.43", linewidth=0.4)
        for mark in panel.marks:
            _plot_mark(place, mark.x, mark.y, mark)
    for row, label in enumerate(sheet.row_labels):
        _, y = layout.corner(row, 0)
        x, middle = _MARGIN + layout.text / 2, y + layout.panel_height / 2
        text(x, middle, label, rotation=90, ha="center", va="center")
    for x, y, key, words in _legend(sheet, layout):
        side = layout.text - 2
        place = axes(x, y + 3, side, side)
        place.set_axis_off()
        if isinstance(key, str):
            _plot_mark(place, side / 2, side / 2, Mark(0, 0, _TEXT, key))
        else:
            square = Rectangle((0, 0), side, side, color=_fraction(key))
            place.add_patch(square)
        text(x + layout.text + 6, y, words)
    # Text as text, so that a journal's editor can change it; no date, so that a file is repeatable.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "spad"}):
        canvas = (FigureCanvasPdf if path.suffix == ".pdf" else FigureCanvasSVG)(figure)
        date = "CreationDate" if path.suffix == ".pdf" else "Date"
        canvas.print_figure(path, dpi=_PIXELS_PER_INCH, metadata={date: None})


def _placed(sheet: Sheet) -> Iterator[tuple[int, int, Panel]]:
    for row, panels in enumerate(sheet.rows):
        for column, panel in enumerate(panels):
            yield row, column, panel


def _layout(sheet: Sheet) -> _Layout:
    panels = [panel for row in sheet.rows for panel in row]
    height, width = panels[0].image.shape[:2]
    assert all(panel.image.shape == (height, width, 3) for panel in panels)
    size = round(_TEXT_SIZE * math.sqrt(max(width, 250) / 400))
    font, large = ImageFont.load_default(size), ImageFont.load_default(size + 4)
    label_space = size + 10 if any(panel.labels for panel in panels) else 0
    left = _MARGIN + (size + 12 if sheet.row_labels else 0)
    tops, bottom = [], _MARGIN + (size + 18 if sheet.title else 0)
    for row in sheet.rows:
        title_space = size + 8 if any(panel.title for panel in row) else 0
        tops.append(bottom + title_space + label_space)
        bottom = tops[-1] + height + _GAP
    columns = max(len(row) for row in sheet.rows)
    body = max(
        columns * (width + label_space + _GAP) - _GAP,
        large.getlength(_plain(sheet.title)),
        *(_entry_length(font, size, words) for _, words in sheet.legend),
    )
    total_width = int(left + body + _MARGIN)
    layout = _Layout(height, width, size, left, tuple(tops), label_space, total_width, bottom)
    lines = 1 + max((line for line, _, _, _ in _flow(sheet, layout)), default=-1)
    legend_space = lines * (size + 10) + (_GAP if lines else 0)
    return replace(layout, height=bottom + _MARGIN - _GAP + legend_space)


def _plain(text: str) -> str:
    """Text in the few letters that Pillow's own font has."""
    return text.translate({ord("ü"): "ue", ord("×"): "x"})


def _entry_length(font: Font, size: int, words: str) -> float:
    return size + 6 + font.getlength(_plain(words)) + 26


def _flow(sheet: Sheet, layout: _Layout) -> Iterator[tuple[int, float, Color | Shape, str]]:
    """The legend's entries with their line and x, as many to a line as fit."""
    font = ImageFont.load_default(layout.text)
    line, x = 0, float(layout.left)
    for key, words in sheet.legend:
        length = _entry_length(font, layout.text, words)
        if x > layout.left and x + length > layout.width:
            line, x = line + 1, float(layout.left)
        yield line, x, key, words
        x += length


def _legend(sheet: Sheet, layout: _Layout) -> Iterator[tuple[float, float, Color | Shape, str]]:
    top = layout.tops[-1] + layout.panel_height + 16
    for line, x, key, words in _flow(sheet, layout):
        yield x, top + line * (layout.text + 10), key, words


def _draw_mark(canvas: Image.Image, x: float, y: float, mark: Mark) -> None:
    """Draw a mark four times as large and shrink it: Pillow draws lines without soft edges."""
    zoom, half = 4, 13
    stamp = Image.new("RGBA", (2 * half * zoom, 2 * half * zoom))
    draw = ImageDraw.Draw(stamp)
    left, top = round(x - half), round(y - half)
    middle = ((x - left) * zoom, (y - top) * zoom)
    outer = (255, 255, 255, 230)

    def ring(radius: float, width: float, color, fill=None) -> None:
        box = [c - radius * zoom for c in middle] + [c + radius * zoom for c in middle]
        draw.ellipse(box, fill, color, round(width * zoom))

    if mark.shape == "cross":
        for color, width, reach in ((outer, 5.5, 6.5), (mark.color, 3, 5.5)):
            for sign in (1, -1):
                ends = [(middle[0] + s * reach * zoom, middle[1] + s * sign * reach * zoom)
                        for s in (-1, 1)]  # fmt: skip
                draw.line(ends, color, round(width * zoom))
    elif mark.shape == "dot":
        ring(6.5, 6.5, outer, outer)
        ring(5, 5, mark.color, mark.color)
    elif mark.shape == "circle":
        ring(7.5, 5, outer)
        ring(6.2, 2.4, mark.color)
    else:
        ring(10.5, 5.4, outer)
        ring(9.3, 3, mark.color)
        ring(1.8, 1.8, mark.color, mark.color)
    stamp = stamp.resize((2 * half, 2 * half), Image.Resampling.BOX)
    canvas.paste(stamp, (left, top), stamp)


def _plot_mark(axes, x: float, y: float, mark: Mark) -> None:
    from matplotlib.patheffects import withStroke

    symbol = {"cross": "x", "dot": "o", "circle": "o", "ring": "o"}[mark.shape]
    size = {"cross": 11, "dot": 10, "circle": 12, "ring": 18}[mark.shape] * _POINTS_PER_PIXEL
    color = _fraction(mark.color)
    filled = color if mark.shape == "dot" else "none"
    halo = [withStroke(linewidth=6 * _POINTS_PER_PIXEL, foreground="white")]
    style = {"markeredgewidth": 2.8 * _POINTS_PER_PIXEL, "clip_on": False, "path_effects": halo}
    axes.plot(
        [x], [y], symbol, markersize=size, markeredgecolor=color, markerfacecolor=filled, **style
    )
    if mark.shape == "ring":
        axes.plot([x], [y], "o", markersize=3.6 * _POINTS_PER_PIXEL, color=color, clip_on=False)


def _fraction(color: Color) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in color)
