"""The paper's tables of results, each with a row for a report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperColumn:
    """A column of a table of the paper.

    Attributes:
        score: the report's column or total that it is compared with.
        option: what the score needs; empty for nothing.
    """

    heading: str
    score: str
    option: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        part: part of a report that it is of.
        data: what the numbers of the paper are of.
        rows: method -> numbers; None where the paper has none.
    """

    part: str
    data: str
    columns: tuple[PaperColumn, ...]
    rows: dict[str, tuple[float | None, ...]]


_NOVEL_COLUMNS = (
    PaperColumn("PSNR ↑", "novel_psnr"),
    PaperColumn("SSIM ↑", "novel_ssim"),
    PaperColumn("LPIPS ↓", "novel_lpips", "--lpips FOLDER"),
)
TEXT = PaperTable(
    "text",
    "text → views, 1,000 captions",
    (
        PaperColumn("IS ↑", "inception_score", "--inception FILE"),
        PaperColumn("CLIP ↑", "clip_score", "--clip FOLDER"),
    ),
    {
        "MVDream (SD 1.5)": (9.72, 28.55),
        "MVDream (SD 2.1)": (13.36, 30.22),
        "SyncDreamer": (11.69, 27.76),
        "joint denoising, neither masks nor Plücker": (11.04, 28.52),
        "SPAD (SD 1.5)": (11.18, 29.87),
        "SPAD (SD 2.1)": (None, 30.39),
    },
)
NOVEL = PaperTable(
    "novel",
    "novel views from one image, Objaverse, 1,000 objects",
    _NOVEL_COLUMNS,
    {
        "Zero-1-to-3": (18.16, 0.81, 0.201),
        "iNVS": (20.52, 0.81, 0.178),
        "SyncDreamer": (19.51, 0.84, 0.174),
        "neither masks nor Plücker": (17.56, 0.81, 0.20),
        "masks": (18.90, 0.82, 0.19),
        "Plücker": (17.98, 0.81, 0.20),
        "SPAD": (20.29, 0.84, 0.166),
    },
)
GSO = PaperTable(
    "novel",
    "novel views from one image, Google Scanned Objects",
    _NOVEL_COLUMNS,
    {
        "Zero-1-to-3": (16.10, 0.82, 0.183),
        "iNVS": (18.53, 0.80, 0.180),
        "SyncDreamer": (17.18, 0.83, 0.178),
        "neither masks nor Plücker": (15.98, 0.81, 0.20),
        "masks": (17.13, 0.82, 0.19),
        "Plücker": (16.15, 0.81, 0.20),
        "SPAD": (17.99, 0.83, 0.169),
    },
)


@dataclass(frozen=True)
class BesidePaper:
    """A table of the paper with a row for a report, as text.

    Attributes:
        rows: the first cell of each is the method; the last row is the report's.
        note: what to know when reading it.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def paper_tables(
    name: str, parts: Collection[str], scores: Mapping[str, str], is_gso: bool
) -> list[BesidePaper]:
    """The paper's tables of these parts, with a last row for a report.

    Args:
        name: of the report's model.
        scores: by column, as text.

    Source: SPAD, tables of sections 4.2 and 4.3.
    """
    return [
        _with_row(table, name, scores)
        for table in (TEXT, GSO if is_gso else NOVEL)
        if table.part in parts
    ]


def _with_row(table: PaperTable, name: str, scores: Mapping[str, str]) -> BesidePaper:
    rows = [
        (method, *("–" if number is None else f"{number:g}" for number in numbers))
        for method, numbers in table.rows.items()
    ]
    own = (scores.get(column.score, "–") for column in table.columns)
    rows.append((f"{name}, other prompts or objects", *own))
    missing = [
        f"{column.heading} needs {column.option}."
        for column in table.columns
        if column.score not in scores and column.option
    ]
    note = "The paper's numbers are of its own data, and of its own CLIP and Inception models."
    headings = (table.data, *(column.heading for column in table.columns))
    return BesidePaper(headings, tuple(rows), " ".join([note, *missing]))
