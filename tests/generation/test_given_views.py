"""Views that are given to `spad generate`, and views of an earlier folder that are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spad.cameras import load_cameras
from spad.generation.config import GenerateConfig
from spad.generation.generate import draw
from spad.generation.given_views import hold_views, parse_views
from spad.generation.plan import plan_generation


@pytest.fixture(scope="module")
def drawn(tiny_pipeline_folder, tmp_path_factory) -> Path:
    """Three views of "a blue fish", the first and last of them given."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, color in (("a.png", "red"), ("2=b.png", "green")):
        Image.new("RGB", (64, 64), color).save(folder / name)
    settings = GenerateConfig(
        "a blue fish",
        model=str(tiny_pipeline_folder),
        views=3,
        image=(f"{folder / 'a.png'}", f"2={folder / '2=b.png'}"),
        device="cpu",
        dtype="float32",
        output=folder / "out",
    )
    return draw(plan_generation(settings))


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(f)) for f in sorted((folder / "images").iterdir())])


def test_given_views_are_written_as_they_were_given(drawn):
    images = pixels(drawn)
    assert images.shape == (3, 128, 128, 3)
    assert (images[0] == (255, 0, 0)).all() and (images[2] == (0, 128, 0)).all()


def test_views_of_a_folder_are_kept_and_others_drawn_again(drawn, tmp_path):
    hold = GenerateConfig(
        hold=drawn, redraw=(1,), seed=1, device="cpu", dtype="float32", output=tmp_path / "again"
    )
    plan = plan_generation(hold)
    assert (plan.prompts, plan.model.name) == (("a blue fish",), "tiny")
    again = draw(plan)
    before, after = pixels(drawn), pixels(again)
    assert np.array_equal(before[::2], after[::2]) and not np.array_equal(before[1], after[1])
    cameras = [load_cameras(folder / "transforms.json").cameras for folder in (drawn, again)]
    assert cameras[0].world_from_cam.allclose(cameras[1].world_from_cam, atol=1e-6)
    rerun = GenerateConfig(from_run=again, output=tmp_path / "rerun")
    assert np.array_equal(pixels(draw(plan_generation(rerun))), after)
    # Nothing is kept where all is drawn again.
    assert hold_views(replace(hold, redraw=(0, 1, 2))).image is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"redraw": None}, "expected --hold FOLDER and --redraw VIEWS together"),
        ({"redraw": (3,)}, "expected --redraw of views 0 to 2, got 3"),
        ({"views": 3, "image": ("a.png",)}, "from --hold alone, got --image, --views too"),
        ({"hold": Path("missing")}, r"transforms\.json: expected a readable file"),
    ],
)
def test_folders_that_cannot_be_held_are_refused(drawn, changes, message):
    with pytest.raises(ValueError, match=message):
        plan_generation(replace(GenerateConfig(hold=drawn, redraw=(1,)), **changes))


def test_files_are_those_of_the_views_that_they_name():
    assert parse_views(["a.png", "2=b=c.png", "10=x/y.png"]) == {
        0: Path("a.png"),
        2: Path("b=c.png"),
        10: Path("x/y.png"),
    }
    for entries in (["a.png", "b.png"], ["1=a.png", "1=b.png"]):
        with pytest.raises(ValueError, match="one file per view, as in 0=front.png 2=back.png"):
            parse_views(entries)
    with pytest.raises(ValueError, match="a prompt goes before --image"):
        plan_generation(GenerateConfig(image=("photo.png", "a blue fish")))


def test_a_view_that_is_not_generated_is_refused(drawn):
    with pytest.raises(ValueError, match="--image for views 0 to 1, got one for view 2"):
        plan_generation(GenerateConfig("a fish", views=2, image=(f"2={drawn / 'grid.png'}",)))
