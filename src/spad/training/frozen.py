"""Frozen weights of a training in the precision of its activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def narrow_frozen(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert the frozen weights of linear and convolutional layers; return them as they were.

    Mixed precision would convert them in every step, so results are the same, in half the memory.
    The originals, by name and on the CPU, are for the model that is saved.
    """
    originals = {}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for name, weight in layer.named_parameters(recurse=False):
                if not weight.requires_grad:
                    originals[f"{path}.{name}"] = weight.detach().cpu()
                    weight.data = weight.data.to(dtype)
    return originals
