"""The configuration of the original code, which describes the networks of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import MinLen

from spad.files import as_kind, read_text
from spad.settings import Count, PositiveFloat, checked

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


def read_release_config(path: Path | None) -> dict[str, Any]:
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
