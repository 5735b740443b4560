"""One queue for the one model: requests are worked on in order, and end within a step.

All state of the queue belongs to the event loop; only the work itself runs in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from spad.files import first_line

Message = dict[str, Any]
Emit = Callable[[Message], None]

logger = logging.getLogger(__name__)

# The kinds of messages after which nothing comes.
LAST = frozenset({"done", "stopped", "error"})


class Stopped(Exception):
    """Raised by `emit` in the work of a job that nobody waits for any longer."""


class QueueFull(Exception):
    """No more requests may wait."""


class Job:
    """A piece of work and the messages about it.

    Args:
        work: called in the queue's thread with `emit`, which sends a message, and raises `Stopped`
            if the job was stopped. What it returns is the message `done`.
    """

    def __init__(self, work: Callable[[Emit], Message]):
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._stopped = Event()

    def stop(self) -> None:
        """Let the work end at its next message."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def send(self, message: Message) -> None:
        """Add a message; from the event loop."""
        self._messages.put_nowait(message)

    async def messages(self, patience_s: float) -> AsyncIterator[Message | None]:
        """The messages, up to the last; None for every `patience_s` seconds without one."""
        while True:
            try:
                message = await asyncio.wait_for(self._messages.get(), patience_s)
            except asyncio.TimeoutError:
                yield None
                continue
            yield message
            if message["kind"] in LAST:
                return

    def run(self) -> Message:
        """Do the work in this thread, and return the last message."""
        try:
            return {"kind": "done", **self._work(self._emit)}
        except Stopped:
            return {"kind": "stopped"}
        except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
            return {"kind": "error", "message": str(error) or type(error).__name__}
        except MemoryError:
            message = "out of memory; try fewer views or smaller images"
            return {"kind": "error", "message": message}
        # Whatever a request did, the next ones are served; whoever started the server sees why.
        except Exception as error:
            logger.error("a request failed:\n%s", traceback.format_exc())
            message = f"this failed, {first_line(error)[:200]}; the terminal of spad app says more"
            return {"kind": "error", "message": message}

    def _emit(self, message: Message) -> None:
        if self.is_stopped:
            raise Stopped
        self._loop.call_soon_threadsafe(self.send, message)


class WorkQueue:
    """Runs jobs one at a time, in order.

    Args:
        most_waiting: number of jobs that may wait behind the one that runs.
    """

    def __init__(self, most_waiting: int):
        self._most = most_waiting
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._has_work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spad-app")

    def submit(self, work: Callable[[Emit], Message]) -> Job:
        """A new job at the end of the queue.

        Raises: QueueFull: as many wait as may.
        """
        if len(self._waiting) >= self._most:
            raise QueueFull
        job = Job(work)
        self._waiting.append(job)
        self._tell_places()
        self._has_work.set()
        return job

    def leave(self, job: Job) -> None:
        """Stop a job; its place in the queue is free at once."""
        job.stop()
        if job in self._waiting:
            self._waiting.remove(job)
            job.send({"kind": "stopped"})
            self._tell_places()

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._has_work.wait()
                self._has_work.clear()
                while self._waiting:
                    self._running = self._waiting.popleft()
                    self._tell_places()
                    self._running.send({"kind": "started"})
                    self._running.send(await loop.run_in_executor(self._thread, self._running.run))
                    self._running = None
        finally:
            for job in filter(None, (self._running, *self._waiting)):
                job.stop()
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _tell_places(self) -> None:
        for place, job in enumerate(self._waiting):
            ahead = place + (self._running is not None)
            job.send({"kind": "queued", "ahead": ahead})
