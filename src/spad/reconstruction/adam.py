"""Adam without `torch.optim`, whose first use takes seconds: it loads a compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Adam:
    """Adam for a few tensors with a learning rate each, all in place.

    Source: Kingma and Ba 2015, algorithm 1.
    """

    def __init__(self, tensors: Sequence[Tensor], betas: tuple[float, float] = (0.9, 0.99)):
        self._tensors, self._betas, self._steps = list(tensors), betas, 0
        self._means = [torch.zeros_like(tensor) for tensor in tensors]
        self._squares = [torch.zeros_like(tensor) for tensor in tensors]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Sequence[float]) -> None:
        """Move every tensor against its gradient, by about its rate."""
        self._steps += 1
        first, second = self._betas
        moments = zip(self._tensors, gradients, rates, self._means, self._squares, strict=True)
        for tensor, gradient, rate, mean, square in moments:
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            root = (square / (1 - second**self._steps)).sqrt_().add_(1e-8)
            tensor.addcdiv_(mean, root, value=-rate / (1 - first**self._steps))

    def state(self) -> dict[str, Tensor]:
        """What later steps depend on, beside their number."""
        moments = {"mean": self._means, "square": self._squares}
        return {f"{name}-{i}": x for name, xs in moments.items() for i, x in enumerate(xs)}

    def load(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Go on after `steps` steps."""
        self._steps = steps
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
