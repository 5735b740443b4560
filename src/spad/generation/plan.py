"""What `spad generate` is asked for: a checked request, with the model's defaults filled in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from spad.files import check_output, read_lines, slug
from spad.generation.config import GenerateConfig
from spad.generation.earlier_run import EarlierRun, package_versions, read_earlier_run
from spad.generation.given_views import check_views, hold_views, parse_views
from spad.generation.many_prompts import is_begun
from spad.generation.orbit import ORBIT_FLAGS, Orbit, plan_orbit
from spad.generation.presets import PRESETS
from spad.hub.registry import (
    GenerationDefaults,
    ModelInfo,
    check_files,
    check_prompt_length,
    model_info,
    weights_hash,
)
from spad.images.reading import read_image
from spad.model.vocabulary import describe_reading, read_prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEDULER_NAMES = ("ddim", "dpm++", "unipc", "euler", "original")
# Defaults of --views.
DEFAULT_VIEWS, MESH_VIEWS = 4, 8
FEWEST_MESH_VIEWS = 3
# On prompts that it was not chosen by, views agree by 5 dB more, and show what was asked for as
# well as without; see docs/reconstruction.md.
MESH_CONSISTENCY = 0.5


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
        consistency: share by which views are moved to renders of one shape.
        prompts: the prompts, each once.
        read_as: the prompts in words that the model knows, in the same order.
        orbit: orbit of the cameras. None: they come from `settings.cameras`.
        views: images of the object that are given, by view.
        output: output folder.
    """

    settings: GenerateConfig
    sampling: Sampling
    consistency: float
    image_size: int
    model: ModelInfo
    prompts: tuple[str, ...]
    read_as: tuple[str, ...]
    orbit: Orbit | None
    views: dict[int, Image.Image]
    output: Path

    @property
    def keeps_parts(self) -> bool:
        """Whether a stopped run leaves what is finished, for the same command to go on."""
        return _keeps_parts(self.settings, self.prompts)


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
    if not (_keeps_parts(settings, prompts) and is_begun(output)):
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
    consistency = _consistency(settings)
    # An earlier run is at its cameras again, unless others are asked for.
    has_its_cameras = run is not None and settings.cameras is not asked.cameras
    orbit = None if has_its_cameras else _orbit(settings, defaults)
    if orbit is not None:
        num_views = len(orbit.azimuth_deg)
        check_views(files, num_views)
        for flag, is_given in (("mesh", settings.mesh), ("consistency", consistency > 0)):
            if is_given and num_views < FEWEST_MESH_VIEWS:
                raise ValueError(
                    f"expected {FEWEST_MESH_VIEWS} or more --views with --{flag}, got {num_views}"
                )
    at_once = settings.views_per_pass
    if consistency > 0 and at_once is not None and at_once < FEWEST_MESH_VIEWS:
        raise ValueError(
            f"expected {FEWEST_MESH_VIEWS} or more --views-per-pass with --consistency, got "
            f"{at_once}"
        )
    for prompt in (*prompts, settings.negative_prompt):
        check_prompt_length(model, prompt)
    read_as = _read_prompts(prompts, model, settings.strict)
    check_files(model)
    if run is not None:
        _warn_about_changes(run, model)
    return GenerationPlan(
        settings, sampling, consistency, image_size, model, prompts, read_as, orbit, views, output
    )


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


def _keeps_parts(settings: GenerateConfig, prompts: Sequence[str]) -> bool:
    return len(prompts) > 1 or settings.views_per_pass is not None


def _free_output(settings: GenerateConfig, prompts: Sequence[str]) -> Path:
    """Default output folder: spad-out/PROMPT-SEED, with a number if there is one already."""
    stem = slug(prompts[0]) if settings.prompts is None else slug(settings.prompts.stem)
    base = Path("spad-out") / f"{stem}-{settings.seed}"
    folder, number = base, 1
    while folder.exists() and not settings.overwrite:
        if _keeps_parts(settings, prompts) and is_begun(folder):
            break
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _consistency(settings: GenerateConfig) -> float:
    """What is asked for; else views agree where a model is made of them, as far as passes allow."""
    at_once = settings.views_per_pass
    can_agree = at_once is None or at_once >= FEWEST_MESH_VIEWS
    return _given(settings.consistency, MESH_CONSISTENCY if settings.mesh and can_agree else 0.0)


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
    now = package_versions()
    others = [f"{n} {v}" for n, v in run.versions.items() if now.get(n) not in (None, v)]
    if others:
        logger.warning("the earlier run had %s: pixels may differ", ", ".join(others))
