"""Threads for hooks that block. They end with the process: one that is stuck in a hook keeps nobody waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

THREADS = 8
"""Threads for hooks that block, of each ``[[intercept]]`` in a worker."""

Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Threads:
    """A bounded number of threads, started when they are needed. More calls wait for one of them.

    Args:
        most: threads at once.
    """

    def __init__(self, most: int = THREADS) -> None:
        self.most = most
        self.threads: list[threading.Thread] = []
        self.calls = 0  # that wait or run
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a thread; returns what it returns. A cancelled call runs to its end, if it has begun.

        Raises:
            RuntimeError: the threads are closed.
            BaseException: whatever the function raises.
        """
        if self.most == 0:
            raise RuntimeError("the threads are closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.calls += 1
        self.jobs.put((loop, future, function, args))
        if len(self.threads) < min(self.calls, self.most):
            thread = threading.Thread(target=self.work, name="tabi-hook", daemon=True)
            self.threads.append(thread)
            thread.start()
        return await future

    def work(self) -> None:
        """What each thread does."""
        while (job := self.jobs.get()) is not None:
            loop, future, function, args = job
            result: Any = None
            error: BaseException | None = None
            if not future.cancelled():
                try:
                    result = function(*args)
                except StopIteration as exc:  # which no future takes
                    error = RuntimeError("StopIteration was raised")
                    error.__cause__ = exc
                except BaseException as exc:
                    error = exc
            try:
                loop.call_soon_threadsafe(self.finished, future, result, error)
            except RuntimeError:  # the loop is closed
                pass
            del job, future, function, args, result, error

    def finished(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """In the loop: tell whoever waits, if somebody still does."""
        self.calls -= 1
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def close(self) -> None:
        """End the threads. One in which a call still runs ends with it; nobody waits for that."""
        self.most = 0
        for _ in self.threads:
            self.jobs.put(None)
        if self.calls == 0:
            for thread in self.threads:
                thread.join()
        self.threads.clear()
