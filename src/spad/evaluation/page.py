"""An evaluation report as a self-contained HTML page."""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from spad.evaluation.report import (
    Column,
    EvaluationReport,
    ScoredObject,
    describe,
    show_number,
    title_of,
)
from spad.evaluation.statistics import Estimate
from spad.files import read_bytes

logger = logging.getLogger(__name__)

_BINS = 20
_WIDTH, _HEIGHT, _FOOT = 300, 96, 18
_FIRST = 6


def report_page(report: EvaluationReport, folder: Path) -> str:
    """HTML page with a table, the first objects, and every score's distribution and worst objects.

    Args:
        folder: folder of the report, with the images.
    """
    rows = [
        [
            ("name", f"{c.name} {c.direction}"),
            ("number", show_number(e.mean)),
            ("number", interval(e)),
            ("number", str(e.count)),
            ("number", str(undefined or "")),
            ("", c.summary),
        ]
        for c, e, undefined in report.estimates()
    ]
    rows += [
        [
            ("name", f"{c.name} {c.direction}"),
            ("number", show_number(report.totals[c.name])),
            ("number", "–"),
            ("number", "all"),
            ("number", ""),
            ("", c.summary),
        ]
        for c in report.columns
        if c.name in report.totals
    ]
    first = [
        o for part in ("views", "meshes", "text", "novel") for o in report.objects if o.part == part
    ]
    sections = [
        heading(report.name, f"Protocol: {report.protocol}. {len(report.objects)} objects."),
        html_list(report.notes),
        html_table(["metric", "mean", "95 % interval", "n", "undefined", ""], rows),
        *_beside_the_paper(report),
        "<h2>The first objects, not selected</h2>",
        *(
            figures((figure(folder, o) for o in first if o.part == part), _FIRST)
            for part in dict.fromkeys(o.part for o in first)
        ),
        "<h2>Distributions and worst objects</h2>",
        '<p class="faint">Novel views and meshes: renders of the true object above, what is scored '
        "below; the first column of novel views is the input image.</p>",
        *(
            _metric_section(report, folder, column, e)
            for column, e, _ in report.estimates()
            if not _is_binary(report, column)
        ),
        "<h2>How it was made</h2>",
        facts(report.about),
    ]
    return html_page(f"{report.name}: evaluation", sections)


def _beside_the_paper(report: EvaluationReport) -> list[str]:
    sections = []
    for table in report.beside_the_paper():
        rows = [[("name", row[0]), *(("number", cell) for cell in row[1:])] for row in table.rows]
        sections += [html_table(table.headings, rows), f'<p class="faint">{escape(table.note)}</p>']
    return ["<h2>Beside the paper</h2>", *sections] if sections else []


def _is_binary(report: EvaluationReport, column: Column) -> bool:
    """Whether all values are 0 or 1, so that a histogram adds nothing to the mean."""
    known = {value for _, value in report.values(column) if not math.isnan(value)}
    return known <= {0.0, 1.0}


def _metric_section(
    report: EvaluationReport, folder: Path, column: Column, estimate: Estimate
) -> str:
    known = [value for _, value in report.values(column)]
    worst = (
        figure(folder, scored, f"{column.name} {show_number(value)}")
        for scored, value in report.worst(column)
    )
    return (
        f"<section><h3>{escape(column.name)} {column.direction}</h3>"
        f'<p class="faint">{escape(column.summary)}</p><div class="row">'
        f"{histogram(known, estimate)}{''.join(worst)}</div></section>"
    )


def histogram(values: Sequence[float], estimate: Estimate, zero: bool = False) -> str:
    """SVG histogram with the mean and its interval.

    Args:
        zero: extend the axis to 0 and mark it.
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if len(known) == 0:
        return '<p class="faint">undefined for all objects</p>'
    low, high = float(known.min()), float(known.max())
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(known, bins=_BINS, range=(low, high))
    floor = _HEIGHT - _FOOT

    def x(value: float) -> float:
        return (value - low) / (high - low) * _WIDTH

    parts = []
    if estimate.count > 1:
        left, right = x(estimate.low), x(estimate.high)
        parts.append(
            f'<rect class="range" x="{left:.1f}" y="0" width="{max(right - left, 1):.1f}" '
            f'height="{floor}"/>'
        )
    width = _WIDTH / _BINS
    for number, count in enumerate(counts):
        height = count / counts.max() * (floor - 4)
        if count:
            parts.append(
                f'<rect x="{number * width + 0.5:.1f}" y="{floor - height:.1f}" '
                f'width="{width - 1:.1f}" height="{height:.1f}"><title>{count}</title></rect>'
            )
    lines = [("mean", estimate.mean)] + ([("zero", 0.0)] if zero else [])
    for name, value in lines:
        at = min(max(x(value), 1), _WIDTH - 1)
        parts.append(f'<line class="{name}" x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{floor}"/>')
    parts.append(f'<line x1="0" y1="{floor}" x2="{_WIDTH}" y2="{floor}"/>')
    parts.append(f'<text x="0" y="{_HEIGHT - 4}">{show_number(low)}</text>')
    parts.append(
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{show_number(high)}</text>'
    )
    label = f"{len(known)} values from {show_number(low)} to {show_number(high)}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def figure(folder: Path, scored: ScoredObject, note: str = "") -> str:
    """An object's views with its title."""
    return (
        f"<figure>{image(folder / scored.image, title_of(scored))}<figcaption>"
        f"{escape(title_of(scored))} <span>{escape(note)}</span></figcaption></figure>"
    )


def image(path: Path, title: str) -> str:
    """An image inside the page, or a note if the file is missing."""
    try:
        data = base64.b64encode(read_bytes(path)).decode()
    except ValueError:
        logger.warning("%s is missing: left out of the page", path)
        return '<p class="faint">(its image is missing)</p>'
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(title)}" loading="lazy">'


def figures(shown: Iterable[str], most: int) -> str:
    """The first `most` figures in a row."""
    row = "".join(list(shown)[:most])
    return f'<div class="row">{row}</div>'


def heading(title: str, line: str) -> str:
    """Title and first line of a page."""
    return f"<h1>{escape(title)}</h1><p>{escape(line)}</p>"


def html_list(lines: Sequence[str]) -> str:
    """A list of notes; empty without any."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else ""


def html_table(names: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """A table of cells (CSS class, text)."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = (
        "".join(f'<td class="{kind}">{escape(text)}</td>' for kind, text in row) for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def facts(about: Mapping[str, Any]) -> str:
    """Command, versions and settings as a table."""
    return html_table(["", ""], [[("name", k), ("fact", v)] for k, v in describe(about)])


def interval(estimate: Estimate) -> str:
    """An interval as text."""
    if estimate.count < 2:
        return "–"
    return f"{show_number(estimate.low)} to {show_number(estimate.high)}"


def html_page(title: str, sections: Sequence[str]) -> str:
    """A whole page of sections."""
    page = files("spad.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    return page.replace("__TITLE__", escape(title)).replace("__BODY__", "\n".join(sections))
