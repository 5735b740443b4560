"""Checkpoint parts, gathered from all processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from spad.data.dataset import ShardDataset
from spad.training.batches import Batch, object_batches
from spad.training.build import Denoiser

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def full_tensor(value: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, which all must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _fill(target: Tensor, source: Tensor) -> None:
    if isinstance(target, DTensor):
        source = distribute_tensor(
            source.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(source)


class TrainableWeights:
    """Trainable weights by name; frozen ones are those of the model that training starts from."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> unsharded weight."""
        return {name: full_tensor(p.detach()) for name, p in self.denoiser.trainable().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises: ValueError: the names are not those of this model."""
        trainable = self.denoiser.trainable()
        if trainable.keys() != state.keys():
            name = sorted(trainable.keys() ^ state.keys())[0]
            where = "the model lacks" if name in state else "the checkpoint lacks"
            raise ValueError(
                f"expected a checkpoint of the same model, got another: {where} {name}"
            )
        for name, parameter in trainable.items():
            _fill(parameter, state[name])


class OptimizerState:
    """Optimizer state; that of a sharded optimizer is keyed by parameter names."""

    def __init__(self, denoiser: Denoiser, optimizer: torch.optim.Optimizer, is_sharded: bool):
        self.denoiser, self.optimizer, self.is_sharded = denoiser, optimizer, is_sharded

    def state_dict(self) -> dict[str, Any]:
        """Unsharded state."""
        if self.is_sharded:
            return get_optimizer_state_dict(self.denoiser, self.optimizer, options=_WHOLE)
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if self.is_sharded:
            set_optimizer_state_dict(self.denoiser, self.optimizer, dict(state), options=_WHOLE)
        else:
            self.optimizer.load_state_dict(dict(state))


class EMAState:
    """Averaged weights."""

    def __init__(self, ema: EMAModel):
        self.ema = ema

    def state_dict(self) -> dict[str, Any]:
        """State of `EMAModel` with unsharded weights."""
        state = self.ema.state_dict()
        return state | {"shadow_params": [full_tensor(w) for w in self.ema.shadow_params]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.ema.optimization_step = state["optimization_step"]
        for weight, saved in zip(self.ema.shadow_params, state["shadow_params"], strict=True):
            _fill(weight, saved)


class Stream:
    """Endless batches of a dataset, with the position after the last one."""

    def __init__(self, dataset: ShardDataset, num_workers: int, image_size: int):
        self.dataset, self.num_workers, self.image_size = dataset, num_workers, image_size
        self.batches: Iterator[tuple[Batch, int]] | None = None
        self.position: int | None = None

    def next(self) -> Batch:
        """The next batch of this process."""
        if self.batches is None:
            self.batches = object_batches(self.dataset, self.num_workers, self.image_size)
        batch, self.position = next(self.batches)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position in the dataset."""
        after = None if self.position is None else {"position": self.position}
        return self.dataset.state_dict(after)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position."""
        self.dataset.load_state_dict(state)
        self.batches, self.position = None, None
