"""Ablation of masks and rays on open data: train and score eight small models, once a seed.

    python benchmarks/ablation.py SHARDS OUTPUT [--init MODEL] [--objects FILE] [--steps 120]
        [--seeds 0 1] [--rays none map qk both] [--ray-rate 20] [--at-once 2]

The models have epipolar masks or none, and Plücker coordinates of rays as a map in the features
(map), in queries and keys (qk), in both, or nowhere (none); start, data, order, noise and steps are
the same. SHARDS is what `spad pack --recolor` wrote; 128 x 128 images have 16 x 16 tokens with the
cells of `mini`. A fair start (--init) knows things, but no other views: see docs/evaluation.md.
Most objects are trained with some of their views given, most of these without a caption, so that
views must tell each other what they know.

`ablation_scores.py` scores each model by novel views of things in colors that it never saw.
--at-once is the number of models that run at the same time and share the cores. OUTPUT gets the
runs, their logs and reports, paired differences with intervals (ablation.md), the losses
(losses.png) and the pictures of the sets that copy and turn away most (failures.png). The same
command resumes a stopped one, and more --seeds add to what is there. Needs
`pip install 'spad[train,eval,plot]'`.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean

from PIL import Image

from spad.data.workers import num_cores
from spad.evaluation.compare import compare
from spad.evaluation.report import EvaluationReport, read_report, show_number
from spad.evaluation.statistics import Difference, estimate_mean
from spad.files import read_json
from spad.images.grids import prompt_grid

# In the order in which they run: first those of the paper.
VARIANTS = (
    ("exact", "map"),
    ("none", "none"),
    ("exact", "none"),
    ("none", "map"),
    ("exact", "qk"),
    ("none", "qk"),
    ("exact", "both"),
    ("none", "both"),
)
MASKS = ("none", "exact")
RAYS = ("none", "map", "qk", "both")
RENDERS = "renders"
LOG_EVERY = 5
SCORES = Path(__file__).with_name("ablation_scores.py")
# The worst sets by these scores are shown.
FAILURES = ("content_copying", "camera_error_deg")


def variants(rays: Sequence[str]) -> list[tuple[str, str]]:
    """Masks and rays of the models to train."""
    return [pair for pair in VARIANTS if pair[1] in rays]


def name_of(masks: str, rays: str, seed: int) -> str:
    return f"masks-{masks}-rays-{rays}-seed-{seed}"


def run(log: Path, threads: int, *words: object) -> None:
    command = [sys.executable, *map(str, words)]
    print(shlex.join(["python", *command[1:]]), flush=True)
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


def means_table(reports: dict[str, EvaluationReport]) -> list[str]:
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
    return lines


def merged(folders: Sequence[Path]) -> EvaluationReport:
    """The sets of all seeds in one report."""
    reports = [read_report(folder) for folder in folders]
    return replace(reports[0], objects=tuple(one for report in reports for one in report.objects))


def losses(run_folder: Path) -> list[tuple[int, float]]:
    """Steps and losses of a run."""
    with (run_folder / "loss.csv").open() as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def last_losses(run_folder: Path) -> list[float]:
    """The losses of the last quarter of the steps."""
    rows = [loss for _, loss in losses(run_folder)]
    return rows[-max(2, len(rows) // 4) :]


class Results:
    """What the runs in OUTPUT say, over the seeds for which all models are there."""

    def __init__(self, output: Path, seeds: Sequence[int], rays: Sequence[str] = RAYS):
        self.output, self.seeds, self.rays = output, seeds, rays
        self.variants = variants(rays)
        self.reports = {
            pair: merged([self.report_folder(*pair, seed) for seed in seeds])
            for pair in self.variants
        }
        self.renders = read_report(output / RENDERS)

    def report_folder(self, masks: str, rays: str, seed: int) -> Path:
        return self.output / f"{name_of(masks, rays, seed)}-report"

    def losses(self, masks: str, rays: str) -> list[float]:
        runs = [self.output / name_of(masks, rays, seed) for seed in self.seeds]
        return [loss for folder in runs for loss in last_losses(folder)]

    def against(self, pairs: dict[str, tuple[tuple[str, str], tuple[str, str]]]) -> list[str]:
        """Markdown: by column, paired differences of the second model from the first."""
        table = differences_table(
            {k: (self.reports[a], self.reports[b]) for k, (a, b) in pairs.items()}
        )
        cells = []
        for first, other in pairs.values():
            steps = zip(self.losses(*other), self.losses(*first), strict=True)
            found = estimate_mean([a - b for a, b in steps])
            cells.append(f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})")
        return [*table, f"| loss, last quarter ↓ | {' | '.join(cells)} |"]

    def by_seed(self) -> list[str]:
        """Markdown: mean PSNR of every model and seed, as intervals do not cover trainings."""
        lines = ["| masks, rays | " + " | ".join(f"seed {seed}" for seed in self.seeds) + " |"]
        lines += ["|---" * (1 + len(self.seeds)) + "|"]
        for pair in self.variants:
            reports = [read_report(self.report_folder(*pair, seed)) for seed in self.seeds]
            cells = [mean(one.scores["novel_psnr_masked"] for one in r.objects) for r in reports]
            lines.append(f"| {', '.join(pair)} | " + " | ".join(f"{x:.2f}" for x in cells) + " |")
        return lines

    def text(self, tokens: int) -> str:
        """The text of ablation.md."""
        things = len({one.group for one in self.renders.objects})
        lines = [f"# Masks and rays at {tokens} x {tokens} tokens", ""]
        lines += [
            f"{things} things, {len(self.seeds)} seed(s); 95 % bootstrap intervals over things.",
            "",
        ]
        for masks in MASKS:
            pairs = {
                f"rays {rays}": ((masks, "none"), (masks, rays))
                for rays in self.rays
                if rays != "none"
            }
            if pairs:
                lines += [f"## Rays against none, masks {masks}: paired differences", ""]
                lines += [*self.against(pairs), ""]
        pairs = {f"rays {rays}": (("none", rays), ("exact", rays)) for rays in self.rays}
        lines += ["## Exact masks against none: paired differences", "", *self.against(pairs), ""]
        for masks in MASKS:
            own = {f"rays {rays}": self.reports[masks, rays] for rays in self.rays}
            found = [f"{mean(self.losses(masks, rays)):.4f}" for rays in self.rays]
            lines += [f"## Scores, masks {masks}", "", *means_table({**own, RENDERS: self.renders})]
            lines += [f"| loss, last quarter ↓ | {' | '.join(found)} | |", ""]
        lines += ["## novel_psnr_masked by seed", "", *self.by_seed(), ""]
        return "\n".join(lines)

    def plot_losses(self) -> None:
        """Mean losses over the seeds, each point the mean of a few rows of `loss.csv`."""
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(7, 4))
        for masks, rays in self.variants:
            runs = [losses(self.output / name_of(masks, rays, seed)) for seed in self.seeds]
            rows = [(own[0][0], mean(loss for _, loss in own)) for own in zip(*runs, strict=True)]
            parts = [rows[i : i + 4] for i in range(0, len(rows), 4)]
            steps, values = [part[-1][0] for part in parts], [mean(y for _, y in p) for p in parts]
            style, color = "-" if masks == "exact" else "--", f"C{RAYS.index(rays)}"
            axis.plot(steps, values, style, color=color, label=f"masks {masks}, rays {rays}")
        axis.set(xlabel="step", ylabel="loss")
        axis.grid(alpha=0.3)
        axis.legend()
        figure.tight_layout()
        figure.savefig(self.output / "losses.png")

    def worst(self) -> dict[str, list[Image.Image]]:
        """The set of each failure score at which the model with neither is worst, by all models."""
        neither = read_report(self.report_folder("none", "none", self.seeds[0]))
        true = {one.group: one for one in self.renders.objects}
        sheet = {}
        for score in FAILURES:
            above = {
                one.group: one.scores[score] - true[one.group].scores[score]
                for one in neither.objects
            }
            thing = max(above, key=lambda group: above[group])
            of = f"{score}, {thing}"
            sheet[f"{of}: renders"] = views_of(self.output / RENDERS, true[thing].image)
            for pair in self.variants:
                folder = self.report_folder(*pair, self.seeds[0])
                one = next(o for o in read_report(folder).objects if o.group == thing)
                row = f"{of}: masks {pair[0]}, rays {pair[1]}, {one.scores[score]:.2f}"
                sheet[row] = views_of(folder, one.image)
        return sheet


def views_of(folder: Path, image: str) -> list[Image.Image]:
    """The square views of a set, which are side by side in one image."""
    with Image.open(folder / image) as strip:
        side = strip.height
        return [
            strip.crop((x, 0, x + side, side)).convert("RGB") for x in range(0, strip.width, side)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--init", help="model to start from; default: from scratch")
    parser.add_argument("--objects", type=Path, help="ids to learn from, one a line; default: all")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batch-size", type=int, default=32, help="views in a step")
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--ray-rate", type=float, default=1.0, help="as of `spad train`")
    parser.add_argument("--warmup-steps", type=int, default=10)
    parser.add_argument("--things", type=int, default=24)
    parser.add_argument(
        "--rays", nargs="+", default=list(RAYS), choices=RAYS, help="none is needed"
    )
    parser.add_argument("--at-once", type=int, default=1)
    options = parser.parse_args()
    output, shards = options.output, options.shards
    threads = max(1, num_cores() // options.at_once)
    objects = [] if options.objects is None else ["--objects", options.objects]
    start = [] if options.init is None else ["--init", options.init]
    scored = [*objects, "--things", options.things]

    def train_and_score(masks: str, rays: str, seed: int) -> None:
        name = name_of(masks, rays, seed)
        log, report = output / f"{name}.log", output / f"{name}-report"
        if report.is_dir():
            return
        ray_rate = [] if rays == "none" else ["--ray-rate", options.ray_rate]
        run(
            *(log, threads, "-m", "spad", "train", "--preset", "mini", "--data", shards),
            *("--output", output / name, *start, *objects, "--epipolar", masks, "--rays", rays),
            *("--steps", options.steps, "--seed", seed, "--batch-size", options.batch_size),
            *("--views", 4, "--view-sampling", "random"),
            *("--clean-view-prob", 0.8, "--clean-view-caption-dropout", 0.8),
            *(
                "--learning-rate",
                options.learning_rate,
                *ray_rate,
                "--warmup-steps",
                options.warmup_steps,
            ),
            *("--ema-decay", 0.95, "--log-every", LOG_EVERY, "--sample-every", 0),
        )
        model = output / name / "model"
        run(log, threads, SCORES, model, shards, report, *scored, "--seed", seed)

    if not (output / RENDERS).is_dir():
        run(output / f"{RENDERS}.log", threads, SCORES, RENDERS, shards, output / RENDERS, *scored)
    with ThreadPoolExecutor(options.at_once) as pool:
        every = [(*pair, seed) for seed in options.seeds for pair in variants(options.rays)]
        list(pool.map(lambda one: train_and_score(*one), every))
    results = Results(output, options.seeds, options.rays)
    first = output / name_of(*results.variants[0], options.seeds[0])
    unet = read_json(first / "model" / "unet" / "config.json", dict)
    (output / "ablation.md").write_text(results.text(unet["sample_size"]), encoding="utf-8")
    results.plot_losses()
    prompt_grid(results.worst()).save(output / "failures.png")


if __name__ == "__main__":
    main()
