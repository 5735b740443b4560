"""`spad texture`: a given mesh with colors that a multi-view model draws on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from spad.cameras import Cameras
from spad.files import check_new_files, slug, whole_file
from spad.images.pixels import to_levels
from spad.model import SPADPipeline
from spad.reconstruction.config import TextureConfig
from spad.reconstruction.consistent_sampling import (
    EstimateGuidance,
    is_time_to_agree,
    towards_agreement,
    with_changed_estimate,
)
from spad.reconstruction.given_mesh import GivenMesh, read_given_mesh
from spad.reconstruction.model_views import on_white, turntable
from spad.reconstruction.reconstruct import write_model
from spad.reconstruction.texture import paint
from spad.reconstruction.textured_mesh import TexturedMesh, model_files

# Every other view looks from higher up, the others from lower down.
_HIGHER_DEG, _LOWER_DEG = 25.0, 10.0
# How much of what the views show together replaces what each one shows, while they are drawn.
_AGREEMENT = 0.7
# Less than so much below white is background, where most of a view is not.
_WHITE, _MOSTLY = 0.06, 0.6


@dataclass(frozen=True, eq=False)
class TexturedModel:
    """A given mesh with a new texture.

    Attributes:
        mesh: where it was in its file, in its units, z up.
        images: what was drawn on it, by view.
        cameras: of the images, for the mesh in the unit ball.
        notes: sentences on what of the file was not taken as it is.
    """

    mesh: TexturedMesh
    images: tuple[Image.Image, ...]
    cameras: Cameras
    notes: tuple[str, ...]


class ShapeGuidance(EstimateGuidance):
    """Guidance by which `SPADPipeline` draws a mesh that is given.

    Sampling starts from gray images of the mesh with noise on them, the background stays white, and
    now and then the estimated images are painted on the mesh and mixed with images of that.

    Attributes:
        alpha: (v, h, w) of the mesh.
        depth: (v, h, w) z-depth, infinity where nothing is visible.

    Args:
        vae: the pipeline's.
        mesh: in the unit ball.
        cameras: as the pipeline samples for.
        strength: share of the steps that draw; the others are of the gray images.
        seed: of the noise.

    Source: noised images as a start are SDEdit's (Meng et al. 2022).
    """

    @torch.no_grad()
    def __init__(self, vae: Any, mesh: GivenMesh, cameras: Cameras, strength: float, seed: int = 0):
        super().__init__()
        self._mesh, self._cameras, self._strength, self._seed = mesh, cameras, strength, seed
        drawn = mesh.drawn_bare(cameras)
        gray, self.alpha = on_white(drawn)
        self.depth = torch.from_numpy(drawn.depth)
        pixels = gray.mul(2).sub(1).to(vae.device, vae.dtype)
        self._gray = vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor

    def guided(self, pipeline: Any, step: int, latents: Tensor, estimate: Tensor) -> Tensor:
        """As of `EstimateGuidance`."""
        steps = len(pipeline.scheduler.timesteps)
        gray = self._gray.to(latents.device).expand_as(estimate)
        if step + 1 <= round((1 - self._strength) * steps):
            return self._begun(pipeline.scheduler, step, gray)
        change = torch.zeros_like(estimate)
        if is_time_to_agree(step, steps):
            parts = [towards_agreement(pipeline.vae, one, self._painted) for one in estimate]
            change = _AGREEMENT * torch.stack(parts)
        solid = F.adaptive_max_pool2d(self.alpha[:, None], latents.shape[-2:]) > 0
        change = torch.where(solid.to(latents.device), change, gray - estimate)
        return with_changed_estimate(pipeline, step, latents, estimate, change)

    def _begun(self, scheduler: Any, step: int, gray: Tensor) -> Tensor:
        """The gray images with the noise of the step after `step`, and a solver that knows them."""
        generator = torch.Generator().manual_seed(self._seed)
        noise = torch.randn(gray.shape[1:], generator=generator).to(gray.device).expand_as(gray)
        times = scheduler.timesteps
        if getattr(scheduler, "model_outputs", None):
            scheduler.model_outputs[-1] = gray
            # Some correct the last step by the next one.
            scheduler.last_sample = scheduler.add_noise(gray, noise, times[step : step + 1])
        return scheduler.add_noise(gray, noise, times[step + 1 : step + 2])

    def _painted(self, images: Tensor) -> Tensor:
        """Images (v, 3, h, w) of the mesh with these images painted on it."""
        texture = paint_images(self._mesh, images.cpu(), self.alpha, self._cameras)
        drawn, _ = on_white(self._mesh.drawn(texture, self._cameras))
        return drawn.to(images.device)


def paint_images(mesh: GivenMesh, images: Tensor, alpha: Tensor, cameras: Cameras) -> np.ndarray:
    """The texture (size, size, 3) uint8 of a mesh, as generated images show it.

    Args:
        images: (v, 3, h, w) in [0, 1], on white.
        alpha: (v, h, w) of the mesh; where it is and an image is white, nothing was drawn, unless
            most of the mesh is white there.
    """
    shown = alpha * ((1 - images).amax(1) > _WHITE)
    is_white = shown.sum((1, 2)) < _MOSTLY * alpha.sum((1, 2))
    known = torch.where(is_white[:, None, None], alpha, shown)
    return paint(
        mesh.bare,
        mesh.layout,
        images.clamp(0, 1) * known[:, None],
        known,
        cameras,
        corner_normals=mesh.model.corner_normals,
        two_sided=True,
    )


def texturing_cameras(pipeline: SPADPipeline, num_views: int) -> Cameras:
    """Cameras as the model was made for, around the unit ball, by turns from above and below."""
    own = pipeline.own_cameras(num_views)
    azimuth = own.azimuth_deg.tolist()
    elevation = [
        pipeline.defaults.elevation_deg + (_HIGHER_DEG if view % 2 else -_LOWER_DEG)
        for view in range(num_views)
    ]
    return Cameras.orbit(
        elevation,
        azimuth,
        pipeline.defaults.radius,
        float(np.deg2rad(pipeline.defaults.fov_deg)),
        height=pipeline.image_size,
        width=pipeline.image_size,
    )


def texture_model(
    pipeline: SPADPipeline,
    mesh: GivenMesh,
    prompt: str,
    num_views: int = 8,
    strength: float = 0.8,
    seed: int = 0,
    **sampling: Any,
) -> TexturedModel:
    """Draw a prompt on a mesh.

    Args:
        strength: share of the denoising that is done anew, 0 to 1: the lower, the nearer to gray.
        sampling: other arguments of the pipeline, such as `guidance_scale`.

    Raises: ValueError: what the pipeline raises.
    """
    cameras = texturing_cameras(pipeline, num_views)
    guidance = ShapeGuidance(pipeline.vae, mesh, cameras, strength, seed)
    takes_depth = pipeline.unet.config["depth_patch"] > 0
    drawn = pipeline(
        prompt,
        cameras,
        seed=seed,
        callback_on_step_end=guidance,
        output_type="pt",
        depth=guidance.depth if takes_depth else None,
        **sampling,
    ).images[0]
    assert isinstance(drawn, Tensor), "tensors were asked for"
    drawn, alpha = drawn.float().cpu(), guidance.alpha
    # Nothing but the object is in a view, whatever the model left around it.
    images = drawn * alpha[:, None] + 1 - alpha[:, None]
    return TexturedModel(
        mesh.textured(paint_images(mesh, drawn, alpha, cameras)),
        tuple(map(Image.fromarray, to_levels(images))),
        cameras,
        mesh.notes,
    )


def run_texture(settings: TextureConfig) -> tuple[TexturedModel, list[Path]]:
    """Read a mesh, draw on it, write it; returns it and the files.

    Raises: ValueError: a file that cannot be read, or that is there already. OSError: a file cannot
        be written.
    """
    from spad.hub.registry import load_model

    name = f"{slug(settings.mesh.stem)}-{slug(settings.prompt)}.glb"
    output = settings.output or Path("spad-out") / name
    outputs = [*model_files(output), *filter(None, [settings.turntable])]
    check_new_files(outputs, settings.overwrite, inputs=[settings.mesh])
    mesh = read_given_mesh(settings.mesh, settings.texture_size, settings.up, settings.unwrap)
    pipeline = load_model(settings.model, settings.device)
    made = texture_model(
        pipeline,
        mesh,
        settings.prompt,
        settings.views,
        settings.strength,
        settings.seed,
        negative_prompt=settings.negative_prompt or None,
        guidance_scale=settings.guidance_scale,
        num_inference_steps=settings.steps,
    )
    written = write_model(made.mesh, output)
    if settings.turntable is not None:
        with whole_file(settings.turntable) as unfinished:
            kind = settings.turntable.suffix[1:].lower()
            unfinished.write_bytes(turntable(made.mesh, kind))
        written.append(settings.turntable)
    return made, written
