"""Schedulers to sample a model with, among them DDIM as the release has it."""

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor


class ReleasedDDIMScheduler(DDIMScheduler):
    """DDIM at the release's timesteps: every (1000 // n)-th, from 1 upwards.

    If n does not divide 1000 there are more than n: 31 for 30, 334 for 300. diffusers' own DDIM
    has n, which start further from pure noise. The last step ends at the noise level of timestep 0.
    """

    # The module that saved folders name.
    __module__ = "spad.model"

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Set the timesteps, the noisiest first; 1 to `num_train_timesteps` are possible."""
        total = self.config["num_train_timesteps"]
        # `step` of the base class goes down by total // num_inference_steps.
        self.num_inference_steps = num_inference_steps
        timesteps = torch.arange(0, total, total // num_inference_steps)
        if timesteps[-1] < total - 1:
            timesteps = timesteps + 1
        self.timesteps = timesteps.flip(0).to(device)


def shifted_betas(betas: Tensor, shift: float) -> Tensor:
    """Noise schedule whose signal-to-noise ratios are divided by up to `shift`, as (steps,).

    The more tokens show the same thing, the more noise it takes to hide it. The noisiest step is
    shifted by all of `shift`, the cleanest by nothing, those between them in proportion to their
    number, on a logarithmic scale.

    Source: Hoogeboom et al. 2023 (Simple diffusion), section 3.1; MV-Adapter (Huang et al. 2024)
    for views.
    """
    kept = (1 - betas.double()).cumprod(0)
    share = torch.linspace(0, 1, len(betas), dtype=torch.float64)
    ratio = kept / (1 - kept) / shift**share
    kept = ratio / (1 + ratio)
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return (1 - kept / before).to(betas.dtype)


SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "original": ReleasedDDIMScheduler,
}
