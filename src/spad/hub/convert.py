"""Convert checkpoints of the original release to model folders.

Stable Diffusion's weights are converted by diffusers. SPAD adds a widened `proj_in` in every
transformer, whose last six input channels are the Plücker map, and `cc_projection`, the camera
embedding.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from annotated_types import MinLen
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

from spad.files import as_kind, check_space, first_line, read_json, read_text, whole_folder
from spad.hub.checkpoint import read_checkpoint
from spad.hub.config import ConvertConfig
from spad.hub.registry import GenerationDefaults, save_model_manifest
from spad.model import MultiViewUNet, ReleasedDDIMScheduler, SPADPipeline
from spad.model.bases import SD15, Base, TextEncoderKind
from spad.model.finite import convert_weights
from spad.model.ray_encoding import PLUCKER_CHANNELS
from spad.model.released import CLIP_REPOSITORY, RELEASED
from spad.settings import Count, PositiveFloat, checked

logger = logging.getLogger(__name__)

# Prefix of multi-view captions in the release's training.
PROMPT_PREFIX = "[tdv] "
_MOST_TOKENS = 77
_TOKENIZER_FILES = ("vocab.json", "merges.txt")

# The parts of the release's configuration that describe its networks: Stable Diffusion 1.5's.
RELEASE: dict[str, Any] = {
    "unet_config": {
        "params": {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "attention_resolutions": [4, 2, 1],
            "num_res_blocks": 2,
            "channel_mult": [1, 2, 4, 4],
            "num_heads": 8,
            "transformer_depth": 1,
            "context_dim": 768,
        }
    },
    "first_stage_config": {
        "params": {
            "ddconfig": {
                "z_channels": 4,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 128,
                "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
            }
        }
    },
}
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
UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


@dataclass(frozen=True)
@checked
class _UNetParams:
    """Parts of the original's configuration that are checked; so are those of the classes below."""

    image_size: Count
    in_channels: Count
    out_channels: Count
    model_channels: Count
    num_res_blocks: Count
    num_heads: Count
    transformer_depth: Count
    context_dim: Count
    attention_resolutions: tuple[Count, ...]
    channel_mult: Annotated[tuple[Count, ...], MinLen(1)]
    rest: dict[str, Any]


@dataclass(frozen=True)
@checked
class _AutoencoderParams:
    z_channels: Count
    in_channels: Count
    out_ch: Count
    ch: Count
    num_res_blocks: Count
    ch_mult: Annotated[tuple[Count, ...], MinLen(1)]
    rest: dict[str, Any]


@dataclass(frozen=True)
class _UNet:
    params: _UNetParams
    rest: dict[str, Any]


@dataclass(frozen=True)
class _Autoencoder:
    ddconfig: _AutoencoderParams
    rest: dict[str, Any]


@dataclass(frozen=True)
class _FirstStage:
    params: _Autoencoder
    rest: dict[str, Any]


@dataclass(frozen=True)
@checked
class _Params:
    unet_config: _UNet
    first_stage_config: _FirstStage
    rest: dict[str, Any]
    linear_start: PositiveFloat = 0.00085
    linear_end: PositiveFloat = 0.012
    scale_factor: PositiveFloat = 0.18215


@dataclass(frozen=True)
class _Model:
    params: _Params
    rest: dict[str, Any]


@dataclass(frozen=True)
class _Config:
    model: _Model
    rest: dict[str, Any]


@dataclass(frozen=True)
@checked
class _TextEncoder:
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    rest: dict[str, Any]


def convert_checkpoint(settings: ConvertConfig) -> Path:
    """Convert a checkpoint of the release to a model folder, whole or not at all.

    Every weight of the file is used or listed in `IGNORED`, except that of raw and averaged UNet
    weights only those of `settings.weights` are used.

    Raises: ValueError: the file is no complete checkpoint of this model, the tokenizer is not
        found, the output folder exists or is being written. OSError: the disk is full.
    """
    with whole_folder(settings.output) as folder:
        state = read_checkpoint(settings.checkpoint)
        params = _read_config(settings.config)
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
                raise _unlike_spad(f"has {name} with shape {tuple(widened.shape)}")
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
        raise _unlike_spad(f"has no cc_projection.0.weight{hint}")
    shape = tuple(state["cc_projection.0.weight"].shape)
    if len(shape) != 2:
        raise _unlike_spad(f"has cc_projection.0.weight with shape {shape}")
    # The released four views read intrinsics and absolute cameras, the two views neither.
    width, camera_dim = shape
    has_intrinsics = bool(params.get("use_intrinsic", camera_dim == 8))
    is_absolute = bool(params.get("use_abs_extrinsics", camera_dim == 8))
    config, weights = original_unet(_chosen_weights(state, which), params)
    for index, layer in ((0, "linear_1"), (2, "linear_2")):
        for kind in ("weight", "bias"):
            name = f"cc_projection.{index}.{kind}"
            if name not in state:
                raise _unlike_spad(f"has no {name}")
            weights[f"camera_embedding.{layer}.{kind}"] = state[name]
    with _built("unet_config"), torch.device("meta"):
        unet = MultiViewUNet(
            **config,
            camera_vector="absolute" if is_absolute else "relative",
            camera_intrinsics=has_intrinsics,
            camera_embedding_dim=width,
        )
    fill(unet, weights, "the UNet")
    return unet


def plain_unet(state: Mapping[str, Tensor], params: Mapping) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and weights, in diffusers' layout, of a UNet in the original's layout."""
    with _built("unet_config"):
        config = create_unet_diffusers_config_from_ldm({"model": {"params": params}}, {})
    config["sample_size"] = params["unet_config"]["params"]["image_size"]
    return config, _converted(convert_ldm_unet_checkpoint, state, config)


def vae_of(state: Mapping[str, Tensor], params: Mapping[str, Any]) -> AutoencoderKL:
    """Autoencoder of a checkpoint in the original's layout; `params` as for `released_parts`."""
    params = {"scale_factor": 0.18215, **params}
    with _built("first_stage_config"):
        config = create_vae_diffusers_config_from_ldm({"model": {"params": params}}, {})
    latent_size = params["unet_config"]["params"]["image_size"]
    config["sample_size"] = latent_size * 2 ** (len(config["block_out_channels"]) - 1)
    return _vae(state, config)


def _vae(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> AutoencoderKL:
    weights = _with_prefix(state, _VAE)
    with _built("first_stage_config"), torch.device("meta"):
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
    with _built("text encoder's config.json"), torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**config))
    weights = {k: v for k, v in state.items() if k.startswith(_TEXT) and k not in IGNORED}
    _fill_text_encoder(encoder, convert_ldm_clip_checkpoint(weights))
    return encoder


def _fill_text_encoder(encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    # transformers 5 dropped a level of names, and still reads files that have it.
    level = "" if any(k.startswith("text_model.") for k in encoder.state_dict()) else "text_model."
    weights = {k.removeprefix(level): v for k, v in weights.items()}
    fill(encoder, weights, "the text encoder")


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
    parts = (_VAE, _TEXT, "cc_projection.")
    for name in state:
        if not (name in raw or name in names or name in IGNORED or name.startswith(parts)):
            raise _unlike_spad(f"also has {name}")
    if not raw:
        raise _unlike_spad(f"has no {UNET}…")
    if which == "raw":
        return raw
    for ema_name in names:
        if ema_name not in state:
            raise _unlike_spad(f"has no {ema_name}; --weights raw needs none")
    return {name: state[ema_name] for ema_name, name in names.items()}


def _converted(
    convert: Callable, state: Mapping[str, Tensor], config: Mapping
) -> dict[str, Tensor]:
    try:
        converted = convert(dict(state), config=config)
    except (KeyError, IndexError, AttributeError) as error:
        raise _unlike_spad(f"has no weights that belong to {error}") from error
    # A converted weight is the same tensor, or a view of one with its last dimensions dropped.
    used = {id(value if value._base is None else value._base) for value in converted.values()}
    for name, value in state.items():
        if id(value) not in used and id(value._base) not in used:
            raise _unlike_spad(f"also has {name}")
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
        raise _unlike_spad(f"has nothing for {name} of {what}")
    for name, value in weights.items():
        if name not in expected:
            raise _unlike_spad(f"also has {name} of {what}")
        if expected[name].is_floating_point() and not value.is_floating_point():
            raise _unlike_spad(f"has {name} of {what} as {value.dtype}")
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            raise _unlike_spad(f"has {name} of {what} with shape {shapes}")
    module.load_state_dict(weights, strict=False, assign=True)
    module.eval()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Context: errors of the weights in a file begin with its path."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def _built(what: str) -> Iterator[None]:
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


def _unlike_spad(how: str) -> ValueError:
    return ValueError(
        f"expected a checkpoint of the model that the configuration describes, but the file {how}"
    )


def _read_config(path: Path | None) -> dict[str, Any]:
    """`model.params` of a configuration in the original's layout. Default: Stable Diffusion 1.5."""
    if path is None:
        return RELEASE
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: expected YAML or JSON, got other text ({error})") from error
    as_kind(content, _Config, path)
    return content["model"]["params"]


def tokenizer_of(folder: Path | None, padding: str | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer from its files. Default: those in the hub's cache.

    Args:
        padding: token that fills texts up. Default: as the files say.

    Raises: ValueError: files are missing.
    """
    if folder is None:
        found = try_to_load_from_cache(CLIP_REPOSITORY, _TOKENIZER_FILES[0])
        folder = Path(found).parent if isinstance(found, str) else None
    missing = [n for n in _TOKENIZER_FILES if folder is None or not (folder / n).is_file()]
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
