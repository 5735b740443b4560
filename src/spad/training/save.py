"""Writing models during training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils.logging import disable_progress_bar

from spad.hub.registry import SHARD_SIZE, save_model_manifest
from spad.model import SPADPipeline
from spad.training.checkpoint_parts import full_tensor
from spad.training.config import TrainConfig
from spad.training.model_card import write_card
from spad.training.samples import generation_defaults


def unsharded_copy(module: nn.Module) -> Any:
    """A copy on the CPU: weights that processes share out put together, adapters merged."""
    weights = {name: full_tensor(weight).cpu() for name, weight in module.state_dict().items()}
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
    settings: TrainConfig,
    captions: Sequence[str],
    num_objects: int,
) -> None:
    """Write `pipeline` with other weights, its manifest and its card, whole or not at all."""
    run_folder = folder.parent
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    modules = (unsharded_copy(pipeline.vae), text_encoder, unet)
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
            license=settings.license,
            author=settings.author,
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
