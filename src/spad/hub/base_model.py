"""`spad init-from-base`: an untrained SPAD from a text-to-image model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from spad.files import file_hash, read_json, whole_folder
from spad.hub.checkpoint import read_checkpoint
from spad.hub.config import InitFromBaseConfig
from spad.hub.convert import PROMPT_PREFIX, release_scheduler, save_model
from spad.hub.loading import load_exactly
from spad.hub.original_layout import (
    base_text_encoder,
    base_unet,
    base_vae,
    fill,
    named,
    tokenizer_of,
)
from spad.model import MultiViewUNet, SPADPipeline
from spad.model.bases import BASES, Base, base_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Parts:
    """Parts of a base model; text encoders and tokenizers are components by name."""

    base: Base
    title: str
    vae: AutoencoderKL
    text_parts: Mapping[str, Any]
    unet_config: Mapping[str, Any]
    unet_weights: Mapping[str, Tensor]
    prediction_type: str


def init_from_base(settings: InitFromBaseConfig, bases: Sequence[Base] = BASES) -> Path:
    """Save an untrained SPAD from a base model, which for one view gives the same images.

    New weights that add to features are zero.

    Args:
        bases: kinds of single files that are known.

    Raises: as `convert_checkpoint`; ValueError: the model is of no known kind.

    Source: SPAD, section 3.3, and its release.
    """
    if not settings.source.exists():
        raise ValueError(_where_it_is(settings.source, bases))
    with whole_folder(settings.output) as folder:
        if settings.source.is_dir():
            parts = _of_folder(settings.source)
        else:
            parts = _of_file(settings.source, settings.clip, bases)
        downscale = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)
        image_size = settings.image_size or parts.base.image_size
        if image_size % downscale:
            raise ValueError(f"expected --image-size in steps of {downscale}, got {image_size}")
        torch.manual_seed(0)
        unet = MultiViewUNet(
            **{**parts.unet_config, "sample_size": image_size // downscale},
            camera_vector=settings.cameras,
            camera_intrinsics=settings.intrinsics,
            epipolar=settings.epipolar,
        )
        with torch.device("meta"):
            plain = UNet2DConditionModel(**parts.unet_config)
        own = unet.state_dict().keys() - plain.state_dict().keys()
        with named(settings.source):
            fill(unet, parts.unet_weights, "the UNet", may_miss=own)
        scheduler = release_scheduler({})
        scheduler.register_to_config(prediction_type=parts.prediction_type)
        pipeline = SPADPipeline(
            vae=parts.vae,
            unet=unet,
            scheduler=scheduler,
            prompt_prefix=PROMPT_PREFIX,
            **parts.text_parts,
        )
        description = f"untrained: {parts.title} with new layers; train it with spad train"
        with named(settings.source):
            save_model(pipeline, folder, settings.dtype, settings.output.name, description)
    return settings.output


def _of_file(path: Path, clip: Path | None, bases: Sequence[Base]) -> _Parts:
    """Parts of a single file in the layout of the original code."""
    state = read_checkpoint(path)
    base = next((one for one in bases if _has_text_encoders(state, one)), None)
    if base is None:
        titles = ", ".join(one.title for one in bases)
        raise ValueError(f"{path}: expected a checkpoint of {titles}, got another file")
    digest = file_hash(path)
    known = [file.name for file in base.files if file.sha256 == digest]
    logger.info("%s: %s of %s", path.name, known[0] if known else "a variant", base.title)
    text_parts: dict[str, Any] = {
        kind.tokenizer: tokenizer_of(clip, padding=kind.padding) for kind in base.text_encoders
    }
    with named(path):
        text_parts |= {kind.part: base_text_encoder(state, kind) for kind in base.text_encoders}
        return _Parts(
            base,
            f"{base.title} (sha256 {digest})",
            base_vae(state, base),
            text_parts,
            base.unet,
            base_unet(state, base),
            base.prediction_type,
        )


def _has_text_encoders(state: Mapping[str, Tensor], base: Base) -> bool:
    prefixes = [kind.prefix for kind in base.text_encoders]
    return all(any(name.startswith(prefix) for name in state) for prefix in prefixes)


def _of_folder(folder: Path) -> _Parts:
    """Parts of a folder in diffusers' layout."""
    unet = _loaded(UNet2DConditionModel, folder, "unet")
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    base = base_of(config)
    vae = _loaded(AutoencoderKL, folder, "vae")
    if config["in_channels"] != vae.config["latent_channels"]:
        raise ValueError(
            f"{folder}: expected a text-to-image model, got one whose UNet reads "
            f"{config['in_channels']} channels, not the {vae.config['latent_channels']} of latents"
        )
    text_parts = {}
    for kind in base.text_encoders:
        part_class = CLIPTextModelWithProjection if kind.is_projected else CLIPTextModel
        text_parts[kind.part] = _loaded(part_class, folder, kind.part)
        text_parts[kind.tokenizer] = tokenizer_of(folder / kind.tokenizer)
    schedule = folder / "scheduler" / "scheduler_config.json"
    own = read_json(schedule, dict[str, Any]) if schedule.is_file() else {}
    return _Parts(
        base,
        base.title,
        vae,
        text_parts,
        config,
        unet.state_dict(),
        own.get("prediction_type", base.prediction_type),
    )


def _loaded(part_class: Any, folder: Path, part: str) -> Any:
    """A component of a folder, all of whose weights are used."""
    try:
        return load_exactly(part_class, folder / part)
    except ValueError as error:
        raise ValueError(
            f"expected a Stable Diffusion folder in diffusers' layout, got {folder}, where {part} "
            f"{error}"
        ) from error


def _where_it_is(source: Path, bases: Sequence[Base]) -> str:
    """Message on a source that does not exist; it says where a base model of that name is."""
    message = f"expected a folder or a file of a base model, got {source}: there is none"
    known = next((base for base in bases if base.name == str(source).lower()), None)
    if known is None:
        names = ", ".join(base.name for base in bases)
        return f"{message}; to see where those that are known can be found, give {names}"
    files = [
        f"{file.name} (sha256 {file.sha256}) in {' or '.join(file.repositories)}"
        for file in known.files
    ]
    return f"{message}; {known.title} is, on the Hugging Face hub, {', or '.join(files)}"
