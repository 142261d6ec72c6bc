"""Whether a client is still there while something is awaited on its behalf, which its stream takes no part in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from tabi.net.reactor import BROKEN
from tabi.net.stream import Stream


@contextmanager
def hearing(client: Stream, told: Callable[[int], object]) -> Iterator[None]:
    """Call ``told(events)`` for each event of a client in the meantime, after the handler that it has.

    A portable reactor tells of nothing that is not waited for.
    """
    reactor = client.reactor
    handler = reactor.handlers[client.fd]

    def on_ready(events: int) -> None:
        handler(events)
        told(events)

    reactor.replace(client.fd, on_ready)
    try:
        yield
    finally:
        if client.fd >= 0:
            reactor.replace(client.fd, handler)


@asynccontextmanager
async def while_there(client: Stream, seconds: float) -> AsyncIterator[None]:
    """Cancel what is awaited after so many seconds, or as soon as the client has reset its connection.

    A client that has only ended may still read its answer.

    Raises:
        TimeoutError: the time is over.
        ConnectionResetError: the client has gone.
    """
    gone = False

    def told(events: int) -> None:
        nonlocal gone
        if events & BROKEN and not deadline.expired():
            gone = True
            deadline.reschedule(0)

    try:
        async with asyncio.timeout(seconds) as deadline:
            with hearing(client, told):
                told(client.events)
                yield
    except TimeoutError:
        if gone:
            raise ConnectionResetError("the client has gone") from None
        raise
