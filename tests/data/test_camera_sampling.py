"""Camera presets of `spad render`: each stands where it says, the same for an object each time."""

from pathlib import Path

import pytest
import torch

from spad.cameras import Cameras
from spad.data.camera_sampling import cameras_of, quarter_turns
from spad.data.config import RenderConfig


def config(**changes) -> RenderConfig:
    return RenderConfig(assets=Path("a"), output=Path("b"), image_size=32, **changes)


@pytest.mark.parametrize("preset", ("training", "paper", "sphere", "orbit"))
def test_cameras_depend_on_the_object_and_the_seed_alone(preset):
    first = cameras_of(config(cameras=preset), "fish")
    again = cameras_of(config(cameras=preset, workers=3), "fish")
    assert torch.equal(first.world_from_cam, again.world_from_cam)
    for other in (
        cameras_of(config(cameras=preset), "tree"),
        cameras_of(config(cameras=preset, seed=1), "fish"),
    ):
        same = torch.equal(first.world_from_cam, other.world_from_cam)
        assert same == (preset == "orbit")


def test_the_papers_views():
    """SPAD, section 4: 12 views at radius 3.5, all elevations, field of view 40.26 degrees."""
    cameras = cameras_of(config(cameras="paper", views=2000), "fish")
    assert len(cameras_of(config(cameras="paper"), "fish")) == 12
    assert torch.allclose(cameras.radius, torch.tensor(3.5), atol=1e-4)
    width_over_focal = 32 / cameras.intrinsics[:, 0, 0]
    fov_deg = torch.rad2deg(2 * torch.atan(width_over_focal / 2))
    assert torch.allclose(fov_deg, torch.tensor(40.26), atol=0.01)
    # Uniform in the angle: as many between 60 and 90 degrees as between 0 and 30.
    elevation = cameras.elevation_deg
    for low in range(-90, 90, 30):
        share = ((elevation >= low) & (elevation < low + 30)).float().mean()
        assert share == pytest.approx(1 / 6, abs=0.03)


def test_sphere_is_uniform_by_area():
    centers = cameras_of(config(cameras="sphere", views=4000), "fish").centers / 3.5
    # Archimedes: each coordinate of a uniform point on the sphere is uniform in [-1, 1].
    for axis in range(3):
        ranks = (centers[:, axis].sort().values + 1) / 2
        even = (torch.arange(4000) + 0.5) / 4000
        assert (ranks - even).abs().max() < 0.03


def test_orbit_goes_evenly_round_at_one_elevation():
    cameras = cameras_of(config(cameras="orbit", views=8, elevation=-12.0), "fish")
    assert torch.allclose(cameras.elevation_deg, torch.tensor(-12.0), atol=1e-3)
    turns = cameras.azimuth_deg.diff().remainder(360)
    assert torch.allclose(turns, torch.tensor(45.0), atol=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(cameras="cinema"), "expected cameras to be one of"),
        (dict(views=0), "expected views of at least 1, got 0"),
        (dict(elevation=91.0), "expected elevation of at least -90 and at most 90, got 91"),
        (dict(time_limit_s=0.0), "expected time_limit_s of more than 0"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_quarter_turns_are_found():
    ring = Cameras.ring(4, elevation_deg=10.0, start_azimuth_deg=33.0)
    others = Cameras.orbit([0.0, 10.0, 20.0], [5.0, 95.0, 185.0])
    assert quarter_turns(Cameras.cat([others, ring, ring])) == [[3, 4, 5, 6], [7, 8, 9, 10]]
