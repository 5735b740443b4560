"""Train the network that gives a surface from posed images in one pass."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from spad.cameras import Cameras
from spad.data.renders import is_held_out, read_renders
from spad.data.seeds import seeded
from spad.data.view_sets import PosedImages, ViewSet, resized
from spad.files import whole_folder
from spad.geometry.focus import object_ball
from spad.reconstruction.learned_surface import SurfaceNetwork, volume_of_views
from spad.reconstruction.surface import DistanceGrid, PixelRays, draw_rays
from spad.settings import defaults_of
from spad.training.config import TrainReconstructorConfig
from spad.training.run import TrainingRun, learning_rate_factor, settings_record

# Cells from the surface within which its distance grows evenly, and from one sample to the next.
_BAND, _STEP = 2.5, 0.7
_MASK_WEIGHT, _EIKONAL_WEIGHT = 10.0, 0.02
# Largest errors of views that a model draws: shift in pixels, size, brightness.
_SHIFT, _SCALE, _BRIGHTNESS = 1.5, 0.04, 0.08


def eikonal(surface: DistanceGrid) -> Tensor:
    """Mean squared difference from one of the distance's growth by cell, near the surface."""
    volume = surface.grid.volume(surface.distance)
    x = volume[:-1, :-1, 1:] - volume[:-1, :-1, :-1]
    y = volume[:-1, 1:, :-1] - volume[:-1, :-1, :-1]
    z = volume[1:, :-1, :-1] - volume[:-1, :-1, :-1]
    near = volume[:-1, :-1, :-1].detach().abs() < _BAND
    length = (x.square() + y.square() + z.square() + 1e-8).sqrt()
    return (length - 1).square()[near].mean() if near.any() else volume.sum() * 0


def as_drawn(images: Tensor, alpha: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Premultiplied images (v, 3, h, w) and alpha (v, h, w) with errors as drawn views have.

    Every view is moved, made larger or smaller, and lighter or darker, by itself.
    """
    count, _, height, width = images.shape
    random = torch.rand(count, 4, generator=generator) * 2 - 1
    scale = 1 + _SCALE * random[:, 0]
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, 0, 2] = 2 * _SHIFT / width * random[:, 1]
    affine[:, 1, 2] = 2 * _SHIFT / height * random[:, 2]
    layers = torch.cat([images, alpha[:, None]], dim=1)
    grid = F.affine_grid(affine, list(layers.shape), align_corners=False)
    moved = F.grid_sample(layers, grid, align_corners=False)
    light = (1 + _BRIGHTNESS * random[:, 3])[:, None, None, None]
    moved_alpha = moved[:, 3]
    return torch.minimum((moved[:, :3] * light).clamp(min=0), moved_alpha[:, None]), moved_alpha


def train_reconstructor(settings: TrainReconstructorConfig) -> Path:
    """Train on renders, save to `settings.output / "model"` and return that folder.

    In every step some views of one object go into the network, and the surface that comes out is
    rendered for all its views.

    Raises: ValueError: no objects to train on, or with too few views.
    """
    objects = [o for o in read_renders(settings.data) if not is_held_out(o.uid)]
    most = max(settings.views)
    objects = [o for o in objects if len(o.cameras) >= most]
    if not objects:
        raise ValueError(
            f"expected training objects of {most} views or more in {settings.data}, got none; "
            "try fewer --views"
        )
    torch.manual_seed(settings.seed)
    network = SurfaceNetwork(settings.view_channels, settings.channels)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, (0.9, 0.99))

    def train_step(step: int) -> dict[str, float]:
        factor = learning_rate_factor("cosine", step, settings.warmup_steps, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        loss, numbers = _loss(network, settings, objects, seeded(settings.seed, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.item(), **numbers}

    folder = settings.output / "model"

    def save(_step: int) -> None:
        with whole_folder(folder, overwrite=True, mark="config.json") as unfinished:
            network.save_pretrained(unfinished)

    run = TrainingRun(
        settings.output,
        {"model": network, "optimizer": optimizer},
        settings_record(settings, without=("data", "output")),
        settings.steps,
        settings.save_every_s,
        settings.log_every,
        defaults_of(TrainReconstructorConfig),
        may_change=("save_every_s", "log_every"),
        watched=("loss",),
    )
    with run.opened() as start:
        run.run(train_step, start, on_checkpoint=save)
        save(settings.steps)
    return folder


def _loss(
    network: SurfaceNetwork,
    settings: TrainReconstructorConfig,
    objects: list[PosedImages],
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    one = objects[draw(len(objects))]
    count = settings.views[draw(len(settings.views))]
    chosen = torch.randperm(len(one.cameras), generator=generator)
    # The first ones are shown, the others only asked for.
    asked = chosen[: count + settings.targets].tolist()
    images, alpha, cameras = _premultiplied(one.chosen(asked).read(), settings.image_size)
    given, given_alpha = images[:count], alpha[:count]
    if float(torch.rand((), generator=generator)) < settings.drawn_prob:
        given, given_alpha = as_drawn(given, given_alpha, generator)
    seen = cameras[list(range(count))]
    try:
        grid = volume_of_views(given_alpha, seen, object_ball(seen), settings.cells)
    # Views with errors may agree on nothing.
    except ValueError:
        given, given_alpha = images[:count], alpha[:count]
        grid = volume_of_views(given_alpha, seen, object_ball(seen), settings.cells)
    surface = network(given, given_alpha, seen, grid)
    rays = PixelRays.near_masks(images, alpha, cameras)
    picked = torch.randint(len(rays), (settings.rays,), generator=generator)
    random = torch.rand(len(picked), 3, generator=generator)
    origins, directions, target = rays.through(picked, random[:, 1:])
    drawn = draw_rays(surface, origins, directions, random[:, 0], _STEP)
    color = 3 * F.smooth_l1_loss(drawn[:, :3], target[:, :3], beta=0.1)
    mask = F.mse_loss(drawn[:, 3], target[:, 3])
    loss = color + _MASK_WEIGHT * mask + _EIKONAL_WEIGHT * eikonal(surface)
    return loss, {"color": color.item(), "mask": mask.item()}


def _premultiplied(views: ViewSet, size: int) -> tuple[Tensor, Tensor, Cameras]:
    images, alpha, cameras = resized(views, size)
    return (images - 1 + alpha[:, None]).clamp(0, 1), alpha, cameras
