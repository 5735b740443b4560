"""The paper's ablation on open data: train and score four small models that differ in two flags.

    python benchmarks/ablation.py SHARDS OUTPUT [--steps 1500] [--at-once 1] [--full]

The models have epipolar attention or not, and Plücker coordinates or not; data, order, noise, seed
and steps are the same. SHARDS have 128 x 128 images and latents (`spad pack --latents mini`).
`spad evaluate` scores each model on objects that none was trained on: 24 of the protocol, or all
with --full. --at-once is the number of models that run at the same time and share the cores. OUTPUT
gets the runs, their logs, the reports, a comparison with the model that has neither, a table of all
scores (ablation.md) and the losses (losses.png). The same command resumes a stopped one. Needs
`pip install 'spad[train,eval,plot]'`.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from spad.data.workers import num_cores
from spad.evaluation.report import read_report, show_number

# In the order of the rows of the paper's tables.
VARIANTS = {
    "neither": ("none", "--no-plucker"),
    "epipolar": ("exact", "--no-plucker"),
    "pluecker": ("none", "--plucker"),
    "both": ("exact", "--plucker"),
}


def spad(log: Path, threads: int, *words: object) -> None:
    command = [sys.executable, "-m", "spad", *map(str, words)]
    print(shlex.join(["spad", *command[3:]]), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdout=file, stderr=file, env=environment)


def table(reports: dict[str, Path]) -> str:
    """Mean and 95 % interval of every score of every model, as Markdown."""
    found = [read_report(folder) for folder in reports.values()]
    lines = ["| | " + " | ".join(reports) + " |", "|---" * (len(reports) + 1) + "|"]
    for column, *_ in found[0].estimates():
        cells = []
        for report in found:
            estimates = {c.name: (estimate, u) for c, estimate, u in report.estimates()}
            estimate, undefined = estimates[column.name]
            numbers = [show_number(x) for x in (estimate.mean, estimate.low, estimate.high)]
            note = f", {undefined} undefined" if undefined else ""
            cells.append("{} ({} to {}{})".format(*numbers, note))
        lines.append(f"| {column.name} {column.direction} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_losses(output: Path, smoothed_over: int = 5) -> None:
    """Losses of all models, each point the mean of a few rows of `loss.csv`."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4))
    for name in VARIANTS:
        with (output / name / "loss.csv").open() as file:
            rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
        parts = [rows[i : i + smoothed_over] for i in range(0, len(rows), smoothed_over)]
        steps, losses = [part[-1][0] for part in parts], [mean(y for _, y in p) for p in parts]
        axis.plot(steps, losses, label=name)
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
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    output = options.output
    reports = {name: output / f"{name}-report" for name in VARIANTS}
    threads = max(1, num_cores() // options.at_once)

    def train_and_score(name: str) -> None:
        epipolar, plucker = VARIANTS[name]
        log = output / f"{name}.log"
        spad(
            *(log, threads, "train", "--preset", "mini", "--data", options.shards),
            *("--output", output / name, "--epipolar", epipolar, plucker),
            *("--steps", options.steps, "--seed", options.seed),
            *("--views", 4, "--clean-view-prob", 0.5, "--block-out-channels", 96, 128),
            # The settings of the first edition of mini, with which the published results were made.
            *("--prediction-type", "v_prediction", "--optimizer", "adamw"),
            *("--lr-schedule", "cosine", "--warmup-steps", 200),
        )
        spad(
            *(log, threads, "evaluate", "--model", output / name / "model"),
            *("--data", options.shards, "--output", reports[name]),
            *([] if options.full else ["--quick"]),
        )

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(train_and_score, VARIANTS))
    (output / "ablation.md").write_text(table(reports))
    plot_losses(output)
    log = output / "comparison.log"
    compared = ["evaluate", "--compare", *reports.values(), "--output", output / "comparison"]
    spad(log, threads, *compared, "--overwrite")


if __name__ == "__main__":
    main()
