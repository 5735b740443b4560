"""Writes the files of the evaluation protocol from renders of captioned objects.

    python benchmarks/make_protocol.py RENDERS

RENDERS is what `spad render` wrote with its default settings, here of 1,589 CC0 models by
Quaternius and Kay Lousberg (KayKit). Objects that `spad.data.renders.is_held_out` names are asked
for; the other captions, and all that the descriptors learn from, belong to other objects.
"""

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import spad.evaluation.protocol as protocol
from spad.cameras import DEFAULT_FOV_RAD, DEFAULT_RADIUS
from spad.data.renders import is_held_out, read_renders
from spad.evaluation.retrieval import Gallery, fit_discriminant, image_features

NUM_CAPTIONS = 100
VIEWS_TO_LEARN_FROM = 8


def images_of(views, step=1):
    """(v, 3, h, w) in [0, 1], every `step`-th view."""
    return torch.from_numpy(views.images()[::step]).movedim(-1, 1).float() / 255


def split(objects):
    """(held out, those that fill the gallery, those to learn from), in order of a hash."""

    def number(views):
        return hashlib.sha256(views.uid.encode()).hexdigest()

    ordered = sorted(objects, key=number)
    held_out, seen, captions = [], [], set()
    for views in ordered:
        if is_held_out(views.uid) and views.captions[0] not in captions:
            captions.add(views.captions[0])
            held_out.append(views)
    for views in ordered:
        if not is_held_out(views.uid) and views.captions[0] not in captions:
            captions.add(views.captions[0])
            seen.append(views)
    fill = seen[: NUM_CAPTIONS - len(held_out)]
    used = {views.uid for views in fill}
    return held_out, fill, [v for v in ordered if not is_held_out(v.uid) and v.uid not in used]


def learn(objects):
    """The discriminant of the short captions of `objects`."""
    numbers = {}
    classes = [numbers.setdefault(views.captions[-1], len(numbers)) for views in objects]
    step = max(1, len(objects[0].cameras) // VIEWS_TO_LEARN_FROM)
    with ThreadPoolExecutor(2) as pool:
        features = list(pool.map(lambda v: image_features(images_of(v, step)), objects))
    counts = torch.tensor([len(f) for f in features])
    return fit_discriminant(torch.cat(features), torch.tensor(classes).repeat_interleave(counts))


def main(renders: str) -> None:
    held_out, fill, others = split(read_renders(Path(renders)))
    mean, projection = learn(others)
    chosen = held_out + fill
    gallery = Gallery((), torch.empty(0), mean, projection).with_objects(
        [views.captions[0] for views in chosen], [images_of(views) for views in chosen]
    )
    folder = Path(protocol.__file__).with_name("fixed")
    gallery.save(folder / "gallery.safetensors")
    # A twelfth of a turn apart: features can still be matched from view to view.
    views = 12
    record = {
        "version": 1,
        "source": "CC0 models by Quaternius and Kay Lousberg (KayKit)",
        "held_out": "sha256 of the id, as a number, is divisible by 16",
        "seed": 0,
        "quick": 24,
        "text": {
            "cameras": {
                "elevation_deg": 20.0,
                "azimuth_deg": [-60 + 360 / views * i for i in range(views)],
                "radius": DEFAULT_RADIUS,
                "fov_rad": DEFAULT_FOV_RAD,
            },
            "objects": [[views.uid, views.captions[0]] for views in held_out],
        },
        "novel": {"views": 4, "objects": [views.uid for views in held_out]},
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (folder / "objects.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(held_out)} objects to ask for, {len(chosen)} captions, in {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
