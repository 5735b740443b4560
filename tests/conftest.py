"""Parts that several test files share."""

import os
from pathlib import Path

import pytest

# Before torch starts: tests run beside each other and beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CAPTIONS = (
    "a blue fish",
    "a green dragon",
    "a tall oak tree",
    "a grey rock",
    "a small red house with a door",
)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference material beside the repository; skips without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SPAD_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no reference material at {folder}; set SPAD_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory) -> Path:
    """A real, tiny, untrained model in half precision, with its manifest; not to be changed."""
    import torch
    from diffusers import DDIMScheduler

    from spad.autoencoder import PatchAutoencoder
    from spad.model import MultiViewUNet
    from spad.models import save_model_manifest
    from spad.pipeline import SPADPipeline
    from spad.text import build_text_encoder, build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(CAPTIONS)
    pipeline = SPADPipeline(
        vae=PatchAutoencoder(
            latent_channels=16, block_out_channels=(16, 16, 32), norm_num_groups=8
        ),
        text_encoder=build_text_encoder(tokenizer, width=64),
        tokenizer=tokenizer,
        unet=MultiViewUNet(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=64,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        ),
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.to(torch.float16).save_pretrained(folder)
    save_model_manifest(
        folder,
        name="tiny",
        description="nothing: it is untrained",
        captions=CAPTIONS,
        defaults={"steps": 2},
        licence="Apache-2.0",
        author="the tests",
    )
    return folder
