"""Run a function over many jobs on a Ray cluster, with the limits of `spad.data.workers`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from typing import Any

# With it, so that Ray is set up before it is imported.
from spad.cluster import (
    RETRIES,
    NodeDiedError,
    OutOfMemoryError,
    WorkerCrashedError,
    cluster,
    ray,
)
from spad.data.workers import JobLimits, LostJob, Worker, num_cores

# Jobs are sent ahead while others run.
_QUEUED_PER_CORE = 2


def run_on_ray(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    workers: int,
    limits: JobLimits,
    address: str | None,
) -> Generator[tuple[int, Any], None, None]:
    """`run_isolated` on the cores of a Ray cluster; machines may join and leave during the run.

    Every machine needs this package and the same files under the same paths.

    Args:
        workers: most jobs at a time; 0: one per core of the cluster.
        address: address of a running cluster. None: start one on this machine, for this run.

    Raises: OSError: no cluster at `address`; and any error of `function`.
    """
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_run_one)
    numbered = enumerate(jobs)
    running: dict[ray.ObjectRef, int] = {}
    with cluster(address, workers or num_cores()):
        while True:
            most = workers or _QUEUED_PER_CORE * int(ray.cluster_resources().get("CPU", 1))
            while len(running) < most and (item := next(numbered, None)):
                running[task.remote(function, item[1], limits)] = item[0]
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=1)
            for reference in done:
                yield running.pop(reference), _result(reference)


def _run_one(function: Callable[[Any], Any], job: Any, limits: JobLimits) -> tuple[Any, Any]:
    """Run a job in a process of its own on a Ray worker. Returns: (result, error)."""
    worker = _own_worker(function, limits)
    worker.give(job)
    try:
        return worker.take(wait=True), None
    except Exception as error:  # raised by the caller, without Ray's wrapper
        return None, error


@functools.lru_cache(maxsize=1)
def _own_worker(function: Callable[[Any], Any], limits: JobLimits) -> Worker:
    return Worker(function, limits)


def _result(reference: ray.ObjectRef) -> Any:
    try:
        result, error = ray.get(reference)
    except OutOfMemoryError:
        return LostJob("memory limit", "its machine ran out of memory")
    except (WorkerCrashedError, NodeDiedError):
        return LostJob("crash", f"its Ray worker died {RETRIES + 1} times")
    if error is not None:
        raise error
    return result
