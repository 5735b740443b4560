"""Sampling of what `spad generate` is asked for, in this process or on a cluster."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from spad.generation.many_prompts import PASSES
from spad.generation.plan import GenerationPlan
from spad.hub.registry import load_model, resolve_device

if TYPE_CHECKING:
    import torch
    from diffusers.callbacks import PipelineCallback

    from spad.cameras import Cameras
    from spad.model import SPADPipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """The images of one prompt.

    Attributes:
        seed: seed of these images.
        made_with: what of the machine they depend on, for the record.
        candidates: seeds and scores of the sets that they are the best of.
    """

    prompt: str
    images: list[Image.Image]
    seed: int
    made_with: dict[str, Any]
    candidates: Sequence[dict[str, float]] = ()


# The callback by which views of these cameras are made to agree.
Agree = Callable[["Cameras"], "PipelineCallback"]

# From a prompt, its cameras and several sets of images, the index of the best and the scores of
# each.
Choose = Callable[[str, "Cameras", Sequence[list[Image.Image]]], tuple[int, list[dict[str, float]]]]

# The model of a process of a cluster.
_loaded: SPADPipeline | None = None


def _pipeline(plan: GenerationPlan, model: str | Path, device: torch.device) -> SPADPipeline:
    import torch

    settings = plan.settings
    dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
    pipeline = load_model(model, device, dtype)
    if plan.sampling.scheduler is not None:
        pipeline.use_scheduler(plan.sampling.scheduler)
    pipeline.unet.attention_backend = settings.attention
    if settings.vae_tiling:
        pipeline.vae.enable_tiling()
    if settings.ball_radius is not None:
        pipeline.unet.register_to_config(ball_radius=settings.ball_radius)
    return pipeline


def sample(
    plan: GenerationPlan,
    cameras: Cameras,
    device: torch.device,
    prompts: Sequence[str],
    agree: Agree | None,
    choose: Choose | None,
) -> Iterator[Generated]:
    """Images of some of the prompts, one prompt after the other."""
    pipeline = _pipeline(plan, plan.model.path, device)
    for index, (prompt, read_as) in enumerate(zip(plan.prompts, plan.read_as, strict=True)):
        if prompt not in prompts:
            continue
        of_how_many = f" {index + 1}/{len(plan.prompts)}" if len(plan.prompts) > 1 else ""
        sets = []
        for seed in _seeds(plan):
            of_seed = f", seed {seed}" if plan.settings.best_of > 1 else ""
            pipeline.set_progress_bar_config(desc=f"drawing{of_how_many}{of_seed}", unit="step")
            kept = None
            if plan.settings.views_per_pass is not None:
                kept = plan.output / PASSES / f"{index:03d}-seed-{seed}"
            sets.append(_images(pipeline, plan, cameras, agree, (read_as, seed), kept))
        yield _best(plan, cameras, prompt, sets, _made_with(pipeline), choose)


def sample_on_cluster(
    plan: GenerationPlan,
    cameras: Cameras,
    _device: torch.device,
    prompts: Sequence[str],
    agree: Agree | None,
    choose: Choose | None,
) -> Iterator[Generated]:
    """What `sample` yields, generated on the devices of a Ray cluster, in order of completion."""
    from spad.cluster import run_on_devices

    # A folder of a model has the same path everywhere, the package has not.
    name = plan.settings.model
    model = Path(name).absolute() if Path(name).is_dir() else name
    read_as = dict(zip(plan.prompts, plan.read_as, strict=True))
    jobs = [(prompt, seed) for prompt in prompts for seed in _seeds(plan)]
    values = [(read_as[prompt], seed) for prompt, seed in jobs]
    function = partial(_generate_on_device, plan, model, cameras, agree)
    finished = run_on_devices(function, values, plan.settings.ray_address, os.cpu_count() or 1)
    found: dict[str, dict[int, list[Image.Image]]] = {prompt: {} for prompt in prompts}
    with tqdm(total=len(jobs), unit="set", desc="drawing", disable=None) as progress:
        for number, (images, made_with) in finished:
            progress.update()
            prompt, seed = jobs[number]
            found[prompt][seed] = images
            if len(found[prompt]) == plan.settings.best_of:
                sets = [found[prompt][seed] for seed in _seeds(plan)]
                yield _best(plan, cameras, prompt, sets, made_with, choose)
                del found[prompt]


def _generate_on_device(
    plan: GenerationPlan,
    model: str | Path,
    cameras: Cameras,
    agree: Agree | None,
    job: tuple[str, int],
) -> tuple[list[Image.Image], dict[str, Any]]:
    """The images of a prompt and a seed, in a process of a cluster, which keeps the model."""
    global _loaded
    if _loaded is None:
        _loaded = _pipeline(plan, model, resolve_device(plan.settings.device))
        _loaded.set_progress_bar_config(disable=True)
    return _images(_loaded, plan, cameras, agree, job, None), _made_with(_loaded)


def _images(
    pipeline: SPADPipeline,
    plan: GenerationPlan,
    cameras: Cameras,
    agree: Agree | None,
    job: tuple[str, int],
    kept: Path | None,
) -> list[Image.Image]:
    """The images of a prompt, as it is read, and a seed; finished passes are kept in a folder."""
    from spad.generation.passes import generate_in_passes

    read_as, seed = job
    negative = pipeline.read_prompts([plan.settings.negative_prompt])
    return generate_in_passes(
        pipeline,
        cameras,
        plan.settings.views_per_pass,
        views=plan.views,
        seed=seed,
        kept=kept,
        callback_of=agree,
        # What the prompts are read as has been said already.
        prompt_embeds=pipeline.encode_text([pipeline.config["prompt_prefix"] + read_as]),
        negative_prompt_embeds=pipeline.encode_text(negative),
        num_inference_steps=plan.sampling.num_inference_steps,
        guidance_scale=plan.sampling.guidance_scale,
        guidance_rescale=plan.sampling.guidance_rescale,
        blob_sigma=plan.sampling.blob_sigma,
        deep_cache_interval=plan.settings.deep_cache_interval,
    )


def _made_with(pipeline: SPADPipeline) -> dict[str, Any]:
    """What of a machine the images depend on."""
    import torch

    return {
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "device": str(pipeline.device),
        "threads": torch.get_num_threads(),
    }


def _seeds(plan: GenerationPlan) -> range:
    return range(plan.settings.seed, plan.settings.seed + plan.settings.best_of)


def _best(
    plan: GenerationPlan,
    cameras: Cameras,
    prompt: str,
    sets: Sequence[list[Image.Image]],
    made_with: dict[str, Any],
    choose: Choose | None,
) -> Generated:
    """The best of the sets of one prompt; its scores and those of the others are logged."""
    if len(sets) == 1:
        return Generated(prompt, sets[0], plan.settings.seed, made_with)
    assert choose is not None, "best_of needs a function that chooses"
    best, scores = choose(prompt, cameras, sets)
    candidates = []
    for index, (seed, of_set) in enumerate(zip(_seeds(plan), scores, strict=True)):
        known = {name: round(value, 4) for name, value in of_set.items() if math.isfinite(value)}
        shown = ", ".join(f"{name} {value:.3g}" for name, value in known.items())
        kept = " (kept)" if index == best else ""
        logger.info("%s, seed %d%s: %s", prompt, seed, kept, shown)
        candidates.append({"seed": seed, **known})
    return Generated(prompt, sets[best], _seeds(plan)[best], made_with, candidates)
