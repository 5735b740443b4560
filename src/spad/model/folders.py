"""Model folders: where a model is, and its own settings for generation. Imports nothing heavy.

A pipeline carries these settings in its `model_index.json`, as `defaults` and `vocabulary`. In
folders saved before 0.1 they are in `spad.json` and `captions.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spad.files import as_kind, read_json, read_lines
from spad.model.released import RELEASED
from spad.model.vocabulary import SYNONYMS
from spad.settings import (
    AzimuthDeg,
    Count,
    Distance,
    ElevationDeg,
    FovDeg,
    GuidanceScale,
    PositiveFloat,
    Share,
    checked,
)

EMBEDDED = Path(__file__).parents[1] / "weights"
INDEX, MANIFEST, CAPTIONS = "model_index.json", "spad.json", "captions.txt"
# Keys of manifests written before 0.1, and their present names.
_FORMER_KEYS = {
    "licence": "license",
    "azimuth_start_deg": "start_azimuth_deg",
    "cfg_scale": "guidance_scale",
    "image_cfg_scale": "guidance_scale_with_image",
    "steps": "num_inference_steps",
}


@dataclass(frozen=True)
@checked
class GenerationDefaults:
    """Default settings of a model for generation; angles in degrees, distances in world units.

    Views stand evenly round from `start_azimuth_deg`. Objects face -y, azimuth -90, so at -60
    view 0 is a three-quarter view of the front. A `scheduler` of None is the one that the folder
    has, whatever its class.
    """

    elevation_deg: ElevationDeg = 20.0
    start_azimuth_deg: AzimuthDeg = -60.0
    radius: Distance = 3.5
    fov_deg: FovDeg = 40.2657513
    guidance_scale: GuidanceScale = 5.0
    guidance_rescale: Share = 0.0
    blob_sigma: PositiveFloat = 0.5
    num_inference_steps: Count = 25
    scheduler: str | None = "ddim"
    guidance_scale_with_image: GuidanceScale | None = None

    def guidance(self, is_image_given: bool) -> float:
        """`guidance_scale_with_image` if there is an input image and such a scale, as text
        guidance pulls away from the image; else `guidance_scale`.
        """
        if is_image_given and self.guidance_scale_with_image is not None:
            return self.guidance_scale_with_image
        return self.guidance_scale


@dataclass(frozen=True)
class Vocabulary:
    """What a model of few words knows.

    Attributes:
        captions: captions of the training set.
        synonyms: groups of words for similar-looking things; see `spad.model.vocabulary`.
    """

    captions: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] = SYNONYMS


@dataclass(frozen=True)
class Manifest:
    """Content of `spad.json`; `defaults` only in folders saved before 0.1."""

    rest: dict[str, Any]
    name: str = ""
    description: str = ""
    license: str = ""
    author: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)


def installed_folder() -> Path:
    """Folder of installed models: `$SPAD_HOME/models`, or `spad/models` in the user's cache.

    Raises: ValueError: the user has no home.
    """
    home = os.environ.get("SPAD_HOME")
    if not home:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spad"
    folder = Path(os.path.expanduser(home))
    if folder.parts[:1] and folder.parts[0].startswith("~"):
        raise ValueError("expected a user with a home, got none; set SPAD_HOME to a folder")
    return folder / "models"


def folders_by_name() -> dict[str, Path]:
    """Model folders by name: embedded models, then installed ones that have another name."""
    folders: dict[str, Path] = {}
    roots = [EMBEDDED]
    # Whoever has no home can use what is in the package.
    with suppress(ValueError):
        roots.append(installed_folder())
    for root in roots:
        for index in sorted(root.glob(f"*/{INDEX}")):
            # Names of folders that are being written start with a dot.
            if not index.parent.name.startswith("."):
                folders.setdefault(index.parent.name, index.parent)
    return folders


def find_folder(name_or_folder: str | os.PathLike) -> Path | None:
    """Folder of an embedded or installed model, or the folder given; None if there is none.

    Raises: ValueError: it is a released model that is not installed.
    """
    name, folders = os.fspath(name_or_folder), folders_by_name()
    if name in folders:
        return folders[name]
    if Path(name).is_dir():
        return Path(name)
    if name in RELEASED:
        raise ValueError(
            f"expected an installed model, got {name}; install it with: spad download {name}"
        )
    return None


def read_manifest(folder: Path) -> Manifest:
    """`spad.json` of a model folder, which need not exist.

    Raises: ValueError: it is malformed.
    """
    path = folder / MANIFEST
    written = read_json(path, dict[str, Any]) if path.exists() else {}
    return as_kind(_renamed(written), Manifest, path)


def read_defaults(folder: Path) -> GenerationDefaults:
    """Default settings of a model folder.

    Raises: ValueError: they are malformed.
    """
    own = _index(folder).get("defaults")
    if own is not None:
        return as_kind(own, GenerationDefaults, f"{folder / INDEX}: defaults")
    former = _renamed(read_manifest(folder).defaults)
    return as_kind(former, GenerationDefaults, f"{folder / MANIFEST}: defaults")


def read_captions(folder: Path) -> list[str]:
    """Captions of the training set; empty if the folder does not list them."""
    path = folder / CAPTIONS
    if path.is_file():
        return [line for _, line in read_lines(path) if line.strip()]
    own = _index(folder).get("vocabulary")
    return [] if own is None else list(_vocabulary(own, folder).captions)


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Vocabulary of a model whose tokens are whole words; None for others, which read any word.

    Raises: ValueError: it is malformed.
    """
    own = _index(folder).get("vocabulary")
    if own is not None:
        return _vocabulary(own, folder)
    captions = read_captions(folder) if has_whole_words(folder) else []
    return Vocabulary(tuple(captions)) if captions else None


def has_whole_words(folder: Path) -> bool:
    """Whether the tokens of a model are whole words, so that it reads no others."""
    path = folder / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        return False
    model = read_json(path, dict[str, Any]).get("model")
    return isinstance(model, dict) and model.get("type") == "WordLevel"


def _index(folder: Path) -> dict[str, Any]:
    return read_json(folder / INDEX, dict[str, Any])


def _vocabulary(own: Any, folder: Path) -> Vocabulary:
    return as_kind(own, Vocabulary, f"{folder / INDEX}: vocabulary")


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with present names in place of former keys."""
    return {_FORMER_KEYS.get(key, key): value for key, value in values.items()}
