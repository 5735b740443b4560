"""What is wrong with a training run is said in one line, before its first step; nothing is lost."""

import json
import shutil

import pytest
import torch

from made_renders import write_renders
from spad.cli import main
from spad.data.config import PackConfig
from spad.data.pack import pack
from spad.data.shards import read_shard_folder
from spad.training.config import TrainConfig
from spad.training.train import Trainer, train
from train_settings import changed


@pytest.fixture
def shards(disc_shards, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(disc_shards, tmp_path / "shards")


def refused(settings: TrainConfig, message: str) -> None:
    """The run is refused before anything is written."""
    with pytest.raises(ValueError, match=message):
        train(settings)
    assert not settings.run_folder.exists()


def test_missing_and_empty_folders(training, renders, tmp_path):
    refused(changed(training, data=tmp_path / "nowhere"), r"make one with: spad pack")
    (tmp_path / "empty").mkdir()
    refused(changed(training, data=tmp_path / "empty"), "has no index")
    refused(changed(training, data=renders), "pack them: spad pack")


def test_a_shard_cut_short(training, shards):
    tar = read_shard_folder(shards).shards[1].path
    tar.write_bytes(tar.read_bytes()[:-2000])
    refused(changed(training, data=shards), f"{tar.name}: expected .* bytes")


def test_a_shard_with_other_bytes(training, shards):
    shard = read_shard_folder(shards).shards[1]
    data = bytearray(shard.path.read_bytes())
    data[shard.offsets[1] - 700] ^= 255
    shard.path.write_bytes(data)
    refused(changed(training, data=shards, verify=True), "expected the checksum of index.json")


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda about: about.update(captions=[]), "captions"),
        (lambda about: about.update(captions=[" "]), "captions"),
        (lambda about: about.pop("world_from_cam"), "expected world_from_cam, got none"),
        (lambda about: about.update(intrinsics=about["intrinsics"][:2]), "as many intrinsics"),
        (
            lambda about: about.update(
                intrinsics=about["intrinsics"][:2], world_from_cam=about["world_from_cam"][:2]
            ),
            "expected 4 cameras, got 2",
        ),
    ],
    ids=["no captions", "empty caption", "no cameras", "odd cameras", "few cameras"],
)
def test_objects_without_captions_or_cameras(training, shards, corrupt, message):
    """The JSON of one object is changed in place, its length kept."""
    shard = read_shard_folder(shards).shards[0]
    data = bytearray(shard.path.read_bytes())
    start = shard.offsets[1] + 512
    end = data.index(b"\0", start)
    about = json.loads(data[start:end])
    corrupt(about)
    altered = json.dumps(about, separators=(",", ":")).encode().ljust(end - start)
    assert len(altered) == end - start
    data[start:end] = altered
    shard.path.write_bytes(data)
    refused(changed(training, data=shards), message)


def test_images_of_another_size_than_the_model_generates(training, tiny_pipeline_folder):
    settings = changed(training, init=str(tiny_pipeline_folder), word_dropout=0.0)
    refused(settings, "expected images of 128x128 .* got 64x64; render them with --image-size 128")


def test_sizes_that_the_data_or_the_autoencoder_lacks(training, tiny_pipeline_folder):
    refused(changed(training, image_size=128), "expected --image-size of at most 64, .* got 128")
    refused(changed(training, image_size=36), "expected image sizes in steps of 16, got 36")
    settings = changed(training, image_size=36, init=str(tiny_pipeline_folder), word_dropout=0.0)
    refused(settings, "expected image sizes in steps of")


def test_more_views_than_there_are(training):
    refused(changed(training, views=(8,)), "num_views of 1 to 4")


def test_nothing_to_learn_from(training, tmp_path):
    (tmp_path / "ids.txt").write_text("unknown\n")
    refused(changed(training, objects=tmp_path / "ids.txt"), "expected training objects")
    refused(changed(training, objects=tmp_path / "no.txt"), "no.txt: expected a readable file")


def test_quarter_turns_of_two_views(training):
    settings = changed(training, view_sampling="orthogonal", views=(2,))
    refused(settings, "num_views 4 for orthogonal")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there(training):
    refused(changed(training, device="cuda"), "expected a device that works here, got cuda")
    refused(changed(training, mixed_precision="fp16"), "bf16 or no on a CPU")
    refused(changed(training, optimizer="adamw-8bit"), "adamw or adafactor on a CPU")


def test_models_that_do_not_fit(training, tmp_path):
    refused(changed(training, init="nothing"), "expected a model among")
    refused(changed(training, preset="two-views"), "spad init-from-base")
    refused(changed(training, vae=str(tmp_path)), "model_index.json: expected a readable file")


def test_single_images_that_are_not_there(training, tmp_path):
    refused(changed(training, images=tmp_path), "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "../x.png", "text": "x"}\n')
    refused(changed(training, images=tmp_path), "line 1: expected a file inside")
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    refused(changed(training, images=tmp_path), "line 1: expected file_name, got none")


def test_the_folder_of_another_run(training, tmp_path):
    train(training)
    before = {p: p.read_bytes() for p in training.run_folder.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"learning_rate: 0.001 -> 0.5"):
        train(changed(training, learning_rate=0.5))
    assert before == {p: p.read_bytes() for p in training.run_folder.rglob("*") if p.is_file()}
    more = write_renders(tmp_path / "renders", [f"object{n}" for n in range(6)])
    pack(PackConfig(more, tmp_path / "others"))
    with pytest.raises(ValueError, match="data_sha256"):
        train(changed(training, data=tmp_path / "others", vae=training.vae))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, "multiple of views"),
        ({"caption_dropout": 1.5}, "caption_dropout of at least 0 and at most 1, got 1.5"),
        ({"learning_rate": -1.0}, "learning_rate of at least 0"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "v_prediction"),
        ({"optimizer": "muon", "fsdp": True}, "another --optimizer with --fsdp"),
        (
            {"trainable": "lora", "init": "mini", "optimizer": "adamw", "fsdp": True},
            "without --fsdp",
        ),
        ({"block_out_channels": (30,)}, "a multiple of 32"),
        ({"trainable": "lora"}, "--init"),
        ({"steps": 0}, "steps of at least 1"),
        ({"timestep_shift": 0.0}, "timestep_shift of more than 0, got 0"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma"),
    ],
)
def test_settings_out_of_range(training, changes, message):
    with pytest.raises(ValueError, match=message):
        changed(training, **changes)


def test_a_nan_names_its_step_and_the_last_good_checkpoint(training, monkeypatch):
    losses = Trainer.losses

    def broken(self, batch):
        found, *rest = losses(self, batch)
        calls.append(batch)
        return (found * float("nan") if len(calls) > 2 else found, *rest)

    calls = []
    monkeypatch.setattr(Trainer, "losses", broken)
    with pytest.raises(FloatingPointError, match=r"step 2; the last good .*step-00000002\.pt"):
        train(training)


def test_the_command_answers_in_one_line(capsys, tmp_path):
    code = main(["train", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert code == 2 and not out
    assert len(err.splitlines()) == 1 and err.startswith("spad: error: expected a folder of shards")
