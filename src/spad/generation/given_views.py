"""Views that are given to `spad generate` as images, and held clean. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spad.files import RECORD, inside, read_json
from spad.generation.config import GenerateConfig
from spad.generation.orbit import ORBIT_FLAGS

_TRANSFORMS = "transforms.json"
# With --hold, views and cameras come from its folder.
_ELSEWHERE = ("image", "cameras", "preset", "save_for", *ORBIT_FLAGS)


@dataclass(frozen=True)
class _Frame:
    file_path: str
    rest: dict[str, Any]


@dataclass(frozen=True)
class _Transforms:
    """Read part of a `transforms.json`."""

    frames: tuple[_Frame, ...]
    rest: dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """Read part of a `run.json`."""

    rest: dict[str, Any]
    prompts: tuple[str, ...] = ()
    model: str = GenerateConfig.model


def parse_views(entries: Sequence[str]) -> dict[int, Path]:
    """Files by view, from `--image 0=front.png 2=back.png`; a file alone is that of view 0.

    Raises: ValueError: a view has two files.
    """
    views: dict[int, Path] = {}
    for entry in entries:
        numbered = re.fullmatch(r"(\d+)=(.+)", entry)
        view, file = (int(numbered[1]), numbered[2]) if numbered else (0, entry)
        if view in views:
            raise ValueError(
                f"expected --image with one file per view, as in 0=front.png 2=back.png, got "
                f"{views[view]} and {file} for view {view}; a prompt goes before --image"
            )
        views[view] = Path(file)
    return views


def check_views(views: Mapping[int, Path], num_views: int) -> None:
    """Raises: ValueError: there is no such view."""
    wrong = [view for view in views if view >= num_views]
    if wrong:
        raise ValueError(
            f"expected --image for views 0 to {num_views - 1}, got one for view {wrong[0]}"
        )


def hold_views(settings: GenerateConfig) -> GenerateConfig:
    """Settings with the images and cameras of `hold` in place of `hold` and `redraw`.

    Without a prompt or a model, these are those of the folder's `run.json`.

    Raises: ValueError: the folder is not one of images with cameras, there is no such view, or
        images or cameras are given elsewhere too.
    """
    folder, redraw = settings.hold, settings.redraw
    if folder is None or not redraw:
        raise ValueError(
            "expected --hold FOLDER and --redraw VIEWS together, as in --redraw 3, got one of them"
        )
    given = [name for name in _ELSEWHERE if getattr(settings, name) is not None]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"expected images and cameras from --hold alone, got {flags} too")
    path = folder / _TRANSFORMS
    frames = read_json(path, _Transforms).frames
    wrong = [view for view in redraw if view >= len(frames)]
    if wrong:
        raise ValueError(f"expected --redraw of views 0 to {len(frames) - 1}, got {wrong[0]}")
    files = [inside(folder, frame.file_path, path) for frame in frames]
    changes: dict[str, Any] = {
        "hold": None,
        "redraw": None,
        "cameras": path,
        "image": tuple(f"{i}={file}" for i, file in enumerate(files) if i not in redraw) or None,
    }
    if (folder / RECORD).is_file():
        run = read_json(folder / RECORD, _Run)
        if settings.prompt is None and settings.prompts is None and len(run.prompts) == 1:
            changes["prompt"] = run.prompts[0]
        if settings.model == GenerateConfig.model:
            changes["model"] = run.model
    return dataclasses.replace(settings, **changes)
