"""What a denoiser is asked: noise, timesteps, targets, weights.

All randomness of a sample comes from generators of its own, seeded by the run and by the sample's
key. How a batch is split among devices and micro-batches therefore changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from spad.data.seeds import seeded
from spad.training.config import TrainConfig


@dataclass(frozen=True)
class NoisedBatch:
    """Noisy views of objects, and what is to be said of them.

    Attributes:
        noisy, target: (b, v, c, h, w).
        timesteps: (b, v) int64.
        scored: (b, v) bool; a view that is given clean is not scored.
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    loss_mask: Tensor

    @property
    def has_clean_view(self) -> Tensor:
        """(b,) bool: whether view 0 is given clean."""
        return ~self.loss_mask[:, 0]


class Objective:
    """The denoising loss of a noise schedule, as `settings` ask for it."""

    def __init__(self, scheduler: DDIMScheduler, settings: TrainConfig):
        self.scheduler, self.settings = scheduler, settings

    def ask(self, clean: Tensor, keys: Sequence[str]) -> NoisedBatch:
        """Noise the latents (b, v, c, h, w) of samples called `keys`.

        All views of an object have one timestep, but that view 0 is given clean, at timestep 0, in
        a share of them: so the model learns to draw the other views of a picture.
        """
        num_views = clean.shape[1]
        drawn = [self._draw(key, clean.shape[1:]) for key in keys]
        noise = torch.stack([one[0] for one in drawn]).to(clean)
        steps = torch.tensor([one[1] for one in drawn], device=clean.device)
        given = torch.tensor([one[2] for one in drawn], device=clean.device)
        loss_mask = torch.ones(clean.shape[:2], dtype=torch.bool, device=clean.device)
        if num_views > 1:
            loss_mask[:, 0] = ~given
        timesteps = torch.where(loss_mask, steps[:, None], 0)
        flat = [x.flatten(0, 1) for x in (clean, noise, timesteps)]
        noisy = self.scheduler.add_noise(*flat).unflatten(0, clean.shape[:2])
        noisy = torch.where(loss_mask[..., None, None, None], noisy, clean)
        target = {"epsilon": noise, "sample": clean}.get(self.scheduler.config.prediction_type)
        if target is None:
            target = self.scheduler.get_velocity(*flat).unflatten(0, clean.shape[:2])
        return NoisedBatch(noisy, target, timesteps, loss_mask)

    def _draw(self, key: str, shape: torch.Size) -> tuple[Tensor, int, bool]:
        """Noise (v, c, h, w), timestep, and whether view 0 is given."""
        settings = self.settings
        generator = seeded(settings.seed, "ask", key)
        noise = torch.randn(shape, generator=generator)
        uniform, given = torch.rand(2, generator=generator).tolist()
        offset = torch.randn(*shape[:2], 1, 1, generator=generator)
        noise = noise + settings.offset_noise * offset
        shift = settings.timestep_shift
        shifted = shift * uniform / (1 + (shift - 1) * uniform)
        total = self.scheduler.config.num_train_timesteps
        return noise, min(int(shifted * total), total - 1), given < settings.clean_view_prob

    @staticmethod
    def errors(predicted: Tensor, question: NoisedBatch) -> Tensor:
        """Mean squared error of each view, (b, v)."""
        return (predicted.float() - question.target).square().mean(dim=(-3, -2, -1))

    def losses(self, errors: Tensor, question: NoisedBatch) -> Tensor:
        """One loss for each object, (b,): the weighted mean of its scored views."""
        weighted = errors * self._snr_weight(question.timesteps) * question.loss_mask
        return weighted.sum(1) / question.loss_mask.sum(1)

    def _snr_weight(self, timesteps: Tensor) -> Tensor:
        """Min-SNR weights (Hang et al. 2023), for the quantity that is predicted.

        Without a gamma, clean latents are weighted as the velocity that they imply, which is wrong
        by 1 / spread times their error; up to `max_x0_weight`.
        """
        gamma, kind = self.settings.min_snr_gamma, self.scheduler.config.prediction_type
        if gamma is None and kind != "sample":
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = compute_snr(self.scheduler, timesteps.flatten()).view(timesteps.shape)
        if gamma is None:
            return (snr + 1).clamp(max=self.settings.max_x0_weight)
        per_clean_error = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[kind]
        return snr.clamp(max=gamma) / per_clean_error
