"""`spad distill`: a 3D model by score distillation, from a text and a multi-view model alone."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from tqdm import tqdm

from spad.cameras import Cameras
from spad.files import check_new_files, slug, whole_file
from spad.geometry.rays import rays
from spad.hub.registry import load_model
from spad.images.grids import view_grid
from spad.images.pixels import to_levels
from spad.model import SPADPipeline
from spad.model.conditioning import condition_on_cameras
from spad.reconstruction.adam import Adam
from spad.reconstruction.config import DistillConfig
from spad.reconstruction.mesh_extraction import extract_mesh
from spad.reconstruction.reconstruct import write_model
from spad.reconstruction.surface import DistanceGrid, draw_surface
from spad.reconstruction.texture import texture_mesh
from spad.reconstruction.textured_mesh import TexturedMesh, model_files
from spad.reconstruction.volume_rendering import (
    Grid,
    TableMix,
    composite,
    interpolation,
    occupied_blocks,
    samples_along,
)

logger = logging.getLogger(__name__)

# Objects have a radius of 1; a grid's border closes what goes on.
_EXTENT, _START_RADIUS = 1.1, 0.5
# Of the surface, per cell; and the cells about it in which light is stopped.
_SHARPNESS, _BAND = 2.0, 3.0
# From one sample on a ray to the next, in cells.
_SAMPLE_STEP = 0.7
# Every so many steps, distances farther than this are measured again: the surface has moved.
_MEASURED_EVERY, _KEPT_CELLS = 40, 1.5
# Shares of the noise schedule that noise is drawn between: first nearly all is noise, then the
# upper bound falls to a half, the lower one to almost none.
_NOISIEST, _FINAL_NOISIEST, _CLEANEST = 0.98, 0.5, 0.02
_GUIDANCE_OF_NOISE, _GUIDANCE_OF_IMAGES, _RESCALE = 50.0, 10.0, 0.5
# Degrees that a step's views look down from, at random; the lowest is MVDream's.
_ELEVATION_DEG = (0.0, 30.0)
# Share of steps before a background of one random color instead of white.
_COLORED = 0.2
_RATES, _FINAL_RATE = (0.1, 0.02), 0.2
# Weights of opaqueness, of distances that do not grow by one a cell, and of bends of distances and
# colors: without, the surface grows hair.
_SPARSITY, _EIKONAL, _SMOOTHNESS, _COLOR_SMOOTHNESS = 0.05, 0.1, 2.0, 10.0
# Views that the texture is painted from, by elevation.
_PAINTED_DEG = (-25.0, 10.0, 45.0)
_PAINTED_VIEWS, _PAINTED_SIDE = 8, 256


@dataclass(frozen=True, eq=False)
class Scene:
    """A dense grid of signed distances and colors that is being distilled.

    Attributes:
        grid: a cube about the origin.
        table: (n, 4) distance in cells, negative inside, and sRGB color, at the grid's points.
    """

    grid: Grid
    table: Tensor

    @classmethod
    def ball(cls, cells: int, device: torch.device | None = None) -> Scene:
        """A gray ball of half the radius that objects have."""
        cell = 2 * _EXTENT / (cells - 1)
        grid = Grid(torch.full((3,), -_EXTENT, device=device), cell, (cells, cells, cells))
        distance = (grid.points().norm(dim=1) - _START_RADIUS) / cell
        gray = torch.full((len(grid), 3), 0.5, device=device)
        return cls(grid, torch.cat([distance[:, None], gray], dim=1))

    def draw(self, cameras: Cameras, jitter: Tensor) -> Tensor:
        """Premultiplied color and alpha (v, 4, h, w); differentiable.

        Args:
            jitter: (v h w,) in [0, 1], shares of a step by which rays' samples are moved.
        """
        distance = self.table[:, 0].detach()
        blocks = occupied_blocks(self.grid.volume(distance.abs() < _BAND))
        origins, directions = rays(
            cameras.world_from_cam, cameras.intrinsics, cameras.height, cameras.width
        )
        directions = directions.reshape(-1, 3)
        ray, place = samples_along(
            origins.reshape(-1, 3), directions, self.grid, blocks, jitter, _SAMPLE_STEP
        )
        rows, weights = interpolation(place, self.grid)
        values = TableMix.apply(self.table, rows, weights)
        count = len(cameras) * cameras.height * cameras.width
        drawn = composite(values, ray, count, _SHARPNESS)
        images = drawn.T.unflatten(1, (len(cameras), cameras.height, cameras.width))
        return images.transpose(0, 1)

    def roughness(self) -> Tensor:
        """How far distances and colors near the surface are from smooth ones: ()."""
        volume = self.grid.volume(self.table.T)
        near = (volume[0].detach().abs() < _BAND)[1:-1, 1:-1, 1:-1]
        inner = volume[:, 1:-1, 1:-1, 1:-1][:, near]
        sides = [
            (volume[:, 2:, 1:-1, 1:-1][:, near], volume[:, :-2, 1:-1, 1:-1][:, near]),
            (volume[:, 1:-1, 2:, 1:-1][:, near], volume[:, 1:-1, :-2, 1:-1][:, near]),
            (volume[:, 1:-1, 1:-1, 2:][:, near], volume[:, 1:-1, 1:-1, :-2][:, near]),
        ]
        bend = torch.stack([after + before for after, before in sides]).sum(0) / 6 - inner
        slope = torch.stack([(after[0] - before[0]) / 2 for after, before in sides])
        length = (slope.square().sum(0) + 1e-8).sqrt()
        return (
            _EIKONAL * (length - 1).square().mean()
            + _SMOOTHNESS * bend[0].square().mean()
            + _COLOR_SMOOTHNESS * bend[1:].square().mean()
        )

    def measure_far(self) -> None:
        """Set distances beyond the surface's own cells to those from where it is now."""
        volume = self.grid.volume(self.table[:, 0])
        inside = (volume < 0).cpu().numpy()
        if not inside.any():
            return
        out, within = (np.asarray(distance_transform_edt(x)) for x in (~inside, inside))
        far = np.where(inside, 0.5 - within, out - 0.5).astype(np.float32)
        far = torch.from_numpy(far).to(volume.device).flatten()
        near = far.abs() < _KEPT_CELLS
        self.table[:, 0] = torch.where(near, self.table[:, 0].clamp(-2, 2), far)

    def surface(self) -> DistanceGrid:
        """As `extract_mesh` takes it."""
        distance = self.table[:, 0].detach()
        return DistanceGrid(self.grid, distance, self.table[:, 1:].detach().clamp(0, 1), distance)


class Distillation:
    """Score distillation of one scene.

    Every step renders four views around the scene from random places, adds noise to them, and moves
    the scene to what the model makes of that. Models of noise give the difference of the noises
    (score distillation), others the images they predict. A step depends on its number and the seed
    alone, so that a run that is resumed ends as one that never stopped.

    Source: Poole et al. 2023 (the gradient, equation 3; their penalty on surfaces that face away is
        always 0 here, where light is stopped only by surfaces that face it) and Shi et al. 2024
        (MVDream: views of one scene together, the falling noise, guidance 50 with rescale 0.5, and
        the form for predicted images, equation 4).
    """

    def __init__(self, pipeline: SPADPipeline, settings: DistillConfig):
        self._pipeline, self._settings = pipeline, settings
        self.step = 0
        self.scene = Scene.ball(settings.cells, pipeline.device)
        # Distances and colors move at rates of their own.
        self._parts = [self.scene.table[:, :1], self.scene.table[:, 1:]]
        self._optimizer = Adam(self._parts, betas=(0.9, 0.99))
        prefix = pipeline.config["prompt_prefix"]
        with torch.no_grad():
            self._text = pipeline.encode_text([settings.negative_prompt, prefix + settings.prompt])
        self._kind = pipeline.scheduler.config["prediction_type"]
        usual = _GUIDANCE_OF_NOISE if self._kind == "epsilon" else _GUIDANCE_OF_IMAGES
        given = settings.guidance_scale
        self._guidance = usual if given is None else given

    def run(self) -> Iterator[int]:
        """Take all steps that are left; yields the number of those taken, after each."""
        while self.step < self._settings.steps:
            self._take()
            yield self.step

    def _take(self) -> None:
        settings, pipeline = self._settings, self._pipeline
        random = np.random.default_rng((settings.seed, self.step))
        done = self.step / settings.steps
        cameras = self._rig(random)
        table = self.scene.table.detach().requires_grad_()
        scene = replace(self.scene, table=table)
        jitter = random.random(len(cameras) * cameras.height * cameras.width, dtype=np.float32)
        drawn = scene.draw(cameras, torch.from_numpy(jitter).to(table.device))
        background = np.ones(3) if random.random() > _COLORED else random.random(3)
        behind = torch.tensor(background, dtype=drawn.dtype, device=drawn.device)
        images = drawn[:, :3] + (1 - drawn[:, 3:]) * behind[:, None, None]
        side = pipeline.image_size
        pixels = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        vae = pipeline.vae
        encoded = vae.encode((2 * pixels - 1).to(vae.dtype)).latent_dist.mode()
        latents = (encoded * vae.config.scaling_factor).float()[None]
        loss = self._distance_to_model(latents, cameras.resized(side, side), random, done)
        opaque = (drawn[:, 3].square() + 0.01).sqrt().mean()
        loss = loss + _SPARSITY * opaque + scene.roughness()
        (gradient,) = torch.autograd.grad(loss, table)
        rates = [rate * _FINAL_RATE**done for rate in _RATES]
        self._optimizer.step([gradient[:, :1], gradient[:, 1:]], rates)
        self.step += 1
        if self.step % _MEASURED_EVERY == 0:
            self.scene.measure_far()

    def _rig(self, random: np.random.Generator) -> Cameras:
        """Four cameras evenly around the scene, at one random height and turn."""
        low, high = _ELEVATION_DEG
        azimuth = (random.uniform(0, 360) + np.arange(4) * 90) % 360
        own, side = self._pipeline.defaults, self._settings.render_size
        cameras = Cameras.orbit(
            float(random.uniform(low, high)),
            azimuth.tolist(),
            own.radius,
            math.radians(own.fov_deg),
            height=side,
            width=side,
        )
        return cameras.to(self.scene.table.device)

    def _distance_to_model(
        self, latents: Tensor, cameras: Cameras, random: np.random.Generator, done: float
    ) -> Tensor:
        """A loss whose gradient by latents (1, v, c, h, w) is that of score distillation."""
        pipeline, scheduler = self._pipeline, self._pipeline.scheduler
        total = scheduler.config["num_train_timesteps"]
        low = _NOISIEST + done * (_CLEANEST - _NOISIEST)
        high = _NOISIEST + done * (_FINAL_NOISIEST - _NOISIEST)
        share = random.uniform(low, high)
        time = torch.tensor([min(total - 1, int(share * total))], device=latents.device)
        noise = random.standard_normal(latents.shape, dtype=np.float32)
        noise = torch.from_numpy(noise).to(latents.device)
        with torch.no_grad():
            noisy = scheduler.add_noise(latents, noise, time)
            conditioning = condition_on_cameras(
                pipeline.unet, cameras, *latents.shape[-2:], text=self._text
            )
            predicted = pipeline.unet(
                noisy.to(pipeline.unet.dtype).repeat(2, 1, 1, 1, 1),
                time.expand(2, latents.shape[1]),
                self._text,
                conditioning,
            ).sample.float()
            kept = scheduler.alphas_cumprod.to(latents.device)[time].view(1, 1, 1, 1, 1)
            clean = _clean(predicted, noisy, kept, self._kind)
            target = pipeline.guide(clean, self._guidance, _RESCALE)
        difference = (latents - target).detach()
        if self._kind == "epsilon":
            # That of the noises, times the schedule's weight 1 - kept.
            difference = (kept * (1 - kept)).sqrt() * difference
        return (difference * latents).mean()

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on."""
        return {"table": self.scene.table, **self._optimizer.state()}

    def load(self, step: int, state: dict[str, Tensor]) -> None:
        """Go on after `step` steps."""
        self.step = step
        self.scene.table.copy_(state["table"])
        self._optimizer.load(step, state)


def distill_model(settings: DistillConfig) -> list[Path]:
    """Distill a model, show its progress in images, and write it; returns the files.

    Ctrl-C keeps the state, from which the same command goes on.

    Raises: ValueError: a file is there already, a state of another request, or a scene that has
        vanished. OSError: a file cannot be written.
    """
    output = settings.output or Path("spad-out") / f"{slug(settings.prompt)}.glb"
    check_new_files(model_files(output), settings.overwrite)
    folder = output.with_name(f"{output.stem}-progress")
    pipeline = load_model(settings.model, settings.device)
    (read_as,) = pipeline.read_prompts([settings.prompt])
    run = Distillation(pipeline, replace(settings, prompt=read_as))
    state, request = folder / "state.safetensors", _request(settings)
    if state.is_file():
        run.load(*_read_state(state, request))
    written = []
    try:
        with tqdm(
            total=settings.steps, initial=run.step, desc="distilling", unit="step", disable=None
        ) as progress:
            for step in run.run():
                progress.update()
                if step % settings.show_every == 0 or step == settings.steps:
                    written.append(_show(folder / f"step-{step:05d}.webp", run.scene))
    except KeyboardInterrupt:
        _write_state(state, run, request)
        raise
    mesh = _textured(run.scene, settings)
    written += write_model(mesh, output)
    state.unlink(missing_ok=True)
    return written


def _clean(predicted: Tensor, noisy: Tensor, kept: Tensor, kind: str) -> Tensor:
    """Clean latents by what a model predicts of noisy ones.

    Args:
        kept: cumulative product of the schedule's alphas at the timestep.
        kind: "epsilon", "sample" or "v_prediction".
    """
    if kind == "sample":
        return predicted
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    if kind == "epsilon":
        return (noisy - noise * predicted) / signal.clamp(min=1e-4)
    return signal * noisy - noise * predicted


def _textured(scene: Scene, settings: DistillConfig) -> TexturedMesh:
    """The scene as a mesh, painted by renders of itself from all around."""
    device = scene.table.device
    surface = scene.surface()
    closed = extract_mesh(surface, settings.faces)
    azimuth = (np.arange(_PAINTED_VIEWS) * 360 / _PAINTED_VIEWS).tolist()
    elevation = np.repeat(_PAINTED_DEG, _PAINTED_VIEWS).tolist()
    cameras = Cameras.orbit(
        elevation, azimuth * len(_PAINTED_DEG), height=_PAINTED_SIDE, width=_PAINTED_SIDE
    )
    drawn = draw_surface(surface, cameras.to(device)).cpu()
    return texture_mesh(closed, drawn[:, :3], drawn[:, 3], cameras, settings.texture_size)


def _show(path: Path, scene: Scene) -> Path:
    """Write four views of the scene as one image."""
    cameras = Cameras.ring(4, height=128, width=128).to(scene.table.device)
    drawn = draw_surface(scene.surface(), cameras, sharpness=_SHARPNESS).cpu()
    images = to_levels((drawn[:, :3] + 1 - drawn[:, 3:]).clamp(0, 1))
    with whole_file(path) as unfinished:
        view_grid([Image.fromarray(image) for image in images]).save(unfinished, "WEBP")
    return path


def _request(settings: DistillConfig) -> str:
    """What the state of a run depends on, as JSON."""
    names = ("prompt", "negative_prompt", "model", "steps", "guidance_scale", "seed", "cells")
    chosen = {name: value for name, value in asdict(settings).items() if name in names}
    return json.dumps(chosen | {"render_size": settings.render_size})


def _write_state(path: Path, run: Distillation, request: str) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in run.state().items()}
    with whole_file(path) as unfinished:
        unfinished.write_bytes(save_tensors(tensors, {"request": request, "step": str(run.step)}))


def _read_state(path: Path, request: str) -> tuple[int, dict[str, Any]]:
    """Steps taken, and the state after them.

    Raises: ValueError: it is damaged, or of another request.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: expected the state of a distillation ({error})") from error
    if metadata.get("request") != request:
        raise ValueError(
            f"expected the request of {path}, got another one; delete that file or use another "
            "--output"
        )
    return int(metadata["step"]), tensors
