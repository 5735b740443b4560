"""Settings of `spad epipolar`. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from tyro.conf import Positional

from spad.settings import (
    AzimuthDeg,
    Count,
    CountOrZero,
    Distance,
    ElevationDeg,
    FovDeg,
    NonNegativeFloat,
    PositiveFloat,
    checked,
)


@dataclass(frozen=True)
@checked
class EpipolarConfig:
    """Draw the geometry of views: epipolar bands, masks, Plücker maps, an explorer page.

    No model is needed. Cameras come from a folder of images, or from --views, --elevation and
    --azimuth with images of a toy bear.
    """

    source: Positional[Path | None] = None
    """Folder of images with a transforms.json, a COLMAP model or Blender's cameras.json; or
    such a file."""
    images: Path | None = None
    """Folder of the images. Default: where the camera file says."""
    output: Path | None = None
    """Output folder. Default: a new spad-out/epipolar-SOURCE."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    views: Count | None = None
    """Number of cameras around the toy bear. Default: that of the values given, else 4."""
    elevation: tuple[ElevationDeg, ...] | None = None
    """Degrees above the horizon: one value, or one per view. Default: 20."""
    azimuth: tuple[AzimuthDeg, ...] | None = None
    """Degrees counter-clockwise seen from above: one value, or one per view.
    Default: evenly round from -60."""
    radius: tuple[Distance, ...] | None = None
    """Distance from the origin in world units: one value, or one per view. Default: 3.5."""
    fov_deg: tuple[FovDeg, ...] | None = None
    """Horizontal field of view in degrees: one value, or one per view. Default: 40.3."""
    image_size: Count | None = None
    """Side of the toy bear's images in pixels. Default: 256."""
    view: CountOrZero = 0
    """Source view, whose pixels are followed."""
    to: tuple[CountOrZero, ...] = ()
    """Views shown beside the source view. Default: all."""
    pixel: tuple[CountOrZero, CountOrZero] | None = None
    """Row and column of the source pixel. Default: the center."""
    grid: tuple[Count, Count] | None = None
    """Rows and columns of a grid of source pixels, each in its own color."""
    sweep: Literal["gif", "webp"] | None = None
    """Format of an animation in which the source pixel wanders over its view."""
    sweep_pixels: Annotated[int, Ge(2)] = 60
    """Number of frames of the animation."""
    panel: Annotated[int, Ge(32)] = 256
    """Side of each view in the animation in pixels."""
    masks: Literal["exact", "original", "both"] | None = None
    """Mask matrices to draw: exact, the original release's, or both and their differences."""
    plucker: bool = False
    """Draw the Plücker coordinates as colors."""
    depth: Path | None = None
    """Folder of depth maps named like the images (EXR, PNG or NPY). Marks true correspondences,
    counts how many lie inside the bands, and names suspect cameras."""
    depth_scale: PositiveFloat | None = None
    """World units per unit of the depth maps. Default: 0.001 for PNG, 1 for others."""
    save_capture: Path | None = None
    """Folder to write the toy bear's images, depth maps and cameras into, as a capture to try the
    other flags with."""
    html: Path | None = None
    """Path of an explorer page to write: one file, works offline."""
    formats: Annotated[tuple[Literal["png", "pdf", "svg"], ...], MinLen(1)] = ("png",)
    """File formats of the figures."""
    band_width: Annotated[float, Ge(1.415)] = 3.0
    """Width of the epipolar bands in tokens."""
    cells: Count = 32
    """Tokens along the longer side of an image."""
    near: NonNegativeFloat = 0.0
    """Nearest depth of the rays in world units."""
    far: PositiveFloat | None = None
    """Farthest depth of the rays in world units. Default: unlimited."""

    def __post_init__(self) -> None:
        if self.far is not None and not self.near < self.far:
            raise ValueError(f"expected near below far, got {self.near:g} and {self.far:g}")
