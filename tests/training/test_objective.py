"""Noise, targets and weights follow the formulas, and no split of a batch changes them."""

import pytest
import torch
from diffusers import DDIMScheduler

from spad.training.config import TrainConfig
from spad.training.objective import Objective
from train_settings import changed


def scheduler(prediction_type: str = "v_prediction", zero_snr: bool = False) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
    )


def objective(prediction_type: str = "v_prediction", **settings) -> Objective:
    given = {"clean_view_prob": 0.0, "timestep_shift": 1.0} | settings
    return Objective(scheduler(prediction_type), changed(TrainConfig(), **given))


def latents(count: int = 6, views: int = 4) -> torch.Tensor:
    return torch.randn(count, views, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def keys(count: int = 6) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_target_are_those_of_the_papers(prediction_type):
    clean = latents()
    noised = objective(prediction_type).make_batch(clean, keys())
    signal = scheduler().alphas_cumprod[noised.timesteps].sqrt()[..., None, None, None]
    spread = (1 - signal**2).sqrt()
    noise = (noised.noisy - signal * clean) / spread
    velocity = signal * noise - spread * clean
    expected = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction_type]
    torch.testing.assert_close(noised.target, expected, atol=2e-3, rtol=1e-3)
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_a_split_batch_gets_the_same_noise():
    one = objective(clean_view_prob=0.5)
    clean = latents()
    whole = one.make_batch(clean, keys())
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        noised = one.make_batch(clean[part], keys()[part])
        for name in ("noisy", "target", "timesteps", "loss_mask"):
            assert torch.equal(getattr(noised, name), getattr(whole, name)[part]), name


def test_other_samples_and_other_seeds_get_other_noise():
    clean = latents(1).expand(3, -1, -1, -1, -1)
    noised = objective().make_batch(clean, ["0", "1", "picture 0 1"])
    assert len({float(noisy.sum()) for noisy in noised.noisy}) == 3
    other = objective(seed=1).make_batch(clean[:1], ["0"])
    assert not torch.equal(other.noisy, noised.noisy[:1])


def test_clean_views_are_given_at_timestep_zero_and_have_no_loss():
    clean = latents()
    one = objective(clean_view_prob=1.0)
    noised = one.make_batch(clean, keys())
    given = ~noised.loss_mask
    assert torch.equal(noised.noisy[given], clean[given])
    assert not (noised.noisy[~given] == clean[~given]).flatten(1).all(1).any()
    assert (noised.timesteps[given] == 0).all() and noised.has_clean_view.all()
    for timesteps, has_loss in zip(noised.timesteps, noised.loss_mask, strict=True):
        assert len(timesteps[has_loss].unique()) == 1
    predicted = torch.zeros_like(clean, requires_grad=True)
    one.losses(one.errors(predicted, noised), noised).sum().backward()
    assert not predicted.grad[given].any() and predicted.grad[~given].flatten(1).any(1).all()


def test_any_views_but_never_all_are_given():
    clean = latents(1).expand(400, -1, -1, -1, -1)
    has_loss = objective(clean_view_prob=1.0).make_batch(clean, keys(400)).loss_mask
    assert has_loss.any(1).all() and not has_loss.all(1).any()
    # Each number of given views, and each view, is as frequent as the others.
    views = has_loss.shape[1]
    counts = torch.bincount((~has_loss).sum(1), minlength=views)[1:]
    assert counts.min() > 400 / (views - 1) * 0.8
    assert ((~has_loss).float().mean(0) - 0.5).abs().max() < 0.1
    # A single view is never given: nothing would be left to draw.
    assert objective(clean_view_prob=1.0).make_batch(latents(views=1), keys()).loss_mask.all()


def test_views_are_given_as_often_as_asked():
    noised = objective(clean_view_prob=0.3).make_batch(
        latents(1, 2).expand(600, -1, -1, -1, -1), keys(600)
    )
    assert noised.has_clean_view.float().mean() == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(("shift", "noisy_half"), [(1.0, 0.5), (3.0, 0.75)])
def test_a_shift_draws_noisy_timesteps_more_often(shift, noisy_half):
    one = objective(timestep_shift=shift)
    drawn = torch.tensor([one._draw(key, torch.Size([1, 1, 1, 1]))[1] for key in keys(3000)])
    assert drawn.min() >= 0 and drawn.max() < 1000
    # t = 1/2 is where u = 1 / (1 + shift).
    assert (drawn >= 500).float().mean() == pytest.approx(noisy_half, abs=0.03)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction_type):
    one = objective(prediction_type, min_snr_gamma=5.0)
    noised = one.make_batch(latents(), keys())
    signal = scheduler().alphas_cumprod[noised.timesteps]
    snr = signal / (1 - signal)
    weights = snr.clamp(max=5) / (snr + 1 if prediction_type == "v_prediction" else snr)
    errors = torch.rand(6, 4)
    expected = (weights * errors).mean(1)
    torch.testing.assert_close(one.losses(errors, noised), expected, rtol=1e-4, atol=1e-6)
    plain = objective(prediction_type)
    torch.testing.assert_close(plain.losses(errors, noised), errors.mean(1))


def test_clean_latents_weigh_as_their_velocity_up_to_a_cap():
    clean = latents()
    noised = objective("sample").make_batch(clean, keys())
    signal = scheduler().alphas_cumprod[noised.timesteps].sqrt()[..., None, None, None]
    spread = (1 - signal.square()).sqrt()
    noise = (noised.noisy - signal * clean) / spread
    predicted = clean + 0.1 * torch.randn_like(clean)
    velocity = (signal * noised.noisy - predicted) / spread
    errors = Objective.errors(predicted, noised)
    of_velocity = (velocity - (signal * noise - spread * clean)).square().mean((-3, -2, -1))
    uncapped = objective("sample", max_x0_weight=1e9).losses(errors, noised)
    torch.testing.assert_close(uncapped, of_velocity.mean(1), rtol=1e-3, atol=1e-6)
    capped = objective("sample", max_x0_weight=2.0).losses(errors, noised)
    weights = (1 / spread.flatten(1).square()).clamp(max=2.0)
    torch.testing.assert_close(capped, (weights * errors).mean(1), rtol=1e-4, atol=1e-6)


def test_offset_noise_is_the_same_all_over_a_view():
    clean = latents()
    with_offset, without = (
        objective("epsilon", offset_noise=offset).make_batch(clean, keys()).target
        for offset in (0.5, 0)
    )
    offset = with_offset - without
    assert offset.std(dim=(-1, -2)).max() < 1e-5
    assert offset.mean(dim=(-1, -2)).std() == pytest.approx(0.5, rel=0.3)
