"""Networks from checkpoints in the original's layout, that of Stable Diffusion's first code.

diffusers converts the weights. Every weight of a file is used, listed in `IGNORED`, or refused by
name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
)
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from spad.files import as_kind, first_line, read_json
from spad.model.bases import SD15, Base, TextEncoderKind
from spad.model.released import CLIP_REPOSITORY
from spad.settings import Count, checked

_MOST_TOKENS = 77
TOKENIZER_FILES = ("vocab.json", "merges.txt")

# Tensors that are not needed: the noise schedule, which follows from its two ends, and counters.
_SCHEDULE = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
}
_BOOKKEEPING = {
    "model_ema.decay",
    "model_ema.num_updates",
    # transformers before 4.31 saved the numbers 0 to 76
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
}
IGNORED = _SCHEDULE | _BOOKKEEPING
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


@dataclass(frozen=True)
@checked
class _TextEncoder:
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    rest: dict[str, Any]


def plain_unet(state: Mapping[str, Tensor], params: Mapping) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and weights, in diffusers' layout, of a UNet in the original's layout."""
    with built("unet_config"):
        config = create_unet_diffusers_config_from_ldm({"model": {"params": params}}, {})
    config["sample_size"] = params["unet_config"]["params"]["image_size"]
    return config, _converted(convert_ldm_unet_checkpoint, state, config)


def vae_of(state: Mapping[str, Tensor], params: Mapping[str, Any]) -> AutoencoderKL:
    """Autoencoder of a checkpoint in the original's layout; `params` as for `released_parts`."""
    params = {"scale_factor": 0.18215, **params}
    with built("first_stage_config"):
        config = create_vae_diffusers_config_from_ldm({"model": {"params": params}}, {})
    latent_size = params["unet_config"]["params"]["image_size"]
    config["sample_size"] = latent_size * 2 ** (len(config["block_out_channels"]) - 1)
    return _vae(state, config)


def _vae(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> AutoencoderKL:
    weights = _with_prefix(state, VAE)
    with built("first_stage_config"), torch.device("meta"):
        vae = AutoencoderKL(**config)
    fill(vae, _converted(convert_ldm_vae_checkpoint, weights, config), "the autoencoder")
    return vae


def base_vae(state: Mapping[str, Tensor], base: Base) -> AutoencoderKL:
    """Autoencoder of a base model's single file."""
    return _vae(state, {**base.vae, "sample_size": base.published_size})


def base_unet(state: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:
    """Weights, in diffusers' layout, of the UNet of a base model's single file."""
    return _converted(convert_ldm_unet_checkpoint, _with_prefix(state, UNET), base.unet)


def base_text_encoder(state: Mapping[str, Tensor], kind: TextEncoderKind) -> nn.Module:
    """A text encoder of a base model's single file."""
    own = _with_prefix(state, kind.prefix)
    if kind.layout == "openclip":
        own = {k: v for k, v in own.items() if _is_read(k.removeprefix(kind.prefix), kind)}
    with torch.device("meta"):
        kind_class = CLIPTextModelWithProjection if kind.is_projected else CLIPTextModel
        encoder = kind_class(CLIPTextConfig(**kind.config))
    if kind.layout == "openclip":
        converted = convert_open_clip_checkpoint(encoder, own, kind.prefix)
    else:
        converted = convert_ldm_clip_checkpoint(own, kind.prefix)
    _fill_text_encoder(encoder, converted)
    return encoder


def _is_read(name: str, kind: TextEncoderKind) -> bool:
    """Whether a weight in OpenCLIP's layout is one of those that a base model reads."""
    layer = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    if layer is not None:
        return int(layer[1]) < kind.config["num_hidden_layers"]
    unread = {"logit_scale", "attn_mask"} | (set() if kind.is_projected else {"text_projection"})
    return name not in unread


def _with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k.startswith(prefix) and k not in IGNORED}


def text_encoder_of(state: Mapping[str, Tensor], clip: Path | None) -> CLIPTextModel:
    """Text encoder of a checkpoint in the original's layout; `clip` as for `released_parts`."""
    config = dict(SD15.text_encoders[0].config)
    if clip is not None and (clip / "config.json").is_file():
        path = clip / "config.json"
        config = read_json(path, dict)
        # The whole CLIP model's file, as the hub has it, describes the text model in a part of it.
        config = config.get("text_config", config)
        as_kind(config, _TextEncoder, path)
    with built("text encoder's config.json"), torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**config))
    weights = {k: v for k, v in state.items() if k.startswith(TEXT) and k not in IGNORED}
    _fill_text_encoder(encoder, convert_ldm_clip_checkpoint(weights))
    return encoder


def _fill_text_encoder(encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    # transformers 5 dropped a level of names, and still reads files that have it.
    level = "" if any(k.startswith("text_model.") for k in encoder.state_dict()) else "text_model."
    weights = {k.removeprefix(level): v for k, v in weights.items()}
    fill(encoder, weights, "the text encoder")


def _converted(
    convert: Callable, state: Mapping[str, Tensor], config: Mapping
) -> dict[str, Tensor]:
    try:
        converted = convert(dict(state), config=config)
    except (KeyError, IndexError, AttributeError) as error:
        raise unlike(f"has no weights that belong to {error}") from error
    # A converted weight is the same tensor, or a view of one with its last dimensions dropped.
    used = {id(value if value._base is None else value._base) for value in converted.values()}
    for name, value in state.items():
        if id(value) not in used and id(value._base) not in used:
            raise unlike(f"also has {name}")
    return converted


def fill(
    module: nn.Module, weights: Mapping[str, Tensor], what: str, may_miss: Collection[str] = ()
) -> None:
    """Put weights into a module without a copy.

    Raises: ValueError: a weight not among `may_miss` is missing, one is unknown or of another
        shape; the message calls the module `what`.
    """
    expected = module.state_dict()
    for name in expected.keys() - weights.keys() - set(may_miss):
        raise unlike(f"has nothing for {name} of {what}")
    for name, value in weights.items():
        if name not in expected:
            raise unlike(f"also has {name} of {what}")
        if expected[name].is_floating_point() and not value.is_floating_point():
            raise unlike(f"has {name} of {what} as {value.dtype}")
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            raise unlike(f"has {name} of {what} with shape {shapes}")
    module.load_state_dict(weights, strict=False, assign=True)
    module.eval()


def tokenizer_of(folder: Path | None, padding: str | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer from its files. Default: those in the hub's cache.

    Args:
        padding: token that fills texts up. Default: as the files say.

    Raises: ValueError: files are missing.
    """
    if folder is None:
        found = try_to_load_from_cache(CLIP_REPOSITORY, TOKENIZER_FILES[0])
        folder = Path(found).parent if isinstance(found, str) else None
    missing = [n for n in TOKENIZER_FILES if folder is None or not (folder / n).is_file()]
    # Newer tools save all of it in one file.
    if folder is None or (missing and not (folder / "tokenizer.json").is_file()):
        raise ValueError(
            f"expected {' and '.join(missing)} of CLIP's tokenizer in "
            f"{folder or 'the cache of the hub'}; give a folder that has them as --clip "
            f"(they are those of {CLIP_REPOSITORY})"
        )
    try:
        # The files of the tokenizer alone do not say how long texts may be.
        own = {} if padding is None else {"pad_token": padding, "model_max_length": _MOST_TOKENS}
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, **own)
    # The library raises bare Exception for malformed files.
    except Exception as error:
        reason = first_line(error)
        raise ValueError(
            f"{folder}: expected CLIP's tokenizer, got other files ({reason})"
        ) from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Context: errors of the weights in a file begin with its path."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def built(what: str) -> Iterator[None]:
    """Context: say which part of a configuration describes no network.

    Raises: ValueError: in the place of any error that diffusers or transformers raise for it.
    """
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        raise ValueError(
            f"expected {what} to describe a network, got one that cannot be built ({reason})"
        ) from error


def unlike(how: str) -> ValueError:
    """An error to raise for a file of other weights than the configuration's; `how` it differs."""
    return ValueError(
        f"expected a checkpoint of the model that the configuration describes, but the file {how}"
    )
