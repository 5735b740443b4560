"""What is trained: a model from scratch or from another, changed as asked, and its new layers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from spad.cameras import Cameras
from spad.hub.registry import load_autoencoder, load_model
from spad.model import MultiViewUNet, SPADPipeline
from spad.model.conditioning import condition_on_cameras
from spad.model.word_tokenizer import (
    add_words,
    build_text_encoder,
    build_tokenizer,
    is_of_whole_words,
)
from spad.training.config import TrainConfig

logger = logging.getLogger(__name__)

# What a SPAD has beside a plain UNet.
NEW_LAYERS = ("plucker.", "camera_embedding.")


class Denoiser(nn.Module):
    """The UNet and its text encoder as one module: what is wrapped, averaged and checkpointed."""

    def __init__(self, unet: MultiViewUNet, text_encoder: nn.Module):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(
        self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor, cameras: Cameras | None
    ) -> Tensor:
        """Predict what the objective asks for.

        Args:
            noisy: (b, v, c, h, w), timesteps: (b, v), token_ids: (b, length).
            cameras: of b * v views; None for single pictures, which then run as in a plain UNet.
        """
        text = self.text_encoder(token_ids).last_hidden_state
        if cameras is None:
            views = self.unet.prepare_views(noisy.shape[1])
        else:
            views = condition_on_cameras(self.unet, cameras, *noisy.shape[-2:], noisy.shape[1])
        return self.unet(noisy, timesteps, text, views).sample

    def learned(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def build_pipeline(settings: TrainConfig, image_size: int, captions: Sequence[str]) -> SPADPipeline:
    """The model that training starts from, in float32 on the CPU.

    Args:
        image_size: side of the data's pictures in pixels.
        captions: whose words a tokenizer of whole words is given.

    Raises: ValueError: no such model, or it does not fit the data or the settings.
    """
    if settings.init is None and settings.preset != "mini":
        raise ValueError(
            f"expected --init with --preset {settings.preset}: a folder that spad init-from-sd "
            "made of Stable Diffusion 1.5, or a model that goes on learning"
        )
    torch.manual_seed(settings.seed)
    pipeline = (
        _from_scratch(settings, image_size, captions)
        if settings.init is None
        else load_model(settings.init, "cpu")
    )
    if pipeline.image_size != image_size:
        raise ValueError(
            f"expected pictures of {pipeline.image_size}x{pipeline.image_size} for "
            f"{settings.init}, got {image_size}x{image_size}; render them with --image-size "
            f"{pipeline.image_size}"
        )
    # Training gains nothing from the layout that drawing does.
    pipeline.unet.to(memory_format=torch.contiguous_format)
    _learn_words(pipeline, settings, captions)
    pipeline.unet = _adapted(pipeline.unet, settings)
    pipeline.scheduler = _schedule(pipeline.scheduler, settings)
    return pipeline


def learned_scheduler(pipeline: SPADPipeline) -> DDIMScheduler:
    """The noise schedule of a pipeline, whatever solver it samples with."""
    scheduler = pipeline.scheduler
    if isinstance(scheduler, DDIMScheduler):
        return scheduler
    return DDIMScheduler.from_config(scheduler.config)


def set_trainable(pipeline: SPADPipeline, settings: TrainConfig) -> None:
    """Freeze everything but what `settings.learn` and `settings.train_text_encoder` name.

    Raises: ValueError: nothing is left. ModuleNotFoundError: LoRA without peft.
    """
    unet = pipeline.unet
    pipeline.vae.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(settings.train_text_encoder == "on")
    if settings.learn == "lora":
        from peft import LoraConfig

        layers = ["to_q", "to_k", "to_v", "to_out.0"]
        rank = settings.lora_rank
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
    for name, parameter in unet.named_parameters():
        is_new = any(new in name for new in NEW_LAYERS)
        parameter.requires_grad_(settings.learn == "all" or is_new or "lora_" in name)
    if not any(p.requires_grad for p in (*unet.parameters(), *pipeline.text_encoder.parameters())):
        raise ValueError("expected something to learn, but the model has no new layers")


def _from_scratch(settings: TrainConfig, image_size: int, captions: Sequence[str]) -> SPADPipeline:
    vae = load_autoencoder(settings.vae)
    downscale = getattr(vae, "downscale", None) or 2 ** (len(vae.config.block_out_channels) - 1)
    if image_size % downscale:
        raise ValueError(f"expected pictures in steps of {downscale} pixels, got {image_size}")
    if any(width % 32 for width in settings.block_out_channels) or settings.text_width % 64:
        raise ValueError(
            f"expected block_out_channels in steps of 32 and text_width of 64, got "
            f"{settings.block_out_channels} and {settings.text_width}"
        )
    tokenizer = build_tokenizer(captions)
    levels = len(settings.block_out_channels)
    unet = MultiViewUNet(
        sample_size=image_size // downscale,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=settings.block_out_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=settings.text_width,
        attention_head_dim=tuple(c // 32 for c in settings.block_out_channels),
        norm_num_groups=16,
        # Text, camera and timestep scale the features instead of being added to them.
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=settings.text_width // 64,
        band_width=2.0,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="sample",
        rescale_betas_zero_snr=settings.rescale_betas_zero_snr is not False,
    )
    text_encoder = build_text_encoder(tokenizer, settings.text_width)
    return SPADPipeline(vae, text_encoder, tokenizer, unet, scheduler)


def _learn_words(pipeline: SPADPipeline, settings: TrainConfig, captions: Sequence[str]) -> None:
    """Tokenizers of word parts know all words; those of whole words are given the new ones."""
    tokenizer = pipeline.tokenizer
    unknown = tokenizer.unk_token
    if unknown is None or unknown == tokenizer.eos_token:
        if settings.word_dropout:
            raise ValueError(
                "expected --word-dropout 0: the tokenizer of this model has no unknown word"
            )
        return
    strange = [c for c in captions if tokenizer.unk_token_id in tokenizer(c).input_ids]
    if not strange:
        return
    if settings.train_text_encoder == "on" and is_of_whole_words(tokenizer):
        pipeline.register_modules(tokenizer=add_words(tokenizer, pipeline.text_encoder, captions))
        logger.info(
            "%s learns %d new words, as in %r",
            settings.init,
            len(pipeline.tokenizer) - len(tokenizer),
            strange[0],
        )
        return
    logger.warning(
        "%d of %d captions have words that %s does not know and that stay unknown, as in %r",
        len(strange),
        len(captions),
        settings.init,
        strange[0],
    )


def _adapted(unet: MultiViewUNet, settings: TrainConfig) -> MultiViewUNet:
    """The UNet with other switches; layers that it did not have start at zero."""
    asked = {
        "epipolar": settings.epipolar,
        "use_plucker": settings.plucker and settings.plucker == "on",
        "use_camera_embedding": settings.camera_embedding and settings.camera_embedding == "on",
        "camera_vector": settings.cameras,
        "camera_intrinsics": settings.intrinsics and settings.intrinsics == "on",
        "band_width": settings.band_width,
        "ball_radius": settings.ball_radius,
    }
    changes = {k: v for k, v in asked.items() if v is not None and unet.config[k] != v}
    if not changes:
        return unet
    if settings.init is not None:
        said = ", ".join(f"{name} {unet.config[name]} -> {v}" for name, v in changes.items())
        logger.info("%s is changed: %s", settings.init, said)
    weights = unet.state_dict()
    other = MultiViewUNet.from_config({**unet.config, **changes})
    if "camera_vector" in changes or "camera_intrinsics" in changes:
        ends = [w for name, w in weights.items() if name.startswith("camera_embedding.linear_2")]
        if any(w.any() for w in ends):
            raise ValueError(
                f"expected the camera vector that {settings.init} learned to read "
                f"({unet.config.camera_vector}, intrinsics {unet.config.camera_intrinsics})"
            )
        weights = {k: w for k, w in weights.items() if not k.startswith("camera_embedding.")}
    missing, unexpected = other.load_state_dict(weights, strict=False)
    strange = [n for n in (*missing, *unexpected) if not any(new in n for new in NEW_LAYERS)]
    assert not strange, strange
    return other


def _schedule(scheduler: Any, settings: TrainConfig) -> Any:
    """The scheduler, with another target or another end if asked."""
    config: Mapping = scheduler.config
    prediction = settings.prediction_type or config["prediction_type"]
    ends_in_noise = settings.rescale_betas_zero_snr
    if ends_in_noise is None:
        ends_in_noise = bool(config.get("rescale_betas_zero_snr", False))
    if ends_in_noise and prediction == "epsilon":
        raise ValueError(
            "expected sample or v_prediction where the schedule ends in noise alone, got epsilon; "
            "try --no-zero-terminal-snr or --prediction-type v_prediction"
        )
    end: dict[str, Any] = {"steps_offset": 1, "set_alpha_to_one": False}
    if ends_in_noise:
        end = {"steps_offset": 0, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    same = (
        prediction == config["prediction_type"]
        and ends_in_noise == bool(config.get("rescale_betas_zero_snr", False))
        and settings.init is not None
    )
    if same:
        return scheduler
    return DDIMScheduler.from_config(
        {**config, **end},
        prediction_type=prediction,
        rescale_betas_zero_snr=ends_in_noise,
    )
