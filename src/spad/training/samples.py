"""Sample images during training."""

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
    """Default sampling settings of the trained model: those of `init`, with the run's guidance.

    Sample images during training use them too.
    """
    start = GenerationDefaults() if settings.init is None else model_info(settings.init).defaults
    solver = start.scheduler
    if solver == "original" and type(pipeline.scheduler) is not SCHEDULERS["original"]:
        # The release's timesteps do not fit a changed noise schedule.
        solver = "ddim"
    return replace(
        start,
        guidance_scale=settings.record.guidance_scale,
        guidance_rescale=settings.record.guidance_rescale,
        scheduler=solver,
    )


def draw_samples(
    pipeline: SPADPipeline, settings: TrainConfig, prompts: Sequence[str]
) -> Image.Image:
    """A grid of images of prompts, with fixed cameras and seed."""
    size, num_views = pipeline.image_size, max(settings.batch.views)
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
    # A copy, since sampling changes the scheduler's timesteps.
    parts["scheduler"] = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    drawing = SPADPipeline(**parts, prompt_prefix=pipeline.config["prompt_prefix"])
    drawing.set_progress_bar_config(disable=True)
    images = drawing(
        list(prompts),
        cameras,
        num_inference_steps=settings.record.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        guidance_rescale=defaults.guidance_rescale,
        blob_sigma=defaults.blob_sigma,
    ).images
    return prompt_grid(dict(zip(prompts, images, strict=True)))


def as_array(image: Image.Image) -> np.ndarray:
    """An image as uint8 (1, h, w, 3), the format of trackers."""
    return np.asarray(image.convert("RGB"))[None]


def sample_prompts(settings: TrainConfig, captions: Sequence[str], count: int = 4) -> list[str]:
    """Prompts of the settings, or `count` captions, evenly spaced in alphabetical order."""
    if settings.record.sample_prompts:
        return list(dict.fromkeys(settings.record.sample_prompts))
    places = np.linspace(0, len(captions) - 1, min(count, len(captions))).round()
    return [captions[int(place)] for place in places]
