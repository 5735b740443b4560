"""What a run shows of itself: sample pictures, and the model it has come to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from transformers.utils.logging import disable_progress_bar

from spad.cameras import Cameras
from spad.models import SHARD_SIZE, GenerationDefaults, save_model_manifest
from spad.pipeline import SPADPipeline
from spad.results import prompt_grid
from spad.training.card import write_card
from spad.training.config import Training
from spad.training.states import gathered

SAMPLES = "samples"


def draw_samples(pipeline: SPADPipeline, settings: Training, prompts: Sequence[str]) -> Image.Image:
    """Fixed prompts from fixed cameras with a fixed seed, as one picture."""
    size = pipeline.image_size
    cameras = Cameras.evenly_round(
        max(settings.num_views), elevation_deg=20.0, height=size, width=size
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
        cfg_scale=settings.cfg_scale,
        guidance_rescale=settings.guidance_rescale,
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
            GenerationDefaults(
                cfg_scale=settings.cfg_scale, guidance_rescale=settings.guidance_rescale
            ),
            licence=settings.licence,
            author=settings.author,
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
