"""Small ways out: blocked, resolved here, apart for each user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conftest import Run
from doubles import FakeResolver
from tabi.egress import ways
from tabi.egress.direct import Way
from tabi.egress.ways import Block, Isolated, ResolveHere
from tabi.errors import DialError, PolicyDenied
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.policy.grammar import Parameters
from tabi.policy.guard import permit_any
from tabi.session import Session
from tabi.wire.address import Address, parse_host
from tabi.wire.socks5 import Credentials


class Recorder(Way):
    """A way out that notes what it was asked for, and gives nothing."""

    name = "below"

    def __init__(self, credentials: Credentials | None = None) -> None:
        self.credentials = credentials
        self.asked: list[str] = []

    async def open(self, destination: Address, permit: Any, session: Session | None = None) -> Any:
        self.asked.append(str(destination))


def session(user: str | None = None, token: str | None = None, client: str = "192.0.2.1") -> Session:
    """On whose behalf."""
    made = Session(1, "", Address(parse_host(client), 1), 0.0)
    made.user = user
    made.parameters = None if token is None else Parameters((), token)
    return made


@asynccontextmanager
async def resolving(names: dict[str, list[str]], below: Recorder) -> AsyncIterator[ResolveHere]:
    """A way that resolves these names."""
    dialer = Dialer(get_reactor(), FakeResolver(names), 0.05)
    try:
        yield ResolveHere(below, dialer)
    finally:
        await dialer.close()


def test_block_refuses_everything(run_once: Run) -> None:
    """Reply 02, with its name."""

    async def main() -> None:
        with pytest.raises(PolicyDenied, match=r"^egress block: example\.com:80$"):
            await Block("block").open(Address("example.com", 80), permit_any)

    run_once(main)


def test_names_become_addresses_that_are_permitted(run_once: Run) -> None:
    """IPv4 first, for most proxies have it; an address stays one, and so does what was resolved for a decision."""

    async def main() -> None:
        below = Recorder()
        seen: list[Any] = []
        async with resolving({"both.test": ["2001:db8::1", "192.0.2.7"], "six.test": ["2001:db8::1"]}, below) as way:
            for name in ("both.test", "six.test", "192.0.2.9"):
                await way.open(Address(parse_host(name), 80), seen.append)
            known = session()
            known.addresses = [parse_host("192.0.2.5")]  # type: ignore[list-item]
            known.destination = Address("known.test", 80)
            await way.open(known.destination, seen.append, known)
        assert below.asked == ["192.0.2.7:80", "[2001:db8::1]:80", "192.0.2.9:80", "known.test:80"]
        assert list(map(str, seen)) == ["2001:db8::1", "192.0.2.7", "2001:db8::1"]

    run_once(main)


def test_a_resolver_that_is_silent_has_a_deadline(run_once: Run) -> None:
    """That of connecting."""

    async def main() -> None:
        async with resolving({"slow.test": ["192.0.2.7"]}, Recorder()) as way:
            resolver: Any = way.dialer.resolver
            resolver.answering.clear()
            with pytest.raises(DialError, match=r"slow\.test:80: no answer within 0\.05 s"):
                await way.open(Address("slow.test", 80), permit_any)

    run_once(main)


@pytest.mark.parametrize(
    ("apart", "same"),
    [
        (["user"], [("alice", "1", "192.0.2.1"), ("alice", "2", "192.0.2.2")]),
        (["session"], [("alice", "1", "192.0.2.1"), ("bob", "1", "192.0.2.2")]),
        (["client"], [("alice", "1", "192.0.2.1"), ("bob", "2", "192.0.2.1")]),
        (["user", "session"], [("alice", "1", "192.0.2.1"), ("alice", "1", "192.0.2.9")]),
    ],
)
def test_who_belongs_together_has_the_same_user(
    run_once: Run, apart: list[Any], same: list[tuple[str, str, str]]
) -> None:
    """And nobody else has it; it tells nothing of who it is."""

    async def main() -> None:
        made: list[Recorder] = []

        def make(credentials: Credentials) -> Recorder:
            made.append(Recorder(credentials))
            return made[-1]

        way = Isolated(make, apart)
        for who in same:
            await way.open(Address("x", 1), permit_any, session(*who))
        assert len(made) == 1
        await way.open(Address("x", 1), permit_any, session("carol", "3", "192.0.2.3"))
        await way.open(Address("x", 1), permit_any, session("carol", None, "192.0.2.4"))
        await way.open(Address("x", 1), permit_any)
        names = [one.credentials.username for one in made if one.credentials is not None]
        assert len(set(names)) == len(names) > 1
        assert all(len(name) == 32 for name in names)

    run_once(main)


def test_a_bounded_number_of_them_is_kept(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has rested longest is made anew."""
    monkeypatch.setattr(ways, "KEPT", 2)

    async def main() -> None:
        made: list[Credentials] = []

        def make(credentials: Credentials) -> Recorder:
            made.append(credentials)
            return Recorder(credentials)

        way = Isolated(make, ["user"])
        for user in ("a", "b", "a", "c", "a", "b"):
            await way.open(Address("x", 1), permit_any, session(user))
        assert len(made) == 4
        assert len(way.ways) == 2

    run_once(main)
