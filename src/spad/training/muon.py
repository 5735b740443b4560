"""Muon optimizer: orthogonalized updates for weight matrices, AdamW for all other parameters.

Unlike PyTorch's, it accepts convolution kernels, computes in float32 (many CPUs only emulate bf16)
and processes all matrices of one shape at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, distributed, nn

# Coefficients of the quintic that maps singular values to about 1 (Jordan et al. 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# Scale of an update that matches the size of AdamW's (Liu et al. 2025).
_LIKE_ADAMW = 0.2
# Smaller matrices use AdamW.
_LEAST_SIDE = 16
# First and last layers and embedding tables are not maps between features. The time, camera and
# pooled text embeddings are, but are large and square: orthogonalizing them is not worth its cost.
_NOT_ORTHOGONAL = ("conv_in", "conv_out", "embeddings.", "_embedding.")


class Muon(torch.optim.AdamW):
    """AdamW, except that matrices are updated by the orthogonal factor of their mean gradient.

    Every direction of a matrix thus learns at the same rate, including those of rare words. A
    convolution kernel (o, i, h, w) is a matrix (o, i h w).

    Args:
        named: parameters by name; those of `is_matrix` get orthogonalized updates.
        options: AdamW's options for the others.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et
    al. 2025, "Muon is scalable for LLM training", for the scale of the update, which lets both
    kinds of parameters share AdamW's learning rate and weight decay.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], lr: float, momentum: float = 0.95, **options: Any
    ):
        matrices = [p for name, p in named.items() if is_matrix(name, p)]
        others = [p for name, p in named.items() if not is_matrix(name, p)]
        groups = [
            {"params": parameters, "orthogonal": orthogonal}
            for parameters, orthogonal in ((others, False), (matrices, True))
            if parameters
        ]
        self.momentum = momentum
        super().__init__(groups, lr, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW's version expects its own state for every parameter.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all parameters that have a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: Mapping[str, Any]) -> None:
        moved = [p for p in group["params"] if p.grad is not None]
        shapes = groupby(sorted(moved, key=_shape), key=_shape)
        for turn, ((rows, columns), same) in enumerate(shapes):
            parameters = list(same)
            steps = _divided(torch.stack([self._direction(p) for p in parameters]), turn)
            size = group["lr"] * _LIKE_ADAMW * max(rows, columns) ** 0.5
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(step.view_as(parameter), alpha=size)

    def _direction(self, parameter: nn.Parameter) -> Tensor:
        """Gradient with Nesterov momentum, (o, i)."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["average"] = torch.zeros_like(parameter)
        average = state["average"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum).flatten(1)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix between features that gets orthogonalized updates."""
    if parameter.ndim < 2 or any(part in name for part in _NOT_ORTHOGONAL):
        return False
    return min(_shape(parameter)) >= _LEAST_SIDE


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, o, i) with their singular values mapped to between 0.7 and 1.2.

    Newton-Schulz iteration. Each iteration multiplies by a polynomial of the Gram matrix; their
    product is formed on the shorter side, and multiplied with the matrices once.
    """
    a, b, c = _COEFFICIENTS
    scaled = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    is_tall = scaled.shape[-2] > scaled.shape[-1]
    wide = scaled.mT if is_tall else scaled
    gram = wide @ wide.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    product = identity
    for turn in range(_ITERATIONS):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product if turn else factor
        if turn < _ITERATIONS - 1:
            gram = factor @ gram @ factor
    result = product @ wide
    return result.mT if is_tall else result


def _divided(matrices: Tensor, turn: int) -> Tensor:
    """`orthogonal`, each matrix by one of the processes of a training; these have the same ones.

    Args:
        turn: number of these matrices among those of other shapes, so that all processes work.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return orthogonal(matrices)
    count, rank = distributed.get_world_size(), distributed.get_rank()
    own = [index for index in range(len(matrices)) if (index + turn) % count == rank]
    result = torch.zeros_like(matrices)
    if own:
        result[own] = orthogonal(matrices[own])
    # All other processes add zeros.
    distributed.all_reduce(result)
    return result


def _shape(parameter: Tensor) -> tuple[int, int]:
    return len(parameter), parameter[0].numel()
