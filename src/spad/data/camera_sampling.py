"""Camera presets of `spad render`, seeded by the object's id."""

from __future__ import annotations

import numpy as np

from spad.cameras import DEFAULT_FOV_RAD, DEFAULT_RADIUS, Cameras
from spad.data.config import RenderConfig
from spad.data.seeds import object_seed


def cameras_of(config: RenderConfig, uid: str) -> Cameras:
    """Cameras of one object by the preset `config.cameras`, seeded by its id and `config.seed`."""
    size = config.image_size
    seed = object_seed(config.seed, uid)
    if config.cameras == "training":
        return training_cameras(seed, config.num_random, config.num_orthogonal_sets, size, size)
    rng = np.random.default_rng(seed)
    azimuth_deg = rng.uniform(0, 360, config.views)
    if config.cameras == "orbit":
        azimuth_deg = np.arange(config.views) * 360.0 / config.views
        elevation_deg = np.full(config.views, config.elevation)
    elif config.cameras == "paper":
        elevation_deg = rng.uniform(-90, 90, config.views)
    else:
        elevation_deg = np.degrees(np.arcsin(rng.uniform(-1, 1, config.views)))
    return Cameras.orbit(elevation_deg.tolist(), azimuth_deg.tolist(), height=size, width=size)


def training_cameras(
    seed: int, num_random: int, num_orthogonal_sets: int, height: int, width: int
) -> Cameras:
    """Training cameras: random ones first, then sets of four 90° apart.

    Random cameras have any azimuth; 70 % have an elevation of -10° to 40°, the others of -15° to
    75°, uniform on the sphere; radius and field of view vary by about 10 % around the defaults. The
    four cameras of a set have one elevation of -5° to 40° and the default radius and field of view.

    Source: SPAD, section 4 (random and orthogonal viewpoints). Differs: the paper's elevations
    reach the poles; these are the usual directions to look from.
    """
    rng = np.random.default_rng(seed)
    common = rng.random(num_random) < 0.7
    low = np.sin(np.radians(np.where(common, -10.0, -15.0)))
    high = np.sin(np.radians(np.where(common, 40.0, 75.0)))
    elevation = np.degrees(np.arcsin(rng.uniform(low, high)))
    azimuth = rng.uniform(0, 360, num_random)
    radius = DEFAULT_RADIUS * rng.uniform(0.9, 1.15, num_random)
    fov = DEFAULT_FOV_RAD * rng.uniform(0.9, 1.1, num_random)
    set_elevation = rng.uniform(-5, 40, num_orthogonal_sets)
    set_azimuth = rng.uniform(0, 360, num_orthogonal_sets)
    quarters = np.arange(4) * 90.0
    num_in_sets = 4 * num_orthogonal_sets
    return Cameras.orbit(
        elevation_deg=[*elevation, *np.repeat(set_elevation, 4)],
        azimuth_deg=[*azimuth, *((set_azimuth[:, None] + quarters).ravel() % 360)],
        radius=[*radius, *[DEFAULT_RADIUS] * num_in_sets],
        fov_rad=[*fov, *[DEFAULT_FOV_RAD] * num_in_sets],
        height=height,
        width=width,
    )


def quarter_turns(cameras: Cameras) -> list[list[int]]:
    """Groups of four consecutive views at one elevation, 90° apart, as view numbers."""
    azimuth, elevation = cameras.azimuth_deg, cameras.elevation_deg
    turns = (azimuth.diff() - 90).remainder(360)
    is_quarter = (turns.minimum(360 - turns) < 0.1) & (elevation.diff().abs() < 0.1)
    steps = is_quarter.tolist()
    groups, start = [], 0
    while start + 3 <= len(steps):
        if all(steps[start : start + 3]):
            groups.append(list(range(start, start + 4)))
            start += 4
        else:
            start += 1
    return groups
