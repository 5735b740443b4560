"""Build the pipeline to train, from scratch or from an existing model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from spad.cameras import Cameras
from spad.hub.registry import load_autoencoder, load_model
from spad.model import MultiViewUNet, SPADPipeline
from spad.model.bases import base_of
from spad.model.conditioning import condition_on_cameras
from spad.model.schedulers import shifted_betas
from spad.model.text import TokenIds, encode_tokens
from spad.model.unet import copy_attention
from spad.model.word_tokenizer import (
    add_words,
    build_text_encoder,
    build_tokenizer,
    is_of_whole_words,
)
from spad.training.config import TrainConfig

logger = logging.getLogger(__name__)

# Parts of the names of the layers of rays, and of all layers that base models lack.
RAY_LAYERS = ("plucker.", "ray_encoding.")
NEW_LAYERS = (
    *RAY_LAYERS,
    "camera_embedding.",
    "across_views.",
    "depth_projection.",
)


# Ends of the names of the layers that LoRA is added to.
LORA_LAYERS: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


def is_new_layer(name: str) -> bool:
    """Whether a weight of this name belongs to a layer that base models lack."""
    return any(new in name for new in NEW_LAYERS)


def is_ray_layer(name: str) -> bool:
    """Whether a weight of this name belongs to a layer of `--rays`."""
    return any(ray in name for ray in RAY_LAYERS)


class Denoiser(nn.Module):
    """The UNet and the text encoders as one module, to wrap, average and checkpoint together."""

    def __init__(self, pipeline: SPADPipeline):
        super().__init__()
        self.unet, self.text_encoder = pipeline.unet, pipeline.text_encoder
        self.text_encoder_2 = pipeline.text_encoder_2
        self.reading, self.downscale = pipeline.text_reading, pipeline.vae_downscale

    @property
    def text_encoders(self) -> list[Any]:
        """One text encoder, or two."""
        return [one for one in (self.text_encoder, self.text_encoder_2) if one is not None]

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        tokens: TokenIds,
        cameras: Cameras | None,
        depth: Tensor | None = None,
    ) -> Tensor:
        """Prediction (b, v, c, h, w) for noisy latents of the same shape.

        Args:
            timesteps: (b, v).
            cameras: of the b * v views; None for single images, as in a plain UNet.
            depth: (b * v, h, w) of the images' pixels; None: the shape is not given.
        """
        text = encode_tokens(self.text_encoders, tokens, self.reading)
        num_views, _, height, width = noisy.shape[1:]
        # Others compute the keys and values of the text where they are needed.
        early = text if self.reading.is_pooled else None
        if cameras is None:
            size = (height * self.downscale, width * self.downscale)
            views = self.unet.prepare_views(num_views, text=early, image_size=size)
        else:
            views = condition_on_cameras(self.unet, cameras, height, width, num_views, early, depth)
        return self.unet(noisy, timesteps, text, views).sample

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def build_pipeline(settings: TrainConfig, image_size: int, captions: Sequence[str]) -> SPADPipeline:
    """The pipeline that training starts from, float32 on the CPU.

    Args:
        image_size: side of the data's images in pixels.
        captions: source of the vocabulary of a tokenizer of whole words.

    Raises: ValueError: no such model, or it does not fit the data or the settings.
    """
    if settings.init is None and settings.preset != "mini":
        raise ValueError(
            f"expected --init with --preset {settings.preset}, got none: a folder that spad "
            "init-from-base made of a base model, or a model to train further"
        )
    torch.manual_seed(settings.seed)
    pipeline = (
        _from_scratch(settings, image_size, captions)
        if settings.init is None
        else load_model(settings.init, "cpu", torch.float32)
    )
    if pipeline.image_size != image_size and settings.batch.image_size is None:
        raise ValueError(
            f"expected images of {pipeline.image_size}x{pipeline.image_size} for "
            f"{settings.init}, got {image_size}x{image_size}; render them with --image-size "
            f"{pipeline.image_size}, or train it for these with --image-size {image_size}"
        )
    # channels_last speeds up inference but not training.
    pipeline.unet.to(memory_format=torch.contiguous_format)
    _add_words(pipeline, settings, captions)
    downscale = pipeline.vae_downscale
    _check_divides(image_size, downscale)
    pipeline.unet = _change_unet(pipeline.unet, settings, image_size // downscale, downscale)
    pipeline.scheduler = _change_schedule(pipeline, settings)
    return pipeline


def noise_scheduler(pipeline: SPADPipeline) -> DDIMScheduler:
    """A pipeline's noise schedule as a DDIM scheduler, whichever sampler it has."""
    scheduler = pipeline.scheduler
    if isinstance(scheduler, DDIMScheduler):
        return scheduler
    ddim = DDIMScheduler.from_config(scheduler.config)
    assert isinstance(ddim, DDIMScheduler)
    return ddim


def set_trainable(pipeline: SPADPipeline, settings: TrainConfig) -> None:
    """Set `requires_grad` of all weights as `settings.model` says; add LoRA layers.

    Raises: ValueError: nothing is trainable. ModuleNotFoundError: LoRA without peft.
    """
    unet = pipeline.unet
    pipeline.vae.requires_grad_(False)
    encoders = pipeline.text_encoders
    for encoder in encoders:
        encoder.requires_grad_(settings.model.train_text_encoder)
    if settings.model.trainable == "lora":
        from peft import LoraConfig

        layers = list(LORA_LAYERS)
        rank = settings.model.lora_rank
        # Added layers are trained themselves.
        has_added = unet.config["view_attention"] == "added"
        new = r".*\.across_views\..*" if has_added else None
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, exclude_modules=new)
        )
    for name, parameter in unet.named_parameters():
        learns = settings.model.trainable == "all" or is_new_layer(name) or "lora_" in name
        parameter.requires_grad_(learns)
    if not any(p.requires_grad for module in (unet, *encoders) for p in module.parameters()):
        raise ValueError("expected a model with ray or camera layers for --trainable new-layers")


def _from_scratch(settings: TrainConfig, image_size: int, captions: Sequence[str]) -> SPADPipeline:
    vae = load_autoencoder(settings.vae)
    downscale = getattr(vae, "downscale", None) or 2 ** (len(vae.config.block_out_channels) - 1)
    _check_divides(image_size, downscale)
    tokenizer = build_tokenizer(captions)
    channels, text_width = settings.model.block_out_channels, settings.model.text_width
    unet = MultiViewUNet(
        sample_size=image_size // downscale,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=text_width,
        attention_head_dim=tuple(c // 32 for c in channels),
        norm_num_groups=16,
        # Text, camera and timestep scale the features instead of being added to them.
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=text_width // 64,
        band_width=2.0,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="sample",
        rescale_betas_zero_snr=settings.loss.rescale_betas_zero_snr is not False,
    )
    text_encoder = build_text_encoder(tokenizer, text_width)
    return SPADPipeline(vae, text_encoder, tokenizer, unet, scheduler)


def _check_divides(image_size: int, downscale: int) -> None:
    if image_size % downscale:
        raise ValueError(f"expected image sizes in steps of {downscale}, got {image_size}")


def _add_words(pipeline: SPADPipeline, settings: TrainConfig, captions: Sequence[str]) -> None:
    """Add the words of captions to a tokenizer of whole words; subword tokenizers need none."""
    tokenizer = pipeline.tokenizer
    unknown = tokenizer.unk_token
    if unknown is None or unknown == tokenizer.eos_token:
        if settings.batch.word_dropout:
            raise ValueError(
                f"expected --word-dropout 0 with --init {settings.init}, whose tokenizer has no "
                f"unknown word, got {settings.batch.word_dropout}"
            )
        return
    strange = [c for c in captions if tokenizer.unk_token_id in tokenizer(c).input_ids]
    if not strange:
        return
    if settings.model.train_text_encoder and is_of_whole_words(tokenizer):
        pipeline.register_modules(tokenizer=add_words(tokenizer, pipeline.text_encoder, captions))
        logger.info(
            "%s: %d words added to the vocabulary, as in %r",
            settings.init,
            len(pipeline.tokenizer) - len(tokenizer),
            strange[0],
        )
        return
    logger.warning(
        "%d of %d captions have words that are not in the vocabulary of %s, as in %r",
        len(strange),
        len(captions),
        settings.init,
        strange[0],
    )


def _change_unet(
    unet: MultiViewUNet, settings: TrainConfig, sample_size: int, downscale: int
) -> MultiViewUNet:
    """The UNet for latents of this side, each of `downscale` pixels a side, with the layers that
    `settings` ask for.

    New layers start at zero.
    """
    wanted = {
        "sample_size": sample_size,
        "epipolar": settings.model.epipolar,
        "view_attention": settings.model.view_attention,
        "rays": settings.model.rays,
        "use_camera_embedding": settings.model.camera_embedding,
        "camera_vector": settings.model.cameras,
        "camera_intrinsics": settings.model.intrinsics,
        "band_width": settings.model.band_width,
        "ball_radius": settings.model.ball_radius,
        "depth_patch": downscale if settings.batch.depth_prob else None,
    }
    changes = {k: v for k, v in wanted.items() if v is not None and unet.config[k] != v}
    if not changes:
        return unet
    if settings.init is not None:
        listed = ", ".join(f"{name} {unet.config[name]} -> {v}" for name, v in changes.items())
        logger.info("%s is changed: %s", settings.init, listed)
    weights = unet.state_dict()
    other = MultiViewUNet.from_config({**unet.config, **changes})
    assert isinstance(other, MultiViewUNet)
    if "camera_vector" in changes or "camera_intrinsics" in changes:
        ends = [w for name, w in weights.items() if name.startswith("camera_embedding.linear_2")]
        if any(w.any() for w in ends):
            raise ValueError(
                f"expected the camera vector that {settings.init} was trained with "
                f"({unet.config['camera_vector']}, intrinsics {unet.config['camera_intrinsics']}), "
                "got another; leave out --cameras and --intrinsics"
            )
        weights = {k: w for k, w in weights.items() if not k.startswith("camera_embedding.")}
    missing, unexpected = other.load_state_dict(weights, strict=False)
    strange = [name for name in (*missing, *unexpected) if not is_new_layer(name)]
    assert not strange, strange
    if changes.get("view_attention") == "added":
        copy_attention(other)
    return other


def _change_schedule(pipeline: SPADPipeline, settings: TrainConfig) -> Any:
    """The scheduler with the prediction type and signal-to-noise ratios of `settings.loss`."""
    scheduler, config = pipeline.scheduler, dict(pipeline.scheduler.config)
    shift = settings.loss.snr_shift
    if shift == "tokens":
        published = base_of(pipeline.unet.config).published_size
        tokens = max(settings.batch.views) * (pipeline.image_size / published) ** 2
        shift = max(1.0, tokens)
        logger.info("signal-to-noise ratios are divided by %.3g, by the number of tokens", shift)
    if shift is not None:
        plain = DDIMScheduler.from_config({**config, "trained_betas": None})
        assert isinstance(plain, DDIMScheduler)
        betas = shifted_betas(plain.betas, shift).tolist() if shift != 1 else None
        config["trained_betas"] = betas
    prediction = settings.loss.prediction_type or config["prediction_type"]
    ends_in_noise = settings.loss.rescale_betas_zero_snr
    if ends_in_noise is None:
        ends_in_noise = bool(config.get("rescale_betas_zero_snr", False))
    if ends_in_noise and prediction == "epsilon":
        raise ValueError(
            "expected sample or v_prediction where the noise schedule ends in pure noise, got "
            "epsilon; try --no-rescale-betas-zero-snr or --prediction-type v_prediction"
        )
    end: dict[str, Any] = {"steps_offset": 1, "set_alpha_to_one": False}
    if ends_in_noise:
        end = {"steps_offset": 0, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    same = (
        shift is None
        and prediction == config["prediction_type"]
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
