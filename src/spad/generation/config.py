"""Settings of `spad generate`. Imports nothing heavy: the command line reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, MinLen
from tyro.conf import Positional, arg

from spad.settings import (
    AzimuthDeg,
    Count,
    Distance,
    ElevationDeg,
    FovDeg,
    GuidanceScale,
    Seed,
    Share,
    checked,
)


@dataclass(frozen=True)
@checked
class GenerateConfig:
    """Draw one object, or several, from the cameras you ask for.

    Cameras stand on an orbit (--views, --elevation, --azimuth, --radius, --fov-deg) or come from
    a file (--cameras). What is left out takes the model's own default.
    """

    prompt: Positional[str | None] = None
    """What to draw: one object, as in "a blue fish"."""
    prompts: Path | None = None
    """Text file of prompts, one per line, instead of a prompt."""
    negative_prompt: str = ""
    """What to lead away from."""
    views: Count | None = None
    """Number of pictures of each object; 4 if nothing else says, 8 with --mesh."""
    elevation: Annotated[tuple[ElevationDeg, ...], MinLen(1)] | None = None
    """Degrees above the horizon: one value, or one per view."""
    azimuth: Annotated[tuple[AzimuthDeg, ...], MinLen(1)] | None = None
    """Degrees counter-clockwise seen from above, -90 is the front: one value, or one per view.
    Evenly round if left out, from -60 or where the model says."""
    radius: Annotated[tuple[Distance, ...], MinLen(1)] | None = None
    """Distance from the object, whose radius is 1: one value, or one per view."""
    fov_deg: Annotated[tuple[FovDeg, ...], MinLen(1)] | None = None
    """Field of view across the picture, degrees: one value, or one per view."""
    cameras: Path | None = None
    """Poses instead of an orbit: transforms.json, a COLMAP text model or Blender cameras."""
    image: Path | None = None
    """Picture of the object as the first camera sees it; the other views are drawn to fit."""
    mesh: bool = False
    """Also make a 3D model of the views: model.glb, and model.webp, which turns it."""
    model: str = "mini"
    """Name of a model (see `spad models`) or a folder."""
    output: Path | None = None
    """Folder to make; spad-out/PROMPT-SEED if left out."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    seed: Seed = 0
    """Of the starting noise. The same seed on the same machine draws the same pictures."""
    guidance_scale: Annotated[GuidanceScale | None, arg(aliases=("--cfg-scale",))] = None
    """Strength of the prompt; 1 turns guidance off. The model's own if left out, which may be
    another with --image."""
    guidance_rescale: Share | None = None
    """How far the prompt's strength is kept from raising contrast and colour."""
    blob_sigma: Annotated[float, Interval(ge=0.01, le=100)] | None = None
    """Size of the blob that sampling starts from, in half pictures."""
    steps: Annotated[Count | None, arg(aliases=("--ddim-steps",))] = None
    """Denoising steps, of any scheduler."""
    scheduler: str | None = None
    """ddim, dpm++, unipc, euler or original (DDIM at the release's timesteps)."""
    deep_cache_interval: Count = 1
    """Run the deep blocks on every so many steps alone: 2 or 3 are faster and lose a little."""
    image_size: Annotated[Count | None, arg(aliases=("--size",))] = None
    """Side of the pictures in pixels."""
    attention: Literal["reference", "sdpa", "banded", "flex"] | None = None
    """How attention between views is computed; the fastest if left out. All give the same."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and computation: the short ones take half the memory and, on a GPU, less time."""
    ball_radius: Annotated[float, Interval(ge=0.1, le=10_000)] | None = None
    """End epipolar bands where rays leave this ball about the origin; as the model has it if left
    out. Faster; a model that learned without draws a little differently."""
    device: str | None = None
    """Such as cpu, cuda or mps; the fastest there is if left out."""
