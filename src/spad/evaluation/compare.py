"""`spad evaluate --compare`: paired differences of reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from spad.evaluation.page import (
    facts,
    heading,
    histogram,
    html_list,
    html_page,
    html_table,
    image,
    interval,
)
from spad.evaluation.report import (
    FORMAT,
    Column,
    EvaluationReport,
    ScoredObject,
    escape_cell,
    read_report,
    show_number,
    title_of,
    write_report,
)
from spad.evaluation.statistics import Difference, estimate_mean, paired_difference
from spad.files import RECORD, json_text, whole_folder, write_text

_HEADINGS = ("metric", "first", "other", "difference", "95 % interval", "n", "better at", "")


@dataclass(frozen=True)
class Row:
    """One score of two reports, over the objects that have it in both.

    Attributes:
        pairs: (first, other) of each object.
        values: (n, 2) their scores.
        means: means of the first and the other.
    """

    column: Column
    pairs: tuple[tuple[ScoredObject, ScoredObject], ...]
    values: np.ndarray
    means: tuple[float, float]
    difference: Difference


def compare_reports(
    folders: Sequence[Path], output: Path, overwrite: bool = False, command: Sequence[str] = ()
) -> tuple[str, list[Path]]:
    """Compare every report with the first; write JSON, Markdown and HTML.

    Objects are paired by part and name; objects of only one report are skipped and counted.
    Returns a table to print, and the files.

    Raises: ValueError: a folder has no report, the protocols differ, or no object is in both.
    """
    first, *others = (read_report(folder) for folder in folders)
    for folder, other in zip(folders[1:], others, strict=True):
        if other.protocol != first.protocol:
            raise ValueError(
                f"expected reports of one protocol, got {first.protocol!r} in {folders[0]} and "
                f"{other.protocol!r} in {folder}"
            )
    labels = _labels([first.name, *(other.name for other in others)], folders)
    tables = [compare(first, other) for other in others]
    notes = [
        note
        for other, label, rows in zip(others, labels[1:], tables, strict=True)
        for note in _notes(first, other, labels[0], label, rows)
    ]
    data = {
        "format": f"{FORMAT}, compared",
        "first": labels[0],
        "reports": [str(folder) for folder in folders],
        "notes": notes,
        "compared": [
            {"other": label, "differences": {row.column.name: _to_json(row) for row in rows}}
            for label, rows in zip(labels[1:], tables, strict=True)
        ],
    }
    cells = overview([first, *others], tables)
    markdown = _markdown(labels, tables, notes, cells)
    page = _page(labels, tables, notes, cells, folders, command)
    with whole_folder(output, overwrite) as temporary:
        write_report(temporary, data, markdown, page)
        write_text(temporary / RECORD, json_text({"command": list(command)}))
    text = "\n\n".join(
        f"{label} against {labels[0]}\n\n{_table(rows)}"
        for label, rows in zip(labels[1:], tables, strict=True)
    )
    return text, sorted(path for path in output.iterdir() if path.name != RECORD)


def compare(first: EvaluationReport, other: EvaluationReport) -> list[Row]:
    """Scores that both reports have, in the order of the first.

    Raises: ValueError: no object is in both.
    """
    by_name = {(o.part, o.name): o for o in other.objects}
    pairs = [(o, by_name[o.part, o.name]) for o in first.objects if (o.part, o.name) in by_name]
    if not pairs:
        raise ValueError(
            f"expected reports with objects of the same names, got none in both {first.name} and "
            f"{other.name}"
        )
    rows = []
    for column in first.columns:
        name = column.name
        having = [(a, b) for a, b in pairs if name in a.scores and name in b.scores]
        known = [
            (a, b)
            for a, b in having
            if not (math.isnan(a.scores[name]) or math.isnan(b.scores[name]))
        ]
        if not known:
            continue
        values = np.array([[a.scores[name], b.scores[name]] for a, b in known])
        groups = [one.group or one.name for one, _ in known]
        difference = paired_difference(values[:, 0], values[:, 1], column.higher_is_better, groups)
        means = (float(values[:, 0].mean()), float(values[:, 1].mean()))
        rows.append(Row(column, tuple(known), values, means, difference))
    return rows


def overview(
    reports: Sequence[EvaluationReport], tables: Sequence[Sequence[Row]]
) -> list[list[str]]:
    """Table cells: mean and interval of every score and report, over the objects that all have.

    ▲ and ▼ mark better and worse than the first report.
    """
    lines = []
    for column in reports[0].columns:
        values = [
            {(o.part, o.name): v for o, v in report.values(column) if not math.isnan(v)}
            for report in reports
        ]
        common = [key for key in values[0] if all(key in of_one for of_one in values)]
        if not common:
            continue
        cells = [f"{column.name} {column.direction}", str(len(common))]
        for number, of_one in enumerate(values):
            estimate = estimate_mean([of_one[key] for key in common])
            verdicts = [
                row.difference.verdict
                for row in (tables[number - 1] if number else ())
                if row.column.name == column.name
            ]
            mark = {"better": " ▲", "worse": " ▼"}.get(verdicts[0] if verdicts else "", "")
            cells.append(f"{show_number(estimate.mean)} ({interval(estimate)}){mark}")
        lines.append(cells)
    return lines


def _labels(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Names of the reports, with the folder if two have the same name."""
    return [
        name if names.count(name) == 1 else f"{name} ({folder.name})"
        for name, folder in zip(names, folders, strict=True)
    ]


def _notes(
    first: EvaluationReport, other: EvaluationReport, a: str, b: str, rows: Sequence[Row]
) -> list[str]:
    in_a = {(o.part, o.name) for o in first.objects}
    in_b = {(o.part, o.name) for o in other.objects}
    notes = []
    for label, alone in ((a, in_a - in_b), (b, in_b - in_a)):
        if alone:
            notes.append(f"{len(alone)} objects are in {label} only, and skipped.")
    sizes = [report.about.get("size") for report in (first, other)]
    if sizes[0] != sizes[1]:
        notes.append(
            f"{a} has images of {sizes[0]} pixels and {b} of {sizes[1]}: small images hide errors."
        )
    known = [row for row in rows if row.difference.estimate.count > 1]
    if known:
        notes.append(
            f"{b} against {a}: of {len(known)} intervals, about {len(known) * 0.05:.1f} would "
            "exclude 0 by chance if nothing differed."
        )
    return notes


def _cells(row: Row) -> list[str]:
    estimate = row.difference.estimate
    return [
        f"{row.column.name} {row.column.direction}",
        show_number(row.means[0]),
        show_number(row.means[1]),
        _signed(estimate.mean),
        interval(estimate),
        str(estimate.count),
        f"{row.difference.better:.0%}",
        row.difference.verdict,
    ]


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + show_number(value)


def _table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|---" * len(_HEADINGS) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def _markdown(
    labels: Sequence[str],
    tables: Sequence[Sequence[Row]],
    notes: Sequence[str],
    cells: Sequence[Sequence[str]],
) -> str:
    parts = [f"# {' and '.join(labels[1:])} against {labels[0]}"]
    names = ["metric", "n", *map(escape_cell, labels)]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    parts.append("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]))
    for label, rows in zip(labels[1:], tables, strict=True):
        parts.append(f"## {escape_cell(label)}\n\n{_table(rows)}")
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _to_json(row: Row) -> dict[str, Any]:
    estimate = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(row.difference.estimate).items()
    }
    return {
        "first": row.means[0],
        "other": row.means[1],
        **estimate,
        "better": row.difference.better,
        "verdict": row.difference.verdict,
    }


def _page(
    labels: Sequence[str],
    tables: Sequence[Sequence[Row]],
    notes: Sequence[str],
    cells: Sequence[Sequence[str]],
    folders: Sequence[Path],
    command: Sequence[str],
) -> str:
    sections = [
        heading(
            f"{' and '.join(labels[1:])} against {labels[0]}",
            "Differences are other minus first, over objects in both; bootstrap intervals over "
            "objects.",
        ),
        html_list(notes),
        html_table(
            ["metric", "n", *labels],
            [[("name", row[0]), *(("number", cell) for cell in row[1:])] for row in cells],
        ),
        '<p class="faint">▲ better and ▼ worse than the first.</p>',
    ]
    kinds = ["name", *["number"] * 6]
    for label, rows, folder in zip(labels[1:], tables, folders[1:], strict=True):
        lines = [
            [
                *zip(kinds, _cells(row)[:-1], strict=True),
                ("better" if row.difference.verdict != "not told apart" else "", _cells(row)[-1]),
            ]
            for row in rows
        ]
        sections += [f"<h2>{escape(label)}</h2>", html_table(_HEADINGS, lines)]
        sections += [_section(row, labels[0], label, folders[0], folder) for row in rows]
    sections.append(facts({"command": list(command), "reports": list(folders)}))
    return html_page(f"{' and '.join(labels[1:])} against {labels[0]}", sections)


def _section(row: Row, a: str, b: str, folder_a: Path, folder_b: Path) -> str:
    """Distribution of the differences, and the objects where each report is most ahead."""
    differences = row.values[:, 1] - row.values[:, 0]
    gain = differences if row.column.higher_is_better else -differences
    order = np.argsort(gain)
    extremes = [i for i in dict.fromkeys([order[0], order[-1]]) if gain[i] != 0]
    shown = []
    for index in extremes:
        one, other = row.pairs[index]
        first, second = row.values[index]
        images = image(folder_a / one.image, a) + image(folder_b / other.image, b)
        note = f"{a} {show_number(first)}, {b} {show_number(second)}"
        shown.append(
            f'<figure class="two"><div>{images}</div><figcaption>{escape(title_of(one))} '
            f"<span>{escape(note)}</span></figcaption></figure>"
        )
    return (
        f"<section><h3>{escape(row.column.name)} {row.column.direction}</h3>"
        f'<p class="faint">{escape(row.column.summary)}</p><div class="row">'
        f"{histogram(differences.tolist(), row.difference.estimate, zero=True)}"
        f"{''.join(shown)}</div></section>"
    )
