"""Saved pipelines load from the Hugging Face hub, in diffusers alone too."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hub_server import Hub
from spad.hub.registry import load_model
from spad.model.hub_files import write_hub_files

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tiny_pipeline_folder, tmp_path) -> Path:
    copy = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "tiny"))
    (copy / "sha256.txt").unlink()
    return copy


def test_pipelines_are_pushed_to_the_hub_and_loaded_from_it(tiny_pipeline_folder, folder, tmp_path):
    write_hub_files(folder, "tiny")
    with Hub({}) as hub:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment = kept | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_of_nobody",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]),
        }
        command = [TESTS / "run_hub.py", tiny_pipeline_folder, folder, "us/tiny"]
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        card = ModelCard(hub.files["us/tiny", "README.md"].decode())
    assert card.data.pipeline_tag == "text-to-3d" and "## Use" in card.text
    assert "automatically" not in card.text
    assert "defaults" in json.loads(hub.files["us/tiny", "model_index.json"])


def test_a_model_card_keeps_its_text_and_its_header(folder):
    (folder / "README.md").write_text("---\nbase_model: us/base\ntags: [mine]\n---\n\n# Ours\n")
    for _ in range(2):
        write_hub_files(folder, "us/tiny", license="a license of our own")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.tags) == ("us/base", ["mine"])
    assert (card.data.license, card.data.license_name) == ("other", "a license of our own")
    assert card.text.lstrip().startswith("# Ours") and card.text.count("## Use") == 1
    assert load_model(folder, "cpu").name == "tiny"


def test_licenses_are_named_as_the_hub_names_them(folder):
    write_hub_files(folder, "us/tiny", "discs", "CC0-1.0")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc0-1.0" and card.data.get("license_name") is None
    assert card.text.lstrip().startswith("# tiny\n\ndiscs\n")
