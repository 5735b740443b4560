"""Save the trained pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from spad.files import whole_folder
from spad.hub.registry import MANIFEST, SHARD_SIZE, save_model_manifest
from spad.model import SPADPipeline
from spad.model.finite import convert_weights
from spad.training.checkpoint_parts import full_tensor
from spad.training.config import TrainConfig
from spad.training.model_card import write_card
from spad.training.samples import generation_defaults


def unsharded_copy(
    module: nn.Module, originals: Mapping[str, Tensor] | None = None, prefix: str = ""
) -> Any:
    """A copy on the CPU with unsharded weights and merged LoRA layers.

    Args:
        originals: weights that count instead of the module's, under its names after `prefix`.
    """
    weights = {name: full_tensor(weight).cpu() for name, weight in module.state_dict().items()}
    for name, weight in (originals or {}).items():
        if name.startswith(prefix):
            weights[name.removeprefix(prefix)] = weight
    # FSDP replaces a module's class by a derived one.
    own = next(c for c in type(module).__mro__ if not c.__name__.startswith("FSDP"))
    copy = own.from_config(module.config) if hasattr(own, "from_config") else own(module.config)
    adapters: Mapping[str, Any] = getattr(module, "peft_config", {})
    if adapters:
        copy.add_adapter(adapters["default"])
    copy.load_state_dict(weights)
    if adapters:
        copy.fuse_lora()
        copy.unload_lora()
    return copy


def save_pipeline(
    folder: Path,
    pipeline: SPADPipeline,
    trained: Mapping[str, Any],
    settings: TrainConfig,
    captions: Sequence[str],
    num_objects: int,
) -> None:
    """Write `pipeline` with trained components, its manifest and its card, whole or not at all.

    Raises: ValueError: a weight is not finite, or too large for `save_dtype`.
    """
    run_folder = folder.parent
    parts = {"vae": unsharded_copy(pipeline.vae), **trained}
    for module in parts.values():
        dtype = getattr(torch, settings.record.save_dtype)
        convert_weights(module, dtype, f"{type(module).__name__} for --save-dtype")
    for name in ("vae", "unet"):
        # Do not record the local path the model was loaded from.
        parts[name].register_to_config(_name_or_path=run_folder.name)
    whole = SPADPipeline(
        **{**pipeline.components, **parts}, prompt_prefix=pipeline.config["prompt_prefix"]
    )
    description = settings.record.description or f"trained on {num_objects:,} objects"
    # The progress bar of transformers would break that of the training.
    disable_progress_bar()
    with whole_folder(folder, overwrite=True, mark=MANIFEST) as temporary:
        whole.save_pretrained(temporary, max_shard_size=SHARD_SIZE)
        write_card(temporary, run_folder, settings, description, num_objects)
        save_model_manifest(
            temporary,
            run_folder.name,
            description,
            captions,
            generation_defaults(settings, pipeline),
            license=settings.record.license,
            author=settings.record.author,
        )
