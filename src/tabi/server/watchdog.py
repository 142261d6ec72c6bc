"""The watchdog: says which session has held up all others, when a turn of the loop was slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address, from_sockaddr

log = logging.getLogger("tabi")

REPORT_EVERY = 60.0
"""Seconds between two lines in the log."""


Suspect = Callable[[float], "str | None"]


class Watchdog:
    """Told of slow turns by the reactor.

    Args:
        running: the sessions that run, each with its task while it has one.

    Attributes:
        suspects: asked what of theirs was slow since a moment, such as `intercept.hooks.Hooks.slow_since`.
    """

    def __init__(self, running: Mapping[Session, asyncio.Task[None] | None]) -> None:
        self.running = running
        self.suspects: list[Suspect] = []
        self.slow_turns = 0
        self.next_report = 0.0

    def __call__(self, seconds: float, culprits: Sequence[object], now: float) -> None:
        """Count a slow turn, and say whose it was if the last line is a minute old. See `net.reactor.Watchdog`."""
        self.slow_turns += 1
        if now < self.next_report:
            return
        self.next_report = now + REPORT_EVERY
        known = [name for suspect in self.suspects if (name := suspect(now - seconds)) is not None]
        sessions = dict.fromkeys(map(self.describe, culprits))
        whose = " of ".join([*known[:1], *([" or ".join(sessions)] if sessions else [])]) or "a callback of the program"
        text = "a turn of the loop took %.0f ms, most of it for %s; slow turns so far: %d"
        log.warning(text, seconds * 1000, whose, self.slow_turns)

    def describe(self, culprit: object) -> str:
        """Say whose a handler was."""
        session = self.session_of(culprit)
        return type(culprit).__name__ if session is None else f"session {session.number:x} of {session.client}"

    def session_of(self, culprit: object) -> Session | None:
        """The session that a handler's owner works for: it has it, or its task is the session's, or its peer is."""
        culprit = getattr(culprit, "owner", culprit)
        for part in (culprit, getattr(culprit, "relay", None), getattr(culprit, "association", None)):
            session = getattr(part, "session", None)
            if isinstance(session, Session):
                return session
        waits = (getattr(culprit, "reader", None), getattr(culprit, "writer", None))
        tasks = [culprit, *(getattr(getattr(one, "callback", None), "__self__", None) for one in waits)]
        found = (session for session, task in self.running.items() if task is not None and task in tasks)
        if (session := next(found, None)) is not None or not isinstance(culprit, Stream):
            return session
        peer = peer_of(culprit)
        return next((one for one in self.running if peer is not None and peer in (one.client, one.address)), None)


def peer_of(stream: Stream) -> Address | None:
    """Where a stream is connected to, if it still is."""
    try:
        sockaddr = stream.sock.getpeername()
    except OSError:
        return None
    return from_sockaddr(sockaddr) if isinstance(sockaddr, tuple) else None
