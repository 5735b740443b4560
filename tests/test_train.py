"""Training the denoiser, its resumption and its export, on a few coloured discs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spad.cameras import Cameras
from spad.config import AutoencoderTraining, DenoiserTraining, Export
from spad.data.viewpoints import quarter_turns
from spad.export import export_model
from spad.models import check_files, find_model, load_model
from spad.train import DenoiserTrainer, train_denoiser
from spad.train_autoencoder import train_autoencoder
from spad.training_run import step_generator


@pytest.fixture(scope="module")
def autoencoder(renders, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    train_autoencoder(
        AutoencoderTraining(
            renders,
            folder,
            steps=20,
            batch_size=2,
            crop_size=32,
            latent_channels=8,
            block_out_channels=(16, 16, 16),
            log_every=5,
        )
    )
    return folder


@pytest.fixture
def settings(renders, autoencoder, tmp_path) -> DenoiserTraining:
    return DenoiserTraining(
        data=renders,
        output=tmp_path / "run",
        vae=autoencoder / "vae",
        steps=4,
        views_per_object=(1, 2, 4),
        views_per_step=8,
        warmup_steps=1,
        block_out_channels=(32, 32),
        text_width=64,
        save_every_s=0.0,
        log_every=1,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).unet.state_dict()


def test_it_learns(settings):
    """The same batch again and again: its loss falls by half."""
    trainer = DenoiserTrainer(replace(settings, steps=1000, learning_rate=2e-3))
    losses = []
    for _ in range(40):
        loss = trainer.loss(step=3)
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("min_snr_gamma", [None, 5.0])
def test_every_weight_learns(settings, prediction_type, min_snr_gamma):
    changed = replace(
        settings,
        prediction_type=prediction_type,
        min_snr_gamma=min_snr_gamma,
        zero_terminal_snr=prediction_type == "v_prediction",
    )
    trainer = DenoiserTrainer(changed)
    before = [p.detach().clone() for p in trainer.parameters]
    for step in range(3):
        trainer.train_step(step)
    still = [a.shape for a, b in zip(before, trainer.parameters, strict=True) if torch.equal(a, b)]
    assert not still


def test_the_schedule_ends_in_noise_and_sampling_starts_there(settings):
    scheduler = DenoiserTrainer(settings).scheduler
    assert scheduler.alphas_cumprod[-1] < 1e-8
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[0] == 999
    plain = DenoiserTrainer(replace(settings, zero_terminal_snr=False)).scheduler
    assert plain.alphas_cumprod[-1] > 1e-3
    with pytest.raises(ValueError, match="expected v_prediction"):
        replace(settings, prediction_type="epsilon")


def test_a_shift_draws_noisy_timesteps_more_often(settings):
    def share_of_noisy(shift: float) -> float:
        trainer = DenoiserTrainer(replace(settings, timestep_shift=shift))
        drawn = trainer._draw_timesteps(20_000, step_generator(0, 0))
        assert drawn.min() >= 0 and drawn.max() < 1000
        return (drawn >= 500).float().mean().item()

    # t = 1/2 is where u = 1 / (1 + shift).
    assert share_of_noisy(1.0) == pytest.approx(0.5, abs=0.02)
    assert share_of_noisy(3.0) == pytest.approx(0.75, abs=0.02)


def test_a_stopped_and_resumed_run_gives_the_weights_of_one_never_stopped(settings, tmp_path):
    whole = weights(train_denoiser(settings))
    stopped = replace(settings, output=tmp_path / "stopped")
    script = (
        f"import os, signal, sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from pathlib import Path, PosixPath, WindowsPath\n"
        "from spad.config import DenoiserTraining\n"
        "import spad.train as train\n"
        "step = train.DenoiserTrainer.train_step\n"
        "def killed(self, number):\n"
        "    if number == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, number)\n"
        "train.DenoiserTrainer.train_step = killed\n"
        f"train.train_denoiser({stopped!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (stopped.output / "checkpoint.pt").is_file()
    resumed = weights(train_denoiser(stopped))
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_a_run_goes_on_from_a_saved_model(settings, tmp_path):
    first = train_denoiser(settings)
    on = replace(settings, init=first, output=tmp_path / "on", steps=1, learning_rate=0.0)
    assert all(
        torch.allclose(a, b, atol=2e-3)
        for a, b in zip(weights(first).values(), weights(train_denoiser(on)).values(), strict=True)
    )


def test_a_clean_view_is_given_at_timestep_zero_and_not_scored(settings):
    trainer = DenoiserTrainer(replace(settings, views_per_object=(4,), clean_view_share=1.0))
    clean = trainer.batch(0)[0]
    seen = {}
    forward = trainer.unet.forward

    def watched(sample, timesteps, *args, **kwargs):
        seen.update(sample=sample, timesteps=timesteps)
        output = forward(sample, timesteps, *args, **kwargs)
        output.sample.retain_grad()
        seen["output"] = output.sample
        return output

    trainer.unet.forward = watched
    trainer.loss(0).backward()
    assert torch.equal(seen["sample"][:, 0], clean[:, 0])
    assert not torch.equal(seen["sample"][:, 1], clean[:, 1])
    assert (seen["timesteps"][:, 0] == 0).all()
    assert (seen["timesteps"][:, 1:] == seen["timesteps"][:, 1:2]).all()
    assert not seen["output"].grad[:, 0].any()
    assert seen["output"].grad[:, 1:].any()


def test_text_is_dropped_as_often_as_asked(settings):
    trainer = DenoiserTrainer(replace(settings, text_dropout=0.5, word_dropout=0.0))
    ids = torch.cat([trainer.batch(step)[2] for step in range(60)])
    share = (ids == trainer.no_caption).all(-1).float().mean()
    assert 0.35 < share < 0.65


def test_batches_are_consistent(settings, renders):
    """Latents, cameras and captions of a batch belong to the same views."""
    trainer = DenoiserTrainer(replace(settings, text_dropout=0.0, word_dropout=0.0))
    all_latents = trainer.data.latents.float()
    for step in range(6):
        latents, cameras, ids, _ = trainer.batch(step)
        poses = cameras.world_from_cam.unflatten(0, latents.shape[:2])
        for latent, pose, caption in zip(latents, poses, ids, strict=True):
            owner = next(i for i, t in enumerate(trainer.data.token_ids) if (t == caption).all())
            for one, world_from_cam in zip(latent, pose, strict=True):
                view = (all_latents[owner] == one).flatten(1).all(1).nonzero()[0, 0]
                index = owner * all_latents.shape[1] + view
                assert torch.equal(trainer.data.cameras.world_from_cam[index], world_from_cam)


def test_held_out_objects_are_never_seen(settings, monkeypatch):
    import spad.train

    # Leaves a cache of the latents of all six.
    assert len(DenoiserTrainer(settings).data.latents) == 6
    monkeypatch.setattr(spad.train, "is_held_out", lambda uid: uid in ("object1", "object4"))
    trainer = DenoiserTrainer(settings)
    assert len(trainer.data.token_ids) == 4
    assert len(trainer.data.latents) == 4


def test_latents_are_encoded_once_for_a_list_of_objects(settings, renders, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(renders, data, ignore=shutil.ignore_patterns("latents-*"))
    settings = replace(settings, data=data)
    latents = DenoiserTrainer(settings).data.latents
    (cache,) = data.glob("latents-*")
    stamp = cache.stat().st_mtime_ns
    assert torch.equal(DenoiserTrainer(settings).data.latents, latents)
    # Earlier versions did not name the objects.
    older = cache.rename(data / f"{'-'.join(cache.stem.split('-')[:2])}.safetensors")
    assert torch.equal(DenoiserTrainer(settings).data.latents, latents)
    assert [p.stat().st_mtime_ns for p in data.glob("latents-*")] == [stamp]
    lines = (data / "objects.jsonl").read_text().splitlines()
    (data / "objects.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    assert torch.equal(DenoiserTrainer(settings).data.latents, latents.flip(0))
    assert older.exists() and len(list(data.glob("latents-*"))) == 2


def test_quarter_turns_are_found():
    ring = Cameras.evenly_round(4, elevation_deg=10.0, azimuth_start_deg=33.0)
    others = Cameras.orbit([0.0, 10.0, 20.0], [5.0, 95.0, 185.0])
    assert quarter_turns(Cameras.cat([others, ring, ring])) == [[3, 4, 5, 6], [7, 8, 9, 10]]


def test_export_ships_a_working_model_with_its_record(settings, autoencoder, renders, tmp_path):
    train_denoiser(settings)
    output = tmp_path / "shipped"
    export = Export((settings.output,), autoencoder, renders, output, "discs", "CC0-1.0", "us")
    assert export_model(export) == output
    model = find_model(output)
    check_files(model)
    assert (model.name, model.description, model.licence) == ("shipped", "discs", "CC0-1.0")
    assert "disc 2" in model.captions()
    for path in output.rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".csv"):
            assert str(tmp_path) not in path.read_text(), path
    pipeline = load_model(output)
    pipeline.set_progress_bar_config(disable=True)
    cameras = Cameras.evenly_round(2, height=64, width=64)
    assert len(pipeline("disc 2", cameras, num_inference_steps=1).images[0]) == 2
    card = (output / "README.md").read_text()
    for run in ("0-", f"1-{settings.output.name}"):
        (part,) = (output / "training").glob(run + "*")
        assert json.loads((part / "record.json").read_text())["seconds"] > 0
        assert (part / "loss.csv").read_text().startswith("step,")
        assert (part / "loss.svg").read_text().startswith("<svg")
        assert part.name in card
    with pytest.raises(ValueError, match="exists"):
        export_model(export)


def test_a_run_without_its_record_is_not_shipped(settings, autoencoder, renders, tmp_path):
    train_denoiser(settings)
    (settings.output / "record.json").unlink()
    output = tmp_path / "shipped"
    with pytest.raises(ValueError, match=r"record\.json"):
        export_model(Export((settings.output,), autoencoder, renders, output))
    assert not output.exists()
