"""Laws of registration by COLMAP."""

import math

import numpy as np
import pytest
import torch

from judged_sets import true_set, white_set
from spad.cameras import Cameras
from spad.evaluation.registration import registration_scores, rotation_error_deg


def rotations(cameras: Cameras) -> np.ndarray:
    return cameras.world_from_cam[:, :3, :3].double().numpy().transpose(0, 2, 1)


def test_the_error_of_rotations_does_not_depend_on_the_world():
    ring, other = Cameras.ring(5, 20.0), Cameras.ring(5, 20.0, start_azimuth_deg=77.0)
    assert rotation_error_deg(rotations(ring), rotations(other)) < 1e-3
    # One camera of five that is off by 30 degrees is in four of ten pairs.
    poses = ring.world_from_cam.clone()
    angle = math.radians(30)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    poses[2, :3, :3] = poses[2, :3, :3] @ torch.block_diag(turn, torch.eye(1))
    turned = poses[:, :3, :3].double().numpy().transpose(0, 2, 1)
    assert rotation_error_deg(rotations(ring), turned) == pytest.approx(12, abs=1e-2)


def test_two_views_are_too_few():
    scores = registration_scores(true_set("chair", 2, size=64))
    assert math.isnan(scores.registered) and math.isnan(scores.rotation_deg)


def test_views_that_show_nothing_are_not_registered():
    pytest.importorskip("pycolmap", reason="registration needs the extra colmap")
    scores = registration_scores(white_set(Cameras.ring(3, 20, height=64, width=64)))
    assert scores.registered == 0 and math.isnan(scores.rotation_deg)


@pytest.mark.slow
def test_textured_views_are_registered_where_they_were_taken():
    pytest.importorskip("pycolmap", reason="registration needs the extra colmap")
    scores = registration_scores(true_set("chair", 24, size=256))
    assert scores.registered > 0.3
    assert scores.rotation_deg < 15
