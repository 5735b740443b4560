"""The models a job is about: their ids, files and captions."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from spad.data.config import RenderConfig
from spad.data.lists import read_ids, read_rows

# Beside the objects' folders stand the lists and the folder of rejected ones.
_RESERVED = ("objects.jsonl", "failed.jsonl", "rejected")
_NAMED = 5


@dataclass(frozen=True)
class Asset:
    """A model file below `root`, and what it shows."""

    uid: str
    path: Path
    captions: tuple[str, ...]
    root: Path

    def check_place(self) -> None:
        """An index may come from anywhere, and what it names is opened.

        Raises: ValueError: the file lies outside `root`, or a link leads there.
        """
        if not self.path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(
                f"expected a file below {self.root}, got {self.path}, which lies outside; give a "
                "--root that holds all files"
            )


def find_assets(config: RenderConfig) -> list[Asset]:
    """The models a configuration names, in the index's order or sorted by path.

    An index has one JSON object a line: `file` (relative to `config.root`, else to the index's
    folder), and optionally `uid`, `caption`, `short`, `captions` (a list) and `skip`. In a folder,
    a model's id is its relative path. Captions are those of `config.captions`, then those of the
    index; where there are none, the words of the file's name.

    Raises: ValueError: nothing there, a malformed line, two models of one id, or ids that no
        model has.
    """
    # It loads what draws, which an index need not wait for to be refused.
    from spad.meshes.renderers import find_renderer

    source = Path(config.assets)
    suffixes = find_renderer(config.renderer).suffixes
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in suffixes)
        rows = ({"file": p.relative_to(source).as_posix()} for p in paths)
        root = source
    elif source.is_file():
        rows = read_index(source)
        root = Path(config.root) if config.root else source.parent
    else:
        raise ValueError(f"expected a folder of models or a .jsonl index, got nothing at {source}")
    assets: dict[str, Asset] = {}
    for row in rows:
        if row.get("skip", False):
            continue
        asset = _asset(row, root)
        if asset.uid in assets:
            raise ValueError(
                f"expected one model for each id, got {assets[asset.uid].path} and {asset.path} "
                f"for {asset.uid!r}"
            )
        assets[asset.uid] = asset
    if not assets:
        raise ValueError(f"expected models ({', '.join(suffixes)}) in {source}, got none")
    if config.ids is not None:
        assets = _chosen(assets, config.ids)
    return list(_captioned(assets, config.captions))[: config.limit]


def read_index(path: Path) -> Iterator[dict]:
    """The lines of an index of models. Raises: ValueError: a line is something else."""
    for number, row in read_rows(path):
        if not isinstance(row.get("file"), str):
            raise ValueError(f"{path}, line {number}: expected an object with a 'file'")
        yield row


def check_uid(uid: str) -> str:
    """`uid`, if it can name a folder and a line of a list.

    Raises: ValueError: it cannot, as something in it would lead elsewhere or hide it.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", uid):
        raise ValueError(f"expected a uid of letters, digits, '.', '_' and '-', got {uid!r}")
    if uid.lower() in _RESERVED:
        raise ValueError(f"expected another uid than {uid!r}, which `spad render` has taken")
    return uid


def _asset(row: dict, root: Path) -> Asset:
    name = Path(row["file"]).with_suffix("").as_posix().removeprefix("./")
    uid = str(row.get("uid") or re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("/", "__")))
    listed = row.get("captions", [])
    if not isinstance(listed, list) or not all(isinstance(c, str) and c.strip() for c in listed):
        raise ValueError(f"expected a list of texts as captions of {row['file']}, got {listed!r}")
    captions = (*(str(row[key]) for key in ("caption", "short") if row.get(key)), *listed)
    return Asset(check_uid(uid), root / row["file"], captions, root)


def _chosen(assets: dict[str, Asset], ids: Path) -> dict[str, Asset]:
    """The assets that a file of ids names, in their own order."""
    names = read_ids(ids)
    if unknown := sorted(names - assets.keys()):
        some = ", ".join(unknown[:_NAMED]) + (", ..." if len(unknown) > _NAMED else "")
        raise ValueError(
            f"expected ids of the models, got {len(unknown):,} in {ids} that no model has: {some}"
        )
    return {uid: asset for uid, asset in assets.items() if uid in names}


def _captioned(assets: dict[str, Asset], table: Path | None) -> Iterator[Asset]:
    """The assets with their captions, each of which has at least one."""
    first: dict[str, str] = {}
    for uid, _, caption in read_captions(table) if table else ():
        if uid in assets:
            first.setdefault(uid, caption)
    for uid, asset in assets.items():
        captions = tuple(dict.fromkeys((*filter(None, [first.get(uid)]), *asset.captions)))
        words = re.sub(r"[\W_]+", " ", asset.path.stem).strip().lower()
        yield replace(asset, captions=captions or (words,))


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
