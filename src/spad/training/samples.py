"""Sample pictures that a run shows of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from spad.cameras import Cameras
from spad.hub.registry import GenerationDefaults, model_info
from spad.images.grids import prompt_grid
from spad.model import SPADPipeline
from spad.model.schedulers import SCHEDULERS
from spad.training.config import TrainConfig


def generation_defaults(settings: TrainConfig, pipeline: SPADPipeline) -> GenerationDefaults:
    """What a model draws with unless told otherwise: as the one it started from, but for guidance.

    Its samples in training are drawn so as well.
    """
    start = GenerationDefaults() if settings.init is None else model_info(settings.init).defaults
    solver = start.scheduler
    if solver == "original" and type(pipeline.scheduler) is not SCHEDULERS["original"]:
        # A changed noise schedule is not the one that the release's timesteps were chosen for.
        solver = "ddim"
    return replace(
        start,
        guidance_scale=settings.guidance_scale,
        guidance_rescale=settings.guidance_rescale,
        scheduler=solver,
    )


def draw_samples(
    pipeline: SPADPipeline, settings: TrainConfig, prompts: Sequence[str]
) -> Image.Image:
    """Fixed prompts from fixed cameras with a fixed seed, as one picture."""
    size, num_views = pipeline.image_size, max(settings.num_views)
    defaults = generation_defaults(settings, pipeline)
    cameras = Cameras.ring(
        num_views,
        defaults.elevation_deg,
        defaults.start_azimuth_deg,
        defaults.radius,
        math.radians(defaults.fov_deg),
        height=size,
        width=size,
    )
    parts = dict(pipeline.components)
    # Its own: sampling leaves its steps in it.
    parts["scheduler"] = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    drawing = SPADPipeline(**parts, prompt_prefix=pipeline.config.prompt_prefix)
    drawing.set_progress_bar_config(disable=True)
    images = drawing(
        list(prompts),
        cameras,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        guidance_rescale=defaults.guidance_rescale,
        blob_sigma=defaults.blob_sigma,
    ).images
    return prompt_grid(dict(zip(prompts, images, strict=True)))


def as_array(picture: Image.Image) -> np.ndarray:
    """uint8 (1, h, w, 3), as trackers take it."""
    return np.asarray(picture.convert("RGB"))[None]


def sample_prompts(settings: TrainConfig, captions: Sequence[str], count: int = 4) -> list[str]:
    """Those asked for, or some of the captions, from all over the alphabet."""
    if settings.sample_prompts:
        return list(dict.fromkeys(settings.sample_prompts))
    places = np.linspace(0, len(captions) - 1, min(count, len(captions))).round().astype(int)
    return [captions[place] for place in places]
