"""Flows of HTTP/2 in memory: a client and a server of another implementation, and hooks between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

from h2_ends import GET, OK, POST, Ends
from tabi.intercept.hooks import Hooks
from tabi.intercept.http2_flows import Http2Flows
from tabi.intercept.inspection import Inspection, Origin
from tabi.intercept.record import Record
from tabi.policy.intercepts import InterceptRule
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.hpack import Field


class Records:
    """A recorder that keeps all."""

    def __init__(self) -> None:
        self.all: list[Record] = []

    def record(self, record: Record, rule: InterceptRule) -> None:
        """See `inspection.Recorder`."""
        self.all.append(record)


class Scene(Ends):
    """Both ends, the relay between them, and the flows on it.

    Attributes:
        records: of flows that have ended, if they are wanted.
        wrong: what the loop had to say of tasks that failed.
    """

    def __init__(
        self,
        *hooks: object,
        records: bool = True,
        seconds: float = 10.0,
        close: bool = False,
        client: dict[int, int] | None = None,
        server: dict[int, int] | None = None,
        fetch: Any = None,
        host: str = "a.test",
        **rule: Any,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.hooks = Hooks(hooks, seconds, close)
        self.recorder = Records() if records else None
        self.session = Session(1, "socks5://127.0.0.1:1080", Address("192.0.2.1", 1000), 0.0)
        self.wrong: list[Any] = []
        loop.set_exception_handler(lambda _, context: self.wrong.append(context))
        near = SimpleNamespace(reactor=SimpleNamespace(loop=loop, late=lambda: False), fd=-1, peer=None)
        self.flows = Http2Flows(
            Inspection(
                self.session,
                InterceptRule(**rule),
                self.hooks,
                self.recorder,
                Origin("https", host, 443),
                None,
                fetch,
            ),
            cast("Any", SimpleNamespace(client=near)),
        )
        super().__init__(self.flows, client, server, strip_alt_svc=self.flows.inspection.mends)

    @property
    def records(self) -> list[Record]:
        assert self.recorder is not None
        return self.recorder.all

    async def until(self, condition: Callable[[], object]) -> None:
        """Let everything move until something holds."""
        self.go()
        while not condition():
            await asyncio.sleep(0)
            self.go()

    async def turns(self, count: int = 20) -> None:
        """Let everything move for a while."""
        for _ in range(count):
            await asyncio.sleep(0)
            self.go()

    def ask(self, id: int = 1, body: bytes | None = None, *fields: Field, method: bytes = b"") -> None:
        """Send a request, with content if there is some."""
        head = [*(GET if body is None else POST), *fields]
        if method:
            head[0] = (b":method", method)
        self.client.head(id, head, body is None)
        if body is not None:
            self.client.body(id, body)

    async def answer(
        self, body: bytes | None = b"", *fields: Field, id: int = 1, trailers: list[Field] | None = None
    ) -> None:
        """Have the server answer once it has the request's head; None: without content."""
        await self.until(lambda: id in self.server.heads)
        self.server.head(id, [*OK, *fields], body is None and trailers is None)
        if trailers is not None:
            if body:
                self.server.connection.send_data(id, body)
            self.server.connection.send_headers(id, trailers, end_stream=True)
        elif body is not None:
            self.server.body(id, body)

    async def got(self, id: int = 1) -> tuple[bytes, bytes]:
        """What the client got in the end: status and content."""
        await self.until(lambda: id in self.client.ended)
        return self.status(id), self.client.bodies.get(id, b"")

    def status(self, id: int = 1) -> bytes:
        """The status that the client got."""
        return dict(self.client.heads[id])[b":status"]

    def asked(self, id: int = 1) -> dict[bytes, bytes]:
        """The head that the server got."""
        return dict(self.server.heads[id])


@contextlib.asynccontextmanager
async def scene(*hooks: object, **options: Any) -> AsyncIterator[Scene]:
    """A scene whose connection ends in the end; then nothing is left of it."""
    one = Scene(*hooks, **options)
    try:
        yield one
        assert one.relay.failure is None
        assert one.client.goaway is None
        assert one.server.goaway is None
        if not one.relay.streams():
            assert one.relay.up.queued == one.relay.down.queued == 0
            assert not one.relay.up.waiting
            assert not one.relay.down.waiting
    finally:
        one.relay.close("the connection has ended")
        await one.flows.finish()
        one.relay.forget()
        one.hooks.close()
        await asyncio.sleep(0)
    assert one.wrong == []
