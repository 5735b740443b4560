"""Evaluation reports: scores of every object and their means, as JSON and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from spad.evaluation.paper import BesidePaper, paper_tables
from spad.evaluation.statistics import Estimate, estimate_mean
from spad.files import as_kind, inside, json_text, read_json, short, write_texts

FORMAT = "spad evaluation 1"
# How the protocol of MVGBench's objects is called, with the name of its renders.
GSO_PROTOCOL = "GSO by MVGBench"
JSON, MARKDOWN, PAGE = "report.json", "report.md", "report.html"
_LARGEST_REPORT = 1 << 30


@dataclass(frozen=True)
class Column:
    """Name and meaning of a score.

    Attributes:
        best: best possible value, or None if unbounded.
        summary: one line.
    """

    name: str
    higher_is_better: bool
    best: float | None
    summary: str

    @property
    def direction(self) -> str:
        """Arrow in the direction of better values."""
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True)
class ScoredObject:
    """The scores of one object.

    Attributes:
        name: unique within its part.
        part: "views" of a folder, "text", or "novel" views from one image.
        prompt: its prompt, if known.
        scores: by column; NaN where a metric is undefined.
        seconds: computing time by column or group of columns.
        image: file with its views, relative to the report.
        digest: hash of its images and cameras; empty for generated views.
        group: shared by the sets of one prompt, one for each seed; empty for an object alone.
    """

    name: str
    part: str
    prompt: str | None
    scores: dict[str, float]
    seconds: dict[str, float]
    image: str
    digest: str = ""
    group: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON of `report.json` and the journal; undefined scores are null."""
        scores = {name: _finite(value) for name, value in self.scores.items()}
        return {**asdict(self), "scores": scores}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: object) -> ScoredObject:
        """Inverse of `to_json`. Raises: ValueError: other JSON; `where` begins the message."""
        saved = as_kind(data.get("scores"), dict[str, float | None], f"{where}, scores")
        return as_kind({**data, "scores": _with_nan(saved)}, cls, where)


@dataclass(frozen=True)
class EvaluationReport:
    """Results of an evaluation.

    Attributes:
        name: name of the model or folder.
        about: command, versions, hashes and settings.
        protocol: reports of the same protocol can be compared object by object.
        columns: columns of all scores.
        objects: in the order they were scored.
        totals: scores of all images together, by column.
        notes: what was skipped, and why.
    """

    name: str
    about: Mapping[str, Any]
    protocol: str
    columns: tuple[Column, ...]
    objects: tuple[ScoredObject, ...]
    totals: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def values(self, column: Column) -> list[tuple[ScoredObject, float]]:
        """Objects that have a column, with its value."""
        return [(o, o.scores[column.name]) for o in self.objects if column.name in o.scores]

    def estimates(self) -> list[tuple[Column, Estimate, int]]:
        """Mean and number of undefined values of every column that objects have."""
        rows = []
        for column in self.columns:
            values = [value for _, value in self.values(column)]
            if values:
                groups = [o.group or o.name for o, _ in self.values(column)]
                estimate = estimate_mean(values, groups)
                rows.append((column, estimate, len(values) - estimate.count))
        return rows

    def worst(self, column: Column, count: int = 3) -> list[tuple[ScoredObject, float]]:
        """The `count` objects with the worst defined values, worst first; none if all are equal."""
        known = [(o, value) for o, value in self.values(column) if not math.isnan(value)]
        if len(known) > 1 and len({value for _, value in known}) == 1:
            return []
        return sorted(known, key=lambda pair: pair[1], reverse=not column.higher_is_better)[:count]

    def by_seed(self) -> dict[str, list[float]]:
        """Column -> its mean over the sets of each seed; empty where each prompt has one seed."""
        turns: dict[str, int] = {}
        seeds: list[list[ScoredObject]] = []
        for scored in self.objects:
            if not scored.group:
                continue
            turn = turns.get(scored.group, 0)
            turns[scored.group] = turn + 1
            seeds += [[]] * (turn == len(seeds))
            seeds[turn] = [*seeds[turn], scored]
        if len(seeds) < 2:
            return {}
        means = {
            c.name: [estimate_mean([o.scores.get(c.name, math.nan) for o in own]).mean
                     for own in seeds]
            for c in self.columns
        }  # fmt: skip
        return {name: own for name, own in means.items() if not all(map(math.isnan, own))}

    def to_json(self) -> dict[str, Any]:
        """JSON of `report.json`, with means and intervals."""
        return {
            "format": FORMAT,
            "name": self.name,
            "protocol": self.protocol,
            "about": dict(self.about),
            "means": {
                column.name: {
                    **{k: _finite(v) for k, v in asdict(estimate).items()},
                    "undefined": undefined,
                }
                for column, estimate, undefined in self.estimates()
            },
            "totals": {name: _finite(value) for name, value in self.totals.items()},
            "notes": list(self.notes),
            "columns": [asdict(column) for column in self.columns],
            "objects": [one.to_json() for one in self.objects],
        }

    def table(self) -> str:
        """The means as a Markdown table."""
        lines = [
            "| metric | mean | 95 % interval | n | undefined | |",
            "|---|---|---|---|---|---|",
        ]
        for column, e, undefined in self.estimates():
            interval = f"{show_number(e.low)} to {show_number(e.high)}" if e.count > 1 else "–"
            cells = (show_number(e.mean), interval, e.count, undefined or "", column.summary)
            heading = f"{column.name} {column.direction}"
            lines.append(f"| {heading} | {' | '.join(map(str, cells))} |")
        for column in self.columns:
            if column.name in self.totals:
                value = show_number(self.totals[column.name])
                heading = f"{column.name} {column.direction}"
                lines.append(f"| {heading} | {value} | – | all | | {column.summary} |")
        return "\n".join(lines)

    def beside_the_paper(self) -> list[BesidePaper]:
        """Tables of the paper with a row for this report, if a model made its views."""
        scores = {
            c.name: f"{show_number(e.mean)} ({show_number(e.low)} to {show_number(e.high)})"
            for c, e, _ in self.estimates()
            if e.count > 1
        }
        scores |= {name: show_number(value) for name, value in self.totals.items()}
        parts = {scored.part for scored in self.objects}
        is_gso = self.protocol.startswith(GSO_PROTOCOL)
        return paper_tables(self.name, parts, scores, is_gso)

    def markdown(self) -> str:
        """The report as Markdown: table, notes, worst objects, and how it was made."""
        parts = [f"# {self.name}", f"Protocol: {self.protocol}.", self.table()]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        if beside := self.beside_the_paper():
            parts.append("## Beside the paper")
        for table in beside:
            lines = [f"| {' | '.join(table.headings)} |", "|---" * len(table.headings) + "|"]
            lines += [f"| {' | '.join(map(escape_cell, row))} |" for row in table.rows]
            parts += ["\n".join(lines), table.note]
        if by_seed := self.by_seed():
            count = len(next(iter(by_seed.values())))
            names = " | ".join(f"seed {seed}" for seed in range(count))
            lines = [f"| mean of | {names} |", "|---" * (count + 1) + "|"]
            lines += [
                f"| {name} | {' | '.join(map(show_number, means))} |"
                for name, means in by_seed.items()
            ]
            parts.append("## Seeds\n\n" + "\n".join(lines))
        lines = ["| metric | worst objects |", "|---|---|"]
        for column, _, _ in self.estimates():
            worst = "; ".join(
                f"{title_of(one)} ({show_number(value)})" for one, value in self.worst(column)
            )
            if worst:
                lines.append(f"| {column.name} {column.direction} | {escape_cell(worst)} |")
        parts.append("## Worst\n\n" + "\n".join(lines))
        facts = [f"- {name}: {fact}" for name, fact in describe(self.about)]
        parts.append("## How it was made\n\n" + "\n".join(facts))
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class _SavedReport:
    """The contents of `report.json`."""

    format: Literal["spad evaluation 1"]
    name: str
    about: dict[str, Any]
    protocol: str
    columns: tuple[Column, ...]
    objects: list[dict]
    totals: dict[str, float | None]
    notes: tuple[str, ...]
    rest: dict[str, Any]


def read_report(folder: Path) -> EvaluationReport:
    """Read the report in a folder or a `report.json`.

    Raises: ValueError: there is none, or it is malformed.
    """
    path = folder / JSON if folder.is_dir() else folder
    if not path.is_file():
        raise ValueError(f"expected a report of spad evaluate, got {folder}, which has no {JSON}")
    saved = read_json(path, _SavedReport, most=_LARGEST_REPORT)
    objects = tuple(
        ScoredObject.from_json(one, f"{path}, object {number}")
        for number, one in enumerate(saved.objects)
    )
    names = set()
    for scored in objects:
        inside(path.parent, scored.image, path)
        if (scored.part, scored.name) in names:
            raise ValueError(f"{path}: expected every object once, got {short(scored.name)} again")
        names.add((scored.part, scored.name))
    return EvaluationReport(
        saved.name,
        saved.about,
        saved.protocol,
        saved.columns,
        objects,
        _with_nan(saved.totals),
        saved.notes,
    )


def write_report(folder: Path, data: Mapping[str, Any], markdown: str, page: str) -> list[Path]:
    """Write a report as JSON, Markdown and HTML into an existing folder; returns the paths."""
    texts = {folder / JSON: json_text(data), folder / MARKDOWN: markdown, folder / PAGE: page}
    write_texts(texts)
    return list(texts)


def describe(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Readable names and values, without empty ones."""
    facts = []
    for name, value in about.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = " ".join(map(str, value))
        if value not in (None, ""):
            facts.append((name.replace("_", " "), str(value)))
    return facts


def title_of(scored: ScoredObject) -> str:
    """Its prompt, or its name without one."""
    return scored.prompt or scored.name


def escape_cell(text: str) -> str:
    """Text as the cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def show_number(value: float) -> str:
    """A number with three or four significant digits."""
    if math.isnan(value):
        return "–"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def _finite(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    """The values, NaN for None."""
    return {name: math.nan if value is None else value for name, value in values.items()}
