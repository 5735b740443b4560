"""Scores of true renders, of corrupted ones, and of sets where metrics are undefined."""

import math
import re
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from judged_sets import MODELS, rendered_set, true_set, white_set
from spad.cameras import Cameras
from spad.data.renders import list_sets
from spad.evaluation.camera_error import camera_error_deg
from spad.evaluation.content_copying import content_copying
from spad.evaluation.controls import (
    CORRUPTIONS,
    blurred,
    controls_table,
    copied,
    flipped,
    mixed,
    score_controls,
    wrong_camera,
)
from spad.evaluation.metrics import METRICS
from spad.evaluation.photo_consistency import photo_consistency
from spad.evaluation.psnr_ssim import ssim_map
from spad.evaluation.reconstruction_quality import reconstruction_psnr, reconstruction_ssim
from spad.evaluation.silhouettes import lookup_pixels, silhouette_iou
from spad.evaluation.tsed import symmetric_epipolar_distance, tsed
from spad.geometry.focus import angles_between, object_ball
from spad.installation import install_command
from spad.reconstruction.visual_hull import reconstruct_views

BY_NAME = {metric.name: metric for metric in METRICS}
NAMES = sorted(MODELS)


@cache
def score_of_truth(name: str, metric: str) -> float:
    return BY_NAME[metric].function(true_set(name))


@pytest.mark.parametrize("name", NAMES)
def test_truth_scores_near_the_top(name):
    true = true_set(name)
    assert silhouette_iou(true) > 0.99
    assert camera_error_deg(true) == 0
    assert photo_consistency(true) > 0.7
    assert reconstruction_psnr(true) > 19
    assert reconstruction_ssim(true) > 0.7
    assert content_copying(true) < 0.55
    assert tsed(true) >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("control", CORRUPTIONS, ids=lambda control: control.name)
def test_controls_are_caught_in_order_of_severity(control):
    trues = [true_set(name) for name in NAMES]
    metrics = [BY_NAME[name] for name in control.caught_by]
    columns = [[[score_of_truth(name, m.name) for m in metrics] for name in NAMES]]
    for severity in control.severities:
        pairs = zip(trues, trues[1:] + trues[:1], strict=True)
        corrupted = [control.corrupt(*pair, severity) for pair in pairs]
        # Set by set, as metrics share what they rebuild.
        columns.append([[m.function(one) for m in metrics] for one in corrupted])
    scores = np.array(columns)
    for index, metric in enumerate(metrics):
        worse = scores[..., index] * (1 if metric.higher_is_better else -1)
        means = worse.mean(1)
        # Near its floor a metric may stand still.
        assert (np.diff(means) < 0.02 * (means[0] - means[-1])).all(), (metric.name, means)
        assert means[-1] < means[1] < means[0], (metric.name, means)
        assert (worse[-1] < worse[0]).all(), (metric.name, scores[..., index])


@pytest.mark.parametrize("elevation_deg", [0.0, 20.0])
def test_copies_are_not_praised(elevation_deg):
    true = true_set("chair", 12, elevation_deg)
    copies = copied(true, true, 1.0)
    assert content_copying(copies) == pytest.approx(1)
    for metric in (tsed, reconstruction_psnr, reconstruction_ssim, silhouette_iou):
        assert metric(copies) < metric(true), metric.__name__


def test_flipped_views_look_taken_from_elsewhere():
    true = true_set("house")
    assert camera_error_deg(flipped(true, true, 0.2)) > 10


def test_a_view_is_rebuilt_from_the_others_alone():
    true = true_set("chair", 6)
    images = true.images.clone()
    images[2] = torch.rand_like(images[2])
    rebuilt, again = reconstruct_views(true), reconstruct_views(replace(true, images=images))
    assert torch.equal(rebuilt.images[2], again.images[2])
    assert not torch.equal(rebuilt.images[1], again.images[1])
    alpha = true.alpha.clone()
    # Within what the grid reaches anyway.
    alpha[2, 50:70, 50:70] = 0
    again = reconstruct_views(replace(true, alpha=alpha))
    assert torch.equal(rebuilt.alpha[2], again.alpha[2])
    assert not torch.equal(rebuilt.alpha[1], again.alpha[1])


def test_any_place_scale_and_turn_of_the_world_gives_the_same_numbers():
    true = true_set("house", 6)
    motion = torch.eye(4)
    motion[:3, :3] = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    motion[:3, 3] = torch.tensor([5.0, -3, 2])
    moved = true.cameras.transformed(motion)
    poses = moved.world_from_cam.clone()
    poses[:, :3, 3] *= 4
    moved = replace(true, cameras=replace(moved, world_from_cam=poses))
    assert object_ball(moved.cameras).radius == pytest.approx(
        4 * object_ball(true.cameras).radius, rel=1e-4
    )
    for metric in (silhouette_iou, photo_consistency, content_copying):
        assert metric(moved) == pytest.approx(metric(true), abs=0.01)
    # The grid of voxels turns with the world, not with the object.
    assert reconstruction_psnr(moved) == pytest.approx(reconstruction_psnr(true), abs=1)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_same_set_scores_the_same(metric):
    one, again = (rendered_set("hammer", Cameras.ring(10, 20, height=64, width=64)) for _ in "12")
    assert metric.function(one) == metric.function(again)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
@pytest.mark.parametrize("views", [1, 2])
def test_few_views_give_nan_or_a_number_in_range(metric, views):
    score = metric.function(true_set("chair", views, size=64))
    defined = {"silhouette_iou", "content_copying"} if views == 2 else set()
    assert math.isnan(score) == (metric.name not in defined)


def test_sets_that_show_nothing_score_worst():
    nothing = white_set(Cameras.ring(10, 20, height=64, width=64))
    scores = {metric.name: metric.function(nothing) for metric in METRICS}
    assert scores == {
        "reconstruction_psnr": 0,
        "reconstruction_ssim": 0,
        "tsed": 0,
        "silhouette_iou": 0,
        "photo_consistency": 0,
        "content_copying": 1,
        "camera_error_deg": 180,
    }


def test_views_of_one_camera_tell_nothing():
    cameras = Cameras.orbit(20, [30.0] * 4, height=64, width=64)
    twins = rendered_set("chair", cameras)
    assert math.isnan(content_copying(twins)) and math.isnan(tsed(twins))
    assert math.isnan(photo_consistency(twins))


def test_cameras_that_look_away_are_refused():
    cameras = Cameras.look_at(
        [[3.5, 0, 0], [0, 3.5, 0], [-3.5, 0, 0]], [[0, 0, 0], [0, 0, 0], [-9, 0, 0]]
    )
    with pytest.raises(ValueError, match="camera 2 that looks away"):
        object_ball(cameras)


def test_angles_are_seen_from_the_object():
    cameras = Cameras.orbit(0, [0, 90, 180], target=(3, 1, 2))
    expected = torch.tensor([[0.0, 90, 180], [90, 0, 90], [180, 90, 0]])
    torch.testing.assert_close(angles_between(cameras), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_pixels_are_those_where_points_project(channels):
    cameras = Cameras.ring(3, 20, height=6, width=8)
    random = torch.Generator().manual_seed(0)
    points = 3 * torch.randn(4, 50, 3, generator=random)
    values = torch.rand(3, 6, 8, *channels, generator=random)
    found = lookup_pixels(cameras, values, points, 7.0)
    xy, depth = cameras.project(points)
    known = 0
    for place in np.ndindex(3, 4, 50):
        x, y = xy[place].tolist()
        inside = float(depth[place]) > 0 and 0 <= x < 8 and 0 <= y < 6
        expected = values[place[0], int(y), int(x)] if inside else torch.full(channels, 7.0)
        assert torch.equal(found[place], expected), place
        known += inside
    assert 50 < known < 550


def test_true_matches_lie_on_epipolar_lines():
    cameras = Cameras.ring(10, 20)
    points = torch.rand(20, 3) - 0.5
    xy, _ = cameras.project(points)
    first, second = xy[0].double().numpy(), xy[1].double().numpy()
    assert symmetric_epipolar_distance(cameras, 0, 1, first, second).max() < 1e-3
    shifted = symmetric_epipolar_distance(cameras, 0, 1, first, second + [0, 9])
    assert shifted.min() > 4


def test_ssim_is_one_only_for_equal_images():
    picture = torch.rand(1, 3, 20, 20)
    torch.testing.assert_close(ssim_map(picture, picture), torch.ones(1, 20, 20))
    assert ssim_map(picture, 1 - picture).mean() < 0


def test_without_opencv_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(install_command("eval"))):
        tsed(true_set("chair", 10))


def test_controls_leave_the_set_alone_and_change_what_they_say():
    true, other = true_set("chair", 5, size=64), true_set("house", 5, size=64)
    before = true.images.clone()
    for control in CORRUPTIONS:
        for severity in control.severities:
            corrupted = control.corrupt(true, other, severity)
            same = torch.equal(corrupted.images, true.images)
            assert same == (control.name == "wrong camera")
    assert torch.equal(true.images, before)
    assert torch.equal(mixed(true, other, 0.1).images[1], other.images[1])
    turned = wrong_camera(true, other, 30).cameras.azimuth_deg - true.cameras.azimuth_deg
    torch.testing.assert_close(turned, torch.tensor([0.0, 0, 30, 0, 0]), atol=0.01, rtol=0)
    assert blurred(true, other, 4.0).images.std() < true.images.std()
    with pytest.raises(ValueError, match="another set of at least 5 views"):
        mixed(true, true_set("house", 4, size=64), 0.5)


def test_the_table_shows_every_control():
    sets = [true_set(name, 4, size=32) for name in NAMES[:2]]
    quick = [BY_NAME["silhouette_iou"], BY_NAME["content_copying"]]
    table = controls_table(score_controls(sets, quick), quick).splitlines()
    assert len(table) == 3 + sum(len(control.severities) for control in CORRUPTIONS)
    assert {line.count("|") for line in table} == {len(quick) + 2}
    assert table[2].startswith("| none |") and "**" in table[-1]
    one = [replace(CORRUPTIONS[-1], severities=(0.2,))]
    assert len(controls_table(score_controls(sets, quick, one), quick).splitlines()) == 4
    with pytest.raises(ValueError, match="at least 2 sets"):
        score_controls(sets[:1])


@pytest.mark.slow
def test_shared_renders_behave_like_hand_made_ones(shared_models, tmp_path):
    from spad.data.config import RenderConfig
    from spad.data.render import render_all

    shared_models(4)
    render_all(RenderConfig(tmp_path, tmp_path / "out", cameras="orbit", views=8, workers=1))
    sets = [views.read() for views in list_sets(tmp_path / "out")]
    assert len(sets) >= 3
    for true, other in zip(sets, sets[1:] + sets[:1], strict=True):
        assert silhouette_iou(true) > 0.9
        corrupted = mixed(true, other, 0.2)
        assert silhouette_iou(corrupted) < silhouette_iou(true)
        assert reconstruction_psnr(corrupted) < reconstruction_psnr(true)
