"""Jobs on the devices of a real Ray cluster of this machine."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from spad.cluster import run_on_devices

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
LOADED: list[int] = []


def double(folder: Path, number: int) -> tuple[int, int, int]:
    """Twice a number, the process, and how many jobs it did before; 2 kills the first process."""
    if number == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    LOADED.append(number)
    return 2 * number, os.getpid(), len(LOADED) - 1


@pytest.mark.slow
def test_a_killed_process_costs_no_job_and_what_is_loaded_stays(tmp_path):
    from ray import cloudpickle

    # Workers cannot import the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    function = partial(double, tmp_path)
    given = {name for name in os.environ if name.startswith("RAY_USAGE")}
    done = dict(run_on_devices(function, range(6), None, cores=2))
    assert {number: result[0] for number, result in done.items()} == {n: 2 * n for n in range(6)}
    processes = {result[1] for result in done.values()}
    assert len(processes) == 2 and os.getpid() not in processes
    assert max(result[2] for result in done.values()) >= 2
    assert {name for name in os.environ if name.startswith("RAY_USAGE")} == given
