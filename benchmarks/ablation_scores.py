"""Scores a model of the ablation: novel views of things in colors that it never saw.

    python benchmarks/ablation_scores.py MODEL SHARDS OUTPUT [--objects FILE] [--things 24]

SHARDS is what `spad pack --recolor` wrote and the model learned from. One render of each thing, in
a color that `spad pack` makes of no object, is given without its caption, and the model draws the
others of six views together, so that shape and color can only come from the image. They are
compared with renders, as by `spad evaluate`, and with each other: copies of content, and views
turned away from their camera. OUTPUT gets `report.json` and the
views of each thing side by side; with `renders` in place of a model, the renders score themselves.
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from bench_from_image import drawn, in_unseen_colors
from bench_retrieval_by_color import learned_objects
from PIL import Image
from tqdm import tqdm

from spad.data.view_sets import ViewSet
from spad.evaluation.evaluate import COLUMNS
from spad.evaluation.metrics import METRICS
from spad.evaluation.novel_views import match_size, score_novel_views
from spad.evaluation.report import EvaluationReport, ScoredObject
from spad.files import json_text, whole_folder, write_text
from spad.images.pixels import to_levels
from spad.model import SPADPipeline

VIEWS = 6
AMONG_VIEWS = ("reconstruction_psnr", "silhouette_iou", "content_copying", "camera_error_deg")
RENDERS = "renders"


def scores_of(generated: ViewSet, truth: ViewSet) -> dict[str, float]:
    """Scores against the renders, and among the views; NaN where one is undefined."""
    views = match_size(generated, truth)
    among = {m.name: m.function(views.generated) for m in METRICS if m.name in AMONG_VIEWS}
    return score_novel_views(views) | among


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="model, or `renders`")
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--objects", type=Path, help="ids that it learned from, one a line")
    parser.add_argument("--things", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of training, which names the sets")
    arguments = parser.parse_args()
    objects = learned_objects(arguments.shards, arguments.objects)
    truths = list(itertools.islice(in_unseen_colors(objects, VIEWS), arguments.things))
    pipeline = None
    if arguments.model != RENDERS:
        pipeline = SPADPipeline.from_pretrained(arguments.model)
        pipeline.set_progress_bar_config(disable=True)
    scored, strips = [], {}
    for number, truth in enumerate(tqdm(truths, unit="thing")):
        views = truth if pipeline is None else drawn(pipeline, truth, "", number)
        name = f"{truth.name}, seed {arguments.seed}"
        scores = scores_of(views, truth)
        image = f"{number:03d}.png"
        scored.append(ScoredObject(name, "novel", None, scores, {}, image, group=truth.name))
        strips[image] = Image.fromarray(np.concatenate(to_levels(views.images), axis=1))
    columns = tuple(c for c in COLUMNS if any(c.name in one.scores for one in scored))
    about = {"seed": arguments.seed, "views": VIEWS, "torch": torch.__version__}
    name = Path(arguments.model).name
    protocol = f"novel views of things in unseen colors, {len(scored)} of {VIEWS} views"
    report = EvaluationReport(name, about, protocol, columns, tuple(scored))
    with whole_folder(arguments.output, overwrite=True) as unfinished:
        write_text(unfinished / "report.json", json_text(report.to_json()))
        for file, strip in strips.items():
            strip.save(unfinished / file)
    for column, estimate, _ in report.estimates():
        if not math.isnan(estimate.mean):
            print(f"{column.name}: {estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})")


if __name__ == "__main__":
    main()
