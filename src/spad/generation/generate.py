"""One run of `spad generate`: check everything that was asked for, then load, draw and save."""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

import spad
from spad.files import check_output, read_lines, slug
from spad.generation.config import GenerateConfig
from spad.generation.results import save_many_results, save_results
from spad.hub.registry import (
    ModelInfo,
    check_files,
    check_prompt_length,
    load_model,
    model_info,
    resolve_device,
    weights_hash,
)
from spad.images.modes import as_rgba
from spad.model.vocabulary import describe_reading, read_prompt

if TYPE_CHECKING:
    from spad.cameras import Cameras

__all__ = ["GenerationPlan", "draw", "plan_generation", "save_many_results", "save_results"]

logger = logging.getLogger(__name__)

SCHEDULER_NAMES = ("ddim", "dpm++", "unipc", "euler", "original")
DEFAULT_VIEWS = 4
# A model is made of more views, and of three at least.
MESH_VIEWS, FEWEST_MESH_VIEWS = 8, 3
MANY_VIEWS = 40
OBJECT_RADIUS = 1.0


@dataclass(frozen=True)
class Orbit:
    """Orbit cameras, one value per view; degrees and world units."""

    elevation_deg: tuple[float, ...]
    azimuth_deg: tuple[float, ...]
    radius: tuple[float, ...]
    fov_deg: tuple[float, ...]


@dataclass(frozen=True)
class GenerationPlan:
    """A checked request, with nothing left to the model's defaults.

    Attributes:
        settings: as asked for, defaults filled in.
        prompts: as asked for, each once.
        read_as: as the model reads them, in the same order.
        orbit: None when the cameras come from `settings.cameras`.
        image: what the first camera sees, or None.
        output: the folder to make.
    """

    settings: GenerateConfig
    model: ModelInfo
    prompts: tuple[str, ...]
    read_as: tuple[str, ...]
    orbit: Orbit | None
    image: Image.Image | None
    output: Path


def plan_generation(settings: GenerateConfig) -> GenerationPlan:
    """Check a request without loading torch; words the model does not know are logged.

    Raises: ValueError: anything in it is wrong; the message says what to try.
    """
    prompts = _prompts(settings)
    output = settings.output or _free_output(settings, prompts)
    check_output(output, settings.overwrite)
    image = _read_image(settings.image) if settings.image is not None else None
    if settings.cameras is not None and not settings.cameras.exists():
        raise ValueError(f"expected a camera file or folder, got {settings.cameras}: no such file")
    model = model_info(settings.model)
    defaults = model.defaults

    def given(value, default):
        return default if value is None else value

    settings = dataclasses.replace(
        settings,
        guidance_scale=given(settings.guidance_scale, defaults.guidance(image is not None)),
        guidance_rescale=given(settings.guidance_rescale, defaults.guidance_rescale),
        blob_sigma=given(settings.blob_sigma, defaults.blob_sigma),
        steps=given(settings.steps, defaults.num_inference_steps),
        scheduler=given(settings.scheduler, defaults.scheduler),
        image_size=given(settings.image_size, model.image_size),
    )
    _check_numbers(settings, model)
    orbit = None if settings.cameras is not None else _orbit(settings, model)
    if settings.cameras is not None:
        _refuse_orbit_flags(settings)
    for prompt in (*prompts, settings.negative_prompt):
        check_prompt_length(model, prompt)
    read_as = _read_prompts(prompts, model)
    check_files(model)
    return GenerationPlan(settings, model, prompts, read_as, orbit, image, output)


def draw(plan: GenerationPlan, command: Sequence[str] = ()) -> Path:
    """Draw what was planned, save it, and return the output folder.

    Args:
        command: the command line, for the record.

    Raises: ValueError: the camera file is malformed, the device does not work, or the pipeline
        refuses a setting. OSError: the folder cannot be written.
    """
    import torch

    started = time.monotonic()
    settings = plan.settings
    device = resolve_device(settings.device)
    if settings.dtype == "float16" and device.type == "cpu":
        raise ValueError("expected --dtype float32 or bfloat16 on a CPU, got float16")
    cameras = _cameras(plan)
    _warn_about(cameras)
    pipeline = load_model(plan.model.path, device, getattr(torch, settings.dtype))
    pipeline.use_scheduler(settings.scheduler)
    pipeline.unet.attention_backend = settings.attention
    if settings.ball_radius is not None:
        pipeline.unet.register_to_config(ball_radius=settings.ball_radius)
    images = {}
    for index, (prompt, read_as) in enumerate(zip(plan.prompts, plan.read_as, strict=True)):
        of_how_many = f" {index + 1}/{len(plan.prompts)}" if len(plan.prompts) > 1 else ""
        pipeline.set_progress_bar_config(desc=f"drawing{of_how_many}", unit="step")
        result = pipeline(
            read_as,
            cameras,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
            blob_sigma=settings.blob_sigma,
            deep_cache_interval=settings.deep_cache_interval,
            seed=settings.seed,
            image=plan.image,
        )
        images[prompt] = result.images[0]
    run = _record(plan, command, str(device), time.monotonic() - started)
    if len(images) == 1:
        views = next(iter(images.values()))
        save_results(plan.output, views, cameras, run, settings.overwrite)
    else:
        save_many_results(plan.output, images, cameras, run, settings.overwrite)
    return plan.output


def _prompts(settings: GenerateConfig) -> tuple[str, ...]:
    if (settings.prompt is None) == (settings.prompts is None):
        got = "neither" if settings.prompt is None else "both"
        raise ValueError(f'expected a prompt, as in "a blue fish", or --prompts FILE, got {got}')
    if settings.prompts is None:
        lines = [settings.prompt]
    else:
        lines = [line for _, line in read_lines(settings.prompts)]
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        where = "" if settings.prompts is None else f" in {settings.prompts}"
        raise ValueError(f'expected a prompt{where}, got an empty one; try "a blue fish"')
    return prompts


def _free_output(settings: GenerateConfig, prompts: Sequence[str]) -> Path:
    """spad-out/PROMPT-SEED, with a number behind it when there is one already."""
    stem = slug(prompts[0]) if settings.prompts is None else slug(settings.prompts.stem)
    base = Path("spad-out") / f"{stem}-{settings.seed}"
    folder, number = base, 1
    while folder.exists() and not settings.overwrite:
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _read_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return as_rgba(ImageOps.exif_transpose(image))
    # Pillow raises SyntaxError for broken files of some formats.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no whole picture"
        if type(error) is ValueError:
            reason = str(error)
        raise ValueError(f"expected a picture to condition on, got {path}: {reason}") from error


def _check_numbers(settings: GenerateConfig, model: ModelInfo) -> None:
    if settings.scheduler not in SCHEDULER_NAMES:
        names = ", ".join(SCHEDULER_NAMES)
        raise ValueError(f"expected a scheduler among {names}, got {settings.scheduler!r}")
    if settings.mesh and settings.views is not None and settings.views < FEWEST_MESH_VIEWS:
        raise ValueError(
            f"expected {FEWEST_MESH_VIEWS} or more --views with --mesh, got {settings.views}"
        )
    if settings.steps > model.max_steps:
        raise ValueError(f"expected 1 to {model.max_steps} --steps, got {settings.steps}; try 25")
    multiple = model.image_multiple
    if settings.image_size % multiple:
        nearest = max(1, round(settings.image_size / multiple)) * multiple
        raise ValueError(
            f"expected an --image-size divisible by {multiple}, got {settings.image_size}; "
            f"try {nearest}"
        )


def _refuse_orbit_flags(settings: GenerateConfig) -> None:
    names = ("views", "elevation", "azimuth", "radius", "fov_deg")
    given = [f"--{n.replace('_', '-')}" for n in names if getattr(settings, n) is not None]
    if given:
        raise ValueError(f"expected --cameras or an orbit, got both: leave out {', '.join(given)}")


def _orbit(settings: GenerateConfig, model: ModelInfo) -> Orbit:
    flags = {
        "--elevation": (settings.elevation, model.defaults.elevation_deg),
        "--azimuth": (settings.azimuth, None),
        "--radius": (settings.radius, model.defaults.radius),
        "--fov-deg": (settings.fov_deg, model.defaults.fov_deg),
    }
    lengths = [len(values) for values, _ in flags.values() if values is not None]
    default_views = MESH_VIEWS if settings.mesh else DEFAULT_VIEWS
    views = settings.views or max([n for n in lengths if n > 1], default=default_views)
    start = model.defaults.start_azimuth_deg
    ring = tuple(start + 360.0 * i / views for i in range(views))
    orbit = []
    for name, (values, default) in flags.items():
        if values is None:
            values = ring if default is None else (default,)
        if len(values) not in (1, views):
            raise ValueError(
                f"expected {views} values of {name}, got {len(values)}; "
                "give one per view or a single value"
            )
        orbit.append(values * views if len(values) == 1 else values)
    return Orbit(*orbit)


def _read_prompts(prompts: Sequence[str], model: ModelInfo) -> tuple[str, ...]:
    captions = model.captions()
    if not captions:
        return tuple(prompts)
    readings = [read_prompt(prompt, captions) for prompt in prompts]
    for reading in readings:
        for sentence in describe_reading(reading, captions, model.name):
            logger.warning(sentence)
    return tuple(reading.prompt for reading in readings)


def _cameras(plan: GenerationPlan) -> Cameras:
    from spad.cameras import Cameras, load_cameras

    size = plan.settings.image_size
    if plan.orbit is not None:
        return Cameras.orbit(
            plan.orbit.elevation_deg,
            plan.orbit.azimuth_deg,
            plan.orbit.radius,
            [math.radians(fov) for fov in plan.orbit.fov_deg],
            height=size,
            width=size,
        )
    cameras = load_cameras(plan.settings.cameras, size, size).cameras
    # The longer side becomes `size`; the other keeps the shape as far as whole latents allow.
    multiple = plan.model.image_multiple
    longer = max(cameras.height, cameras.width)
    height, width = (
        max(1, round(size * side / longer / multiple)) * multiple
        for side in (cameras.height, cameras.width)
    )
    return cameras.resized(height, width)


def _warn_about(cameras: Cameras) -> None:
    if len(cameras) > MANY_VIEWS:
        logger.warning(
            "%d views attend to each other: memory and time grow with their square", len(cameras)
        )
    inside = [i for i, r in enumerate(cameras.radius.tolist()) if r < OBJECT_RADIUS]
    if inside:
        logger.warning(
            "camera %d stands inside the object, a sphere of radius 1 at the origin", inside[0]
        )


def _record(
    plan: GenerationPlan, command: Sequence[str], device: str, seconds: float
) -> dict[str, Any]:
    import diffusers
    import torch
    import transformers

    settings = plan.settings
    return {
        "prompts": list(plan.prompts),
        "read_as": {p: r for p, r in zip(plan.prompts, plan.read_as, strict=True) if p != r},
        "negative_prompt": settings.negative_prompt,
        "model": plan.model.name,
        "model_sha256": weights_hash(plan.model),
        "image": settings.image,
        "seed": settings.seed,
        "guidance_scale": settings.guidance_scale,
        "guidance_rescale": settings.guidance_rescale,
        "blob_sigma": settings.blob_sigma,
        "num_inference_steps": settings.steps,
        "scheduler": settings.scheduler,
        "deep_cache_interval": settings.deep_cache_interval,
        "attention": settings.attention,
        "ball_radius": settings.ball_radius,
        "image_size": settings.image_size,
        "dtype": settings.dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 2),
        "command": list(command),
        "versions": {
            "spad": spad.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
