"""Ray clusters: one is started or joined, and a model on each of its devices does jobs."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Ray sends usage statistics, and warns of GPUs that it will hide from workers without one.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextmanager
def _settled() -> Iterator[None]:
    """Context in which Ray finds its settings, as it has them only from the environment."""
    added = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


with _settled():
    import ray
    from ray.exceptions import (
        NodeDiedError,
        OutOfMemoryError,
        RayActorError,
        RayTaskError,
        WorkerCrashedError,
    )

# Other modules have Ray from here, so that it is set up before it is imported.
__all__ = [
    "RETRIES",
    "NodeDiedError",
    "OutOfMemoryError",
    "WorkerCrashedError",
    "cluster",
    "ray",
    "run_on_devices",
]

# Times that a job is begun anew after its machine or worker died.
RETRIES = 5
_OBJECT_STORE_BYTES = 100_000_000


@contextmanager
def cluster(address: str | None, cores: int) -> Iterator[None]:
    """The running cluster at `address`; None: one of this machine's cores, for the time being.

    Raises: OSError: no cluster at `address`.
    """
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    own = {
        "num_cpus": cores,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",  # refuse work from other machines
        "object_store_memory": _OBJECT_STORE_BYTES,
        # Ray's default is a low priority.
        "_system_config": {"worker_niceness": 0},
    }
    with _settled():
        if address is None:
            ray.init(address="local", **own, **quiet)
        else:
            ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Job:
    number: int
    value: Any
    attempt: int = 1


class _Holder:
    """A process that has a device to itself, and does one job at a time with what it loaded."""

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function

    def run(self, job: Any) -> Any:
        return self._function(job)


def run_on_devices(
    function: Callable[[Any], Any],
    jobs: Iterable[Any],
    address: str | None,
    cores: int,
    most: int = 0,
) -> Generator[tuple[int, Any], None, None]:
    """Yield (number of the job, its result) in order of completion.

    Each GPU of the cluster has one process; in a cluster without, each machine. `function` may
    keep what it loads, such as a model, for its next job. Machines may join and leave; the job of
    one that dies is begun anew elsewhere. Every machine needs this package.

    Args:
        function: an importable function, or a `partial` of one, that can be pickled.
        address: as in `cluster`.
        cores: cores of a cluster that is started.
        most: most jobs at a time; 0: as many as there are devices.

    Raises: OSError: no cluster at `address`, or a job whose machine died too often; and any error
        of `function`.
    """
    waiting = deque(_Job(number, value) for number, value in enumerate(jobs))
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, _Job]] = {}
    with cluster(address, cores):
        while waiting or busy:
            count, share = _devices()
            wanted = min(len(waiting) + len(busy), count if most == 0 else min(most, count))
            while len(idle) + len(busy) < wanted:
                holder = ray.remote(**share)(_Holder)
                idle.append(holder.remote(function))
            while idle and waiting:
                holder, job = idle.pop(), waiting.popleft()
                busy[holder.run.remote(job.value)] = holder, job
            done, _ = ray.wait(list(busy), num_returns=1, timeout=1)
            for reference in done:
                holder, job = busy.pop(reference)
                try:
                    yield job.number, ray.get(reference)
                    idle.append(holder)
                except (RayActorError, OutOfMemoryError) as error:
                    if job.attempt > RETRIES:
                        raise OSError(
                            f"expected a machine to finish job {job.number}, but its worker died "
                            f"{job.attempt} times"
                        ) from error
                    waiting.append(_Job(job.number, job.value, job.attempt + 1))
                except RayTaskError as error:
                    raise error.cause from None


def _devices() -> tuple[int, dict[str, Any]]:
    """Number of devices of the cluster, and what a process asks for to have one of them."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(resources.get("GPU", 0) for resources in nodes))
    if gpus > 0:
        return gpus, {"num_gpus": 1, "num_cpus": 1}
    cores = [int(resources["CPU"]) for resources in nodes if resources.get("CPU", 0) >= 1]
    # So that the smallest machine can take one, too.
    share = min(cores, default=1)
    return max(1, sum(count // share for count in cores)), {"num_cpus": share}
