"""`spad render` as a job: folders that are whole, reasons for every loss, and going on after it."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from hand_made import StuckModel, box, edit_gltf, huge_png, write_glb, write_gltf
from spad.cameras import load_cameras
from spad.cli import main
from spad.data.camera_sampling import training_cameras
from spad.data.config import RenderConfig
from spad.data.render import render_all
from spad.data.seeds import object_seed
from spad.meshes.mesh import load_object
from spad.meshes.raycast import render_views
from spad.meshes.settings import RendererSettings

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    write_gltf(folder / "red.gltf", [box([1, 0, 0, 1])])
    write_gltf(folder / "blue.gltf", [box([0, 0, 1, 1], (1, 2, 1))])
    (folder / "broken.glb").write_bytes(b"not a model")
    rows = [
        {"file": "red.gltf", "uid": "r1", "caption": "a red cube", "short": "red cube"},
        {"file": "broken.glb", "uid": "x1", "caption": "nothing"},
        {"file": "blue.gltf", "uid": "b1", "caption": "a blue tower"},
        {"file": "blue.gltf", "uid": "s1", "caption": "left out", "skip": True},
    ]
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def job(models: Path, output: str, **changes) -> RenderConfig:
    small = {"image_size": 16, "num_random": 1, "num_orthogonal_sets": 1, "workers": 1}
    return RenderConfig(
        assets=models / "index.jsonl", output=models.parent / output, **(small | changes)
    )


def quiet(done: int, total: int) -> None:
    """A progress callback for tests that do not look at progress."""


def test_names_that_are_too_long_cost_their_object_alone(models, capsys):
    rows = [
        {"file": "red.gltf", "uid": "x" * 300},
        {"file": "y" * 300 + ".glb", "uid": "y"},
        {"file": "red.gltf", "uid": "r1"},
    ]
    (models / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = render_all(job(models, "out"), quiet)
    assert [f.uid for f in summary.failures] == ["x" * 300, "y"] and summary.rendered == 1
    (models / "index.jsonl").write_text(json.dumps(rows[0]) + "\n")
    arguments = ["render", str(models / "index.jsonl"), "--output", str(models / "none")]
    assert main([*arguments, "--workers", "1"]) == 2
    assert "expected a model that can be rendered, got none" in capsys.readouterr().err
    assert "at most 200 letters, got 300" in (models / "none" / "failed.jsonl").read_text()


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def listed(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_job_writes_folders_that_read_back(models):
    config = job(models, "out", passes=("depth", "normals", "mask"))
    seen = []
    summary = render_all(config, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (summary.rendered, summary.skipped) == (2, 0)
    assert [failure.uid for failure in summary.failures] == ["x1"]
    failed = json.loads((config.output / "failed.jsonl").read_text())
    assert (failed["uid"], failed["kind"]) == ("x1", "unusable file")
    assert "broken.glb" in failed["reason"]
    rows = [json.loads(line) for line in summary.index.read_text().splitlines()]
    assert [row["uid"] for row in rows] == ["r1", "b1"]
    assert rows[0]["captions"] == ["a red cube", "red cube"] and rows[0]["num_views"] == 5
    assert not list(config.output.glob(".*"))

    loaded = load_cameras(config.output / "r1" / "transforms.json")
    expected = training_cameras(object_seed(0, "r1"), 1, 1, 16, 16)
    assert torch.allclose(loaded.cameras.world_from_cam, expected.world_from_cam, atol=1e-6)
    assert torch.allclose(loaded.cameras.intrinsics, expected.intrinsics, atol=1e-4)
    views = render_views(load_object(models / "red.gltf"), expected)
    folder = config.output / "r1"
    for view in range(5):
        name = f"{view:03d}.png"
        assert np.array_equal(np.asarray(Image.open(folder / "images" / name)), views.rgba[view])
        mask = views.mask[view]
        assert np.array_equal(np.asarray(Image.open(folder / "masks" / name)) > 0, mask)
        depth = np.asarray(Image.open(folder / "depth" / name)) * 1e-3
        assert np.abs(depth - views.depth[view])[mask].max() < 6e-4 and (depth[~mask] == 0).all()
        normals = np.asarray(Image.open(folder / "normals" / name)) / 255
        assert np.abs(normals[..., :3] * 2 - 1 - views.normals[view])[mask].max() < 5e-3
        assert np.array_equal(normals[..., 3] == 1, mask)
    record = json.loads((folder / "transforms.json").read_text())
    assert record["captions"] == ["a red cube", "red cube"]
    assert {"depth_file_path", "mask_path"} < set(record["frames"][0])


def test_job_goes_on_where_it_stopped_and_refuses_other_settings(models):
    render_all(job(models, "out", limit=1), quiet)
    first = models.parent / "out" / "r1" / "images" / "000.png"
    stamp = first.stat().st_mtime_ns
    summary = render_all(job(models, "out"), quiet)
    assert (summary.rendered, summary.skipped) == (1, 1)
    assert first.stat().st_mtime_ns == stamp
    for change in ({"image_size": 17}, {"seed": 1}, {"passes": ("mask",)}):
        with pytest.raises(ValueError, match="choose another --output"):
            render_all(job(models, "out", **change), quiet)
    write_gltf(models / "red.gltf", [box([0, 1, 0, 1])])
    with pytest.raises(ValueError, match="another file"):
        render_all(job(models, "out"), quiet)


def test_job_leaves_folders_it_did_not_make_alone(models):
    (models.parent / "out" / "r1").mkdir(parents=True)
    with pytest.raises(ValueError, match="something else"):
        render_all(job(models, "out"), quiet)


def test_workers_do_not_change_the_result(models):
    one = render_all(job(models, "one"), quiet)
    two = render_all(job(models, "two", workers=2), quiet)
    assert one.failures == two.failures
    assert tree(one.index.parent) == tree(two.index.parent)


def test_a_folder_of_models_needs_no_index(models):
    config = RenderConfig(
        models, models.parent / "out", image_size=8, num_random=1, num_orthogonal_sets=0, workers=1
    )
    summary = render_all(config, quiet)
    rows = [json.loads(line) for line in summary.index.read_text().splitlines()]
    assert [(row["uid"], row["captions"]) for row in rows] == [
        ("blue", ["blue"]),
        ("red", ["red"]),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "expected models"),
        ("{", "line 1"),
        ('{"uid": "a"}', "expected file, got none"),
        ('{"file": "red.gltf", "uid": "../a"}', "uid of letters"),
        ('{"file": "red.gltf", "uid": "a"}\n{"file": "blue.gltf", "uid": "a"}', "one model"),
    ],
)
def test_malformed_indexes_are_named(models, lines, message):
    (models / "index.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        render_all(job(models, "out"), quiet)
    assert not (models.parent / "out").exists()


def bad_models(folder: Path) -> dict[str, tuple[str, str]]:
    """Models that cannot be drawn: the kind and a part of the reason, by id."""
    quad = {"positions": [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]}
    quad |= {"faces": [[0, 1, 2], [0, 2, 3]], "uvs": [[0, 1], [1, 1], [1, 0], [0, 0]]}
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    textured = quad | {"texture": noise}

    def picture(data: dict, content: bytes) -> None:
        uri = "data:image/png;base64," + base64.b64encode(content).decode()
        data["images"][0]["uri"] = uri

    def image_of(data: dict) -> bytes:
        return base64.b64decode(data["images"][0]["uri"].partition(",")[2])

    trimesh.creation.box().export(folder / "whole.glb")
    whole = (folder / "whole.glb").read_bytes()
    (folder / "whole.glb").write_bytes(whole[: len(whole) // 2])
    gone = write_gltf(folder / "gone.gltf", [textured])
    edit_gltf(gone, lambda data: data["images"][0].update(uri="gone.png"))
    write_glb(folder / "gone.glb", gone).with_suffix(".gltf").unlink()
    bomb = write_gltf(folder / "bomb.gltf", [textured])
    edit_gltf(bomb, lambda data: picture(data, huge_png(60_000)))
    cut = write_gltf(folder / "cut.gltf", [textured])
    edit_gltf(cut, lambda data: picture(data, image_of(data)[:3000]))
    (folder / "empty.gltf").write_text(
        json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]})
    )
    (folder / "nan.obj").write_text("v 0 0 0\nv 1 0 nan\nv 0 1 0\nf 1 2 3\n")
    trimesh.creation.icosphere(subdivisions=3).export(folder / "many.ply")
    hungry = write_gltf(folder / "hungry.gltf", [quad])
    edit_gltf(hungry, lambda data: data["accessors"][0].update(count=500_000_000))
    edit_gltf(hungry, lambda data: data["accessors"][0].pop("bufferView"))
    leaving = write_gltf(folder / "leaving.gltf", [quad])
    edit_gltf(leaving, lambda data: data["buffers"][0].update(uri="../secret.bin"))
    peeking = write_gltf(folder / "peeking.gltf", [textured])
    edit_gltf(peeking, lambda data: data["images"][0].update(uri="/etc/hostname"))
    outside = write_gltf(folder.parent / "outside.gltf", [quad])
    (folder / "link.gltf").symlink_to(outside)
    return {
        "whole": ("unusable file", "cannot read whole.glb"),
        "gone": ("unusable file", "image 'gone.png' is missing"),
        "bomb": ("unusable file", "pixels"),
        "cut": ("unusable file", "image 0 cannot be read"),
        "empty": ("unusable file", "empty scene"),
        "nan": ("unusable file", "finite"),
        "many": ("unusable file", "--max-faces 1,000"),
        "hungry": ("unusable file", "500,000,000"),
        "leaving": ("unusable file", "outside its folder"),
        "peeking": ("unusable file", "outside its folder"),
        "link": ("unusable file", "outside"),
    }


def test_every_bad_model_has_its_reason_and_the_good_one_is_drawn(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    expected = bad_models(folder)
    write_gltf(folder / "z.gltf", [box([1, 0, 0, 1])])
    config = RenderConfig(
        folder, tmp_path / "out", image_size=16, num_random=1, num_orthogonal_sets=0, workers=1,
        drawing=RendererSettings(max_faces=1000), memory_limit_gb=2, reject=(),
    )  # fmt: skip
    summary = render_all(config, quiet)
    assert [row["uid"] for row in listed(summary.index)] == ["z"]
    found = {row["uid"]: row for row in listed(config.output / "failed.jsonl")}
    assert found.keys() == expected.keys()
    for uid, (kind, words) in expected.items():
        assert found[uid]["kind"] == kind and words in found[uid]["reason"], found[uid]
    assert {path.name for path in config.output.iterdir()} == {
        "z", "objects.jsonl", "failed.jsonl"
    }  # fmt: skip
    text = str(summary)
    assert re.search(r"unusable file +11  such as", text)
    assert "1 of 12 objects" in text


@pytest.mark.parametrize("name", ["../outside.gltf", "{tmp}/outside.gltf"])
def test_an_index_cannot_lead_out_of_its_folder(models, name):
    outside = write_gltf(models.parent / "outside.gltf", [box()])
    row = {"file": name.format(tmp=models.parent), "uid": "o1"}
    (models / "index.jsonl").write_text(json.dumps(row))
    summary = render_all(job(models, "out"), quiet)
    assert "leads outside" in summary.failures[0].reason and outside.is_file()
    wider = job(models, "wide", root=models.parent)
    (models / "index.jsonl").write_text(json.dumps(row | {"file": "outside.gltf"}))
    assert render_all(wider, quiet).rendered == 1


def test_what_failed_is_tried_again_when_something_has_changed(models):
    seen = []

    def count(config: RenderConfig) -> int:
        seen.clear()
        render_all(config, progress=lambda done, total: seen.append(total))
        return len(seen)

    assert count(job(models, "out")) == 3
    assert count(job(models, "out")) == 0
    assert count(job(models, "out", drawing=RendererSettings(max_faces=12))) == 1
    write_glb(models / "broken.glb", models / "blue.gltf")
    assert count(job(models, "out", drawing=RendererSettings(max_faces=12))) == 1
    uids = [row["uid"] for row in listed(models.parent / "out" / "objects.jsonl")]
    assert uids == ["r1", "x1", "b1"]
    assert not (models.parent / "out" / "failed.jsonl").exists()


def test_rejected_objects_keep_their_pictures_apart_and_the_verdict_can_change(models):
    write_gltf(models / "blue.gltf", [box([0, 0, 0, 1])])
    summary = render_all(job(models, "out"), quiet)
    output = models.parent / "out"
    assert [(f.uid, f.kind, f.check) for f in summary.failures[1:]] == [("b1", "check", "black")]
    assert listed(output / "failed.jsonl")[1]["check"] == "black"
    picture = output / "rejected" / "b1" / "images" / "000.png"
    stamp = picture.stat().st_mtime_ns
    assert not (output / "b1").exists() and "check black" in str(summary)

    kept = render_all(job(models, "out", reject=()), quiet)
    assert (kept.rendered, kept.skipped) == (0, 2)
    assert "black" in listed(kept.index)[1]["notes"]
    assert (output / "b1" / "images" / "000.png").stat().st_mtime_ns == stamp

    again = render_all(job(models, "out"), quiet)
    assert again.failures[1] == summary.failures[1] and picture.is_file()


def in_background(config: RenderConfig) -> tuple[threading.Thread, list]:
    results = []
    thread = threading.Thread(target=lambda: results.append(render_all(config, quiet)), daemon=True)
    thread.start()
    return thread, results


@linux_only
def test_a_killed_worker_costs_no_object(models):
    expected = tree(render_all(job(models, "one"), quiet).index.parent)
    stuck = StuckModel(models / "red.gltf", box([1, 0, 0, 1]))
    thread, results = in_background(job(models, "out"))
    stuck.kill_reader()
    stuck.release()
    thread.join(timeout=300)
    assert results[0].rendered == 2
    assert tree(models.parent / "out").keys() == expected.keys()


@linux_only
def test_files_looked_for_in_the_wrong_place_are_looked_for_again(models):
    summary = render_all(job(models, "out", root=models / "wrong"), quiet)
    assert (summary.rendered, len(summary.failures)) == (0, 3)
    # A second later, as after any run that takes time: nothing has a newer date than the list.
    later = (models.parent / "out/failed.jsonl").stat().st_mtime + 1
    os.utime(models.parent / "out/failed.jsonl", (later, later))
    summary = render_all(job(models, "out"), quiet)
    assert (summary.rendered, [failure.uid for failure in summary.failures]) == (2, ["x1"])


def test_slow_objects_fail_and_are_tried_again(models):
    stuck = StuckModel(models / "red.gltf", box([1, 0, 0, 1]))
    config = job(models, "out", limit=1)
    summary = render_all(replace(config, time_limit_s=0.5), quiet)
    assert [(f.uid, f.kind) for f in summary.failures] == [("r1", "time limit")]
    assert not list((models.parent / "out").glob("r1*"))
    stuck.repair()
    assert render_all(config, quiet).rendered == 1


def command(config: RenderConfig) -> list[str]:
    options = ["--image-size", config.image_size, "--num-random", config.num_random]
    options += ["--num-orthogonal-sets", config.num_orthogonal_sets, "--workers", config.workers]
    words = [sys.executable, "-m", "spad", "render", config.assets, "--output", config.output]
    return [*map(str, words), *map(str, options)]


@linux_only
def test_ctrl_c_leaves_whole_folders_and_the_same_command_goes_on(models):
    stuck = StuckModel(models / "blue.gltf", box([0, 1, 0, 1]))
    config = job(models, "out")
    run = subprocess.Popen(command(config), stderr=subprocess.PIPE, text=True)
    try:
        worker = stuck.wait_for_reader()
        assert (config.output / "r1").is_dir()
        with pytest.raises(ValueError, match="another command is"):
            render_all(config, quiet)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=300)
    finally:
        run.kill()
        stuck.forget_reader()
    assert run.returncode == 130 and "same command" in errors.splitlines()[-1]
    assert not Path(f"/proc/{worker}").exists()
    assert {path.name for path in config.output.iterdir()} == {"r1"}
    stuck.repair()
    resumed = render_all(config, quiet)
    assert (resumed.rendered, resumed.skipped) == (1, 1)
    assert tree(config.output) == tree(render_all(job(models, "one"), quiet).index.parent)


@linux_only
def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(models):
    ball = trimesh.creation.icosphere(subdivisions=4)
    speckles = np.random.default_rng(0).integers(0, 256, (len(ball.vertices), 4))
    part = {"positions": ball.vertices, "faces": ball.faces, "colors": speckles}
    write_gltf(models / "blue.gltf", [part])
    config = job(models, "out", image_size=128, num_orthogonal_sets=0, reject=())

    def fill_disk() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    arguments = [*command(config), "--reject"]
    done = subprocess.run(arguments, preexec_fn=fill_disk, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "expected room to write" in done.stderr.splitlines()[-1]
    assert {path.name for path in config.output.iterdir()} == {"r1"}
    resumed = render_all(config, quiet)
    assert (resumed.rendered, resumed.skipped) == (1, 1)
