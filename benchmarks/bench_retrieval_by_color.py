"""Does a model draw what it was taught, and in colors that it was not?

    python benchmarks/bench_retrieval_by_color.py SHARDS OUTPUT [--model mini] [--objects FILE]

SHARDS is what `spad pack --recolor` wrote and the model learned from. Two questions, each of at
most 100 captions: captions it learned from, and colors of its things that `spad pack` makes of no
object (`spad.data.recolor.is_unseen`). Four views are drawn of each, with the model's defaults, and
the captions are ranked by the renders of their objects (`spad.evaluation.retrieval`). Those of
colors never made are recolored here; the captions that they are told apart from are those it
learned from, often the same thing in other colors. OUTPUT gets sheets of all that was drawn.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from spad.data.recolor import COLORS, color_caption, is_unseen, named_color, recolored, renamed
from spad.data.renders import VARIANT, base_uid, is_held_out, read_renders
from spad.data.seeds import object_seed
from spad.data.view_sets import PosedImages
from spad.evaluation.protocol import load_gallery, load_protocol
from spad.files import read_ids
from spad.hub.registry import load_model, model_info
from spad.images.grids import prompt_grid
from spad.images.pixels import to_floats

MOST = 100
SETS_ON_A_SHEET = 20


def by_hash(objects):
    return sorted(objects, key=lambda views: hashlib.sha256(views.uid.encode()).hexdigest())


def learned_captions(objects: list[PosedImages]) -> dict[str, np.ndarray]:
    """One caption each of up to 100 objects, all different, and the object's images."""
    found = {}
    for views in by_hash(objects):
        caption = views.captions[object_seed(0, views.uid) % len(views.captions)]
        if len(found) < MOST and caption not in found:
            found[caption] = views.images()
    return found


def learned_objects(shards: Path, ids: Path | None) -> list[PosedImages]:
    """Objects of the shards that a model learned from: those of a file of ids, or all."""
    chosen = None if ids is None else read_ids(ids)
    return [
        views
        for views in read_renders(shards)
        if not is_held_out(views.uid) and (chosen is None or base_uid(views.uid) in chosen)
    ]


def unseen_colors(objects: list[PosedImages]) -> Iterator[tuple[PosedImages, str, str, str]]:
    """Objects, captions of them in colors that none of their kind has, their color, and that."""
    learned = {caption for views in objects for caption in views.captions}
    for views in by_hash(objects):
        source = named_color(views.captions)
        if VARIANT in views.uid or source is None:
            continue
        for target in COLORS:
            caption = renamed(color_caption(views.captions), source, target)
            if caption is None or not is_unseen(target, views.captions) or caption in learned:
                continue
            yield views, caption, source, target


def unseen_captions(objects: list[PosedImages]) -> dict[str, np.ndarray]:
    """Up to 100 colors of things that no object has, and images of how that would look."""
    found = {}
    for views, caption, source, target in unseen_colors(objects):
        if len(found) < MOST and caption not in found:
            found[caption] = on_white(recolored(with_alpha(views), source, target))
    return found


def with_alpha(views: PosedImages) -> np.ndarray:
    """Images on white as uint8 (v, h, w, 4): white is what is not the object."""
    images = views.images()
    alpha = np.where((images < 255).any(-1, keepdims=True), 255, 0).astype(np.uint8)
    return np.concatenate([images, alpha], axis=-1)


def on_white(images: np.ndarray) -> np.ndarray:
    return np.where(images[..., 3:] > 0, images[..., :3], 255)


def draw(name: str, captions: list[str], output: Path) -> dict[str, torch.Tensor]:
    """Images (v, 3, h, w) of every caption."""
    model, protocol = model_info(name), load_protocol()
    pipeline, defaults = load_model(model.path), model.defaults
    pipeline.use_scheduler(defaults.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    cameras = protocol.cameras(model.image_size)
    cameras = cameras[:: len(cameras) // 4]
    drawn = {}
    for index, caption in enumerate(tqdm(captions, unit="set")):
        drawn[caption] = pipeline(
            caption,
            cameras,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            guidance_rescale=defaults.guidance_rescale,
            blob_sigma=defaults.blob_sigma,
            seed=index,
        ).images[0]
    output.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(captions), SETS_ON_A_SHEET):
        sheet = {c: drawn[c] for c in captions[start : start + SETS_ON_A_SHEET]}
        prompt_grid(sheet).save(output / f"{start:03d}.png")
    return {
        caption: to_floats(np.stack([np.asarray(view) for view in views]))
        for caption, views in drawn.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--objects", type=Path, help="ids that it learned from, one a line")
    parser.add_argument("--most", type=int, default=MOST, help="captions drawn for a question")
    arguments = parser.parse_args()
    objects = learned_objects(arguments.shards, arguments.objects)
    learned, unseen = learned_captions(objects), unseen_captions(objects)
    questions = {
        "learned": (learned, learned),
        "colors never seen": (unseen, dict(list((unseen | learned).items())[:MOST])),
    }
    scores = {}
    for name, (asked, among) in questions.items():
        gallery = load_gallery().with_objects(list(among), [to_floats(p) for p in among.values()])
        captions = list(asked)[: arguments.most]
        images = draw(arguments.model, captions, arguments.output / name.replace(" ", "-"))
        ranks = {caption: gallery.rank(views, caption) for caption, views in images.items()}
        every = torch.tensor(list(ranks.values())).float()
        scores[name] = {"ranks": ranks} | {
            f"top {k}": float((every <= k).float().mean()) for k in (1, 5, 10)
        }
        print(
            f"{name}: {len(ranks)} among {len(among)} captions, mean rank {every.mean():.1f}, "
            + ", ".join(f"top {k} {scores[name][f'top {k}']:.2f}" for k in (1, 5, 10)),
            flush=True,
        )
    (arguments.output / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
