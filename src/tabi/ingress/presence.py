"""Hearing of a client while something is awaited on its behalf that its stream takes no part in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
