"""An HTTP proxy and an HTTP destination for tests, and what is said to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from doubles import FakeResolver, Streams, config, until
from support import target
from tabi import Server, Session
from tabi.config import Listen
from tabi.net.failures import resolve_error
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

HTTP = "http://127.0.0.1:0"
MIB = 1 << 20
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Proxy(NamedTuple):
    """A running server, and the sessions that have ended."""

    server: Server
    ended: asyncio.Queue[Session]

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.server.addresses[0]


@contextlib.asynccontextmanager
async def proxy(who: str | None = None, **options: Any) -> AsyncIterator[Proxy]:
    """A server that speaks HTTP; floats are timeouts. At the end of the test every session of it must end."""
    seconds = {name: options.pop(name) for name in list(options) if isinstance(options[name], float)}
    ended: asyncio.Queue[Session] = asyncio.Queue()
    listen = Listen(HTTP) if who is None else Listen(HTTP, users=who)  # type: ignore[arg-type]
    options.setdefault("config", config(listen, **seconds))
    resolver = FakeResolver(
        {
            "here.test": ["127.0.0.1"],
            "both.test": ["127.0.0.1", "127.0.0.2"],
            "silent.test": resolve_error("connection refused", "silent.test", ReplyCode.GENERAL_FAILURE),
            "failing.test": socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        }
    )
    async with Server(on_close=ended.put_nowait, resolver=resolver, **options) as server:
        yield Proxy(server, ended)
        await until(lambda: not server.parts.sessions.running)


class Message(NamedTuple):
    """A request or an answer: its first line, its fields by the name in lower case, and its content as sent."""

    line: str
    fields: dict[str, str]
    content: bytes

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.line.split()[1])


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body with its framing."""
    octets = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        octets += line
        size = int(line.split(b";")[0], 16)
        if not size:
            break
        octets += await reader.readexactly(size + 2)
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        octets += line
    return octets + line


async def read_message(reader: asyncio.StreamReader, method: str = "") -> Message:
    """The next message; ``method`` is that of the request where this is its answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").removesuffix("\r\n\r\n")
    line, *rest = head.split("\r\n")
    fields: dict[str, str] = {}
    for field in rest:
        name, _, value = field.partition(":")
        assert name.lower() not in fields, f"{name} twice"
        fields[name.lower()] = value.strip()
    empty = method == "HEAD" or line.split()[1] in ("204", "304") or line.split()[1].startswith("1")
    if fields.get("transfer-encoding") == "chunked":
        return Message(line, fields, await read_chunks(reader))
    if "content-length" in fields and not empty:
        return Message(line, fields, await reader.readexactly(int(fields["content-length"])))
    until_close = line.startswith("HTTP/") and not empty
    return Message(line, fields, await reader.read() if until_close else b"")


class Origin:
    """A destination: what it was asked, by connection, and how it answers."""

    def __init__(self, answer: Callable[[Message], bytes]) -> None:
        self.answer = answer
        self.connections: list[list[Message]] = []
        self.octets = 0
        self.port = 0

    @property
    def requests(self) -> list[Message]:
        """All of them."""
        return [message for connection in self.connections for message in connection]

    @property
    def url(self) -> str:
        """What to ask a proxy for."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the client ends."""
        asked: list[Message] = []
        self.connections.append(asked)
        while True:
            try:
                message = await read_message(reader)
            except asyncio.IncompleteReadError as exc:
                self.octets += len(exc.partial)
                return
            asked.append(message)
            writer.write(self.answer(message))


@contextlib.asynccontextmanager
async def origin(answer: Callable[[Message], bytes] | bytes = OK) -> AsyncIterator[Origin]:
    """A destination that gives every request an answer."""
    served = Origin((lambda _: answer) if isinstance(answer, bytes) else answer)
    async with target(served.serve) as served.port:
        yield served


def ask(url: str, method: str = "GET", fields: str = "", content: bytes = b"", minor: int = 1) -> bytes:
    """A request as a client sends it to a proxy; ``fields`` are whole lines."""
    authority = url.split("/")[2] if "//" in url else url
    head = f"{method} {url} HTTP/1.{minor}\r\nHost: {authority}\r\n{fields}"
    if content and "transfer-encoding" not in fields.lower():
        head += f"Content-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


async def exchange(streams: Streams, octets: bytes) -> Message:
    """Send a request and read its answer."""
    reader, writer = streams
    writer.write(octets)
    return await read_message(reader, octets.split(b" ", 1)[0].decode())
