"""What stands in front of an egress: it waits, refuses, redirects, and fails names; its mistakes are told apart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import tabi
from conftest import Run
from egresses import Recorder, session
from tabi.egress.block import Block
from tabi.egress.direct import Direct
from tabi.egress.inspected import Inspected, check_inspector
from tabi.errors import ConfigError, DialError, PolicyDenied
from tabi.net.dial import StillDialer
from tabi.policy.guard import allow_any_address
from tabi.wire.address import UNSPECIFIED, Address, parse_address
from tabi.wire.socks5 import Command

SOMEWHERE = Address("example.com", 80)


class Noting:
    """An inspector that does what a test says, and notes what it was asked."""

    def __init__(self, found: Any = None, failure: Exception | None = None) -> None:
        self.found = found
        self.failure = failure
        self.asked: list[str] = []
        self.opened = asyncio.Event()
        self.opened.set()

    async def dial(self, session: tabi.Session | None, destination: Address) -> Any:
        self.asked.append(f"dial {destination}{' for somebody' if session else ''}")
        await self.opened.wait()
        return self.found

    async def resolve(self, session: tabi.Session | None, name: str) -> None:
        self.asked.append(f"resolve {name}")
        if self.failure is not None:
            raise self.failure


class Permitting(Recorder):
    """A way out that asks the address filter, as all do."""

    async def open(self, destination: Address, address_filter: Any, session: tabi.Session | None = None) -> Any:
        if not isinstance(destination.host, str):
            address_filter(destination.host)
        await super().open(destination, address_filter, session)


def filter_of(filtered: list[str]) -> Callable[[tabi.Session, int], Any]:
    """The address filter of each port, which notes what it sees."""

    def address_filter_for(of: tabi.Session, port: int) -> Any:
        return lambda address: filtered.append(f"{address} at {port}")

    return address_filter_for


def inspected(inspector: Any, below: Any = None, seconds: float = 10) -> Inspected:
    """One in front of an egress."""
    return Inspected(below or Recorder(), inspector, filter_of([]), seconds)


def test_it_may_let_everything_through(run_once: Run) -> None:
    """It is asked about the connection first, then about the name; about addresses and numbers nobody is asked."""

    async def main() -> None:
        inspector, below = Noting(), Recorder()
        egress = inspected(inspector, below)
        await egress.open(SOMEWHERE, allow_any_address, session())
        for text in ("192.0.2.7:80", "[2001:db8::1]:80"):
            await egress.open(parse_address(text), allow_any_address)
        await egress.open(Address("192.0.2.9", 80), allow_any_address)
        assert inspector.asked == [
            "dial example.com:80 for somebody",
            "resolve example.com",
            "dial 192.0.2.7:80",
            "dial [2001:db8::1]:80",
            "dial 192.0.2.9:80",
        ]
        assert below.asked == ["example.com:80", "192.0.2.7:80", "[2001:db8::1]:80", "192.0.2.9:80"]

    run_once(main)


def test_it_may_redirect(run_once: Run) -> None:
    """The address filter judges what is dialled, with the port that is dialled, and the name is that of the other."""

    async def main() -> None:
        filtered: list[str] = []
        below = Permitting()
        for found in (("192.0.2.7", 80), ("192.0.2.8", 443), ("other.test", 80)):
            inspector = Noting(found)
            egress = Inspected(below, inspector, filter_of(filtered), 10)
            address_filter: Any = lambda address: filtered.append(f"{address} as asked")  # noqa: E731
            await egress.open(SOMEWHERE, address_filter, session())
        assert below.asked == ["192.0.2.7:80", "192.0.2.8:443", "other.test:80"]
        assert filtered == ["192.0.2.7 as asked", "192.0.2.8 at 443"]
        assert inspector.asked == ["dial example.com:80 for somebody", "resolve other.test"]

    run_once(main)


def test_it_may_delay(run_once: Run) -> None:
    """The connection is opened when it says so; a client that leaves meanwhile ends the wait."""

    async def main() -> None:
        inspector, below = Noting(), Recorder()
        inspector.opened.clear()
        egress = inspected(inspector, below)
        async with asyncio.TaskGroup() as group:
            left = group.create_task(egress.open(SOMEWHERE, allow_any_address))
            waits = group.create_task(egress.open(Address("192.0.2.7", 1), allow_any_address))
            while len(inspector.asked) < 2:
                await asyncio.sleep(0)
            assert below.asked == []
            left.cancel()
            inspector.opened.set()
        assert waits.done()
        assert below.asked == ["192.0.2.7:1"]

    run_once(main)


def test_a_delay_has_an_end(run_once: Run) -> None:
    """That of connecting: then it is as if the destination did not answer."""

    async def main() -> None:
        inspector = Noting()
        inspector.opened.clear()
        with pytest.raises(DialError, match=r"example\.com:80: no answer within 0\.05 s") as caught:
            await inspected(inspector, seconds=0.05).open(SOMEWHERE, allow_any_address)
        assert caught.value.reply_code == 4

    run_once(main)


@pytest.mark.parametrize("failure", [DialError("as if it were away", 3), PolicyDenied("not today")])
def test_it_may_refuse(run_once: Run, failure: Exception) -> None:
    """With a reply code of its own, before anything is dialled, and for a question for a name too."""

    async def main() -> None:
        below = Recorder()
        egress = inspected(Noting(failure=failure), below)
        asks: list[Awaitable[object]] = [
            egress.open(SOMEWHERE, allow_any_address),
            egress.ask(Command.RESOLVE, SOMEWHERE, allow_any_address),
            egress.before_resolve("example.com"),
        ]
        for asked in asks:
            with pytest.raises(type(failure), match=str(failure)):
                await asked
        assert below.asked == []

    run_once(main)


@pytest.mark.parametrize(
    ("inspector", "text"),
    [
        (Noting(failure=ValueError("hunter2")), "the dial inspector failed: ValueError"),
        (Noting("example.com"), "the dial inspector gave no destination"),
        (Noting(("example.com", 0)), "the dial inspector gave no destination"),
        (Noting(("example.com", "80")), "the dial inspector gave no destination"),
        (Noting(("exa mple", 80)), "the dial inspector gave no destination"),
        (Noting((7, 80)), "the dial inspector gave no destination"),
    ],
)
def test_a_mistake_of_it_is_ours(run_once: Run, caplog: pytest.LogCaptureFixture, inspector: Any, text: str) -> None:
    """Reply 01 and a line in our log; the client hears no more of it."""

    async def main() -> None:
        with pytest.raises(DialError) as caught:
            await inspected(inspector).open(SOMEWHERE, allow_any_address)
        assert (str(caught.value), caught.value.reply_code) == (text, 1)

    with caplog.at_level(logging.ERROR, "tabi"):
        run_once(main)
    assert len(caplog.records) == 1


def test_what_is_no_connection_goes_below(run_once: Run) -> None:
    """BIND and datagrams; and all that is asked of the egress itself."""

    async def main() -> None:
        inspector = Noting()
        egress = inspected(inspector)
        for asked in (egress.ask(Command.BIND, UNSPECIFIED, allow_any_address), egress.associate()):
            with pytest.raises(DialError, match="carries no datagrams"):
                await asked
        assert inspector.asked == []
        direct = inspected(inspector, Direct(StillDialer(10)))
        assert (direct.name, direct.direct, direct.resolves_locally) == ("direct", True, True)
        assert inspected(inspector, Block("block")).leads_nowhere

    run_once(main)


class Half:
    """Only one of the methods."""

    async def dial(self, session: object, destination: object) -> None: ...


@pytest.mark.parametrize(("given", "kind"), [(None, "NoneType"), (Noting, "Noting"), (Half(), "Half")])
def test_a_wrong_type_is_told_at_the_start(given: Any, kind: str) -> None:
    """By its place."""
    check_inspector(Noting(), "inspector")
    with pytest.raises(ConfigError, match=rf"^inspector: {kind}, expected an object with async dial"):
        check_inspector(given, "inspector")
