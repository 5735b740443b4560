"""Workers: whatever a job does to its process, every job has one result and the others go on."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hand_made import is_running, wait_until
from spad.data.workers import JobLimits, LostJob, _kill_programs, run_isolated

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
GENEROUS = JobLimits(time_s=600, memory_gb=8)
FOREVER = 10_000


def square(value: int) -> int:
    return value * value


def sleep_if_odd(value: int) -> int:
    time.sleep(FOREVER * (value % 2))
    return value


def allocate(num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def die(marker: Path) -> str:
    """Dies by the signal that its job is named after, if nobody has died of it yet."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if marker.name == "always":
        os.kill(os.getpid(), signal.SIGSEGV)
    return marker.name


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def start_program(path: Path) -> None:
    program = subprocess.Popen(["sleep", str(FOREVER)])
    path.write_text(f"{os.getpid()} {program.pid}")
    program.wait()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_has_its_result(workers):
    results = dict(run_isolated(square, iter(range(20)), workers, GENEROUS))
    assert results == {number: number * number for number in range(20)}
    assert not multiprocessing.active_children()
    assert list(run_isolated(square, [], workers, GENEROUS)) == []


def test_slow_jobs_are_lost_and_the_others_finish():
    results = dict(run_isolated(sleep_if_odd, range(4), 1, JobLimits(2, 8)))
    assert results[0] == 0 and results[2] == 2
    assert results[1] == results[3] == LostJob("time limit", "took longer than 2 s")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_greedy_jobs_are_lost_and_the_others_finish():
    results = dict(run_isolated(allocate, [1000, 3 * 10**9, 2000], 1, JobLimits(600, 2)))
    assert (results[0], results[2]) == (1000, 2000)
    assert results[1] == LostJob("memory limit", "needs more memory than 2 GB")


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals")
def test_a_job_gets_another_worker_when_its_own_dies_but_not_two(tmp_path):
    jobs = [tmp_path / "once", tmp_path / "always", tmp_path / "once more"]
    results = dict(run_isolated(die, jobs, 2, GENEROUS))
    assert (results[0], results[2]) == ("once", "once more")
    assert results[1].kind == "crash" and "SIGSEGV" in results[1].reason


def test_errors_come_back_as_they_are_and_end_the_workers():
    with pytest.raises(OSError) as caught:
        list(run_isolated(fail, [errno.ENOSPC] * 3, 2, GENEROUS))
    assert caught.value.errno == errno.ENOSPC
    assert "in fail" in str(caught.value.__cause__)
    assert not multiprocessing.active_children()


@linux_only
def test_what_a_job_started_ends_with_it(tmp_path):
    list(run_isolated(start_program, [tmp_path / "pids"], 1, JobLimits(5, 8)))
    worker, program = map(int, (tmp_path / "pids").read_text().split())
    wait_until(lambda: not is_running(program))
    assert not is_running(worker)


@linux_only
def test_workers_do_not_outlive_the_process_that_started_them(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from spad.data.workers import JobLimits, run_isolated\n"
        "from test_workers import start_program\n"
        "if __name__ == '__main__':\n"
        f"    list(run_isolated(start_program, [Path({str(tmp_path / 'pids')!r})], 1, "
        "JobLimits(600, 8)))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1] / "src")))
    with subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": paths}) as run:
        try:
            wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
        finally:
            run.kill()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_until(lambda: not any(map(is_running, pids)))


@linux_only
def test_programs_of_a_worker_end_with_it_without_process_groups(monkeypatch):
    """The way of Windows."""
    wait = "import time; time.sleep(600)"
    code = (
        f"import subprocess, sys; program = subprocess.Popen([sys.executable, '-c', {wait!r}]); "
        f"print(program.pid, flush=True); {wait}"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        try:
            program = int(worker.stdout.readline())
            monkeypatch.setattr("spad.data.workers.sys", SimpleNamespace(platform="win32"))
            _kill_programs(worker.pid)
            wait_until(lambda: not is_running(program))
            assert worker.poll() is None
        finally:
            worker.kill()
