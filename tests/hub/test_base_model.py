"""An untrained SPAD from a base model: of a folder, of a single file; others are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spad.files import file_hash
from spad.hub.base_model import init_from_base
from spad.hub.config import InitFromBaseConfig
from spad.hub.registry import load_model, model_info
from tiny_bases import TINY, plain_pipeline, save_single_file, tokenizer_folder

BASES = tuple(TINY.values())


@pytest.fixture(scope="module")
def plain_sd(tmp_path_factory):
    """A tiny Stable Diffusion in diffusers' layout."""
    folder = tmp_path_factory.mktemp("sd")
    plain = plain_pipeline(TINY["sd15"], tokenizer_folder(folder / "clip"))
    plain.save_pretrained(folder / "plain")
    return folder / "plain"


@pytest.mark.parametrize("base", TINY.values(), ids=list(TINY))
def test_a_single_file_becomes_the_model_that_its_folder_does(base, tmp_path):
    tokenizers = tokenizer_folder(tmp_path / "clip")
    plain = plain_pipeline(base, tokenizers)
    plain.save_pretrained(tmp_path / "plain")
    file = save_single_file(plain, base, tmp_path / "file.safetensors")
    made = [
        init_from_base(InitFromBaseConfig(source, output, clip=tokenizers, image_size=64), BASES)
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
    assert found.scheduler.config.prediction_type == "epsilon" and found.image_size == 64
    assert file_hash(file) in model_info(made[1]).description
    assert found.vae.config.scaling_factor == expected.vae.config.scaling_factor


def test_the_prediction_of_a_folder_is_kept(tmp_path):
    plain = plain_pipeline(TINY["sd21"], tokenizer_folder(tmp_path / "clip"))
    plain.scheduler.register_to_config(prediction_type="v_prediction")
    plain.save_pretrained(tmp_path / "plain")
    settings = InitFromBaseConfig(tmp_path / "plain", tmp_path / "a", image_size=64)
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


def test_single_file_of_another_model_is_refused(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    settings = InitFromBaseConfig(tmp_path / "other.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="expected a checkpoint"):
        init_from_base(settings)
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]
