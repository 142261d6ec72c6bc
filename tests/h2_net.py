"""An origin and a client of HTTP/2 with sockets, of another implementation, for tests of interception."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import NamedTuple

from authorities import server_context
from h2_ends import End
from support import target
from tabi.client import Proxy
from tabi.wire.hpack import Field


class Far(End):
    """One end on asyncio's streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: bool) -> None:
        super().__init__(client)
        self.reader, self.writer = reader, writer
        self.changed = asyncio.Condition()
        self.closed = False
        self.connection.initiate_connection()

    def go(self) -> None:
        """Send what there is to send."""
        self.send_what_fits()
        self.writer.write(self.connection.data_to_send())

    async def run(self) -> None:
        """Receive to the end."""
        self.go()
        with contextlib.suppress(OSError):
            while data := await self.reader.read(65536):
                self.receive(data)
                self.answer()
                self.go()
                async with self.changed:
                    self.changed.notify_all()
                with contextlib.suppress(ConnectionError):
                    await self.writer.drain()
        self.closed = True
        async with self.changed:
            self.changed.notify_all()

    def answer(self) -> None:
        """What a server does with requests."""


class Origin(Far):
    """Answers each request with what it got: fields as fields with x- in front, and the content; /big with 1 MB.

    A WebSocket gets "hello", and an end with the client's.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: bool) -> None:
        super().__init__(reader, writer, client)
        self.connection.update_settings({8: 1})
        self.open: set[int] = set()

    def answer(self) -> None:
        for id, head in self.heads.items():
            if dict(head).get(b":protocol") == b"websocket" and id not in self.open:
                self.open.add(id)
                self.head(id, [(b":status", b"200")])
                self.connection.send_data(id, b"\x81\x05hello")
        for id in self.ended & self.open:
            self.ended.discard(id)
            self.connection.send_data(id, b"", end_stream=True)
        for id in list(self.ended):
            self.ended.discard(id)
            head = self.heads[id]
            path = dict(head)[b":path"]
            body = b"b" * 1_000_000 if path.startswith(b"/big") else self.bodies.get(id, b"")
            got = [(b"x-" + name.lstrip(b":"), value) for name, value in head]
            self.head(id, [(b":status", b"200"), (b"content-length", b"%d" % len(body)), *got], not body)
            if body:
                self.body(id, body)


@contextlib.asynccontextmanager
async def origin(tls: bool = True) -> AsyncIterator[int]:
    """An origin; gives its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Origin(reader, writer, False).run()

    context: ssl.SSLContext = server_context.__wrapped__()
    context.set_alpn_protocols(["h2"])
    async with target(serve, context=context if tls else None) as port:
        yield port


class Answer(NamedTuple):
    """What a client got; of a stream that was reset the code as ``reset``."""

    fields: dict[bytes, bytes]
    body: bytes
    reset: int | None


class Client(Far):
    """Asks through a proxy."""

    next_id = 1

    async def ask(self, path: str = "/", body: bytes = b"", fields: list[Field] | None = None) -> Answer:
        """One request; any number at once."""
        id, self.next_id = self.next_id, self.next_id + 2
        method = b"POST" if body else b"GET"
        head: list[Field] = [(b":method", method), (b":scheme", b"https"), (b":authority", b"localhost")]
        self.head(id, [*head, (b":path", path.encode()), *(fields or [])], not body)
        if body:
            self.body(id, body)
        self.go()
        async with self.changed:
            await self.changed.wait_for(lambda: id in self.ended or id in self.resets or self.goaway or self.closed)
        return Answer(dict(self.heads.get(id, [])), self.bodies.get(id, b""), self.resets.get(id))


@contextlib.asynccontextmanager
async def client(proxy: str, port: int, tls: bool = True) -> AsyncIterator[Client]:
    """A connection to an origin of this machine, through a proxy."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    more = {"ssl": context, "server_hostname": "localhost"} if tls else {}
    reader, writer = await Proxy(proxy).open_connection("127.0.0.1", port, **more)  # type: ignore[arg-type]
    if tls:
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    made = Client(reader, writer, True)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.run())
        try:
            yield made
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            task.cancel()
