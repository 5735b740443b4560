"""The folder that a run leaves: complete, true, and replaced only where a run made it."""

import json

import numpy as np
import pytest
from PIL import Image

from spad.cameras import Cameras, load_cameras
from spad.files import whole_folder
from spad.generation.results import prompt_folders, write_summary, write_views


def plain_images(count: int, side: int = 16) -> list[Image.Image]:
    """Images of one color each, all different."""
    return [Image.new("RGB", (side, side), (10 * i, 255 - 10 * i, 60)) for i in range(count)]


def cameras(count: int) -> Cameras:
    return Cameras.ring(count, elevation_deg=20.0, height=16, width=16)


def test_all_files_are_there_and_true(tmp_path):
    folder = tmp_path / "deep" / "out"
    views, placed = plain_images(3), cameras(3)
    folder.mkdir(parents=True)
    write_views(folder, views, placed, {"prompts": ["a"], "seed": 3})
    for index, view in enumerate(views):
        with Image.open(folder / "images" / f"{index:03d}.png") as saved:
            assert np.array_equal(saved, view)
    loaded = load_cameras(folder / "transforms.json")
    assert loaded.image_paths == ("images/000.png", "images/001.png", "images/002.png")
    np.testing.assert_allclose(loaded.cameras.world_from_cam, placed.world_from_cam, atol=1e-6)
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 3
    np.testing.assert_allclose(record["cameras"]["intrinsics"], placed.intrinsics, rtol=1e-6)
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_many_prompts_give_complete_folders_and_one_grid(tmp_path):
    prompts = {"A blue fish!": plain_images(2), "a rock": plain_images(2)}
    out = tmp_path / "out"
    folders = prompt_folders(out, list(prompts))
    for prompt, place in folders.items():
        place.mkdir(parents=True)
        write_views(place, prompts[prompt], cameras(2), {"prompts": [prompt]})
    write_summary(out, folders, cameras(2), {"prompts": list(prompts)})
    assert sorted(p.name for p in out.iterdir()) == [
        "000-a-blue-fish", "001-a-rock", "grid.png", "run.json",
    ]  # fmt: skip
    for folder, prompt in zip(sorted(out.glob("00*")), prompts, strict=True):
        assert json.loads((folder / "run.json").read_text())["prompts"] == [prompt]
        for name in ("images/001.png", "grid.png", "transforms.json", "turntable.webp"):
            assert (folder / name).is_file()


def save(folder, count: int, overwrite: bool = False) -> None:
    with whole_folder(folder, overwrite) as unfinished:
        write_views(unfinished, plain_images(count), cameras(count), {"seed": count})


def test_overwrite_replaces_only_what_a_run_made(tmp_path):
    out = tmp_path / "out"
    save(out, 2)
    with pytest.raises(ValueError, match="exists; use --overwrite"):
        save(out, 1)
    save(out, 1, overwrite=True)
    assert json.loads((out / "run.json").read_text())["seed"] == 1
    assert not (out / "images" / "001.png").exists()
    assert list(tmp_path.iterdir()) == [out]

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no run.json"):
        save(mine, 1, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
