"""External merge sort: rows in order of a key, in bounded memory, with sorted runs on disk."""

from __future__ import annotations

import heapq
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

# Rows per run, and rows read at once from each run while merging.
RUN_ROWS = 20_000
_PIECE_ROWS = 256
# All runs are open while merging, and a process may open about a thousand files.
_MOST_RUNS = 128

Row = TypeVar("Row", bound=tuple)
Other = TypeVar("Other", bound=tuple)


class SortedRuns(Generic[Row]):
    """A collection of rows to `add` to, and then to iterate in order of `key`, any number of times.

    Rows with equal keys come in no particular order.
    """

    def __init__(self, folder: Path, key: Callable[[Row], Any], run_rows: int = RUN_ROWS):
        self._folder, self._key, self._run_rows = folder, key, run_rows
        self._rows: list[Row] = []
        self._runs: list[Path] = []
        self._written = 0
        self._length = 0
        folder.mkdir(parents=True)

    def __len__(self) -> int:
        return self._length

    def add(self, row: Row) -> None:
        """Add a row."""
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

    def __iter__(self) -> Iterator[Row]:
        self._rows.sort(key=self._key)
        yield from heapq.merge(*map(_read, self._runs), self._rows, key=self._key)

    def _write(self, rows: Iterable[Row]) -> Path:
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
    # Unpickling is safe: this process wrote the file, in a folder that it made.
    with open(path, "rb") as file:
        while file.peek(1):
            yield from pickle.load(file)


def join(rows: Iterable[Row], others: Iterable[Other]) -> Iterator[tuple[Row, Other | None]]:
    """Left join on the first element: every row with the first match in `others`, or None.

    Both are sorted by their first element.
    """
    remaining = iter(others)
    other = next(remaining, None)
    for row in rows:
        while other is not None and other[0] < row[0]:
            other = next(remaining, None)
        yield row, other if other is not None and other[0] == row[0] else None
