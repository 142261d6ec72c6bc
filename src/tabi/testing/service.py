"""Service: something that runs in a thread with a loop of its own, between `start` and `close`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Generic, Self, TypeVar

from tabi.net.reactor import make_loop

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds after which something that does not happen is an error: a test that hangs tells nothing."""


class Service:
    """Runs in a thread of its own. Use it with ``with``, or in a coroutine with ``async with``.

    A subclass has `open` and `shut`, which run in the loop of that thread.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None

    async def open(self) -> None:
        """Begin to serve. `start` raises what this raises."""
        raise NotImplementedError

    async def shut(self) -> None:
        """Stop, and close everything. It is also called if `open` has failed."""
        raise NotImplementedError

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function in the loop of the thread, and wait for what it returns.

        Raises:
            TimeoutError: it has not ended within 10 seconds; it is cancelled then.
            RuntimeError: the service does not run.
        """
        if self.loop is None:
            raise RuntimeError(f"this {type(self).__name__} does not run")
        future = asyncio.run_coroutine_threadsafe(function(), self.loop)
        try:
            return future.result(PATIENCE)
        except TimeoutError:
            future.cancel()
            raise

    def start(self) -> Self:
        """Begin to serve, and wait until it does. A service may start again once it is closed.

        Raises:
            RuntimeError: it runs already.
            Whatever `open` raises.
        """
        if self.loop is not None:
            raise RuntimeError(f"this {type(self).__name__} runs already")
        loop = self.loop = make_loop()
        self.thread = threading.Thread(target=run_loop, args=(loop,), name="tabi-testing", daemon=True)
        self.thread.start()
        try:
            self.call(self.open)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop, and wait for the end of the thread. Harmless when done twice."""
        loop, thread = self.loop, self.thread
        if loop is None or thread is None:
            return
        try:
            self.call(self.shut)
        finally:
            self.loop = self.thread = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        starting = asyncio.get_running_loop().run_in_executor(None, self.start)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:  # nobody else would close it
            starting.add_done_callback(self.close_soon)
            raise

    def close_soon(self, started: asyncio.Future[Self]) -> None:
        """Close what has been started; that takes a while, so that a thread does it."""
        if started.exception() is None:
            threading.Thread(target=self.close, name="tabi-testing-close").start()

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.close)


def run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """The thread: it ends with its loop closed, and with no task left in it."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class Seen(Generic[T]):
    """A list that grows in the thread of a service, and can be waited for in another one."""

    def __init__(self) -> None:
        self.things: list[T] = []
        self.grown = threading.Condition()

    def add(self, thing: T) -> None:
        """Add one."""
        with self.grown:
            self.things.append(thing)
            self.grown.notify_all()

    def clear(self) -> None:
        """Forget all."""
        with self.grown:
            self.things.clear()

    def wait(self, count: int, timeout: float) -> list[T]:
        """Wait until there are so many, and return all. Raises TimeoutError."""
        deadline = monotonic() + timeout
        with self.grown:
            while len(self.things) < count:
                if not self.grown.wait(deadline - monotonic()):
                    raise TimeoutError(f"{len(self.things)} within {timeout:g} s, expected {count}")
            return list(self.things)
