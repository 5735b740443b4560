"""Training runs: a loop with a run folder, a loss table, checkpoints and exact resume.

A training step depends only on its number: its random generators are seeded by it, and the position
of its data stream is in the checkpoint. A resumed run therefore equals an uninterrupted one.
"""

import dataclasses
import json
import logging
import math
import os
import pickle
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from spad.data.workers import num_cores
from spad.files import (
    exclusive,
    free_space,
    json_text,
    read_json,
    read_text,
    short,
    size_text,
    whole_file,
    write_text,
)
from spad.settings import changes_since

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
SETTINGS = "settings.json"
RECORD = "record.json"
LOSSES = "loss.csv"
SAMPLES = "samples"
# Numbers of the steps since the last row of the loss table, in a checkpoint.
_SUMS = "sums"


def cooldown_start(total_steps: int) -> int:
    """First step at which the learning rate of a "cooldown" schedule falls."""
    return total_steps * 3 // 4


def learning_rate_factor(
    schedule: str, step: int, warmup_steps: int, total_steps: int, floor: float = 0.02
) -> float:
    """Factor of the learning rate: linear warm-up, then constant, "cosine" or "cooldown".

    "cosine" falls to `floor`. "cooldown" is constant up to the last quarter, then falls to 0 as
    1 - sqrt(progress) (Hägele et al. 2024).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "cooldown":
        start = cooldown_start(total_steps)
        return 1 - math.sqrt(max(0, step - start) / (total_steps - start))
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def hardware_record() -> dict[str, str]:
    """Hardware and versions of this process."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "hardware": f"{name or platform.machine()}, {num_cores()} CPU cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def settings_record(settings: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Settings as JSON values by name, those of nested dataclasses at the same level.

    Paths are cut to their last two components so that records do not reveal local directories.
    """
    record = {}
    for one in dataclasses.fields(settings):
        name, value = one.name, getattr(settings, one.name)
        if dataclasses.is_dataclass(value):
            record |= settings_record(value, without)
        elif name not in without:
            # A model is a name or a folder.
            if isinstance(value, str) and os.sep in value and Path(value).exists():
                value = Path(value)
            record[name] = "/".join(value.parts[-2:]) if isinstance(value, Path) else value
    return json.loads(json.dumps(record))


@dataclass(frozen=True)
class RunRecord:
    """The contents of `record.json` of a run folder."""

    steps: int
    seconds: float
    hardware: str
    torch: str
    rest: dict[str, Any]


def read_losses(path: Path) -> tuple[list[str], list[list[str]]]:
    """Names and rows of a loss table, without a last line that a kill cut short.

    Raises: ValueError: a cell is no number, a row has too many or too few of them.
    """
    lines = read_text(path, most=1 << 30).replace("\r\n", "\n").split("\n")[:-1]
    names, *rows = [line.split(",") for line in lines] or [[]]
    for number, row in enumerate(rows, start=2):
        try:
            _ = int(row[0]), *map(float, filter(None, row[1:]))
            is_row = len(row) == len(names)
        except ValueError:
            is_row = False
        if not is_row:
            raise ValueError(
                f"{path}, line {number}: expected numbers of {', '.join(names)}, got {short(row)}"
            )
    return names, rows


class Interrupted(Exception):
    """Training was stopped by Ctrl-C or SIGTERM, after saving a checkpoint."""


@dataclass
class TrainingRun:
    """A training loop in a folder: `settings.json`, `record.json`, `loss.csv`, `checkpoints/`.

    A folder with checkpoints is resumed from the newest whole one. Its settings must equal
    `settings`, except those in `may_change`. One that an earlier version did not have has its
    default.

    Attributes:
        parts: name -> object with `state_dict` and `load_state_dict`: contents of a checkpoint.
        settings: name -> JSON value.
        defaults: name -> value, of `spad.settings.defaults_of`.
        keep_last: number of checkpoints kept.
        watched: logged numbers that stop the run if NaN or infinite.
        is_main: whether this process writes; one of several does.
        any_process: whether a flag is set in any process; all call it at the same time.
    """

    folder: Path
    parts: Mapping[str, Any]
    settings: Mapping[str, Any]
    total_steps: int
    save_every_s: float
    log_every: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keep_last: int = 2
    may_change: Collection[str] = ()
    watched: Collection[str] = ("loss", "gradient_norm")
    is_main: bool = True
    any_process: Callable[[bool], bool] = bool
    _sums: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Lock the folder, load the newest whole checkpoint and yield the number of steps done.

        Raises: ValueError: as `check`, another process is training in the folder, or all of its
            checkpoints are damaged.
        """
        if not self.is_main:
            yield self._load()
            return
        self.check()
        with exclusive(self.folder):
            start = self._load()
            self._drop_log_after(start)
            write_text(self.folder / SETTINGS, json_text(self.settings))
            yield start

    def run(
        self,
        train_step: Callable[[int], Mapping[str, float]],
        start: int,
        after_log: Callable[[int, Mapping[str, float]], None] | None = None,
        milestone_every: int = 0,
        on_checkpoint: Callable[[int], None] | None = None,
    ) -> None:
        """Call `train_step(step)`, which returns numbers to log, from `start` to `total_steps`.

        Args:
            after_log: called with the number of steps done and the means of a row of `loss.csv`.
            milestone_every: steps between milestones; the last step and a stop are milestones too.
            on_checkpoint: called with the number of steps done, after the checkpoint of a
                milestone.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
            FloatingPointError: a watched number is not finite; the last checkpoint is kept.
            OSError: a checkpoint could not be written; the last one is kept.
        """
        saved_at, done = time.monotonic(), start
        progress = tqdm(
            total=self.total_steps,
            initial=start,
            unit="step",
            smoothing=0.05,
            disable=not self.is_main,
        )
        with _stop_requests() as stop, progress:
            # Perhaps the last call was killed after the checkpoint of this milestone.
            is_milestone = bool(start and milestone_every and start % milestone_every == 0)
            if on_checkpoint and (is_milestone or start >= self.total_steps):
                on_checkpoint(start)
            while done < self.total_steps:
                numbers = train_step(done)
                self._check_finite(done, numbers)
                for name, value in numbers.items():
                    self._sums.setdefault(name, []).append(value)
                progress.update()
                done += 1
                stopping = self.any_process(stop.is_set())
                is_milestone = done == self.total_steps
                if milestone_every and done % milestone_every == 0:
                    is_milestone = True
                is_row = is_milestone or done % self.log_every == 0
                is_milestone |= stopping
                if is_row or stopping:
                    # The row of a stop is written again when the run that goes on has all of it.
                    pending = {} if is_row else self._sums
                    means = self._log(done)
                    self._sums = pending
                    shown = {name: f"{value:.4g}" for name, value in list(means.items())[:3]}
                    progress.set_postfix(shown, refresh=False)
                    if after_log:
                        after_log(done, means)
                due = self.any_process(time.monotonic() - saved_at > self.save_every_s)
                if is_milestone or due:
                    self._save(done, time.monotonic() - saved_at)
                    saved_at = time.monotonic()
                if is_milestone and on_checkpoint:
                    on_checkpoint(done)
                if stopping:
                    break
        if done < self.total_steps:
            raise Interrupted(f"stopped at step {done} of {self.total_steps}, saved")

    def newest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return max(self._checkpoints(), default=None)

    def _checkpoints(self) -> list[Path]:
        """Checkpoints by step; other files may lie beside them."""
        files = (self.folder / CHECKPOINTS).glob("step-*.pt")
        return sorted(file for file in files if re.fullmatch(r"step-\d{8}", file.stem))

    @property
    def steps_done(self) -> int:
        """Number of steps at the newest checkpoint, or 0."""
        newest = self.newest()
        return int(newest.stem.removeprefix("step-")) if newest else 0

    def saved_settings(self) -> dict[str, Any]:
        """Settings of the last call in this folder; empty if there was none.

        Raises: ValueError: the file is malformed.
        """
        path = self.folder / SETTINGS
        return read_json(path, dict[str, Any]) if path.is_file() else {}

    def check(self) -> None:
        """Raises: ValueError: the folder has other files, or a run with other settings."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"expected a run folder, got the file {folder}")
        path = folder / SETTINGS
        if not path.is_file():
            if folder.is_dir() and any(p.name[0] != "." for p in folder.iterdir()):
                raise ValueError(
                    f"expected an empty folder or a training run, got {folder}, which has files "
                    f"but no {SETTINGS}; choose another --output"
                )
            return
        if self.newest() is None:
            return
        changes = {
            name: f"{name}: {before} -> {asked}"
            for name, (before, asked) in changes_since(
                self.saved_settings(), self.settings, self.defaults
            ).items()
        }
        refused = [change for name, change in changes.items() if name not in self.may_change]
        if refused:
            raise ValueError(
                f"expected the settings of the run in {folder}, got others "
                f"({', '.join(refused)}); use the same settings to resume, or another --output"
            )
        if changes:
            logger.info("resuming with other settings: %s", ", ".join(changes.values()))

    def _load(self) -> int:
        damaged = []
        for checkpoint in reversed(self._checkpoints()):
            try:
                state = _read_checkpoint(checkpoint, self.parts)
            except ValueError as error:
                logger.warning("%s", error)
                damaged.append(checkpoint)
                continue
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self._sums = {name: list(values) for name, values in state.get(_SUMS, {}).items()}
            if self.is_main:
                # They would count as newer than what is saved from now on.
                for one in damaged:
                    os.replace(one, one.with_name(f"{one.name}.damaged"))
                logger.info("resuming %s at step %d", self.folder, state["step"])
            return state["step"]
        if damaged:
            raise ValueError(
                f"{damaged[0].parent}: expected a whole checkpoint, got only damaged ones; choose "
                "another --output, or remove them to begin again"
            )
        return 0

    def _save(self, step: int, seconds: float) -> None:
        """Write a checkpoint, and add `seconds` to the training time in the record."""
        # Sharded states are gathered from all processes.
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"step": step, _SUMS: self._sums}
        if not self.is_main:
            return
        before = self.newest()
        target = self.folder / CHECKPOINTS / f"step-{step:08d}.pt"
        try:
            with whole_file(target) as unfinished:
                torch.save(state, unfinished)
        # torch raises RuntimeError if the disk is full.
        except (OSError, RuntimeError) as error:
            kept = f"the last good checkpoint is {before}" if before else "no checkpoint exists"
            free = size_text(free_space(self.folder))
            raise OSError(
                f"expected room to write the checkpoint of step {step}, got: "
                f"{error.__cause__ or error}; {free} are free; {kept}; make room and run the same "
                "command again"
            ) from error
        for old in self._checkpoints()[: -self.keep_last]:
            old.unlink()
        path = self.folder / RECORD
        spent = read_json(path, RunRecord).seconds if path.exists() else 0.0
        record = {"steps": step, "seconds": round(spent + seconds, 1), **hardware_record()}
        write_text(path, json_text(record))

    def _check_finite(self, step: int, numbers: Mapping[str, float]) -> None:
        bad = [name for name in self.watched if not math.isfinite(numbers.get(name, 0.0))]
        if self.any_process(bool(bad)):
            raise FloatingPointError(
                f"{' and '.join(bad) or 'the loss of another process'} became NaN or infinite at "
                f"step {step}; the last good checkpoint is {self.newest()}; try a lower "
                "learning rate in a new output folder"
            )

    def _log(self, step: int) -> dict[str, float]:
        """Write a row of means since the last row, ignoring NaN, and return it."""
        means = {}
        for name, values in self._sums.items():
            known = [value for value in values if not math.isnan(value)]
            means[name] = sum(known) / len(known) if known else math.nan
        self._sums = {}
        if self.is_main:
            path = self.folder / LOSSES
            is_new = not path.exists()
            cells = ["" if math.isnan(v) else f"{v:.6g}" for v in means.values()]
            rows = [["step", *means]] * is_new + [[str(step), *cells]]
            with path.open("a", newline="\n", encoding="utf-8") as file:
                file.writelines(",".join(row) + "\n" for row in rows)
        return means

    def _drop_log_after(self, step: int) -> None:
        """Remove the rows that a resumed run writes again."""
        path = self.folder / LOSSES
        if path.exists():
            names, rows = read_losses(path)
            last = step - bool(self._sums)
            kept = [names, *(row for row in rows if int(row[0]) <= last)]
            if names:
                write_text(path, "".join(",".join(row) + "\n" for row in kept))
            else:
                path.unlink()


def _read_checkpoint(path: Path, parts: Collection[str]) -> dict[str, Any]:
    """Raises: ValueError: the file is cut short, or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # What torch raises for damaged archives, pickles and records.
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: expected a whole checkpoint, got a damaged one") from error
    if not isinstance(state, dict) or not {*parts, "step"} <= state.keys():
        raise ValueError(f"{path}: expected a checkpoint of training, got something else")
    return state


@contextmanager
def _stop_requests():
    """An event that Ctrl-C and SIGTERM set, so that the step is finished and saved first."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {s: signal.signal(s, lambda *_: stop.set()) for s in signals}
    try:
        yield stop
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
