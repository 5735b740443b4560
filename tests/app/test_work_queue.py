"""One request after another, in order; a stopped one ends at its next message."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from spad.app.work_queue import QueueFull, WorkQueue

PATIENCE_S = 5.0


def run(scenario):
    """Run a coroutine function of a queue that works."""

    async def main():
        queue = WorkQueue(3)
        worker = asyncio.create_task(queue.run())
        try:
            return await scenario(queue)
        finally:
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker

    # In a thread of its own: the browser of other tests has a loop in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, main()).result()


async def all_of(job):
    return [message async for message in job.messages(PATIENCE_S)]


def test_jobs_run_one_at_a_time_in_order():
    log, running = [], []

    def work(name):
        def run_it(emit):
            running.append(name)
            assert running == [name]
            emit({"kind": "step", "step": 1})
            log.append(name)
            running.remove(name)
            return {"name": name}

        return run_it

    async def scenario(queue):
        jobs = [queue.submit(work(name)) for name in "abc"]
        return [await all_of(job) for job in jobs]

    found = run(scenario)
    assert log == ["a", "b", "c"]
    for name, messages in zip("abc", found, strict=True):
        assert [m["kind"] for m in messages if m["kind"] != "queued"] == ["started", "step", "done"]
        assert messages[-1]["name"] == name
    # The last was told how many were before it, and that they became fewer.
    ahead = [m["ahead"] for m in found[2] if m["kind"] == "queued"]
    assert ahead == sorted(ahead, reverse=True) and ahead[0] == 2 and ahead[-1] == 1


def test_a_full_queue_refuses_and_a_place_that_was_left_is_free():
    gate = threading.Event()

    async def scenario(queue):
        first = queue.submit(lambda emit: {"open": gate.wait(PATIENCE_S)})
        while (await anext(first.messages(PATIENCE_S)))["kind"] != "started":
            pass
        waiting = [queue.submit(lambda emit: {}) for _ in range(3)]
        with pytest.raises(QueueFull):
            queue.submit(lambda emit: {})
        queue.leave(waiting[1])
        kinds = [m["kind"] for m in await all_of(waiting[1])]
        extra = queue.submit(lambda emit: {})
        gate.set()
        ends = [(await all_of(job))[-1]["kind"] for job in (first, waiting[0], waiting[2], extra)]
        return kinds, ends

    kinds, ends = run(scenario)
    assert kinds[-1] == "stopped"
    assert ends == ["done"] * 4


def test_a_stopped_job_ends_at_its_next_message():
    started, steps = threading.Event(), []

    def work(emit):
        for step in range(1000):
            emit({"kind": "step", "step": step})
            steps.append(step)
            started.set()
            stopped.wait(PATIENCE_S)
        return {}

    stopped = threading.Event()

    async def scenario(queue):
        job = queue.submit(work)
        await asyncio.to_thread(started.wait, PATIENCE_S)
        queue.leave(job)
        stopped.set()
        after = queue.submit(lambda emit: {"after": True})
        return (await all_of(job))[-1], (await all_of(after))[-1]

    last, after = run(scenario)
    assert last == {"kind": "stopped"} and steps == [0]
    assert after == {"kind": "done", "after": True}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("expected a, got b"), "expected a, got b"),
        (MemoryError(), "out of memory; try fewer views or smaller images"),
        (TypeError("odd"), "this failed, odd; the terminal of spad app says more"),
    ],
)
def test_a_failure_is_a_message_and_the_next_job_runs(error, message):
    def fail(emit):
        raise error

    async def scenario(queue):
        failed, after = queue.submit(fail), queue.submit(lambda emit: {})
        return (await all_of(failed))[-1], (await all_of(after))[-1]

    assert run(scenario) == ({"kind": "error", "message": message}, {"kind": "done"})
