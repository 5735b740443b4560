"""Data types of networks, and checks that their weights are finite numbers. Needs only torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_finite(value: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; without a copy of it."""
    if not value.is_floating_point() or not value.numel():
        return True
    # NaN spreads to both.
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(value))


def check_finite(module: nn.Module, what: str) -> None:
    """Raises: ValueError: a weight or buffer is NaN or infinite; `what` names the module."""
    for name, value in module.state_dict().items():
        if not is_finite(value):
            raise ValueError(f"expected finite weights of {what}, got NaN or infinity in {name}")


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert a module in place.

    Not by the method of diffusers, which warns of layers that are to stay in float32, even if there
    are none.
    """
    nn.Module.to(module, dtype=dtype)


def convert_weights(module: nn.Module, dtype: torch.dtype, what: str) -> None:
    """Convert a module to a data type in place.

    Raises: ValueError: a weight is not finite, or too large for the type; `what` names the module.
    """
    check_finite(module, what)
    cast(module, dtype)
    for name, value in module.state_dict().items():
        if not is_finite(value):
            raise ValueError(
                f"expected weights of {what} within the range of {dtype}, got more in {name}; "
                "try float32"
            )
