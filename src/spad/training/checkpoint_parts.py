"""What a checkpoint holds beside the step: each part whole, however processes share it out."""

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
    """A tensor with the parts of all processes; each of them must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _fill(target: Tensor, source: Tensor) -> None:
    if isinstance(target, DTensor):
        source = distribute_tensor(
            source.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(source)


class LearnedWeights:
    """The weights that are trained, by name; frozen ones come from the model trained from."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> weight."""
        return {name: full_tensor(p.detach()) for name, p in self.denoiser.learned().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse; the names must be the same."""
        learned = self.denoiser.learned()
        if learned.keys() != state.keys():
            odd = sorted(learned.keys() ^ state.keys())[0]
            raise ValueError(f"expected a checkpoint of the same model, but {odd} is in one of two")
        for name, parameter in learned.items():
            _fill(parameter, state[name])


class OptimizerState:
    """An optimiser's state; shared out among processes it goes by the names of the weights."""

    def __init__(self, denoiser: Denoiser, optimizer: torch.optim.Optimizer, is_shared: bool):
        self.denoiser, self.optimizer, self.is_shared = denoiser, optimizer, is_shared

    def state_dict(self) -> dict[str, Any]:
        """As that of the optimiser."""
        if self.is_shared:
            return get_optimizer_state_dict(self.denoiser, self.optimizer, options=_WHOLE)
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        if self.is_shared:
            set_optimizer_state_dict(self.denoiser, self.optimizer, dict(state), options=_WHOLE)
        else:
            self.optimizer.load_state_dict(dict(state))


class AverageState:
    """The averaged weights."""

    def __init__(self, average: EMAModel):
        self.average = average

    def state_dict(self) -> dict[str, Any]:
        """That of `EMAModel`, with whole weights."""
        state = self.average.state_dict()
        return state | {"shadow_params": [full_tensor(w) for w in self.average.shadow_params]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        self.average.optimization_step = state["optimization_step"]
        for weight, saved in zip(self.average.shadow_params, state["shadow_params"], strict=True):
            _fill(weight, saved)


class Stream:
    """Batches from a dataset without end, and where in it the last one ended."""

    def __init__(self, dataset: ShardDataset, num_workers: int):
        self.dataset, self.num_workers = dataset, num_workers
        self.batches: Iterator[tuple[Batch, int]] | None = None
        self.position: int | None = None

    def next(self) -> Batch:
        """The next batch of this process."""
        if self.batches is None:
            self.batches = object_batches(self.dataset, self.num_workers)
        batch, self.position = next(self.batches)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where to go on."""
        after = None if self.position is None else {"position": self.position}
        return self.dataset.state_dict(after)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self.dataset.load_state_dict(state)
        self.batches, self.position = None, None
