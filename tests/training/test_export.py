"""A trained model is shipped whole, with the record of its training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spad.cameras import Cameras
from spad.data.renders import data_hash
from spad.hub.registry import check_files, load_model, model_info
from spad.training.autoencoder import train_autoencoder
from spad.training.config import ExportConfig, TrainAutoencoderConfig
from spad.training.export import export_model
from spad.training.train import train
from train_settings import changed


@pytest.fixture
def autoencoder(renders, tmp_path) -> Path:
    folder = tmp_path / "autoencoder"
    train_autoencoder(
        TrainAutoencoderConfig(
            renders,
            folder,
            steps=4,
            batch_size=2,
            crop_size=32,
            latent_channels=8,
            block_out_channels=(16, 16, 16),
            log_every=2,
        )
    )
    return folder


@pytest.fixture
def run(training, autoencoder) -> Path:
    settings = changed(training, vae=str(autoencoder / "vae"), steps=2)
    train(settings)
    return settings.run_folder


def test_export_ships_a_working_model_with_its_record(run, autoencoder, renders, tmp_path):
    output = tmp_path / "shipped"
    export = ExportConfig(
        (run,),
        renders,
        output,
        autoencoder,
        "discs",
        "CC0-1.0",
        "us",
        guidance_scale=3.0,
        guidance_scale_with_image=1.5,
        scheduler="unipc",
        num_inference_steps=7,
        hub=True,
    )
    assert export_model(export) == output
    model = model_info(output)
    check_files(model)
    assert (model.name, model.description, model.license) == ("shipped", "discs", "CC0-1.0")
    drawing = model.defaults
    assert (drawing.scheduler, drawing.num_inference_steps) == ("unipc", 7)
    assert [drawing.guidance(is_image_given) for is_image_given in (False, True)] == [3.0, 1.5]
    as_trained = model_info(run / "model").defaults
    kept = replace(
        export, output=tmp_path / "kept", scheduler=None, num_inference_steps=None, hub=False
    )
    assert model_info(export_model(kept)).defaults == replace(
        as_trained, guidance_scale=3.0, guidance_scale_with_image=1.5
    )
    assert "disc 2" in model.captions()
    for path in output.rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".csv"):
            assert str(tmp_path) not in path.read_text(), path
    pipeline = load_model(output)
    pipeline.set_progress_bar_config(disable=True)
    cameras = Cameras.ring(2, height=64, width=64)
    assert len(pipeline("disc 2", cameras, num_inference_steps=1).images[0]) == 2
    card = (output / "README.md").read_text()
    assert card.startswith("---\n") and "license: cc0-1.0\n" in card
    assert (output / "pipeline.py").is_file() and not (kept.output / "pipeline.py").exists()
    assert "6 rendered objects" in card and data_hash(renders) in card
    for number, made in enumerate((autoencoder, run)):
        part = output / "training" / f"{number}-{made.name}"
        assert json.loads((part / "record.json").read_text())["seconds"] > 0
        assert (part / "loss.csv").read_text().startswith("step,")
        assert (part / "loss.svg").read_text().startswith("<svg")
        assert part.name in card
    with pytest.raises(ValueError, match="exists"):
        export_model(export)


def test_a_run_without_its_record_is_not_shipped(run, renders, tmp_path):
    (run / "record.json").unlink()
    output = tmp_path / "shipped"
    with pytest.raises(ValueError, match=r"record\.json"):
        export_model(ExportConfig((run,), renders, output))
    assert not output.exists()
