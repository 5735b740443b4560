"""Steps that reuse what the deep blocks of a UNet gave a step or a few before."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn


class DeepFeatureCache:
    """While it is entered, a UNet computes its deep blocks on every `interval`-th step alone.

    On the steps between only the finest level runs, on the deep features of an earlier step, which
    change slowly. An interval of 1 changes nothing. Call `begin` before each step.

    Source: DeepCache (Ma et al., CVPR 2024), with whole blocks.
    """

    def __init__(self, unet: UNet2DConditionModel, interval: int):
        if interval < 1:
            raise ValueError(f"expected a cache interval of 1 or more steps, got {interval}")
        self.interval = interval
        # All but the finest level, which is first on the way down and last on the way up.
        self.blocks: list[nn.Module] = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
        self._reuse = False
        self._kept: dict[nn.Module, Any] = {}
        # Hooks of other libraries, such as accelerate's, put a forward of their own in its place.
        self._before: dict[nn.Module, Any] = {}

    def begin(self, step: int) -> None:
        """Say which step comes, from 0."""
        self._reuse = step % self.interval != 0

    def __enter__(self) -> DeepFeatureCache:
        if self.interval > 1:
            for block in self.blocks:
                self._before[block] = vars(block).get("forward")
                block.forward = self._remembering(block, block.forward)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for block, forward in self._before.items():
            if forward is None:
                del block.forward
            else:
                block.forward = forward
        self._before.clear()
        self._kept.clear()

    def _remembering(self, block: nn.Module, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self._reuse:
                self._kept[block] = forward(*args, **kwargs)
            return self._kept[block]

        return run
