"""Settings of `spad generate`. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, MinLen
from tyro.conf import Positional, arg

from spad.generation.presets import PresetName
from spad.settings import (
    AzimuthDeg,
    Count,
    CountOrZero,
    Distance,
    ElevationDeg,
    FovDeg,
    GuidanceScale,
    Seed,
    Share,
    checked,
    flag,
)


@dataclass(frozen=True)
@checked
class GenerateConfig:
    """Generate consistent images of an object from any number of cameras.

    Cameras are on an orbit (--views, --elevation, --azimuth, --radius, --fov-deg), are those that
    another tool expects (--preset), or come from a file (--cameras). Each model has its own
    defaults.
    """

    prompt: Positional[str | None] = None
    """Text that describes one object, such as "a blue fish"."""
    prompts: Path | None = None
    """Text file with one prompt per line, instead of a prompt. The same command resumes a stopped
    run."""
    from_run: Annotated[Path | None, arg(name="from")] = None
    """Generate an earlier run again: its run.json, or its folder. Other flags change its
    settings."""
    strict: bool = False
    """Refuse prompts with words that the model does not know."""
    negative_prompt: str = ""
    """Text that guidance pushes the result away from."""
    views: Count | None = None
    """Number of images of each object. Default: that of the values given for the orbit, else 4, or
    8 with --mesh."""
    views_per_pass: Annotated[int, Interval(ge=2)] | None = None
    """Views that are generated together, where all do not fit in memory: first some that are spread
    over the cameras, then the others, with the nearest finished ones held. The same command resumes
    a stopped run. Default: all."""
    elevation: Annotated[tuple[ElevationDeg, ...], MinLen(1)] | None = None
    """Degrees above the horizon: one value, or one per view. Default: the model's, mostly 20."""
    azimuth: Annotated[tuple[AzimuthDeg, ...], MinLen(1)] | None = None
    """Degrees counter-clockwise seen from above, -90 is the front: one value, or one per view.
    Default: evenly round from the model's start, mostly -60."""
    radius: Annotated[tuple[Distance, ...], MinLen(1)] | None = None
    """Distance from the center of the object, whose radius is 1: one value, or one per view.
    Default: the model's, mostly 3.5."""
    fov_deg: Annotated[tuple[FovDeg, ...], MinLen(1)] | None = None
    """Horizontal field of view in degrees: one value, or one per view. Default: the model's, mostly
    40.3."""
    cameras: Path | None = None
    """Camera file instead of an orbit: transforms.json, a COLMAP model or Blender cameras. The
    object is a sphere of radius 1 about the origin."""
    preset: PresetName | None = None
    """Cameras that another tool expects, instead of an orbit; docs/poses.md describes them."""
    save_for: PresetName | None = None
    """Generate from the cameras that another tool expects, and also write the images as it reads
    them, into the folder for-NAME."""
    image: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Images of the object from some of the cameras, as in 0=front.png 2=back.png; the other views
    are generated to fit. A file alone is that of view 0."""
    hold: Path | None = None
    """Folder of views with cameras, such as an earlier output: all but those of --redraw are kept.
    The prompt may be left out."""
    redraw: Annotated[tuple[CountOrZero, ...], MinLen(1)] | None = None
    """Views of --hold to generate anew, counted from 0."""
    mesh: bool = False
    """Reconstruct a 3D model from the images: model.glb, and model.webp, a turntable of it."""
    consistency: Share | None = None
    """Share by which images are moved to renders of one shape while they are generated, three
    times: more makes them agree more, and may lose thin parts. Needs 3 views. Default: 0.5 with
    --mesh, else 0."""
    model: str = "mini"
    """Name of a model (see `spad models`) or a model folder."""
    output: Path | None = None
    """Output folder. Default: spad-out/PROMPT-SEED."""
    overwrite: bool = False
    """Replace the output folder if an earlier run made it."""
    seed: Seed = 0
    """Seed of the starting noise. On one machine, the same seed gives the same images."""
    best_of: Count = 1
    """Generate with so many seeds, from --seed on, and keep the images that are the most consistent
    and the most like the prompt."""
    guidance_scale: Annotated[GuidanceScale | None, arg(aliases=("--cfg-scale",))] = None
    """Strength of text guidance; 1 turns it off. Default: the model's, which may differ with
    --image."""
    guidance_rescale: Share | None = None
    """Share of the contrast added by guidance that is removed. Default: the model's."""
    blob_sigma: Annotated[float, Interval(ge=0.01, le=100)] | None = None
    """Size of the dark blob that sampling starts from; 1 is half the image. Default: the
    model's."""
    steps: Annotated[Count | None, arg(aliases=("--ddim-steps",))] = None
    """Number of denoising steps. Default: the model's."""
    scheduler: str | None = None
    """Sampler: ddim, dpm++, unipc, euler or original (DDIM at the release's timesteps).
    Default: the model's."""
    deep_cache_interval: Count = 1
    """Number of steps for which deep features are used: 2 or 3 are faster and slightly worse."""
    image_size: Count | None = None
    """Side of the images in pixels. Default: the model's."""
    attention: Literal["reference", "sdpa", "banded", "flex"] | None = None
    """Backend of the attention between views; the results are equal. Default: the fastest."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of weights and computation; auto is bfloat16 where the device is fast at it, else
    float32. float32 is the most exact, 16 bits halve the memory."""
    ball_radius: Annotated[float, Interval(ge=0.1, le=10_000)] | None = None
    """Radius of a ball about the origin where epipolar bands end, which saves time. Changes the
    images slightly if the model was trained without. Default: the model's."""
    vae_tiling: bool = False
    """Decode images that are larger than the autoencoder's own in overlapping tiles: needs less
    memory, and changes the images slightly."""
    device: str | None = None
    """Device, such as cpu, cuda or mps. Default: the fastest."""
    executor: Literal["process", "ray"] = "process"
    """Where to generate: in this process, or with a copy of the model on every device of a Ray
    cluster."""
    ray_address: str | None = None
    """Address of a running Ray cluster. Default: one of this machine, for this run."""

    def __post_init__(self) -> None:
        if self.ray_address is not None and self.executor != "ray":
            raise ValueError(f"expected --executor ray with {flag('ray_address')}, got none")


# Flags in the groups in which --help shows them; the others come first.
HELP_GROUPS = {
    "camera": (
        "views", "elevation", "azimuth", "radius", "fov_deg", "cameras", "preset",
    ),
    "output": ("output", "overwrite", "mesh", "save_for", "image_size"),
    "sampling": (
        "seed", "best_of", "steps", "guidance_scale", "guidance_rescale", "negative_prompt",
        "scheduler", "blob_sigma", "consistency",
    ),
    "speed": (
        "device", "dtype", "attention", "deep_cache_interval", "ball_radius", "views_per_pass",
        "vae_tiling", "executor", "ray_address",
    ),
}  # fmt: skip
