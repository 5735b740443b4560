"""A function over many jobs, each in a process of its own that may be slow, greedy or die."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import psutil

# A server that has loaded what every worker needs makes new workers at once, by forking; where
# there is none, each loads it again.
_START = "forkserver" if sys.platform == "linux" else "spawn"
_NEEDED = ["spad.data.object_folder"]
_UNFINISHED = object()
# What breaks a worker may be what its earlier jobs left behind, so the job gets a fresh one.
_ATTEMPTS = 2


@dataclass(frozen=True)
class JobLimits:
    """Most seconds for one job, and most memory for one worker, where the system can tell."""

    time_s: float
    memory_gb: float


@dataclass(frozen=True)
class LostJob:
    """A job without a result; `kind` is "time limit", "memory limit" or "crash"."""

    kind: str
    reason: str


class Worker:
    """A child process that runs a function on one job at a time, replaced when a job breaks it.

    Results and errors come back through a pipe of its own: a process killed while it writes
    harms no other.
    """

    def __init__(self, function: Callable[[Any], Any], limits: JobLimits):
        self._function, self._limits = function, limits
        self._process = None
        self.deadline = math.inf

    def give(self, job: Any) -> None:
        """Start a job, after the last one has ended."""
        self._job, self._attempt = job, 1
        self._start_job()

    def take(self, wait: bool = False) -> Any:
        """The result of the job, `LostJob`, or `_UNFINISHED`; errors of the function are raised."""
        while True:
            left = max(0.0, self.deadline - time.monotonic()) if wait else 0.0
            if self.pipe.poll(None if math.isinf(left) else left):
                result = self._receive()
            elif time.monotonic() >= self.deadline:
                result = self._lose("time limit", f"took longer than {self._limits.time_s:g} s")
            else:
                result = _UNFINISHED
            if result is not _UNFINISHED or not wait:
                return result

    def close(self) -> None:
        """End the process at once, whatever it is doing."""
        if self._process is None:
            return
        _kill_programs(self._process.pid)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()
        self._process = None

    def _start_job(self) -> None:
        self.deadline = math.inf
        if self._process is None:
            context = multiprocessing.get_context(_START)
            if _START == "forkserver":
                context.set_forkserver_preload(_NEEDED)
            self.pipe, theirs = context.Pipe()
            arguments = (theirs, self._function, self._limits.memory_gb)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            with _single_threaded_children():
                process.start()
            self._process = process
            theirs.close()
            self._is_ready = False
        else:
            self._set_deadline()
        # One that died idle is found out by the end of its pipe.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(self._job)

    def _set_deadline(self) -> None:
        self.deadline = time.monotonic() + self._limits.time_s

    def _receive(self) -> Any:
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            if not self._is_ready:
                raise ChildProcessError(
                    f"a worker died while it started ({_exit_words(code)}); too little memory, or "
                    'a script that calls this without asking if __name__ == "__main__"?'
                ) from None
            return self._lose("crash", f"its worker died ({_exit_words(code)})")
        if kind == "ready":
            self._is_ready = True
            self._set_deadline()
            return _UNFINISHED
        if kind == "memory":
            memory = f"needs more memory than {self._limits.memory_gb:g} GB"
            return self._lose("memory limit", memory)
        if kind == "error":
            error, text = value
            raise error from ChildProcessError(f"in a worker:\n{text}")
        self.deadline = math.inf
        return value

    def _lose(self, kind: str, reason: str) -> Any:
        self.close()
        if kind != "time limit" and self._attempt < _ATTEMPTS:
            self._attempt += 1
            self._start_job()
            return _UNFINISHED
        self.deadline = math.inf
        return LostJob(kind, reason)


def run_isolated(
    function: Callable[[Any], Any], jobs: Iterable[Any], workers: int, limits: JobLimits
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the job, its result or `LostJob`) as they come; close it to end all workers.

    Args:
        function: importable by its name; what it takes and returns can be pickled.
        jobs: read as they are needed.
        workers: most processes at a time. Numerical libraries get one thread in each.
        limits: of each job. A job that takes too long is lost; one that needs too much memory or
            whose worker dies is tried once more first.

    Raises: what `function` raises, and ends all workers.
    """
    numbered = enumerate(jobs)
    idle = [Worker(function, limits) for _ in range(workers)]
    busy: dict[Worker, int] = {}
    try:
        while True:
            while idle and (item := next(numbered, None)):
                worker = idle.pop()
                busy[worker] = item[0]
                worker.give(item[1])
            if not busy:
                return
            left = min(worker.deadline for worker in busy) - time.monotonic()
            connection.wait(
                [worker.pipe for worker in busy], None if math.isinf(left) else max(left, 0)
            )
            for worker in list(busy):
                result = worker.take()
                if result is not _UNFINISHED:
                    idle.append(worker)
                    yield busy.pop(worker), result
    finally:
        for worker in (*busy, *idle):
            worker.close()


def num_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _serve(pipe: connection.Connection, function: Callable, memory_gb: float) -> None:
    """What a worker does: run jobs until the pipe ends."""
    # Ctrl-C goes to the parent, which decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        os.setpgid(0, 0)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _limit_memory(memory_gb)
    pipe.send(("ready", None))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            message = "result", function(job)
        except MemoryError:
            message = "memory", None
        except Exception as error:
            message = "error", (_portable(error), traceback.format_exc())
        pipe.send(message)


def _die_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    _kill_programs(os.getpid())
    os._exit(1)


def _kill_programs(worker: int) -> None:
    """Kill what the process `worker` started, such as Blender; where groups exist, itself too."""
    if sys.platform == "win32":
        with suppress(psutil.NoSuchProcess):
            for program in psutil.Process(worker).children(recursive=True):
                program.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)


def _limit_memory(gigabytes: float) -> None:
    if sys.platform == "win32":  # has no such limit
        return
    import resource

    # Address space would count what is only reserved, which for a GPU is more than there is.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(gigabytes * 1e9)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same if it cannot travel between processes."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does when it is made anew
        return RuntimeError(f"{type(error).__name__}: {error}")


def _exit_words(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    kills = name in ("SIGKILL", "SIGABRT")
    return f"{name}, perhaps of too little memory" if kills else name


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Numerical libraries read these when they load, so they must stand before a child starts."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
