"""Damaged model folders: described and checked, or refused with a message that names the folder."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damaged, damaged_json
from spad.hub.registry import HASHES, check_files, read_info


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder, tmp_path_factory):
    """A model without hashes, which would notice any change."""
    folder = tmp_path_factory.mktemp("models") / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    (folder / HASHES).unlink()
    return folder


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_file_is_named(tiny_pipeline_folder, model, data):
    names = [
        "model_index.json",
        "spad.json",
        "captions.txt",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        HASHES,
    ]
    name = data.draw(st.sampled_from(names))
    whole = (tiny_pipeline_folder / name).read_bytes()
    if name.endswith(".safetensors"):
        # The header, of which the size comes first.
        content = damaged(data, whole[:600]) + whole[600:]
    elif name.endswith(".json") and data.draw(st.booleans()):
        content = damaged_json(data, whole.decode()).encode()
    else:
        content = damaged(data, whole)
    (model / name).write_bytes(content)
    try:
        info = read_info(model)
        assert info.image_size > 0 and info.image_multiple > 0 and info.max_steps >= 0
        info.captions()
        check_files(info)
    except ValueError as error:
        assert str(model) in str(error) and "\n" not in str(error)
    finally:
        if name == HASHES:
            (model / name).unlink()
        else:
            (model / name).write_bytes(whole)
