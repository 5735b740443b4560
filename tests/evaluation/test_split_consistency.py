"""Laws of the comparison of two halves of the views."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from judged_sets import true_set, white_set
from spad.cameras import Cameras
from spad.evaluation import split_consistency
from spad.evaluation.controls import shuffled
from spad.evaluation.split_consistency import SPLIT_METRICS, cameras_between, split_scores
from spad.geometry.focus import object_ball
from spad.reconstruction.surface import FitSettings, fit_surface

WORST = {"chamfer": 100, "depth": 100, "psnr": 0, "ssim": 0, "failed": 1}


def test_true_views_agree_better_than_shuffled_ones(monkeypatch):
    quick = FitSettings(coarse_steps=10, fine_steps=5)
    for name, value in (("_FACES", 600), ("_TEXTURE", 64), ("_POINTS", 6_000), ("_SIDE", 48)):
        monkeypatch.setattr(split_consistency, name, value)
    monkeypatch.setattr(
        "spad.reconstruction.surface.fit_surface",
        lambda *views: fit_surface(*views, cells=24, settings=quick),
    )
    true = true_set("chair", 6, size=64)
    good, bad = (vars(split_scores(one)) for one in (true, shuffled(true, true, 0.6)))
    assert good["failed"] == 0 and good["psnr"] > 15
    for metric in SPLIT_METRICS[:4]:
        name = metric.name.removeprefix("split_")
        assert (good[name] > bad[name]) == metric.higher_is_better, name
        assert metric.function(true) == good[name]


def test_halves_that_show_nothing_are_the_worst_and_counted():
    nothing = white_set(Cameras.ring(6, 20, height=32, width=32))
    assert vars(split_scores(nothing)) == WORST


def test_five_views_are_too_few():
    assert all(math.isnan(m.function(true_set("chair", 5, size=64))) for m in SPLIT_METRICS)


def test_renders_are_from_between_the_halves():
    ring = Cameras.ring(6, 20.0, height=64, width=64)
    between = cameras_between(ring, object_ball(ring))
    steps = (between.azimuth_deg - ring.azimuth_deg + 180) % 360 - 180
    torch.testing.assert_close(steps.abs(), torch.full((6,), 30.0), atol=0.01, rtol=0)
    torch.testing.assert_close(between.radius, ring.radius)
    # A rigid motion of the world moves them along.
    motion = torch.eye(4)
    motion[:3, :3] = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    motion[:3, 3] = torch.tensor([5.0, -3, 2])
    moved = ring.transformed(motion)
    centers = cameras_between(moved, object_ball(moved)).centers
    expected = between.centers @ motion[:3, :3].T + motion[:3, 3]
    torch.testing.assert_close(centers, expected, atol=1e-4, rtol=0)
    # Two opposite views have no direction between them.
    opposite = replace(ring, world_from_cam=ring.world_from_cam[[0, 3] * 3])
    assert cameras_between(opposite, object_ball(ring)).centers.isfinite().all()


def test_depth_that_only_one_model_has_counts_most():
    one = np.array([[[1.0, 2.0, np.inf, np.inf]]])
    other = np.array([[[1.5, np.inf, 9.0, np.inf]]])
    assert split_consistency._depth_error(one, other, 2.0) == pytest.approx((0.5 + 2 + 2) / 3)
