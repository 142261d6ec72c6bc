"""A server that `tabi top` is tried with: it answers as the control socket does, from what the test has put there."""

from __future__ import annotations

import threading
from typing import Any

from tabi.cli.top.looks import Look, Looks, Query
from tabi.errors import TabiError
from tabi.observe.exposition import render

HOSTILE = "a\x1b[2J[red]\r\n\x9b\u202e\ud800"
"""A name that a terminal, or a reader of markup, would do something with."""


def session(number: int, **more: Any) -> dict[str, Any]:
    """A session as the server tells of it."""
    row = {
        "id": f"5f3a1c-{number:x}",
        "listener": "socks5://127.0.0.1:1080",
        "protocol": "socks5",
        "command": "connect",
        "client": f"10.0.0.{number % 250 + 1}:{40_000 + number}",
        "user": None,
        "host": "example.com",
        "port": 443,
        "address": "192.0.2.1:443",
        "rule": None,
        "via": "direct",
        "member": None,
        "up": 0,
        "down": 0,
        "seconds": 1.0,
    }
    return {**row, **more}


def account(name: str, **more: Any) -> dict[str, Any]:
    """What limits have for somebody."""
    row = {"sessions": 0, "connections": None, "bandwidth": None, "quota": None, "quota_octets": None, "used": 0}
    return {"name": name, **row, **more}


def member(name: str, **more: Any) -> dict[str, Any]:
    """A member of a pool."""
    row = {"up": True, "drained": False, "sessions": 0, "failures": 0, "trial_in": None, "reason": None}
    return {"pool": "exits", "member": name, **row, **more}


def refusal(number: int, **more: Any) -> dict[str, Any]:
    """A request that was refused."""
    row = {
        "time": 1_700_000_000.0 - number,
        "number": number,
        "listener": "l",
        "protocol": "socks5",
        "command": "connect",
        "client": "10.0.0.7:4000",
        "user": None,
        "host": "192.168.0.1",
        "port": 22,
        "rule": None,
        "reply": 2,
        "error": "the guard keeps clients out of private networks",
        "close": "denied",
    }
    return {"id": f"5f3a1c-{number:x}", **row, **more}


class Watched:
    """The server. Time passes as the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sessions: list[dict[str, Any]] = []
        self.users: list[dict[str, Any]] = []
        self.accounts: list[dict[str, Any]] = []
        self.members: list[dict[str, Any]] = []
        self.refusals: list[dict[str, Any]] = []
        self.silent: list[int] = []
        self.matching: int | None = None
        self.counted: dict[str, dict[Any, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.gone = ""
        """Why it does not answer."""
        self.open = threading.Event()
        """Whether it answers now; else who asks waits."""
        self.open.set()
        self.waits = threading.Event()
        """Somebody has asked, and waits."""

    def count(self, name: str, value: float, **labels: str) -> None:
        """Set a metric."""
        self.counted.setdefault(name, {})[tuple(labels.items())] = value

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Answer."""
        self.asked.append((command, arguments))
        self.waits.set()
        assert self.open.wait(20)
        if self.gone:
            raise TabiError(self.gone)
        answer = getattr(self, f"tell_{command}")(**arguments)
        return {**answer, "silent": self.silent}

    def tell_metrics(self, format: str) -> dict[str, Any]:
        """Its metrics."""
        return {"text": render(self.counted)}

    def tell_sessions(self, filter: dict[str, str], sort: str, limit: int) -> dict[str, Any]:
        """Its sessions, in the order in which they are."""
        wanted = filter.get("search", "")
        rows = [row for row in self.sessions if any(wanted in str(row[key]) for key in ("user", "client", "host"))]
        matching = len(rows) if self.matching is None else self.matching
        return {"sessions": [dict(row) for row in rows[:limit]], "matching": matching}

    def tell_users(self) -> dict[str, Any]:
        """Its users."""
        return {"users": self.users, "accounts": self.accounts}

    def tell_egress(self) -> dict[str, Any]:
        """The members of its pools."""
        return {"members": [dict(row) for row in self.members]}

    def tell_refusals(self) -> dict[str, Any]:
        """Its refusals."""
        return {"refusals": self.refusals}

    def tell_kick(self, filter: dict[str, str]) -> dict[str, Any]:
        """End sessions."""
        ended = [row for row in self.sessions if all(row[key] == value for key, value in filter.items())]
        self.sessions = [row for row in self.sessions if row not in ended]
        return {"ended": len(ended)}

    def tell_steer(self, action: str, pool: str, member: str) -> dict[str, Any]:
        """Take a member out, or in."""
        for row in self.members:
            if (row["pool"], row["member"]) == (pool, member):
                row["drained"] = action == "drain"
        return {"done": True}

    @property
    def looks(self) -> Looks:
        """What looks at it."""
        return Looks(self.ask, lambda: self.now)

    def look(self, **query: str) -> Look:
        """The first look of one."""
        return self.looks.take(Query(**query))
