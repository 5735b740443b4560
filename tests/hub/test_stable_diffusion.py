"""An untrained SPAD from Stable Diffusion: draws one view as before; other models are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from spad.hub.checkpoint import read_checkpoint
from spad.hub.config import InitFromSDConfig
from spad.hub.registry import load_model
from spad.hub.stable_diffusion import init_from_sd


@pytest.fixture
def state(golden):
    return read_checkpoint(golden.folder / "spad_tiny.ckpt")


@pytest.fixture(scope="module")
def plain_sd(golden, tiny, tmp_path_factory):
    """A tiny Stable Diffusion in diffusers' layout: the converted parts, a UNet without views."""
    folder = tmp_path_factory.mktemp("sd")
    model = load_model(tiny, dtype=torch.float32)
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    unet.save_pretrained(folder / "unet")
    for part in ("vae", "text_encoder", "tokenizer"):
        getattr(model, part).save_pretrained(folder / part)
    return folder


def test_widened_stable_diffusion_draws_one_view_as_before(plain_sd, tmp_path):
    folder = init_from_sd(InitFromSDConfig(source=plain_sd, output=tmp_path / "start"))
    widened = load_model(folder, dtype=torch.float32).unet
    plain = UNet2DConditionModel.from_pretrained(plain_sd / "unet")
    x, text = torch.randn(1, 1, 4, 32, 32), torch.randn(1, 7, 32)
    camera, plucker = torch.randn(1, 1, 8), torch.randn(1, 1, 6, 32, 32)
    with torch.no_grad():
        ours = widened(x, 5, text, widened.prepare_views(1, camera, plucker)).sample
        expected = plain(x[0], 5, text).sample
    torch.testing.assert_close(ours[0], expected)
    assert isinstance(load_model(folder).vae, AutoencoderKL)


def test_a_single_file_is_widened_too(golden, state, tmp_path, monkeypatch):
    """The tiny checkpoint without what SPAD adds is a Stable Diffusion of its size."""
    params = golden.facts("spad_tiny")["config"]["model"]["params"]
    monkeypatch.setattr("spad.hub.stable_diffusion.SD15", params)
    plain = {k: v for k, v in state.items() if not k.startswith(("model_ema", "cc_projection"))}
    for name in [n for n in plain if n.endswith("proj_in.weight") and "diffusion_model" in n]:
        plain[name] = plain[name][:, :-6].contiguous()
    save_file(plain, tmp_path / "sd.safetensors")
    settings = InitFromSDConfig(
        source=tmp_path / "sd.safetensors",
        output=tmp_path / "start",
        clip=golden.folder / "tiny_clip",
    )
    unet = load_model(init_from_sd(settings), dtype=torch.float32).unet
    raw = state["model.diffusion_model.input_blocks.1.1.proj_in.weight"]
    transformer = unet.down_blocks[0].attentions[0]
    assert torch.equal(transformer.proj_in.weight, raw[:, :-6])
    assert not transformer.plucker.linear.weight.any()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_stable_diffusion_with_other_weights_is_refused(plain_sd, tmp_path, part, kind):
    source = Path(shutil.copytree(plain_sd, tmp_path / "sd"))
    (path,) = (source / part).glob("*.safetensors")
    weights = load_file(path)
    if kind == "missing":
        del weights[sorted(weights)[0]]
    else:
        weights["other"] = torch.zeros(2)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"sd.*{part}"):
        init_from_sd(InitFromSDConfig(source=source, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_stable_diffusion_without_a_tokenizer_is_refused(plain_sd, tmp_path):
    source = Path(shutil.copytree(plain_sd, tmp_path / "sd"))
    shutil.rmtree(source / "tokenizer")
    with pytest.raises(ValueError, match=r"vocab\.json .* of CLIP's tokenizer in"):
        init_from_sd(InitFromSDConfig(source=source, output=tmp_path / "out"))


def test_single_file_of_another_model_is_refused(golden, tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    settings = InitFromSDConfig(
        source=tmp_path / "other.safetensors",
        output=tmp_path / "out",
        clip=golden.folder / "tiny_clip",
    )
    with pytest.raises(ValueError, match="expected a checkpoint"):
        init_from_sd(settings)
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]
