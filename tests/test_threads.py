"""How threads of a training wait: asleep where others work, unless the user chose."""

import multiprocessing
import time

import pytest

from spad import threads
from spad.threads import WAIT_POLICY, set_wait_policy, waiting


@pytest.mark.parametrize(("used", "policy"), [(0.0, None), (19.0, None), (21.0, "passive")])
def test_the_load_decides(monkeypatch, used, policy):
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda seconds: used)
    environment = {}
    set_wait_policy(environment)
    assert environment.get(WAIT_POLICY) == policy


@pytest.mark.parametrize("own", ["active", "passive"])
def test_what_the_user_set_stays_and_is_said(monkeypatch, own):
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda seconds: 100.0)
    environment = {WAIT_POLICY: own}
    set_wait_policy(environment)
    assert environment == {WAIT_POLICY: own}
    monkeypatch.setenv(WAIT_POLICY, own)
    assert waiting().startswith("sleep" if own == "passive" else "spin")


def _work(until: float) -> None:
    while time.monotonic() < until:
        pass


def test_work_of_others_is_noticed():
    context = multiprocessing.get_context("spawn")
    busy = [
        context.Process(target=_work, args=(time.monotonic() + 20,))
        for _ in range(threads.psutil.cpu_count())
    ]
    for process in busy:
        process.start()
    try:
        # A process that has just started does not work yet.
        for _ in range(40):
            environment = {}
            set_wait_policy(environment)
            if environment:
                break
        else:
            pytest.fail("never noticed")
    finally:
        for process in busy:
            process.kill()
            process.join()
