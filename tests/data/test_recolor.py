"""Objects in other colors: what captions say, what pixels change, what is packed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made_renders import SIZE, write_renders
from spad.data.config import PackConfig
from spad.data.pack import pack
from spad.data.recolor import (
    COLORS,
    is_unseen,
    kind_of,
    named_color,
    recolored,
    renamed,
    share_of,
    variants,
)
from spad.data.renders import base_uid, is_held_out, read_renders
from spad.data.shards import read_shard_folder
from spad.images.color import oklab_from_srgb, srgb_from_oklab


def ball(color: str, views: int = 2, spots: str = "white") -> np.ndarray:
    """A shaded ball in one color with a patch of another, (views, SIZE, SIZE, 4)."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    inside = np.hypot(x, y) < 0.4 * SIZE
    light = 1 - 0.5 * np.hypot(x + 3, y + 3) / SIZE
    rgba = np.zeros((SIZE, SIZE, 4), np.uint8)
    rgba[..., :3] = np.array(COLORS[color]) * light[..., None]
    rgba[4:12, 12:18, :3] = np.array(COLORS[spots]) * light[4:12, 12:18, None]
    rgba[~inside] = 0
    rgba[inside, 3] = 255
    return np.stack([np.roll(rgba, view, axis=1) for view in range(views)])


def test_oklab_is_what_its_author_says_and_comes_back():
    published = {(1, 1, 1): (1, 0, 0), (1, 0, 0): (0.62796, 0.22486, 0.12585)}
    for srgb, lab in published.items():
        np.testing.assert_allclose(oklab_from_srgb(np.array(srgb, float)), lab, atol=1e-4)
    some = np.random.default_rng(0).random((50, 3))
    np.testing.assert_allclose(srgb_from_oklab(oklab_from_srgb(some)), some, atol=1e-6)


@pytest.mark.parametrize(
    ("captions", "color"),
    [
        (["a red cow with a white face", "a red cow"], "red"),
        (["a Grey donkey"], "gray"),
        (["a gold coin"], None),
        (["a black and white husky"], None),
        (["a wooden barrel"], None),
        (["a redwood tree"], None),
        (["a mug", "a red beer mug", "a red mug", "mug, red"], "red"),
        (["a mug", "a mug with a red handle"], None),
        (["a bowl", "a bowl of orange stew"], None),
        (["a key", "a gold key", "a yellow key"], "yellow"),
    ],
)
def test_the_color_that_a_caption_names(captions, color):
    assert named_color(captions) == color


@pytest.mark.parametrize(
    ("caption", "source", "target", "expected"),
    [
        ("a red cow with a white face", "red", "orange", "an orange cow with a white face"),
        ("an orange fox", "orange", "blue", "a blue fox"),
        ("a small grey house", "gray", "pink", "a small pink house"),
        ("a red cow with a white face", "red", "white", None),
        ("a red house with a red door", "red", "blue", None),
        ("a reddish brown deer", "brown", "blue", None),
        ("an orange fish on a dish", "orange", "blue", "a blue fish on a dish"),
        ("mug, red", "red", "orange", "mug, orange"),
        ("a cap of red and white", "red", "blue", "a cap of blue and white"),
        ("a mug", "red", "blue", None),
        ("a redwood tree", "red", "blue", None),
    ],
)
def test_captions_say_the_new_color(caption, source, target, expected):
    assert renamed(caption, source, target) == expected


def test_variants_are_drawn_by_the_id_and_leave_some_combinations_out():
    captions = ["a red cow with horns", "a red cow"]
    found = variants("x", captions, 20)
    targets = {v.target for v in found}
    left_out = {c for c in COLORS if is_unseen(c, captions)}
    assert targets == set(COLORS) - {"red"} - left_out
    assert variants("x", captions, 3) == found[:3]
    assert variants("y", captions, 20) != found
    # A thing of which some color is left out.
    one = next([f"a red thing{i}"] for i in range(300) if is_unseen("blue", [f"a red thing{i}"]))
    assert "blue" not in {v.target for v in variants("x", one, 20)}
    assert all(f"{v.target} cow" in c for v in found for c in v.captions)
    assert {base_uid(v.uid) for v in found} == {"x"}
    # Of many things, about one combination in sixteen.
    things = [[f"a red thing{i}"] for i in range(300)]
    share = np.mean([is_unseen("blue", captions) for captions in things])
    assert 0.02 < share < 0.12
    assert kind_of(captions) == "cow"


def test_of_many_captions_those_that_name_the_color_follow_it():
    captions = ["a red cup", "a cup", "cup, red", "a cup with a red rim and a white foot", "a mug"]
    by_target = {v.target: v.captions for v in variants("x", captions, 20)}
    left_out = {color for color in COLORS if is_unseen(color, captions)}
    assert by_target.keys() == set(COLORS) - {"red"} - left_out
    for target, others in by_target.items():
        article = "an" if target == "orange" else "a"
        expected = [f"{article} {target} cup", f"cup, {target}"]
        if target != "white":
            expected.append(f"a cup with {article} {target} rim and a white foot")
        assert list(others) == expected
        # The sort of thing is the same by the captions of a variant, which are fewer.
        assert kind_of(others) == kind_of(captions) == "cup"


def hues(pictures: np.ndarray, where: np.ndarray) -> np.ndarray:
    lab = oklab_from_srgb(pictures[where][:, :3] / 255)
    return np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))


@pytest.mark.parametrize("source", ["red", "green", "blue", "yellow", "purple", "pink"])
def test_a_surface_gets_another_hue_in_light_and_shade_and_the_rest_stays(source):
    before = ball(source)
    target = "blue" if source != "blue" else "green"
    after = recolored(before, source, target)
    changed = (before != after).any(-1)
    patch = share_of("white", before) > 0.05
    assert patch and np.array_equal(before[..., 3], after[..., 3])
    own = share_of(source, before)
    assert changed.sum() == pytest.approx(own * (before[..., 3] > 0).sum(), rel=0.05)
    wanted = oklab_from_srgb(np.array(COLORS[target]) / 255)
    apart = hues(after, changed) - np.degrees(np.arctan2(wanted[2], wanted[1]))
    # What no screen shows is clipped, which turns the hue a little.
    assert np.abs((apart + 180) % 360 - 180).max() < 20
    lightness = [oklab_from_srgb(p[changed][:, :3] / 255)[:, 0] for p in (before, after)]
    assert np.corrcoef(*lightness)[0, 1] > 0.95


@pytest.mark.parametrize("pair", ["gray red", "red white", "red black"])
def test_from_and_to_what_has_no_hue(pair):
    source, target = pair.split()
    after = recolored(ball(source, spots="blue"), source, target)
    lab = oklab_from_srgb(after[after[..., 3] > 0][:, :3] / 255)
    median, wanted = np.median(lab, axis=0), oklab_from_srgb(np.array(COLORS[target]) / 255)
    np.testing.assert_allclose(median, wanted, atol=0.08)
    assert share_of("blue", after) > 0.02


@pytest.mark.parametrize("source", ["black", "gray", "red", "yellow"])
def test_what_becomes_white_shows_light_and_shade_and_stands_out_on_white(source):
    before = ball(source, spots="blue")
    after = recolored(before, source, "white")
    changed = (before != after).any(-1)
    was, becomes = (oklab_from_srgb(p[changed][:, :3] / 255)[:, 0] for p in (before, after))
    assert becomes.max() < 0.99 and np.median(becomes) > 0.85
    # As light as before or lighter, in the same order.
    order = np.argsort(was, kind="stable")
    assert (np.diff(becomes[order]) > -0.02).all() and np.ptp(becomes) > 0.05


def test_what_is_not_there_is_not_recolored():
    before = ball("green")
    assert np.array_equal(recolored(before, "purple", "red"), before)


@pytest.fixture
def renders(tmp_path) -> Path:
    """Balls: three red, one that is called red and is not, one held out, one of no color."""
    uids = [f"o{i}" for i in range(200)]
    held_out = next(u for u in uids if is_held_out(u))
    kept = [u for u in uids if not is_held_out(u)][:5]
    folder = write_renders(tmp_path / "renders", [*kept, held_out])
    rows = [json.loads(line) for line in (folder / "objects.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        color = "green" if number == 3 else "red"
        for view, picture in enumerate(ball(color, row["num_views"])):
            Image.fromarray(picture).save(folder / row["folder"] / f"images/{view:03d}.png")
        record = folder / row["folder"] / "transforms.json"
        made = json.loads(record.read_text())
        del made["pictures_sha256"]
        record.write_text(json.dumps(made))
        word = "round" if number == 4 else "red"
        row["captions"] = [f"a {word} thing with a white spot", f"a {word} thing{number}"]
    (folder / "objects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_variants_are_packed_beside_their_objects(renders, tmp_path):
    config = PackConfig(renders, tmp_path / "shards", recolor=2)
    pack(config)
    objects = {one.uid: one for one in read_renders(config.output)}
    originals = {one.uid: one for one in read_renders(renders)}
    others = objects.keys() - originals.keys()
    assert {base_uid(uid) for uid in others} == set(list(originals)[:3]) and len(others) == 6
    for uid in others:
        target = uid.partition("~")[2]
        assert all(f"{target} thing" in caption for caption in objects[uid].captions)
        drawn, was = (one.images() for one in (objects[uid], originals[base_uid(uid)]))
        assert drawn.shape == was.shape and not np.array_equal(drawn, was)
    for uid, one in originals.items():
        assert np.array_equal(objects[uid].images(), one.images())
        assert objects[uid].captions == one.captions
    # In a listing of shards every object comes behind the one it was made of.
    order = list(objects)
    assert all(base_uid(uid) in order[: order.index(uid)] for uid in others)
    again = replace(config, output=tmp_path / "again", workers=1)
    pack(again)
    shards = [read_shard_folder(c.output).shards for c in (config, again)]
    assert [s.path.read_bytes() for s in shards[0]] == [s.path.read_bytes() for s in shards[1]]


def test_negative_numbers_are_refused(renders, tmp_path):
    with pytest.raises(ValueError, match="recolor of at least 0"):
        PackConfig(renders, tmp_path / "shards", recolor=-1)
