"""``on_open`` and ``on_close`` of a program where they are async: each call is a task, which `Callbacks` owns."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from tabi.observe.observers import Tell
from tabi.session import Session

log = logging.getLogger("tabi")

MAX_RUNNING = 10_000
"""Calls that may be under way; beyond that they are dropped, and the log says so."""

LONGEST = 60.0
"""Seconds that one call may take."""

PATIENCE = 5.0
"""Seconds that calls have at the end of the server."""


def is_async(function: object) -> bool:
    """Whether calling something gives a coroutine."""
    called = inspect.getattr_static(function, "__call__", None)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


class Callbacks:
    """Calls async functions with sessions, and ends with the server."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0

    def plain(self, function: Callable[[Session], Any], title: str) -> Tell:
        """The function to call for each session; one that is not async is returned unchanged."""
        if not is_async(function):
            return function
        return lambda session: self.start(function(session.copy()), title) if self.has_room(title) else None

    def has_room(self, title: str) -> bool:
        """Whether another call may begin. The first one that may not is logged, and then each thousandth."""
        if len(self.tasks) < MAX_RUNNING:
            return True
        if self.dropped % 1000 == 0:
            log.error("%s: %d calls are under way, further ones are dropped", title, MAX_RUNNING)
        self.dropped += 1
        return False

    def start(self, call: Awaitable[object], title: str) -> None:
        """Await a call in a task of its own."""
        task = asyncio.get_running_loop().create_task(self.run(call, title), name=f"tabi-{title}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run(self, call: Awaitable[object], title: str) -> None:
        """Await one call; an exception of it is logged, and stops nothing."""
        try:
            async with asyncio.timeout(LONGEST):
                await call
        except Exception:
            log.exception("%s failed", title)

    async def close(self) -> None:
        """Wait for the calls that are under way, then end those that take too long."""
        if self.tasks:
            try:
                await asyncio.wait(tuple(self.tasks), timeout=PATIENCE)
            finally:
                late = tuple(self.tasks)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
