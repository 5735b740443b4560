"""Damaged renders and shards: read, or refused with a message that names the file."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from damage import damaged, damaged_json
from spad.data.config import InspectConfig, PackConfig
from spad.data.dataset import ShardDataset
from spad.data.inspect import inspect_data
from spad.data.pack import pack
from spad.data.renders import read_listing, read_renders, rendered_object
from spad.data.shards import read_shard_folder, scan_shard

FUZZ = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def damaged_renders(renders, tmp_path_factory):
    return shutil.copytree(renders, tmp_path_factory.mktemp("damaged") / "renders")


@pytest.fixture(scope="module")
def damaged_shards(disc_shards, tmp_path_factory):
    return shutil.copytree(disc_shards, tmp_path_factory.mktemp("damaged") / "shards")


def assert_read_or_refused(read, path):
    try:
        read()
    except ValueError as error:
        assert path.parent.name in str(error) and "\n" not in str(error)


@FUZZ
@given(st.data())
def test_renders(renders, damaged_renders, data):
    name = data.draw(st.sampled_from(["objects.jsonl", "object2/transforms.json"]))
    text = (renders / name).read_text()
    lines = text.splitlines() if name == "objects.jsonl" else [text]
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = damaged_json(data, lines[at])
    content = "\n".join(lines).encode()
    if data.draw(st.booleans()):
        content = damaged(data, content)
    path = damaged_renders / name
    path.write_bytes(content)

    def read():
        for views in read_renders(damaged_renders):
            assert all(file.startswith(str(damaged_renders)) for file in views.files)
        for listed in read_listing(damaged_renders):
            rendered_object(damaged_renders, listed)

    try:
        assert_read_or_refused(read, path)
    finally:
        shutil.copy(renders / name, path)


@FUZZ
@given(st.data())
def test_shards(disc_shards, damaged_shards, data):
    name = data.draw(st.sampled_from(["index.json", "shard-000000.tar"]))
    content = (disc_shards / name).read_bytes()
    if name == "index.json" and data.draw(st.booleans()):
        content = damaged_json(data, content.decode()).encode()
    else:
        content = damaged(data, content)
    path = damaged_shards / name
    path.write_bytes(content)

    def read():
        for shard in read_shard_folder(damaged_shards).shards:
            for index in range(len(shard.uids)):
                shard.sample(index).read_object()

    try:
        assert_read_or_refused(read, path)
        if name.endswith(".tar"):
            assert_read_or_refused(lambda: [one.read() for one in scan_shard(path)], path)
    finally:
        shutil.copy(disc_shards / name, path)


@FUZZ
@given(st.data())
def test_journals_of_packing(renders, damaged_shards, data):
    path = damaged_shards / "packing.jsonl"
    before = {file.name: file.read_bytes() for file in damaged_shards.iterdir()}
    others = sorted(file.name for file in damaged_shards.parent.iterdir())
    index = json.loads(before["index.json"])
    lines = [json.dumps(line) for line in ({"settings": index["settings"]}, *index["shards"])]
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = damaged_json(data, lines[at])
    content = ("\n".join(lines) + "\n").encode()
    if data.draw(st.booleans()):
        content = damaged(data, content)
    path.write_bytes(content)
    # The index of a finished folder goes before its journal.
    (damaged_shards / "index.json").unlink()
    try:
        assert_read_or_refused(
            lambda: pack(PackConfig(renders, damaged_shards, objects_per_shard=3, workers=1)), path
        )
    finally:
        for file in damaged_shards.iterdir():
            file.unlink()
        for name, content in before.items():
            (damaged_shards / name).write_bytes(content)
    assert sorted(file.name for file in damaged_shards.parent.iterdir()) == others


def test_members_of_a_size_that_cannot_be_are_refused(damaged_shards):
    path = damaged_shards / "shard-000000.tar"
    whole = path.read_bytes()
    for size in (b"\xff" * 12, b"77777777777\0", b"\x80" + b"\xff" * 11):
        path.write_bytes(whole[:124] + size + whole[136:])
        with pytest.raises(ValueError, match=r"tar: expected a whole shard, got .* at byte 0"):
            scan_shard(path)
    path.write_bytes(whole)


def test_objects_of_a_shard_are_those_of_the_index(damaged_shards):
    path = damaged_shards / "index.json"
    index = json.loads(path.read_text())
    text = path.read_text()
    index["shards"][0]["uids"].reverse()
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"tar, byte 0: expected 'object\d', as in index\.json"):
        read_renders(damaged_shards)
    path.write_text(text)


def test_images_have_the_size_of_the_index(damaged_shards):
    path = damaged_shards / "index.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"height": 32, "width": 32}))
    dataset = ShardDataset(damaged_shards, num_views=2)
    with pytest.raises(ValueError, match=r"tar, object\d: expected images of 32x32 pixels, as in"):
        next(iter(dataset))
    path.write_text(text)


def test_a_sheet_replaces_a_sheet_and_nothing_else(renders, tmp_path):
    sheet = tmp_path / "sheet.png"
    for _ in range(2):
        inspect_data(InspectConfig(renders, sheet, objects=1, views=1, sample=1))
    Image.new("RGB", (4, 4)).save(sheet)
    before = sheet.read_bytes()
    with pytest.raises(ValueError, match=r"an earlier one of the same kind, got .*sheet\.png"):
        inspect_data(InspectConfig(renders, sheet))
    assert sheet.read_bytes() == before
