"""Run a function over many jobs in isolated processes with time and memory limits."""

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
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

# A fork server that has loaded what every worker needs starts new workers at once.
_START = "forkserver" if sys.platform == "linux" else "spawn"
_NEEDED = ["spad.data.object_folder"]
_UNFINISHED = object()
# A crash may be due to state left by earlier jobs, so retry once in a fresh worker.
_ATTEMPTS = 2


@dataclass(frozen=True)
class JobLimits:
    """Seconds per job, and gigabytes of memory per worker, if the system can limit it."""

    time_s: float
    memory_gb: float


@dataclass(frozen=True)
class LostJob:
    """A job without a result; `kind` is "time limit", "memory limit" or "crash"."""

    kind: str
    reason: str


class Worker:
    """A child process that runs a function on one job at a time, replaced if it dies.

    Results come through a pipe of its own, so that a process killed while writing breaks no other.
    """

    def __init__(self, function: Callable[[Any], Any], limits: JobLimits):
        self._function, self._limits = function, limits
        self._process: BaseProcess | None = None
        self.deadline = math.inf

    def give(self, job: Any) -> None:
        """Start a job; the previous one must have ended."""
        self._job, self._attempt = job, 1
        self._start_job()

    def take(self, wait: bool = False) -> Any:
        """The result of the job, `LostJob` or `_UNFINISHED`. Raises: any error of the function."""
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
        """Kill the process."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.pid is not None
        _kill_programs(process.pid)
        process.kill()
        process.join()
        process.close()
        self.pipe.close()

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
        # If it died idle, `_receive` finds the pipe closed.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(self._job)

    def _set_deadline(self) -> None:
        self.deadline = time.monotonic() + self._limits.time_s

    def _receive(self) -> Any:
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            assert self._process is not None
            self._process.join()
            code = self._process.exitcode
            if not self._is_ready:
                raise ChildProcessError(
                    f"a worker died while it started ({_exit_words(code)}): out of memory, or a "
                    'script without: if __name__ == "__main__"'
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
) -> Generator[tuple[int, Any], None, None]:
    """Yield (number of the job, its result or `LostJob`) in order of completion.

    Closing the generator kills all workers.

    Args:
        function: an importable function; its argument and result can be pickled.
        jobs: arguments, read when they are needed.
        workers: number of processes. Numerical libraries use one thread in each.
        limits: limits per job. A job that exceeds the time limit is lost; one that exceeds the
            memory limit or crashes is retried once.

    Raises: any error of `function`, after killing all workers.
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


def peak_memory_gb() -> float:
    """The most memory that this process has held so far, in GB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    import resource  # Windows has none

    # Bytes on macOS, kilobytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def num_cores() -> int:
    """Number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _serve(pipe: connection.Connection, function: Callable, memory_gb: float) -> None:
    """Main function of a worker: run jobs until the pipe is closed."""
    # Ctrl-C is handled by the parent, which ends the workers.
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
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    _kill_programs(os.getpid())
    os._exit(1)


def _kill_programs(worker: int) -> None:
    """Kill the programs that a worker started, such as Blender, and except on Windows itself."""
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

    # Data, not address space, of which GPU drivers reserve more than there is memory.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(gigabytes * 1e9)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _portable(error: Exception) -> Exception:
    """The error, or one with the same message if it cannot be pickled."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # unpickling runs the constructor, which may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")


def _exit_words(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    kills = name in ("SIGKILL", "SIGABRT")
    return f"{name}, perhaps for lack of memory" if kills else name


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Set one thread for numerical libraries, which read the environment when they are loaded."""
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
