"""Models in the package, installed ones, and any pipeline folder: what they are, loading them.

A model is a diffusers pipeline folder with three more files: `spad.json` (what it is and its
defaults), `captions.txt` (what it was trained on, one caption per line) and `sha256.txt` (in the
format of `sha256sum`). All but the pipeline itself may be missing. Only `load_model` needs torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval, MinLen

from spad.files import (
    as_kind,
    file_hash,
    inside,
    json_text,
    parse_json,
    read_json,
    read_lines,
    write_text,
)
from spad.files.reading import MOST_BYTES
from spad.hub.released import RELEASED
from spad.model import current_class
from spad.settings import (
    AzimuthDeg,
    Count,
    CountOrZero,
    Distance,
    ElevationDeg,
    FovDeg,
    GuidanceScale,
    PositiveFloat,
    Share,
    checked,
)

if TYPE_CHECKING:
    import torch

    from spad.model import SPADPipeline

EMBEDDED = Path(__file__).parents[1] / "weights"
# Weights are saved in files below 20 MB, so that they can live in a git repository.
SHARD_SIZE = "15MB"
# Larger files would make every start wait for their hash.
HASHED_AT_LOAD = 100_000_000
MANIFEST, CAPTIONS, HASHES = "spad.json", "captions.txt", "sha256.txt"
# Keys of manifests that were written before 0.1, and what they are called now.
_FORMER_KEYS = {
    "licence": "license",
    "azimuth_start_deg": "start_azimuth_deg",
    "cfg_scale": "guidance_scale",
    "image_cfg_scale": "guidance_scale_with_image",
    "steps": "num_inference_steps",
}

# The classes a pipeline folder may name. Anything else it asks for is refused, never imported.
_CLASSES = {
    "unet": {"MultiViewUNet": "spad.model"},
    "vae": {"PatchAutoencoder": "spad.model", "AutoencoderKL": "diffusers"},
    "text_encoder": {"CLIPTextModel": "transformers"},
    "tokenizer": {
        "PreTrainedTokenizerFast": "transformers",
        "TokenizersBackend": "transformers",
        "CLIPTokenizer": "transformers",
        "CLIPTokenizerFast": "transformers",
    },
    "scheduler": {
        "ReleasedDDIMScheduler": "spad.model",
        "DDIMScheduler": "diffusers",
        "DPMSolverMultistepScheduler": "diffusers",
        "UniPCMultistepScheduler": "diffusers",
        "EulerDiscreteScheduler": "diffusers",
        "DDPMScheduler": "diffusers",
        "PNDMScheduler": "diffusers",
    },
}
_WITH_WEIGHTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
@checked
class GenerationDefaults:
    """What a model draws with unless told otherwise; angles in degrees.

    Views stand evenly round from `start_azimuth_deg`. Objects face -y, azimuth -90, so -60 makes
    view 0 a three-quarter view of the front.
    """

    elevation_deg: ElevationDeg = 20.0
    start_azimuth_deg: AzimuthDeg = -60.0
    radius: Distance = 3.5
    fov_deg: FovDeg = 40.2657513
    guidance_scale: GuidanceScale = 5.0
    guidance_rescale: Share = 0.0
    blob_sigma: PositiveFloat = 0.5
    num_inference_steps: Count = 25
    scheduler: str = "ddim"
    guidance_scale_with_image: GuidanceScale | None = None

    def guidance(self, is_image_given: bool) -> float:
        """`guidance_scale`, or that for a given picture, from which guidance draws away."""
        if is_image_given and self.guidance_scale_with_image is not None:
            return self.guidance_scale_with_image
        return self.guidance_scale


@dataclass(frozen=True)
@checked
class _UNet:
    """What is asked of the `config.json` of a UNet, as below of the other parts."""

    sample_size: Annotated[int, Interval(ge=1, le=4096)]
    rest: dict[str, Any]


@dataclass(frozen=True)
@checked
class _Autoencoder:
    block_out_channels: Annotated[tuple[Count, ...], MinLen(1)]
    rest: dict[str, Any]
    patch_size: Annotated[int, Interval(ge=1, le=256)] | None = None


@dataclass(frozen=True)
@checked
class _Scheduler:
    rest: dict[str, Any]
    num_train_timesteps: Count = 1000
    steps_offset: CountOrZero = 0


@dataclass(frozen=True)
class _Manifest:
    rest: dict[str, Any]
    name: str = ""
    description: str = ""
    license: str = ""
    author: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading it.

    `image_size` is the side in pixels of the pictures it was trained on; sides must be multiples
    of `image_multiple`. `max_steps` is the length of its noise schedule. `size_mb` counts all
    files, in 10^6 bytes.
    """

    name: str
    path: Path
    description: str
    license: str
    author: str
    image_size: int
    image_multiple: int
    max_steps: int
    size_mb: float
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)

    def captions(self) -> list[str]:
        """Captions it was trained on; empty if it does not say."""
        path = self.path / CAPTIONS
        if not path.is_file():
            return []
        return [line for _, line in read_lines(path) if line.strip()]


def installed_folder() -> Path:
    """Where `spad download` installs models: `$SPAD_HOME/models`, or below the user's cache."""
    home = os.environ.get("SPAD_HOME")
    if not home:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spad"
    return Path(home).expanduser() / "models"


def list_models() -> list[ModelInfo]:
    """The embedded models by name, then the installed ones."""
    return [read_info(folder) for folder in _folders_by_name().values()]


def model_info(name_or_folder: str | os.PathLike) -> ModelInfo:
    """An embedded or installed model by its name, or the model in a folder.

    Raises: ValueError: there is no such model, or its folder is incomplete.
    """
    folders = _folders_by_name()
    if name_or_folder in folders:
        return read_info(folders[name_or_folder])
    folder = Path(name_or_folder)
    if not folder.is_dir():
        if name_or_folder in RELEASED:
            raise ValueError(
                f"{name_or_folder} is not installed; get it with: spad download {name_or_folder}"
            )
        names = ", ".join(folders) or "(none here)"
        raise ValueError(
            f"expected a model among {names} or the folder of one, got {str(name_or_folder)!r}"
        )
    return read_info(folder)


def read_info(folder: Path) -> ModelInfo:
    """Describe the model in `folder` from its JSON files.

    Raises: ValueError: a file is missing or malformed, or the folder names a class it may not.
    """
    folder = Path(folder)
    _class_names(folder)
    unet = read_json(folder / "unet" / "config.json", _UNet)
    vae = read_json(folder / "vae" / "config.json", _Autoencoder)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", _Scheduler)
    path = folder / MANIFEST
    written = read_json(path, dict[str, Any]) if path.exists() else {}
    manifest = as_kind(_renamed(written), _Manifest, path)
    multiple = vae.patch_size or 2 ** (len(vae.block_out_channels) - 1)
    return ModelInfo(
        name=manifest.name or folder.resolve().name,
        path=folder,
        description=manifest.description,
        license=manifest.license,
        author=manifest.author,
        image_size=unet.sample_size * multiple,
        image_multiple=multiple,
        max_steps=scheduler.num_train_timesteps - scheduler.steps_offset,
        size_mb=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6,
        defaults=as_kind(_renamed(manifest.defaults), GenerationDefaults, f"{path}: defaults"),
    )


def check_files(model: ModelInfo) -> None:
    """Compare small files with `sha256.txt`; of large ones, or without it, look at the headers.

    Raises: ValueError: a file is missing, cut short or changed.
    """
    path = model.path / HASHES
    if path.is_file():
        for where, line in read_lines(path):
            digest, _, name = line.partition("  ")
            file = inside(model.path, name, where)
            if not file.is_file():
                raise _damaged(model.path, f"{name} is missing")
            if file.stat().st_size > HASHED_AT_LOAD:
                _check_safetensors(model.path, file)
            elif file_hash(file) != digest:
                raise _damaged(model.path, f"{name} is not what {HASHES} says")
        return
    for part in _WITH_WEIGHTS:
        files = sorted((model.path / part).glob("*.safetensors"))
        if not files:
            raise _damaged(model.path, f"{part} has no .safetensors file")
        for file in files:
            _check_safetensors(model.path, file)


def weights_hash(model: ModelInfo) -> str:
    """One hash of all weights of a model, to name it in records."""
    digest = hashlib.sha256()
    for file in sorted(model.path.rglob("*.safetensors")):
        digest.update(f"{file.relative_to(model.path).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def check_prompt_length(model: ModelInfo, prompt: str) -> None:
    """Raises: ValueError: the prompt is longer than the model reads."""
    path = model.path / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The library raises bare Exception for a malformed file.
    except Exception as error:
        raise _damaged(model.path, f"tokenizer/{path.name}: {error}") from error
    tokenizer.no_truncation()
    most = read_json(path.with_name("tokenizer_config.json"), dict).get("model_max_length")
    ends = tokenizer.num_special_tokens_to_add(is_pair=False)
    tokenizer.no_padding()
    text = _prompt_prefix(model.path) + prompt
    length = len(tokenizer.encode(text, add_special_tokens=False).ids)
    if isinstance(most, int) and length > most - ends:
        raise ValueError(
            f"expected a prompt of at most {most - ends} words or word parts, which is what "
            f"{model.name} reads, got {length}: {prompt[:40]!r}…; shorten it"
        )


def load_model(
    name_or_folder: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> SPADPipeline:
    """Load a model from its safetensors, never from the network.

    Args:
        name_or_folder: name of an embedded model, or a pipeline folder.
        device: the best there is if None: CUDA, then MPS, then CPU.
        dtype: of weights and computation, float32 if None, whatever the files hold.

    Raises: ValueError: no such model; files missing, cut short or changed; unknown device.
    """
    model = model_info(name_or_folder)
    check_files(model)
    for variable in ("HF_HUB_OFFLINE", "DIFFUSERS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(variable, "1")
    import torch

    from spad.model import SPADPipeline

    device = resolve_device(device)
    parts = {
        part: _load_part(model.path, part, name, dtype or torch.float32)
        for part, name in _class_names(model.path).items()
    }
    pipeline = SPADPipeline(**parts, prompt_prefix=_prompt_prefix(model.path)).to(device)
    # Drawing with it takes a seventh less time on a CPU.
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def load_autoencoder(name_or_folder: str | os.PathLike) -> Any:
    """The autoencoder of a model, by its name or folder, or in a folder of its own; float32, CPU.

    Raises: ValueError: there is none, or its files are incomplete.
    """
    import torch

    folder = Path(name_or_folder)
    if (folder / "config.json").is_file():
        name = read_json(folder / "config.json", dict).get("_class_name")
        if name not in _CLASSES["vae"]:
            raise ValueError(f"expected an autoencoder in {folder}, got a {name}")
        return _load_part(folder.parent, folder.name, name, torch.float32, kind="vae")
    model = model_info(name_or_folder)
    check_files(model)
    return _load_part(model.path, "vae", _class_names(model.path)["vae"], torch.float32)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """`device` if it works here; the best there is if None.

    Raises: ValueError: it does not.
    """
    import torch

    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    # Builds without an accelerator raise AssertionError or NotImplementedError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"expected a device that works here, got {device}; try cpu") from error
    if chosen.type == "meta":
        raise ValueError("expected a device that holds numbers, got 'meta'; try cpu")
    return chosen


def save_model_manifest(
    folder: Path,
    name: str,
    description: str,
    captions: Iterable[str],
    defaults: GenerationDefaults | Mapping[str, Any] | None = None,
    license: str = "",
    author: str = "",
) -> None:
    """Complete the pipeline folder `folder`: write `spad.json`, `captions.txt`, `sha256.txt`.

    Call it last: the hashes are those of all other files at this moment.
    """
    folder = Path(folder)
    if not isinstance(defaults, GenerationDefaults):
        defaults = GenerationDefaults(**(defaults or {}))
    manifest = {
        "name": name,
        "description": description,
        "license": license,
        "author": author,
        "defaults": dataclasses.asdict(defaults),
    }
    write_text(folder / MANIFEST, json_text(manifest))
    write_text(folder / CAPTIONS, "".join(f"{caption}\n" for caption in sorted(set(captions))))
    (folder / HASHES).unlink(missing_ok=True)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    lines = [f"{file_hash(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    write_text(folder / HASHES, "".join(lines))


def _folders_by_name() -> dict[str, Path]:
    """Embedded models, then installed ones; an embedded model hides an installed one."""
    folders: dict[str, Path] = {}
    for root in (EMBEDDED, installed_folder()):
        for index in sorted(root.glob("*/model_index.json")):
            # Folders with a dot are being written.
            if not index.parent.name.startswith("."):
                folders.setdefault(index.parent.name, index.parent)
    return folders


def _load_part(
    folder: Path, part: str, class_name: str, dtype: torch.dtype, kind: str | None = None
) -> Any:
    """One component, of the kind that its folder is named after if None.

    `DiffusionPipeline.from_pretrained` cannot load classes of other packages.
    """
    from safetensors import SafetensorError

    kind = kind or part
    part_class = getattr(import_module(_CLASSES[kind][class_name]), class_name)
    options: dict[str, Any] = {"local_files_only": True}
    if kind in _WITH_WEIGHTS:
        options |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    try:
        loaded = part_class.from_pretrained(folder / part, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _damaged(folder, f"{part} cannot be loaded: {reason}") from error
    if kind not in _WITH_WEIGHTS:
        return loaded
    module, report = loaded
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise _damaged(folder, f"{part} has other weights than its config.json, such as {wrong[0]}")
    return module.eval()


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` under the names that keys have now."""
    return {_FORMER_KEYS.get(key, key): value for key, value in values.items()}


def _class_names(folder: Path) -> dict[str, str]:
    """The class of every component, as `model_index.json` names it."""
    index = read_json(folder / "model_index.json", dict)
    names = {}
    for part, allowed in _CLASSES.items():
        entry = index.get(part)
        is_class = isinstance(entry, list) and [type(part) for part in entry] == [str, str]
        name = current_class(*entry)[1] if is_class else None
        if name not in allowed:
            raise ValueError(
                f"{folder / 'model_index.json'}: expected {part} to be {' or '.join(allowed)}, "
                f"got {name}"
            )
        names[part] = name
    return names


def _prompt_prefix(folder: Path) -> str:
    prefix = read_json(folder / "model_index.json", dict).get("prompt_prefix", "")
    return prefix if isinstance(prefix, str) else ""


def _check_safetensors(folder: Path, file: Path) -> None:
    """Read the header: its length, its JSON, and whether the file holds all it announces."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        try:
            if not 2 <= header_size <= min(size - 8, MOST_BYTES):
                raise ValueError
            header = parse_json(stream.read(header_size), dict[str, Any], file)
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            if max(ends, default=0) != size - 8 - header_size:
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, f"{file.relative_to(folder)} is cut short or corrupt") from error


def _damaged(folder: Path, what: str) -> ValueError:
    return ValueError(f"{folder}: expected a whole model, but {what}; install or copy it again")
