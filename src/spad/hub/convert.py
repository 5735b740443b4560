"""Convert checkpoints of the original release to model folders.

Stable Diffusion's weights are converted by diffusers. SPAD adds a widened `proj_in` in every
transformer, whose last six input channels are the Plücker map, and `cc_projection`, the camera
embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel

from spad.files import check_space, whole_folder
from spad.hub.checkpoint import read_checkpoint
from spad.hub.config import ConvertConfig
from spad.hub.original_layout import (
    IGNORED,
    TEXT,
    UNET,
    VAE,
    built,
    fill,
    named,
    plain_unet,
    text_encoder_of,
    tokenizer_of,
    unlike,
    vae_of,
)
from spad.hub.registry import GenerationDefaults, save_model_manifest
from spad.hub.release_config import RELEASE, read_release_config
from spad.model import MultiViewUNet, ReleasedDDIMScheduler, SPADPipeline
from spad.model.finite import convert_weights
from spad.model.ray_encoding import PLUCKER_CHANNELS
from spad.model.released import RELEASED

# Prefix of multi-view captions in the release's training.
PROMPT_PREFIX = "[tdv] "


def convert_checkpoint(settings: ConvertConfig) -> Path:
    """Convert a checkpoint of the release to a model folder, whole or not at all.

    Every weight of the file is used or listed in `IGNORED`, except that of raw and averaged UNet
    weights only those of `settings.weights` are used.

    Raises: ValueError: the file is no complete checkpoint of this model, the tokenizer is not
        found, the output folder exists or is being written. OSError: the disk is full.
    """
    with whole_folder(settings.output) as folder:
        state = read_checkpoint(settings.checkpoint)
        params = read_release_config(settings.config)
        tokenizer = tokenizer_of(settings.clip)
        with named(settings.checkpoint):
            unet, vae, text_encoder = released_parts(state, settings.weights, params, settings.clip)
        pipeline = SPADPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=release_scheduler(params),
            prompt_prefix=PROMPT_PREFIX,
        )
        name = settings.name or settings.output.name
        known = RELEASED.get(name)
        with named(settings.checkpoint):
            save_model(
                pipeline,
                folder,
                settings.dtype,
                name=name,
                description=known.description if known else "converted from the original's layout",
                license=known.license if known else "",
                author="the authors of SPAD" if known else "",
                defaults=GenerationDefaults(
                    elevation_deg=45.0,
                    start_azimuth_deg=0.0,
                    guidance_scale=7.5,
                    num_inference_steps=100,
                    scheduler="original",
                ),
            )
    return settings.output


def split_widened(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the release's transformers, with each widened `proj_in` split in its two parts.

    The input of a widened `proj_in` is the features, then the six channels of the Plücker map.
    """
    split = dict(weights)
    for name, widened in weights.items():
        if name.endswith("proj_in.weight"):
            if widened.ndim not in (2, 4):
                raise unlike(f"has {name} with shape {tuple(widened.shape)}")
            split[name] = widened[:, :-PLUCKER_CHANNELS].contiguous()
            plucker = name.replace("proj_in.", "plucker.linear.")
            split[plucker] = widened[:, -PLUCKER_CHANNELS:].contiguous()
    return split


def original_unet(state: Mapping[str, Tensor], params: Mapping) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and weights of a `MultiViewUNet`, without the camera embedding.

    Args:
        state: weights of the UNet in the original's layout, `model.diffusion_model.…`.
        params: `model.params` of the original's configuration.
    """
    config, weights = plain_unet(state, params)
    return {**config, "epipolar": "original"}, split_widened(weights)


def released_parts(
    state: Mapping[str, Tensor],
    weights: str,
    params: Mapping = RELEASE,
    clip: Path | None = None,
) -> tuple[MultiViewUNet, AutoencoderKL, CLIPTextModel]:
    """UNet, autoencoder and text encoder of a checkpoint of the release; no weight is copied.

    Args:
        state: all weights of the file.
        weights: "ema" or "raw".
        params: `model.params` of the original's configuration. Default for absolute cameras and
            intrinsics: as the shapes of the weights say.
        clip: folder whose `config.json` describes the text encoder. Default: ViT-L/14.

    Raises: ValueError: a weight is missing, unknown, or of another shape.
    """
    unet = _released_unet(state, weights, params)
    return unet, vae_of(state, params), text_encoder_of(state, clip)


def _released_unet(state: Mapping[str, Tensor], which: str, params: Mapping) -> MultiViewUNet:
    if "cc_projection.0.weight" not in state:
        is_plain = UNET + "out.2.bias" in state
        hint = "; for Stable Diffusion there is spad init-from-base" if is_plain else ""
        raise unlike(f"has no cc_projection.0.weight{hint}")
    shape = tuple(state["cc_projection.0.weight"].shape)
    if len(shape) != 2:
        raise unlike(f"has cc_projection.0.weight with shape {shape}")
    # The released four views read intrinsics and absolute cameras, the two views neither.
    width, camera_dim = shape
    has_intrinsics = bool(params.get("use_intrinsic", camera_dim == 8))
    is_absolute = bool(params.get("use_abs_extrinsics", camera_dim == 8))
    config, weights = original_unet(_chosen_weights(state, which), params)
    for index, layer in ((0, "linear_1"), (2, "linear_2")):
        for kind in ("weight", "bias"):
            name = f"cc_projection.{index}.{kind}"
            if name not in state:
                raise unlike(f"has no {name}")
            weights[f"camera_embedding.{layer}.{kind}"] = state[name]
    with built("unet_config"), torch.device("meta"):
        unet = MultiViewUNet(
            **config,
            camera_vector="absolute" if is_absolute else "relative",
            camera_intrinsics=has_intrinsics,
            camera_embedding_dim=width,
        )
    fill(unet, weights, "the UNet")
    return unet


def release_scheduler(params: Mapping) -> ReleasedDDIMScheduler:
    """Noise schedule and timesteps of the release; `params` as for `released_parts`."""
    return ReleasedDDIMScheduler(
        beta_start=params.get("linear_start", 0.00085),
        beta_end=params.get("linear_end", 0.012),
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _chosen_weights(state: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """Raw or averaged weights of the UNet, under the raw names; unknown names are refused.

    The averaged ones have names without dots: `model_ema.diffusion_modeltime_embed0weight`.
    """
    raw = {name: value for name, value in state.items() if name.startswith(UNET)}
    names = {"model_ema." + name.removeprefix("model.").replace(".", ""): name for name in raw}
    parts = (VAE, TEXT, "cc_projection.")
    for name in state:
        if not (name in raw or name in names or name in IGNORED or name.startswith(parts)):
            raise unlike(f"also has {name}")
    if not raw:
        raise unlike(f"has no {UNET}…")
    if which == "raw":
        return raw
    for ema_name in names:
        if ema_name not in state:
            raise unlike(f"has no {ema_name}; --weights raw needs none")
    return {name: state[ema_name] for ema_name, name in names.items()}


def save_model(
    pipeline: SPADPipeline,
    folder: Path,
    dtype: str,
    name: str,
    description: str,
    **manifest: Any,
) -> None:
    """Save a pipeline with its manifest, for which the rest are arguments, as a model folder.

    Raises: ValueError: a weight is not finite, or too large for `dtype`. OSError: the disk has no
        room for it.
    """
    modules = (pipeline.unet, pipeline.vae, *pipeline.text_encoders)
    width = getattr(torch, dtype).itemsize
    needed = sum(p.numel() for module in modules for p in module.parameters()) * width
    check_space([(folder, int(1.05 * needed))], "make room, or try --dtype float16")
    for module in modules:
        convert_weights(module, getattr(torch, dtype), type(module).__name__)
    pipeline.save_pretrained(folder, max_shard_size="1GB")
    save_model_manifest(folder, name, description, captions=(), **manifest)
