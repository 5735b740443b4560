"""How threads of a training wait: asleep where others work, unless the user chose."""

import multiprocessing
import time

import pytest

from spad.training import threads
from spad.training.threads import WAIT_POLICY, set_wait_policy


@pytest.mark.parametrize(("used", "policy"), [(0.0, None), (19.0, None), (21.0, "passive")])
def test_the_load_decides(monkeypatch, used, policy):
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda seconds: used)
    environment = {}
    said = set_wait_policy(environment)
    assert environment.get(WAIT_POLICY) == policy
    assert f"{used:.0f}%" in said and ("sleep" in said) == (policy == "passive")


@pytest.mark.parametrize("own", ["active", "passive"])
def test_what_the_user_set_stays(monkeypatch, own):
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda seconds: 100.0)
    environment = {WAIT_POLICY: own}
    assert own in set_wait_policy(environment) and environment == {WAIT_POLICY: own}


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
            if "sleep" in set_wait_policy({}):
                break
        else:
            pytest.fail("never noticed")
    finally:
        for process in busy:
            process.kill()
            process.join()
