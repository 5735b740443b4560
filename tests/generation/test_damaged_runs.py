"""A damaged `run.json`: read as settings that hold, or refused with its name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damaged, damaged_json
from spad.cameras import Cameras, load_cameras, save_transforms
from spad.cameras.formats import cameras_record
from spad.generation.config import GenerateConfig
from spad.generation.earlier_run import read_earlier_run
from spad.generation.given_views import hold_views

CAMERAS = Cameras.ring(2, height=64, width=64)
RUN = {
    "command": ["spad", "generate", "a fish"],
    "prompts": ["a fish"],
    "model": "mini",
    "model_sha256": "0" * 64,
    "versions": {"spad": "1", "torch": "2"},
    "seed": 3,
    "num_inference_steps": 4,
    "guidance_scale": 2.5,
    "image_sha256": [],
    "cameras": cameras_record(CAMERAS),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of an earlier run, as far as its records go."""
    made = tmp_path_factory.mktemp("earlier") / "run"
    (made / "images").mkdir(parents=True)
    names = ["images/000.png", "images/001.png"]
    for name in names:
        (made / name).touch()
    save_transforms(made / "transforms.json", CAMERAS, names)
    return made


@settings(max_examples=40)
@given(st.data())
def test_a_damaged_run_is_named(folder, data):
    path = folder / "run.json"
    content = damaged_json(data, json.dumps(RUN)).encode()
    if data.draw(st.booleans()):
        content = damaged(data, content)
    path.write_bytes(content)
    for read in (
        lambda: read_earlier_run(GenerateConfig(from_run=path)),
        lambda: hold_views(GenerateConfig(hold=folder, redraw=(1,))),
        lambda: load_cameras(path),
    ):
        try:
            read()
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_an_undamaged_run_is_read(folder):
    (folder / "run.json").write_text(json.dumps(RUN))
    both, run = read_earlier_run(GenerateConfig(from_run=folder))
    assert (both.seed, both.steps, both.guidance_scale) == (3, 4, 2.5)
    assert run.prompts == ("a fish",)
    held = hold_views(GenerateConfig(hold=folder, redraw=(1,)))
    assert (held.prompt, held.image) == ("a fish", (f"0={folder / 'images/000.png'}",))
