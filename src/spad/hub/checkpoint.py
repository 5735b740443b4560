"""Read checkpoints of any origin: memory-mapped, without running code that they may hold."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from spad.files import first_line

# Packages whose objects training frameworks save beside the weights. They are replaced by empty
# objects; a file with objects of other packages is refused.
_HARMLESS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "typing.")


class _Foreign(ValueError):
    """A checkpoint is whole, but has code, or no weights."""


class _Inert:
    """Empty stand-in for an object whose class is not loaded."""

    def __init__(self, *_args: object, **_kwargs: object):
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Weights of a `.ckpt`, `.pt` or `.safetensors` file by name, memory-mapped.

    Raises: ValueError: the file is missing, cut short, no checkpoint, or holds code.
    """
    if not path.is_file():
        raise ValueError(f"expected a checkpoint file, got {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _state_dict(_load_pickle(path), path)
    except _Foreign:
        raise
    # Any error may come out of a damaged pickle or archive.
    except Exception as error:
        # torch's own message advises weights_only=False, which would run code; do not repeat it.
        is_pickle = isinstance(error, pickle.UnpicklingError)
        reason = "not a pickle of weights" if is_pickle else first_line(error)
        raise ValueError(
            f"expected a complete checkpoint, got {path}, which is cut short or of another kind "
            f"({reason})"
        ) from error


def _load_pickle(path: Path) -> object:
    # Files of torch before 1.6 are plain pickles, which cannot be memory-mapped.
    is_zip = zipfile.is_zipfile(path)
    stand_ins: list[Callable | tuple[Callable, str]] = []
    if is_zip:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        for name in foreign:
            if not name.startswith(_HARMLESS):
                raise _Foreign(
                    f"{path} holds code ({name}), which is not run; expected weights alone, as a "
                    "state_dict or a Lightning checkpoint"
                )
        stand_ins = [(_Inert, name) for name in foreign]
    with torch.serialization.safe_globals(stand_ins):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as error:
            if "GLOBAL" not in str(error):
                raise
            raise _Foreign(
                f"{path} holds code, which is not run; expected weights alone, as a state_dict or "
                "a Lightning checkpoint"
            ) from error


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise _Foreign(f"expected a checkpoint with weights, got {path}, which has none")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
