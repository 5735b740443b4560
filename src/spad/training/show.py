"""What a run shows of itself: sample pictures, and the model it has come to."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from transformers.utils.logging import disable_progress_bar

from spad.cameras import Cameras
from spad.hub.registry import SHARD_SIZE, GenerationDefaults, find_model, save_model_manifest
from spad.images.grids import prompt_grid
from spad.model import SPADPipeline
from spad.model.schedulers import SCHEDULERS
from spad.training.card import write_card
from spad.training.config import Training
from spad.training.states import gathered


def generation_defaults(settings: Training, pipeline: SPADPipeline) -> GenerationDefaults:
    """What a model draws with unless told otherwise: as the one it started from, but for guidance.

    Its samples in training are drawn so as well.
    """
    start = GenerationDefaults() if settings.init is None else find_model(settings.init).defaults
    solver = start.scheduler
    if solver == "original" and type(pipeline.scheduler) is not SCHEDULERS["original"]:
        # A changed noise schedule is not the one that the release's timesteps were chosen for.
        solver = "ddim"
    return replace(
        start,
        cfg_scale=settings.cfg_scale,
        guidance_rescale=settings.guidance_rescale,
        scheduler=solver,
    )


def draw_samples(pipeline: SPADPipeline, settings: Training, prompts: Sequence[str]) -> Image.Image:
    """Fixed prompts from fixed cameras with a fixed seed, as one picture."""
    size, num_views = pipeline.image_size, max(settings.num_views)
    defaults = generation_defaults(settings, pipeline)
    cameras = Cameras.evenly_round(
        num_views,
        defaults.elevation_deg,
        defaults.azimuth_start_deg,
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
        num_inference_steps=settings.sample_steps,
        cfg_scale=defaults.cfg_scale,
        guidance_rescale=defaults.guidance_rescale,
        blob_sigma=defaults.blob_sigma,
    ).images
    return prompt_grid(dict(zip(prompts, images, strict=True)))


def as_array(picture: Image.Image) -> np.ndarray:
    """uint8 (1, h, w, 3), as trackers take it."""
    return np.asarray(picture.convert("RGB"))[None]


def sample_prompts(settings: Training, captions: Sequence[str], count: int = 4) -> list[str]:
    """Those asked for, or some of the captions, from all over the alphabet."""
    if settings.sample_prompts:
        return list(dict.fromkeys(settings.sample_prompts))
    places = np.linspace(0, len(captions) - 1, min(count, len(captions))).round().astype(int)
    return [captions[place] for place in places]


def whole_copy(module: nn.Module) -> Any:
    """A copy on the CPU: weights that processes share out put together, adapters merged."""
    weights = {name: gathered(weight).cpu() for name, weight in module.state_dict().items()}
    # The class that FSDP has put in the place of a module's own is derived from it.
    own = next(c for c in type(module).__mro__ if not c.__name__.startswith("FSDP"))
    copy = own.from_config(module.config) if hasattr(own, "from_config") else own(module.config)
    has_adapters = getattr(module, "_hf_peft_config_loaded", False)
    if has_adapters:
        copy.add_adapter(module.peft_config["default"])
    copy.load_state_dict(weights)
    if has_adapters:
        copy.fuse_lora()
        copy.unload_lora()
    return copy


def save_pipeline(
    folder: Path,
    pipeline: SPADPipeline,
    unet: nn.Module,
    text_encoder: nn.Module,
    settings: Training,
    captions: Sequence[str],
    num_objects: int,
) -> None:
    """Write `pipeline` with other weights, its manifest and its card, whole or not at all."""
    run_folder = folder.parent
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    modules = (whole_copy(pipeline.vae), text_encoder, unet)
    for module in modules:
        module.half() if settings.save_dtype == "float16" else module.float()
        if hasattr(module, "register_to_config"):
            # Where it was loaded from, on this machine, is nobody else's.
            module.register_to_config(_name_or_path=run_folder.name)
    vae, text_encoder, unet = modules
    whole = SPADPipeline(
        vae,
        text_encoder,
        pipeline.tokenizer,
        unet,
        pipeline.scheduler,
        prompt_prefix=pipeline.config.prompt_prefix,
    )
    description = settings.description or f"learned from {num_objects:,} objects"
    # transformers would draw a bar into ours.
    disable_progress_bar()
    try:
        whole.save_pretrained(temporary, max_shard_size=SHARD_SIZE)
        write_card(temporary, run_folder, settings, description, num_objects)
        save_model_manifest(
            temporary,
            run_folder.name,
            description,
            captions,
            generation_defaults(settings, pipeline),
            licence=settings.licence,
            author=settings.author,
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
