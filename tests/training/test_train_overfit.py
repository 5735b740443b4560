"""One object, learned by heart, is given back from cameras that were never trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from hand_made import box, write_gltf
from spad.cameras import Cameras
from spad.data.config import PackConfig, RenderConfig
from spad.data.pack import pack
from spad.data.render import render_all
from spad.data.renders import load_all_images, read_renders
from spad.hub.registry import load_model
from spad.images.pixels import image_tensor
from spad.images.reading import on_white
from spad.meshes.renderers import find_renderer
from spad.meshes.settings import RendererSettings
from spad.model import PatchAutoencoder
from spad.training.config import TrainConfig
from spad.training.run import LOSSES
from spad.training.train import train
from train_settings import changed

SIZE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Two boxes side by side, a tall red one and a low blue one."""
    folder = tmp_path_factory.mktemp("models")
    red = box([0.8, 0.05, 0.05, 1], (0.5, 1.2, 0.5))
    blue = box([0.05, 0.1, 0.8, 1], (0.7, 0.5, 0.5))
    blue["positions"] = blue["positions"] + [0.6, -0.35, 0.0]
    write_gltf(folder / "boxes.gltf", [red, blue])
    return folder


@pytest.fixture
def settings(model, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    renders = tmp_path / "renders"
    config = RenderConfig(model, renders, image_size=SIZE, num_random=24, workers=1)
    assert "1" in str(render_all(config))
    vae = PatchAutoencoder(latent_channels=12, block_out_channels=(16, 16, 16), sample_size=SIZE)
    vae.fit_components(image_tensor(load_all_images(read_renders(renders))).flatten(0, 1))
    vae.save_pretrained(tmp_path / "vae")
    pack(PackConfig(renders, tmp_path / "shards"))
    return changed(
        TrainConfig(),
        data=tmp_path / "shards",
        output=tmp_path / "run",
        vae=str(tmp_path / "vae"),
        steps=130,
        views=(4,),
        batch_size=16,
        learning_rate=4e-3,
        warmup_steps=20,
        caption_dropout=0.0,
        word_dropout=0.0,
        clean_view_prob=0.0,
        ema_decay=0.99,
        block_out_channels=(64, 64),
        text_width=64,
        device="cpu",
        sample_every=0,
        trackers=(),
        save_dtype="float32",
        log_every=20,
    )


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of pictures (v, 3, h, w) in [-1, 1], for each view."""
    return 10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)))


@pytest.mark.slow
def test_one_object_learned_by_heart_comes_back_from_new_cameras(settings, model):
    folder = train(settings)
    rows = [line.split(",") for line in (settings.run_folder / LOSSES).read_text().splitlines()]
    column = [float(row[1]) for row in rows[1:]]
    # A model that says the mean of all noise and pictures is at about one.
    assert sum(column[-5:]) / 5 < 0.25 * column[0]

    cameras = Cameras.ring(4, elevation_deg=15.0, start_azimuth_deg=33.0, height=SIZE, width=SIZE)
    rendered = find_renderer("embree").render(model / "boxes.gltf", cameras, RendererSettings())
    pictures = [on_white(Image.fromarray(rgba)) for rgba in rendered.views.rgba]
    truth = image_tensor(np.stack(pictures))
    pipeline = load_model(folder, "cpu", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("boxes", cameras, num_inference_steps=20, guidance_scale=1).images[0]
    views = image_tensor(np.stack([np.asarray(picture) for picture in drawn]))
    own = psnr(views, truth)
    others = torch.stack([psnr(views, truth.roll(shift, 0)) for shift in (1, 2, 3)])
    assert (own > others.max(0).values).all()
    assert own.mean() > others.max(0).values.mean() + 2
    # The autoencoder gives back the truth itself at 22 dB.
    assert own.mean() > 15.5
