"""The denoising loss: noise, timesteps, targets and loss weights.

Each sample has its own random generator, seeded by the run's seed and the sample's key, so the
result does not depend on how a batch is split over devices and micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from spad.data.seeds import seeded
from spad.training.config import TrainConfig


@dataclass(frozen=True)
class NoisedBatch:
    """A noised batch with its regression targets.

    Attributes:
        noisy, target: (b, v, c, h, w).
        timesteps: (b, v) int64.
        loss_mask: (b, v) bool; False for views given without noise.
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    loss_mask: Tensor

    @property
    def has_clean_view(self) -> Tensor:
        """(b,) bool: whether any view of the object is given without noise."""
        return ~self.loss_mask.all(1)


class Objective:
    """The denoising loss for a noise schedule and the settings of a training."""

    def __init__(self, scheduler: DDIMScheduler, settings: TrainConfig):
        self.scheduler, self.settings = scheduler, settings
        self.prediction_type: str = scheduler.config["prediction_type"]
        self.num_timesteps: int = scheduler.config["num_train_timesteps"]

    def make_batch(self, clean: Tensor, keys: Sequence[str]) -> NoisedBatch:
        """Add noise to latents (b, v, c, h, w) of samples with the given keys.

        All views of an object have the same timestep. With probability `clean_view_prob`, a random
        subset of them has no noise, timestep 0 and no loss, so that the model learns to condition
        on any images. At least one view is noised.
        """
        drawn = [self._draw(key, clean.shape[1:]) for key in keys]
        noise = torch.stack([one[0] for one in drawn]).to(clean)
        steps = torch.tensor([one[1] for one in drawn], device=clean.device)
        loss_mask = torch.stack([one[2] for one in drawn]).to(clean.device)
        timesteps = torch.where(loss_mask, steps[:, None], 0)
        # diffusers declares timesteps as IntTensor, but accepts int64.
        flat: list[Any] = [x.flatten(0, 1) for x in (clean, noise, timesteps)]
        noisy = self.scheduler.add_noise(*flat).unflatten(0, clean.shape[:2])
        noisy = torch.where(loss_mask[..., None, None, None], noisy, clean)
        target = {"epsilon": noise, "sample": clean}.get(self.prediction_type)
        if target is None:
            target = self.scheduler.get_velocity(*flat).unflatten(0, clean.shape[:2])
        return NoisedBatch(noisy, target, timesteps, loss_mask)

    def _draw(self, key: str, shape: torch.Size) -> tuple[Tensor, int, Tensor]:
        """Noise (v, c, h, w), timestep, and which views have a loss, (v,) bool."""
        settings = self.settings
        generator = seeded(settings.seed, "ask", key)
        noise = torch.randn(shape, generator=generator)
        uniform, chance = torch.rand(2, generator=generator).tolist()
        offset = torch.randn(*shape[:2], 1, 1, generator=generator)
        noise = noise + settings.loss.offset_noise * offset
        shift = settings.loss.timestep_shift
        shifted = shift * uniform / (1 + (shift - 1) * uniform)
        has_loss = torch.ones(shape[0], dtype=torch.bool)
        if shape[0] > 1 and chance < settings.batch.clean_view_prob:
            count = int(torch.randint(1, shape[0], (), generator=generator))
            has_loss[torch.randperm(shape[0], generator=generator)[:count]] = False
        return noise, min(int(shifted * self.num_timesteps), self.num_timesteps - 1), has_loss

    @staticmethod
    def errors(predicted: Tensor, batch: NoisedBatch) -> Tensor:
        """Mean squared error of each view, (b, v)."""
        return (predicted.float() - batch.target).square().mean(dim=(-3, -2, -1))

    def losses(self, errors: Tensor, batch: NoisedBatch) -> Tensor:
        """Loss of each object, (b,): weighted mean of the errors of its noisy views."""
        weighted = errors * self._snr_weight(batch.timesteps) * batch.loss_mask
        return weighted.sum(1) / batch.loss_mask.sum(1)

    def _snr_weight(self, timesteps: Tensor) -> Tensor:
        """Min-SNR weights (Hang et al. 2023) for the prediction type.

        Without gamma, an x0-prediction error is weighted as the equivalent v-prediction error,
        SNR + 1, capped at `max_x0_weight`.
        """
        gamma, kind = self.settings.loss.min_snr_gamma, self.prediction_type
        if gamma is None and kind != "sample":
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = compute_snr(self.scheduler, timesteps.flatten()).view(timesteps.shape)
        if gamma is None:
            return (snr + 1).clamp(max=self.settings.loss.max_x0_weight)
        per_clean_error = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[kind]
        return snr.clamp(max=gamma) / per_clean_error
