"""Model cards: description, training data, settings and loss curves."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path

from spad.data.renders import count_objects, data_hash
from spad.files import json_text, read_json
from spad.training.config import TrainConfig
from spad.training.run import LOSSES, RECORD, SAMPLES, SETTINGS, RunRecord, read_losses

CARD = "README.md"
TRAINING = "training"


def write_card(
    model: Path, run: Path, settings: TrainConfig, description: str, num_objects: int
) -> None:
    """Write the card of a model that `run` trained, with copies of the run's record."""
    copy_record(run, model / TRAINING)
    samples = sorted((run / SAMPLES).glob("step-*.png"))
    lines = head(run.name, description, settings.record.license, settings.record.author)
    if samples:
        shutil.copy(samples[-1], model / "samples.png")
        step = int(samples[-1].stem.partition("-")[2])
        lines += [f"![samples](samples.png)\n\n*Samples at step {step:,}, not selected.*", ""]
    lines += [
        f"Trained on {num_objects:,} objects; sha256 of their index: "
        f"`{data_hash(settings.data)}`. One object in sixteen, chosen by a hash of its id, was "
        "held out.",
        "",
        *runs_table([model / TRAINING]),
        *run_section(model / TRAINING, TRAINING),
        "",
        "To generate: `spad generate PROMPT --model FOLDER`. To train it again: "
        f"`spad train --preset {settings.preset} --data SHARDS` with the settings above.",
    ]
    (model / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def head(name: str, description: str, license: str, author: str) -> list[str]:
    """Title, description, license and author of a card."""
    given = {"License": license, "Author": author}
    line = " ".join(f"{title}: {text}." for title, text in given.items() if text)
    return [f"# {name}", "", description, "", *([line, ""] if line else [])]


def data_section(data: Path) -> str:
    """Training data of a card."""
    return (
        f"Trained on {count_objects(data)} rendered objects, except one in sixteen held out by a "
        "hash of its id; sha256 of their index, which has the hashes of all images: "
        f"`{data_hash(data)}`."
    )


def copy_record(run: Path, target: Path) -> None:
    """Copy the settings, record and losses of a run, and plot the losses.

    Raises: ValueError: the run lacks one of the files, or one is malformed.
    """
    for name in (SETTINGS, RECORD, LOSSES):
        if not (run / name).is_file():
            raise ValueError(f"expected the folder of a run, got {run}, which has no {name}")
    # Messages name the files of the run, not their copies.
    curve = loss_curve(run / LOSSES)
    read_json(run / RECORD, RunRecord)
    read_json(run / SETTINGS, dict)
    target.mkdir(parents=True)
    for name in (SETTINGS, RECORD, LOSSES):
        shutil.copy(run / name, target / name)
    (target / "loss.svg").write_text(curve, encoding="utf-8")


def runs_table(parts: Sequence[Path]) -> list[str]:
    """Markdown table of runs, from folders written by `copy_record`."""
    lines = ["| run | steps | seconds | hardware | last loss |", "|---|---|---|---|---|"]
    for part in parts:
        record = read_json(part / RECORD, RunRecord)
        names, rows = read_losses(part / LOSSES)
        shown = ("loss", "gradient_norm", "l1", "edges", "psnr")
        last = dict(zip(names, rows[-1], strict=True)) if rows else {}
        losses = ", ".join(f"{k} {float(last[k]):.4f}" for k in shown if last.get(k))
        lines.append(
            f"| {part.name} | {record.steps} | {record.seconds:.0f} | "
            f"{record.hardware}, torch {record.torch} | {losses} |"
        )
    return lines


def run_section(part: Path, link: str) -> list[str]:
    """Loss curve and settings of one run."""
    text = json_text(read_json(part / SETTINGS, dict)).rstrip()
    return ["", f"## {part.name}", "", f"![loss]({link}/loss.svg)", "", "```json", text, "```"]


def loss_curve(losses: Path, width: int = 640, height: int = 240) -> str:
    """SVG plot, with a logarithmic axis, of the first column after `step` of a loss table."""
    header, rows = read_losses(losses)
    if len(header) < 2:
        raise ValueError(f"{losses}: expected a column of losses, got none")
    points = [(float(row[0]), math.log(max(float(row[1]), 1e-9))) for row in rows if row[1]]
    last = max((step for step, _ in points), default=0.0)
    top, bottom = (pick((y for _, y in points), default=0.0) for pick in (max, min))
    span = max(top - bottom, 1e-6)
    line = " ".join(
        f"{50 + (width - 70) * step / max(last, 1.0):.1f},"
        f"{20 + (height - 60) * (top - y) / span:.1f}"
        for step, y in points
    )
    style = 'font-family="sans-serif" font-size="11"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<polyline points="{line}" fill="none" stroke="#2060c0" stroke-width="1.5"/>'
        f'<text x="5" y="24" {style}>{math.exp(top):.3g}</text>'
        f'<text x="5" y="{height - 38}" {style}>{math.exp(bottom):.3g}</text>'
        f'<text x="50" y="{height - 14}" {style}>{escape(header[1])}, steps 0 to {int(last)}</text>'
        "</svg>\n"
    )
