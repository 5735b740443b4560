"""Reading sets of views from the folders people have, and what is wrong with them."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from judged_sets import true_set
from spad.cameras import Cameras, save_colmap, save_transforms
from spad.data.config import PackConfig
from spad.data.pack import pack
from spad.data.renders import list_sets
from spad.data.view_sets import ViewSet, set_from_images
from spad.generation.results import prompt_folders, write_summary, write_views
from spad.images.alpha import estimate_alpha

CAMERAS = Cameras.ring(3, height=32, width=32)


def read_sets(source) -> list[ViewSet]:
    return [views.read() for views in list_sets(source)]


def disc(radius: float = 9) -> np.ndarray:
    """A red disc with alpha, uint8 (32, 32, 4)."""
    y, x = np.mgrid[:32, :32] - 15.5
    inside = x**2 + y**2 < radius**2
    return np.where(inside[..., None], [200, 30, 40, 255], 0).astype(np.uint8)


def on_white(picture: np.ndarray) -> Image.Image:
    return Image.alpha_composite(
        Image.new("RGBA", (32, 32), "white"), Image.fromarray(picture)
    ).convert("RGB")


def write_set(folder, pictures=None, cameras=CAMERAS):
    pictures = [Image.fromarray(disc())] * len(cameras) if pictures is None else pictures
    folder.mkdir(parents=True)
    names = [f"{view}.png" for view in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(folder / name)
    save_transforms(folder / "transforms.json", cameras, names)
    return folder


def test_what_spad_generate_writes(tmp_path):
    views = [on_white(disc())] * 3
    (tmp_path / "one").mkdir()
    write_views(tmp_path / "one", views, CAMERAS, {"prompts": ["a red ball"]})
    (one,) = read_sets(tmp_path / "one")
    assert (one.name, one.prompt, len(one)) == ("one", "a red ball", 3)
    assert one.alpha_is_estimated and one.alpha[0, 16, 16] == 1 and one.alpha[0, 0, 0] == 0
    torch.testing.assert_close(one.cameras.world_from_cam, CAMERAS.world_from_cam)
    folders = prompt_folders(tmp_path / "many", ["a ball", "a disc"])
    for prompt, folder in folders.items():
        folder.mkdir(parents=True)
        write_views(folder, views, CAMERAS, {"prompts": [prompt]})
    write_summary(tmp_path / "many", folders, CAMERAS, {})
    assert [(s.uid, s.prompt) for s in list_sets(tmp_path / "many")] == [
        ("000-a-ball", "a ball"),
        ("001-a-disc", "a disc"),
    ]


def test_renders_and_their_shards_hold_the_same_sets(renders, tmp_path):
    pack(PackConfig(renders, tmp_path / "shards", workers=1))
    first, packed = read_sets(renders), read_sets(tmp_path / "shards")
    assert [s.name for s in first] == [f"object{i}" for i in range(6)]
    assert [(s.name, s.prompt) for s in packed] == [(s.name, s.prompt) for s in first]
    for one, other in zip(first, packed, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.alpha, other.alpha)
        assert not one.alpha_is_estimated and one.prompt.startswith("disc")
    assert (first[0].images[0, :, 0, 0] == 1).all()


def test_one_rendered_object_knows_its_caption(renders, tmp_path):
    folder = shutil.copytree(renders / "object2", tmp_path / "object2")
    record = json.loads((folder / "transforms.json").read_text()) | {"captions": ["disc 2", "disc"]}
    (folder / "transforms.json").write_text(json.dumps(record))
    (one,) = list_sets(folder)
    assert (one.uid, one.prompt) == ("object2", "disc 2")


def test_colmap_and_camera_files_of_others(tmp_path):
    folder = write_set(tmp_path / "scene" / "images")
    (folder / "transforms.json").unlink()
    save_colmap(tmp_path / "scene/sparse/0", CAMERAS, [f"{view}.png" for view in range(3)])
    (one,) = read_sets(tmp_path / "scene")
    assert (one.name, one.prompt, one.alpha_is_estimated) == ("scene", None, False)
    (other,) = read_sets(write_set(tmp_path / "plain") / "transforms.json")
    assert other.name == "plain" and torch.equal(one.images, other.images)


def test_alpha_told_from_white_is_nearly_the_true_one():
    true = true_set("chair", 4)
    estimated, mask = estimate_alpha(true.images) > 0.5, true.alpha > 0.5
    assert (estimated & mask).sum() / (estimated | mask).sum() > 0.95


def test_no_number_of_a_picture_is_outside_0_to_1():
    images, alpha = torch.rand(3, 3, 32, 32), torch.ones(3, 32, 32)
    images[1, 0, 4, 4] = torch.nan
    with pytest.raises(ValueError, match="NaN or numbers outside in view 1"):
        ViewSet("broken", None, images, alpha, CAMERAS)
    with pytest.raises(ValueError, match=r"images of shape \(3, 3, 32, 32\), as its 3 cameras"):
        ViewSet("broken", None, images[:2], alpha, CAMERAS)
    with pytest.raises(ValueError, match="alpha in float32, got torch.bool"):
        ViewSet("broken", None, torch.rand(3, 3, 32, 32), alpha > 0, CAMERAS)


def test_opaque_pictures_need_a_white_background():
    pictures = np.full((3, 32, 32, 3), 90, np.uint8)
    with pytest.raises(ValueError, match="gray: expected images with alpha or on white"):
        set_from_images("gray", pictures, CAMERAS)


def test_alpha_in_all_pictures_or_in_none():
    pictures = np.stack([disc()] * 3)
    pictures[1, ..., 3] = 255
    with pytest.raises(ValueError, match="got an opaque view 1 beside others with alpha"):
        set_from_images("some", pictures, CAMERAS)


def test_pictures_of_floats_are_refused():
    with pytest.raises(ValueError, match="expected images as uint8"):
        set_from_images("floats", np.zeros((3, 32, 32, 3)), CAMERAS)


def small(picture):
    return Image.fromarray(disc()).resize((16, 16))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "1.png").unlink(), "expected the image '1.png' of view 1"),
        (lambda f: (f / "1.png").write_bytes(b"no picture"), "1.png: expected a readable image"),
        (lambda f: small(f).save(f / "1.png"), "1.png: expected 32x32 pixels .* got 16x16"),
        (
            lambda f: Image.fromarray(np.full((32, 32), np.nan, "f")).save(f / "1.png", "TIFF"),
            "1.png: expected a readable image: expected gray values, got NaN",
        ),
        (lambda f: (f / "transforms.json").write_text("{"), "transforms.json: expected"),
    ],
)
def test_damaged_sets_are_named(tmp_path, break_it, message):
    folder = write_set(tmp_path / "set")
    break_it(folder)
    with pytest.raises(ValueError, match=message):
        read_sets(folder)


def test_folders_without_sets(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        list_sets(tmp_path / "absent")
    with pytest.raises(ValueError, match="expected views with cameras in"):
        list_sets(tmp_path)
    write_set(tmp_path / "good")
    (tmp_path / "pictures only").mkdir()
    with pytest.raises(ValueError, match="got none in pictures only"):
        list_sets(tmp_path)
