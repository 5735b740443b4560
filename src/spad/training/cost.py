"""What a run costs: parameters, memory, disk, time. Told before it is paid."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from spad.training.config import TrainConfig
from spad.training.run import CHECKPOINTS

_FLOAT32 = 4
# Numbers that an optimiser keeps for each parameter, in units of one float32.
_OPTIMIZER_STATE = {"muon": 1.0, "adamw": 2.0, "adamw-8bit": 0.5, "adafactor": 0.01}


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model in training, on one device without FSDP.

    Attributes:
        learned, frozen: numbers of parameters; the autoencoder is among the frozen ones.
        resident: weights, gradients, optimiser and average; activations come on top.
        checkpoint: one checkpoint.
        model: the saved model.
    """

    learned: int
    frozen: int
    resident: int
    checkpoint: int
    model: int


def sizes(denoiser: nn.Module, vae: nn.Module, settings: TrainConfig) -> Sizes:
    """From the numbers of parameters and what the optimiser keeps of each."""
    parameters = [*denoiser.parameters(), *vae.parameters()]
    learned = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    kept = 1 + _OPTIMIZER_STATE[settings.optimizer] + (settings.ema_decay > 0)
    saved = 2 if settings.save_dtype == "float16" else 4
    return Sizes(
        learned=learned,
        frozen=total - learned,
        resident=int(_FLOAT32 * (total - learned + (1 + kept) * learned)),
        checkpoint=int(_FLOAT32 * kept * learned),
        model=saved * total,
    )


def disk_needed(sizes: Sizes, settings: TrainConfig) -> int:
    """Bytes that a run's folder grows to: a new checkpoint is written before an old one goes."""
    return (settings.keep_last + 1) * sizes.checkpoint + 2 * sizes.model


def check_space(sizes: Sizes, settings: TrainConfig) -> None:
    """Raises: ValueError: the disk has not the space that the run will need."""
    folder = settings.run_folder.absolute()
    held = sum(p.stat().st_size for p in (folder / CHECKPOINTS).glob("*.pt"))
    needed = disk_needed(sizes, settings) - held
    free = _free(folder)
    if free < needed:
        raise ValueError(
            f"expected {needed / 1e9:.1f} GB of free disk for {settings.keep_last} checkpoints of "
            f"{sizes.checkpoint / 1e9:.1f} GB, one on its way and the model, got "
            f"{free / 1e9:.1f} GB in {settings.run_folder}; make space, or try --keep-last 1"
        )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def duration(seconds: float) -> str:
    """For people: "40 s", "25 min", "3.5 h", "12 days"."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
