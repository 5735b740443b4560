"""A training takes bfloat16 where it is there and faster, and keeps what it has."""

import time

import pytest
import torch

from spad.training import precision
from spad.training.precision import choose_precision
from spad.training.train import Trainer
from train_settings import changed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def never() -> None:
    raise AssertionError("tried without need")


def test_without_instructions_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: False)
    chosen, why = choose_precision(CPU, never)
    assert chosen == "no" and "processor has no instructions for bfloat16" in why


def test_a_gpu_that_has_them_uses_them(monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: True)
    assert choose_precision(GPU, never)[0] == "bf16"


@pytest.mark.parametrize(
    ("mixed_s", "plain_s", "chosen"), [(1, 2, "bf16"), (1, 1.05, "no"), (2, 1, "no")]
)
def test_a_processor_is_tried(monkeypatch, mixed_s, plain_s, chosen):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: True)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def step() -> None:
        clock[0] += mixed_s if torch.is_autocast_enabled("cpu") else plain_s

    found, why = choose_precision(CPU, step)
    assert found == chosen and f"{mixed_s:g} s in bfloat16" in why
    assert not torch.is_autocast_enabled("cpu")


def test_the_trial_leaves_nothing_behind_and_a_resumed_run_keeps_its_precision(
    training, monkeypatch
):
    settings = changed(training, mixed_precision="auto", steps=1)
    tried = []

    def choose(device, step):
        step()
        tried.append(torch.random.get_rng_state())
        return "bf16", "a trial"

    monkeypatch.setattr("spad.training.train.choose_precision", choose)
    trainer = Trainer(settings)
    assert trainer.settings.hardware.mixed_precision == "bf16" and len(tried) == 1
    assert all(p.grad is None for p in trainer.denoiser.parameters())
    with trainer.run().opened():
        pass
    again = Trainer(settings)
    assert again.settings.hardware.mixed_precision == "bf16" and len(tried) == 1
