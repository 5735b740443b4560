"""The best of several sets: the one that is consistent and like the prompt."""

import math

import pytest
from PIL import Image, ImageDraw

from spad.cameras import Cameras
from spad.evaluation.best_of import LIKENESS, choose_best
from spad.visualize.toy_bear import render_stand_in

CAMERAS = Cameras.ring(4, elevation_deg=20.0, height=48, width=48)


@pytest.fixture(scope="module")
def bear() -> list[Image.Image]:
    images, _ = render_stand_in(CAMERAS, samples_per_side=1)
    return [Image.fromarray(image) for image in images]


def test_consistent_views_win_wherever_they_stand(bear):
    mixed = [bear[0], bear[0].rotate(40, fillcolor="white"), *bear[2:]]
    copied = [bear[0]] * 4
    empty = [Image.new("RGB", bear[0].size, "white")] * 4
    sets = [mixed, copied, bear, empty]
    for turn in (0, 3):
        turned = sets[turn:] + sets[:turn]
        best, scores = choose_best("a brown bear", CAMERAS, turned)
        assert turned[best] is bear
        assert len(scores) == 4 and LIKENESS in scores[0]


def test_likeness_decides_between_sets_that_are_equally_consistent():
    def balls(color: str) -> list[Image.Image]:
        image = Image.new("RGB", (48, 48), "white")
        ImageDraw.Draw(image).ellipse((10, 10, 38, 38), fill=color)
        return [image] * 4

    for color, other in (("red", "blue"), ("blue", "red")):
        best, scores = choose_best(f"a {color} apple", CAMERAS, [balls(other), balls(color)])
        assert scores[1][LIKENESS] > scores[0][LIKENESS], scores
        assert best == 1


def test_prompts_without_a_known_word_are_judged_by_consistency_alone(bear):
    empty = [Image.new("RGB", bear[0].size, "white")] * 4
    best, scores = choose_best("xyzzy", CAMERAS, [empty, bear])
    assert best == 1 and all(math.isnan(of_set[LIKENESS]) for of_set in scores)
