"""Egresses of a program: what is told at the start, and what becomes of their mistakes later."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

import tabi
from conftest import Run
from egresses import Recorder, session
from tabi.egress.custom import CustomEgress, check_egresses
from tabi.errors import ConfigError, DialError, PolicyDenied, ProxyError
from tabi.net.reactor import get_reactor
from tabi.policy.guard import allow_any_address
from tabi.wire.address import UNSPECIFIED, Address
from tabi.wire.socks5 import Command

SOMEWHERE = Address("example.com", 80)


class OpensOnly:
    """The least that an egress may be: it does what a test says."""

    def __init__(self, does: Any) -> None:
        self.does = does

    async def open(self, destination: Address, address_filter: Any, session: tabi.Session | None = None) -> Any:
        if isinstance(self.does, BaseException):
            raise self.does
        return await self.does() if callable(self.does) else self.does


class Able(tabi.Egress):
    """One that says more of itself than that it opens connections, and does it wrong."""

    name = "able"
    resolves_locally = True

    async def open(self, destination: Address, address_filter: Any, session: tabi.Session | None = None) -> tabi.Stream:
        raise NotImplementedError

    async def ask(
        self, command: int, destination: Address, address_filter: Any, session: tabi.Session | None = None
    ) -> Any:
        raise ZeroDivisionError

    async def associate(self, session: tabi.Session | None = None) -> Any:
        await asyncio.Event().wait()

    def cannot(self, command: str) -> str | None:
        return None

    def describe(self) -> str:
        return "over the hills"


def custom(given: Any, seconds: float = 10.0) -> CustomEgress:
    """How the server holds it."""
    return CustomEgress("mine", given, seconds)


class NoParameters(tabi.Egress):
    """Its open takes something else."""

    async def open(self, host: str) -> tabi.Stream:  # type: ignore[override]
        raise NotImplementedError


class NoOpen(tabi.Egress):
    """It has forgotten what it is for."""


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("socks5://user:hunter2@127.0.0.1:1", "str, expected an object with async open"),
        (None, "NoneType, expected an object with async open"),
        (Able, "the class Able itself, expected an object"),
        (NoOpen(), "NoOpen does not override open, expected"),
        (NoParameters(), r"NoParameters\.open does not take destination, address_filter and session, expected"),
    ],
    ids=["text", "None", "class", "no-open", "parameters"],
)
def test_a_wrong_type_is_told_at_the_start(given: Any, why: str) -> None:
    """By its place, and without what it holds."""
    with pytest.raises(ConfigError, match=rf"^egresses\.mine: {why}") as caught:
        check_egresses({"mine": given})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["", 7, "a\nb", "socks5://127.0.0.1:1"])
def test_a_name_that_no_rule_could_say(name: Any) -> None:
    """It is told at the start too."""
    with pytest.raises(ConfigError, match="expected a name that can be printed and is not a URL"):
        check_egresses({name: Able()})


def test_what_can_be_an_egress() -> None:
    """A subclass, whatever has the method, and a method whose parameters nobody can read."""
    unreadable: Any = OpensOnly(None)
    unreadable.open = partial(print)
    builtin: Any = OpensOnly(None)
    builtin.open = type  # inspect.signature raises ValueError for it
    check_egresses({"a": Able(), "b": OpensOnly(None), "c": unreadable, "d": builtin})


def test_its_stream_is_handed_on(run_once: Run) -> None:
    """As it is, and the caller closes it; the name is that of the server."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            stream = tabi.Stream(get_reactor(), ours)
            egress = custom(OpensOnly(stream))
            assert await egress.open(SOMEWHERE, allow_any_address) is stream
            assert (egress.name, egress.describe(), egress.direct, egress.resolves_locally) == ("mine",) * 2 + (
                False,
            ) * 2
            stream.close()

    run_once(main)


@pytest.mark.parametrize(
    ("does", "text", "reply_code"),
    [
        (ProxyError("the gate is shut", 5), "the gate is shut", 5),
        (ConnectionRefusedError(111, "Connection refused"), "example.com:80: connection refused", 5),
        (OSError("something"), "example.com:80: input/output error", 1),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "example.com:80: name or service not", 4),
        (ValueError("hunter2"), "egress mine: failed: ValueError", 1),
        (None, "egress mine: open returned no stream", 1),
        (lambda: asyncio.Event().wait(), "example.com:80: no answer within 0.05 s", 4),
    ],
    ids=["own", "refused", "nameless", "lookup", "bug", "nothing", "silence"],
)
def test_whatever_it_does_is_a_reply(
    run_once: Run, caplog: pytest.LogCaptureFixture, does: Any, text: str, reply_code: int
) -> None:
    """A session ends with an error that says it; mistakes of the program are in our log, and not in the answer."""

    async def main() -> None:
        with pytest.raises(tabi.TabiError) as caught:
            await custom(OpensOnly(does), 0.05).open(SOMEWHERE, allow_any_address)
        assert str(caught.value).startswith(text)
        assert caught.value.reply_code == reply_code

    with caplog.at_level(logging.ERROR, "tabi"):
        run_once(main)
    assert len(caplog.records) == ("egress mine" in text)
    assert not caplog.records or "egress mine" in caplog.text


def test_cancelling_reaches_it(run_once: Run) -> None:
    """A client that leaves is not kept waiting, and a cancellation is no failure of the program."""

    async def main() -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(custom(OpensOnly(wait)).open(SOMEWHERE, allow_any_address))
            await began.wait()
            task.cancel()
        assert task.cancelled()
        assert ended.is_set()

    run_once(main)


def test_the_address_filter_is_asked_even_if_it_does_not_ask(run_once: Run) -> None:
    """About an address, a name that is a number, and what a decision was made on; a name is the program's part."""

    def nobody(address: object) -> None:
        raise PolicyDenied(f"guard: {address}")

    async def main() -> None:
        below = Recorder()
        egress = custom(below)
        known = session()
        known.destination, known.addresses = SOMEWHERE, [ip_address("10.0.0.9")]
        for host, on_behalf in ((ip_address("10.0.0.1"), None), ("10.0.0.1", None), (SOMEWHERE.host, known)):
            with pytest.raises(PolicyDenied, match=r"guard: 10\.0\.0\."):
                await egress.open(Address(host, 80), nobody, on_behalf)
        with pytest.raises(PolicyDenied):
            await egress.ask(Command.BIND, Address(ip_address("10.0.0.1"), 0), nobody)
        assert below.asked == []
        with pytest.raises(DialError, match="open returned no stream"):
            await egress.open(SOMEWHERE, nobody)
        assert below.asked == ["example.com:80"]

    run_once(main)


def test_it_may_do_more_than_open(run_once: Run) -> None:
    """It says so by its methods, and they are held as `open` is."""

    async def main() -> None:
        egress = custom(Able(), 0.05)
        assert (egress.resolves_locally, egress.cannot("bind"), egress.describe()) == (
            True,
            None,
            "mine: over the hills",
        )
        with pytest.raises(DialError, match="egress mine: failed: ZeroDivisionError"):
            await egress.ask(Command.BIND, UNSPECIFIED, allow_any_address)
        with pytest.raises(DialError, match=r"datagrams: no answer within 0\.05 s"):
            await egress.associate()
        plain = custom(OpensOnly(None))
        for asked in (plain.ask(Command.BIND, UNSPECIFIED, allow_any_address), plain.associate()):
            with pytest.raises(DialError, match="egress OpensOnly: it carries no datagrams") as caught:
                await asked
            assert caught.value.reply_code == 7
        assert plain.cannot("associate") is not None

    run_once(main)
