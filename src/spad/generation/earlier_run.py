"""An earlier run, from its `run.json`: what `spad generate --from` generates again."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import spad
from spad.files import RECORD, file_hash, read_json
from spad.generation.config import GenerateConfig
from spad.generation.given_views import parse_views

CAMERA_SETTINGS = (
    "views", "elevation", "azimuth", "radius", "fov_deg", "cameras", "preset", "save_for",
)  # fmt: skip
# What a record says in another form, or is no matter of the images.
_NOT_TAKEN = ("prompt", "prompts", "cameras", "output", "overwrite", "from_run", "hold", "redraw")


@dataclass(frozen=True)
class EarlierRun:
    """The contents of a `run.json`; the settings are in `rest`.

    Attributes:
        prompts: its prompts.
        model_sha256: hash of the weights.
        versions: versions of packages, by name.
        image_sha256: hashes of the input images.
    """

    prompts: tuple[str, ...]
    model_sha256: str
    versions: dict[str, str]
    cameras: dict[str, Any]
    rest: dict[str, Any]
    image_sha256: tuple[str, ...] = ()


def package_versions() -> dict[str, str]:
    """Versions of the packages on which pixels depend, by name."""
    packages = ("torch", "diffusers", "transformers")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"spad": spad.__version__, **versions, "python": platform.python_version()}


def read_earlier_run(settings: GenerateConfig) -> tuple[GenerateConfig, EarlierRun]:
    """The run that `settings.from_run` records, with the settings of both.

    A setting that is not its default wins over that of the run. The cameras are those of the run,
    exactly, unless `settings` place some.

    Raises: ValueError: no such file, it is not a record of `spad generate`, or the input image of
        the run is missing or another one now.
    """
    assert settings.from_run is not None
    path = settings.from_run / RECORD if settings.from_run.is_dir() else settings.from_run
    run = read_json(path, EarlierRun)
    given = {
        field.name
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    }
    of_run = _settings(run)
    if given.intersection(CAMERA_SETTINGS):
        of_run.pop("save_for", None)
    else:
        of_run["cameras"] = path
    changes = {name: value for name, value in of_run.items() if name not in given}
    try:
        both = dataclasses.replace(settings, **changes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "image" in changes and both.image is not None:
        _check_images(both.image, run, path)
    return both, run


def _settings(run: EarlierRun) -> dict[str, Any]:
    """The settings of a run as fields of `GenerateConfig`, their values not yet checked."""
    hints = get_type_hints(GenerateConfig)
    recorded = {"steps": run.rest.get("num_inference_steps"), **run.rest}
    found = {}
    for name in hints.keys() & recorded.keys() - set(_NOT_TAKEN):
        value: Any = recorded[name]
        is_path = isinstance(value, str) and Path in get_args(hints[name])
        value = tuple(value) if isinstance(value, list) else value
        found[name] = Path(value) if is_path else value
    return found


def _check_images(entries: Sequence[str], run: EarlierRun, record: Path) -> None:
    files = list(parse_views(entries).values())
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"expected {file}, an input image of {record}, got no such file; give it with "
                "--image"
            )
    if [file_hash(file) for file in files] != list(run.image_sha256):
        shown = ", ".join(map(str, files))
        raise ValueError(
            f"expected {shown} as when {record} was written, got another image; give the one of "
            "then with --image"
        )
