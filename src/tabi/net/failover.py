"""Several sources of answers: if one fails, the next is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from time import monotonic
from typing import TypeVar

from tabi.errors import DialError
from tabi.net.resolve import IP, Answer, Named, Resolver, Source

T = TypeVar("T")

AVOID = 30.0
"""Seconds in which a source that has failed is asked after all others."""

LOCALHOST = Answer([IPv4Address("127.0.0.1"), IPv6Address("::1")], None)
"""RFC 6761 section 6.3: name servers are not asked for localhost."""


class Failover:
    """Asks sources in their order, those that failed lately last, until one has an answer.

    That a name does not exist is an answer too. A source that is silent costs the questions that meet it first; what
    others ask then goes past it. A source that has answered others meanwhile keeps its place: it is the name that it
    does not answer for.

    Args:
        sources: each limits by itself how long it takes.
        tries: how often all of them are asked at most.
        bootstrap: finds the addresses of name servers that have a name, closed with the sources.
        clock: seconds that never go back.
        rotate: each question begins with the next source.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tries: int,
        bootstrap: Resolver | None = None,
        clock: Callable[[], float] = monotonic,
        rotate: bool = False,
    ) -> None:
        self.sources = sources
        self.tries = tries
        self.bootstrap = bootstrap
        self.clock = clock
        self.step = int(rotate)
        self.turn = 0
        self.avoided = dict.fromkeys(sources, 0.0)
        """Until when."""
        self.answers = dict.fromkeys(sources, 0)
        """How many each has given."""

    async def answer(self, name: str) -> Answer:
        """See `Source`. What the last one failed with is raised."""
        if name == "localhost" or name.endswith(".localhost"):
            return LOCALHOST
        return await self.try_each(lambda source: source.answer(name))

    async def reverse(self, address: IP) -> Named:
        """See `Source`; as `answer`."""
        if address in LOCALHOST.addresses:
            return Named("localhost", None)
        return await self.try_each(lambda source: source.reverse(address))

    async def try_each(self, ask: Callable[[Source], Awaitable[T]]) -> T:
        """The answer of the first source that has one. Raises what the last one failed with."""
        failure: DialError | None = None
        first, self.turn = self.turn, (self.turn + self.step) % len(self.sources)
        sources = [*self.sources[first:], *self.sources[:first]]
        for _ in range(self.tries):
            now = self.clock()
            for source in sorted(sources, key=lambda source: self.avoided[source] > now):
                before = self.answers[source]
                try:
                    answer = await ask(source)
                except DialError as exc:
                    failure = exc
                    if self.answers[source] == before:
                        self.avoided[source] = self.clock() + AVOID
                else:
                    self.answers[source] += 1
                    self.avoided[source] = 0.0
                    return answer
        assert failure is not None
        raise failure

    async def close(self) -> None:
        """See `Source`."""
        async with contextlib.AsyncExitStack() as closing:
            if self.bootstrap is not None:
                closing.push_async_callback(self.bootstrap.close)
            for source in self.sources:
                closing.push_async_callback(source.close)
