"""An untrained SPAD from a base model: draws one view as before; other models are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from spad.files import file_hash
from spad.hub.base_model import init_from_base
from spad.hub.config import InitFromBaseConfig
from spad.hub.registry import load_model, model_info
from tiny_bases import TINY, plain_pipeline, save_single_file, tokenizer_folder

BASES = tuple(TINY.values())


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
    folder = init_from_base(InitFromBaseConfig(source=plain_sd, output=tmp_path / "start"))
    widened = load_model(folder, dtype=torch.float32).unet
    plain = UNet2DConditionModel.from_pretrained(plain_sd / "unet")
    x, text = torch.randn(1, 1, 4, 32, 32), torch.randn(1, 7, 32)
    camera, plucker = torch.randn(1, 1, 8), torch.randn(1, 1, 6, 32, 32)
    with torch.no_grad():
        ours = widened(x, 5, text, widened.prepare_views(1, camera, plucker)).sample
        expected = plain(x[0], 5, text).sample
    torch.testing.assert_close(ours[0], expected)
    assert isinstance(load_model(folder).vae, AutoencoderKL)


@pytest.mark.parametrize("base", TINY.values(), ids=list(TINY))
def test_a_single_file_becomes_the_model_that_its_folder_does(base, tmp_path):
    tokenizers = tokenizer_folder(tmp_path / "clip")
    plain = plain_pipeline(base, tokenizers)
    plain.save_pretrained(tmp_path / "plain")
    file = save_single_file(plain, base, tmp_path / "file.safetensors")
    made = [
        init_from_base(InitFromBaseConfig(source, output, clip=tokenizers, image_size=16), BASES)
        for source, output in ((tmp_path / "plain", tmp_path / "a"), (file, tmp_path / "b"))
    ]
    expected, found = (load_model(folder, dtype=torch.float32) for folder in made)
    texts = ["a fish", ""]
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        module, other = getattr(expected, name), getattr(found, name)
        assert (module is None) == (other is None) == (name[-1] == "2" and base.name != "sdxl")
        if module is not None:
            weights = module.state_dict()
            assert all(torch.equal(weights[k], v) for k, v in other.state_dict().items())
            assert len(weights) == len(other.state_dict())
    assert torch.equal(expected.encode_text(texts).tokens, found.encode_text(texts).tokens)
    assert found.unet.config.attention_head_dim == expected.unet.config.attention_head_dim
    assert found.scheduler.config.prediction_type == "epsilon" and found.image_size == 16
    assert file_hash(file) in model_info(made[1]).description
    assert found.vae.config.scaling_factor == expected.vae.config.scaling_factor


def test_the_prediction_of_a_folder_is_kept(tmp_path):
    plain = plain_pipeline(TINY["sd21"], tokenizer_folder(tmp_path / "clip"))
    plain.scheduler.register_to_config(prediction_type="v_prediction")
    plain.save_pretrained(tmp_path / "plain")
    settings = InitFromBaseConfig(tmp_path / "plain", tmp_path / "a", image_size=16)
    assert load_model(init_from_base(settings)).scheduler.config.prediction_type == "v_prediction"


def test_names_of_base_models_say_where_they_are(tmp_path):
    for name, message in (("sdxl", "sd_xl_base_1.0.*31e35c80.*stabilityai/"), ("x", "give sd15")):
        with pytest.raises(ValueError, match=message):
            init_from_base(InitFromBaseConfig(Path(name), tmp_path / "out"))


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
        init_from_base(InitFromBaseConfig(source=source, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_stable_diffusion_without_a_tokenizer_is_refused(plain_sd, tmp_path):
    source = Path(shutil.copytree(plain_sd, tmp_path / "sd"))
    shutil.rmtree(source / "tokenizer")
    with pytest.raises(ValueError, match=r"vocab\.json .* of CLIP's tokenizer in"):
        init_from_base(InitFromBaseConfig(source=source, output=tmp_path / "out"))


def test_single_file_of_another_model_is_refused(golden, tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    settings = InitFromBaseConfig(
        source=tmp_path / "other.safetensors",
        output=tmp_path / "out",
        clip=golden.folder / "tiny_clip",
    )
    with pytest.raises(ValueError, match="expected a checkpoint"):
        init_from_base(settings)
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]
