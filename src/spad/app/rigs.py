"""Rigs that the page offers: cameras by name, as orbits."""

from __future__ import annotations

from math import asin, degrees
from typing import Any

from spad.generation.orbit import Orbit
from spad.generation.presets import PRESETS
from spad.hub.registry import GenerationDefaults

_SPHERE = 12


def rigs(defaults: GenerationDefaults) -> list[dict[str, Any]]:
    """Rigs of a model: label, and elevation, azimuth and fov in degrees and radius per view.

    Those of other tools come last. The first is drawn at the start.
    """
    level, start = defaults.elevation_deg, defaults.start_azimuth_deg
    quarters = [start + 90 * view for view in range(4)]
    # A spiral from the top to the bottom, whose steps in height are equal.
    heights = [1 - (2 * view + 1) / _SPHERE for view in range(_SPHERE)]
    golden = 180 * (3 - 5**0.5)
    own = {
        "Ring of 4": ([level] * 4, quarters),
        "Ring of 8": ([level] * 8, [start + 45 * view for view in range(8)]),
        "Two rings of 4": (
            [level + 25] * 4 + [level - 20] * 4,
            quarters + [azimuth + 45 for azimuth in quarters],
        ),
        # Just off the poles, so that azimuth can be dragged.
        "Ring, top and bottom": ([level] * 4 + [89, -89], [*quarters, -90, -90]),
        "Sphere of 12": (
            [degrees(asin(height)) for height in heights],
            [start + golden * view for view in range(_SPHERE)],
        ),
    }
    orbits = {
        label: Orbit(
            tuple(elevation),
            tuple(azimuth),
            (defaults.radius,) * len(azimuth),
            (defaults.fov_deg,) * len(azimuth),
        )
        for label, (elevation, azimuth) in own.items()
    }
    orbits |= {f"For {name}": preset.orbit(defaults) for name, preset in PRESETS.items()}
    return [
        {
            "label": label,
            "elevation": orbit.elevation_deg,
            "azimuth": [(azimuth + 180) % 360 - 180 for azimuth in orbit.azimuth_deg],
            "radius": orbit.radius,
            "fov": orbit.fov_deg,
        }
        for label, orbit in orbits.items()
    ]
