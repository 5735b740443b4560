"""Tiny base models of every kind, as pipelines of diffusers and as single files."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from spad.model.bases import BASES, SDXL, Base

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789![]"
_TOKENS = ["!", *_LETTERS[:-3], "[", "]", *(letter + "</w>" for letter in _LETTERS)]
_TOKENS += ["<|startoftext|>", "<|endoftext|>"]
IMAGE_SIZE = 64


def _tiny(base: Base) -> Base:
    """A base model of the same kind, with few and narrow layers."""
    unet = {**base.unet, "layers_per_block": 1, "cross_attention_dim": 32}
    if base.name == "sdxl":
        unet |= {"block_out_channels": [32, 32, 64], "attention_head_dim": [1, 2, 4]}
        unet |= {"transformer_layers_per_block": [1, 1, 2], "cross_attention_dim": 64}
        unet |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 48}
    else:
        unet |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
        unet |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
        unet |= {"block_out_channels": [32, 64]}
        unet |= {"attention_head_dim": 2 if base.name == "sd15" else [2, 4]}
    vae = {**base.vae, "layers_per_block": 1, "block_out_channels": [32] * 4}
    encoders = tuple(
        replace(
            kind,
            config={
                **kind.config,
                "vocab_size": len(_TOKENS),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "projection_dim": 32,
                "bos_token_id": len(_TOKENS) - 2,
                "eos_token_id": len(_TOKENS) - 1,
            },
        )
        for kind in base.text_encoders
    )
    return replace(base, unet=unet, vae=vae, text_encoders=encoders, image_size=IMAGE_SIZE)


TINY = {base.name: _tiny(base) for base in BASES}


def tokenizer_folder(folder: Path) -> Path:
    """Files of a tokenizer whose tokens are letters."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: number for number, token in enumerate(_TOKENS)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def plain_pipeline(base: Base, tokenizers: Path):
    """A pipeline of diffusers with random weights."""
    torch.manual_seed(0)
    parts = {}
    for kind in base.text_encoders:
        kind_class = CLIPTextModelWithProjection if kind.is_projected else CLIPTextModel
        parts[kind.part] = kind_class(CLIPTextConfig(**kind.config)).eval()
        parts[kind.tokenizer] = CLIPTokenizer.from_pretrained(
            tokenizers, pad_token=kind.padding, model_max_length=77
        )
    parts["unet"] = UNet2DConditionModel(**base.unet, sample_size=IMAGE_SIZE // 8).eval()
    parts["vae"] = AutoencoderKL(**base.vae, sample_size=IMAGE_SIZE).eval()
    parts["scheduler"] = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    if base.name == SDXL.name:
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_single_file(pipeline, base: Base, path: Path) -> Path:
    """Write the weights under the names of the original code."""
    state = {f"model.diffusion_model.{k}": v for k, v in _unet(pipeline.unet).items()}
    state |= {f"first_stage_model.{k}": v for k, v in _vae(pipeline.vae).items()}
    for kind in base.text_encoders:
        weights = getattr(pipeline, kind.part).state_dict()
        weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}
        if kind.layout == "openclip":
            weights = _openclip(weights)
        state |= {kind.prefix + k: v for k, v in weights.items()}
    save_file({k: v.clone().contiguous() for k, v in state.items()}, path)
    return path


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet(unet) -> dict[str, torch.Tensor]:
    rows, levels = unet.config.layers_per_block, len(unet.config.block_out_channels)
    # Prefixes in diffusers' layout and in the original's.
    names = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    names |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    names |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    names |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    names |= {"mid_block.resnets.1": "middle_block.2"}
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        for row in range(rows):
            block = f"input_blocks.{(rows + 1) * level + row + 1}"
            names |= {f"{down}.resnets.{row}": f"{block}.0"}
            names |= {f"{down}.attentions.{row}": f"{block}.1"}
        names[f"{down}.downsamplers.0.conv"] = f"input_blocks.{(rows + 1) * (level + 1)}.0.op"
        for row in range(rows + 1):
            block = f"output_blocks.{(rows + 1) * level + row}"
            names |= {f"{up}.resnets.{row}": f"{block}.0", f"{up}.attentions.{row}": f"{block}.1"}
        place = 2 if "CrossAttn" in unet.config.up_block_types[level] else 1
        last = f"output_blocks.{(rows + 1) * level + rows}"
        names[f"{up}.upsamplers.0.conv"] = f"{last}.{place}.conv"
    return _renamed(unet, names, _RESNET)


def _vae(vae) -> dict[str, torch.Tensor]:
    levels, names = len(vae.config.block_out_channels), {}
    for side, blocks in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        for level in range(levels):
            # Blocks of the decoder are counted from the finest.
            theirs = level if side == "encoder" else levels - 1 - level
            ours, block = f"{side}.{blocks}.{level}", f"{side}.{blocks[:-7]}.{theirs}"
            for row in range(3):
                names[f"{ours}.resnets.{row}"] = f"{block}.block.{row}"
            names[f"{ours}.downsamplers.0.conv"] = f"{block}.downsample.conv"
            names[f"{ours}.upsamplers.0.conv"] = f"{block}.upsample.conv"
        mid = f"{side}.mid_block"
        names |= {f"{mid}.resnets.{n}": f"{side}.mid.block_{n + 1}" for n in (0, 1)}
        names |= {f"{mid}.attentions.0": f"{side}.mid.attn_1"}
        names |= {f"{side}.conv_norm_out": f"{side}.norm_out"}
    inner = {"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_out.0": "proj_out"}
    inner |= {"to_q": "q", "to_k": "k", "to_v": "v"}
    renamed = _renamed(vae, names, inner)
    return {
        k: v[..., None, None] if ".attn_1." in k and v.ndim == 2 else v for k, v in renamed.items()
    }


def _renamed(module, names: dict[str, str], inner: dict[str, str]) -> dict[str, torch.Tensor]:
    """Weights under other names: of the longest known prefix, then of a part below it."""
    renamed = {}
    for name, value in module.state_dict().items():
        for ours in sorted(names, key=len, reverse=True):
            if name.startswith(f"{ours}."):
                rest = name.removeprefix(ours)
                for part, theirs in inner.items():
                    if rest.startswith(f".{part}."):
                        rest = rest.replace(f".{part}.", f".{theirs}.", 1)
                name = names[ours] + rest
                break
        renamed[name] = value
    return renamed


def _openclip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in weights.items():
        name = name.removeprefix("text_model.")
        for ours, theirs in {
            "embeddings.position_embedding.weight": "positional_embedding",
            "embeddings.token_embedding": "token_embedding",
            "encoder.layers.": "transformer.resblocks.",
            "final_layer_norm": "ln_final",
            "layer_norm": "ln_",
            "self_attn": "attn",
            "fc1": "c_fc",
            "fc2": "c_proj",
        }.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    for name in [n for n in renamed if ".q_proj." in n]:
        joined = [renamed.pop(name.replace(".q_", f".{one}_")) for one in "qkv"]
        renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(joined)
    if "text_projection.weight" in renamed:
        renamed["text_projection"] = renamed.pop("text_projection.weight").T
    else:
        # The last layer and the projection are there, but not used.
        for name in [n for n in renamed if ".resblocks.1." in n]:
            renamed[name.replace(".1.", ".2.")] = renamed[name] + 1
        renamed["text_projection"] = torch.zeros(32, 32)
    return renamed | {"logit_scale": torch.zeros(())}
