"""Ablation of masks and rays on open data: train and score eight small models.

    python benchmarks/ablation.py SHARDS OUTPUT [--steps 1500] [--at-once 1] [--full]

The models have epipolar masks or none, and Plücker coordinates of rays as a map in the features
(map), in queries and keys (qk), in both, or nowhere (none); data, order, noise, seed and steps are
the same. SHARDS have 256 x 256 images and latents (`spad pack --latents mini`), so that a view has
16 x 16 tokens; other sizes work too, and the tables name them. `spad evaluate` scores each model on
objects that none was trained on: 24 of the protocol, all with --full, or --limit of them. --at-once
is the number of models that run at the same time and share the cores. OUTPUT gets the runs, their
logs, the reports, paired differences with intervals (ablation.md), all scores (comparison) and the
losses (losses.png). The same command resumes a stopped one. Needs
`pip install 'spad[train,eval,plot]'`.
"""

import argparse
import csv
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from spad.data.workers import num_cores
from spad.evaluation.compare import compare
from spad.evaluation.report import EvaluationReport, read_report, show_number
from spad.evaluation.statistics import Difference
from spad.files import read_json

MASKS = ("none", "exact")
RAYS = ("none", "map", "qk", "both")


def name_of(masks: str, rays: str) -> str:
    return f"masks-{masks}-rays-{rays}"


VARIANTS = {name_of(*pair): pair for pair in itertools.product(MASKS, RAYS)}


def spad(log: Path, threads: int, *words: object) -> None:
    command = [sys.executable, "-m", "spad", *map(str, words)]
    print(shlex.join(["spad", *command[3:]]), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdout=file, stderr=file, env=environment)


def differences_table(columns: dict[str, tuple[EvaluationReport, EvaluationReport]]) -> list[str]:
    """Markdown: of each column's two reports, paired differences of the second from the first.

    Bold where the 95 % interval excludes zero.
    """
    cells: dict[str, dict[str, str]] = {}
    for column, (first, other) in columns.items():
        for row in compare(first, other):
            score = f"{row.column.name} {row.column.direction}"
            cells.setdefault(score, {})[column] = show_difference(row.difference)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for score, found in cells.items():
        lines.append(
            f"| {score} | " + " | ".join(found.get(c, "undefined") for c in columns) + " |"
        )
    return lines


def show_difference(difference: Difference) -> str:
    estimate = difference.estimate
    numbers = (estimate.mean, estimate.low, estimate.high)
    text = "{} ({} to {})".format(*map(show_number, numbers))
    return text if difference.verdict == "not told apart" else f"**{text}**"


def means_table(reports: dict[str, EvaluationReport], losses: dict[str, float]) -> list[str]:
    """Markdown: mean and 95 % interval of every score of every model."""
    lines = ["| | " + " | ".join(reports) + " |", "|---" * (len(reports) + 1) + "|"]
    found = [{c.name: rest for c, *rest in report.estimates()} for report in reports.values()]
    for column in next(iter(reports.values())).columns:
        if not all(column.name in estimates for estimates in found):
            continue
        cells = []
        for estimates in found:
            estimate, undefined = estimates[column.name]
            numbers = [show_number(x) for x in (estimate.mean, estimate.low, estimate.high)]
            note = f", {undefined} undefined" if undefined else ""
            cells.append("{} ({} to {}{})".format(*numbers, note))
        lines.append(f"| {column.name} {column.direction} | " + " | ".join(cells) + " |")
    last = " | ".join(f"{losses[name]:.4f}" for name in reports)
    return [*lines, f"| loss, last tenth ↓ | {last} |"]


def summary(output: Path, tokens: int) -> str:
    """The text of ablation.md."""
    reports = {pair: read_report(output / f"{name}-report") for name, pair in VARIANTS.items()}
    objects = len(next(iter(reports.values())).objects)
    lines = [f"# Masks and rays at {tokens} x {tokens} tokens", ""]
    lines += [f"{objects} sets of views; 95 % bootstrap intervals over objects.", ""]
    for masks in MASKS:
        pairs = {
            rays: (reports[masks, "none"], reports[masks, rays]) for rays in RAYS if rays != "none"
        }
        lines += [f"## Rays against none, masks {masks}: paired differences", ""]
        lines += [*differences_table(pairs), ""]
    pairs = {rays: (reports["none", rays], reports["exact", rays]) for rays in RAYS}
    lines += ["## Exact masks against none, by rays: paired differences", ""]
    lines += [*differences_table(pairs), ""]
    for masks in MASKS:
        own = {rays: reports[masks, rays] for rays in RAYS}
        losses = {rays: last_loss(output / name_of(masks, rays)) for rays in RAYS}
        lines += [f"## Scores, masks {masks}", "", *means_table(own, losses), ""]
    return "\n".join(lines)


def rows_of_losses(run: Path) -> Sequence[tuple[int, float]]:
    with (run / "loss.csv").open() as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def last_loss(run: Path) -> float:
    losses = [loss for _, loss in rows_of_losses(run)]
    return mean(losses[-max(1, len(losses) // 10) :])


def plot_losses(output: Path, smoothed_over: int = 5) -> None:
    """Losses of all models, each point the mean of a few rows of `loss.csv`."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4))
    for name, (masks, rays) in VARIANTS.items():
        rows = rows_of_losses(output / name)
        parts = [rows[i : i + smoothed_over] for i in range(0, len(rows), smoothed_over)]
        steps, losses = [part[-1][0] for part in parts], [mean(y for _, y in p) for p in parts]
        style = "-" if masks == "exact" else "--"
        color = f"C{RAYS.index(rays)}"
        axis.plot(steps, losses, style, color=color, label=f"masks {masks}, rays {rays}")
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.tight_layout()
    figure.savefig(output / "losses.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae", default="mini")
    parser.add_argument("--block-out-channels", type=int, nargs="+", default=[96, 128])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    output = options.output
    reports = {name: output / f"{name}-report" for name in VARIANTS}
    threads = max(1, num_cores() // options.at_once)

    def train_and_score(name: str) -> None:
        masks, rays = VARIANTS[name]
        log = output / f"{name}.log"
        spad(
            *(log, threads, "train", "--preset", "mini", "--data", options.shards),
            *("--vae", options.vae, "--output", output / name),
            *("--epipolar", masks, "--rays", rays),
            *("--steps", options.steps, "--seed", options.seed, "--batch-size", options.batch_size),
            *("--views", 4, "--clean-view-prob", 0.5),
            *("--block-out-channels", *options.block_out_channels),
            # The settings of the first edition of mini, with which the published results were made.
            *("--prediction-type", "v_prediction", "--optimizer", "adamw"),
            *("--lr-schedule", "cosine", "--warmup-steps", 200),
        )
        spad(
            *(log, threads, "evaluate", "--model", output / name / "model"),
            *("--data", options.shards, "--output", reports[name]),
            *([] if options.full else ["--quick"]),
            *([] if options.limit is None else ["--limit", options.limit]),
        )

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(train_and_score, VARIANTS))
    unet = read_json(output / next(iter(VARIANTS)) / "model" / "unet" / "config.json", dict)
    (output / "ablation.md").write_text(summary(output, unet["sample_size"]), encoding="utf-8")
    plot_losses(output)
    log = output / "comparison.log"
    compared = ["evaluate", "--compare", *reports.values(), "--output", output / "comparison"]
    spad(log, threads, *compared, "--overwrite")


if __name__ == "__main__":
    main()
