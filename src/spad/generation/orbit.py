"""Orbits from flags: what `spad generate` and `spad epipolar` share. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spad.hub.registry import GenerationDefaults

if TYPE_CHECKING:
    from spad.cameras import Cameras

ORBIT_FLAGS = ("views", "elevation", "azimuth", "radius", "fov_deg")


@dataclass(frozen=True)
class Orbit:
    """Cameras on spheres about the origin, one value per view; degrees and world units."""

    elevation_deg: tuple[float, ...]
    azimuth_deg: tuple[float, ...]
    radius: tuple[float, ...]
    fov_deg: tuple[float, ...]

    def cameras(self, height: int, width: int) -> Cameras:
        """The cameras, with images of height x width pixels."""
        from spad.cameras import Cameras

        fov_rad = [math.radians(fov) for fov in self.fov_deg]
        orbit = (self.elevation_deg, self.azimuth_deg, self.radius, fov_rad)
        return Cameras.orbit(*orbit, height=height, width=width)


def plan_orbit(
    views: int | None,
    elevation: tuple[float, ...] | None,
    azimuth: tuple[float, ...] | None,
    radius: tuple[float, ...] | None,
    fov_deg: tuple[float, ...] | None,
    default_views: int,
    defaults: GenerationDefaults,
) -> Orbit:
    """The orbit that flags describe; each has one value, or one per view.

    Without `views` there are as many as the longest list has, else `default_views`; one, if only
    its azimuth is given. Without `azimuth` they stand evenly round from the model's start.

    Raises: ValueError: a list has another length.
    """
    given = {
        "--elevation": elevation or (defaults.elevation_deg,),
        "--azimuth": azimuth or (),
        "--radius": radius or (defaults.radius,),
        "--fov-deg": fov_deg or (defaults.fov_deg,),
    }
    longest = max(map(len, given.values()))
    if views is None:
        views = longest if longest > 1 or azimuth else default_views
    if not azimuth:
        step = 360.0 / views
        given["--azimuth"] = tuple(defaults.start_azimuth_deg + step * i for i in range(views))
    for flag, values in given.items():
        if len(values) not in (1, views):
            raise ValueError(
                f"expected {views} values of {flag}, got {len(values)}; "
                "give one per view or a single value"
            )
    return Orbit(*(values * views if len(values) == 1 else values for values in given.values()))
