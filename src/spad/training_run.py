"""The frame every training shares: a run folder, a loss table, safe stops, exact resume.

A training step is a function of the step number alone: it draws its data and its noise from
`step_generator(seed, step)`. A resumed run therefore repeats exactly what an uninterrupted one
would have done, with no random state to store.
"""

import csv
import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
SETTINGS = "settings.json"
RECORD = "record.json"
LOSSES = "loss.csv"


def step_generator(seed: int, step: int) -> torch.Generator:
    """CPU random generator of one training step, different for every seed and step."""
    # torch seeds its CPU generator from 32 bits alone, so both numbers are hashed into those.
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to `floor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def machine() -> dict[str, str]:
    """What the run runs on, for the record."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "hardware": f"{name or platform.machine()}, {os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


class Interrupted(Exception):
    """A stop was asked for; the run is saved and can be resumed."""


@dataclass
class TrainingRun:
    """Runs steps in a folder: `settings.json`, `record.json`, `loss.csv`, `checkpoint.pt`.

    `parts` maps names to objects with `state_dict` and `load_state_dict`. A folder that already
    holds a checkpoint is resumed, if it was made with the same `settings`.
    """

    folder: Path
    parts: Mapping[str, Any]
    settings: Mapping[str, Any]
    total_steps: int
    save_every_s: float
    log_every: int

    @classmethod
    def of(cls, settings: Any, parts: Mapping[str, Any]) -> "TrainingRun":
        """The run that a dataclass of settings with `output`, `steps` and so on describes."""
        apart = ("data", "output", "save_every_s", "log_every")
        recorded = {
            # The last two parts name a run; where on this machine it lies is nobody else's.
            name: "/".join(value.parts[-2:]) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(settings).items()
            if name not in apart
        }
        return cls(
            settings.output,
            parts,
            recorded,
            settings.steps,
            settings.save_every_s,
            settings.log_every,
        )

    def run(
        self,
        train_step: Callable[[int], Mapping[str, float]],
        after_save: Callable[[int], None] | None = None,
    ) -> None:
        """Call `train_step(step)` until `total_steps`; it returns the numbers to log.

        Raises: Interrupted: after Ctrl-C or SIGTERM, once the checkpoint is written.
            ValueError: the folder holds a run with other settings.
            FloatingPointError: the loss is no longer finite; the last checkpoint is kept.
        """
        start = self._resume()
        if start == self.total_steps and after_save:
            after_save(start)
        saved_at = time.monotonic()
        progress = tqdm(total=self.total_steps, initial=start, unit="step", smoothing=0.05)
        with _stop_requests() as stop, progress:
            sums: dict[str, float] = {}
            counted = 0
            for step in range(start, self.total_steps):
                numbers = train_step(step)
                bad = [name for name, value in numbers.items() if not math.isfinite(value)]
                if bad:
                    raise FloatingPointError(
                        f"{', '.join(bad)} became NaN or infinite at step {step}; "
                        f"the last good checkpoint is {self.folder / CHECKPOINT}"
                    )
                for name, value in numbers.items():
                    sums[name] = sums.get(name, 0.0) + value
                counted += 1
                progress.update()
                done = step + 1
                if done % self.log_every == 0:
                    means = {name: total / counted for name, total in sums.items()}
                    self._log(done, means)
                    progress.set_postfix({k: f"{v:.4g}" for k, v in means.items()}, refresh=False)
                    sums, counted = {}, 0
                stopping = stop.is_set()
                due = time.monotonic() - saved_at > self.save_every_s
                if stopping or due or done == self.total_steps:
                    self._save(done, time.monotonic() - saved_at)
                    if after_save and not stopping:
                        after_save(done)
                    saved_at = time.monotonic()
                if stopping and done < self.total_steps:
                    raise Interrupted(f"stopped at step {done} of {self.total_steps}, saved")

    def _resume(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings_path, checkpoint = self.folder / SETTINGS, self.folder / CHECKPOINT
        settings = json.loads(json.dumps(self.settings))
        if not checkpoint.exists():
            text = json.dumps(settings, indent=2) + "\n"
            write_atomically(settings_path, lambda path: path.write_text(text))
            return 0
        saved = json.loads(settings_path.read_text())
        differing = sorted(k for k in saved.keys() | settings if saved.get(k) != settings.get(k))
        if differing:
            changes = ", ".join(f"{k}: {saved.get(k)} -> {settings.get(k)}" for k in differing)
            raise ValueError(
                f"{self.folder} holds a run with other settings ({changes}); "
                "use the same settings to resume it, or another output folder"
            )
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self._forget_log_after(state["step"])
        logger.info("resuming %s at step %d", self.folder, state["step"])
        return state["step"]

    def _save(self, step: int, seconds: float) -> None:
        """Write the checkpoint, and add `seconds` of work to the record of the run."""
        path = self.folder / RECORD
        before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
        record = {"steps": step, "seconds": round(before + seconds, 1), **machine()}
        text = json.dumps(record, indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text))
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"step": step}
        write_atomically(self.folder / CHECKPOINT, lambda path: torch.save(state, path))

    def _log(self, step: int, means: Mapping[str, float]) -> None:
        path = self.folder / LOSSES
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            rows = csv.writer(file)
            if is_new:
                rows.writerow(["step", *means])
            rows.writerow([step, *(f"{value:.6g}" for value in means.values())])

    def _forget_log_after(self, step: int) -> None:
        path = self.folder / LOSSES
        if path.exists():
            header, *rows = path.read_text().splitlines()
            kept = [row for row in rows if int(row.split(",")[0]) <= step]
            text = "\n".join([header, *kept]) + "\n"
            write_atomically(path, lambda temporary: temporary.write_text(text))


@contextmanager
def _stop_requests():
    """An event that Ctrl-C and SIGTERM set, so that a step is finished and saved first."""
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
