"""Reload: a child of the supervisor reads and compiles the file, and each worker takes that over in small steps."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from time import perf_counter
from typing import Any

import msgspec

from tabi.config import Config
from tabi.config.live_faults import plain
from tabi.errors import ConfigError
from tabi.net.kernel import open_memory
from tabi.net.privileges import Identity
from tabi.server import handover
from tabi.server.compiled import Compiled, check_listeners
from tabi.server.faults import labels_of
from tabi.server.handled_signals import forget_handlers
from tabi.server.server import Server
from tabi.server.takeover import take_over
from tabi.server.trust import contents_for
from tabi.signals import ignore

log = logging.getLogger("tabi")

LONGEST = 600
"""Seconds after which the child is given up."""

MANY = 50_000
"""New objects after which they are hidden from the collector: rules live long, and make no reference cycles."""

NICE = 10
"""The lower priority of the child, below the workers that carry the traffic (nice(2))."""

STEP = 0.002
"""Seconds that a worker takes over before other work has its turn."""


class Report(msgspec.Struct):
    """The result that the child reports."""

    error: str | None = None
    later: list[str] = []
    """Keys that wait for a restart."""
    rules: int = 0
    users: int = 0
    with_quotas: bool = False
    profiles: dict[str, dict[str, Any]] = {}
    distorts: list[str] = []
    """What each ``[[distort]]`` is called."""


class Reload:
    """A reload under way, in the supervisor. ``memory`` gets the compiled configuration.

    Args:
        read: reads and compiles the configuration.
        config: the one that the supervisor was started with.
        sockets: those of the listeners.
        identity: who the workers are, None if they are who the supervisor is.
        private: descriptors of the supervisor that no other process may hold open: when they end, other processes
            see that it has ended.

    Raises:
        OSError: the system has no room for a process.
    """

    def __init__(
        self,
        read: Callable[[], Compiled],
        config: Config,
        sockets: Sequence[Sequence[socket.socket]],
        private: Sequence[int] = (),
        identity: Identity | None = None,
    ) -> None:
        self.identity = identity
        with ExitStack() as opened:
            self.memory = open_memory("tabi-configuration")
            opened.callback(os.close, self.memory)
            self.said = open_memory("tabi-reload")
            opened.callback(os.close, self.said)
            self.pid = os.fork()
            opened.pop_all()
        if not self.pid:
            try:
                forget_handlers()
                for fd in private:
                    os.close(fd)
                ignore(signal.SIGIO, signal.SIGINT, signal.SIGTERM)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                signal.alarm(LONGEST)
                with suppress(OSError):  # a sandbox may refuse it
                    os.nice(NICE)
                os.write(self.said, msgspec.json.encode(self.compile(read, config, sockets)))
            finally:
                os._exit(0)

    def compile(
        self, read: Callable[[], Compiled], config: Config, sockets: Sequence[Sequence[socket.socket]]
    ) -> Report:
        """In the child: do it all."""
        try:
            compiled = read()
            config, later = take_over(config, compiled.config)
            compiled = compiled._replace(config=config, contents=contents_for(self.identity, config))
            check_listeners(compiled, sockets)
            handover.write(compiled, self.memory)
        except (ConfigError, OSError) as exc:
            return Report(str(exc))
        except Exception as exc:
            log.exception("a reload failed")
            return Report(f"internal error: {type(exc).__name__}")
        counts = len(compiled.rules), len(compiled.users)
        profiles = {name: plain(fault) for name, fault in config.profile.items()}
        return Report(None, later, *counts, compiled.with_quotas, profiles, labels_of(config))

    def poll(self) -> Report | None:
        """What became of it; None while it is under way."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        data = os.pread(self.said, os.fstat(self.said).st_size, 0)
        if status or not data:
            return Report(f"what compiles it ended with code {os.waitstatus_to_exitcode(status)}")
        return msgspec.json.decode(data, type=Report)

    def kill(self) -> None:
        """Give the reload up."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.memory)
        self.close()

    def close(self) -> None:
        """Close what only the reload itself needs: ``memory`` is the caller's now."""
        os.close(self.said)


class Taker:
    """Takes over configurations that are handed to a worker; of several that wait only the last. Make it in a loop.

    Args:
        server: the worker's.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None
        self.memory: int | None = None

    def offer(self, memory: int) -> None:
        """Take over, soon, what is in this memory, which is closed then."""
        if self.memory is not None:
            os.close(self.memory)
        self.memory = memory
        if self.task is None or self.task.done():
            self.task = self.loop.create_task(self.take_all(), name="tabi-reload")

    async def take_all(self) -> None:
        """Take over until there is nothing more."""
        while self.memory is not None:
            memory, self.memory = self.memory, None
            try:
                await self.take(memory)
            except ConfigError as exc:  # as when a certificate has changed since
                log.error("not reloaded, the old configuration stays: %s", exc)
            except Exception:
                log.exception("a reload failed, the old configuration stays")
            finally:
                os.close(memory)

    async def take(self, memory: int) -> None:
        """Take over one configuration, in steps."""
        began = perf_counter()
        gc.disable()  # it would look at all of it again and again, 20 ms and more at a stretch
        try:
            for _ in taking(self.server, memory):
                if perf_counter() - began >= STEP:
                    await asyncio.sleep(0)
                    began = perf_counter()
        finally:
            if gc.get_count()[0] > MANY:
                gc.freeze()
            gc.enable()

    async def close(self) -> None:
        """Take no more."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        if self.memory is not None:
            os.close(self.memory)
            self.memory = None


def taking(server: Server, memory: int) -> Generator[None, None, None]:
    """The steps of taking over."""
    compiled = yield from handover.read(memory)
    yield from server.replace(compiled)


def load(memory: int) -> Compiled:
    """What is in memory, at once: for a worker that begins with it. Raises ConfigError."""
    steps = handover.read(memory)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        compiled: Compiled = end.value
    return compiled
