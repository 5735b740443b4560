"""Views made to agree while they are sampled: the images predicted so far are reconstructed
together, rendered, and mixed back."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.callbacks import PipelineCallback
from torch import Tensor

from spad.cameras import Cameras
from spad.geometry.focus import object_ball
from spad.reconstruction.surface import FitSettings, draw_surface, fit_surface

logger = logging.getLogger(__name__)

# Shares of the steps after which views are mixed: before, there is no shape yet, after, the mixture
# would be left blurred.
_WHEN = (0.42, 0.58, 0.75)
_CELLS = 48
# So far below white, predicted pixels begin to be of the object, and are fully: their background is
# not quite white.
_FROM, _TO = 0.06, 0.2
# One view in so many may miss what all others show: predicted views disagree, and a hull of all
# loses thin parts.
_VIEWS_PER_DISSENT = 6


class EstimateGuidance(PipelineCallback, ABC):
    """A `callback_on_step_end` of `SPADPipeline` that goes by the estimate of the clean latents."""

    @property
    def tensor_inputs(self) -> list[str]:
        """What the pipeline is to pass."""
        return ["latents", "pred_original_sample"]

    def callback_fn(
        self,
        pipeline: Any,
        step_index: int,
        timesteps: Tensor,
        callback_kwargs: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The latents (b, v, c, h, w) of the next step, if they change."""
        if step_index + 1 >= len(pipeline.scheduler.timesteps):
            return {}
        latents = self.guided(
            pipeline,
            step_index,
            callback_kwargs["latents"],
            callback_kwargs["pred_original_sample"],
        )
        return {} if latents is None else {"latents": latents}

    @abstractmethod
    def guided(self, pipeline: Any, step: int, latents: Tensor, estimate: Tensor) -> Tensor | None:
        """Latents (b, v, c, h, w) after a step that is not the last; None if they stay.

        Args:
            estimate: of the clean latents, by this step.
        """


class ConsistentSampling(EstimateGuidance):
    """Guidance of the views of one set of cameras towards agreement.

    The clean latents x0 that a step predicts become (1 - share) x0 + share x0', where x0' are those
    of renders of one surface fitted to all predicted views. The noise in the latents stays.

    Agreement rises, but parts that only some views show may be lost.

    Args:
        cameras: as the pipeline samples for; three or more.
        share: 0 to 1.

    Source: views denoised through one 3D model are the idea of Viewset Diffusion (Szymanowicz et
        al. 2023); here nothing is trained for it.
    """

    def __init__(self, cameras: Cameras, share: float):
        super().__init__()
        self._cameras, self._share = cameras, share

    def guided(self, pipeline: Any, step: int, latents: Tensor, estimate: Tensor) -> Tensor | None:
        """As of `EstimateGuidance`; after a few steps only."""
        if not is_time_to_agree(step, len(pipeline.scheduler.timesteps)):
            return None
        agree = partial(agreeing_images, cameras=self._cameras.to(latents.device))
        change = torch.stack([towards_agreement(pipeline.vae, one, agree) for one in estimate])
        return with_changed_estimate(pipeline, step, latents, estimate, self._share * change)


def is_time_to_agree(step: int, steps: int) -> bool:
    """Whether images are mixed with those that agree after a step, of so many."""
    return step in {round(when * steps) for when in _WHEN}


def with_changed_estimate(
    pipeline: Any, step: int, latents: Tensor, estimate: Tensor, change: Tensor
) -> Tensor:
    """Latents (b, v, c, h, w) after a step, if `change` is added to its estimate of the clean ones.

    The noise in them stays. Not for the last step.
    """
    scheduler = pipeline.scheduler
    if getattr(scheduler, "model_outputs", None):
        # Multistep solvers go on from what they predicted before.
        scheduler.model_outputs[-1] = estimate + change
    # Latents are clean ones, scaled by the schedule, and noise.
    return latents + scheduler.add_noise(
        change, torch.zeros_like(change), scheduler.timesteps[step + 1 : step + 2]
    )


def towards_agreement(
    vae: Any, latents: Tensor, agree: Callable[[Tensor], Tensor | None]
) -> Tensor:
    """What to add to latents (v, c, h, w) to get those of images that agree.

    Args:
        agree: makes images (v, 3, h, w) on white in [0, 1] agree; None if they cannot.
    """
    scale = vae.config.scaling_factor
    predicted = vae.decode((latents / scale).to(vae.dtype)).sample.float().clamp(-1, 1)
    agreed = agree(predicted.add(1).div(2))
    if agreed is None:
        return torch.zeros_like(latents)
    # Both go through the autoencoder, so that what it loses is not lost again.
    pixels = torch.cat([agreed.mul(2).sub(1), predicted]).to(vae.dtype)
    encoded = vae.encode(pixels).latent_dist.mode().float() * scale
    return encoded[: len(latents)] - encoded[len(latents) :]


def agreeing_images(images: Tensor, cameras: Cameras) -> Tensor | None:
    """Renders (v, 3, h, w) on white of one surface fitted to images (v, 3, h, w) on white in
    [0, 1], which may disagree. None if they have no shape in common."""
    below_white = (1 - images).amax(1)
    alpha = ((below_white - _FROM) / (_TO - _FROM)).clamp(0, 1)
    premultiplied = (images - 1 + alpha[:, None]).clamp(0, 1)
    settings = FitSettings(
        coarse_steps=30,
        fine_steps=10,
        rays=2048,
        polish=1.0,
        dissenting=len(cameras) // _VIEWS_PER_DISSENT,
    )
    try:
        with torch.enable_grad():
            surface = fit_surface(
                premultiplied, alpha, cameras, object_ball(cameras), _CELLS, settings
            )
    except ValueError:
        logger.info("the views predicted so far have no shape in common")
        return None
    drawn = draw_surface(surface, cameras, step=0.8)
    return drawn[:, :3] + 1 - drawn[:, 3:]
