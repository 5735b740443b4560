"""The stream of shards: each object once an epoch, however it is shared out, stopped or resumed."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from made_renders import SIZE, write_renders
from spad.data import dataset as dataset_module
from spad.data.camera_sampling import quarter_turns
from spad.data.config import PackConfig
from spad.data.dataset import ShardDataset
from spad.data.pack import pack
from spad.data.renders import read_renders
from spad.data.shards import Sample, ShardedObject, read_shard_folder
from spad.hub.registry import load_model
from spad.images.pixels import image_tensor

UIDS = tuple(f"object.{index}" for index in range(11))


@pytest.fixture(scope="module")
def renders(tmp_path_factory) -> Path:
    return write_renders(tmp_path_factory.mktemp("renders"), UIDS, passes=("depth",))


@pytest.fixture(scope="module")
def shards(renders, tmp_path_factory, tiny_pipeline_folder) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(PackConfig(renders, folder, objects_per_shard=2, latents=str(tiny_pipeline_folder)))
    return folder


def stream(dataset: ShardDataset, num_workers: int = 0, most: int | None = None) -> list[tuple]:
    """What its samples are, whether or not they come in batches."""
    found = []
    for one in itertools.islice(dataset.loader(num_workers), most):
        if dataset.batch_size is None:
            found.append((one["uid"], one["caption"], *one["view"].tolist()))
        else:
            found += zip(one["uid"], one["caption"], *one["view"].T.tolist(), strict=True)
    return found


def uids(samples: list[tuple]) -> list[str]:
    return [sample[0] for sample in samples]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_each_object_comes_once_an_epoch(shards, world_size, num_workers, batch_size):
    seen = []
    for rank in range(world_size):
        dataset = ShardDataset(
            shards, batch_size=batch_size, rank=rank, world_size=world_size, parts=()
        )
        seen.append(uids(stream(dataset, num_workers)))
    assert sorted(itertools.chain(*seen)) == sorted(UIDS)
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_batches_made_by_the_loader_hold_each_object_once_too(shards):
    dataset = ShardDataset(shards, parts=())
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=2)
    assert sorted(uid for batch in loader for uid in batch["uid"]) == sorted(UIDS)


def test_the_seed_and_the_epoch_alone_decide(shards):
    dataset = ShardDataset(shards, batch_size=2, parts=())
    first = stream(dataset)
    assert stream(dataset) == first
    assert stream(ShardDataset(shards, batch_size=2, parts=()), num_workers=2) == first
    assert stream(ShardDataset(shards, parts=())) == first
    assert uids(stream(dataset.at(1))) != uids(first)
    assert uids(stream(ShardDataset(shards, seed=1, parts=()))) != uids(first)
    # The views and captions of an object change from epoch to epoch.
    assert dict.fromkeys(stream(dataset.at(1))).keys().isdisjoint(first)


def test_objects_of_a_window_of_shards_are_mixed(shards):
    index = read_shard_folder(shards)
    home = {uid: number for number, s in enumerate(index.shards) for uid in s.uids}

    def shards_in_order(window: int) -> list[int]:
        return [home[uid] for uid in uids(stream(ShardDataset(shards, window=window, parts=())))]

    def changes(window: int) -> int:
        order = shards_in_order(window)
        return sum(a != b for a, b in itertools.pairwise(order))

    assert changes(window=1) == len(index.shards) - 1
    assert changes(window=6) > len(index.shards) - 1
    plain = ShardDataset(shards, shuffle=False, parts=())
    assert uids(stream(plain)) == [uid for shard in index.shards for uid in shard.uids]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_stream_is_that_of_one_never_stopped(shards, num_workers):
    dataset = ShardDataset(shards, num_views=(1, 2), batch_size=2, epochs=2, parts=())

    def described(batch) -> tuple:
        return batch["uid"], batch["caption"], batch["view"].tolist(), batch["position"]

    whole = [described(batch) for batch in dataset.loader(num_workers)]
    assert sum(len(one[0]) for one in whole) == 22
    for used in (1, 3, 6, 11):
        resumed = ShardDataset(shards, num_views=(1, 2), batch_size=2, epochs=2, parts=())
        last = None
        for batch in itertools.islice(dataset.loader(num_workers), used):
            last = batch
        resumed.load_state_dict(dataset.state_dict(after=last))
        assert [described(batch) for batch in resumed.loader(2 - num_workers)] == whole[used:]


def test_a_run_goes_on_with_other_ranks(shards):
    def ranks(world_size: int) -> list[ShardDataset]:
        return [
            ShardDataset(shards, batch_size=2, rank=rank, world_size=world_size, parts=())
            for rank in range(world_size)
        ]

    before, last = [], None
    for dataset in ranks(2):
        for batch in itertools.islice(dataset, 2):
            before += batch["uid"]
            last = batch
    state = dataset.state_dict(after=last)
    after = []
    for dataset in ranks(3):
        dataset.load_state_dict(state)
        after += uids(stream(dataset))
    assert len(before) == 8 and sorted(before + after) == sorted(UIDS)


def test_positions_are_epoch_and_sample(shards):
    dataset = ShardDataset(shards, epochs=None, parts=())
    endless = stream(dataset, most=40)
    assert sorted(uids(endless[11:22])) == sorted(UIDS)
    assert stream(dataset.at(epoch=1, sample=4), most=10) == endless[15:25]
    assert stream(ShardDataset(shards, parts=()).at(1, 4)) == endless[15:22]
    assert stream(dataset, num_workers=2, most=40) == endless
    other = ShardDataset(shards, seed=5)
    with pytest.raises(ValueError, match="seed"):
        other.load_state_dict(dataset.state_dict())


def test_ranks_draw_one_number_of_views_at_a_step(shards):
    sets = [
        ShardDataset(shards, (1, 2, 3), batch_size=2, epochs=4, rank=rank, world_size=2, parts=())
        for rank in range(2)
    ]
    counts = [[batch["view"].shape[1] for batch in dataset] for dataset in sets]
    assert counts[0][:10] == counts[1][:10] and set(counts[0]) == {1, 2, 3}


def test_views_are_chosen_as_asked(shards, renders):
    turns = {o.uid: quarter_turns(o.cameras) for o in read_renders(renders)}

    def views(**asked) -> list[tuple[str, list[int]]]:
        dataset = ShardDataset(shards, epochs=4, parts=(), **asked)
        return [(sample["uid"], sample["view"].tolist()) for sample in dataset]

    assert all(chosen in turns[uid] for uid, chosen in views(views="orthogonal"))
    mixed = [chosen in turns[uid] for uid, chosen in views(views="mixed")]
    assert 0.2 < np.mean(mixed) < 0.8
    random = [chosen for _, chosen in views(num_views=6)]
    assert all(sorted(chosen) == list(range(6)) for chosen in random)
    assert len(set(map(tuple, random))) > 20
    assert all(chosen == [0, 1, 2] for _, chosen in views(num_views=3, views="first"))


def test_captions_are_chosen_as_asked(shards):
    def captions(how: str) -> list[bool]:
        found = stream(ShardDataset(shards, epochs=4, captions=how, parts=()))
        return [caption == "a thing" for _, caption, *_ in found]

    assert not any(captions("first"))
    assert 0.2 < np.mean(captions("random")) < 0.8


def test_samples_hold_what_was_rendered(shards, renders, tiny_pipeline_folder):
    objects = {views.uid: views for views in read_renders(renders)}
    pipeline = load_model(tiny_pipeline_folder, "cpu", dtype=torch.float32)
    dataset = ShardDataset(shards, 3, parts=("images", "depth", "latents", "text"), batch_size=4)
    for batch in dataset:
        count = len(batch["uid"])
        assert batch["images"].shape == (count, 3, 3, SIZE, SIZE)
        assert batch["depth"].shape == (count, 3, SIZE, SIZE)
        assert batch["latents"].shape == (count, 3, 16, 2, 2)
        for i, uid in enumerate(batch["uid"]):
            cameras, view = objects[uid].cameras, batch["view"][i]
            assert torch.equal(batch["world_from_cam"][i], cameras.world_from_cam[view])
            assert torch.equal(batch["intrinsics"][i], cameras.intrinsics[view])
            images = image_tensor(objects[uid].images())
            assert torch.equal(batch["images"][i], images[view])
            depth = batch["depth"][i]
            assert (depth[:, :8] == 0).all() and depth[:, 8:].min() >= 2.5 and depth.max() < 4.5
            text = pipeline.encode_text([batch["caption"][i]]).tokens[0]
            assert torch.allclose(batch["text"][i], text, atol=2e-3, rtol=1e-3)


def test_damaged_shards_are_named(renders, tmp_path):
    folder = tmp_path / "shards"
    pack(PackConfig(renders, folder, objects_per_shard=4))
    path = folder / "shard-000001.tar"
    shard = read_shard_folder(folder).shards[1]
    data = bytearray(path.read_bytes())
    # Inside the last picture of an object.
    data[shard.offsets[2] - 1024] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-000001\.tar: expected the checksum"):
        list(ShardDataset(folder, verify=True))
    after_opening = ShardDataset(folder)
    path.write_bytes(data[:-2000])
    with pytest.raises(ValueError, match=r"shard-000001\.tar: expected"):
        ShardDataset(folder)
    with pytest.raises(ValueError, match=r"shard-000001\.tar: expected"):
        list(after_opening)
    data[shard.offsets[0] + 512 : shard.offsets[1]] = bytes(shard.offsets[1] - 512)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-000001\.tar"):
        list(ShardDataset(folder))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_views": 7}, "expected num_views of 1 to 6"),
        ({"num_views": 3, "views": "orthogonal"}, "expected num_views 4"),
        ({"views": "any"}, "expected views in"),
        ({"captions": "last"}, "expected captions in"),
        ({"parts": ("masks",)}, "expected parts among"),
        ({"batch_size": 0}, "expected batch_size of at least 1"),
        ({"rank": 2, "world_size": 2}, "expected a rank below world_size"),
        ({"rank": 2}, "expected a rank below world_size"),
    ],
)
def test_what_cannot_be_is_refused(shards, asked, message):
    with pytest.raises(ValueError, match=message):
        ShardDataset(shards, **asked)


def test_parts_that_were_not_packed_are_asked_for(tmp_path):
    renders = write_renders(tmp_path / "renders", ("a",))
    pack(PackConfig(renders, tmp_path / "shards"))
    for part, advice in (("depth", "--passes depth"), ("latents", "--latents"), ("text", "--lat")):
        with pytest.raises(ValueError, match=advice):
            ShardDataset(tmp_path / "shards", parts=(part,))
    with pytest.raises(ValueError, match="spad pack"):
        ShardDataset(renders)


def test_only_the_objects_asked_for_come(shards):
    chosen = set(UIDS[1::3])
    dataset = ShardDataset(shards, uids=chosen, epochs=2, parts=())
    assert dataset.num_objects == len(chosen)
    assert sorted(uids(stream(dataset))) == sorted([*chosen, *chosen])
    with pytest.raises(ValueError, match="none of the 1 selected objects"):
        ShardDataset(shards, uids=["unknown"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_of_so_many_views_share_out_each_object_once(shards, world_size):
    seen, sizes = [], set()
    for rank in range(world_size):
        dataset = ShardDataset(
            shards, (1, 2, 4), views_per_batch=4, rank=rank, world_size=world_size, parts=()
        )
        for batch in dataset.loader():
            seen += zip(batch["number"].tolist(), batch["uid"], strict=True)
            if batch["position"] < len(UIDS):
                sizes.add(batch["view"].shape)
    assert [number for number, _ in sorted(seen)] == list(range(len(UIDS)))
    assert {uid for _, uid in seen} == set(UIDS)
    assert sizes <= {(4, 1), (2, 2), (1, 4)} and len(sizes) > 1
    with pytest.raises(ValueError, match="multiple of num_views"):
        ShardDataset(shards, (1, 3), views_per_batch=4)


def test_numbers_are_places_in_the_stream(shards):
    batches = list(ShardDataset(shards, batch_size=4, parts=()).loader())
    numbers = [number for batch in batches for number in batch["number"].tolist()]
    assert numbers == list(range(len(UIDS)))
    again = ShardDataset(shards, parts=()).at(0, 5)
    assert next(iter(again))["number"] == 5


@pytest.mark.parametrize(("kept", "reads"), [(10_000, 11), (4, 2 * 11 - 4)])
def test_captions_and_cameras_are_read_once_as_long_as_they_fit(shards, monkeypatch, kept, reads):
    read, read_object = [], Sample.read_object

    def counted(sample: Sample) -> ShardedObject:
        read.append(sample.uid)
        return read_object(sample)

    monkeypatch.setattr(Sample, "read_object", counted)
    monkeypatch.setattr(dataset_module, "_MOST_KEPT", kept)
    twice = stream(ShardDataset(shards, epochs=2))
    assert len(read) == reads
    monkeypatch.undo()
    assert twice == [*stream(ShardDataset(shards)), *stream(ShardDataset(shards).at(1))]
