"""Laws of the scores of a model against views."""

import math

import pytest
import torch

from spad.reconstruction.scores import FITTED, HELD_OUT, LEFT_OUT, score_views


def views(num: int = 3, size: int = 24):
    alpha = torch.zeros(num, size, size)
    alpha[:, 6:18, 6:18] = 1
    images = torch.ones(num, 3, size, size)
    images[:, :, 6:18, 6:18] = 0.4
    return images, alpha


def scored(drawn, drawn_alpha, images, alpha, uses=None):
    names = [f"view {i}" for i in range(len(alpha))]
    return score_views(drawn, drawn_alpha, images, alpha, names, uses or [FITTED] * len(alpha))


def test_a_model_that_shows_the_views_has_full_scores():
    images, alpha = views()
    scores = scored(images, alpha, images, alpha)
    assert scores.mean_iou() == 1
    assert scores.mean_psnr() == 50
    assert scores.disagreeing == ()


def test_psnr_is_that_of_the_object_whatever_surrounds_it():
    for size in (24, 60):
        images, alpha = views(size=size)
        drawn = torch.where(alpha[:, None] > 0, images + 0.1, images)
        assert scored(drawn, alpha, images, alpha).mean_psnr() == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize(
    ("side", "rows", "columns"),
    [
        ("left", slice(6, 18), slice(6, 9)),
        ("right", slice(6, 18), slice(15, 18)),
        ("top", slice(6, 9), slice(6, 18)),
        ("bottom", slice(15, 18), slice(6, 18)),
    ],
)
def test_a_view_that_differs_is_named_with_its_side(side, rows, columns):
    images, alpha = views()
    drawn, drawn_alpha = images.clone(), alpha.clone()
    drawn[1, :, rows, columns] = 1
    drawn_alpha[1, rows, columns] = 0
    scores = scored(drawn, drawn_alpha, images, alpha)
    assert [(one.view, one.side) for one in scores.disagreeing] == [("view 1", side)]
    assert scores.disagreeing[0].silhouette_iou == pytest.approx(0.75)
    assert f"view 1 disagrees, most at its {side}" in str(scores)


def test_views_that_were_not_fitted_count_apart():
    images, alpha = views()
    drawn = images.clone()
    drawn[2] = 1
    scores = scored(drawn, alpha, images, alpha, [FITTED, FITTED, HELD_OUT])
    assert scores.mean_psnr() == 50
    assert scores.mean_psnr(HELD_OUT) < 10
    assert "views held out" in str(scores)
    assert math.isnan(scores.mean_iou(LEFT_OUT))


def test_a_view_left_out_is_named_however_it_scores():
    images, alpha = views()
    scores = scored(images, alpha, images, alpha, [FITTED, LEFT_OUT, FITTED])
    assert [one.view for one in scores.disagreeing] == ["view 1"]
    assert "left out" in str(scores)
