"""Novel views against the truth: laws of the scores."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from spad.cameras import Cameras
from spad.data.view_sets import PosedImages, ViewSet
from spad.evaluation.novel_views import NOVEL_COLUMNS, NovelViews, read_truth, score_novel_views

SIZE = 48


def blobs(shift: float = 0.0, radius: float = 0.4, blank: bool = False) -> ViewSet:
    """Three views of a striped disc, moving to the right."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    images, alpha = torch.ones(3, 3, SIZE, SIZE), torch.zeros(3, SIZE, SIZE)
    for view in range(3):
        inside = ((x - 0.25 * view - shift + 0.2) ** 2 + y**2).sqrt() < radius
        alpha[view] = inside.float()
        stripes = 0.4 + 0.3 * torch.sin(9 * x + view)
        images[view] = torch.where(inside, stripes, 1.0)
    if blank:
        images[1:], alpha[1:] = 1, 0
    return ViewSet("disc", "a disc", images, alpha, Cameras.ring(3, height=SIZE, width=SIZE))


def test_the_truth_itself_scores_best():
    scores = score_novel_views(NovelViews(blobs(), blobs()))
    assert set(scores) == {column.name for column in NOVEL_COLUMNS}
    assert scores["novel_psnr"] == scores["novel_psnr_masked"] == 60
    for name in ("novel_ssim", "novel_ssim_masked", "novel_iou"):
        assert scores[name] == pytest.approx(1)
    assert scores["novel_gain_db"] > 20


def test_farther_off_is_worse():
    scores = [score_novel_views(NovelViews(blobs(), blobs(shift))) for shift in (0.05, 0.15, 0.4)]
    for name in scores[0]:
        assert scores[0][name] > scores[1][name] > scores[2][name], name


def test_the_input_view_is_not_scored():
    truth, generated = blobs(), blobs(0.1)
    before = score_novel_views(NovelViews(truth, generated))
    generated.images[0] = 0.3
    generated.alpha[0] = 1
    assert score_novel_views(NovelViews(truth, generated)) == before


def test_showing_the_picture_again_gains_nothing():
    truth = blobs()
    copied = ViewSet(
        "disc", None, truth.images[:1].repeat(3, 1, 1, 1), truth.alpha[:1].repeat(3, 1, 1),
        truth.cameras,
    )  # fmt: skip
    assert score_novel_views(NovelViews(truth, copied))["novel_gain_db"] == pytest.approx(0)


def test_white_pixels_flatter_only_the_whole_picture():
    small = blobs(radius=0.1), blobs(0.3, radius=0.1)
    scores = score_novel_views(NovelViews(*small))
    assert scores["novel_psnr"] > scores["novel_psnr_masked"] + 10
    assert scores["novel_iou"] == 0


def test_masked_scores_of_nothing_are_undefined():
    nothing = blobs(blank=True)
    scores = score_novel_views(NovelViews(nothing, nothing))
    assert math.isnan(scores["novel_psnr_masked"]) and math.isnan(scores["novel_ssim_masked"])


def test_views_must_belong_together():
    one = blobs()
    with pytest.raises(ValueError, match="expected views like the renders"):
        NovelViews(one, ViewSet("x", None, one.images[:2], one.alpha[:2], one.cameras[:2]))
    with pytest.raises(ValueError, match="expected 2 views or more"):
        single = ViewSet("x", None, one.images[:1], one.alpha[:1], one.cameras[:1])
        NovelViews(single, single)


def test_the_truth_is_read_at_most_as_large_as_the_model_draws(tmp_path):
    paths = []
    for view in range(3):
        pixels = np.zeros((32, 32, 4), np.uint8)
        pixels[8:24, 8 + view : 20 + view] = (200, 30, 30, 255)
        paths.append(tmp_path / f"{view}.png")
        Image.fromarray(pixels).save(paths[-1])
    cameras = Cameras.ring(3, height=32, width=32)
    views = PosedImages("thing", ("a thing",), cameras, tuple(map(str, paths)))
    whole, small = read_truth(views, [2, 0], 64), read_truth(views, [2, 0], 16)
    assert whole.images.shape == (2, 3, 32, 32) and small.images.shape == (2, 3, 16, 16)
    assert whole.prompt == "a thing" and not whole.alpha_is_estimated
    torch.testing.assert_close(small.images.mean((2, 3)), whole.images.mean((2, 3)))
    torch.testing.assert_close(small.cameras.fov_rad, cameras.fov_rad[:2])
    oblong = PosedImages(
        "wide", ("x",), Cameras.ring(3, height=32, width=40), tuple(map(str, paths))
    )
    with pytest.raises(ValueError, match="expected square renders"):
        read_truth(oblong, [0, 1], 64)
