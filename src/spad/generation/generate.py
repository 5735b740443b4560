"""`spad generate`: sample the images of a request and save them."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spad.files import RECORD, check_space, file_hash, read_json, whole_folder
from spad.generation.config import GenerateConfig
from spad.generation.earlier_run import package_versions
from spad.generation.framing import framing_warnings
from spad.generation.given_views import parse_views
from spad.generation.many_prompts import REQUEST, begun_folder
from spad.generation.plan import GenerationPlan
from spad.generation.results import prompt_folders, write_summary, write_views
from spad.generation.sampling import Choose, Generated, sample, sample_on_cluster
from spad.hub.registry import resolve_device, weights_hash
from spad.settings import defaults_of

if TYPE_CHECKING:
    from diffusers.callbacks import PipelineCallback

    from spad.cameras import Cameras

logger = logging.getLogger(__name__)

MANY_VIEWS = 40
# An upper bound of what is written: images, grid, turntable and a tool's files.
_BYTES_PER_PIXEL = 24


def draw(
    plan: GenerationPlan,
    command: Sequence[str] = (),
    agreement: Callable[..., PipelineCallback] | None = None,
    choose: Choose | None = None,
) -> Path:
    """Sample and save the images of a plan, and return the output folder.

    Args:
        command: command line, for `run.json`.
        agreement: makes the callback by which views are made to agree, of cameras and, by name, the
            `share` that `consistency` asks for; required where the settings have one.
        choose: finds the best set, as `spad.evaluation.best_of.choose_best`; required with
            `best_of`.

    Raises: ValueError: the camera file is malformed, the device does not work, or the pipeline
        refuses a setting. OSError: the folder cannot be written.
    """
    from spad.cameras.formats import cameras_record

    started = time.monotonic()
    settings = plan.settings
    device = resolve_device(settings.device)
    if settings.dtype == "float16" and device.type == "cpu":
        raise ValueError("expected --dtype float32 or bfloat16 on a CPU, got float16")
    cameras = _cameras(plan)
    _warn_about(cameras, settings.views_per_pass)
    pixels = len(plan.prompts) * len(cameras) * cameras.height * cameras.width
    check_space([(plan.output, _BYTES_PER_PIXEL * pixels)])
    agree = None
    if plan.consistency > 0:
        assert agreement is not None, "it is required"
        agree = partial(agreement, share=plan.consistency)
    run_sampling = sample_on_cluster if settings.executor == "ray" else sample

    def sampled(prompts: Sequence[str]) -> Iterator[tuple[Generated, dict[str, Any]]]:
        for made in run_sampling(plan, cameras, device, prompts, agree, choose):
            yield made, _record(plan, command, made, time.monotonic() - started)

    # Opened before anything is generated: what cannot be written is said at once.
    if not plan.keeps_parts:
        with whole_folder(plan.output, settings.overwrite) as folder:
            ((made, run),) = sampled(plan.prompts)
            write_views(folder, made.images, cameras, run, settings.save_for)
        return plan.output
    request = {**_request(plan), "dtype": settings.dtype, "cameras": cameras_record(cameras)}
    begin = partial(
        begun_folder,
        plan.output,
        request,
        settings.overwrite,
        defaults=defaults_of(GenerateConfig),
    )
    if len(plan.prompts) == 1:
        with begin(finishes=False):
            ((made, run),) = sampled(plan.prompts)
        with whole_folder(plan.output, overwrite=True, mark=REQUEST) as folder:
            write_views(folder, made.images, cameras, run, settings.save_for)
        return plan.output
    folders = prompt_folders(plan.output, plan.prompts)
    with begin():
        left = [prompt for prompt, folder in folders.items() if not folder.exists()]
        if len(left) < len(folders):
            logger.info("going on: %d of %d prompts are left", len(left), len(folders))
        for made, run in sampled(left):
            with whole_folder(folders[made.prompt]) as folder:
                write_views(folder, made.images, cameras, run, settings.save_for)
        run = read_json(folders[plan.prompts[-1]] / RECORD, dict[str, Any]) | _request(plan)
        run.pop("candidates", None)
        write_summary(plan.output, folders, cameras, run)
    return plan.output


def _cameras(plan: GenerationPlan) -> Cameras:
    from spad.cameras import load_cameras

    size = plan.image_size
    if plan.orbit is not None:
        return plan.orbit.cameras(size, size)
    assert plan.settings.cameras is not None
    cameras = load_cameras(plan.settings.cameras, size, size).cameras
    # The longer side becomes `size`; the other keeps the shape as far as whole latents allow.
    multiple = plan.model.image_multiple
    longer, shorter = (f(cameras.height, cameras.width) for f in (max, min))
    if 2 * size * shorter < multiple * longer:
        raise ValueError(
            f"{plan.settings.cameras}: expected images of {size} pixels to be at least "
            f"{multiple / 2:g} pixels on the shorter side, got a shape of "
            f"{cameras.width}x{cameras.height}"
        )
    height, width = (
        max(1, round(size * side / longer / multiple)) * multiple
        for side in (cameras.height, cameras.width)
    )
    return cameras.resized(height, width)


def _warn_about(cameras: Cameras, views_per_pass: int | None) -> None:
    at_once = min(len(cameras), views_per_pass or len(cameras))
    if at_once > MANY_VIEWS:
        logger.warning(
            "%d views attend to each other: memory and time grow with their square; "
            "--views-per-pass limits both",
            at_once,
        )
    for sentence in framing_warnings(cameras):
        logger.warning(sentence)


def _record(
    plan: GenerationPlan, command: Sequence[str], made: Generated, seconds: float
) -> dict[str, Any]:
    record = {
        **_request(plan),
        "prompts": [made.prompt],
        "seed": made.seed,
        # The seed is the best one already.
        "best_of": 1,
        **made.made_with,
        "seconds": round(seconds, 2),
        "command": list(command),
        "versions": package_versions(),
    }
    return record | ({"candidates": made.candidates} if made.candidates else {})


def _request(plan: GenerationPlan) -> dict[str, Any]:
    """What the images depend on, but for cameras and machine."""
    settings = plan.settings
    return {
        "prompts": list(plan.prompts),
        "read_as": {p: r for p, r in zip(plan.prompts, plan.read_as, strict=True) if p != r},
        "negative_prompt": settings.negative_prompt,
        "model": settings.model,
        "model_sha256": weights_hash(plan.model),
        "image": settings.image,
        "image_sha256": [file_hash(file) for file in parse_views(settings.image or ()).values()],
        "save_for": settings.save_for,
        "seed": settings.seed,
        "best_of": settings.best_of,
        **dataclasses.asdict(plan.sampling),
        "consistency": plan.consistency,
        "views_per_pass": settings.views_per_pass,
        "deep_cache_interval": settings.deep_cache_interval,
        "attention": settings.attention,
        "ball_radius": settings.ball_radius,
        "vae_tiling": settings.vae_tiling,
        "image_size": plan.image_size,
    }
