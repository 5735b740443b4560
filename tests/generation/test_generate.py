"""spad.generation: what a run leaves behind, and what it is asked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spad.cameras import Cameras, load_cameras
from spad.generation.config import GenerateConfig
from spad.generation.generate import plan_generation
from spad.generation.results import save_many_results, save_results
from spad.hub.registry import read_info, save_model_manifest
from spad.images.grids import prompt_grid, save_turntable, view_grid


def pictures(count: int, side: int = 16) -> list[Image.Image]:
    """Pictures of one colour each, all different."""
    return [Image.new("RGB", (side, side), (10 * i, 255 - 10 * i, 60)) for i in range(count)]


def cameras(count: int) -> Cameras:
    return Cameras.ring(count, elevation_deg=20.0, height=16, width=16)


def test_all_files_are_there_and_true(tmp_path):
    folder = tmp_path / "deep" / "out"
    views, placed = pictures(3), cameras(3)
    save_results(folder, views, placed, {"prompts": ["a"], "seed": 3})
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
    prompts = {"A blue fish!": pictures(2), "a rock": pictures(2)}
    save_many_results(tmp_path / "out", prompts, cameras(2), {"prompts": list(prompts)})
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "000-a-blue-fish", "001-a-rock", "grid.png", "run.json",
    ]  # fmt: skip
    for folder, prompt in zip(sorted(out.glob("00*")), prompts, strict=True):
        assert json.loads((folder / "run.json").read_text())["prompts"] == [prompt]
        for name in ("images/001.png", "grid.png", "transforms.json", "turntable.webp"):
            assert (folder / name).is_file()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_turntable_has_every_view_by_azimuth_and_loops(tmp_path, count):
    path = tmp_path / "turntable.webp"
    views = pictures(count)
    # From view 0 on: 350, 80, 170 ... degrees, given in reverse order after the first.
    azimuth = [350.0] + [350.0 + 60 * i for i in range(count - 1, 0, -1)]
    save_turntable(path, [views[0], *views[:0:-1]], azimuth)
    with Image.open(path) as animation:
        assert animation.n_frames == count
        assert count == 1 or animation.info["loop"] == 0
        for index, view in enumerate(views):
            animation.seek(index)
            frame = np.asarray(animation.convert("RGB"), dtype=int)
            assert np.abs(frame - np.asarray(view, dtype=int)).max() < 12


@pytest.mark.parametrize(
    "count, columns, rows", [(1, 1, 1), (4, 4, 1), (6, 6, 1), (8, 4, 2), (12, 4, 3), (40, 8, 5)]
)
def test_grid_fills_its_rows(count, columns, rows):
    grid = view_grid(pictures(1) * count)
    assert grid.size == (columns * 18 - 2, rows * 18 - 2)


def test_grid_has_the_views_in_order():
    views = pictures(8)
    grid = np.asarray(view_grid(views))
    for index, view in enumerate(views):
        row, column = divmod(index, 4)
        tile = grid[row * 18 : row * 18 + 16, column * 18 : column * 18 + 16]
        assert np.array_equal(tile, view)


def test_prompt_grid_writes_captions_and_cuts_long_ones():
    short = np.asarray(prompt_grid({"hi": pictures(4, 64)}))
    assert short[64:].min() < 100, "no ink below the views"
    long = prompt_grid({"word " * 200: pictures(4, 64), "日本": pictures(4, 64)})
    assert long.width == 4 * 66 - 2


def test_overwrite_replaces_only_what_a_run_made(tmp_path):
    out = tmp_path / "out"
    save_results(out, pictures(2), cameras(2), {"seed": 1})
    with pytest.raises(ValueError, match="exists; use --overwrite"):
        save_results(out, pictures(1), cameras(1), {"seed": 2})
    save_results(out, pictures(1), cameras(1), {"seed": 2}, overwrite=True)
    assert json.loads((out / "run.json").read_text())["seed"] == 2
    assert not (out / "images" / "001.png").exists()
    assert list(tmp_path.iterdir()) == [out]

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no run.json"):
        save_results(mine, pictures(1), cameras(1), {}, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"


def plan(tiny: Path, tmp_path: Path, **changes):
    changes = {"prompt": "a fish", **changes}
    return plan_generation(GenerateConfig(model=str(tiny), output=tmp_path / "out", **changes))


def test_orbits_fill_in_what_is_left_out(tiny_pipeline_folder, tmp_path):
    orbit = plan(tiny_pipeline_folder, tmp_path).orbit
    assert orbit.azimuth_deg == (-60, 30, 120, 210)
    assert orbit.elevation_deg == (20.0,) * 4
    orbit = plan(tiny_pipeline_folder, tmp_path, elevation=(10.0, 20.0, 30.0)).orbit
    assert orbit.azimuth_deg == (-60, 60, 180)
    orbit = plan(tiny_pipeline_folder, tmp_path, views=2, azimuth=(0.0, 5.0), radius=(2.0,)).orbit
    assert (orbit.azimuth_deg, orbit.radius) == ((0.0, 5.0), (2.0, 2.0))


def test_one_azimuth_alone_serves_every_view(tiny_pipeline_folder, tmp_path):
    orbit = plan(tiny_pipeline_folder, tmp_path, azimuth=(7.0,), elevation=(0.0, 90.0)).orbit
    assert orbit.azimuth_deg == (7.0, 7.0)
    # Without another list there is one such view, not several that are the same.
    assert plan(tiny_pipeline_folder, tmp_path, azimuth=(7.0,)).orbit.azimuth_deg == (7.0,)


def test_settings_left_out_are_the_models_own(tiny_pipeline_folder, tmp_path):
    planned = plan(tiny_pipeline_folder, tmp_path, guidance_scale=2.0)
    sampling = planned.sampling
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (2, 2.0)
    assert (sampling.scheduler, planned.image_size) == ("ddim", 128)


def test_a_given_picture_has_a_guidance_of_its_own(tiny_pipeline_folder, tmp_path):
    photo, model = tmp_path / "photo.png", tmp_path / "model"
    Image.new("RGB", (8, 8)).save(photo)
    shutil.copytree(tiny_pipeline_folder, model)
    own = plan(model, tmp_path).sampling.guidance_scale
    assert plan(model, tmp_path, image=photo).sampling.guidance_scale == own
    defaults = replace(read_info(model).defaults, guidance_scale_with_image=1.0)
    save_model_manifest(model, "other", "", ["a fish"], defaults, license="", author="")
    assert plan(model, tmp_path).sampling.guidance_scale == own != 1.0
    assert plan(model, tmp_path, image=photo).sampling.guidance_scale == 1.0
    assert plan(model, tmp_path, image=photo, guidance_scale=2.0).sampling.guidance_scale == 2.0


def test_default_output_never_exists(tiny_pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = GenerateConfig("A fish", model=str(tiny_pipeline_folder), seed=3)
    assert plan_generation(settings).output == Path("spad-out/a-fish-3")
    Path("spad-out/a-fish-3").mkdir(parents=True)
    assert plan_generation(settings).output == Path("spad-out/a-fish-3-2")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"preset": "lgm", "views": 4}, "leave out --views"),
        ({"save_for": "lgm", "azimuth": (0.0,)}, "leave out --azimuth"),
        ({"preset": "lgm", "save_for": "trellis"}, "got --preset lgm and --save-for trellis"),
        ({"preset": "lgm", "radius": (1.0, 2.0)}, "one value of --radius"),
        ({"preset": "paint3d"}, "one of zero123plus-v1.1"),
    ],
)
def test_cameras_come_from_one_place(tiny_pipeline_folder, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        plan(tiny_pipeline_folder, tmp_path, **changes)


def test_saving_for_a_tool_takes_its_cameras(tiny_pipeline_folder, tmp_path):
    orbits = [
        plan(tiny_pipeline_folder, tmp_path, **changes).orbit
        for changes in (
            {"preset": "era3d"},
            {"save_for": "era3d"},
            {"preset": "era3d", "save_for": "era3d"},
        )
    ]
    assert orbits[0].azimuth_deg == (-90, -45, 0, 90, 180, 225)
    assert orbits[1:] == orbits[:1] * 2
