"""How much better than repeating an image are the other views that a model draws from it?

    python benchmarks/bench_from_image.py SHARDS OUTPUT [--model mini] [--objects FILE]
        [--held-out RENDERS]

SHARDS is what `spad pack --recolor` wrote and the model learned from. One render of each thing, in
a color that `spad pack` makes of no object (`spad.data.recolor.is_unseen`), is given, and three
others are drawn at their cameras, with the caption and without it. RENDERS, made by `spad render`,
holds objects that the model learned nothing of; one render of each is given as it is. The score is
`novel_gain_db` of `spad evaluate`: PSNR inside both masks above that of the given image in every
view, a mean over views, then things, with a bootstrap interval over things. OUTPUT gets
`scores.json` and sheets of the drawn views with their renders; the first of each row was given.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_retrieval_by_color import learned_objects, unseen_colors, with_alpha
from PIL import Image
from tqdm import tqdm

from spad.data.recolor import recolored
from spad.data.renders import read_renders
from spad.data.view_sets import PosedImages, ViewSet, set_from_images
from spad.evaluation.novel_views import match_size, read_truth, score_novel_views
from spad.evaluation.protocol import load_protocol
from spad.evaluation.statistics import estimate_mean
from spad.images.grids import prompt_grid
from spad.images.pixels import to_levels
from spad.model import SPADPipeline

THINGS_ON_A_SHEET = 10


def in_unseen_colors(objects: list[PosedImages], num_views: int | None = None) -> Iterator[ViewSet]:
    """The given render of every thing and others, in the first of its colors never made.

    Args:
        num_views: how many in all. Default: as many as in the protocol, four.
    """
    protocol = load_protocol()
    protocol = replace(protocol, novel_views=num_views or protocol.novel_views)
    for _, colors in itertools.groupby(unseen_colors(objects), key=lambda found: found[0].uid):
        views, caption, source, target = next(colors)
        chosen = protocol.choose_views(views.uid, len(views.cameras))
        # All views, as `spad pack` does: they share what the color was.
        images = recolored(with_alpha(views), source, target)[chosen]
        yield set_from_images(caption, images, views.cameras[chosen], caption)


def as_they_are(objects: list[PosedImages], size: int) -> Iterator[ViewSet]:
    """The given render of every object and three others."""
    for views in objects:
        chosen = load_protocol().choose_views(views.uid, len(views.cameras))
        yield read_truth(views, chosen, size)


def drawn(pipeline: SPADPipeline, truth: ViewSet, prompt: str, seed: int) -> ViewSet:
    """Views from the first render, at the cameras of all."""
    cameras = truth.cameras.resized(pipeline.image_size, pipeline.image_size)
    given = Image.fromarray(to_levels(truth.images[:1])[0])
    # A pipeline takes an empty prompt for a mistake, but not its embedding.
    text = pipeline.encode_text([prompt])
    images = pipeline(cameras=cameras, prompt_embeds=text, image=given, seed=seed).images[0]
    return set_from_images(truth.name, np.stack(images), cameras)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--objects", type=Path, help="ids that it learned from, one a line")
    parser.add_argument("--held-out", type=Path, help="renders of objects that it did not")
    parser.add_argument("--most", type=int, default=40, help="things drawn for a question")
    arguments = parser.parse_args()
    objects = learned_objects(arguments.shards, arguments.objects)
    pipeline = SPADPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    questions = {"colors never made": in_unseen_colors(objects)}
    if arguments.held_out is not None:
        renders = list(read_renders(arguments.held_out))
        questions["held-out objects"] = as_they_are(renders, pipeline.image_size)
    arguments.output.mkdir(parents=True, exist_ok=True)
    scores = {}
    for question, truths in questions.items():
        asked = list(itertools.islice(truths, arguments.most))
        for how in ("with caption", "without"):
            name = f"{question}, {how}"
            gains, sheet = {}, {}
            for number, truth in enumerate(tqdm(asked, unit="thing", desc=name)):
                prompt = (truth.prompt or "") if how == "with caption" else ""
                views = match_size(drawn(pipeline, truth, prompt, number), truth)
                gains[truth.name] = score_novel_views(views)["novel_gain_db"]
                for row, shown in ((truth.name, views.generated), (f"{truth.name}: render", truth)):
                    sheet[row] = [Image.fromarray(one) for one in to_levels(shown.images)]
                if len(sheet) == 2 * THINGS_ON_A_SHEET or number == len(asked) - 1:
                    file = f"{name.replace(', ', '-').replace(' ', '-')}-{number:03d}.png"
                    prompt_grid(sheet).save(arguments.output / file)
                    sheet = {}
            found = vars(estimate_mean(list(gains.values())))
            scores[name] = {"gain": found, "things": gains}
            line = "{mean:.2f} dB ({low:.2f} to {high:.2f}) over {count} things"
            print(f"{name}: {line.format(**found)}", flush=True)
    text = json.dumps(scores, indent=1)
    (arguments.output / "scores.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
