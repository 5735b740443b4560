"""Choice of float32 or bfloat16 for a training on a processor, by a trial."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from spad.model.precision import has_fast_bfloat16

# bfloat16 is less exact, so it must be faster by this factor.
_WORTH = 1.1
_REPEATS = 2


def choose_precision(device: torch.device, step: Callable[[], object]) -> tuple[str, str]:
    """Mixed precision for a device, "bf16" or "no", and why.

    Args:
        device: of the training.
        step: a forward and backward pass on it; tried in both precisions where a processor has
            instructions for bfloat16, since memory and layers decide what they bring.
    """
    if not has_fast_bfloat16(device):
        return "no", f"this {_name(device)} has no instructions for bfloat16"
    if device.type != "cpu":
        return "bf16", f"this {_name(device)} has instructions for bfloat16"
    plain, mixed = (_seconds(device, step, is_mixed) for is_mixed in (False, True))
    times = f"a trial took {mixed:.2g} s in bfloat16, {plain:.2g} s in float32"
    return ("bf16" if plain > _WORTH * mixed else "no"), times


def _seconds(device: torch.device, step: Callable[[], object], is_mixed: bool) -> float:
    """The shortest time of a few tries, after one that makes ready."""
    times = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
            step()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _name(device: torch.device) -> str:
    return {"cpu": "processor", "cuda": "GPU"}.get(device.type, device.type)
