"""`spad init-from-sd`: an untrained SPAD from Stable Diffusion 1.5."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spad.files import whole_folder
from spad.hub.checkpoint import read_checkpoint
from spad.hub.config import InitFromSDConfig
from spad.hub.convert import (
    PROMPT_PREFIX,
    SD15,
    UNET,
    fill,
    named,
    plain_unet,
    release_scheduler,
    save_model,
    text_encoder_of,
    tokenizer_of,
    vae_of,
)
from spad.model import MultiViewUNet, SPADPipeline


def init_from_sd(settings: InitFromSDConfig) -> Path:
    """Save an untrained SPAD from Stable Diffusion 1.5, which for one view gives the same images.

    New weights that add to features are zero.

    Raises: as `convert_checkpoint`.

    Source: SPAD, section 3.3, and its release.
    """
    spad_config = {
        "camera_vector": settings.cameras,
        "camera_intrinsics": settings.intrinsics,
        "epipolar": settings.epipolar,
    }
    with whole_folder(settings.output) as folder:
        if settings.source.is_dir():
            vae, text_encoder, tokenizer, plain_config, weights = _diffusers_parts(settings.source)
        else:
            state = read_checkpoint(settings.source)
            tokenizer = tokenizer_of(settings.clip)
            with named(settings.source):
                vae, text_encoder = vae_of(state, SD15), text_encoder_of(state, settings.clip)
                plain_config, weights = plain_unet(
                    {k: v for k, v in state.items() if k.startswith(UNET)}, SD15
                )
        torch.manual_seed(0)
        # SPAD trains at 256 x 256 pixels, where a view has 32 x 32 latents.
        unet = MultiViewUNet(**{**plain_config, "sample_size": 32}, **spad_config)
        own = {name for name in unet.state_dict() if ".plucker." in name or "camera_emb" in name}
        with named(settings.source):
            fill(unet, weights, "the UNet", may_miss=own)
        pipeline = SPADPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=release_scheduler({}),
            prompt_prefix=PROMPT_PREFIX,
        )
        description = "untrained: Stable Diffusion 1.5 with new layers; train it with spad train"
        with named(settings.source):
            save_model(pipeline, folder, settings.dtype, settings.output.name, description)
    return settings.output


def _diffusers_parts(
    folder: Path,
) -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer, dict[str, Any], dict[str, Tensor]]:
    """Autoencoder, text encoder, tokenizer, and the UNet's configuration and weights."""

    def load(part_class: Any, part: str) -> Any:
        try:
            loaded, report = part_class.from_pretrained(
                folder / part, local_files_only=True, output_loading_info=True
            )
        # Libraries answer damaged files with any error.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"expected a Stable Diffusion folder in diffusers' layout, got {folder}, where "
                f"{part} cannot be loaded: {reason}"
            ) from error
        for kind in ("missing", "unexpected", "mismatched"):
            if wrong := sorted(map(str, report[f"{kind}_keys"])):
                raise ValueError(f"{folder / part}: expected its weights, got {kind} {wrong[0]}")
        return loaded

    unet = load(UNet2DConditionModel, "unet")
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    vae, text_encoder = load(AutoencoderKL, "vae"), load(CLIPTextModel, "text_encoder")
    return vae, text_encoder, tokenizer_of(folder / "tokenizer"), config, unet.state_dict()
