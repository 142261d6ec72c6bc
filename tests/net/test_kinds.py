"""IPv4 and IPv6 of one name: who is waited for, how long, and which comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from ipaddress import ip_address
from typing import Any

import pytest

from conftest import Run
from tabi.errors import DialError
from tabi.net import kinds
from tabi.net.kinds import DELAY, first_answer, kinds_of, order_kinds, rank
from tabi.net.resolve import IP, Answer
from tabi.wire.dns import AAAA, A

FOUR, SIX = ip_address("192.0.2.4"), ip_address("2001:db8::6")
Futures = tuple["asyncio.Future[Answer]", "asyncio.Future[Answer]"]


@pytest.fixture(autouse=True)
def routes(monkeypatch: pytest.MonkeyPatch) -> dict[int, str | None]:
    """What this machine sends from, by version; None where it has no route."""
    found: dict[int, str | None] = {4: "192.0.2.100", 6: "2001:db8::100"}

    def source(address: IP) -> IP | None:
        text = found[address.version]
        return None if text is None else ip_address(text)

    monkeypatch.setattr(kinds, "source_toward", source)
    monkeypatch.setattr(kinds, "DELAY", DELAY)
    return found


def ask() -> tuple[Futures, Coroutine[Any, Any, Answer]]:
    """Two questions, and what waits for them."""
    loop = asyncio.get_running_loop()
    futures = loop.create_future(), loop.create_future()
    return futures, first_answer(futures)


def test_what_is_asked_for() -> None:
    """A client that may only have IPv4 costs no question for IPv6."""
    assert (kinds_of("ipv4-only"), kinds_of("ipv6-only")) == ((A,), (AAAA,))
    assert kinds_of("any") == kinds_of("ipv4") == kinds_of("ipv6") == (A, AAAA)


@pytest.mark.parametrize("first", [0, 1])
def test_the_other_kind_has_fifty_milliseconds(run_once: Run, first: int) -> None:
    """The answer goes on without it, and says so; what comes later comes as the rest."""

    async def main() -> None:
        futures, answering = ask()
        loop = asyncio.get_running_loop()
        task = loop.create_task(answering)
        await asyncio.sleep(0)
        futures[first].set_result(Answer([(FOUR, SIX)[first]], 60))
        started = loop.time()
        found = await task
        assert 0.045 < loop.time() - started < 1
        assert (found.addresses, found.whole) == ([(FOUR, SIX)[first]], False)
        futures[1 - first].set_result(Answer([(SIX, FOUR)[first]], 30))
        assert found.rest is not None
        assert await found.rest == Answer([SIX, FOUR], 30)

    run_once(main)


def test_both_at_once_wait_for_nothing(run_once: Run) -> None:
    """The usual case: no timer, no rest, the least time to live of both."""

    async def main() -> None:
        futures, answering = ask()
        futures[0].set_result(Answer([FOUR], 60))
        futures[1].set_result(Answer([SIX], 50))
        assert await answering == Answer([SIX, FOUR], 50)

    run_once(main)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_is_not_an_answer(run_once: Run, failing: int) -> None:
    """With addresses of the other kind the answer has these, and is not whole; without, it is a failure."""

    async def main() -> None:
        for other, expected in ((Answer([FOUR], 60), Answer([FOUR], 60, whole=False)), (Answer([], 60), None)):
            futures, answering = ask()
            futures[failing].set_exception(DialError("x: servfail", 4))
            futures[1 - failing].set_result(other)
            if expected is None:
                with pytest.raises(DialError, match="x: servfail"):
                    await answering
            else:
                assert await answering == expected

    run_once(main)


def test_nothing_of_both_is_an_answer(run_once: Run) -> None:
    """Whatever each says about the reason."""

    async def main() -> None:
        futures, answering = ask()
        futures[0].set_result(Answer([], 30, "no address"))
        futures[1].set_result(Answer([], 20, "domain name not found"))
        assert await answering == Answer([], 20, "no address")

    run_once(main)


def test_no_address_of_a_kind_is_not_a_reason_to_hurry(run_once: Run) -> None:
    """The other kind may have one: it is waited for as long as it takes."""

    async def main() -> None:
        futures, answering = ask()
        task = asyncio.get_running_loop().create_task(answering)
        futures[0].set_result(Answer([], 60))
        await asyncio.sleep(0.06)
        assert not task.done()
        futures[1].set_result(Answer([SIX], 60))
        assert await task == Answer([SIX], 60)

    run_once(main)


def test_the_rest_may_fail_or_be_given_up(run_once: Run) -> None:
    """A failure leaves what is there; given up, the question is cancelled, also before the rest has begun."""

    async def main() -> None:
        futures, answering = ask()
        futures[0].set_result(Answer([FOUR], 60))
        found = await answering
        assert found.rest is not None
        futures[1].set_exception(DialError("x", 4))
        assert await found.rest == Answer([FOUR], 60, whole=False)
        futures, answering = ask()
        futures[0].set_result(Answer([FOUR], 60))
        found = await answering
        assert found.rest is not None
        found.rest.cancel()
        await asyncio.wait((found.rest,))
        await asyncio.sleep(0)
        assert futures[1].cancelled()

    run_once(main)


def test_who_gives_up_takes_the_questions_along(run_once: Run) -> None:
    """Cancelled, nothing goes on; and a question that was cancelled under the rest is a failure of its own."""

    async def main() -> None:
        futures, answering = ask()
        task = asyncio.get_running_loop().create_task(answering)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert futures[0].cancelled()
        assert futures[1].cancelled()
        futures, answering = ask()
        futures[0].set_result(Answer([], 60))
        futures[1].cancel()
        with pytest.raises(DialError, match="closed"):
            await answering

    run_once(main)


def test_the_kind_that_is_reached_comes_first(routes: dict[int, str | None]) -> None:
    """IPv6 where this machine has it for the whole net, else IPv4; the order within a kind is the server's."""
    four, six = [FOUR, ip_address("192.0.2.3")], [SIX, ip_address("2001:db8::5")]
    assert order_kinds([*four, *six]) == [*six, *four]
    routes[6] = "fd00::1"  # a private one leads nowhere from here
    assert order_kinds([*six, *four]) == [*four, *six]
    routes[6] = None
    assert order_kinds([*six, *four]) == [*four, *six]
    routes[4] = None
    assert order_kinds([*four, *six]) == [*six, *four]
    assert order_kinds(four) == four


def test_how_well_an_address_is_reached(routes: dict[int, str | None]) -> None:
    """The table of RFC 6724: private IPv6 is better than IPv4 only where both ends have it."""
    assert rank(ip_address("::1")) > rank(ip_address("2001:db8::1"))  # from another label
    assert rank(FOUR) < rank(ip_address("fd00::1"))
    routes[6] = "fd00::2"
    assert rank(FOUR) < rank(ip_address("fd00::1")) < rank(SIX)


def test_the_source_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is reached from loopback; what has no route, or is not an address for sockets, from nowhere."""
    monkeypatch.undo()
    assert kinds.source_toward(ip_address("127.0.0.1")) == ip_address("127.0.0.1")
    assert kinds.source_toward(ip_address("fe80::1%nothere0")) is None
