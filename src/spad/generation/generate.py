"""`spad generate`: check the request, load the model, sample images and save them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image
from tqdm import tqdm

import spad
from spad.files import (
    RECORD,
    check_output,
    check_space,
    file_hash,
    read_json,
    read_lines,
    slug,
    whole_folder,
)
from spad.generation.config import GenerateConfig
from spad.generation.earlier_run import EarlierRun, read_earlier_run
from spad.generation.framing import framing_warnings
from spad.generation.given_views import check_views, hold_views, parse_views
from spad.generation.many_prompts import begun_folder, is_begun
from spad.generation.orbit import ORBIT_FLAGS, Orbit, plan_orbit
from spad.generation.presets import PRESETS
from spad.generation.results import prompt_folders, write_summary, write_views
from spad.hub.registry import (
    GenerationDefaults,
    ModelInfo,
    check_files,
    check_prompt_length,
    load_model,
    model_info,
    resolve_device,
    weights_hash,
)
from spad.images.reading import read_image
from spad.model.vocabulary import describe_reading, read_prompt

if TYPE_CHECKING:
    import torch
    from diffusers.callbacks import PipelineCallback

    from spad.cameras import Cameras
    from spad.model import SPADPipeline

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEDULER_NAMES = ("ddim", "dpm++", "unipc", "euler", "original")
# Defaults of --views.
DEFAULT_VIEWS, MESH_VIEWS = 4, 8
FEWEST_MESH_VIEWS = 3
MANY_VIEWS = 40
# An upper bound of what is written: images, grid, turntable and a tool's files.
_BYTES_PER_PIXEL = 24


@dataclass(frozen=True)
class Sampling:
    """Sampling of a request, with the model's defaults filled in; see `SPADPipeline.__call__`."""

    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    blob_sigma: float
    scheduler: str | None


@dataclass(frozen=True)
class GenerationPlan:
    """A checked request.

    Attributes:
        settings: the request, with the settings of an earlier run filled in.
        sampling: its sampling, with the model's defaults filled in.
        image_size: longer side of the images in pixels.
        prompts: the prompts, each once.
        read_as: the prompts in words that the model knows, in the same order.
        orbit: orbit of the cameras. None: they come from `settings.cameras`.
        views: images of the object that are given, by view.
        output: output folder.
    """

    settings: GenerateConfig
    sampling: Sampling
    image_size: int
    model: ModelInfo
    prompts: tuple[str, ...]
    read_as: tuple[str, ...]
    orbit: Orbit | None
    views: dict[int, Image.Image]
    output: Path


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


# From a prompt, its cameras and several sets of images, the index of the best and the scores of
# each.
Choose = Callable[[str, "Cameras", Sequence[list[Image.Image]]], tuple[int, list[dict[str, float]]]]

# The model of a process of a cluster.
_loaded: SPADPipeline | None = None


def plan_generation(settings: GenerateConfig) -> GenerationPlan:
    """Check a request without loading torch. Words that the model does not know are logged.

    Raises: ValueError: a setting is wrong; the message says what to try.
    """
    if settings.hold is not None or settings.redraw is not None:
        settings = hold_views(settings)
    asked, run = settings, None
    if settings.from_run is not None:
        settings, run = read_earlier_run(settings)
    files = parse_views(settings.image or ())
    is_asked = run is None or asked.prompt is not None or asked.prompts is not None
    prompts = _prompts(settings) if run is None or is_asked else run.prompts
    output = settings.output or _free_output(settings, prompts)
    if len(prompts) == 1 or not is_begun(output):
        check_output(output, settings.overwrite)
    views = {view: read_image(file, upright=True) for view, file in files.items()}
    for view, image in views.items():
        if image.getchannel("A").getextrema()[1] == 0:
            raise ValueError(
                f"{files[view]}: expected an image of an object, got a transparent one"
            )
    if settings.cameras is not None and not settings.cameras.exists():
        raise ValueError(f"expected a camera file or folder, got {settings.cameras}: no such file")
    model = model_info(settings.model)
    defaults = model.defaults
    sampling = Sampling(
        _given(settings.steps, defaults.num_inference_steps),
        _given(settings.guidance_scale, defaults.guidance(bool(views))),
        _given(settings.guidance_rescale, defaults.guidance_rescale),
        _given(settings.blob_sigma, defaults.blob_sigma),
        _given(settings.scheduler, defaults.scheduler),
    )
    image_size = _given(settings.image_size, model.image_size)
    _check_for(model, sampling, image_size)
    # An earlier run is at its cameras again, unless others are asked for.
    has_its_cameras = run is not None and settings.cameras is not asked.cameras
    orbit = None if has_its_cameras else _orbit(settings, defaults)
    if orbit is not None:
        num_views = len(orbit.azimuth_deg)
        check_views(files, num_views)
        for flag, is_given in (("mesh", settings.mesh), ("consistency", settings.consistency > 0)):
            if is_given and num_views < FEWEST_MESH_VIEWS:
                raise ValueError(
                    f"expected {FEWEST_MESH_VIEWS} or more --views with --{flag}, got {num_views}"
                )
    for prompt in (*prompts, settings.negative_prompt):
        check_prompt_length(model, prompt)
    read_as = _read_prompts(prompts, model, settings.strict)
    check_files(model)
    if run is not None:
        _warn_about_changes(run, model)
    return GenerationPlan(
        settings, sampling, image_size, model, prompts, read_as, orbit, views, output
    )


def draw(
    plan: GenerationPlan,
    command: Sequence[str] = (),
    agreement: Callable[[Cameras, float], PipelineCallback] | None = None,
    choose: Choose | None = None,
) -> Path:
    """Sample and save the images of a plan, and return the output folder.

    Args:
        command: command line, for `run.json`.
        agreement: makes the callback by which views are made to agree, of cameras and the share
            `consistency`; required where the settings ask for that.
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
    _warn_about(cameras)
    pixels = len(plan.prompts) * len(cameras) * cameras.height * cameras.width
    check_space([(plan.output, _BYTES_PER_PIXEL * pixels)])
    sample = _sample_on_cluster if settings.executor == "ray" else _sample
    callback = None
    if settings.consistency > 0:
        assert agreement is not None, "it is required"
        callback = agreement(cameras, settings.consistency)
    # Opened before anything is generated: what cannot be written is said at once.
    if len(plan.prompts) == 1:
        with whole_folder(plan.output, settings.overwrite) as folder:
            (made,) = sample(plan, cameras, device, plan.prompts, callback, choose)
            run = _record(plan, command, made, time.monotonic() - started)
            write_views(folder, made.images, cameras, run, settings.save_for)
        return plan.output
    request = {**_request(plan), "dtype": settings.dtype, "cameras": cameras_record(cameras)}
    folders = prompt_folders(plan.output, plan.prompts)
    with begun_folder(plan.output, request, settings.overwrite):
        left = [prompt for prompt, folder in folders.items() if not folder.exists()]
        if len(left) < len(folders):
            logger.info("going on: %d of %d prompts are left", len(left), len(folders))
        for made in sample(plan, cameras, device, left, callback, choose):
            run = _record(plan, command, made, time.monotonic() - started)
            with whole_folder(folders[made.prompt]) as folder:
                write_views(folder, made.images, cameras, run, settings.save_for)
        run = read_json(folders[plan.prompts[-1]] / RECORD, dict[str, Any]) | _request(plan)
        run.pop("candidates", None)
        write_summary(plan.output, folders, cameras, run)
    return plan.output


def _pipeline(plan: GenerationPlan, model: str | Path, device: torch.device) -> SPADPipeline:
    import torch

    settings = plan.settings
    dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
    pipeline = load_model(model, device, dtype)
    if plan.sampling.scheduler is not None:
        pipeline.use_scheduler(plan.sampling.scheduler)
    pipeline.unet.attention_backend = settings.attention
    if settings.ball_radius is not None:
        pipeline.unet.register_to_config(ball_radius=settings.ball_radius)
    return pipeline


def _sample(
    plan: GenerationPlan,
    cameras: Cameras,
    device: torch.device,
    prompts: Sequence[str],
    callback: PipelineCallback | None,
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
            sets.append(_images(pipeline, plan, cameras, callback, (read_as, seed)))
        yield _best(plan, cameras, prompt, sets, _made_with(pipeline), choose)


def _sample_on_cluster(
    plan: GenerationPlan,
    cameras: Cameras,
    _device: torch.device,
    prompts: Sequence[str],
    callback: PipelineCallback | None,
    choose: Choose | None,
) -> Iterator[Generated]:
    """What `_sample` yields, generated on the devices of a Ray cluster, in order of completion."""
    from spad.cluster import run_on_devices

    # A folder of a model has the same path everywhere, the package has not.
    name = plan.settings.model
    model = Path(name).absolute() if Path(name).is_dir() else name
    read_as = dict(zip(plan.prompts, plan.read_as, strict=True))
    jobs = [(prompt, seed) for prompt in prompts for seed in _seeds(plan)]
    values = [(read_as[prompt], seed) for prompt, seed in jobs]
    function = partial(_generate_on_device, plan, model, cameras, callback)
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
    callback: PipelineCallback | None,
    job: tuple[str, int],
) -> tuple[list[Image.Image], dict[str, Any]]:
    """The images of a prompt and a seed, in a process of a cluster, which keeps the model."""
    global _loaded
    if _loaded is None:
        _loaded = _pipeline(plan, model, resolve_device(plan.settings.device))
        _loaded.set_progress_bar_config(disable=True)
    return _images(_loaded, plan, cameras, callback, job), _made_with(_loaded)


def _images(
    pipeline: SPADPipeline,
    plan: GenerationPlan,
    cameras: Cameras,
    callback: PipelineCallback | None,
    job: tuple[str, int],
) -> list[Image.Image]:
    """The images of a prompt, as it is read, and a seed."""
    from spad.images.pixels import fitted_image

    read_as, seed = job
    negative = pipeline.read_prompts([plan.settings.negative_prompt])
    result = pipeline(
        None,
        cameras,
        # What the prompts are read as has been said already.
        prompt_embeds=pipeline.encode_text([pipeline.config["prompt_prefix"] + read_as]),
        negative_prompt_embeds=pipeline.encode_text(negative),
        num_inference_steps=plan.sampling.num_inference_steps,
        guidance_scale=plan.sampling.guidance_scale,
        guidance_rescale=plan.sampling.guidance_rescale,
        blob_sigma=plan.sampling.blob_sigma,
        deep_cache_interval=plan.settings.deep_cache_interval,
        seed=seed,
        views=plan.views,
        callback_on_step_end=callback,
    )
    images = result.images[0]
    for view, image in plan.views.items():
        # As it was given, not as the autoencoder reconstructs it.
        images[view] = fitted_image(image, cameras.height, cameras.width)
    return images


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


def _prompts(settings: GenerateConfig) -> tuple[str, ...]:
    if settings.prompt is not None and settings.prompts is None:
        lines = [settings.prompt]
    elif settings.prompts is not None and settings.prompt is None:
        lines = [line for _, line in read_lines(settings.prompts)]
    else:
        got = "neither" if settings.prompt is None else "both"
        raise ValueError(f'expected a prompt, as in "a blue fish", or --prompts FILE, got {got}')
    given = [line.strip() for line in lines if line.strip()]
    prompts = tuple(dict.fromkeys(given))
    if len(prompts) < len(given):
        logger.warning("%d prompts occur again and are generated once", len(given) - len(prompts))
    if not prompts:
        where = "" if settings.prompts is None else f" in {settings.prompts}"
        raise ValueError(f'expected a prompt{where}, got an empty one; try "a blue fish"')
    return prompts


def _free_output(settings: GenerateConfig, prompts: Sequence[str]) -> Path:
    """Default output folder: spad-out/PROMPT-SEED, with a number if there is one already."""
    stem = slug(prompts[0]) if settings.prompts is None else slug(settings.prompts.stem)
    base = Path("spad-out") / f"{stem}-{settings.seed}"
    folder, number = base, 1
    while folder.exists() and not settings.overwrite:
        if len(prompts) > 1 and is_begun(folder):
            break
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _check_for(model: ModelInfo, sampling: Sampling, image_size: int) -> None:
    if sampling.scheduler not in (None, *SCHEDULER_NAMES):
        names = ", ".join(SCHEDULER_NAMES)
        raise ValueError(f"expected a scheduler among {names}, got {sampling.scheduler!r}")
    steps, most = sampling.num_inference_steps, model.max_steps
    if steps > most:
        raise ValueError(f"expected --steps of at least 1 and at most {most}, got {steps}; try 25")
    multiple = model.image_multiple
    if image_size % multiple:
        nearest = max(1, round(image_size / multiple)) * multiple
        raise ValueError(
            f"expected an --image-size divisible by {multiple}, got {image_size}; try {nearest}"
        )


def _orbit(settings: GenerateConfig, defaults: GenerationDefaults) -> Orbit | None:
    """The orbit of the cameras; None if they come from a file."""
    chosen = {name: getattr(settings, name) for name in ("cameras", "preset", "save_for")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if not chosen:
        return plan_orbit(
            settings.views,
            settings.elevation,
            settings.azimuth,
            settings.radius,
            settings.fov_deg,
            MESH_VIEWS if settings.mesh else DEFAULT_VIEWS,
            defaults,
        )
    if len(set(chosen.values())) > 1:
        flags = " and ".join(f"{_flag(name)} {value}" for name, value in chosen.items())
        raise ValueError(f"expected cameras from one place, got {flags}: leave one out")
    source, name = next(iter(chosen.items()))
    # A tool that expects poses may accept other lenses.
    free = () if source == "cameras" else ("radius", "fov_deg")
    given = [n for n in ORBIT_FLAGS if getattr(settings, n) is not None and n not in free]
    if given:
        flags = ", ".join(map(_flag, given))
        raise ValueError(f"expected {_flag(source)} or an orbit, got both: leave out {flags}")
    if source == "cameras":
        return None
    lens = {}
    for flag in free:
        values = getattr(settings, flag)
        if values is not None and len(values) > 1:
            raise ValueError(
                f"expected one value of {_flag(flag)} with {_flag(source)}, got {len(values)}"
            )
        lens[flag] = values[0] if values else None
    return PRESETS[name].orbit(defaults, **lens)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read_prompts(prompts: Sequence[str], model: ModelInfo, strict: bool) -> tuple[str, ...]:
    vocabulary = model.vocabulary()
    if vocabulary is None:
        return tuple(prompts)
    readings = [read_prompt(p, vocabulary.captions, vocabulary.synonyms) for p in prompts]
    for reading in readings:
        sentences = describe_reading(reading, vocabulary.captions, model.name)
        if strict and reading.unknown:
            raise ValueError(
                f"expected known words with --strict, got a prompt where {sentences[-1]}"
            )
        for sentence in sentences:
            logger.warning(sentence)
    return tuple(reading.prompt for reading in readings)


def _warn_about_changes(run: EarlierRun, model: ModelInfo) -> None:
    """Warn of what may make the images differ from those of an earlier run."""
    if weights_hash(model) != run.model_sha256:
        logger.warning(
            "%s has other weights now than in the earlier run; images differ", model.name
        )
    now = _versions()
    others = [f"{n} {v}" for n, v in run.versions.items() if now.get(n) not in (None, v)]
    if others:
        logger.warning("the earlier run had %s: pixels may differ", ", ".join(others))


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


def _warn_about(cameras: Cameras) -> None:
    if len(cameras) > MANY_VIEWS:
        logger.warning(
            "%d views attend to each other: memory and time grow with their square", len(cameras)
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
        "versions": _versions(),
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
        "consistency": settings.consistency,
        "deep_cache_interval": settings.deep_cache_interval,
        "attention": settings.attention,
        "ball_radius": settings.ball_radius,
        "image_size": plan.image_size,
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "diffusers", "transformers")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"spad": spad.__version__, **versions, "python": platform.python_version()}
