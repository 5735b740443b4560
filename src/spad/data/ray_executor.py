"""A function over many jobs on a Ray cluster, with the limits and retries of `workers`."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from spad.data.workers import JobLimits, LostJob, Worker, num_cores

# Before Ray loads: it would report what it is used for.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

# Of a job whose machine or Ray worker dies; what the job itself breaks is tried by `Worker`.
_RETRIES = 5
# Jobs travel while others run.
_QUEUED_PER_CORE = 2
_OBJECT_STORE_BYTES = 100_000_000


def run_on_ray(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    workers: int,
    limits: JobLimits,
    address: str | None,
) -> Iterator[tuple[int, Any]]:
    """As `run_isolated`, on every core of a Ray cluster; machines may join and leave meanwhile.

    Every machine needs this package and sees the same files under the same names.

    Args:
        workers: most jobs at a time; 0 for as many as the cluster has cores.
        address: of a running cluster; without one, a cluster of this machine's cores is started,
            and ended with the last job.

    Raises: OSError: no cluster at `address`; and what `function` raises.
    """
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_run_one)
    numbered = enumerate(jobs)
    running: dict[ray.ObjectRef, int] = {}
    with _cluster(address, workers):
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
    """What a Ray worker does: (result, error) of a job that runs in a process of its own."""
    worker = _own_worker(function, limits)
    worker.give(job)
    try:
        return worker.take(wait=True), None
    except Exception as error:  # raised where the results are read, without Ray's wrapping
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
        return LostJob("crash", f"its Ray worker died {_RETRIES + 1} times")
    if error is not None:
        raise error
    return result


@contextmanager
def _cluster(address: str | None, workers: int) -> Iterator[None]:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init(
            address="local",
            num_cpus=workers or num_cores(),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",  # nobody else may send work
            object_store_memory=_OBJECT_STORE_BYTES,
            # Ray would run them in the background of whatever else this machine does.
            _system_config={"worker_niceness": 0},
            **quiet,
        )
    else:
        ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
