"""Shards: what was rendered reads back bit for bit, in the same bytes however it was packed."""

import json
import os
import shutil
import signal
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

import spad.data.pack
from hand_made import box, write_gltf
from made_renders import SIZE, write_renders
from spad.cli import main
from spad.data.config import InspectConfig, PackConfig, RenderConfig
from spad.data.inspect import inspect_data
from spad.data.pack import pack
from spad.data.renders import load_all_images, read_renders
from spad.data.shards import key_of, parse_object, read_shard_folder, scan_shard
from spad.files import exclusive
from spad.hub.registry import load_model
from spad.images.pixels import image_tensor
from spad.model.autoencoder import encode_scaled

UIDS = ("a", "b.c", "b%2Ec", "d" * 200, "é", "f", "g")
PASSES = ("depth", "normals", "mask")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Renders of all passes; not to be changed."""
    return write_renders(tmp_path_factory.mktemp("made"), UIDS, passes=PASSES)


@pytest.fixture
def config(made, tmp_path) -> PackConfig:
    return PackConfig(made, tmp_path / "shards", objects_per_shard=3)


@pytest.fixture
def changing(tmp_path) -> PackConfig:
    """Renders of its own for a test that changes them."""
    renders = write_renders(tmp_path / "renders", UIDS)
    return PackConfig(renders, tmp_path / "shards", objects_per_shard=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def rewrite_rows(renders: Path, change) -> None:
    path = renders / "objects.jsonl"
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def folder_of(renders: Path, uid: str) -> Path:
    rows = map(json.loads, (renders / "objects.jsonl").read_text().splitlines())
    return renders / next(row["folder"] for row in rows if row["uid"] == uid)


@pytest.mark.parametrize("image_format", ["webp", "png"])
def test_what_was_rendered_reads_back(config, image_format):
    summary = pack(replace(config, image_format=image_format))
    assert (summary.num_objects, summary.num_views, summary.num_shards) == (7, 6, 3)
    index = read_shard_folder(config.output)
    assert (index.num_views, index.height, index.width) == (6, SIZE, SIZE)
    found = {}
    for shard in index.shards:
        shard.check(whole=True)
        for number, uid in enumerate(shard.uids):
            found[uid] = shard.sample(number)
    assert found.keys() == set(UIDS)
    kinds = {"color": "images", "depth": "depth", "normals": "normals", "mask": "masks"}
    for views in read_renders(config.renders):
        about = found[views.uid].read_object()
        assert (about.uid, about.captions) == (views.uid, views.captions)
        assert torch.equal(about.cameras.world_from_cam, views.cameras.world_from_cam)
        assert torch.equal(about.cameras.intrinsics, views.cameras.intrinsics)
        assert about.object_from_asset == np.eye(4).tolist()
        assert about.notes == {"single-color": "all of it is gray"}
        assert about.made["renderer"] == "embree"
        members = found[views.uid].read()
        for view in range(6):
            for kind, name in kinds.items():
                source = folder_of(config.renders, views.uid) / name / f"{view:03d}.png"
                packed = Image.open(BytesIO(members[index.suffix(kind, view)]))
                # WebP has no alpha channel where nothing is transparent.
                mode = "RGBA" if kind in ("color", "normals") else packed.mode
                assert np.array_equal(packed.convert(mode), Image.open(source)), (kind, view)


def test_the_bytes_depend_on_settings_and_objects_alone(config, tmp_path):
    pack(config)
    again = replace(config, output=tmp_path / "again", workers=1)
    pack(again)
    assert contents(config.output) == contents(again.output)

    turned = tmp_path / "turned"
    shutil.copytree(config.renders, turned)
    rewrite_rows(turned, lambda rows: rows[::-1])
    pack(replace(config, renders=turned, output=tmp_path / "from turned"))
    tars = {k: v for k, v in contents(config.output).items() if k.endswith(".tar")}
    assert tars.items() <= contents(tmp_path / "from turned").items()

    def order(**changes) -> list[str]:
        output = tmp_path / str(changes)
        pack(replace(config, output=output, **changes))
        return [uid for shard in read_shard_folder(output).shards for uid in shard.uids]

    assert order(order="given") == list(UIDS)
    assert len({tuple(order(seed=seed)) for seed in range(3)}) > 1


def test_webdataset_reads_the_same(config):
    pack(config)
    for shard in read_shard_folder(config.output).shards:
        read = list(webdataset.WebDataset(str(shard.path), shardshuffle=False))
        assert [one["__key__"] for one in read] == [key_of(uid) for uid in shard.uids]
        for number, one in enumerate(read):
            mine = shard.sample(number).read()
            assert mine == {k: v for k, v in one.items() if not k.startswith("__")}
            assert json.loads(one["json"])["uid"] == shard.uids[number]


def test_keys_are_told_apart_and_fit():
    keys = [key_of(uid) for uid in (*UIDS, "d" * 201, "a/b", "a b")]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and "." not in key and len(key) <= 80 for key in keys)
    assert key_of("0f3a") == "0f3a"


def stop_at_second_shard(monkeypatch) -> None:
    write = spad.data.pack._write_shard

    def stopped(path, objects):
        if path.name == "shard-000001.tar":
            next(iter(objects))
            raise KeyboardInterrupt
        return write(path, objects)

    monkeypatch.setattr(spad.data.pack, "_write_shard", stopped)


@pytest.mark.parametrize("half_a_line", ["", '{"file": "shard-0000'])
def test_a_stopped_run_goes_on_where_it_was(config, tmp_path, monkeypatch, half_a_line):
    whole = replace(config, output=tmp_path / "whole")
    pack(whole)
    with monkeypatch.context() as patch:
        stop_at_second_shard(patch)
        with pytest.raises(KeyboardInterrupt):
            pack(config)
    assert contents(config.output).keys() == {"shard-000000.tar", "packing.jsonl"}
    with pytest.raises(ValueError, match="half packed"):
        read_shard_folder(config.output)
    with open(config.output / "packing.jsonl", "a") as journal:
        journal.write(half_a_line)
    left = config.output / ".unfinished" / "shard-000001.tar" / "shard-000001.tar"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"killed")
    stamp = (config.output / "shard-000000.tar").stat().st_mtime_ns
    assert pack(config).num_kept == 1
    assert contents(config.output) == contents(whole.output)
    assert (config.output / "shard-000000.tar").stat().st_mtime_ns == stamp
    assert not list(config.output.glob(".*"))
    assert pack(config).num_kept == 3


def test_a_shard_that_was_cut_is_written_anew(config):
    pack(config)
    before = contents(config.output)
    with open(config.output / "shard-000001.tar", "r+b") as file:
        file.truncate(1000)
    assert pack(config).num_kept == 2
    assert contents(config.output) == before


def test_only_shards_of_other_objects_are_written_anew(changing, tmp_path):
    config = replace(changing, order="given")
    pack(config)
    rewrite_rows(config.renders, lambda rows: rows[:5])
    summary = pack(config)
    assert (summary.num_objects, summary.num_shards, summary.num_kept) == (5, 2, 1)
    assert contents(config.output).keys() == {"shard-000000.tar", "shard-000001.tar", "index.json"}
    pack(replace(config, output=tmp_path / "fresh"))
    assert contents(config.output) == contents(tmp_path / "fresh")


def test_other_settings_and_other_folders_are_left_alone(config, tmp_path):
    pack(config)
    before = contents(config.output)
    for change in ({"image_format": "png"}, {"seed": 1}, {"objects_per_shard": 2}):
        with pytest.raises(ValueError, match="choose another --output"):
            pack(replace(config, **change))
    assert contents(config.output) == before
    with pytest.raises(ValueError, match="choose another --output"):
        pack(replace(config, output=config.renders))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="got the file"):
        pack(replace(config, output=tmp_path / "file"))


def test_two_runs_do_not_write_one_folder(config):
    with exclusive(config.output), pytest.raises(ValueError, match="another command is"):
        pack(config)


def damage(renders: Path, how: str) -> None:
    views = folder_of(renders, "f")
    picture = views / "images" / "002.png"
    if how == "missing":
        picture.unlink()
    elif how == "cut":
        picture.write_bytes(picture.read_bytes()[:300])
    elif how == "no picture":
        picture.write_bytes(b"nothing")
    elif how == "size":
        Image.new("RGBA", (8, 8)).save(picture)
    elif how == "altered":
        Image.new("RGBA", (SIZE, SIZE), "red").save(picture)
    elif how == "cameras":
        (views / "transforms.json").write_text("{")
    elif how == "views":
        record = json.loads((views / "transforms.json").read_text())
        record["frames"].pop()
        del record["pictures_sha256"]
        (views / "transforms.json").write_text(json.dumps(record))
    elif how == "captions":
        rewrite_rows(renders, lambda rows: [row | {"captions": []} for row in rows])
    elif how == "twice":
        rewrite_rows(renders, lambda rows: rows + rows[:1])
    elif how == "line":
        (renders / "objects.jsonl").write_text('{"uid": "a"}\n')
    elif how == "none":
        (renders / "objects.jsonl").write_text("")
    elif how == "no list":
        (renders / "objects.jsonl").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "002.png: expected a readable file"),
        ("cut", "002.png: expected a readable image"),
        ("no picture", "002.png: expected a readable image"),
        ("size", "expected 32x32 pixels"),
        ("altered", "got modified ones"),
        ("cameras", "transforms.json: expected JSON"),
        ("views", "expected num_views 6 of every object, got 5 of f"),
        ("captions", "line 1: expected captions, got none"),
        ("twice", "line 8: expected every id once, got a again"),
        ("line", "line 1: expected captions, got none"),
        ("none", "did all renders fail"),
        ("no list", "make one with: spad render"),
    ],
)
def test_bad_renders_are_named(changing, how, message):
    damage(changing.renders, how)
    with pytest.raises(ValueError, match=message):
        # In the given order, f comes after another object.
        pack(replace(changing, order="given"))
    assert not (changing.output / "index.json").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limits on file sizes here")
def test_a_full_disk_is_named_and_leaves_what_was_finished(config):
    import resource

    pack(config)
    (config.output / "shard-000001.tar").unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"expected room to write .*shard-000001\.tar, got: File"):
            pack(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(config.output.glob(".*"))
    assert pack(config).num_kept == 2
    assert len(read_shard_folder(config.output).shards) == 3


def test_damaged_shards_are_named(config):
    pack(config)
    shard = read_shard_folder(config.output).shards[1]
    data = bytearray(shard.path.read_bytes())
    data[700] ^= 1
    shard.path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-000001\.tar: expected the checksum"):
        shard.check(whole=True)
    shard.path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"shard-000001\.tar: expected"):
        read_shard_folder(config.output)
    with pytest.raises(ValueError, match=r"shard-000001\.tar: expected a whole shard"):
        shard.path.write_bytes(data[: shard.offsets[1] - 3000])
        scan_shard(shard.path)
    data[shard.offsets[1] : shard.offsets[1] + 512] = b"x" * 512
    shard.path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-000001\.tar: expected a whole shard"):
        shard.sample(1).read()
    shard.path.unlink()
    with pytest.raises(ValueError, match="no such file"):
        read_shard_folder(config.output)
    (config.output / "index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json: expected depth_unit, got none"):
        read_shard_folder(config.output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": "32"}, "height to be a whole number, got '32'"),
        ({"num_views": 0}, "num_views of at least 1, got 0"),
        ({"pictures": None}, "pictures to be an object, got None"),
        ({"shards": []}, "shards of 1 or more values"),
        ({"format": "spad shards 9"}, "format to be 'spad shards 1'"),
        ({"offsets": [-512, 0, 512, 1024]}, r"shards\[0\]: expected the places of 3 objects"),
        ({"uids": [1, 2, 3]}, r"shards\[0\].uids\[0\] to be text, got 1"),
        ({"rows": [0]}, "rows of shard-000000.tar for every id"),
        ({"file": "../shard-000000.tar"}, r"shards\[0\]: expected file to name a shard"),
    ],
)
def test_a_malformed_index_is_named(config, change, message):
    pack(config)
    path = config.output / "index.json"
    index = json.loads(path.read_text())
    (index if change.keys() <= index.keys() else index["shards"][0]).update(change)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json: .*{message}"):
        read_shard_folder(config.output)


def test_a_journal_leads_to_no_file_outside(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at_second_shard(patch)
        with pytest.raises(KeyboardInterrupt):
            pack(config)
    path = config.output / "packing.jsonl"
    header, record = path.read_text().splitlines()
    (tmp_path / "mine.tar").write_text("years of work")
    for file in ("../mine.tar", str(tmp_path / "mine.tar")):
        path.write_text(f"{header}\n{json.dumps(json.loads(record) | {'file': file})}\n")
        with pytest.raises(ValueError, match=r"packing\.jsonl, line 2: expected file to name a sh"):
            pack(config)
    assert (tmp_path / "mine.tar").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "../elsewhere"}, "objects.jsonl, a: expected a file inside"),
        ({"folder": 3}, "line 1: expected folder to be text, got 3"),
        ({"uid": "a/b"}, "line 1: expected a uid that can name a folder"),
        ({"uid": 3}, "line 1: expected uid to be text, got 3"),
        ({"captions": [1]}, r"line 1: expected captions\[0\] to be text, got 1"),
    ],
)
def test_a_listing_is_not_followed_outside(changing, change, message):
    rewrite_rows(changing.renders, lambda rows: [rows[0] | change, *rows[1:]])
    for read in (lambda: pack(changing), lambda: read_renders(changing.renders)):
        with pytest.raises(ValueError, match=message):
            read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notes": None}, "expected notes to be an object, got None"),
        ({"notes": ["blank"]}, "expected notes to be an object"),
        ({"file_path": "../../../secret.png"}, "expected a file inside"),
        ({"depth_file_path": 3}, r"frames\[2\].depth_file_path to be text, got 3"),
    ],
)
def test_a_malformed_record_is_named(changing, change, message):
    path = folder_of(changing.renders, "f") / "transforms.json"
    record = json.loads(path.read_text())
    (record if change.keys() <= record.keys() else record["frames"][2]).update(change)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"transforms\.json: .*{message}"):
        pack(changing)


@pytest.mark.parametrize(
    "data", [b"{", b"[" * 9999, b"[]", b'{"uid": 1}', b"\xff", b'{"uid": "a", "captions": []}']
)
def test_a_malformed_member_is_named(data):
    with pytest.raises(ValueError, match="^here: expected"):
        parse_object(data, "here")


def test_a_shard_is_read_without_its_index(config):
    pack(config)
    for shard in read_shard_folder(config.output).shards:
        # Ids are in the index alone.
        known = [replace(shard.sample(i), uid=None) for i in range(len(shard.uids))]
        assert scan_shard(shard.path) == known


def test_latents_and_text_are_those_of_the_model(config, tiny_pipeline_folder):
    pack(replace(config, latents=str(tiny_pipeline_folder)))
    pipeline = load_model(tiny_pipeline_folder, "cpu", dtype=torch.float32)
    index = read_shard_folder(config.output)
    assert index.latents["model"] == "tiny"
    images = {views.uid: views.images() for views in read_renders(config.renders)}
    for shard in index.shards:
        for number, uid in enumerate(shard.uids):
            members = shard.sample(number).read({"latents.npy", "text.npy"})
            latents = torch.from_numpy(np.load(BytesIO(members["latents.npy"])))
            expected = encode_scaled(pipeline.vae, image_tensor(images[uid]))
            assert latents.dtype == torch.float16 and latents.shape == (6, 16, 2, 2)
            assert torch.allclose(latents, expected, atol=1e-3)
            text = torch.from_numpy(np.load(BytesIO(members["text.npy"]))).float()
            expected = pipeline.encode_text([f"thing {uid}", "a thing"]).tokens
            assert torch.allclose(text, expected, atol=2e-3, rtol=1e-3)
    empty = np.load(config.output / index.latents["no_caption"])
    expected = pipeline.encode_text([""]).tokens[0].detach().numpy()
    assert np.allclose(empty, expected, atol=2e-3, rtol=1e-3)


@pytest.fixture
def packed(renders, tmp_path) -> Path:
    """The discs of conftest in shards."""
    pack(PackConfig(renders, tmp_path / "discs", objects_per_shard=4))
    return tmp_path / "discs"


def test_shards_are_read_as_the_renders_they_were_made_of(renders, packed):
    from_files, from_shards = read_renders(renders), read_renders(packed)
    assert [o.uid for o in from_shards] == [o.uid for o in from_files]
    assert np.array_equal(load_all_images(from_shards), load_all_images(from_files))


def test_inspect_shows_shards_and_renders_alike(config, tmp_path, monkeypatch):
    pack(config)
    reports = []
    for path in (config.renders, config.output, config.output / "shard-000000.tar"):
        output = tmp_path / f"{path.stem}.png"
        verify = path != config.renders
        report = inspect_data(InspectConfig(path, output, objects=2, views=3, verify=verify))
        assert report.sheet == output
        # Two objects of three views, each over its depth, and a line of text under it.
        with Image.open(output) as sheet:
            assert sheet.width == 3 * (SIZE + 2) - 2 and sheet.height >= 2 * (2 * SIZE + 12)
        reports.append(report)

    def numbers(report) -> list[str]:
        return [line for line in report.lines if line[:5] in ("views", "eleva", "cover", "depth")]

    assert numbers(reports[0]) == numbers(reports[1])
    text = "\n".join(reports[0].lines)
    assert "views        6 per object" in text and "images       32x32" in text
    assert "single-color: 7" in text and "2 per object; 2 to 2" in text
    assert "color" in text and "normals" in text and "mask" in text

    monkeypatch.chdir(tmp_path)
    assert inspect_data(InspectConfig(config.output, sample=2)).sheet == Path("shards-sheet.png")
    with pytest.raises(ValueError, match="expected shards to verify"):
        inspect_data(InspectConfig(config.renders, verify=True))
    with open(config.output / "shard-000000.tar", "r+b") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"shard-000000\.tar"):
        inspect_data(InspectConfig(config.output, verify=True))


def test_commands(config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["pack", str(config.renders), "--output", str(config.output)]
    assert main([*command, "--objects-per-shard", "3"]) == 0
    assert "7 objects of 6 views in 3 shards" in capsys.readouterr().out
    assert main(["inspect", str(config.output), "--verify"]) == 0
    assert "shards-sheet.png" in capsys.readouterr().out and os.path.exists("shards-sheet.png")
    assert main(command) == 2
    assert "objects_per_shard" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "spad render" in capsys.readouterr().err


def test_one_command_goes_from_models_to_shards(tmp_path, capsys):
    models, shards = tmp_path / "models", tmp_path / "shards"
    models.mkdir()
    write_gltf(models / "red.box.gltf", [box([1, 0, 0, 1])])
    (models / "broken.glb").write_bytes(b"not a model")
    command = ["render", str(models), "--output", str(tmp_path / "out"), "--pack", str(shards)]
    command += "--image-size 16 --num-random 1 --num-orthogonal-sets 1 --workers 1".split()
    assert main([*command, "--passes", "depth"]) == 0
    assert "1 objects of 5 views in 1 shard" in capsys.readouterr().out
    (found,) = read_renders(shards)
    assert found.uid == "red.box" and found.images().shape == (5, 16, 16, 3)
    with pytest.raises(ValueError, match="a folder of its own"):
        RenderConfig(models, shards, pack=shards)
