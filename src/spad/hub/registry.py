"""Find, describe, check and load models: embedded ones, installed ones, and model folders.

A model folder is a diffusers pipeline folder with three more files: `spad.json` (description),
`captions.txt` (captions of the training set, one per line) and `sha256.txt` (in the format of
`sha256sum`). These three are optional. Only loading needs torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval, MinLen

from spad.files import (
    file_hash,
    first_line,
    inside,
    json_text,
    parse_json,
    read_json,
    read_lines,
    write_text,
)
from spad.files.reading import MOST_BYTES
from spad.model import current_class
from spad.model.folders import (
    CAPTIONS,
    INDEX,
    MANIFEST,
    GenerationDefaults,
    Vocabulary,
    find_folder,
    folders_by_name,
    has_whole_words,
    read_captions,
    read_defaults,
    read_manifest,
    read_vocabulary,
)
from spad.settings import Count, CountOrZero, checked

if TYPE_CHECKING:
    import torch

    from spad.model import SPADPipeline
    from spad.model.precision import DType

log = logging.getLogger(__name__)

# Weights are saved in files below 20 MB, so that they fit a git repository.
SHARD_SIZE = "15MB"
# Larger files are not hashed on loading, which would take too long.
HASHED_AT_LOAD = 100_000_000
HASHES = "sha256.txt"
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
    "text_encoder_2": {"CLIPTextModelWithProjection": "transformers"},
    "tokenizer_2": {"CLIPTokenizer": "transformers", "CLIPTokenizerFast": "transformers"},
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
_WITH_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
# Only models like Stable Diffusion XL have them.
_OPTIONAL = ("text_encoder_2", "tokenizer_2")


# Larger networks are none that anybody has; damaged files would take all memory.
Width = Annotated[int, Interval(ge=1, le=16_384)]
Layers = Annotated[int, Interval(ge=1, le=1000)]


@dataclass(frozen=True)
@checked
class _UNet:
    """Checked part of the `config.json` of a UNet; so are the classes below for other parts."""

    sample_size: Annotated[int, Interval(ge=1, le=4096)]
    block_out_channels: Annotated[tuple[Width, ...], MinLen(1)]
    rest: dict[str, Any]
    layers_per_block: tuple[Layers, ...] | Layers = 2
    transformer_layers_per_block: tuple[Layers, ...] | Layers = 1
    cross_attention_dim: tuple[Width, ...] | Width = 1280


@dataclass(frozen=True)
@checked
class _Autoencoder:
    block_out_channels: Annotated[tuple[Width, ...], MinLen(1)]
    rest: dict[str, Any]
    latent_channels: Width = 4
    layers_per_block: Layers = 1
    patch_size: Annotated[int, Interval(ge=1, le=256)] | None = None


@dataclass(frozen=True)
@checked
class _TextEncoder:
    vocab_size: Annotated[int, Interval(ge=1, le=1_000_000)]
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    rest: dict[str, Any]
    max_position_embeddings: Annotated[int, Interval(ge=1, le=100_000)] = 77

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"expected hidden_size to be a multiple of num_attention_heads, got "
                f"{self.hidden_size} and {self.num_attention_heads}"
            )


@dataclass(frozen=True)
@checked
class _Scheduler:
    rest: dict[str, Any]
    num_train_timesteps: Count = 1000
    steps_offset: CountOrZero = 0


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model, read without loading it.

    Attributes:
        image_size: side of the training images in pixels.
        image_multiple: heights and widths must be multiples of it.
        max_steps: largest number of denoising steps.
        size_mb: size of all files in 10^6 bytes.
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
        """Captions of the training set; empty if the folder does not list them."""
        return read_captions(self.path)

    def vocabulary(self) -> Vocabulary | None:
        """Known words of a model whose tokens are whole words; None: it reads any word."""
        return read_vocabulary(self.path)


def list_models() -> list[ModelInfo]:
    """Embedded models by name, then installed ones; damaged ones are left out with a warning."""
    models = []
    for folder in folders_by_name().values():
        try:
            models.append(read_info(folder))
        except ValueError as error:
            log.warning("left out: %s", error)
    return models


def model_info(name_or_folder: str | os.PathLike) -> ModelInfo:
    """Description of an embedded or installed model, by its name, or of a model folder.

    Raises: ValueError: there is no such model, or its folder is incomplete.
    """
    folder = find_folder(name_or_folder)
    if folder is None:
        names = ", ".join(folders_by_name()) or "(none here)"
        got = os.fspath(name_or_folder)
        raise ValueError(f"expected a model among {names} or a model folder, got {got!r}")
    return read_info(folder)


def read_info(folder: Path) -> ModelInfo:
    """Description of a model folder, read from its JSON files.

    Raises: ValueError: a file is missing or malformed, or a class is not among the allowed ones.
    """
    folder = Path(folder)
    parts = _class_names(folder)
    unet = read_json(folder / "unet" / "config.json", _UNet)
    vae = read_json(folder / "vae" / "config.json", _Autoencoder)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", _Scheduler)
    for part in ("text_encoder", "text_encoder_2"):
        if part in parts:
            read_json(folder / part / "config.json", _TextEncoder)
    manifest = read_manifest(folder)
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
        defaults=read_defaults(folder),
    )


def check_files(model: ModelInfo) -> None:
    """Check files by `sha256.txt`; large ones, or all without it, by their safetensors headers.

    Raises: ValueError: a file is missing, cut short or changed, or one of JSON is malformed.
    """
    for file in sorted(model.path.rglob("*.json")):
        read_json(file, dict[str, Any])
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
    parts = _class_names(model.path)
    for part in filter(parts.__contains__, _WITH_WEIGHTS):
        files = sorted((model.path / part).glob("*.safetensors"))
        if not files:
            raise _damaged(model.path, f"{part} has no .safetensors file")
        for file in files:
            _check_safetensors(model.path, file)


def weights_hash(model: ModelInfo) -> str:
    """SHA-256 over all weights of a model, which identifies it in records."""
    digest = hashlib.sha256()
    for file in sorted(model.path.rglob("*.safetensors")):
        digest.update(f"{file.relative_to(model.path).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def check_prompt_length(model: ModelInfo, prompt: str) -> None:
    """Raises: ValueError: the prompt is too long for the model's text encoder."""
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
            f"expected a prompt of at most {most - ends} words or word parts for {model.name}, "
            f"got {length}: {prompt[:40]!r}…; shorten it"
        )


def load_model(
    name_or_folder: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: DType = "auto",
) -> SPADPipeline:
    """Load a model from its safetensors, after a check of all files, without network.

    Args:
        name_or_folder: name of an embedded or installed model, or a model folder.
        device: device of the pipeline. Default: CUDA, else MPS, else CPU.
        dtype: data type of weights and computation, whatever the files have. "auto" is bfloat16
            on devices that are fast at it, else float32.

    Raises: ValueError: no such model; files missing, cut short or changed; unknown device.
    """
    model = model_info(name_or_folder)
    check_files(model)
    import torch

    from spad.model import SPADPipeline
    from spad.model.precision import resolve_dtype

    device = resolve_device(device)
    resolved = resolve_dtype(dtype, device)
    parts = {
        part: _load_part(model.path, part, name, resolved)
        for part, name in _class_names(model.path).items()
    }
    pipeline = SPADPipeline(
        **parts,
        prompt_prefix=_prompt_prefix(model.path),
        defaults=model.defaults,
        vocabulary=model.vocabulary(),
    ).to(device)
    pipeline.register_to_config(_name_or_path=model.name)
    pipeline.has_auto_dtype = dtype == "auto"
    pipeline.use_own_scheduler()
    # channels_last makes CPU inference about 14 % faster.
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def load_autoencoder(name_or_folder: str | os.PathLike) -> Any:
    """The autoencoder of a model, by name or model folder, or of a folder of its own; float32, CPU.

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
    """`device`, after a test. Default: CUDA, else MPS, else CPU.

    Raises: ValueError: it does not work on this machine.
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
        raise ValueError("expected a device with memory, got 'meta'; try cpu")
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
    """Make a pipeline folder a model folder: write `spad.json`, `captions.txt`, `sha256.txt`.

    Call it last, as it hashes all other files.
    """
    folder, captions = Path(folder), sorted(set(captions))
    if not isinstance(defaults, GenerationDefaults):
        defaults = GenerationDefaults(**(defaults or {}))
    index = read_json(folder / INDEX, dict[str, Any])
    index["defaults"] = dataclasses.asdict(defaults)
    index.pop("vocabulary", None)
    if captions and has_whole_words(folder):
        index["vocabulary"] = dataclasses.asdict(Vocabulary(tuple(captions)))
    write_text(folder / INDEX, json_text(index))
    manifest = {"name": name, "description": description, "license": license, "author": author}
    write_text(folder / MANIFEST, json_text(manifest))
    write_text(folder / CAPTIONS, "".join(f"{caption}\n" for caption in captions))
    (folder / HASHES).unlink(missing_ok=True)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    lines = [f"{file_hash(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    write_text(folder / HASHES, "".join(lines))


def _load_part(
    folder: Path, part: str, class_name: str, dtype: torch.dtype, kind: str | None = None
) -> Any:
    """One component of a pipeline. Default for `kind`: `part`, the name of its folder.

    `DiffusionPipeline.from_pretrained` cannot load classes of other packages.
    """
    from spad.hub.loading import load_exactly

    kind = kind or part
    part_class = getattr(import_module(_CLASSES[kind][class_name]), class_name)
    with _no_bars():
        if kind in _WITH_WEIGHTS:
            try:
                loaded = load_exactly(part_class, folder / part, dtype=dtype, use_safetensors=True)
            except ValueError as error:
                raise _damaged(folder, f"{part} {error}") from error
            return loaded.eval()
        try:
            return part_class.from_pretrained(folder / part, local_files_only=True)
        # Libraries answer a config.json that makes no sense to them with any error.
        except Exception as error:
            raise _damaged(folder, f"{part} cannot be loaded: {first_line(error)}") from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """Context without the progress bars of diffusers and transformers: one for every part of a
    model would be in the way of what is said.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [m for m in (diffusers_logging, transformers_logging) if m.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()


def _class_names(folder: Path) -> dict[str, str]:
    """Class names of the components, from `model_index.json`.

    Raises: ValueError: one is missing or not allowed.
    """
    index = read_json(folder / INDEX, dict)
    names = {}
    for part, allowed in _CLASSES.items():
        entry = index.get(part)
        if part in _OPTIONAL and entry in (None, [None, None]):
            continue
        name = None
        if isinstance(entry, list) and [type(part) for part in entry] == [str, str]:
            name = current_class(*entry)[1]
        if name is None or name not in allowed:
            raise ValueError(
                f"{folder / 'model_index.json'}: expected {part} to be {' or '.join(allowed)}, "
                f"got {name}"
            )
        names[part] = name
    return names


def _prompt_prefix(folder: Path) -> str:
    prefix = read_json(folder / INDEX, dict).get("prompt_prefix", "")
    return prefix if isinstance(prefix, str) else ""


def _check_safetensors(folder: Path, file: Path) -> None:
    """Check the header of a safetensors file, and that the file has the length that it says."""
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
    return ValueError(
        f"expected a complete model in {folder}, but {what}; install or copy it again"
    )
