"""What a run says at its end: which hosts the program went to, and how much came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tabi.errors import printable
from tabi.observe.observers import SessionObserver
from tabi.session import Session

if TYPE_CHECKING:
    from tabi.intercept.flow import Flow

MOST_HOSTS = 1_000
"""Destinations that are counted by themselves; what comes to others is counted together."""

SHOWN = 20
"""Destinations that are shown."""

OTHERS = "other hosts"

READS_NONE = {
    "node": "Node reads these variables from 22.21 and 24.5 on",
    "npx": "Node reads these variables from 22.21 and 24.5 on",
    "php": "PHP reads these variables in its curl functions only",
    "docker": "docker pull and containers do not get these variables",
    "ssh": "ssh reads no such variables: ProxyCommand='tabi connect --via URL %h:%p'",
    "go": "programs in Go never ask a proxy for this machine itself",
    "chromium": "a browser asks a proxy for this machine itself only with --proxy-bypass-list=<-loopback>",
}
"""Why a program may have gone past the proxy."""


class Host:
    """What went to one destination."""

    __slots__ = ("down", "error", "failed", "intercepted", "pinned", "sessions", "up")

    def __init__(self) -> None:
        self.sessions = 0
        self.failed = 0
        self.intercepted = 0
        self.pinned = 0
        self.up = 0
        self.down = 0
        self.error = ""

    def add(self, session: Session) -> None:
        """Count a session."""
        self.sessions += 1
        self.up += session.up
        self.down += session.down
        self.intercepted += session.intercepted is not None
        self.pinned += session.pinned
        if session.error is not None:
            self.failed += 1
            self.error = session.error

    def __str__(self) -> str:
        parts = [f"{count(self.sessions, 'session')}, {octets(self.up)} up, {octets(self.down)} down"]
        if self.intercepted:
            parts.append(f"{self.intercepted:,} intercepted")
        if self.pinned:
            parts.append(f"{self.pinned:,} pinned (the client refuses our certificate)")
        if self.failed:
            parts.append(f"{self.failed} failed: {self.error}" if self.error else f"{self.failed} failed")
        return ", ".join(parts)


class Summary(SessionObserver):
    """Counts the sessions of a run, by destination, and as a hook the flows; ``faults`` is what they all had."""

    title = "the summary"

    def __init__(self, faults: Sequence[str] = ()) -> None:
        self.faults = faults
        self.hosts: dict[str, Host] = {}
        self.flows = 0

    def flow_end(self, flow: Flow) -> None:
        """A hook: a request of an intercepted session is over."""
        self.flows += 1

    def ended(self, session: Session) -> None:
        """See `SessionObserver`."""
        if session.silent:
            return
        name = str(session.destination) if session.destination is not None else "no destination"
        if name not in self.hosts and len(self.hosts) >= MOST_HOSTS:
            name = OTHERS
        self.hosts.setdefault(name, Host()).add(session)

    def lines(self, program: str, unused: str | None = None) -> Iterator[str]:
        """The summary, a line for all and one for each destination, what failed and what was much first.

        Args:
            program: the name of the command, for the case that nothing came.
            unused: the variable of another proxy that was not used, for the case that something failed.
        """
        if not self.hosts:
            reason = READS_NONE.get(program, "a program may read no such variables, or have a proxy of its own set")
            yield f"nothing came through the proxy: {reason}"
            return
        total = Host()
        for host in self.hosts.values():
            for name in ("sessions", "failed", "intercepted", "pinned", "up", "down"):
                setattr(total, name, getattr(total, name) + getattr(host, name))
        flows = f", {count(self.flows, 'flow')}" if self.flows else ""
        faults = f", with the fault{'s' * (len(self.faults) > 1)} {', '.join(self.faults)}" if self.faults else ""
        yield printable(f"{total}, {count(len(self.hosts), 'host')}{flows}{faults}")
        order = sorted(self.hosts.items(), key=lambda item: (-item[1].failed, -item[1].up - item[1].down, item[0]))
        for name, host in order[:SHOWN]:
            yield printable(f"  {name}: {host}")
        if len(order) > SHOWN:
            yield f"  and {len(order) - SHOWN} more"
        if total.failed and unused:
            yield f'the proxy of {unused} was not used: --via "${unused}" goes through it'


def count(number: int, word: str) -> str:
    """A number with its word."""
    return f"{number} {word}" if number == 1 else f"{number:,} {word}s"


def octets(number: int) -> str:
    """Octets in a unit that is easily read."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{number} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
