"""Cameras that other tools expect, and how these read images. Imports nothing heavy.

docs/poses.md has the source of every number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from spad.generation.orbit import Orbit
    from spad.hub.registry import GenerationDefaults

PresetName = Literal[
    "zero123plus-v1.1",
    "zero123plus-v1.2",
    "lgm",
    "hunyuan3d-2mv",
    "trellis",
    "mvgbench",
    "era3d",
    "wonder3d",
]

# Objects face -y.
FRONT_DEG = -90.0


@dataclass(frozen=True)
class Files:
    """Image files as a tool reads them.

    Attributes:
        names: one path per view, in the order of the views; for a sheet, its one path.
        background: white or gray behind opaque images, or transparent.
        image_size: side of an image in pixels. None: as generated.
        columns: images per row of a sheet of all of them. None: one file per view.
        with_cameras: every folder of images also gets cameras, as NeRF-synthetic files.
    """

    names: tuple[str, ...]
    background: Literal["white", "gray", "transparent"]
    image_size: int | None
    columns: int | None = None
    with_cameras: bool = False


@dataclass(frozen=True)
class Preset:
    """Cameras of a tool, about an object inside a sphere of radius 1 that faces -y.

    Attributes:
        from_front_deg: azimuth of each view relative to the front, counter-clockwise seen from
            above.
        elevation_deg: elevation of each view above the horizon.
        files: images as the tool reads them.
        radius, fov_deg: distance in world units and horizontal field of view. None: the model's.
    """

    from_front_deg: tuple[float, ...]
    elevation_deg: tuple[float, ...]
    files: Files
    radius: float | None = None
    fov_deg: float | None = None

    def orbit(
        self,
        defaults: GenerationDefaults | None = None,
        radius: float | None = None,
        fov_deg: float | None = None,
    ) -> Orbit:
        """The cameras; a `radius` or `fov_deg` given here wins over the preset's."""
        from spad.generation.orbit import Orbit
        from spad.hub.registry import GenerationDefaults

        defaults = GenerationDefaults() if defaults is None else defaults
        count = len(self.from_front_deg)

        def of_every_view(*values: float | None) -> tuple[float, ...]:
            return next((value,) * count for value in values if value is not None)

        return Orbit(
            self.elevation_deg,
            tuple(FRONT_DEG + azimuth for azimuth in self.from_front_deg),
            of_every_view(radius, self.radius, defaults.radius),
            of_every_view(fov_deg, self.fov_deg, defaults.fov_deg),
        )


_SIXTHS = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
_QUARTERS = (0.0, 90.0, 180.0, 270.0)
_SIXTEENTHS = tuple(22.5 * view for view in range(16))
# In Wonder3D's names, right is right in the front view: the object's own left.
_SIDES = {
    "front": 0.0,
    "front_right": 45.0,
    "right": 90.0,
    "back": 180.0,
    "left": 270.0,
    "front_left": 315.0,
}
_SIX_IN_A_SHEET = Files(("views.png",), "gray", 320, columns=2)

PRESETS: dict[PresetName, Preset] = {
    "zero123plus-v1.1": Preset(_SIXTHS, (30.0, -20.0) * 3, _SIX_IN_A_SHEET),
    "zero123plus-v1.2": Preset(_SIXTHS, (20.0, -10.0) * 3, _SIX_IN_A_SHEET, 4.0, 30.0),
    "lgm": Preset(
        _QUARTERS,
        (0.0,) * 4,
        Files(tuple(f"{view}.png" for view in range(4)), "white", 256),
        # The object takes up as much of the images as LGM gives it: 80 %.
        radius=2.91,
        fov_deg=49.1,
    ),
    "hunyuan3d-2mv": Preset(
        _QUARTERS,
        (0.0,) * 4,
        Files(("front.png", "left.png", "back.png", "right.png"), "transparent", 512),
    ),
    "trellis": Preset(
        _QUARTERS,
        (20.0,) * 4,
        Files(tuple(f"{view}.png" for view in range(4)), "transparent", 518),
    ),
    "mvgbench": Preset(
        _SIXTEENTHS,
        (0.0,) * 16,
        Files(
            tuple(f"spad_{('even', 'odd')[v % 2]}/object/{v:03d}.png" for v in range(16)),
            "white",
            None,
            with_cameras=True,
        ),
        radius=3.5,
        fov_deg=40.26,
    ),
    "era3d": Preset(
        tuple(_SIDES.values()),
        (0.0,) * 6,
        Files(tuple(f"color_{side}_masked.png" for side in _SIDES), "transparent", 512),
    ),
    "wonder3d": Preset(
        tuple(_SIDES.values()),
        (0.0,) * 6,
        Files(tuple(f"masked_colors/rgb_000_{side}.png" for side in _SIDES), "transparent", 256),
    ),
}
assert PRESETS.keys() == set(get_args(PresetName))
