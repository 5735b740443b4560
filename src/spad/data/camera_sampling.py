"""Where the cameras of a render stand: presets, the same for an object wherever it is drawn."""

from __future__ import annotations

import numpy as np

from spad.cameras import DEFAULT_FOV_RAD, DEFAULT_RADIUS, Cameras
from spad.data.config import RenderConfig
from spad.data.seeds import object_seed


def cameras_of(config: RenderConfig, uid: str) -> Cameras:
    """The cameras that `config` asks for, for one object: seeded by its id and the run's seed."""
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
    return Cameras.orbit(elevation_deg, azimuth_deg, height=size, width=size)


def training_cameras(
    seed: int, num_random: int, num_orthogonal_sets: int, height: int, width: int
) -> Cameras:
    """Cameras to learn from: random ones first, then sets of four a quarter turn apart.

    Random cameras have any azimuth; seven in ten an elevation of -10 to 40 degrees, the others
    -15 to 75, uniform on the sphere; radius and field of view vary by a tenth or so around the
    defaults. The four cameras of a set share one elevation of -5 to 40 degrees and have the
    default radius and field of view.

    Source: SPAD, section 4 (random and orthogonal viewpoints). Differs: the paper's elevations
    reach the poles; this range is where people look from.
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
        elevation_deg=np.concatenate([elevation, np.repeat(set_elevation, 4)]),
        azimuth_deg=np.concatenate([azimuth, (set_azimuth[:, None] + quarters).ravel() % 360]),
        radius=np.concatenate([radius, np.full(num_in_sets, DEFAULT_RADIUS)]),
        fov_rad=np.concatenate([fov, np.full(num_in_sets, DEFAULT_FOV_RAD)]),
        height=height,
        width=width,
    )


def quarter_turns(cameras: Cameras) -> list[list[int]]:
    """Runs of four neighbouring views at one elevation, each a quarter turn after the last."""
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
