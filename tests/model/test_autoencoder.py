"""The small autoencoder: linear laws, and that training its decoder helps."""

from pathlib import Path

import pytest
import torch

from spad.data.renders import load_all_images, read_renders
from spad.data.seeds import seeded
from spad.images.pixels import image_tensor
from spad.model import PatchAutoencoder
from spad.training.autoencoder import (
    denoised_latents,
    fit_autoencoder,
    image_gradients,
    random_crops,
    train_autoencoder,
)
from spad.training.config import TrainAutoencoderConfig

SMALL = dict(latent_channels=12, block_out_channels=(16, 16, 16))


@pytest.fixture(scope="module")
def images(renders):
    return load_all_images(read_renders(renders))


def settings(renders: Path, output: Path, **changes) -> TrainAutoencoderConfig:
    return TrainAutoencoderConfig(
        **{"data": renders, "output": output, "steps": 30, "batch_size": 4, "crop_size": 32}
        | SMALL
        | changes
    )


def test_pictures_are_read_on_white(images):
    assert images.shape == (6, 4, 64, 64, 3)
    assert (images[:, :, 0, 0] == 255).all()
    assert images[2, 1, 32, 32].tolist() == [80, 140, 90]
    assert image_tensor(images[0]).shape == (4, 3, 64, 64)


def test_white_has_latents_of_zero_and_comes_back_white(renders, images, tmp_path):
    model = fit_autoencoder(settings(renders, tmp_path), images)
    white = torch.ones(1, 3, 32, 48)
    latents = model.encode(white).latent_dist.mode()
    assert latents.shape == (1, 12, 2, 3)
    assert latents.abs().max() < 1e-4
    assert torch.allclose(model.decode(latents).sample, white, atol=1e-4)


def test_untrained_it_is_the_best_linear_projection(renders, images, tmp_path):
    """Decoding and encoding again changes nothing, and more components never hurt."""
    target = image_tensor(images[0])
    errors = []
    for channels in (4, 12, 40):
        model = fit_autoencoder(settings(renders, tmp_path, latent_channels=channels), images)
        latents = model.encode(target).latent_dist.mode()
        decoded = model.decode(latents).sample
        assert torch.allclose(model.encode(decoded).latent_dist.mode(), latents, atol=1e-3)
        errors.append((decoded - target).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]


def test_scaled_latents_have_unit_variance(renders, images, tmp_path):
    model = fit_autoencoder(settings(renders, tmp_path), images)
    crops = random_crops(images, 200, 64, 64, seeded(1, 0))
    scaled = model.encode(crops).latent_dist.mode() * model.config.scaling_factor
    assert 0.8 < scaled.square().mean() < 1.2


def test_latents_are_certain(renders, images, tmp_path):
    posterior = (
        fit_autoencoder(settings(renders, tmp_path), images)
        .encode(image_tensor(images[0]))
        .latent_dist
    )
    assert torch.allclose(posterior.sample(), posterior.mode(), atol=1e-5)


def test_training_the_decoder_helps_and_keeps_the_latents(renders, images, tmp_path):
    before = fit_autoencoder(settings(renders, tmp_path), images)
    quick = dict(steps=120, learning_rate=2e-3, latent_noise=0.0, edge_weight=0.0, crop_size=64)
    folder = train_autoencoder(settings(renders, tmp_path, **quick))
    after = PatchAutoencoder.from_pretrained(folder)
    assert torch.equal(after.encoder.weight, before.encoder.weight)
    assert after.config.scaling_factor == before.config.scaling_factor
    target = image_tensor(images[:, 0])

    def error(model) -> float:
        decoded = model.decode(model.encode(target).latent_dist.mode()).sample
        return (decoded - target).abs().mean().item()

    with torch.no_grad():
        assert error(after) < 0.95 * error(before)


def test_going_on_keeps_the_encoder_and_what_was_learned(renders, tmp_path):
    first = train_autoencoder(settings(renders, tmp_path / "first"))
    second = train_autoencoder(
        settings(renders, tmp_path / "second", init=first, steps=1, learning_rate=0.0, seed=5)
    )
    before, after = (PatchAutoencoder.from_pretrained(f).state_dict() for f in (first, second))
    assert all(torch.equal(after[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="expected an autoencoder"):
        train_autoencoder(settings(renders, tmp_path / "third", init=tmp_path))


def test_little_noise_leaves_latents_as_they_are(
    renders, images, tiny_pipeline_folder, monkeypatch
):
    objects = read_renders(renders)[:2]
    vae = PatchAutoencoder.from_pretrained(tiny_pipeline_folder / "vae").float()
    clean = torch.stack([vae.encode(image_tensor(i)).latent_dist.mode() for i in images[:2]])
    deviations = []
    for timesteps in ((0, 1), (500, 501)):
        monkeypatch.setattr("spad.training.autoencoder.DENOISED_TIMESTEPS", timesteps)
        found = denoised_latents(objects, images[:2], tiny_pipeline_folder, seed=0)
        again = denoised_latents(objects, images[:2], tiny_pipeline_folder, seed=0)
        assert found.shape == clean.shape and torch.equal(found, again)
        deviations.append((found - clean).square().mean().sqrt() * vae.config.scaling_factor)
    # The first step's noise has the deviation 0.03; an untrained model takes none of it away.
    assert deviations[0] < 0.1 < deviations[1]


def test_the_decoder_learns_from_a_denoiser(renders, tiny_pipeline_folder, tmp_path):
    common = dict(init=tiny_pipeline_folder / "vae", steps=2, log_every=1)
    alone = train_autoencoder(settings(renders, tmp_path / "alone", **common))
    both = train_autoencoder(
        settings(renders, tmp_path / "both", denoiser=tiny_pipeline_folder, **common)
    )
    alone, both = (PatchAutoencoder.from_pretrained(f).state_dict() for f in (alone, both))
    assert torch.equal(alone["encoder.weight"], both["encoder.weight"])
    assert not torch.equal(alone["refiner.conv_out.weight"], both["refiner.conv_out.weight"])


def test_crops_start_at_multiples(images):
    crops = random_crops(images, 50, 32, 16, seeded(0, 0))
    assert crops.shape == (50, 3, 32, 32)
    whole = image_tensor(images.reshape(-1, 64, 64, 3))
    for crop in crops[:5]:
        places = [
            whole[:, :, row : row + 32, col : col + 32]
            for row in (0, 16, 32)
            for col in (0, 16, 32)
        ]
        assert (torch.cat(places) == crop).flatten(1).all(1).any()


def test_image_gradients_of_a_ramp():
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert image_gradients(ramp).tolist() == [1.0] * 12 + [0.0] * 12


def test_odd_patch_sizes_are_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        PatchAutoencoder(patch_size=10)
