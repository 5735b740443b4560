"""Runs stop, resume and refuse as promised; a resumed run is the run that never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from spad.data.seeds import seeded
from spad.files import exclusive
from spad.training.run import Interrupted, TrainingRun, learning_rate_factor


class Walk:
    """A little thing to train: noise adds up in a tensor."""

    def __init__(self, folder, total_steps=30, save_every_s=180.0, **settings):
        self.model = torch.nn.Linear(3, 2)
        torch.nn.init.zeros_(self.model.weight)
        self.stop_at = None
        self.run = TrainingRun(
            folder,
            {"model": self.model},
            {"rate": 0.1} | settings,
            total_steps,
            save_every_s,
            log_every=5,
            may_change=("workers",),
        )

    def step(self, step: int) -> dict[str, float]:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        noise = torch.randn(2, 3, generator=seeded(0, step))
        self.model.weight.data.add_(noise)
        return {"loss": float(self.model.weight.detach().abs().mean())}

    def go(self, **hooks) -> None:
        with self.run.opened() as start:
            self.run.run(hooks.pop("step", self.step), start, **hooks)


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole = Walk(tmp_path / "whole")
    whole.go()
    stopped = Walk(tmp_path / "stopped")
    stopped.stop_at = 11
    with pytest.raises(Interrupted, match="step 12 of 30"):
        stopped.go()
    table = tmp_path / "stopped" / "loss.csv"
    assert [line.split(",")[0] for line in table.read_text().split()] == ["step", "5", "10", "12"]
    resumed = Walk(tmp_path / "stopped")
    resumed.go()
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert table.read_text() == (tmp_path / "whole" / "loss.csv").read_text()


def test_killed_between_checkpoints_it_goes_on_from_the_last(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from pathlib import Path
        from test_run import Walk
        walk = Walk(Path({str(tmp_path / "run")!r}), save_every_s=0)
        def step(number):
            if number == 17:
                os.kill(os.getpid(), signal.SIGKILL)
            return walk.step(number)
        walk.go(step=step)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    resumed, whole = Walk(tmp_path / "run"), Walk(tmp_path / "whole")
    resumed.go()
    whole.go()
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert (tmp_path / "run" / "loss.csv").read_text() == (tmp_path / "whole/loss.csv").read_text()


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "code"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, caplog):
    stopped, whole = Walk(tmp_path / "run", save_every_s=0), Walk(tmp_path / "whole")
    stopped.stop_at = 11
    with pytest.raises(Interrupted):
        stopped.go()
    newest = tmp_path / "run" / "checkpoints" / "step-00000012.pt"
    (newest.parent / "step-final.pt").write_text("a file of the user")
    if damage == "other":
        torch.save({"step": 12}, newest)
    elif damage == "code":
        torch.save({"step": Walk}, newest)
    else:
        newest.write_bytes(newest.read_bytes()[: 700 if damage == "cut" else 0])
    resumed = Walk(tmp_path / "run")
    resumed.go()
    whole.go()
    assert str(newest) in caplog.text
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert (tmp_path / "run" / "loss.csv").read_text() == (tmp_path / "whole/loss.csv").read_text()
    for file in newest.parent.glob("step-0*.pt"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="checkpoints: expected a whole checkpoint, got only"):
        Walk(tmp_path / "run").go()


def test_a_milestone_that_a_kill_prevented_is_made_up_for(tmp_path):
    seen = []
    walk = Walk(tmp_path, save_every_s=0)

    def killed(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk.go(milestone_every=8, on_checkpoint=killed)
    Walk(tmp_path).go(milestone_every=8, on_checkpoint=seen.append)
    assert seen == [8, 16, 24, 30]


def test_the_last_checkpoints_are_kept_and_no_others(tmp_path):
    walk = Walk(tmp_path, save_every_s=0)
    walk.go()
    assert checkpoints(tmp_path) == ["step-00000029.pt", "step-00000030.pt"]


def test_milestones_come_as_often_as_asked_and_at_the_end(tmp_path):
    seen = []
    walk = Walk(tmp_path)

    def newest() -> str:
        return walk.run.newest().name

    walk.go(
        milestone_every=8, on_checkpoint=lambda done: seen.append((done, walk.run.newest().name))
    )
    assert seen == [(n, f"step-{n:08d}.pt") for n in (8, 16, 24, 30)]
    # Once more, for those who lost the model: nothing is trained.
    walk.go(step=lambda _: pytest.fail("trained"), on_checkpoint=lambda done: seen.append(done))
    assert seen[-1] == 30


def test_other_settings_are_named_and_refused(tmp_path, caplog):
    Walk(tmp_path).go()
    with pytest.raises(ValueError, match=r"rate: 0.1 -> 0.2"):
        Walk(tmp_path, rate=0.2).go()
    caplog.set_level("INFO", "spad")
    Walk(tmp_path, workers=3).go()
    assert "workers: None -> 3" in caplog.text
    assert json.loads((tmp_path / "settings.json").read_text())["workers"] == 3


def test_a_run_of_an_earlier_version_had_the_default_of_what_is_new(tmp_path):
    walk = Walk(tmp_path)
    walk.stop_at = 7
    with pytest.raises(Interrupted):
        walk.go()
    newer = Walk(tmp_path, sizes=[1, 2])
    with pytest.raises(ValueError, match=r"got others \(sizes: None -> \[1, 2\]\)"):
        newer.go()
    newer.run.defaults = {"sizes": (3, 4), "output": None}
    with pytest.raises(ValueError, match=r"got others \(sizes: \[3, 4\] -> \[1, 2\]\)"):
        newer.go()
    newer.run.defaults = {"sizes": (1, 2), "output": None}
    newer.go()
    assert newer.run.steps_done == 30


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="another --output"):
        Walk(tmp_path).go()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="got the file"):
        Walk(tmp_path / "thesis.tex").go()


def test_one_process_trains_in_a_folder(tmp_path):
    Walk(tmp_path).go()
    with exclusive(tmp_path), pytest.raises(ValueError, match="another command is"):
        Walk(tmp_path).go()


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_a_bad_number_stops_the_run_and_keeps_the_checkpoint(tmp_path, name):
    walk = Walk(tmp_path, save_every_s=0)
    with pytest.raises(FloatingPointError, match=rf"{name} .*step 7.*step-00000007\.pt"):
        walk.go(step=lambda step: walk.step(step) | ({name: float("nan")} if step == 7 else {}))
    assert torch.load(walk.run.newest(), weights_only=True)["step"] == 7


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    walk = Walk(tmp_path, save_every_s=0)
    save = torch.save

    def full(state, path):
        save(state, path)
        if state["step"] == 9:
            raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"step 9, .*last good checkpoint is .*step-00000008\.pt"):
        walk.go()
    assert checkpoints(tmp_path) == ["step-00000007.pt", "step-00000008.pt"]
    monkeypatch.undo()
    resumed, whole = Walk(tmp_path), Walk(tmp_path / "whole")
    resumed.go()
    whole.go()
    assert torch.equal(resumed.model.weight, whole.model.weight)


@pytest.mark.parametrize("cut", ["", "step,lo", "step,loss\n1"])
def test_a_loss_table_that_a_kill_cut_short_is_gone_on_with(tmp_path, cut):
    walk = Walk(tmp_path)
    walk.go()
    whole = (tmp_path / "loss.csv").read_text()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "loss.csv").write_text(cut)
    Walk(tmp_path).go()
    assert (tmp_path / "loss.csv").read_text().splitlines() == whole.splitlines()


@pytest.mark.parametrize("row", ["x,1", "1,x", "1", "1,2,3", "-,1"])
def test_a_malformed_loss_table_is_named(tmp_path, row):
    Walk(tmp_path).go()
    with open(tmp_path / "loss.csv", "a") as file:
        file.write(f"{row}\n")
    with pytest.raises(ValueError, match=r"loss\.csv, line \d+: expected numbers of step, loss"):
        Walk(tmp_path).go()


def test_a_malformed_record_is_named(tmp_path):
    Walk(tmp_path).go()
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match=r"settings\.json: expected an object, got \[\]"):
        Walk(tmp_path).go()


def test_learning_rate_warms_up_and_falls():
    rates = [learning_rate_factor("cosine", step, 10, 100) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.02 <= rates[-1] < 0.03
    assert [learning_rate_factor("constant", step, 4, 9) for step in (0, 3, 8)] == [0.25, 1.0, 1.0]
    cooldown = [learning_rate_factor("cooldown", step, 10, 100) for step in range(100)]
    assert cooldown[:10] == rates[:10] and set(cooldown[10:76]) == {1.0}
    assert cooldown[75:] == sorted(cooldown[75:], reverse=True)
    # A quarter of the way down, 1 - sqrt(1 / 4); at the end next to nothing.
    assert cooldown[81] == pytest.approx(1 - (6 / 25) ** 0.5) and 0 < cooldown[-1] < 0.03


def test_steps_draw_different_numbers():
    draws = {
        float(torch.rand((), generator=seeded(seed, step)))
        for seed in range(3)
        for step in range(50)
    }
    assert len(draws) == 150
