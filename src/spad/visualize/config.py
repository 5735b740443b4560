"""Settings of `spad epipolar`. Imports nothing heavy."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class EpipolarConfig:
    """Draw the geometry of views: epipolar bands, masks, Plücker maps, an explorer page.

    Works without a model. Cameras come with a folder of pictures, or from --views, --elevation and
    --azimuth alone; a toy bear then stands in for the object.
    """

    source: Positional[Path | None] = None
    """Folder of pictures with transforms.json, a COLMAP text model or Blender's cameras.json, or
    such a file."""
    images: Path | None = None
    """Folder of the pictures, where it is not the one that the cameras name."""
    output: Path | None = None
    """Folder to make; a new spad-out/epipolar-SOURCE if left out."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    views: int | None = None
    """Number of cameras round the toy bear."""
    elevation: tuple[float, ...] | None = None
    """Degrees above the horizon: one value, or one per view."""
    azimuth: tuple[float, ...] | None = None
    """Degrees counter-clockwise seen from above: one value, or one per view."""
    radius: tuple[float, ...] | None = None
    """Distance from the origin: one value, or one per view."""
    fov_deg: tuple[float, ...] | None = None
    """Field of view across the picture, degrees: one value, or one per view."""
    image_size: int | None = None
    """Side of the bear's pictures in pixels."""
    view: int = 0
    """The view whose pixels are followed."""
    to: tuple[int, ...] = ()
    """Show only these views beside it."""
    pixel: tuple[int, int] | None = None
    """Row and column of the pixel to follow; the middle if left out."""
    grid: tuple[int, int] | None = None
    """Follow so many rows and columns of pixels instead, each in its colour."""
    sweep: Literal["gif", "webp"] | None = None
    """Animate a pixel that wanders over its view."""
    sweep_pixels: int = 60
    """Frames of the animation, one for each pixel."""
    panel: int = 256
    """Side of each view in the animation, pixels."""
    masks: Literal["exact", "original", "both"] | None = None
    """Draw the mask matrices: ours, those of the original release, or both and how they differ."""
    plucker: bool = False
    """Draw the Plücker coordinates as colours."""
    depth: Path | None = None
    """Folder of depth maps named as the pictures (EXR, PNG or NPY): marks true corresponding
    points, tables the share of them inside the bands, and names suspect cameras."""
    depth_scale: float | None = None
    """World units per unit of the depth maps; 0.001 for PNG, 1 for others if left out."""
    html: Path | None = None
    """Write a page to explore the views with: one file, opens from the disk."""
    formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png",)
    """Of all figures."""
    band_width: float = 3.0
    """Width of the bands, in tokens."""
    cells: int = 32
    """Tokens along the longer side of a picture."""
    near: float = 0.0
    """Nearest depth of the rays, world units."""
    far: float = math.inf
    """Farthest depth of the rays, world units."""

    def __post_init__(self) -> None:
        lowest = {"cells": 1, "sweep_pixels": 2, "panel": 32, "views": 1, "image_size": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"expected {name} of at least {low}, got {value}")
        if not 0 <= self.near < self.far:
            raise ValueError(f"expected 0 <= near < far, got {self.near:g} and {self.far:g}")
        if not math.sqrt(2) - 1e-6 <= self.band_width < math.inf:
            raise ValueError(f"expected band_width of at least 1.42 tokens, got {self.band_width}")
        if self.depth_scale is not None and not 0 < self.depth_scale < math.inf:
            raise ValueError(f"expected depth_scale above 0, got {self.depth_scale}")
