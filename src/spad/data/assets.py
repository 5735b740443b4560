"""Find the 3D models to render: their ids, files and captions."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spad.data.config import RenderConfig
from spad.files import read_ids, read_json_lines, short

# Names that `spad render` uses itself beside the folders of the objects.
_RESERVED = ("objects.jsonl", "failed.jsonl", "rejected")
_MOST_NAMED = 5
# Of ids, to which others are added while a folder is written, and of names of files.
_LONGEST_UID, _LONGEST_NAME = 200, 255


@dataclass(frozen=True)
class Asset:
    """A model file below `root`, with its captions."""

    uid: str
    path: Path
    captions: tuple[str, ...]
    root: Path

    def check_place(self) -> None:
        """Check that the file is inside `root`: an index from elsewhere may name any file.

        Raises: ValueError: the file is outside `root`, by its path or by a link.
        """
        if not self.path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(
                f"expected a file inside {self.root}, got {self.path}, which leads outside; give a "
                "--root that contains all files"
            )

    def check_names(self) -> None:
        """Raises: ValueError: its id or its path is too long for a folder or file."""
        if len(self.uid) > _LONGEST_UID:
            raise ValueError(
                f"expected an id of at most {_LONGEST_UID} letters, got {len(self.uid)}"
            )
        if any(len(os.fsencode(part)) > _LONGEST_NAME for part in self.path.parts):
            raise ValueError(f"expected the name of a file, got {short(self.path.name)}")


def find_assets(config: RenderConfig) -> list[Asset]:
    """The models of `config.assets`, in the index's order or sorted by path.

    An index has one JSON object per line: `file` (relative to `config.root`, else to the index's
    folder), and optionally `uid`, `caption`, `short`, `captions` (a list) and `skip`. In a folder,
    a model's id is its relative path. Captions are those of `config.captions`, then those of the
    index; without any, the words of the file name.

    Raises: ValueError: no models, a malformed line, two models with one id, or ids without a model.
    """
    # Imported late: it loads the renderers, and a wrong index is refused sooner without them.
    from spad.meshes.renderers import find_renderer

    source = Path(config.assets)
    suffixes = find_renderer(config.renderer).suffixes
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in suffixes)
        rows = (IndexedModel(p.relative_to(source).as_posix(), {}) for p in paths)
        root = source
    elif source.is_file():
        rows = read_index(source)
        root = Path(config.root) if config.root else source.parent
    else:
        raise ValueError(f"expected a folder of models or a .jsonl index, got nothing at {source}")
    assets: dict[str, Asset] = {}
    for row in rows:
        if row.skip:
            continue
        asset = _asset(row, root)
        if asset.uid in assets:
            raise ValueError(
                f"expected one model per id, got {assets[asset.uid].path} and {asset.path} "
                f"for {asset.uid!r}"
            )
        assets[asset.uid] = asset
    if not assets:
        raise ValueError(f"expected models ({', '.join(suffixes)}) in {source}, got none")
    if config.ids is not None:
        assets = _selected(assets, config.ids)
    return list(_captioned(assets, config.captions))[: config.limit]


@dataclass(frozen=True)
class IndexedModel:
    """A line of an index of models; `find_assets` says what it means."""

    file: str
    rest: dict[str, Any]
    uid: str | None = None
    caption: str | None = None
    short: str | None = None
    captions: tuple[str, ...] = ()
    skip: bool = False

    def __post_init__(self) -> None:
        if not Path(self.file).name:
            raise ValueError(f"expected file to name a file, got {self.file!r}")
        if not all(caption.strip() for caption in self.captions):
            raise ValueError("expected captions of some words, got an empty one")


def read_index(path: Path) -> Iterator[IndexedModel]:
    """The lines of an index of models. Raises: ValueError: a line is malformed."""
    for _, row in read_json_lines(path, IndexedModel):
        yield row


def check_uid(uid: str) -> str:
    """Return `uid` if it can name a folder.

    Raises: ValueError: it has other characters, starts with a dot, or is reserved.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", uid):
        raise ValueError(f"expected a uid of letters, digits, '.', '_' and '-', got {uid!r}")
    if uid.lower() in _RESERVED:
        raise ValueError(f"expected another uid than {uid!r}, a name that spad render uses")
    return uid


def _asset(row: IndexedModel, root: Path) -> Asset:
    name = Path(row.file).with_suffix("").as_posix().removeprefix("./")
    uid = row.uid or re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("/", "__"))
    captions = (*filter(None, (row.caption, row.short)), *row.captions)
    return Asset(check_uid(uid), root / row.file, captions, root)


def _selected(assets: dict[str, Asset], ids: Path) -> dict[str, Asset]:
    """The assets whose ids are in the file `ids`, in their own order."""
    names = read_ids(ids)
    if unknown := sorted(names - assets.keys()):
        some = ", ".join(unknown[:_MOST_NAMED]) + (", …" if len(unknown) > _MOST_NAMED else "")
        raise ValueError(
            f"expected a model for every id in {ids}, got none for {len(unknown):,}: {some}"
        )
    return {uid: asset for uid, asset in assets.items() if uid in names}


def _captioned(assets: dict[str, Asset], table: Path | None) -> Iterator[Asset]:
    """The assets with at least one caption each; those of `table` come first."""
    first: dict[str, str] = {}
    for uid, _, caption in read_captions(table) if table else ():
        if uid in assets:
            first.setdefault(uid, caption)
    for uid, asset in assets.items():
        captions = tuple(dict.fromkeys((*filter(None, [first.get(uid)]), *asset.captions)))
        words = re.sub(r"[\W_]+", " ", asset.path.stem).strip().lower()
        yield replace(asset, captions=captions or (words,))


def read_captions(path: Path) -> Iterator[tuple[str, int, str]]:
    """(uid, line, caption) of Cap3D's table: a CSV of `uid,caption` without a header.

    Raises: ValueError: no such file, or a malformed line.
    """
    if not path.is_file():
        raise ValueError(f"expected Cap3D's .csv file of captions, got {path}, which is not a file")
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
