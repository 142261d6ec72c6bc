"""The processes that the supervisor starts: when each is started again, and how it begins."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Collection

from tabi.net.privileges import Identity, become
from tabi.server.channel import Channel, make_channel
from tabi.server.handled_signals import forget_handlers
from tabi.signals import ignore

log = logging.getLogger("tabi")

FIRST_DELAY, LAST_DELAY = 0.1, 30.0
"""Seconds before a process that has died is started again: doubled each time."""

STEADY = 10.0
"""Seconds after which a process counts as one that works, so that its next start is quick again."""

PATIENCE = 1.0
"""Seconds that a process gets to end when the supervisor does."""


class Place:
    """One place for a process: the process in it, and when the next one starts if it is empty."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.channel: Channel | None = None
        self.delay = FIRST_DELAY
        self.started = 0.0
        self.due = 0.0

    def fork(self) -> Channel | None:
        """Fork a process that fills it. Returns None in this process, and the other end of its channel in the new one.

        Raises:
            OSError: the system has no room for a process.
        """
        self.started = time.monotonic()
        ours, theirs = make_channel()
        ours.interrupt()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if not pid:
            ours.close()
            forget_handlers()
            return theirs
        theirs.close()
        self.pid, self.channel = pid, ours
        return None

    def postpone(self, now: float) -> float:
        """Set when it is filled again: each time later, unless the process ran for a while. Returns the seconds."""
        if now - self.started >= STEADY:
            self.delay = FIRST_DELAY
        delay = self.delay
        self.due = now + delay
        self.delay = min(delay * 2, LAST_DELAY)
        return delay

    def empty(self) -> None:
        """Take note that its process has ended."""
        self.pid = None
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class Child(Place):
    """A process that helps the supervisor, for as long as that lives; it is told the end by the end of its channel.

    Args:
        name: as messages and ps(1) have it.
        run: what it does, with its end of the channel.
        keeps: descriptors that it needs, in addition to the standard streams and the channel. It has no others.
        says_ready: whether its first message says that it is ready, so that the start waits for it.
        hears_reloads: whether it is given each configuration that is read again.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Channel], object],
        keeps: Callable[[], Collection[int]] = tuple,
        says_ready: bool = False,
        hears_reloads: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.keeps = keeps
        self.says_ready = says_ready
        self.hears_reloads = hears_reloads
        self.retired = False
        self.identity: Identity | None = None
        """Who it becomes, if it is somebody else."""

    def start(self) -> None:
        """Fork it. Raises OSError."""
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # by our parent: then it could not be reaped
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        channel = self.fork()
        if channel is None:
            return
        code = 1
        try:
            close_others({0, 1, 2, channel.fileno(), *self.keeps()})
            ignore(
                signal.SIGIO, signal.SIGINT, signal.SIGTERM
            )  # they go to whole groups; the supervisor says when this one ends
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
                file.write(self.name)
            if self.identity is not None:
                become(self.identity)
            gc.freeze()  # the collector must not visit the supervisor's objects, which would copy its memory
            self.run(channel)
            code = 0
        except BaseException:
            log.exception("%s failed", self.name)
        finally:
            os._exit(code)

    def keep_up(self, now: float) -> None:
        """Start it, if it does not run and it is time. If that fails it is tried again later."""
        if self.pid is None and self.due <= now and not self.retired:
            try:
                self.start()
            except OSError as exc:
                self.said(f"{self.name} could not be started: {exc.strerror}", now)

    def retire(self) -> None:
        """Tell it to end, and start no other one."""
        self.retired = True
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def reap(self, now: float) -> None:
        """Take note of its end, which was not ordered."""
        if self.pid is None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.empty()
            if self.retired:
                return
            self.said(f"{self.name} {pid} {describe_end(status)}", now)

    def said(self, what: str, now: float) -> None:
        """Log why it is started again, and when."""
        log.error("%s; another starts in %.1f s", what, self.postpone(now))

    def close(self) -> None:
        """End it: by its own order, or by SIGKILL if that takes longer than PATIENCE."""
        pid = self.pid
        self.empty()
        if pid is None:
            return
        deadline = time.monotonic() + PATIENCE
        while not os.waitpid(pid, os.WNOHANG)[0]:
            if time.monotonic() >= deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.002)


def describe_end(status: int) -> str:
    """How a process has ended, by what waitpid(2) says."""
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def close_others(kept: Collection[int]) -> None:
    """Close all descriptors but these."""
    start = 0
    for fd in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        if start < fd:  # closerange(0, 0) closes all of them
            os.closerange(start, fd)
        start = fd + 1
