"""Captions of many objects, as Cap3D publishes them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path


def read_captions(path: Path) -> Iterator[tuple[str, int, str]]:
    """(uid, line, caption) of Cap3D's table: `uid,caption` a line, no header.

    Raises: ValueError: no such file, or a line that is something else.
    """
    if not path.is_file():
        raise ValueError(f"expected Cap3D's .csv file of captions, got {path}, which is no file")
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != 2:
                    raise ValueError(f"expected uid,caption, got {len(cells)} cells")
                if caption := cells[1].strip():
                    yield cells[0].strip(), lines.line_num, caption
        except (ValueError, csv.Error) as error:
            raise ValueError(f"cannot read {path}, line {lines.line_num}: {error}") from None
