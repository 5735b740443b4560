"""Runs of several processes, killed ones and resumed ones end where a plain run ends."""

import csv
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from spad.cli import main
from spad.hub.registry import load_model
from spad.training.train import train
from train_settings import changed

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def arguments(settings, output: Path) -> list[str]:
    """The command line of a run like `settings`."""
    said = [
        *("train", "--data", settings.data, "--output", output, "--vae", settings.vae),
        *("--steps", settings.optimizer.steps, "--views", *settings.batch.views),
        *("--batch-size", settings.batch.batch_size, "--block-out-channels", 32, 32),
        *("--text-width", 64, "--warmup-steps", 1, "--device", "cpu", "--trackers"),
        *("--save-every-s", 0, "--log-every", 1, "--sample-every", 0, "--save-dtype", "float32"),
    ]
    return list(map(str, said))


def run_python(*words: str, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    pipeline = load_model(folder, dtype=torch.float32)
    return pipeline.unet.state_dict() | pipeline.text_encoder.state_dict()


def losses(run: Path) -> list[float]:
    with (run / "loss.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture
def settings(training):
    return changed(training, views=(1, 2), steps=5)


def test_two_processes_learn_what_one_learns(settings, tmp_path):
    """Equal but for the order of sums; and a run of both goes on from a checkpoint of both.

    The same two processes make a run whose model both hold, and one whose model they share, stopped
    and lengthened: to start them takes most of the time.
    """
    settings = changed(settings, lr_schedule="constant")
    sharing = changed(settings, output=tmp_path / "adamw", optimizer="adamw")
    one = [train(settings), train(sharing)]
    rate = ["--lr-schedule", "constant"]
    shared = [*rate, "--fsdp", "--optimizer", "adamw"]
    two = [tmp_path / "ddp", tmp_path / "fsdp"]
    commands = [
        arguments(settings, two[0]) + rate,
        arguments(changed(sharing, steps=3), two[1]) + shared,
        arguments(sharing, two[1]) + shared,
    ]
    script = tmp_path / "train.py"
    # A port for each run: torchrun's own still has the addresses of the run before.
    script.write_text(
        "import os\n"
        "from accelerate.state import AcceleratorState\n"
        "from spad.cli import main\n"
        "os.environ['TORCHELASTIC_USE_AGENT_STORE'] = 'False'\n"
        f"for port, command in zip({free_ports(len(commands))!r}, {commands!r}):\n"
        "    os.environ['MASTER_PORT'] = str(port)\n"
        "    AcceleratorState._reset_state(reset_partial_state=True)\n"
        "    assert main(command) == 0\n"
    )
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    done = run_python(*torchrun, str(script))
    assert done.returncode == 0, done.stderr[-3000:]
    models = [two[0] / "model", two[1] / "model", two[1] / "model"]
    assert done.stdout.split() == list(map(str, models))
    for expected, found in zip(one, models[:2], strict=True):
        assert losses(found.parent) == pytest.approx(losses(expected.parent), rel=1e-4)
        trained = weights(found)
        for name, weight in weights(expected).items():
            # AdamW divides by a gradient's size: where that is next to nothing, rounding shows.
            torch.testing.assert_close(trained[name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_a_killed_and_resumed_run_gives_the_weights_of_one_never_stopped(settings, tmp_path):
    whole = weights(train(settings))
    killed = changed(settings, output=tmp_path / "killed")
    at = random.randrange(1, settings.optimizer.steps)
    script = (
        "import os, signal\n"
        "from pathlib import Path, PosixPath, WindowsPath\n"
        "from spad.training.config import *\n"
        "import spad.training.train as t\n"
        "step = t.Trainer.train_step\n"
        "def killed(self, number):\n"
        f"    if number == {at}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, number)\n"
        "t.Trainer.train_step = killed\n"
        f"t.train({killed!r})\n"
    )
    done = run_python("-c", script)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    resumed = weights(train(killed))
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), f"{name}, killed at step {at}"
    assert losses(killed.run_folder) == losses(settings.run_folder)


def test_ctrl_c_saves_and_the_same_command_resumes(settings, tmp_path, capsys):
    whole = weights(train(settings))
    output = tmp_path / "stopped"
    command = arguments(settings, output)
    script = (
        "import os, signal, sys\n"
        "import spad.training.train as t\n"
        "from spad.cli import main\n"
        "step = t.Trainer.train_step\n"
        "def stopped(self, number):\n"
        "    if number == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return step(self, number)\n"
        "t.Trainer.train_step = stopped\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.exit(main({command!r}))\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 130, done.stderr[-3000:]
    assert "stopped at step 3 of 5, saved; resume with the same command" in done.stderr
    assert (output / "model" / "README.md").is_file()
    assert main(command) == 0 and "resuming" in capsys.readouterr().err
    for name, weight in weights(output / "model").items():
        assert torch.equal(weight, whole[name]), name
