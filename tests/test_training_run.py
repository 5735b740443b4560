"""Runs stop, resume and refuse as promised; a resumed run is the run that never stopped."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from spad.training_run import (
    Interrupted,
    TrainingRun,
    step_generator,
    warmup_cosine,
    write_atomically,
)


class Walk:
    """A little thing to train: noise adds up in a tensor."""

    def __init__(self, folder, total_steps=30, **settings):
        self.model = torch.nn.Linear(3, 2)
        torch.nn.init.zeros_(self.model.weight)
        self.stop_at = None
        self.run = TrainingRun(
            folder, {"model": self.model}, {"rate": 0.1} | settings, total_steps, 180.0, 5
        )

    def step(self, step: int) -> dict[str, float]:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        noise = torch.randn(2, 3, generator=step_generator(0, step))
        self.model.weight.data.add_(noise)
        return {"loss": float(self.model.weight.detach().abs().mean())}


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole = Walk(tmp_path / "whole")
    whole.run.run(whole.step)
    stopped = Walk(tmp_path / "stopped")
    stopped.stop_at = 11
    with pytest.raises(Interrupted, match="step 12 of 30"):
        stopped.run.run(stopped.step)
    resumed = Walk(tmp_path / "stopped")
    resumed.run.run(resumed.step)
    assert torch.equal(resumed.model.weight, whole.model.weight)
    steps = [line.split(",")[0] for line in (tmp_path / "stopped/loss.csv").read_text().split()]
    assert steps == ["step", "5", "10", "15", "20", "25", "30"]


def test_killed_between_checkpoints_it_goes_on_from_the_last(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from test_training_run import Walk
        walk = Walk(Path({str(tmp_path)!r}))
        walk.run.save_every_s = 0
        def step(number):
            if number == 17:
                os.kill(os.getpid(), signal.SIGKILL)
            return walk.step(number)
        walk.run.run(step)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    resumed, whole = Walk(tmp_path), Walk(tmp_path / "whole")
    resumed.run.run(resumed.step)
    whole.run.run(whole.step)
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_other_settings_are_named_and_refused(tmp_path):
    first = Walk(tmp_path)
    first.run.run(first.step)
    other = Walk(tmp_path, rate=0.2)
    with pytest.raises(ValueError, match=r"rate: 0.1 -> 0.2"):
        other.run.run(other.step)


def test_a_bad_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    walk = Walk(tmp_path)
    walk.run.save_every_s = 0
    with pytest.raises(FloatingPointError, match="step 7.*checkpoint"):
        walk.run.run(lambda step: {"loss": float("nan") if step == 7 else walk.step(step)["loss"]})
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 7


def test_finished_runs_export_again_and_train_no_more(tmp_path):
    first = Walk(tmp_path)
    first.run.run(first.step)
    again, exported = Walk(tmp_path), []
    again.run.run(lambda step: pytest.fail("trained"), after_save=exported.append)
    assert exported == [30]
    assert torch.equal(again.model.weight, first.model.weight)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def write(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, write)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"


def test_learning_rate_warms_up_and_falls():
    rates = [warmup_cosine(step, 10, 100) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.02 <= rates[-1] < 0.03


def test_steps_draw_different_numbers():
    draws = {
        float(torch.rand((), generator=step_generator(seed, step)))
        for seed in range(3)
        for step in range(100)
    }
    assert len(draws) == 300
