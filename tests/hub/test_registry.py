"""spad.hub.registry: describing, checking and loading models."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spad.generation.plan import SCHEDULER_NAMES
from spad.hub import registry
from spad.hub.registry import (
    check_files,
    check_prompt_length,
    list_models,
    load_model,
    model_info,
    save_model_manifest,
    weights_hash,
)
from spad.model import folders
from spad.model.schedulers import SCHEDULERS


@pytest.fixture
def copy(tiny_pipeline_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "copy"))


def as_before_0_1(folder: Path, manifest: str) -> None:
    """Give a model folder its defaults in `spad.json`, as former versions did."""
    index = folder / folders.INDEX
    content = json.loads(index.read_text())
    del content["defaults"], content["vocabulary"]
    index.write_text(json.dumps(content))
    (folder / folders.MANIFEST).write_text(manifest)


def unet_weights(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def test_loads_what_was_saved_in_float32(tiny_pipeline_folder):
    pipeline = load_model(tiny_pipeline_folder, device="cpu", dtype=torch.float32)
    saved = load_file(unet_weights(tiny_pipeline_folder))
    loaded = pipeline.unet.state_dict()
    assert saved.keys() == loaded.keys()
    for name, value in saved.items():
        assert value.dtype == torch.float16 and loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name], value.float(), rtol=0, atol=0)
    for part in (pipeline.vae, pipeline.text_encoder):
        assert part.dtype == torch.float32 and not part.training


def test_loading_shows_no_bars_and_leaves_others_theirs(tiny_pipeline_folder, capsys):
    from transformers.utils import logging

    logging.enable_progress_bar()
    load_model(tiny_pipeline_folder)
    assert capsys.readouterr().err == "" and logging.is_progress_bar_enabled()


def test_info_is_read_from_the_files(tiny_pipeline_folder):
    model = model_info(tiny_pipeline_folder)
    assert (model.name, model.license, model.author) == ("tiny", "Apache-2.0", "the tests")
    assert (model.image_size, model.image_multiple, model.defaults.num_inference_steps) == (
        128,
        16,
        2,
    )
    files = [p.stat().st_size for p in tiny_pipeline_folder.rglob("*") if p.is_file()]
    assert model.size_mb == pytest.approx(sum(files) / 1e6)
    assert "a blue fish" in model.captions()


def test_info_agrees_with_the_pipeline(tiny_pipeline_folder):
    model, pipeline = model_info(tiny_pipeline_folder), load_model(tiny_pipeline_folder, "cpu")
    assert model.image_size == pipeline.image_size
    assert model.image_multiple == pipeline.vae_downscale
    assert tuple(SCHEDULERS) == SCHEDULER_NAMES


def test_embedded_models_are_found_by_name(tiny_pipeline_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_pipeline_folder, tmp_path / "one")
    monkeypatch.setattr(folders, "EMBEDDED", tmp_path)
    assert [model.path.name for model in list_models()] == ["one"]
    assert model_info("one").path == tmp_path / "one"
    with pytest.raises(ValueError, match="among one or a model folder, got 'two'"):
        model_info("two")


def test_a_plain_pipeline_folder_needs_no_manifest(copy):
    as_before_0_1(copy, "{}")
    for name in (folders.MANIFEST, folders.CAPTIONS, registry.HASHES):
        (copy / name).unlink()
    model = model_info(copy)
    assert model.name == "copy" and model.captions() == [] and model.defaults.guidance_scale == 5
    assert isinstance(load_model(copy, "cpu").unet, torch.nn.Module)


def test_hashes_cover_every_file_and_notice_one_changed_byte(copy):
    listed = {line.split("  ")[1] for line in (copy / registry.HASHES).read_text().splitlines()}
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert listed == files - {registry.HASHES}
    before = weights_hash(model_info(copy))
    path = unet_weights(copy)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weights_hash(model_info(copy)) != before
    with pytest.raises(ValueError, match="is not what sha256.txt says"):
        check_files(model_info(copy))


@pytest.mark.parametrize("with_hashes", [True, False])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "missing"])
def test_damaged_weights_give_one_clear_error(copy, damage, with_hashes):
    path = unet_weights(copy)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        contents = {"cut": data[: len(data) // 2], "empty": b"", "garbage": b"x" * 99}
        path.write_bytes(contents[damage])
    if not with_hashes:
        (copy / registry.HASHES).unlink()
    with pytest.raises(ValueError, match="expected a complete model .*unet"):
        load_model(copy, "cpu")


def test_weights_of_another_model_are_refused(copy):
    (copy / registry.HASHES).unlink()
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rays": "none"}))
    with pytest.raises(ValueError, match="unet"):
        load_model(copy, "cpu")


def test_pickles_are_never_read(copy):
    (copy / registry.HASHES).unlink()
    path = unet_weights(copy)
    torch.save({}, path.with_name("diffusion_pytorch_model.bin"))
    path.unlink()
    with pytest.raises(ValueError, match="no .safetensors file"):
        load_model(copy, "cpu")


@pytest.mark.parametrize("text", ["", "[]", '{"unet": ["os", "system"]}', "\x00"])
def test_a_malformed_index_is_refused(copy, text):
    (copy / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match="model_index.json"):
        model_info(copy)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "expected JSON"),
        ("[" * 9999, "levels or less"),
        ('{"name": 3}', "expected name to be text"),
        ('{"defaults": 3}', "expected defaults to be an object"),
        ('{"defaults": {"stepz": 1}}', "defaults: expected an object to have .* got 'stepz'"),
        ('{"defaults": {"elevation_deg": "low"}}', "elevation_deg to be a finite number"),
        ('{"defaults": {"elevation_deg": 99}}', "elevation_deg of at least -90 and at most 90"),
        ('{"defaults": {"steps": 0}}', "num_inference_steps of at least 1, got 0"),
    ],
)
def test_a_malformed_manifest_is_refused(copy, text, message):
    as_before_0_1(copy, text)
    with pytest.raises(ValueError, match=rf"spad\.json: .*{message}"):
        model_info(copy)


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("unet", {"sample_size": "8"}, "sample_size to be a whole number"),
        ("unet", {"sample_size": 10**9}, "sample_size of at least 1 and at most 4096"),
        ("unet", {"sample_size": -8}, "sample_size of at least 1"),
        ("vae", {"patch_size": -16}, "patch_size of at least 1"),
        ("vae", {"block_out_channels": []}, "block_out_channels of 1 or more values"),
        ("unet", {"layers_per_block": 10**6}, "layers_per_block of at least 1 and at most 1000"),
        ("unet", {"layers_per_block": [1, 10**6]}, "layers_per_block to be a whole number"),
        ("text_encoder", {"num_hidden_layers": 10**6}, "num_hidden_layers of at least 1"),
        ("text_encoder", {"num_attention_heads": 0}, "num_attention_heads of at least 1"),
        ("text_encoder", {"num_attention_heads": 7}, "a multiple of num_attention_heads"),
        ("text_encoder", {"hidden_size": "wide"}, "hidden_size to be a whole number"),
    ],
)
def test_a_malformed_part_is_refused(copy, part, change, message):
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"config\.json: expected.*{message}"):
        model_info(copy)


@pytest.mark.parametrize(
    ("part", "value"), [("unet", math.nan), ("vae", math.inf), ("text_encoder", math.nan)]
)
def test_weights_that_are_not_finite_are_named(copy, part, value):
    (copy / registry.HASHES).unlink()
    (path,) = (copy / part).glob("*.safetensors")
    weights = load_file(path)
    name = sorted(weights)[3]
    weights[name].view(-1)[-1] = value
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"expected finite weights of {part}, got .* in {name}"):
        load_model(copy, "cpu")


@pytest.mark.parametrize(
    "part, change",
    [("unet", {"norm_num_groups": 0}), ("text_encoder", {"hidden_act": 5})],
)
def test_a_part_that_cannot_be_built_is_named(copy, part, change):
    (copy / registry.HASHES).unlink()
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"expected a complete model .*{part} cannot be loaded"):
        load_model(copy, "cpu")


@pytest.mark.parametrize("text", ["[" * 9999, "[]", "{", '{"a": NaN}'])
def test_malformed_files_of_the_tokenizer_are_named(copy, text):
    (copy / registry.HASHES).unlink()
    (copy / "tokenizer" / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: expected"):
        check_files(model_info(copy))


def test_a_damaged_model_does_not_hide_the_others(copy, tmp_path, monkeypatch, caplog):
    shutil.copytree(copy, tmp_path / "models" / "good")
    shutil.copytree(copy, tmp_path / "models" / "bad")
    (tmp_path / "models" / "bad" / "model_index.json").write_text("{")
    monkeypatch.setenv("SPAD_HOME", str(tmp_path))
    assert [model.path.name for model in list_models()] == ["mini", "good"]
    assert "bad/model_index.json: expected JSON" in caplog.text


def test_a_list_of_hashes_names_files_of_the_model_only(copy):
    (copy / registry.HASHES).write_text("0" * 64 + "  ../other/config.json\n")
    with pytest.raises(ValueError, match=r"sha256\.txt, line 1: expected a file inside"):
        check_files(model_info(copy))


def test_prompts_may_be_as_long_as_the_model_reads(tiny_pipeline_folder):
    model = model_info(tiny_pipeline_folder)
    check_prompt_length(model, "fish, " * 22)
    with pytest.raises(ValueError, match="at most 22 words.*got 23"):
        check_prompt_length(model, "fish " * 23)


def test_unknown_devices_are_refused(tiny_pipeline_folder):
    for device in ("gpu", "cuda:77", "meta"):
        with pytest.raises(ValueError, match="try cpu"):
            load_model(tiny_pipeline_folder, device)


def test_a_manifest_can_be_written_again(copy):
    save_model_manifest(copy, "other", "anything", ["b", "a", "b"])
    model = model_info(copy)
    check_files(model)
    assert (model.name, model.captions()) == ("other", ["a", "b"])
    assert not [p for p in copy.iterdir() if p.name.startswith(".")]
