"""Estimates of a run's parameters, memory, disk and time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from spad.files import free_space
from spad.training.config import TrainConfig
from spad.training.run import CHECKPOINTS

_FLOAT32 = 4
# float32 numbers of optimizer state per parameter.
_OPTIMIZER_STATE = {"muon": 1.0, "adamw": 2.0, "adamw-8bit": 0.5, "adafactor": 0.01}


@dataclass(frozen=True)
class Sizes:
    """Parameters and bytes of a model in training, on one device without FSDP.

    Attributes:
        trainable, frozen: numbers of parameters; frozen ones include the autoencoder.
        resident: weights, gradients, optimizer and average, without activations.
        checkpoint: one checkpoint.
        model: the saved model.
    """

    trainable: int
    frozen: int
    resident: int
    checkpoint: int
    model: int


def state_numbers(settings: TrainConfig) -> float:
    """float32 numbers kept for every trained weight: itself, the optimizer's, its average."""
    has_average = settings.optimizer.ema_decay > 0
    return 1 + _OPTIMIZER_STATE[settings.optimizer.optimizer] + has_average


def sizes(denoiser: nn.Module, vae: nn.Module, settings: TrainConfig) -> Sizes:
    """Sizes from the numbers of parameters and the optimizer's state per parameter."""
    parameters = [*denoiser.parameters(), *vae.parameters()]
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    frozen_bytes = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    kept = state_numbers(settings)
    saved = 2 if settings.record.save_dtype == "float16" else 4
    return Sizes(
        trainable=trainable,
        frozen=total - trainable,
        resident=int(frozen_bytes + _FLOAT32 * (1 + kept) * trainable),
        checkpoint=int(_FLOAT32 * kept * trainable),
        model=saved * total,
    )


def disk_needed(sizes: Sizes, settings: TrainConfig) -> int:
    """Peak bytes of a run folder: a new checkpoint is written before an old one is deleted."""
    return (settings.record.keep_last + 1) * sizes.checkpoint + 2 * sizes.model


def check_space(sizes: Sizes, settings: TrainConfig) -> None:
    """Raises: ValueError: the disk lacks space for the run."""
    folder = settings.run_folder.absolute()
    held = sum(p.stat().st_size for p in (folder / CHECKPOINTS).glob("*.pt"))
    needed = disk_needed(sizes, settings) - held
    free, keep_last = free_space(folder), settings.record.keep_last
    if free < needed:
        raise ValueError(
            f"expected {needed / 1e9:.1f} GB of free disk for {keep_last} checkpoints "
            f"of {sizes.checkpoint / 1e9:.1f} GB, one more being written and the model, got "
            f"{free / 1e9:.1f} GB in {settings.run_folder}; make room, or try --keep-last 1"
        )


def duration(seconds: float) -> str:
    """Readable duration: "40 s", "25 min", "3.5 h" or "12 days"."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
