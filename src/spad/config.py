"""Settings of commands, as values; `spad.data.config` and `spad.training.config` have the others.

Imports nothing heavy: the command line reads them.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Conversion:
    """Turn a checkpoint of the original release into a model folder of safetensors."""

    checkpoint: Positional[Path]
    """The original's .ckpt file."""
    output: Positional[Path]
    """Folder to make."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer (vocab.json, merges.txt, …), and a config.json if
    the text encoder is not ViT-L/14; the hub's cache if left out."""
    config: Path | None = None
    """The original's configuration (YAML or JSON), if it is not a released one."""
    weights: Literal["ema", "raw"] = "ema"
    """The averaged weights, which the original samples with, or those of the last step."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the weights; float16 takes half the space."""
    name: str = ""
    """Of the model; that of the folder if left out."""


@dataclass(frozen=True)
class InitFromSD:
    """Widen Stable Diffusion 1.5 to an untrained SPAD: what training starts from."""

    source: Positional[Path]
    """Folder in diffusers' layout, or a single .ckpt or .safetensors file."""
    output: Positional[Path]
    """Folder to make."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer, for a single file; the hub's cache if left out."""
    cameras: Literal["absolute", "relative"] = "absolute"
    """What the camera embedding reads: the release's four views absolute, its two relative."""
    intrinsics: bool = True
    """Whether the camera embedding reads the intrinsics too, as the release's four views."""
    epipolar: Literal["exact", "original", "none"] = "exact"
    """Masks of the attention between views."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the weights."""


@dataclass(frozen=True)
class Download:
    """Fetch a released model from the Hugging Face hub, convert it, install it.

    Goes on where an earlier call stopped. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE hold;
    the model goes to the folder SPAD_HOME.
    """

    model: Positional[str]
    """spad_two_views or spad_four_views."""
    yes: bool = False
    """Fetch without asking."""
    clip: Path | None = None
    """Folder with the files of CLIP's tokenizer, instead of fetching them."""
    weights: Literal["ema", "raw"] = "ema"
    """The averaged weights, which the original samples with, or those of the last step."""
    dtype: Literal["float16", "float32"] = "float32"
    """Of the installed weights; float16 takes half the space."""
    keep_original: bool = False
    """Leave the original in the hub's cache after the conversion."""


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
    size: int | None = None
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
        lowest = {"cells": 1, "sweep_pixels": 2, "panel": 32, "views": 1, "size": 1}
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


@dataclass(frozen=True)
class Generation:
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
    views: int | None = None
    """Number of pictures of each object; 4 if nothing else says."""
    elevation: tuple[float, ...] | None = None
    """Degrees above the horizon: one value, or one per view."""
    azimuth: tuple[float, ...] | None = None
    """Degrees counter-clockwise seen from above, -90 is the front: one value, or one per view.
    Evenly round if left out, from -60 or where the model says."""
    radius: tuple[float, ...] | None = None
    """Distance from the object, whose radius is 1: one value, or one per view."""
    fov_deg: tuple[float, ...] | None = None
    """Field of view across the picture, degrees: one value, or one per view."""
    cameras: Path | None = None
    """Poses instead of an orbit: transforms.json, a COLMAP text model or Blender cameras."""
    image: Path | None = None
    """Picture of the object as the first camera sees it; the other views are drawn to fit."""
    model: str = "mini"
    """Name of a model (see `spad models`) or a folder."""
    output: Path | None = None
    """Folder to make; spad-out/PROMPT-SEED if left out."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    seed: int = 0
    """Of the starting noise. The same seed on the same machine draws the same pictures."""
    cfg_scale: float | None = None
    """Strength of the prompt; 1 turns guidance off. The model's own if left out, which may be
    another with --image."""
    guidance_rescale: float | None = None
    """0 to 1: how far the prompt's strength is kept from raising contrast and colour."""
    blob_sigma: float | None = None
    """Size of the blob that sampling starts from, in half pictures."""
    ddim_steps: int | None = None
    """Denoising steps, of any scheduler."""
    scheduler: str | None = None
    """ddim, dpm++, unipc, euler or original (DDIM at the release's timesteps)."""
    cache_interval: int = 1
    """Run the deep blocks on every so many steps alone: 2 or 3 are faster and lose a little."""
    size: int | None = None
    """Side of the pictures in pixels."""
    attention: Literal["reference", "sdpa", "banded", "flex"] | None = None
    """How attention between views is computed; the fastest if left out. All give the same."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and computation: the short ones take half the memory and, on a GPU, less time."""
    ball_radius: float | None = None
    """End epipolar bands where rays leave this ball about the origin; as the model has it if left
    out. Faster; a model that learned without draws a little differently."""
    device: str | None = None
    """Such as cpu, cuda or mps; the fastest there is if left out."""
