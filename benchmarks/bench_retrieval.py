"""Does retrieval find the true caption? Measured on renders, where the answer is known.

    spad render MODELS --cameras orbit --views 8 --elevation 20 --output ORBIT
    python benchmarks/bench_retrieval.py RENDERS ORBIT > table.md

Queries of the first table are other views of the gallery's objects (ORBIT), as they are and
spoiled; of the second, objects that the gallery does not know, ranked for a caption that they share
with one it does, with the descriptor learned without any object of these captions.
"""

import hashlib
import sys
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from make_protocol import images_of, learn

from spad.data.renders import read_renders
from spad.evaluation.protocol import load_gallery, load_protocol
from spad.evaluation.retrieval import Gallery, image_features


def blurred(images, deviation):
    radius = int(3 * deviation)
    offsets = torch.arange(-radius, radius + 1.0)
    window = torch.exp(-(offsets**2) / (2 * deviation**2))
    window = (window / window.sum()).expand(3, 1, -1)
    padded = F.pad(images, (radius,) * 4, value=1.0)
    rows = F.conv2d(padded, window[..., None, :], groups=3)
    return F.conv2d(rows, window[..., None], groups=3)


def noisy(images, deviation):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).clamp(0, 1)


SPOILED = {
    "as they are": lambda images: images,
    "4 views": lambda images: images[::2],
    "1 view": lambda images: images[:1],
    "blurred, σ = 2 pixels of 128": lambda images: blurred(images, 2.0),
    "blurred, σ = 4": lambda images: blurred(images, 4.0),
    "noise, σ = 0.05": lambda images: noisy(images, 0.05),
    "noise, σ = 0.1": lambda images: noisy(images, 0.1),
    "a quarter darker": lambda images: images * 0.75 + 0.25 * (images == 1).all(1, keepdim=True),
    "of gray": lambda images: images.mean(1, keepdim=True).expand_as(images),
    "of another object": None,
}


def row(name, ranks):
    ranks = torch.tensor(ranks).double()
    shares = " | ".join(f"{(ranks <= k).double().mean():.2f}" for k in (1, 5, 10))
    print(f"| {name} | {len(ranks)} | {ranks.mean():.2f} | {ranks.median():.0f} | {shares} |")


def heading(what):
    print(f"\n{what}\n\n| queries | n | mean rank | median | first | in 5 | in 10 |")
    print("|---|---|---|---|---|---|---|")


def own_objects(orbit):
    gallery, captions = load_gallery(), load_protocol().captions
    objects = [views for views in read_renders(orbit) if views.uid in captions]
    images = [images_of(views) for views in objects]
    heading(f"Other views of the gallery's {len(objects)} objects, among {len(gallery.captions)}")
    for name, corrupt in SPOILED.items():
        half = len(images) // 2
        shown = images[half:] + images[:half] if corrupt is None else map(corrupt, images)
        asked = [captions[views.uid] for views in objects]
        row(name, [gallery.rank(images, c) for images, c in zip(shown, asked, strict=True)])


def shared_captions(renders):
    by_caption = defaultdict(list)
    for views in read_renders(renders):
        by_caption[views.captions[-1]].append(views)
    third = {c for c in by_caption if int(hashlib.sha256(c.encode()).hexdigest(), 16) % 3 == 0}
    pairs = {c: by_caption[c][:2] for c in sorted(third) if len(by_caption[c]) > 1}
    known = [images_of(a) for a, _ in pairs.values()]
    others = [b for _, b in pairs.values()]
    learned = learn([v for c, found in by_caption.items() if c not in third for v in found])
    size = image_features(known[0][:1]).shape[1]
    heading(f"Other objects of the same short caption, among {len(pairs)}")
    for title, (mean, projection) in {
        "descriptor": learned,
        "its features, nothing learned": (learned[0], torch.eye(size)),
    }.items():
        gallery = Gallery((), torch.empty(0), mean, projection).with_objects(list(pairs), known)
        for name in ("as they are", "blurred, σ = 2 pixels of 128", "noise, σ = 0.05"):
            queries = [SPOILED[name](images_of(views)[12:20]) for views in others]
            ranks = [gallery.rank(q, c) for q, c in zip(queries, pairs, strict=True)]
            row(f"{title}; {name}", ranks)


if __name__ == "__main__":
    own_objects(Path(sys.argv[2]))
    shared_captions(Path(sys.argv[1]))
