"""The training stream of shards: shuffled, split over processes, exactly resumable."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from spad.data.camera_sampling import quarter_turns
from spad.data.seeds import seeded
from spad.data.shards import ShardedObject, read_shard_folder
from spad.images.pixels import image_tensor
from spad.images.reading import on_white, open_image

Part = Literal["images", "depth", "latents", "text"]
# Objects whose captions and cameras stay in memory: about 10 kB each.
_MOST_KEPT = 10_000
_PARTS = ("images", "depth", "latents", "text")


class ShardDataset(IterableDataset):
    """A stream of samples, or of batches, from a folder of shards.

    Sample i of epoch e has the position e · n + i, where n is the number of objects. Each epoch
    shuffles the shards, then the objects of `window` consecutive shards, so that reading stays
    within a few files. Rank r of w takes the positions r, r + w, …, so each object occurs once per
    epoch, on one rank. The sample at a position (object, views, caption) depends only on the
    position and the seed. Iterating again starts again: use `at` for the next epoch, or one
    iteration over all epochs.

    With workers, use `loader`, or a `DataLoader` with `batch_size=None` and this dataset's own
    `batch_size`: worker k makes every k-th batch, and the stream does not depend on the number of
    workers. (A `DataLoader` that makes the batches itself also yields each object once, but in an
    order that depends on the workers and cannot be resumed exactly.)

    A sample is a dictionary. In a batch, tensors have one more dimension in front, and `uid` and
    `caption` are lists:

        uid, caption: text.
        view: (v,) int64, numbers of the views.
        world_from_cam: (v, 4, 4), and intrinsics: (v, 3, 3) for the shards' image size.
        images: (v, 3, h, w) in [-1, 1], on white.
        depth: (v, h, w) z-depth in world units, 0 where nothing is visible.
        latents: (v, c, h', w') float32, scaled to about unit variance.
        text: (l, d) float32, embedding of the caption.
        number: int64, position in the stream, to seed randomness of the sample.
        position: int, position after it, for `state_dict`; one number per batch.

    `num_objects` is the number of samples per epoch, over all ranks.

    To resume, keep `state_dict(after=batch)` of the last batch used and `load_state_dict` it into a
    dataset with the same settings. The number of workers may differ, and so may the number of
    ranks if all had used equally many batches.
    """

    def __init__(
        self,
        folder: str | Path,
        num_views: int | Sequence[int] = 4,
        views: Literal["random", "orthogonal", "mixed", "first"] = "random",
        captions: Literal["random", "first"] = "random",
        parts: Sequence[Part] = ("images",),
        batch_size: int | None = None,
        views_per_batch: int | None = None,
        epochs: int | None = 1,
        uids: Collection[str] | None = None,
        shuffle: bool = True,
        window: int = 8,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        verify: bool = False,
    ):
        """
        Args:
            folder: output folder of `spad pack`.
            num_views: views per sample; of several numbers, one is drawn per batch.
            views: "random" without repetition; "orthogonal": four views 90° apart; "mixed": either
                with equal probability, if num_views is 4 and the object has such views; "first".
            captions: a random caption of the object, or its first.
            parts: tensors to load.
            batch_size: samples per batch; the last batch may be smaller. None streams samples.
            views_per_batch: views per batch, instead of batch_size, so that batches cost about the
                same for any number of views; a multiple of every `num_views`.
            epochs: epochs per iteration. None: endless, and all ranks get equally many batches.
                Otherwise later ranks may get one fewer if n is not a multiple of world_size.
            uids: the objects to use. None: all.
            shuffle: False keeps the order of the shards.
            window: number of shards whose objects are mixed.
            rank, world_size: default to those of torch.distributed, if it is initialized.
            verify: compare every shard with its checksum when a process first opens it.

        Raises: ValueError: no shards, shards without a part, or an argument out of range. While
            iterating also: a damaged shard; an object without four views 90° apart.
        """
        self.index = read_shard_folder(Path(folder))
        self.num_views = (num_views,) if isinstance(num_views, int) else tuple(num_views)
        self.views, self.captions, self.parts = views, captions, tuple(parts)
        self.batch_size, self.views_per_batch, self.epochs = batch_size, views_per_batch, epochs
        self.uids = None if uids is None else frozenset(uids)
        self.num_objects = len(self.places())
        self.shuffle, self.window, self.seed = shuffle, window, seed
        if rank is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.rank = 0 if rank is None else rank
        self.world_size = 1 if world_size is None else world_size
        self.verify = verify
        self._start, self._end = 0, self._end_from(0)
        self._verified: set[Path] = set()
        # Captions and cameras of (shard, object in it), whose checks would take longer than images.
        self._objects: dict[tuple[int, int], ShardedObject] = {}
        self._check()

    def _check(self) -> None:
        index = self.index
        for name, known in (
            ("views", ("random", "orthogonal", "mixed", "first")),
            ("captions", ("random", "first")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} in {known}, got {getattr(self, name)!r}")
        for part in self.parts:
            if part not in _PARTS:
                raise ValueError(f"expected parts among {_PARTS}, got {part!r}")
            if part == "depth" and "depth" not in index.pictures:
                raise ValueError(f"{index.path} has no depth; render with --passes depth")
            if part in ("latents", "text") and index.latents is None:
                raise ValueError(f"{index.path} has no {part}; pack with --latents MODEL")
        if not self.num_views or not all(1 <= n <= index.num_views for n in self.num_views):
            raise ValueError(f"expected num_views of 1 to {index.num_views}, got {self.num_views}")
        if self.views == "orthogonal" and self.num_views != (4,):
            raise ValueError(f"expected num_views 4 for orthogonal views, got {self.num_views}")
        if self.uids is not None and not self.num_objects:
            raise ValueError(f"{index.path} has none of the {len(self.uids)} selected objects")
        if self.views_per_batch is not None:
            if self.batch_size is not None:
                raise ValueError("expected batch_size or views_per_batch, got both")
            if any(self.views_per_batch % n for n in self.num_views) or self.views_per_batch < 1:
                raise ValueError(
                    f"expected views_per_batch to be a multiple of num_views {self.num_views}, got "
                    f"{self.views_per_batch}"
                )
        for name, least in (("batch_size", 1), ("epochs", 1), ("window", 1), ("world_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"expected {name} of at least {least}, got {value}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"expected a rank below world_size, got {self.rank} and {self.world_size}"
            )

    def places(self) -> list[tuple[int, int]]:
        """(shard, object in the shard) of every object, in the order of the shards."""
        return [
            (number, i)
            for number, shard in enumerate(self.index.shards)
            for i, uid in enumerate(shard.uids)
            if self.uids is None or uid in self.uids
        ]

    def _end_from(self, epoch: int) -> int | None:
        return None if self.epochs is None else (epoch + self.epochs) * self.num_objects

    def at(self, epoch: int, sample: int = 0) -> ShardDataset:
        """The same dataset, starting at sample `sample`, counted over all ranks, of an epoch."""
        moved = copy.copy(self)
        moved._start, moved._end = epoch * self.num_objects + sample, self._end_from(epoch)
        return moved

    def reading(self, *parts: Part) -> ShardDataset:
        """The same stream with other parts loaded. Raises: ValueError: the shards lack one."""
        other = copy.copy(self)
        other.parts = parts
        other._check()
        return other

    def state_dict(self, after: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Position of the stream after a sample or batch; None: its start."""
        return {
            "position": self._start if after is None else int(after["position"]),
            "end": self._end,
            "seed": self.seed,
            "num_objects": self.num_objects,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`. Raises: ValueError: of another seed or set of objects."""
        for name in ("seed", "num_objects"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"expected a state with {name} {getattr(self, name)}, got {state[name]}"
                )
        self._start, self._end = state["position"], state["end"]

    def loader(self, num_workers: int = 0, **options: Any) -> DataLoader:
        """A `DataLoader` of this stream with `num_workers` processes."""
        return DataLoader(self, batch_size=None, num_workers=num_workers, **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        orders = _Orders(self)
        first = self._start
        for turn in count():
            # The same on all ranks, so that their batches cost the same.
            generator = seeded(self.seed, "views", first)
            num_views = self.num_views[_draw(len(self.num_views), generator)]
            batch_size = self.batch_size or (self.views_per_batch or num_views) // num_views
            after = first + batch_size * self.world_size
            if self._end is not None:
                after = min(after, self._end)
            positions = range(first + self.rank, after, self.world_size)
            if not positions:
                return
            if turn % workers == number:
                samples = [self._sample(p, num_views, *orders.find(p)) for p in positions]
                is_batch = self.batch_size or self.views_per_batch
                result = default_collate(samples) if is_batch else samples[0]
                yield result | {"position": after}
            first = after

    def _sample(self, position: int, num_views: int, shard: int, index: int) -> dict[str, Any]:
        file = self.index.shards[shard]
        if file.path not in self._verified:
            file.check(whole=self.verify)
            self._verified.add(file.path)
        sample = file.sample(index)
        if (about := self._objects.get((shard, index))) is None:
            about = sample.read_object()
            if len(self._objects) < _MOST_KEPT:
                self._objects[shard, index] = about
        generator = seeded(self.seed, position, about.uid)
        chosen = self._choose(about, num_views, generator)
        caption = _draw(len(about.captions), generator) if self.captions == "random" else 0
        result = {
            "uid": about.uid,
            "caption": about.captions[caption],
            "number": torch.tensor(position),
            "view": torch.tensor(chosen),
            "world_from_cam": about.cameras.world_from_cam[chosen],
            "intrinsics": about.cameras.intrinsics[chosen],
        }
        names = {
            "images": [self.index.suffix("color", view) for view in chosen],
            "depth": [self.index.suffix("depth", view) for view in chosen]
            if "depth" in self.parts
            else [],
            "latents": ["latents.npy"],
            "text": ["text.npy"],
        }
        members = sample.read({name for part in self.parts for name in names[part]})
        where = f"{file.path}, {about.uid}"
        for part in self.parts:
            data = [members[name] for name in names[part]]
            result[part] = self._decode(part, data, where, chosen, caption)
        return result

    def _choose(
        self, about: ShardedObject, num_views: int, generator: torch.Generator
    ) -> list[int]:
        if self.views == "first":
            return list(range(num_views))
        wants_turns = self.views == "orthogonal" or (
            self.views == "mixed" and num_views == 4 and _draw(2, generator)
        )
        turns = quarter_turns(about.cameras) if wants_turns else []
        if turns:
            return turns[_draw(len(turns), generator)]
        if self.views == "orthogonal":
            raise ValueError(f"expected four views of {about.uid} 90° apart, got none")
        return torch.randperm(len(about.cameras), generator=generator)[:num_views].tolist()

    def _decode(
        self, part: Part, data: list[bytes], where: str, chosen: list[int], caption: int
    ) -> torch.Tensor:
        if part in ("images", "depth"):
            images = [open_image(one, where) for one in data]
            size = (self.index.width, self.index.height)
            for image in images:
                if image.size != size:
                    raise ValueError(
                        f"{where}: expected images of {size[0]}x{size[1]} pixels, as in the index, "
                        f"got {image.width}x{image.height}"
                    )
            if part == "images":
                return image_tensor(np.stack([on_white(image) for image in images]))
            steps = np.stack([np.asarray(image) for image in images])
            return torch.from_numpy(steps.astype(np.float32) * self.index.depth_unit)
        try:
            array = np.load(BytesIO(data[0]), allow_pickle=False)
            values = torch.from_numpy(array[chosen if part == "latents" else caption]).float()
        except (ValueError, EOFError, IndexError, TypeError) as error:
            raise ValueError(f"{where}: expected {part} to be an array, got: {error}") from None
        if not values.isfinite().all():
            raise ValueError(f"{where}: expected finite {part}, got NaN or infinity")
        return values


class _Orders:
    """The order of objects in each epoch; keeps the last one computed."""

    def __init__(self, dataset: ShardDataset):
        self.dataset = dataset
        self.places = dataset.places()
        self.sizes = list(Counter(shard for shard, _ in self.places).values())
        self.epoch: int | None = None
        self.order: list[int] = []

    def find(self, position: int) -> tuple[int, int]:
        """(shard, object in it) at a position of the stream."""
        epoch, place = divmod(position, self.dataset.num_objects)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._make(epoch).tolist()
        return self.places[self.order[place]]

    def _make(self, epoch: int) -> torch.Tensor:
        dataset = self.dataset
        numbers = torch.arange(len(self.places))
        if not dataset.shuffle:
            return numbers
        generator = seeded(dataset.seed, "order", epoch)
        ranges = numbers.split(self.sizes)
        shards = torch.randperm(len(ranges), generator=generator).tolist()
        mixed = []
        for first in range(0, len(shards), dataset.window):
            together = torch.cat([ranges[i] for i in shards[first : first + dataset.window]])
            mixed.append(together[torch.randperm(len(together), generator=generator)])
        return torch.cat(mixed)


def _draw(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))
