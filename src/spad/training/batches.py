"""Batches of training: views of objects from shards, or single images with captions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from spad.cameras import Cameras
from spad.data.dataset import Part, ShardDataset
from spad.data.renders import LISTING, base_uid, is_held_out
from spad.data.seeds import seeded
from spad.data.shards import Sample, is_shard_folder, read_shard_folder
from spad.files import inside, read_ids, read_json_lines
from spad.images.pixels import image_tensor
from spad.images.reading import on_white, read_image
from spad.training.config import TrainConfig

METADATA = "metadata.jsonl"
# Of more objects, only a sample is checked before the first step.
MOST_READ = 5000


@dataclass(frozen=True)
class Batch:
    """v views of each of b objects.

    Attributes:
        views: (b, v, c, h, w) scaled latents, or images in [-1, 1] if `are_pixels`.
        cameras: of the b * v views; None for single images.
        captions: one per object.
        keys: one per object, unique in a run; seed its noise and dropout.
        depth: (b * v, h, w) z-depth of the images' pixels; None: it is not given.
    """

    views: Tensor
    are_pixels: bool
    cameras: Cameras | None
    captions: list[str]
    keys: list[str]
    depth: Tensor | None = None

    def split(self, most_views: int) -> Iterator[Batch]:
        """Micro-batches of at most `most_views` views, or of one object if that has more."""
        num_views = self.views.shape[1]
        size = max(1, most_views // num_views)
        for start in range(0, len(self.keys), size):
            part = slice(start, start + size)
            of_views = slice(start * num_views, (start + size) * num_views)
            yield Batch(
                self.views[part],
                self.are_pixels,
                None if self.cameras is None else self.cameras[of_views],
                self.captions[part],
                self.keys[part],
                None if self.depth is None else self.depth[of_views],
            )


def open_objects(settings: TrainConfig, rank: int = 0, world_size: int = 1) -> ShardDataset:
    """Stream of training objects: those of `settings.objects` that are not held out.

    Raises: ValueError: no shards, no objects, too few views, or a damaged shard.
    """
    folder = settings.data
    if not is_shard_folder(folder) and (folder / LISTING).is_file():
        raise ValueError(
            f"expected shards, got the renders {folder}; pack them: spad pack {folder} --output "
            "shards"
        )
    index = read_shard_folder(folder)
    if settings.hardware.verify:
        for shard in index.shards:
            shard.check(whole=True)
    wanted = None if settings.objects is None else read_ids(settings.objects)
    uids = [
        uid
        for shard in index.shards
        for uid in shard.uids
        if not is_held_out(uid) and (wanted is None or base_uid(uid) in wanted)
    ]
    if not uids:
        raise ValueError(
            f"expected training objects in {folder}, got none of its {index.num_objects}: one in "
            "sixteen is held out by a hash of its id"
            + ("" if wanted is None else f", and {settings.objects} has {len(wanted)} ids")
        )
    return ShardDataset(
        folder,
        num_views=settings.batch.views,
        views=settings.batch.view_sampling,
        views_per_batch=settings.batch.batch_size // world_size,
        epochs=None,
        uids=uids,
        seed=settings.seed,
        rank=rank,
        world_size=world_size,
    )


def latents_or_images(
    objects: ShardDataset, encoder: str, image_size: int, with_depth: bool = False
) -> ShardDataset:
    """The stream with latents if the shards have those of `encoder` (a hash), else with images.

    Raises: ValueError: the shards lack the depth that is wanted.
    """
    latents = objects.index.latents
    is_stored = latents is not None and latents["encoder"] == encoder
    is_stored &= image_size == objects.index.height
    views: Part = "latents" if is_stored else "images"
    return objects.reading(views, "depth") if with_depth else objects.reading(views)


def read_captions(dataset: ShardDataset, all_of_them: bool) -> list[str]:
    """Sorted captions of the objects; of a sample of them if many, unless `all_of_them`.

    Raises: ValueError: an object lacks captions or cameras, or its shard is damaged.
    """
    places = dataset.places()
    if len(places) > MOST_READ and not all_of_them:
        places = places[:: -(-len(places) // MOST_READ)]

    def read(place: tuple[int, int]) -> tuple[str, ...]:
        shard, index = place
        sample: Sample = dataset.index.shards[shard].sample(index)
        about = sample.read_object()
        where = f"{sample.shard}, {about.uid}"
        if not about.captions or not all(c.strip() for c in about.captions):
            raise ValueError(f"{where}: expected captions, got {list(about.captions)}")
        if len(about.cameras) != dataset.index.num_views:
            raise ValueError(
                f"{where}: expected {dataset.index.num_views} cameras, got {len(about.cameras)}"
            )
        return about.captions

    with ThreadPoolExecutor() as pool:
        return sorted({caption for captions in pool.map(read, places) for caption in captions})


def object_batches(
    dataset: ShardDataset, num_workers: int, image_size: int
) -> Iterator[tuple[Batch, int]]:
    """Endless batches, each with the stream's position after it.

    Args:
        image_size: images are reduced to this side by averaging areas, depth by leaving out pixels.
            Latents are as stored.
    """
    height, width = dataset.index.height, dataset.index.width
    side = (image_size, image_size)
    part = dataset.parts[0]
    for sample in dataset.loader(num_workers):
        poses, intrinsics = (sample[k].flatten(0, 1) for k in ("world_from_cam", "intrinsics"))
        keys = [str(number) for number in sample["number"].tolist()]
        cameras, views = Cameras(poses, intrinsics, height, width), sample[part]
        depth = sample["depth"].flatten(0, 1) if "depth" in dataset.parts else None
        if side != (height, width):
            cameras = cameras.resized(*side)
            views = interpolate(views.flatten(0, 1), side, mode="area").unflatten(
                0, views.shape[:2]
            )
            if depth is not None:
                depth = interpolate(depth[:, None], side, mode="nearest-exact")[:, 0]
        yield (
            Batch(views, part == "images", cameras, sample["caption"], keys, depth),
            sample["position"],
        )


@dataclass(frozen=True)
class _CaptionedImage:
    """A line of `metadata.jsonl`."""

    file_name: str
    text: str
    rest: dict[str, Any]


class CaptionedImages:
    """A folder of images with captions: `metadata.jsonl` has {"file_name", "text"} a line.

    Args:
        size: side in pixels that images are resized and center-cropped to.

    Raises: ValueError: `metadata.jsonl` is missing or malformed, or names a file outside `folder`.
    """

    def __init__(self, folder: Path, size: int):
        self.size = size
        path = folder / METADATA
        if not path.is_file():
            raise ValueError(
                f"expected {path} with file_name and text of an image a line, got none"
            )
        self.rows: list[tuple[Path, str]] = []
        for where, row in read_json_lines(path, _CaptionedImage):
            file = inside(folder, row.file_name, where)
            if not file.is_file():
                raise ValueError(f"{where}: expected an image {file}, got no such file")
            self.rows.append((file, row.text.strip()))
        if not self.rows:
            raise ValueError(f"expected images in {path}, got none")

    def batch(self, seed: int, step: int, count: int, rank: int, world_size: int) -> Batch:
        """This process's share of the `count` images of a step."""
        drawn = torch.randint(len(self.rows), (count,), generator=seeded(seed, "pictures", step))
        numbers = range(rank, count, world_size)
        rows = [self.rows[int(drawn[i])] for i in numbers]
        pixels = image_tensor(np.stack([self._read(file) for file, _ in rows]))
        keys = [f"picture {step} {i}" for i in numbers]
        return Batch(pixels[:, None], True, None, [text for _, text in rows], keys)

    def _read(self, file: Path) -> np.ndarray:
        whole = Image.fromarray(on_white(read_image(file, upright=True)))
        return np.asarray(ImageOps.fit(whole, (self.size, self.size), Image.Resampling.LANCZOS))
