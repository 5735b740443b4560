"""Graphics cards that training of full-size models fits, without weights and without a card.

`spad train --dry-run` says the same of a model that is there.

    python benchmarks/memory_table.py
"""

from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from spad.model import MultiViewUNet, SPADPipeline
from spad.model.bases import SD15, SDXL, Base
from spad.training.build import Denoiser
from spad.training.config import PRESETS, TrainConfig
from spad.training.memory import CARDS_GIB, card_table

OPTIMIZERS = ("adamw", "adamw-8bit")


def full_size(base: Base, settings: TrainConfig, view_attention: str) -> SPADPipeline:
    """A pipeline of a base model's size, without weights and tokenizers."""
    # A step of training is counted without tokenizers and noise.
    parts: dict[str, Any] = {"tokenizer": None, "scheduler": None}
    with torch.device("meta"):
        for kind in base.text_encoders:
            encoder = CLIPTextModelWithProjection if kind.is_projected else CLIPTextModel
            parts[kind.part] = encoder(CLIPTextConfig(**kind.config))
        parts["vae"] = AutoencoderKL(**base.vae)
        parts["unet"] = MultiViewUNet(
            **base.unet,
            sample_size=base.image_size // 8,
            view_attention=view_attention,
            camera_intrinsics=bool(settings.model.intrinsics),
        )
    return SPADPipeline(**parts)


def main() -> None:
    for preset, base, attention in (
        ("four-views", SD15, "shared"),
        ("sdxl", SDXL, "added"),
        ("sdxl", SDXL, "shared"),
    ):
        settings = PRESETS[preset]
        pipeline = full_size(base, settings, attention)
        size = f"{base.image_size} x {base.image_size}"
        print(f"\n`--preset {preset} --view-attention {attention}`, {base.title}, {size}\n")
        print("| card | " + " | ".join(f"`{name}`" for name in OPTIMIZERS) + " |")
        print("|---|---|---|")
        tables = [
            card_table(
                Denoiser(pipeline),
                pipeline.vae,
                replace(settings, optimizer=replace(settings.optimizer, optimizer=name)),
            )
            for name in OPTIMIZERS
        ]
        for card in CARDS_GIB:
            print(f"| {card} GB | " + " | ".join(", ".join(t[card]) for t in tables) + " |")


if __name__ == "__main__":
    main()
