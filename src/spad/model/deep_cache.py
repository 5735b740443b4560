"""DeepCache: reuse the UNet's deep features over several denoising steps."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from threading import Lock
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

_entered: ContextVar[DeepFeatureCache | None] = ContextVar("entered", default=None)
_lock = Lock()


class DeepFeatureCache:
    """Context manager: run the UNet's deep blocks only on every `interval`-th step.

    The steps between run only the finest level, on the deep features of an earlier step, which
    change slowly. An interval of 1 changes nothing. Call `begin` before each step. Threads may
    share a UNet: each reuses only its own features.

    Raises: ValueError: the interval is below 1.

    Source: DeepCache (Ma et al., CVPR 2024), with whole blocks.
    """

    def __init__(self, unet: UNet2DConditionModel, interval: int):
        if interval < 1:
            raise ValueError(f"expected a cache interval of 1 or more steps, got {interval}")
        self.interval = interval
        # All but the finest level, which is first on the way down and last on the way up.
        deep = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
        self.blocks: list[Any] = deep if interval > 1 else []
        self.reuse = False
        self.features: dict[nn.Module, Any] = {}
        self._before: Token | None = None

    def begin(self, step: int) -> None:
        """Begin the denoising step of this number, from 0."""
        self.reuse = step % self.interval != 0

    def __enter__(self) -> DeepFeatureCache:
        self._before = _entered.set(self)
        with _lock:
            for block in self.blocks:
                if not isinstance(block.forward, _CachedForward):
                    block.forward = _CachedForward(block)
                block.forward.num_caches += 1
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            for block in self.blocks:
                block.forward.leave()
        assert self._before is not None
        _entered.reset(self._before)
        self.features.clear()


class _CachedForward:
    """The forward of a block while caches are entered: as the calling thread's cache says."""

    def __init__(self, block: Any):
        self.block, self.forward, self.num_caches = block, block.forward, 0
        # Hooks of other libraries, such as accelerate's, put a forward of their own in its place.
        self.own: Callable | None = vars(block).get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = _entered.get()
        if cache is None or self.block not in cache.blocks:
            return self.forward(*args, **kwargs)
        if not cache.reuse:
            cache.features[self.block] = self.forward(*args, **kwargs)
        return cache.features[self.block]

    def leave(self) -> None:
        """Restore the former forward when the last cache is left."""
        self.num_caches -= 1
        if self.num_caches == 0 and self.own is None:
            del self.block.forward
        elif self.num_caches == 0:
            self.block.forward = self.own
