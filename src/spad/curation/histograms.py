"""Histograms of counts over many orders of magnitude, with thresholds marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# Bins are uniform in log10(1 + count), so that 0 has a bin.
_EDGES = np.logspace(0, 8, 65) - 1
_COLUMNS = 3


class Histograms:
    """Histograms of several columns, over all objects and those kept, filled batch by batch."""

    def __init__(self, columns: tuple[str, ...]):
        self._counts = {name: np.zeros((2, len(_EDGES) - 1), int) for name in columns}

    def add(self, column: str, values: np.ndarray, kept: np.ndarray) -> None:
        """Add (n,) values, NaN if unknown; (n,) `kept` selects those of the second histogram."""
        known = np.isfinite(values)
        # The last bin includes all larger values.
        values = values.clip(max=_EDGES[-1])
        for counts, chosen in zip(self._counts[column], (known, known & kept), strict=True):
            counts += np.histogram(values[chosen], _EDGES)[0]

    def save(self, path: Path, thresholds: Mapping[str, tuple[int, ...]], title: str) -> None:
        """Draw the columns that have values as a PNG; without any, write no file."""
        shown = {name: counts for name, counts in self._counts.items() if counts.any()}
        if not shown:
            return
        num_rows, num_columns = -(-len(shown) // _COLUMNS), min(_COLUMNS, len(shown))
        figure = Figure((4.2 * num_columns, 0.6 + 2.6 * num_rows), layout="constrained")
        for number, (name, counts) in enumerate(shown.items(), start=1):
            axes = figure.add_subplot(num_rows, num_columns, number)
            axes.stairs(counts[0], _EDGES, fill=True, color="#c6cbd1", label="all objects")
            axes.stairs(counts[1], _EDGES, fill=True, color="#266eb2", label="kept")
            for threshold in thresholds.get(name, ()):
                axes.axvline(threshold, color="#cd3c30", label=f"threshold {threshold:,}")
            last = np.flatnonzero(counts[0])[-1] + 1
            axes.set(title=name, xscale="symlog", xlim=(0, max(_EDGES[last], 9)))
            axes.legend(fontsize="small")
        figure.suptitle(title)
        figure.savefig(path, dpi=100)
