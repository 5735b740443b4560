"""Warnings about cameras from which the object cannot be seen."""

import pytest
import torch

from spad.cameras import Cameras
from spad.generation.framing import framing_warnings


def orbit(**changes):
    arguments = {"elevation_deg": 20, "azimuth_deg": [0, 90, 180, 270], "height": 64, "width": 64}
    return Cameras.orbit(**arguments | changes)


def turned_away(cameras):
    turn = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    poses = cameras.world_from_cam.clone()
    poses[2] = poses[2] @ turn
    return Cameras(poses, cameras.intrinsics, 64, 64)


@pytest.mark.parametrize(
    ("cameras", "words"),
    [
        (orbit(), []),
        (orbit(elevation_deg=[-90, 90, 0, 45]), []),
        (orbit(fov_rad=0.1, radius=40), []),
        (orbit(radius=[3, 0.5, 3, 0.2]), ["cameras 1, 3 are inside"]),
        (orbit(target=(10, 0, 0)), ["cameras 1, 2, 3 are directed past"]),
        (turned_away(orbit()), ["camera 2 is directed past"]),
        (orbit(target=(0, 0, 30)), ["cameras 0, 1, 2 and 1 more are directed past"]),
        (orbit(radius=[3, 3, 3, 90]), ["camera 3 is so far away"]),
        (orbit(radius=[0.5, 3, 3, 90]), ["camera 0 is inside", "camera 3 is so far away"]),
    ],
)
def test_cameras_that_do_not_see_the_object_are_named(cameras, words):
    warnings = list(framing_warnings(cameras))
    assert len(warnings) == len(words)
    assert all(warning.startswith(start) for warning, start in zip(warnings, words, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_warnings_do_not_depend_on_the_image_size(seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(3, generator=generator) * 2
    cameras = orbit(target=target, radius=3)
    assert list(framing_warnings(cameras)) == list(framing_warnings(cameras.resized(128, 128)))
