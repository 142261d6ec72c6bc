"""Failover: who is asked, in which order, and when another one is."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from conftest import Run
from doubles import FakeResolver
from tabi.errors import DialError
from tabi.net.failover import AVOID, Failover
from tabi.net.resolve import IP, Answer, Named


class Source:
    """Answers or fails, as a test has it."""

    def __init__(self, address: str | None, asked: list[Source]) -> None:
        self.address = address
        self.asked = asked
        self.failing = False
        self.closed = False

    async def answer(self, name: str) -> Answer:
        """See `tabi.net.resolve.Source`."""
        self.asked.append(self)
        if self.failing:
            raise DialError(f"{name}: {self.address} is silent", 4)
        return Answer([] if self.address is None else [ip_address(self.address)], 60)

    async def reverse(self, address: IP) -> Named:
        """See `tabi.net.resolve.Source`."""
        self.asked.append(self)
        if self.failing:
            raise DialError(f"{address}: {self.address} is silent", 4)
        return Named("name.test", 60)

    async def close(self) -> None:
        """See `tabi.net.resolve.Source`."""
        self.closed = True


class Parts:
    """Three sources and what asks them; the second one says that nothing exists."""

    def __init__(self, tries: int = 2) -> None:
        self.asked: list[Source] = []
        self.first, self.second, self.third = (Source(text, self.asked) for text in ("192.0.2.1", None, "192.0.2.3"))
        self.now = 1000.0
        self.bootstrap = FakeResolver()
        sources = [self.first, self.second, self.third]
        self.failover = Failover(sources, tries, self.bootstrap, lambda: self.now)

    async def ask(self) -> list[Source]:
        """Whom one question is put to."""
        self.asked.clear()
        await self.failover.answer("a.test")
        return list(self.asked)


def test_the_first_that_answers_is_the_only_one_asked(run_once: Run) -> None:
    """That a name does not exist is an answer as well."""

    async def main() -> None:
        parts = Parts()
        assert await parts.ask() == [parts.first]
        parts.first.failing = True
        assert (await parts.failover.answer("a.test")).addresses == []
        assert parts.asked == [parts.first, parts.first, parts.second]

    run_once(main)


def test_who_has_failed_is_asked_last_for_a_while(run_once: Run) -> None:
    """Only the question that meets the failure waits for it; later it has its place again."""

    async def main() -> None:
        parts = Parts()
        parts.first.failing = True
        assert await parts.ask() == [parts.first, parts.second]
        assert await parts.ask() == [parts.second]
        parts.now += AVOID
        assert await parts.ask() == [parts.first, parts.second]
        parts.first.failing = False
        parts.now += AVOID
        assert await parts.ask() == [parts.first]

    run_once(main)


def test_who_answers_again_is_in_its_place_at_once(run_once: Run) -> None:
    """Being asked last is over as soon as it answers."""

    async def main() -> None:
        parts = Parts()
        for source in parts.failover.sources:
            source.failing = True  # type: ignore[attr-defined]
        with pytest.raises(DialError):
            await parts.ask()
        parts.first.failing = False
        assert await parts.ask() == [parts.first]
        assert await parts.ask() == [parts.first]

    run_once(main)


@pytest.mark.parametrize("tries", [1, 3])
def test_when_all_fail_the_last_failure_is_told(run_once: Run, tries: int) -> None:
    """After so many tries of all."""

    async def main() -> None:
        parts = Parts(tries)
        for source in parts.failover.sources:
            source.failing = True  # type: ignore[attr-defined]
        with pytest.raises(DialError, match=r"^a\.test: 192\.0\.2\.3 is silent$"):
            await parts.ask()
        assert parts.asked == [parts.first, parts.second, parts.third] * tries

    run_once(main)


@pytest.mark.parametrize("name", ["localhost", "db.localhost"])
def test_localhost_is_asked_of_nobody(run_once: Run, name: str) -> None:
    """RFC 6761: it is this machine, whatever a server would say."""

    async def main() -> None:
        parts = Parts()
        found = await parts.failover.answer(name)
        assert all(address.is_loopback for address in found.addresses)
        assert parts.asked == []

    run_once(main)


def test_who_answers_others_meanwhile_keeps_its_place(run_once: Run) -> None:
    """A name that a server does not answer for says nothing about the server: a client may ask for as many as it
    likes, and others are sent nowhere else for it."""

    async def main() -> None:
        parts = Parts()
        release = asyncio.Event()
        honest = parts.first.answer

        async def answer(name: str) -> Answer:
            if name == "silent.test":
                await release.wait()
                raise DialError("silent.test: no answer", 4)
            return await honest(name)

        parts.first.answer = answer  # type: ignore[method-assign]
        waiting = asyncio.get_running_loop().create_task(parts.failover.answer("silent.test"))
        await asyncio.sleep(0)
        assert await parts.ask() == [parts.first]
        release.set()
        assert (await waiting).addresses == []
        assert await parts.ask() == [parts.first]

    run_once(main)


def test_in_turn_where_that_is_wanted(run_once: Run) -> None:
    """Each question begins with the next one; those that failed lately are still the last."""

    async def main() -> None:
        parts = Parts()
        parts.failover.step = 1
        assert [await parts.ask() for _ in range(4)] == [[parts.first], [parts.second], [parts.third], [parts.first]]
        parts.second.failing = True
        assert await parts.ask() == [parts.second, parts.third]
        await parts.ask()
        await parts.ask()
        assert await parts.ask() == [parts.third]

    run_once(main)


def test_close_closes_all(run_once: Run) -> None:
    """The sources, and what finds their addresses."""

    async def main() -> None:
        parts = Parts()
        await parts.failover.close()
        assert parts.first.closed
        assert parts.second.closed
        assert parts.third.closed
        assert parts.bootstrap.closed

    run_once(main)


def test_the_names_of_addresses_fail_over_as_addresses_do(run_once: Run) -> None:
    """A source that fails is asked last from then on, for both; nobody is asked who this machine is."""

    async def main() -> None:
        parts = Parts()
        parts.first.failing = True
        assert (await parts.failover.reverse(ip_address("192.0.2.1"))).name == "name.test"
        assert parts.asked == [parts.first, parts.second]
        assert await parts.ask() == [parts.second]
        parts.asked.clear()
        for address in ("127.0.0.1", "::1"):
            assert await parts.failover.reverse(ip_address(address)) == Named("localhost", None)
        assert parts.asked == []

    run_once(main)
