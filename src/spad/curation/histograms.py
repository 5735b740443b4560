"""Histograms of counts that span many orders of magnitude, with thresholds marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spad.images.sheet import Panel, Sheet

# Bins are even in log10(1 + count), which has a place for 0.
_BINS_PER_DECADE = 8
_DECADES = 8
_HEIGHT, _WIDTH = 260, 420
_LEFT, _BOTTOM, _TOP = 64, 34, 26
_ALL, _KEPT, _THRESHOLD = (198, 203, 209), (38, 110, 178), (205, 60, 48)
_TEXT = (70, 70, 70)
_TICKS = ((0, "0"), (9, "10"), (99, "100"), (999, "1K"), (9_999, "10K"), (99_999, "100K"),
          (999_999, "1M"), (9_999_999, "10M"))  # fmt: skip


class Histograms:
    """Histograms of several columns, of all objects and of those kept, filled batch by batch."""

    def __init__(self, columns: tuple[str, ...]):
        self._counts = {name: np.zeros((2, _DECADES * _BINS_PER_DECADE), int) for name in columns}

    def add(self, column: str, values: np.ndarray, kept: np.ndarray) -> None:
        """Count (n,) values, NaN where unknown, and again those where (n,) `kept` holds."""
        known = np.isfinite(values)
        bins = (_position(values[known]) * _BINS_PER_DECADE).astype(int)
        size = self._counts[column].shape[1]
        bins = bins.clip(0, size - 1)
        self._counts[column][0] += np.bincount(bins, minlength=size)
        self._counts[column][1] += np.bincount(bins[kept[known]], minlength=size)

    def save(self, path: Path, thresholds: Mapping[str, tuple[int, ...]], title: str) -> bool:
        """Draw the columns that hold anything as a PNG; False, and no file, if none does."""
        panels = [
            Panel(_draw(counts, thresholds.get(column, ())), column)
            for column, counts in self._counts.items()
            if counts[0].any()
        ]
        if not panels:
            return False
        blank = Panel(np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8))
        per_row = min(3, len(panels))
        panels += [blank] * (-len(panels) % per_row)
        rows = tuple(tuple(panels[i : i + per_row]) for i in range(0, len(panels), per_row))
        legend = ((_ALL, "all objects"), (_KEPT, "kept"), (_THRESHOLD, "threshold"))
        Sheet(rows, title, legend=legend).save(path)
        return True


def _position(count):
    return np.log10(1.0 + np.asarray(count, dtype=float))


def _draw(counts: np.ndarray, thresholds: tuple[int, ...]) -> np.ndarray:
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    ends = [_position(threshold) for threshold in thresholds]
    used = max([(np.flatnonzero(counts[0])[-1] + 1) / _BINS_PER_DECADE, *ends]) + 0.5
    base = _HEIGHT - _BOTTOM
    across = (_WIDTH - _LEFT - 12) / used
    up = (base - _TOP) / counts.max()
    for row, color in ((0, _ALL), (1, _KEPT)):
        for index in np.flatnonzero(counts[row]):
            left = _LEFT + index / _BINS_PER_DECADE * across
            right = left + across / _BINS_PER_DECADE - 1
            # What is there is visible, however little it is.
            height = max(counts[row, index] * up, 1)
            draw.rectangle([round(left), round(base - height), round(right), base - 1], color)
    draw.line([(_LEFT, base), (_WIDTH - 12, base)], _TEXT)
    for value, label in _TICKS:
        x = _LEFT + _position(value) * across
        if x < _WIDTH - 12:
            draw.line([(x, base), (x, base + 4)], _TEXT)
            draw.text((x, base + 6), label, _TEXT, font, anchor="ma")
    draw.text((_LEFT - 6, _TOP), f"{counts.max():,}", _TEXT, font, anchor="rm")
    draw.text((_LEFT - 6, base), "0", _TEXT, font, anchor="rm")
    for threshold, at in zip(thresholds, ends, strict=True):
        x = round(_LEFT + at * across)
        draw.line([(x, _TOP - 6), (x, base)], _THRESHOLD, 2)
        draw.text((x, _TOP - 8), f"{threshold:,}", _THRESHOLD, font, anchor="mb")
    return np.asarray(canvas)
