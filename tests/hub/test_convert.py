"""Conversion of the original's checkpoints: strict, safe, whole or not at all."""

import copy
import io
import json
import math
import os
import shutil
import sys
import tempfile
import types
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damaged
from spad.cameras import Cameras
from spad.cli import main
from spad.files import whole_folder
from spad.hub.checkpoint import read_checkpoint
from spad.hub.config import ConvertConfig
from spad.hub.convert import convert_checkpoint
from spad.hub.registry import check_files, load_model, model_info
from spad.model import ReleasedDDIMScheduler, SPADPipeline
from spad.model.start import gaussian_blob

CAMERAS = Cameras.ring(2, elevation_deg=45.0, height=64, width=64)


@pytest.fixture
def convert(golden, tmp_path):
    """Converts a changed state dict, or any file, to `tmp_path / "out"`."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(golden.facts("spad_tiny")["config"]))

    def run(source=None, **changes):
        path = source
        if not isinstance(source, os.PathLike):
            path = tmp_path / "changed.ckpt"
            torch.save({"state_dict": source}, path)
        settings = {"clip": golden.folder / "tiny_clip", "config": config} | changes
        return convert_checkpoint(
            ConvertConfig(checkpoint=path, output=tmp_path / "out", **settings)
        )

    yield run
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.fixture
def state(golden):
    return read_checkpoint(golden.folder / "spad_tiny.ckpt")


def test_the_model_is_known_by_its_folder(tiny):
    model = model_info(tiny)
    check_files(model)
    assert model.image_size == 64
    assert (model.defaults.elevation_deg, model.defaults.scheduler) == (45.0, "original")


def test_pipeline_does_what_the_release_does(tiny):
    """Blob, text with its prefix, guidance, DDIM: `__call__` against the steps written out."""
    pipeline = load_model(tiny, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompt = "Yellow Toyota Celica sports car."
    pipeline.use_scheduler("original")
    result = pipeline(prompt, CAMERAS, num_inference_steps=3, seed=4)

    from spad.model.conditioning import condition_on_cameras

    with torch.no_grad():
        text = pipeline.encode_text(["", "[tdv] " + prompt])
        views = condition_on_cameras(pipeline.unet, CAMERAS, 32, 32)
        pixels = gaussian_blob(64, 64, 0.5)[None]
        blob = pipeline.vae.encode(pixels).latent_dist.mode() * 0.18215
        noise = torch.randn(1, 2, 4, 32, 32, generator=torch.Generator().manual_seed(4))
        scheduler = pipeline.scheduler
        scheduler.set_timesteps(3)
        assert scheduler.timesteps.tolist() == [999, 666, 333, 0]
        alphas = scheduler.alphas_cumprod
        latents = alphas[999].sqrt() * blob + (1 - alphas[999]).sqrt() * noise
        for step in scheduler.timesteps:
            both = pipeline.unet(latents.repeat(2, 1, 1, 1, 1), step, text, views).sample
            predicted = both[:1] + 7.5 * (both[1:] - both[:1])
            before = alphas[max(int(step) - 333, 0)]
            clean = (latents - (1 - alphas[step]).sqrt() * predicted) / alphas[step].sqrt()
            latents = before.sqrt() * clean + (1 - before).sqrt() * predicted
    torch.testing.assert_close(result.latents, latents, rtol=1e-3, atol=1e-3)


def test_released_models_load_as_pipelines_of_diffusers(tiny):
    loaded = SPADPipeline.from_pretrained(tiny, dtype=torch.float32)
    assert loaded.defaults == model_info(tiny).defaults and loaded.vocabulary is None
    assert type(loaded.scheduler) is ReleasedDDIMScheduler
    expected = load_model(tiny, dtype=torch.float32)
    first, second = (p("a car", CAMERAS, num_inference_steps=1) for p in (loaded, expected))
    assert torch.equal(first.latents, second.latents)
    with pytest.raises(ValueError, match="spad download spad_four_views"):
        SPADPipeline.from_pretrained("spad_four_views")


def test_half_precision_takes_half_the_space(convert, golden, tiny):
    folder = convert(golden.folder / "spad_tiny.ckpt", dtype="float16")
    part = "unet/diffusion_pytorch_model.safetensors"
    ratio = (folder / part).stat().st_size / (tiny / part).stat().st_size
    assert 0.49 < ratio < 0.55


def test_another_names_missing_key(convert, state):
    name = "model_ema.diffusion_modeltime_embed0weight"
    del state[name]
    with pytest.raises(ValueError, match=name):
        convert(state)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("first_stage_model.decoder.conv_in.weight", "decoder.conv_in.weight of the autoencoder"),
        ("cc_projection.2.bias", "cc_projection.2.bias"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            "final_layer_norm.bias of the text encoder",
        ),
    ],
)
def test_a_missing_weight_is_named(convert, state, name, said):
    del state[name]
    with pytest.raises(ValueError, match=said):
        convert(state)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "model.diffusion_model.input_blocks.1.1.extra.weight",
            "down_blocks.0.attentions.0.extra.weight of the UNet",
        ),
        ("first_stage_model.extra.weight", "first_stage_model.extra.weight"),
        ("model_ema.extra", "model_ema.extra"),
        ("extra", "also has extra"),
    ],
)
def test_a_weight_too_many_is_named(convert, state, name, said):
    state[name] = torch.zeros(2)
    with pytest.raises(ValueError, match=said):
        convert(state, weights="raw")


@pytest.mark.parametrize(
    ("change", "dtype", "said"),
    [
        (lambda w: w.fill_(math.nan), "float32", "finite weights of MultiViewUNet, got NaN or inf"),
        (lambda w: w.fill_(-math.inf), "float16", "finite weights of MultiViewUNet, got NaN or in"),
        (lambda w: w.fill_(1e6), "float16", "MultiViewUNet within the range of torch.float16"),
        (lambda w: w.int(), "float32", "proj_in.weight of the UNet as torch.int32"),
        (lambda w: w.flatten(), "float32", r"proj_in.weight with shape"),
    ],
)
def test_wrong_weights_are_named_with_their_file(convert, state, change, dtype, said):
    name = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    state[name] = change(state[name].clone())
    with pytest.raises(ValueError, match=rf"changed\.ckpt: expected .*{said}"):
        convert(state, weights="raw", dtype=dtype)


@pytest.mark.parametrize(
    ("name", "text"),
    [("vocab.json", "[]"), ("vocab.json", "{}"), ("vocab.json", "{"), ("merges.txt", "\x00\n")],
)
def test_a_malformed_tokenizer_is_named(convert, golden, tmp_path, name, text):
    clip = tmp_path / "clip"
    shutil.copytree(golden.folder / "tiny_clip", clip)
    (clip / name).write_text(text)
    with pytest.raises(ValueError, match=r"clip: expected CLIP's tokenizer"):
        convert(golden.folder / "spad_tiny.ckpt", clip=clip)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_damaged_checkpoints_give_one_clear_error(data):
    content = damaged(data, _whole_checkpoint())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.ckpt"
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@cache
def _whole_checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"a.weight": torch.ones(3, 2), "step": 5}}, file)
    return file.getvalue()


def test_position_ids_of_older_files_are_ignored(convert, state):
    name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    convert(state | {name: torch.arange(77)[None]})


def test_shapes_of_the_other_configuration(convert, state):
    state["cc_projection.0.weight"] = state["cc_projection.0.weight"][:, :4].clone()
    with pytest.raises(ValueError, match=r"linear_1.weight .* with shape .*4\) instead of .*8\)"):
        convert(state)


def test_a_model_of_another_size(convert, state):
    with pytest.raises(ValueError, match="expected a checkpoint of the model"):
        convert(state, config=None)


def test_plain_stable_diffusion_is_named(convert, state):
    plain = {k: v for k, v in state.items() if not k.startswith("cc_projection")}
    with pytest.raises(ValueError, match="init-from-base"):
        convert(plain)


@pytest.mark.parametrize("size", [0, 20, 100_000])
def test_a_file_cut_short(convert, golden, tmp_path, size):
    path = tmp_path / "cut.ckpt"
    path.write_bytes((golden.folder / "spad_tiny.ckpt").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"cut short or of another kind|expected a checkpoint"):
        convert(path)


def test_a_file_that_is_no_checkpoint(convert, golden):
    with pytest.raises(ValueError, match="expected a"):
        convert(golden.folder / "README.md")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_is_not_run(convert, tmp_path, is_zip):
    path, target = tmp_path / "evil.ckpt", tmp_path / "was-run"
    content = {"state_dict": {"w": torch.zeros(1)}, "hooks": Malicious(target)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match="holds code"):
        convert(path)
    assert not target.exists()


def test_objects_of_lightning_are_left_alone(convert, state, tmp_path, monkeypatch):
    """Older Lightning names classes of its callbacks beside the weights."""
    home = types.ModuleType("pytorch_lightning.callbacks")
    home.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": home.__name__})
    path = tmp_path / "old.ckpt"
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", home.__name__):
            patch.setitem(sys.modules, name, home)
        callbacks = {home.ModelCheckpoint: {"best": home.ModelCheckpoint()}}
        torch.save({"state_dict": state, "callbacks": callbacks}, path)
    assert (convert(path) / "model_index.json").is_file()


def test_an_existing_folder_is_kept(convert, golden, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists"):
        convert(golden.folder / "spad_tiny.ckpt")


def test_a_second_process_is_turned_away(convert, golden, tmp_path):
    with whole_folder(tmp_path / "out"), pytest.raises(ValueError, match="another command is"):
        convert(golden.folder / "spad_tiny.ckpt")


def test_no_room_on_the_disk(convert, golden, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="make room"):
        convert(golden.folder / "spad_tiny.ckpt")
    assert not (tmp_path / "out").exists()


def test_without_the_tokenizer(convert, golden, monkeypatch):
    monkeypatch.setattr("spad.hub.original_layout.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ValueError, match="--clip"):
        convert(golden.folder / "spad_tiny.ckpt", clip=None)


def test_command_line(golden, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(golden.facts("spad_tiny")["config"]))
    command = ["convert", str(golden.folder / "spad_tiny.ckpt"), str(tmp_path / "tiny")]
    command += ["--clip", str(golden.folder / "tiny_clip")]
    assert main([*command, "--config", str(config)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "tiny")
    assert main(command) == 2


@pytest.mark.parametrize(
    "place, change, message",
    [
        ("unet_config", {"num_heads": 0}, r"model.params.unet_config.params: .*num_heads of at le"),
        ("unet_config", {"image_size": "32"}, "image_size to be a whole number, got '32'"),
        ("unet_config", {"channel_mult": 3}, "channel_mult to be a list, got 3"),
        ("unet_config", {"model_channels": [32]}, "model_channels to be a whole number"),
        ("first_stage_config", {"ddconfig": {}}, r"ddconfig\.ch, got none"),
    ],
)
def test_a_wrong_configuration_is_named(convert, golden, tmp_path, place, change, message):
    config = copy.deepcopy(golden.facts("spad_tiny")["config"])
    config["model"]["params"][place]["params"] |= change
    path = tmp_path / "wrong.yaml"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"wrong\.yaml: .*{message}"):
        convert(golden.folder / "spad_tiny.ckpt", config=path)


@pytest.mark.parametrize("text", ["[" * 10_000, "a: [", "3", "a: 1"])
def test_a_file_that_is_no_configuration_is_named(convert, golden, tmp_path, text):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.yaml: expected"):
        convert(golden.folder / "spad_tiny.ckpt", config=path)


@pytest.mark.parametrize(
    "text", ["[]", '{"text_config": 3}', '{"hidden_size": "wide"}', "[" * 9999]
)
def test_a_wrong_description_of_the_text_encoder_is_named(convert, golden, tmp_path, text):
    clip = tmp_path / "clip"
    shutil.copytree(golden.folder / "tiny_clip", clip)
    (clip / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: expected"):
        convert(golden.folder / "spad_tiny.ckpt", clip=clip)
