"""Text files that hold one thing a line: JSON objects, or ids."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1, and objects, of a JSON Lines file; empty lines are skipped.

    Raises: ValueError: it is something else, with the line.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: expected JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object")
            yield number, row


def read_ids(path: Path) -> frozenset[str]:
    """Ids, one a line or between spaces. Raises: ValueError: no such file, or none in it."""
    if not path.is_file():
        raise ValueError(f"expected a file of ids, got {path}, which is no file")
    ids = frozenset(path.read_text(encoding="utf-8-sig").split())
    if not ids:
        raise ValueError(f"expected ids in {path}, got none")
    return ids
