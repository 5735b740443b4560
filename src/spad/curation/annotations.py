"""Metadata of objects, from Objaverse's annotations or local models, read as a stream."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from spad.data.assets import check_uid, find_assets, read_index
from spad.data.config import RenderConfig

_SUFFIXES = (".json", ".json.gz")
_PIECE = 1 << 20
# An annotation has a few thousand characters. Other files are refused before they fill memory.
_LONGEST_MEMBER = 1 << 22
_MEMBER = re.compile(r'\s*([{,])\s*("[^"\\]*(?:\\.[^"\\]*)*")\s*:\s*(?=\{)')
_END = re.compile(r"\s*(\{\s*)?\}\s*")
_LARGEST_COUNT = 2**63 - 1


class Annotation(NamedTuple):
    """Metadata of one object; unknown counts are None.

    A tuple, because millions of them are sorted and written to disk.
    """

    uid: str
    name: str = ""
    tags: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    likes: int | None = None
    views: int | None = None
    comments: int | None = None
    faces: int | None = None
    vertices: int | None = None
    animations: int | None = None
    license: str = ""
    caption: str = ""
    file: str = ""
    geometry: str = ""
    problem: str = ""
    """Why the object cannot be read; empty if it can."""


_COUNTS = {
    "likes": "likeCount",
    "views": "viewCount",
    "comments": "commentCount",
    "faces": "faceCount",
    "vertices": "vertexCount",
    "animations": "animationCount",
}


def read_annotations(source: Path, root: Path | None = None) -> Iterator[Annotation]:
    """Every object of `source`, in no particular order, with a progress bar on a terminal.

    Args:
        source: a folder of .json.gz files, or one such file (gzip or not), in the format of the
            `objaverse` package: one JSON object of annotations keyed by uid. Or a folder of model
            files, or a .jsonl index of them as for `spad render`; triangles, vertices and
            animations are then counted in the files.
        root: folder that the index's paths are relative to. None: the index's own folder.

    Raises: ValueError: nothing to read at `source`, a damaged file of annotations, or an invalid
        id. A damaged model is an `Annotation` with a `problem`.
    """
    files = _annotation_files(source)
    if files:
        if root is not None:
            raise ValueError(f"expected --root only with an index of models, got it with {source}")
        for path in tqdm(files, unit="file", disable=None):
            yield from _read_file(path)
    else:
        yield from _read_models(source, root)


def _annotation_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.name.lower().endswith(_SUFFIXES) else []
    # The objaverse package has other .json.gz files beside the folder `metadata`.
    for folder in (source / "metadata", source):
        if files := sorted(folder.glob("*.json.gz")):
            return files
    return []


def _read_file(path: Path) -> Iterator[Annotation]:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    uid = None
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for uid, value in _members(file):
                try:
                    annotation = parse_annotation(uid, value)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from None
                yield annotation
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError, _NotAnnotations) as error:
        place = "at its start" if uid is None else f"after the object {uid}"
        raise ValueError(
            f"cannot read {path} {place}: expected a JSON object of annotations keyed by uid, as "
            f"the objaverse package writes ({str(error) or type(error).__name__})"
        ) from None


class _NotAnnotations(Exception):
    """A file is not a JSON object of annotations."""


def _members(file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the members of one large JSON object whose values are objects."""
    decoder = json.JSONDecoder()
    text, at, opening = "", 0, "{"
    while True:
        head = _MEMBER.match(text, at)
        if head and head[1] == opening:
            try:
                value, end = decoder.raw_decode(text, head.end())
            except RecursionError:
                raise _NotAnnotations("nested too deeply") from None
            except ValueError:
                pass  # truncated or damaged: decided with more text
            else:
                yield json.loads(head[2]), value
                at, opening = end, ","
                continue
        # The rest is parsed again with the next piece, which is as long, so that time stays linear.
        piece = file.read(max(_PIECE, len(text) - at))
        if not piece:
            end = _END.fullmatch(text, at)
            if end and (end[1] is None) == (opening == ","):
                return
            raise _NotAnnotations("truncated, or not an object of objects")
        if len(text) - at > _LONGEST_MEMBER:
            raise _NotAnnotations(f"no object within {_LONGEST_MEMBER} characters")
        text, at = text[at:] + piece, 0


def parse_annotation(uid: str, value: dict[str, Any]) -> Annotation:
    """Parse an annotation of the `objaverse` package, or a line of an index with the same names.

    Raises: ValueError: the uid cannot name a folder.
    """
    check_uid(uid)
    problems = []
    counts = {}
    for column, key in _COUNTS.items():
        count = value.get(key)
        if isinstance(count, float) and count.is_integer():
            count = int(count)
        if count is not None and (type(count) is not int or not 0 <= count <= _LARGEST_COUNT):
            problems.append(f"{key} is {str(count)[:40]!r}, expected a count")
            count = None
        counts[column] = count
    labels = {}
    for column in ("tags", "categories"):
        found = _labels(value.get(column))
        if found is None:
            problems.append(f"{column} are not a list")
        labels[column] = found or ()
    return Annotation(
        uid=uid,
        name=_text(value.get("name")),
        license=_text(value.get("license")),
        caption=_text(value.get("caption")),
        problem=_text("; ".join(problems)),
        **counts,
        **labels,
    )


def _labels(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return ()
    if not isinstance(value, list):
        return None
    return tuple(_text(v.get("name") if isinstance(v, dict) else v) for v in value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = str(value)
    # JSON allows lone surrogates, which UTF-8 cannot encode.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _read_models(source: Path, root: Path | None) -> Iterator[Annotation]:
    # Imported late: it loads the readers of models, which annotations do not need.
    from spad.meshes.measure import measure_model

    if not source.exists() or (source.is_file() and source.suffix.lower() != ".jsonl"):
        raise ValueError(
            f"expected a folder of .json.gz annotations or of models, a .json or .json.gz file, "
            f"or a .jsonl index of models, got {source}"
        )
    assets = find_assets(RenderConfig(assets=source, output=source, root=root))
    rows = read_index(source) if source.is_file() else ()
    index = {(root or source.parent) / row.file: row.rest | {"file": row.file} for row in rows}
    for asset in tqdm(assets, unit="model", disable=None):
        line = {"name": asset.path.stem} | index.get(asset.path, {})
        line["caption"] = asset.captions[0]
        file = line.get("file") or asset.path.relative_to(source).as_posix()
        row = parse_annotation(asset.uid, line)._replace(file=_text(file))
        try:
            asset.check_place()
            found = measure_model(asset.path)
        except ValueError as error:
            yield row._replace(problem=_text(error))
            continue
        yield row._replace(
            faces=found.faces,
            vertices=found.vertices,
            animations=found.animations,
            geometry=found.geometry,
        )
