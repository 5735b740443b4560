"""`spad filter`: select objects by their metadata, with a table of the reasons of rejections."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spad.curation.annotations import Annotation, read_annotations
from spad.curation.config import FilterConfig
from spad.curation.external_sort import SortedRuns, join
from spad.curation.histograms import Histograms
from spad.data.assets import read_captions
from spad.files import RECORD, json_text, whole_folder, write_text

Reason = Callable[[Annotation], "str | None"]
# The keys of all kinds of duplicates, and the rank: (-likes, -views, uid).
_Candidate = tuple[tuple[str, ...], tuple[int, int, str]]

ROWS_PER_GROUP = 20_000
_COLUMNS = ("likes", "views", "comments", "faces", "vertices")
_WORDS = pa.list_(pa.string())
SCHEMA = pa.schema(
    {
        "uid": pa.string(),
        "kept": pa.bool_(),
        "rejected_by": pa.string(),
        "failed": _WORDS,
        "reasons": _WORDS,
        "name": pa.string(),
        "likes": pa.int64(),
        "views": pa.int64(),
        "comments": pa.int64(),
        "faces": pa.int64(),
        "vertices": pa.int64(),
        "animations": pa.int64(),
        "license": pa.string(),
        "tags": _WORDS,
        "categories": _WORDS,
        "caption": pa.string(),
        "file": pa.string(),
        "geometry": pa.string(),
    }
)

# Patterns of the kinds of objects, in their name, tags or categories.
EXCLUDED_WORDS = {
    "text": r"texts?|3d ?text|lettering|letters?|typography|fonts?|calligraphy",
    "scan": r"(3d ?)?scan(s|ned|ning)?|scan ?3d|photogrammetry|photoscan|lidar|reality ?capture|"
    r"reality ?scan|agisoft|metashape|polycam",
    "point-cloud": r"point ?clouds?",
    "scene": r"scenes?|environments?|interiors?|landscapes?|dioramas?|terrains?|city ?scapes?",
}


@dataclass(frozen=True)
class Rule:
    """A rule that objects pass or fail.

    Attributes:
        name: name in the funnel and the table.
        make: from settings to a description of the requirement and a function that returns the
            reason why an object fails, or None; None if these settings do not use the rule.
    """

    name: str
    make: Callable[[FilterConfig], tuple[str, Reason] | None]


@dataclass(frozen=True)
class FunnelStep:
    """A rule, its requirement, the objects it rejected first (`lost`), and all that fail it."""

    rule: str
    requirement: str
    lost: int
    failing: int


@dataclass(frozen=True)
class FilterReport:
    """Summary of a run. `unknown` counts the objects without a value that has a threshold."""

    folder: Path
    total: int
    kept: int
    steps: tuple[FunnelStep, ...]
    unknown: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        rows = [
            ("rule", "lost", "left", "fail it", "requires"),
            ("", "", f"{self.total:,}", "", ""),
        ]
        left = self.total
        for step in self.steps:
            left -= step.lost
            counts = (f"{step.lost:,}", f"{left:,}", f"{step.failing:,}")
            rows.append((step.rule, *counts, step.requirement))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{row[0]:{widths[0]}}  "
            + "  ".join(f"{row[i]:>{widths[i]}}" for i in (1, 2, 3))
            + f"  {row[4]}"
            for row in rows
        ]
        if self.unknown:
            known = ", ".join(f"{column} of {count:,}" for column, count in self.unknown)
            lines.append(f"unknown, therefore not rejected: {known}")
        lines.append(f"{self.kept:,} of {self.total:,} objects kept: {self.folder / 'ids.txt'}")
        return "\n".join(line.rstrip() for line in lines)


def _between(name: str, *columns: str) -> Rule:
    """A rule that counts are between `min_COLUMN` and `max_COLUMN` of the settings, if set."""

    def make(config: FilterConfig) -> tuple[str, Reason] | None:
        limits, requirements = [], []
        for column in columns:
            least, most = _limits(config, column)
            if least is not None or most is not None:
                wanted = _range(least, most)
                place = Annotation._fields.index(column)
                highest = float("inf") if most is None else most
                limits.append((column, place, least or 0, highest, wanted))
                requirements.append(f"{column} {wanted}")

        def reason(row: Annotation) -> str | None:
            wrong = [
                f"{row[place]} {column}, expected {wanted}"
                for column, place, least, most, wanted in limits
                if row[place] is not None and not least <= row[place] <= most
            ]
            return "; ".join(wrong) or None

        return (", ".join(requirements), reason) if limits else None

    return Rule(name, make)


def _range(least: int | None, most: int | None) -> str:
    if least is None:
        return f"at most {most:,}"
    return f"at least {least:,}" if most is None else f"{least:,} to {most:,}"


def _without(kind: str) -> Rule:
    """A rule that no word of an object's name, tags or categories names a kind."""
    pattern = re.compile(rf"\b(?:{EXCLUDED_WORDS[kind]})\b")

    def reason(row: Annotation) -> str | None:
        text = " | ".join((row.name, *row.tags, *row.categories)).lower()
        found = pattern.search(text.replace("_", " ").replace("-", " "))
        return f"its name, tags or categories contain {found[0]!r}" if found else None

    def make(config: FilterConfig) -> tuple[str, Reason] | None:
        return (f"no {kind}", reason) if kind in (config.exclude or ()) else None

    return Rule(kind, make)


def _readable(_config: FilterConfig) -> tuple[str, Reason]:
    return "readable numbers and files", lambda row: row.problem or None


def _allowed_license(config: FilterConfig) -> tuple[str, Reason] | None:
    allowed = {license_slug(license) for license in config.licenses or ()}
    if unknown := sorted(allowed - set(_LICENSES)):
        raise ValueError(
            f"expected --licenses among {', '.join(_LICENSES)}, got {', '.join(unknown)}"
        )

    def reason(row: Annotation) -> str | None:
        if license_slug(row.license) in allowed:
            return None
        return f"license {row.license!r}" if row.license else "no license"

    return (f"one of {', '.join(sorted(allowed))}", reason) if allowed else None


def _with_caption(config: FilterConfig) -> tuple[str, Reason] | None:
    if config.captions is None:
        return None
    words = f"no caption in {config.captions.name}"
    return f"a caption in {config.captions.name}", lambda row: None if row.caption else words


RULES = (
    Rule("readable", _readable),
    _between("popularity", "likes", "views", "comments"),
    _between("polygons", "faces"),
    _between("vertices", "vertices"),
    Rule("license", _allowed_license),
    _between("animation", "animations"),
    *map(_without, EXCLUDED_WORDS),
    Rule("caption", _with_caption),
)


# Creative Commons licenses, then Sketchfab's free, standard and editorial ones.
_LICENSES = ("cc0", "by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "free-st", "st", "ed")


def license_slug(license: str) -> str:
    """A Creative Commons license in Objaverse's notation: "CC-BY-SA-4.0" becomes "by-sa"."""
    slug = re.sub(r"[\s_-]+", "-", license.strip().lower())
    slug = re.sub(r"^(creative-commons|cc)-|-\d+(\.\d+)*$", "", slug)
    return re.sub(r"-\d+(\.\d+)*$", "", slug)


def _name_key(row: Annotation) -> str:
    return "".join(filter(str.isalnum, row.name.casefold()))


def _counts_key(row: Annotation) -> str:
    name = _name_key(row)
    known = name and row.faces is not None and row.vertices is not None
    return f"{name} {row.faces} {row.vertices}" if known else ""


# Keys that duplicates share; an object with an empty key is no duplicate.
DUPLICATE_KEYS: dict[str, Callable[[Annotation], str]] = {
    "name": _name_key,
    "name-and-counts": _counts_key,
    "geometry": lambda row: row.geometry,
}


def filter_objects(config: FilterConfig) -> FilterReport:
    """Apply the rules to every object of `config.annotations`; write the folder `config.output`.

    The folder has `ids.txt` (ids of kept objects, one per line), `table.parquet` (every object, its
    numbers, and the rules it fails; `SCHEMA`), `histograms.png`, and `run.json` (the settings and
    the funnel). All are sorted by id and depend only on the objects and the settings. Memory does
    not grow with the number of objects; temporary files are in the output folder.

    Every rule of `RULES` is applied to every object; the first one that it fails counts as the one
    that rejects it. Objects that pass all rules are searched for duplicates, of which the one with
    the most likes is kept, then with the most views, then with the smallest id.

    Source: SPAD, section 4 (popularity, polygons and vertices). The other rules are ours.

    Raises:
        ValueError: input that is missing, damaged or has an object twice; no objects; an existing
            output folder.
        OSError: the output cannot be written.
    """
    config = config.with_preset()
    rules = {rule.name: made for rule in RULES if (made := rule.make(config))}
    kinds = tuple(kind for kind in DUPLICATE_KEYS if kind in (config.duplicates or ()))

    with whole_folder(config.output, config.overwrite) as folder:
        scratch = folder / "scratch"
        captions: SortedRuns[tuple[str, int, str]] = SortedRuns(
            scratch / "captions", key=itemgetter(0, 1)
        )
        if config.captions is not None:
            for row in read_captions(config.captions):
                captions.add(row)
        annotations: SortedRuns[Annotation] = SortedRuns(scratch / "annotations", key=itemgetter(0))
        for row in read_annotations(config.annotations, config.root):
            annotations.add(row)
        if not len(annotations):
            raise ValueError(f"expected objects in {config.annotations}, got none")

        def rows() -> Iterator[Annotation]:
            previous = None
            for row, caption in join(annotations, captions):
                if row.uid == previous:
                    raise ValueError(f"expected every object once, got {previous} twice")
                previous = row.uid
                if config.captions is not None:
                    row = row._replace(caption=caption[2] if caption else "")
                yield row

        def failures_of(row: Annotation) -> list[tuple[str, str]]:
            reasons = ((rule, reason(row)) for rule, (_, reason) in rules.items())
            return [(rule, words) for rule, words in reasons if words]

        survivors = (row for row in rows() if not failures_of(row)) if kinds else ()
        duplicates = _find_duplicates(survivors, kinds, scratch)
        requirements = {rule: words for rule, (words, _) in rules.items()}
        requirements |= {f"duplicate {kind}": f"one object of the same {kind}" for kind in kinds}
        with _Writer(folder) as writer:
            for row, duplicate in join(rows(), duplicates):
                failures = failures_of(row)
                if duplicate:
                    failures.append(duplicate[1:])
                writer.add(row, failures)
        shutil.rmtree(scratch)

        limits = {column: _limits(config, column) for column in _COLUMNS}
        report = FilterReport(
            folder=Path(config.output),
            total=len(annotations),
            kept=writer.kept,
            steps=tuple(
                FunnelStep(rule, words, writer.lost[rule], writer.failing[rule])
                for rule, words in requirements.items()
            ),
            unknown=tuple(
                (column, writer.unknown[column])
                for column, limit in limits.items()
                if limit != (None, None) and writer.unknown[column]
            ),
        )
        thresholds = {name: tuple(filter(None, limit)) for name, limit in limits.items()}
        title = f"{report.kept:,} of {report.total:,} objects kept"
        writer.histograms.save(folder / "histograms.png", thresholds, title)
        record = {"settings": asdict(config), **asdict(report)}
        for place in ("output", "overwrite"):
            del record["settings"][place]
        del record["folder"]
        write_text(folder / RECORD, json_text(record))
    return report


def _limits(config: FilterConfig, column: str) -> tuple[int | None, int | None]:
    least, most = (getattr(config, f"{end}_{column}", None) for end in ("min", "max"))
    return least, most


def _find_duplicates(
    survivors: Iterable[Annotation], kinds: tuple[str, ...], scratch: Path
) -> SortedRuns[tuple[str, str, str]]:
    """(uid, rule, reason) of duplicates that are not kept, sorted by uid.

    An object dropped by one kind is not compared by the next.
    """
    dropped: SortedRuns[tuple[str, str, str]] = SortedRuns(scratch / "dropped", key=itemgetter(0))
    candidates: Iterable[_Candidate] = (
        (tuple(DUPLICATE_KEYS[kind](row) for kind in kinds), _rank(row)) for row in survivors
    )
    for place, kind in enumerate(kinds):
        ordered: SortedRuns[_Candidate] = SortedRuns(
            scratch / kind, key=lambda item, place=place: (item[0][place], item[1])
        )
        for item in candidates:
            ordered.add(item)
        candidates = _firsts(ordered, place, kind, dropped)
    for _ in candidates:
        pass
    return dropped


def _rank(row: Annotation) -> tuple[int, int, str]:
    return -(row.likes or 0), -(row.views or 0), row.uid


def _firsts(
    ordered: Iterable[_Candidate], place: int, kind: str, dropped: SortedRuns[tuple[str, str, str]]
) -> Iterator[_Candidate]:
    """The first candidate of each key; the others are added to `dropped`."""
    key, best = "", ""
    for item in ordered:
        keys, (_, _, uid) = item
        if keys[place] and keys[place] == key:
            dropped.add((uid, f"duplicate {kind}", f"same {kind} as {best}"))
        else:
            key, best = keys[place], uid
            yield item


class _Writer:
    """Writer of the table, the ids and the counts, one row group at a time."""

    def __init__(self, folder: Path):
        self.kept = 0
        self.lost: Counter[str] = Counter()
        self.failing: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.histograms = Histograms(_COLUMNS)
        self._table = pq.ParquetWriter(folder / "table.parquet", SCHEMA, compression="zstd")
        self._ids = open(folder / "ids.txt", "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        self._rows: list[Annotation] = []
        self._failures: list[list[tuple[str, str]]] = []

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._ids.close()
            self._table.close()

    def add(self, row: Annotation, failures: list[tuple[str, str]]) -> None:
        """Add an object with the (rule, reason) pairs it fails."""
        self._rows.append(row)
        self._failures.append(failures)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns: dict[str, Sequence[Any]] = dict(
            zip(Annotation._fields, zip(*self._rows, strict=True), strict=True)
        )
        columns["failed"] = [[rule for rule, _ in failures] for failures in self._failures]
        columns["reasons"] = [[words for _, words in failures] for failures in self._failures]
        columns["rejected_by"] = [rules[0] if rules else None for rules in columns["failed"]]
        columns["kept"] = [not rules for rules in columns["failed"]]
        table = pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
        self._table.write_table(table, row_group_size=ROWS_PER_GROUP)

        kept = np.array(columns["kept"])
        self.kept += int(kept.sum())
        self.lost.update(filter(None, columns["rejected_by"]))
        for rules in columns["failed"]:
            self.failing.update(rules)
        for name in _COLUMNS:
            self.unknown[name] += table[name].null_count
            self.histograms.add(name, np.array(columns[name], dtype=float), kept)
        ids = (row.uid for row, failures in zip(self._rows, self._failures, strict=True)
               if not failures)  # fmt: skip
        self._ids.writelines(f"{uid}\n" for uid in ids)
        self._rows, self._failures = [], []
