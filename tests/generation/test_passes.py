"""Laws of views in passes: every view once, so many at a time, and one pass as without passes."""

import numpy as np
import pytest
import torch
from PIL import Image

from spad.cameras import Cameras
from spad.files import RECORD, read_json
from spad.generation import sampling
from spad.generation.config import GenerateConfig
from spad.generation.generate import draw
from spad.generation.many_prompts import REQUEST
from spad.generation.passes import generate_in_passes, plan_passes
from spad.generation.plan import plan_generation
from spad.model import SPADPipeline


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder) -> SPADPipeline:
    made = SPADPipeline.from_pretrained(tiny_pipeline_folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def scattered(count: int) -> Cameras:
    draws = torch.rand(2, count, generator=torch.Generator().manual_seed(count))
    return Cameras.orbit(draws[0] * 160 - 80, draws[1] * 360, height=32, width=32)


def at_one_place(count: int) -> Cameras:
    return Cameras.orbit([10.0] * count, 30.0, height=32, width=32)


@pytest.mark.parametrize("views_per_pass", [2, 3, 8])
@pytest.mark.parametrize("rig", [Cameras.ring, scattered, at_one_place])
@pytest.mark.parametrize("given", [(), (4,), tuple(range(9))])
def test_every_view_is_drawn_once_and_passes_are_no_larger(rig, views_per_pass, given):
    cameras = rig(17)
    passes = plan_passes(cameras, views_per_pass, given)
    assert passes == plan_passes(cameras, views_per_pass, given)
    drawn = [view for one in passes for view in one.drawn]
    assert sorted([*drawn, *given]) == list(range(17))
    finished = set(given)
    for one in passes:
        assert len(one.views) <= views_per_pass and one.drawn
        # Only finished views are held, and as many as fit.
        assert set(one.held) <= finished
        assert len(one.views) == min(views_per_pass, len(finished) + len(one.drawn))
        finished |= set(one.drawn)


def test_anchors_are_spread_and_the_others_have_their_nearest_finished_views():
    passes = plan_passes(Cameras.ring(24), 8)
    assert passes[0].drawn == (0, 3, 6, 9, 12, 15, 18, 21) and not passes[0].held
    assert len(passes) == 5
    finished = set(passes[0].drawn)
    for one in passes[1:]:
        for view in one.drawn:
            steps = {other: min((view - other) % 24, (other - view) % 24) for other in finished}
            assert any(steps[held] == min(steps.values()) for held in one.held)
        finished |= set(one.drawn)


@pytest.mark.parametrize("given", [{}, {1: Image.new("RGB", (20, 30), "red")}])
def test_a_pass_of_all_views_gives_what_the_pipeline_does(pipeline, given):
    cameras, options = Cameras.ring(3, height=32, width=32), {"prompt": "a blue fish"}
    expected = pipeline(cameras=cameras, views=given, seed=5, **options).images[0]
    for views_per_pass in (None, 3, 9):
        found = generate_in_passes(
            pipeline, cameras, views_per_pass, views=given, seed=5, **options
        )
        for view, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert view in given or np.array_equal(one, other)


def test_a_view_of_the_first_pass_starts_from_its_noise_among_all(pipeline):
    cameras = Cameras.ring(5, height=32, width=32)
    noise = torch.randn(1, 5, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    found = generate_in_passes(pipeline, cameras, 2, prompt="a blue fish")
    first = list(plan_passes(cameras, 2)[0].drawn)
    alone = pipeline("a blue fish", cameras[first], latents=noise[:, first]).images[0]
    for view, one in zip(first, alone, strict=True):
        assert np.array_equal(found[view], one)


@pytest.mark.parametrize(
    ("views_per_pass", "given", "words"),
    [(1, (), "expected 2 or more views per pass"), (2, (7,), "given views among 0 to 3, got 7")],
)
def test_impossible_passes_are_refused(views_per_pass, given, words):
    with pytest.raises(ValueError, match=words):
        plan_passes(Cameras.ring(4), views_per_pass, given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": ["a fish", "a rock"]}, "expected one prompt, got 2"),
        ({"prompt": "a fish", "image": Image.new("RGB", (8, 8))}, "images as views .* got image"),
    ],
)
def test_what_is_of_one_pass_is_refused(pipeline, options, words):
    with pytest.raises(ValueError, match=words):
        generate_in_passes(pipeline, Cameras.ring(4), 2, **options)


def test_a_stopped_run_keeps_its_passes_and_goes_on(
    tiny_pipeline_folder, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    asked: list[int] = []
    load, most = sampling.load_model, 1

    def loaded(*args):
        pipeline = load(*args)

        class Stopping(type(pipeline)):
            def __call__(self, *args, cameras, **options):
                if len(asked) == most:
                    raise KeyboardInterrupt
                asked.append(len(cameras))
                return super().__call__(*args, cameras=cameras, **options)

        pipeline.__class__ = Stopping
        return pipeline

    monkeypatch.setattr(sampling, "load_model", loaded)

    def run(output: str, **changes):
        settings = {"prompt": "a blue fish", "model": str(tiny_pipeline_folder), "device": "cpu"}
        settings |= {"views": 4, "views_per_pass": 2, "steps": 1, "image_size": 16}
        settings |= {"output": tmp_path / output} | changes
        return draw(plan_generation(GenerateConfig(**settings)))

    with pytest.raises(KeyboardInterrupt):
        run("out")
    assert (tmp_path / "out" / REQUEST).exists() and not (tmp_path / "out" / RECORD).exists()
    with pytest.raises(ValueError, match="was begun, got another views_per_pass"):
        run("out", views_per_pass=3)
    most = 99
    stopped = run("out")
    assert asked == [2, 2, 2] and "pass 2 of 3: views 1" in caplog.text
    assert read_json(stopped / RECORD, dict)["views_per_pass"] == 2
    names = ["grid.png", "images", RECORD, "transforms.json", "turntable.webp"]
    assert sorted(file.name for file in stopped.iterdir()) == names
    again = run("again", prompt=None, from_run=stopped, views=None, views_per_pass=None)
    files = [sorted((folder / "images").iterdir()) for folder in (stopped, again)]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    assert len(files[0]) == 4 and len(asked) == 6


def test_views_of_a_pass_are_made_to_agree_with_each_other(pipeline):
    seen = []

    def callback_of(cameras: Cameras):
        seen.append(len(cameras))
        return lambda run, step, timestep, tensors: {}

    generate_in_passes(
        pipeline,
        scattered(4),
        3,
        prompt="a blue fish",
        callback_of=callback_of,
        num_inference_steps=1,
    )
    assert seen == [3, 3]
