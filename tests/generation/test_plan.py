"""What a run is asked: cameras, sampling and output of `spad generate`."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from spad.generation.config import GenerateConfig
from spad.generation.plan import MESH_CONSISTENCY, plan_generation
from spad.hub.registry import read_info, save_model_manifest


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


def test_a_given_image_has_a_guidance_of_its_own(tiny_pipeline_folder, tmp_path):
    photo, model = tmp_path / "photo.png", tmp_path / "model"
    Image.new("RGB", (8, 8)).save(photo)
    shutil.copytree(tiny_pipeline_folder, model)
    own = plan(model, tmp_path).sampling.guidance_scale
    assert plan(model, tmp_path, image=(str(photo),)).sampling.guidance_scale == own
    defaults = replace(read_info(model).defaults, guidance_scale_with_image=1.0)
    save_model_manifest(model, "other", "", ["a fish"], defaults, license="", author="")
    assert plan(model, tmp_path).sampling.guidance_scale == own != 1.0
    assert plan(model, tmp_path, image=(str(photo),)).sampling.guidance_scale == 1.0
    assert (
        plan(model, tmp_path, image=(str(photo),), guidance_scale=2.0).sampling.guidance_scale
        == 2.0
    )


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


def test_an_image_without_anything_in_it_is_refused(tiny_pipeline_folder, tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"empty\.png: expected an image of an object, got a tran"):
        plan(tiny_pipeline_folder, tmp_path, prompt="a fish", image=(str(tmp_path / "empty.png"),))


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.0),
        ({"mesh": True}, MESH_CONSISTENCY),
        ({"mesh": True, "consistency": 0.0}, 0.0),
        ({"consistency": 0.3}, 0.3),
        # Two views have no shape in common.
        ({"mesh": True, "views_per_pass": 2}, 0.0),
    ],
)
def test_views_agree_where_a_model_is_made_of_them(tmp_path, changes, share):
    settings = GenerateConfig("a red mushroom", output=tmp_path / "out", **changes)
    assert plan_generation(settings).consistency == share
