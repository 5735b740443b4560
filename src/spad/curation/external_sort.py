"""Any number of rows in order of a key, in little memory: sorted runs on disk, merged."""

from __future__ import annotations

import heapq
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# Rows in memory: one run while it fills, and a piece of every run while they are merged.
RUN_ROWS = 20_000
_PIECE_ROWS = 256
# All runs are open at once while they are merged, and a process may open about a thousand files.
_MOST_RUNS = 128


class SortedRuns:
    """A collection to `add` to, then to iterate in order, as often as needed.

    Rows with equal keys come in no particular order: give every row its own key where the order
    matters.
    """

    def __init__(self, folder: Path, key: Callable[[Any], Any], run_rows: int = RUN_ROWS):
        self._folder, self._key, self._run_rows = folder, key, run_rows
        self._rows: list = []
        self._runs: list[Path] = []
        self._written = 0
        self._length = 0
        folder.mkdir(parents=True)

    def __len__(self) -> int:
        return self._length

    def add(self, row: Any) -> None:
        self._rows.append(row)
        self._length += 1
        if len(self._rows) == self._run_rows:
            self._rows.sort(key=self._key)
            self._runs.append(self._write(self._rows))
            self._rows = []
            if len(self._runs) == _MOST_RUNS:
                merged = self._write(heapq.merge(*map(_read, self._runs), key=self._key))
                for run in self._runs:
                    run.unlink()
                self._runs = [merged]

    def __iter__(self) -> Iterator[Any]:
        self._rows.sort(key=self._key)
        yield from heapq.merge(*map(_read, self._runs), self._rows, key=self._key)

    def _write(self, rows: Iterable) -> Path:
        path = self._folder / f"{self._written:06d}"
        self._written += 1
        with open(path, "wb") as file:
            piece = []
            for row in rows:
                piece.append(row)
                if len(piece) == _PIECE_ROWS:
                    pickle.dump(piece, file, pickle.HIGHEST_PROTOCOL)
                    piece = []
            pickle.dump(piece, file, pickle.HIGHEST_PROTOCOL)
        return path


def _read(path: Path) -> Iterator[Any]:
    # What is read here was written by this process, into a folder that it made.
    with open(path, "rb") as file:
        while file.peek(1):
            yield from pickle.load(file)


def join(rows: Iterable[tuple], others: Iterable[tuple]) -> Iterator[tuple[tuple, tuple | None]]:
    """Every row with the first of `others` that begins with the same id, or None.

    Both come in order of their first element.
    """
    others = iter(others)
    other = next(others, None)
    for row in rows:
        while other is not None and other[0] < row[0]:
            other = next(others, None)
        yield row, other if other is not None and other[0] == row[0] else None
