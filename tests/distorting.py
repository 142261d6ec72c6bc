"""For tests of faults: a server with them, faults that are set while it runs, and what its sessions have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from doubles import FakeResolver
from tabi import Server, Session
from tabi.config import Config, Listen, Log
from tabi.config.compile import make_distort
from tabi.config.distort import DistortConfig
from tabi.config.load import check_types
from tabi.distort.distortion import Distortion
from tabi.distort.draws import Entry
from tabi.policy.distorts import Distort
from tabi.relay.relay import Relay
from tabi.relay.staged import StagedFlow

LISTEN = "mixed://127.0.0.1:0"
LATE = "1000s"
"""A latency that no test waits for: what has it comes when the fault is taken away."""


def entry_of(fault: Any, **keys: Any) -> DistortConfig:
    """One ``[[distort]]``, as of a file."""
    return msgspec.convert({"fault": fault, **keys}, DistortConfig, dec_hook=lambda kind, value: kind.parse(value))


def distort(name: str | None = None, fault: Any = None, number: int = 0, live: bool = False, **keys: Any) -> Distort:
    """An entry as it is compiled; by default a latency."""
    made = make_distort(entry_of(fault or {"latency": 1}, name=name, **keys), number)
    return msgspec.structs.replace(made, live=live)


def config_of(*distorts: DistortConfig, listen: Sequence[Listen] = (Listen(LISTEN),), **options: Any) -> Config:
    """A configuration with these entries."""
    options.setdefault("log", Log("none"))
    return check_types(Config(listen=list(listen), distort=list(distorts), **options))


class Served:
    """A running server with faults."""

    def __init__(self, server: Server, over: list[Session]) -> None:
        self.server = server
        self.over = over
        """The sessions that have ended."""

    @property
    def address(self) -> Any:
        """Where it listens."""
        return self.server.addresses[0]

    @property
    def distortion(self) -> Distortion:
        """Its entries at work."""
        assert self.server.parts.molding is not None
        return self.server.parts.molding.distortion

    def entry(self, label: str) -> Entry:
        """One of them."""
        return next(entry for entry in self.distortion.entries.values() if entry.distort.label == label)

    def set(self, name: str, fault: Any, **keys: Any) -> Entry:
        """Set a fault while it runs, or change it."""
        parts = self.server.parts
        if parts.molding is None:
            parts.molding = parts.make_molding()
        made: Distort = make_distort(entry_of(fault, **keys), 0, {}, name)
        parts.molding.live[name] = msgspec.structs.replace(made, live=True)
        parts.take_distorts(parts.compiled.distorts)
        return self.entry(name)

    def remove(self, name: str) -> None:
        """Take it away."""
        parts = self.server.parts
        assert parts.molding is not None
        del parts.molding.live[name]
        parts.take_distorts(parts.compiled.distorts)

    def relay_of(self, session: Session) -> Relay:
        """The relay of a session, of those that have no other carrier."""
        return self.server.parts.relays.active[session]

    def is_staged(self, session: Session) -> bool:
        """Whether its octets pass through stages, or did."""
        relay = self.relay_of(session)
        return isinstance(relay.up, StagedFlow) or isinstance(relay.down, StagedFlow)


@contextlib.asynccontextmanager
async def distorting(*distorts: DistortConfig, names: Sequence[str] = (), **options: Any) -> AsyncIterator[Served]:
    """A server; its ``names`` are 127.0.0.1. What its sessions had is gone with it."""
    over: list[Session] = []
    kept = {key: options.pop(key) for key in ("carrier", "decide", "hooks", "intercept", "users") if key in options}
    resolver = FakeResolver({name: ["127.0.0.1"] for name in names})
    config = config_of(*distorts, **options)
    async with Server(config=config, on_close=over.append, resolver=resolver, **kept) as server:
        served = Served(server, over)
        yield served
    molding = server.parts.molding
    if molding is not None:
        assert molding.distortion.all == ()
        assert not server.parts.sessions.held
        assert [entry.active for entry in molding.distortion.entries.values() if entry.active] == []


async def until(condition: Any) -> None:
    """Let the loop turn until something holds; the patience of the `run` fixture limits it."""
    while not condition():
        await asyncio.sleep(0.001)
