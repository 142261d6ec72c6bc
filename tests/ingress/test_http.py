"""The HTTP ingress from outside: what clients get, what destinations see, and what the log says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiodns import error as dns
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.uri import parse_uri

from authorities import client_context, write_server
from conftest import Run, run_in_loop
from doubles import FakeResolver, Streams, client_from, config, end_of, queued, reset, unanswering, until
from support import client, closed_port, echo, target
from tabi import Config, Server, Session
from tabi.config import Listen, Log
from tabi.net.dial import Dialer
from tabi.net.failures import resolve_error
from tabi.net.stream import Stream
from tabi.wire.address import Address

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
            "silent.test": resolve_error(dns.ARES_ECONNREFUSED, "Could not contact DNS servers", "silent.test"),
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


# --- forwarding ---


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_a_request_is_forwarded(run: Run, method: str) -> None:
    """Its method and its path go on in origin form with a Host of their own, its content as it came, and back."""

    async def main() -> None:
        content = b"x" * 10 if method in ("POST", "PUT", "PATCH") else b""
        async with origin() as there, proxy() as here, client(here.address) as streams:
            answer = await exchange(streams, ask(there.url + "/a?b=c", method, content=content))
            assert (answer.status, answer.content) == (200, b"" if method == "HEAD" else b"hello")
            assert answer.fields == {"content-length": "5", "via": "1.1 tabi"}
            (request,) = there.requests
            assert request.line == f"{method} /a?b=c HTTP/1.1"
            assert request.fields["host"] == f"127.0.0.1:{there.port}"
            assert request.fields["via"] == "1.1 tabi"
            assert request.content == content
            streams[1].close()
            session = await here.ended.get()
            assert (session.protocol, session.command, session.reply_code) == ("http", "forward", 200)
            assert (session.up, session.down) == (len(content), len(answer.content))
            assert (session.close, session.error, session.via) == ("server", None, "direct")
            assert str(session.destination) == str(session.address) == f"127.0.0.1:{there.port}"

    run(main)


def test_a_destination_by_name(run: Run) -> None:
    """A name is resolved, port 80 is left out of Host, and whatever Host the client sent is replaced."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            url = f"http://here.test:{there.port}"
            await exchange(streams, ask(url).replace(f"Host: here.test:{there.port}".encode(), b"Host: other.test"))
            (request,) = there.requests
            assert request.fields["host"] == f"here.test:{there.port}"
            assert request.line == "GET / HTTP/1.1"

    run(main)


def test_one_connection_to_the_destination_for_many_requests(run: Run) -> None:
    """The second and later GETs go out on the connection of the first; their lines have no connect_ms."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            for number in range(4):
                assert (await exchange(streams, ask(f"{there.url}/{number}"))).content == b"hello"
            assert [len(asked) for asked in there.connections] == [4]
            streams[1].close()
            sessions = [await here.ended.get() for _ in range(4)]
            assert len({id(session) for session in sessions}) == len({session.number for session in sessions}) == 4
            assert [session.connect_seconds is None for session in sessions] == [False, True, True, True]
            assert {session.reply_code for session in sessions} == {200}
            assert {session.down for session in sessions} == {5}
            await until(lambda: not here.server.parts.sessions.running)
            assert here.ended.empty()

    run(main)


def test_a_request_that_changes_something_gets_a_connection_of_its_own(run: Run) -> None:
    """POST, and a GET with content, never go out on a connection that was used; a GET behind them does."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            for octets in (
                ask(there.url),
                ask(there.url, "POST", content=b"one"),
                ask(there.url),
                ask(there.url, "POST", "Content-Length: 0\r\n"),
                ask(there.url, content=b"two"),
                ask(there.url, "HEAD"),
            ):
                assert (await exchange(streams, octets)).status == 200
            methods = [[request.line.split()[0] for request in asked] for asked in there.connections]
            assert methods == [["GET"], ["POST", "GET"], ["POST"], ["GET", "HEAD"]]

    run(main)


def test_another_destination_closes_the_first(run: Run) -> None:
    """A client has one connection to a destination at a time."""

    async def main() -> None:
        ended = asyncio.Event()

        async def watched(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            assert await reader.read() == b""
            ended.set()

        async with target(watched) as port, origin() as there, proxy() as here, client(here.address) as streams:
            await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
            await exchange(streams, ask(there.url))
            await ended.wait()

    run(main)


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    """Many requests in one segment, with content among them: as many answers, in their order."""

    def answer(message: Message) -> bytes:
        path = message.line.split()[1].encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path)

    async def main() -> None:
        async with origin(answer) as there, proxy() as here, client(here.address) as (reader, writer):
            requests = [ask(f"{there.url}/{n}", *(("POST", "", b"x" * n) if n % 3 == 2 else ())) for n in range(1, 13)]
            writer.write(b"".join(requests))
            for number in range(1, 13):
                assert (await read_message(reader)).content == b"/%d" % number
            assert [request.content for request in there.requests if request.content] == [
                b"xx",
                b"x" * 5,
                b"x" * 8,
                b"x" * 11,
            ]

    run(main)


CHUNKS = b"5;ext=1\r\nhello\r\n1\r\n \r\n6\r\nworld!\r\n0\r\nChecksum: 1\r\n\r\n"


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_requests_and_answers_in_any_pieces(run: Run, cut: int) -> None:
    """Octet by octet or all at once: a chunked request and its chunked answer pass as they are, trailers included."""

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                message = await read_message(reader)
                assert message.content == CHUNKS
                octets = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Checksum\r\n\r\n" + CHUNKS
                for at in range(0, len(octets), cut):
                    writer.write(octets[at : at + cut])
                    await asyncio.sleep(0)

        async with target(answer) as port, proxy() as here, client(here.address) as (reader, writer):
            octets = ask(f"http://127.0.0.1:{port}/", "POST", "Transfer-Encoding: chunked\r\n", CHUNKS)
            for _ in range(2):
                for at in range(0, len(octets), cut):
                    writer.write(octets[at : at + cut])
                    await asyncio.sleep(0)
                assert (await read_message(reader)).content == CHUNKS
            session = await here.ended.get()
            assert (session.up, session.down) == (len(CHUNKS), len(CHUNKS))

    run(main)


@pytest.mark.parametrize("chunked", [False, True])
def test_20_mib_in_both_directions(run: Run, chunked: bool) -> None:
    """Large content passes whole, up and down, and the connection goes on."""
    block = bytes(range(256)) * 4096
    size = 20 * MIB
    body = b"".join(b"%x\r\n%b\r\n" % (MIB, block) for _ in range(20)) + b"0\r\n\r\n" if chunked else block * 20
    framing = "Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {size}\r\n"

    async def main() -> None:
        head = f"HTTP/1.1 200 OK\r\n{framing}\r\n".encode()

        def answer(message: Message) -> bytes:
            assert message.content == body
            return head + body

        async with origin(answer) as there, proxy() as here, client(here.address) as streams:
            for _ in range(2):
                request = f"POST {there.url}/ HTTP/1.1\r\nHost: x\r\n{framing}\r\n".encode() + body
                got = await exchange(streams, request)
                assert got.content == body
                session = await here.ended.get() if _ else None
            assert session is not None
            assert (session.up, session.down) == (len(body), len(body))

    run(main)


@pytest.mark.parametrize("asked_for", [False, True])
def test_a_client_of_http_1_0(run: Run, asked_for: bool) -> None:
    """Its connection is kept where it asks for that, and ends behind the answer where it does not."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            fields = "Connection: keep-alive\r\n" if asked_for else ""
            answer = await exchange(streams, ask(there.url, fields=fields, minor=0))
            assert answer.content == b"hello"
            assert answer.fields["connection"] == ("keep-alive" if asked_for else "close")
            assert there.requests[0].fields["via"] == "1.0 tabi"
            if asked_for:
                assert (await exchange(streams, ask(there.url, fields=fields, minor=0))).content == b"hello"
                assert len(there.connections) == 1
            else:
                assert await streams[0].read() == b""

    run(main)


def test_chunks_are_taken_apart_for_http_1_0(run: Run) -> None:
    """It does not know them: it gets the content alone, and its end is the end of the connection."""

    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS
        async with origin(answer) as there, proxy() as here, client(here.address) as streams:
            got = await exchange(streams, ask(there.url, fields="Connection: keep-alive\r\n", minor=0))
            assert got.content == b"hello world!"
            assert got.fields["connection"] == "close"
            assert "transfer-encoding" not in got.fields
            streams[1].close()
            assert (await here.ended.get()).down == 12

    run(main)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"])
def test_content_until_the_end(run: Run, head: bytes) -> None:
    """Without a length the end of the connection is the end of the content, for the client too."""

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + bytes(100_000))

        async with target(answer) as port, proxy() as here, client(here.address) as streams:
            got = await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
            assert got.fields["connection"] == "close"
            assert got.content == bytes(100_000)
            streams[1].close()
            session = await here.ended.get()
            assert (session.close, session.down) == ("server", 100_000)

    run(main)


def test_a_destination_that_closes_leaves_the_client_alone(run: Run) -> None:
    """Connection: close of an answer is between the proxy and the destination."""

    async def main() -> None:
        answer = OK.replace(b"\r\n\r\n", b"\r\nConnection: close, x-secret\r\nX-Secret: 1\r\n\r\n")
        async with origin(answer) as there, proxy() as here, client(here.address) as streams:
            for _ in range(3):
                got = await exchange(streams, ask(there.url))
                assert (got.content, got.fields) == (b"hello", {"content-length": "5", "via": "1.1 tabi"})
            assert len(there.connections) == 3

    run(main)


def test_fields_for_one_connection_stay_there(run: Run) -> None:
    """Those of RFC 9110 section 7.6.1, what Connection names, and passwords for the proxy go no further."""

    async def main() -> None:
        fields = (
            "Connection: x-mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\n"
            "TE: gzip\r\nProxy-Authorization: Basic YTpi\r\nAccept: */*\r\nCookie: a=b\r\n"
        )
        async with origin() as there, proxy() as here, client(here.address) as streams:
            await exchange(streams, ask(there.url, fields=fields))
            (request,) = there.requests
            assert set(request.fields) == {"host", "accept", "cookie", "via"}

    run(main)


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", 200), ("TRACE", 501)])
def test_max_forwards(run: Run, method: str, status: int) -> None:
    """It goes down by one; at 0 the proxy answers itself and the connection goes on."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            got = await exchange(streams, ask(there.url, method, "Max-Forwards: 0\r\n"))
            assert got.status == status
            assert not there.requests
            assert (await exchange(streams, ask(there.url, method, "Max-Forwards: 7\r\n"))).content == b"hello"
            assert there.requests[0].fields["max-forwards"] == "6"

    run(main)


# --- interim answers ---


def test_expect_100_continue(run: Run) -> None:
    """The destination decides: its 100 comes to the client, then the content goes up."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Expect: 100-continue\r\n" in head
            writer.write(CONTINUE)
            assert await reader.readexactly(4) == b"data"
            writer.write(OK)

        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            reader, writer = streams
            writer.write(ask(f"http://127.0.0.1:{port}/", "POST", "Expect: 100-continue\r\nContent-Length: 4\r\n"))
            assert (await read_message(reader)).status == 100
            writer.write(b"data")
            assert (await read_message(reader)).content == b"hello"
            writer.close()
            session = await here.ended.get()
            assert (session.reply_code, session.up, session.error) == (200, 4, None)

    run(main)


@pytest.mark.parametrize("sends", [False, True])
def test_a_final_answer_before_the_content(run: Run, sends: bool) -> None:
    """413 comes through although the content has not, or only in part, and the connection ends behind it."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
            await reader.read()

        async with target(serve) as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(
                ask(f"http://127.0.0.1:{port}/", "POST", "Expect: 100-continue\r\nContent-Length: 4000000\r\n")
            )
            if sends:
                writer.write(bytes(100_000))
            got = await read_message(reader)
            assert (got.status, got.content, got.fields["connection"]) == (413, b"big", "close")
            assert await end_of(reader) == "end"
            writer.close()
            session = await here.ended.get()
            assert (session.reply_code, session.error) == (413, None)

    run(main)


# --- destinations that fail ---


def test_an_answer_cut_short_is_a_reset(run: Run) -> None:
    """A destination that ends in the middle: the client must not take what it has for the whole."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")

        async with target(serve) as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            with pytest.raises(ConnectionResetError):
                await reader.read()
            session = await here.ended.get()
            assert (session.reply_code, session.close, session.down) == (200, "reset", 3)
            assert session.error is not None
            assert "in the middle of the content" in session.error

    run(main)


@pytest.mark.parametrize("how", ["rests", "resets"])
def test_a_destination_that_fails_in_the_middle_of_an_answer(run: Run, how: str) -> None:
    """It is named, and what it did."""

    async def main() -> None:
        got = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
            await got.wait()
            if how == "resets":
                reset(writer)
            else:
                await reader.read()

        idle = 0.1 if how == "rests" else 20.0
        async with target(serve) as port, proxy(idle=idle) as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            await reader.readuntil(b"abc")
            got.set()
            assert await end_of(reader) == "reset"
            session = await here.ended.get()
            what = "nothing came for 0.1 s" if how == "rests" else "connection reset by peer"
            assert session.error == f"127.0.0.1:{port}: {what}"
            assert session.close == ("idle" if how == "rests" else "reset")

    run(main)


@pytest.mark.parametrize("how", ["reset", "end", "chunk"])
def test_a_client_that_breaks_its_request_in_the_middle_of_the_answer(run: Run, how: str) -> None:
    """What is broken off for it is its doing, not the destination's."""
    errors = {
        "reset": ("the client has gone", "the client: connection reset by peer"),
        "end": ("the client ended in the middle of the content",),
        "chunk": ("chunk size: expected 1 to 15 hexadecimal digits and CRLF",),
    }

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
            assert await end_of(reader) == "reset"

        async with target(serve) as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/", "POST", "Transfer-Encoding: chunked\r\n"))
            await reader.readuntil(b"abc")
            if how == "reset":
                reset(writer)
            elif how == "end":
                writer.write_eof()
            else:
                writer.write(b"rubbish\r\n")
            session = await here.ended.get()
            assert (session.close, session.reply_code) == ("reset", 200)
            assert session.error in errors[how]

    run(main)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "connection_terminated"),
        (b"HTTP/1.1 200 OK\r\nConte", "connection_terminated"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 33, "http_protocol_error"),
    ],
)
def test_an_answer_that_is_none(run: Run, answer: bytes, error: str) -> None:
    """502 says why in Proxy-Status, nothing of the answer comes through, and the client's connection goes on."""

    async def main() -> None:
        asked = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            await reader.readuntil(b"\r\n\r\n")
            asked += 1
            writer.write(answer)

        async with target(serve) as port, origin() as there, proxy() as here, client(here.address) as streams:
            reader, writer = streams
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            while (got := await read_message(reader)).status == 103:
                pass
            assert got.status == 502
            assert f"tabi; error={error}; details=" in got.fields["proxy-status"]
            assert got.content.startswith(b"502 Bad Gateway: 127.0.0.1:%d: " % port)
            session = None
            assert (await exchange(streams, ask(there.url))).content == b"hello"
            session = await here.ended.get()
            assert (session.reply_code, session.close) == (502, "error")
            assert asked == 1

    run(main)


def test_destinations_that_cannot_be_reached(run: Run) -> None:
    """Refused and unknown are 502 with different reasons; the connection goes on, each with its line."""

    async def main() -> None:
        async with proxy() as here, client(here.address) as streams:
            with closed_port() as port:
                for url, error in (
                    (f"http://127.0.0.1:{port}/", "connection_refused"),
                    ("http://nowhere.test/", "dns_error"),
                    ("http://silent.test/", "dns_error"),
                    ("http://failing.test/", "dns_error"),
                    ("http://255.255.255.255/", "destination_ip_unroutable"),
                ):
                    for method in ("GET", "HEAD"):
                        got = await exchange(streams, ask(url, method))
                        assert got.status in ((500, 502) if error == "destination_ip_unroutable" else (502,))
                        if error != "destination_ip_unroutable":
                            assert got.fields["proxy-status"].startswith(f"tabi; error={error}; ")
                        assert (got.content == b"") == (method == "HEAD")
            for _ in range(9):
                session = await here.ended.get()
                assert session.error is not None
                assert (session.reply_code in (500, 502), session.close, session.connect_seconds) == (
                    True,
                    "error",
                    None,
                )

    run(main)


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_the_guard(run: Run, method: str) -> None:
    """A client from outside does not reach inner addresses: 403, for the log "denied"."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client_from(here.server, "203.0.113.9") as streams:
            url = there.url if method == "GET" else f"127.0.0.1:{there.port}"
            got = await exchange(streams, ask(url, method))
            assert got.status == 403
            assert "error=destination_ip_prohibited" in got.fields["proxy-status"]
            streams[1].close()
            session = await here.ended.get()
            assert (session.close, session.reply_code, session.address) == ("denied", 403, None)
            assert not there.connections

    run(main)


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_nobody_answers_the_connect(run: Run, method: str) -> None:
    """504 after the connect deadline."""

    async def main() -> None:
        with unanswering() as port:
            async with proxy(connect=0.1) as here, client(here.address) as streams:
                url = f"http://127.0.0.1:{port}/" if method == "GET" else f"127.0.0.1:{port}"
                got = await exchange(streams, ask(url, method))
                assert (got.status, "error=connection_timeout" in got.fields["proxy-status"]) == (504, True)

    run(main)


@pytest.mark.parametrize("content", [b"", b"x"])
def test_nobody_answers_the_request(run: Run, content: bytes) -> None:
    """504 after the idle deadline. What was asked is not asked again."""

    async def main() -> None:
        asked: list[bytes] = []

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.read()

        async with target(silent) as port, proxy(idle=0.1) as here, client(here.address) as streams:
            got = await exchange(
                streams, ask(f"http://127.0.0.1:{port}/", "POST" if content else "GET", content=content)
            )
            assert (got.status, "error=http_response_timeout" in got.fields["proxy-status"]) == (504, True)
            assert len(asked) == 1

    run(main)


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_client_that_sends_no_more_of_its_content(run: Run, framing: str) -> None:
    """That is 408, the client's fault; what the destination has of it ends with a reset."""

    async def main() -> None:
        ended: asyncio.Queue[BaseException | None] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.read()
                await ended.put(None)
            except ConnectionError as exc:
                await ended.put(exc)

        async with target(serve) as port, proxy(idle=0.1) as here, client(here.address) as streams:
            head = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n4\r\nsome"
            got = await exchange(streams, head.encode())
            assert (got.status, "error=http_request_error" in got.fields["proxy-status"]) == (408, True)
            assert await ended.get() is not None
            streams[1].close()

    run(main)


def test_a_destination_that_vanishes_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset between the connection and the request is 502, not an end without an answer."""
    dial = Dialer.dial_many
    vanished = asyncio.Event()

    async def dial_late(*arguments: Any) -> Stream:
        stream = await dial(*arguments)
        await vanished.wait()
        return stream

    monkeypatch.setattr(Dialer, "dial_many", dial_late)

    async def main() -> None:
        vanished.clear()

        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reset(writer)
            await writer.wait_closed()
            vanished.set()

        async with proxy() as here, target(vanish) as port, client(here.address) as streams:
            got = await exchange(streams, ask(f"http://both.test:{port}/"))
            assert got.status == 502

    run(main)


# --- kept connections that have become stale ---


def stale(second: bytes, ends: bool = True) -> tuple[Callable[..., Any], list[list[str]]]:
    """A destination that answers the first request of a connection, and to the second sends ``second`` and ends."""
    asked: list[list[str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines: list[str] = []
        asked.append(lines)
        for answer in (OK, second):
            lines.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n", 1)[0])
            writer.write(answer)

    return serve, asked


def test_a_stale_connection_is_replaced_once(run: Run) -> None:
    """The destination ends instead of answering the second GET: it is asked again on a new connection."""

    async def main() -> None:
        serve, asked = stale(b"")
        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            for number in range(3):
                assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/{number}"))).content == b"hello"
            lines = [[f"GET /{n} HTTP/1.1" for n in numbers] for numbers in ((0, 1), (1, 2), (2,))]
            assert asked == lines

    run(main)


@pytest.mark.parametrize("second", [b"HTTP/1.1 200", CONTINUE])
def test_what_has_begun_to_answer_is_not_asked_again(run: Run, second: bytes) -> None:
    """Part of an answer shows that the request was seen: 502, on the connection that goes on."""

    async def main() -> None:
        serve, asked = stale(second)
        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
            got = await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
            if got.status == 100:
                got = await read_message(streams[0])
            assert got.status == 502
            assert [len(lines) for lines in asked] == [2]

    run(main)


def test_a_fresh_connection_that_ends_is_not_replaced(run: Run) -> None:
    """Where the new connection ends too the answer is 502: asked twice in all, not without end."""

    async def main() -> None:
        count = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            await reader.readuntil(b"\r\n\r\n")
            if count == 1:
                writer.write(OK)
                await reader.readuntil(b"\r\n\r\n")

        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            for status in (200, 502):
                assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/"))).status == status
            assert count == 2

    run(main)


@pytest.mark.parametrize("unasked", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
def test_what_comes_unasked_is_no_answer(run: Run, unasked: bytes) -> None:
    """A destination that ends, or says something, while its connection waits: the next request gets a new one."""

    async def main() -> None:
        said = asyncio.Event()
        count = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await go.wait()
            writer.write(unasked)
            if not unasked:
                writer.write_eof()
            await writer.drain()
            said.set()
            assert await reader.read() == b""

        go = asyncio.Event()
        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
            go.set()
            await said.wait()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/"))).content == b"hello"
            assert count == 2

    run(main)


def test_a_connection_whose_content_was_not_taken_is_not_kept(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An early answer to a POST whose last octets wait for room: what follows must not be read as its content."""
    dial = Dialer.dial_many

    async def dial_narrow(*arguments: Any) -> Stream:
        stream = await dial(*arguments)
        stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        return stream

    monkeypatch.setattr(Dialer, "dial_many", dial_narrow)

    async def main() -> None:
        posts: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
                writer.write(OK)
                return
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            posts.put_nowait((reader, writer))
            await done.wait()

        async def post(streams: Streams, steps: int) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
            """Send content in pieces of 64 KiB until the proxy holds one back; says which."""
            client_port, reader = streams[1].get_extra_info("sockname")[1], None
            streams[1].write(ask(url, "POST", f"Content-Length: {steps << 16}\r\n"))
            reader, writer = await posts.get()
            peer = writer.get_extra_info("peername")[1]
            for step in range(1, steps + 1):
                streams[1].write(bytes(1 << 16))
                await until(lambda: not queued(client_port, here.address.port)[0])
                await until(lambda: not queued(here.address.port, client_port)[1])
                # What was delivered and not yet acknowledged counts on both sides, for a moment.
                await until(lambda: handed(peer) <= step << 16)  # noqa: B023 awaited right here
                if handed(peer) < step << 16:
                    return step, reader, writer
            return steps + 1, reader, writer

        def handed(peer: int) -> int:
            return queued(port, peer)[1] + queued(peer, port)[0]

        async with target(serve) as port, proxy() as here:
            url, steps, held = f"http://both.test:{port}/", 1000, 0
            for _ in range(10):
                async with client(here.address) as streams:
                    held, reader, writer = await post(streams, steps)
                    if held == steps:
                        writer.write(OK)
                        assert (await read_message(streams[0])).content == b"hello"
                        await exchange(streams, ask(url))
                        writer.transport.resume_reading()  # type: ignore[attr-defined]
                        with pytest.raises(ConnectionResetError):  # it must not take what it has for the whole
                            await reader.read()
                        break
                    steps = held
            assert held == steps
            done.set()

    run_once(main)


# --- clients that leave, or are slow ---


def test_a_client_that_ends_its_direction_gets_its_answer(run: Run) -> None:
    """It has said all that it wanted to; the connection ends behind the answer."""

    async def main() -> None:
        asked, go = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await go.wait()
            writer.write(OK)
            assert await reader.read() == b""

        async with target(serve) as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            writer.write_eof()
            await asked.wait()
            go.set()
            assert (await read_message(reader)).content == b"hello"
            assert await end_of(reader) == "end"
            session = await here.ended.get()
            assert (session.close, session.reply_code) == ("server", 200)

    run(main)


@pytest.mark.parametrize("hosting", ["selector", "nested"])
@pytest.mark.parametrize("upload", [False, True])
def test_a_client_that_vanishes_while_the_answer_is_awaited(
    monkeypatch: pytest.MonkeyPatch, hosting: str, upload: bool
) -> None:
    """A reset ends the exchange at once, and the destination's connection too."""
    monkeypatch.setenv("TABI_REACTOR", hosting)

    async def main() -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            try:
                await reader.read()
            except ConnectionError:
                pass
            gone.set()

        async with target(silent) as port, origin() as there, proxy() as here, client(here.address) as streams:
            if not upload:  # on a connection that was used: it is not asked again for nobody
                await exchange(streams, ask(there.url))
            writer = streams[1]
            writer.write(ask(f"http://127.0.0.1:{port}/", "POST" if upload else "GET", "", b"whole" if upload else b""))
            await asked.wait()
            reset(writer)
            await gone.wait()
            if not upload:
                await here.ended.get()
            session = await here.ended.get()
            assert (session.close, session.reply_code) == ("reset", None)

    run_in_loop(main)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_client_that_leaves_in_the_middle_of_its_content(run: Run, how: str) -> None:
    """The destination gets a reset: it must not take what it has for the whole."""

    async def main() -> None:
        asked, ends = asyncio.Event(), asyncio.Queue[str]()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(4) == b"part"
            asked.set()
            ends.put_nowait(await end_of(reader))

        async with target(serve) as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/", "POST", "Content-Length: 100\r\n") + b"part")
            await asked.wait()
            if how == "end":
                writer.write_eof()
                got = await read_message(reader)
                assert (got.status, got.fields["connection"]) == (400, "close")
            else:
                reset(writer)
            assert await ends.get() == "reset"
            session = await here.ended.get()
            assert (session.close, session.up) == ("error" if how == "end" else "reset", 4)

    run(main)


def test_a_client_that_leaves_in_the_middle_of_an_answer(run: Run) -> None:
    """The destination's connection ends, and the session with it, however much were still to come."""

    async def main() -> None:
        ends = asyncio.Queue[bool]()

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
            try:
                while True:
                    writer.write(bytes(65536))
                    await writer.drain()
            except ConnectionError:
                ends.put_nowait(True)

        async with target(endless) as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            await reader.readexactly(MIB)
            reset(writer)
            assert await ends.get()
            session = await here.ended.get()
            assert (session.close, session.reply_code) == ("reset", 200)
            assert session.down >= MIB
            assert session.error in (
                "the client: connection reset by peer",
                "the client: broken pipe",
                "the client has gone",
            )

    run(main)


def test_a_client_that_does_not_read(run: Run) -> None:
    """An answer that nobody takes ends with the idle deadline; what is held of it is what the kernel holds."""

    async def main() -> None:
        sent = 0

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536

        async with target(endless) as port, proxy(idle=0.2) as here, client(here.address) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            session = await here.ended.get()
            assert (session.close, session.reply_code) == ("idle", 200)
            assert session.error == "the client took nothing for 0.2 s"
            assert sent - session.down < 16 * MIB
            writer.transport.abort()

    run(main)


def test_a_client_that_does_not_read_interim_answers(run: Run) -> None:
    """They are within the idle deadline too."""

    async def main() -> None:
        hint = b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 32000 + b"\r\n\r\n"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(hint * 31)
            await reader.read()

        # A unix socket's buffer does not grow: the answers are more than it holds.
        async with target(serve) as port, proxy(idle=0.2) as here, client_from(here.server, "127.0.0.1") as streams:
            streams[1].transport.pause_reading()  # type: ignore[attr-defined]
            streams[1].write(ask(f"http://127.0.0.1:{port}/"))
            session = await here.ended.get()
            assert session.close == "reset"
            assert session.error == "the client took nothing for 0.2 s"

    run(main)


@pytest.mark.parametrize("second", [False, True])
def test_a_head_octet_by_octet_has_one_deadline(run: Run, second: bool) -> None:
    """No octet prolongs it, of the first request as of the later ones."""

    async def main() -> None:
        async with origin() as there, proxy(handshake=0.5) as here, client(here.address) as streams:
            reader, writer = streams
            if second:
                await exchange(streams, ask(there.url))
            for octet in ask(there.url, fields="A: b\r\n" * 1000):
                writer.write(b"%c" % octet)
                await asyncio.sleep(0.005)
                if here.ended.qsize() > second:
                    break
            assert await end_of(reader) in ("end", "reset")
            if second:
                await here.ended.get()
            session = here.ended.get_nowait()
            assert session.error == "handshake: not done within 0.5 s"
            assert len(there.requests) == second

    run(main)


def test_a_kept_connection_ends_when_it_is_idle(run: Run) -> None:
    """After the idle deadline, in silence: what was asked for on it has its line already."""

    async def main() -> None:
        async with origin() as there, proxy(idle=0.1) as here, client(here.address) as streams:
            await exchange(streams, ask(there.url))
            assert await end_of(streams[0]) == "end"
            await here.ended.get()
            await until(lambda: not here.server.parts.sessions.running)
            assert here.ended.empty()

    run(main)


# --- users ---


def basic(name: str, password: str) -> str:
    """The field that logs in."""
    return f"Proxy-Authorization: Basic {b64encode(f'{name}:{password}'.encode()).decode()}\r\n"


ALICE = basic("alice", "secret")


@pytest.mark.parametrize(
    "fields",
    [
        "",
        basic("alice", "wrong"),
        basic("bob", "secret"),
        "Proxy-Authorization: Basic !\r\n",
        "Proxy-Authorization: Bearer x\r\n",
        "Authorization: Basic YWxpY2U6c2VjcmV0\r\n",
    ],
)
@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_who_does_not_log_in_gets_407(run: Run, method: str, fields: str) -> None:
    """It names what is wanted, and the same request with the password succeeds: on the same connection, or on another
    where it is a CONNECT, for what a client sends behind that may be meant for the tunnel."""

    async def main() -> None:
        async with origin() as there, proxy(users={"alice": "secret"}) as here, client(here.address) as streams:
            url = there.url if method == "GET" else f"127.0.0.1:{there.port}"
            got = await exchange(streams, ask(url, method, fields))
            assert (got.status, got.fields.get("connection")) == (407, None if method == "GET" else "close")
            assert got.fields["proxy-authenticate"] == 'Basic realm="tabi", charset="UTF-8"'
            assert not there.connections
            if method == "GET":
                assert (await exchange(streams, ask(url, method, ALICE))).content == b"hello"
                streams[1].close()
            else:
                assert await end_of(streams[0]) == "end"
                streams[1].close()
                async with client(here.address) as again:
                    again[1].write(ask(url, method, ALICE))
                    assert await again[0].readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
                    assert (await exchange(again, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).content == b"hello"
            refused, served = await here.ended.get(), await here.ended.get()
            assert (refused.close, refused.reply_code, refused.user) == ("denied", 407, None)
            assert str(refused.destination) == f"127.0.0.1:{there.port}"
            assert (served.reply_code, served.user, served.error) == (200, "alice", None)

    run(main)


def test_each_request_is_checked(run: Run) -> None:
    """A password counts for its own request only; one with content that is refused ends the connection."""

    async def main() -> None:
        async with origin() as there, proxy(users={"alice": "secret"}) as here, client(here.address) as streams:
            for fields, status in ((ALICE, 200), ("", 407), (basic("alice", ""), 407), (ALICE, 200)):
                assert (await exchange(streams, ask(there.url, fields=fields))).status == status
            content = ask(there.url, fields=ALICE)  # which must not be read as a request
            got = await exchange(streams, ask(there.url, "POST", content=content))
            assert (got.status, got.fields["connection"]) == (407, "close")
            assert await end_of(streams[0]) == "end"
            assert len(there.requests) == 2

    run(main)


def test_each_user_has_a_connection_to_the_destination(run: Run) -> None:
    """Another user on the client's connection gets a new one: the destination may have tied it to the first (NTLM)."""

    async def main() -> None:
        users = {"alice": "secret", "bob": "secret"}
        async with origin() as there, proxy("optional", users=users) as here, client(here.address) as streams:
            for fields in (ALICE, ALICE, basic("bob", "secret"), basic("bob", "secret"), "", ALICE):
                assert (await exchange(streams, ask(there.url, fields=fields))).status == 200
            assert [len(asked) for asked in there.connections] == [2, 2, 1, 1]

    run(main)


def test_optional_users(run: Run) -> None:
    """Who sends no password is served as nobody; who sends a wrong one is refused."""

    async def main() -> None:
        async with (
            origin() as there,
            proxy("optional", users={"alice": "secret"}) as here,
            client(here.address) as streams,
        ):
            wanted = (("", 200, None), (ALICE, 200, "alice"), (basic("alice", "x"), 407, None), ("", 200, None))
            for fields, status, _ in wanted:
                assert (await exchange(streams, ask(there.url, fields=fields))).status == status
            streams[1].close()
            for _, status, user in wanted:
                session = await here.ended.get()
                assert (session.reply_code, session.user) == (status, user)

    run(main)


# --- CONNECT ---


def test_connect_hands_over_to_the_relay(run: Run) -> None:
    """Octets behind the head go first, bulk and ends pass in both directions; its session is the relay's."""

    async def main() -> None:
        async with target() as port, proxy() as here, client(here.address) as (reader, writer):
            data = bytes(range(256)) * 4096 * 4
            writer.write(ask(f"127.0.0.1:{port}", "CONNECT") + b"early " + data)
            writer.write_eof()
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
            assert await reader.read() == b"early " + data
            session = await here.ended.get()
            assert (session.command, session.reply_code, session.close) == ("connect", 200, "client")
            assert session.up == session.down == 6 + len(data)
            assert session.connect_seconds is not None

    run(main)


def test_connect_behind_other_requests(run: Run) -> None:
    """A connection that has served requests may still become a tunnel; that to the destination before is closed."""

    async def main() -> None:
        async with target() as port, origin() as there, proxy() as here, client(here.address) as (reader, writer):
            await exchange((reader, writer), ask(there.url))
            writer.write(ask(f"127.0.0.1:{port}", "CONNECT") + b"ping")
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(4) == b"ping"
            writer.write_eof()
            assert await reader.read() == b""
            assert [(await here.ended.get()).command for _ in range(2)] == ["forward", "connect"]

    run(main)


@pytest.mark.parametrize("last", ["CONNECT", "bad"])
def test_nothing_overtakes_answers_that_wait(run_once: Run, last: str) -> None:
    """Small answers to a client that asks and asks before it reads come whole and in order, and what follows them
    comes behind them: a tunnel, or a refusal."""
    count = 2000
    content = "x" * 3500

    async def main() -> None:
        def answer(message: Message) -> bytes:
            path = message.line.split()[1]
            return f"HTTP/1.1 200 OK\r\nContent-Length: {len(path + content)}\r\n\r\n{path}{content}".encode()

        async with target() as port, origin(answer) as there, proxy() as here:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (str(here.address.host), here.address.port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
            writer.write(b"".join(ask(f"{there.url}/{number}") for number in range(count)))
            writer.write(ask(f"127.0.0.1:{port}", "CONNECT") + b"ping" if last == "CONNECT" else b"rubbish\r\n\r\n")
            done = 0
            while len(there.requests) > done:  # until the proxy waits for us
                done = len(there.requests)
                await asyncio.sleep(0.05)
            for number in range(count):
                message = await read_message(reader)
                assert (message.status, message.content) == (200, f"/{number}{content}".encode())
            if last == "CONNECT":
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
                assert await reader.readexactly(4) == b"ping"
            else:
                assert (await read_message(reader)).status == 400
            writer.close()

    run_once(main)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("users", [None, {"alice": "secret"}])
def test_what_follows_a_refused_connect_is_no_request(run: Run, users: dict[str, str] | None, waits: bool) -> None:
    """A client that did not wait has sent it to the destination: whoever chose it must not speak for the client."""

    async def main() -> None:
        with closed_port() as port:
            async with origin() as there, proxy(users=users) as here, client(here.address) as (reader, writer):
                writer.write(ask(f"127.0.0.1:{port}", "CONNECT") + (b"" if waits else ask(there.url, fields=ALICE)))
                got = await read_message(reader)
                writer.write(ask(there.url, fields=ALICE) if waits else b"")
                assert (got.status, got.fields["connection"]) == (407 if users else 502, "close")
                assert await end_of(reader) == "end"
                assert not there.connections

    run(main)


def test_a_refused_connect_says_why(run: Run) -> None:
    """502 with the reason; the connection ends, since what comes next might be meant for the destination."""

    async def main() -> None:
        with closed_port() as port:
            async with proxy() as here, client(here.address) as streams:
                got = await exchange(streams, ask(f"127.0.0.1:{port}", "CONNECT"))
                assert (got.status, got.fields["connection"]) == (502, "close")
                assert "error=connection_refused" in got.fields["proxy-status"]
                assert await end_of(streams[0]) == "end"

    run(main)


# --- other protocols ---

UPGRADE = "Connection: Upgrade\r\nUpgrade: echo\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"


def test_an_upgrade(run: Run) -> None:
    """Behind 101 the connection is the other protocol's, with whatever both sides have sent at once."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert "connection: upgrade\r\nupgrade: echo\r\n" in head
            writer.write(SWITCH + b"first ")
            await echo(reader, writer)

        async with target(serve) as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/", fields=UPGRADE) + b"early ")
            got = await read_message(reader)
            assert (got.status, got.fields["upgrade"], got.fields["connection"]) == (101, "echo", "upgrade")
            assert await reader.readexactly(12) == b"first early "
            data = bytes(MIB)
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data
            session = await here.ended.get()
            assert (session.command, session.reply_code, session.close) == ("forward", 101, "client")
            assert (session.up, session.down) == (6 + len(data), 12 + len(data))

    run(main)


def test_an_upgrade_that_is_not_granted(run: Run) -> None:
    """An ordinary answer, and the connection goes on as HTTP."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            for _ in range(2):
                assert (await exchange(streams, ask(there.url, fields=UPGRADE))).content == b"hello"

    run(main)


def test_a_websocket(run: Run) -> None:
    """The handshake and the frames of RFC 6455 pass through plain HTTP, without CONNECT."""

    async def main() -> None:
        async def shout(connection: ServerConnection) -> None:
            async for message in connection:
                await connection.send(str(message).upper())

        async with serve_websocket(shout, "127.0.0.1", 0) as there, proxy() as here:
            port = next(iter(there.sockets)).getsockname()[1]
            # The package speaks through proxies by CONNECT only: this is its own protocol on a request to the proxy.
            uri = f"ws://127.0.0.1:{port}/"
            protocol = ClientProtocol(parse_uri(uri))
            request = protocol.connect()
            async with client(here.address) as (reader, writer):
                protocol.send_request(request)
                head = b"".join(protocol.data_to_send())
                writer.write(head.replace(b"GET /", f"GET http://127.0.0.1:{port}/".encode(), 1))
                got: list[object] = []
                sent = False
                while len(got) < 2:
                    protocol.receive_data(await reader.read(65536))
                    got += protocol.events_received()
                    if got and not sent:
                        protocol.send_text(b"hello")
                        sent = True
                    for octets in protocol.data_to_send():
                        writer.write(octets)
                assert isinstance(got[0], Response)
                assert got[0].status_code == 101
                assert isinstance(got[1], Frame)
                assert got[1].data == b"HELLO"

    run(main)


# --- what is refused ---

SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("POST {url}/ HTTP/1.1", "Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Content-Length: 5, 5\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Content-Length: +5\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding: xchunked\r\n", 501),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding: gzip, chunked\r\n", 501),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding : chunked\r\n", 400),
        ("POST {url}/ HTTP/1.0", "Transfer-Encoding: chunked\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding:\x0bchunked\r\n", 400),
        ("GET {url}/ HTTP/1.1", "A: b\r\n c\r\n", 400),
        ("GET {url}/ HTTP/1.1", "A: b\nContent-Length: 5\r\n", 400),
        ("GET {url}/ HTTP/1.1", "A: b\rC: d\r\n", 400),
        ("GET {url}/ HTTP/1.1", "A: b\x00\r\n", 400),
        ("GET {url}/ HTTP/1.1", "Host: y\r\n", 400),
        ("GET  {url}/ HTTP/1.1", "", 400),
        ("GET {url}/ HTTP/1.1 ", "", 400),
        ("GET {url}/a b HTTP/1.1", "", 400),
        ("GET {url}/ HTTP/2.0", "", 505),
        ("GET {url}/", "", 505),
        ("GET / HTTP/1.1", "", 400),
        ("GET ftp://127.0.0.1/ HTTP/1.1", "", 501),
        ("GET http://a:b@127.0.0.1/ HTTP/1.1", "", 400),
        ("CONNECT 127.0.0.1 HTTP/1.1", "", 400),
        ("CONNECT {authority} HTTP/1.1", "Content-Length: 5\r\n", 400),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_what_could_be_read_in_two_ways(
    run_once: Run, later: bool, request_line: str, fields: str, status: int
) -> None:
    """It is refused as a whole: nothing of it and nothing behind it reaches a destination, and the connection ends."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            if later:
                await exchange(streams, ask(there.url))
            line = request_line.format(url=there.url, authority=f"127.0.0.1:{there.port}")
            got = await exchange(streams, f"{line}\r\nHost: x\r\n{fields}\r\n0\r\n\r\n{SMUGGLED}".encode())
            assert (got.status, got.fields["connection"]) == (status, "close")
            assert "error=http_request_error" in got.fields["proxy-status"]
            assert await end_of(streams[0]) == "end"
            assert len(there.requests) == later
            assert not there.octets
            streams[1].close()
            if later:
                await here.ended.get()
            session = await here.ended.get()
            assert (session.reply_code, session.close) == (status, "error")

    run_once(main)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("chunk", ["5\r\nhello0\r\n\r\n", "-1\r\n", "5\nhello\r\n", "0x5\r\nhello\r\n"])
def test_broken_chunks(run: Run, chunk: str, at_once: bool) -> None:
    """Of a broken chunk nothing goes on: 400, the end of the client's connection, and a reset for the destination."""

    async def main() -> None:
        ends: asyncio.Queue[str] = asyncio.Queue()
        good = b"3\r\nabc\r\n"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(len(good)) == good
                asked.set()
                ends.put_nowait(await end_of(reader))
            except asyncio.IncompleteReadError as exc:
                ends.put_nowait(f"nothing: {exc.partial!r}")

        asked = asyncio.Event()
        async with target(serve) as port, proxy() as here, client(here.address) as (reader, writer):
            octets = ask(f"http://127.0.0.1:{port}/", "POST", "Transfer-Encoding: chunked\r\n", good)
            if at_once:
                writer.write(octets + chunk.encode() + SMUGGLED.encode())
            else:
                writer.write(octets)
                await asked.wait()
                writer.write(chunk.encode() + SMUGGLED.encode())
            got = await read_message(reader)
            assert (got.status, got.fields["connection"]) == (400, "close")
            assert await end_of(reader) == "end"
            assert await ends.get() == ("nothing: b''" if at_once else "reset")

    run(main)


# --- draining ---


def test_a_drain_ends_what_waits_and_lets_the_rest_finish(run: Run) -> None:
    """Idle kept connections end at once; the one under way gets its answer, with Connection: close."""

    async def main() -> None:
        asked, go = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await go.wait()
            writer.write(OK)
            await reader.read()

        async with (
            target(serve) as port,
            origin() as there,
            proxy() as here,
            client(here.address) as idle,
            client(here.address) as busy,
        ):
            await exchange(idle, ask(there.url))
            busy[1].write(ask(f"http://127.0.0.1:{port}/"))
            await asked.wait()
            async with asyncio.TaskGroup() as group:
                drained = group.create_task(here.server.drain(10))
                assert await end_of(idle[0]) == "end"
                go.set()
                got = await read_message(busy[0])
                assert (got.content, got.fields["connection"]) == (b"hello", "close")
                assert await end_of(busy[0]) == "end"
                busy[1].close()
            assert drained.result() == 0

    run(main)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("framing", ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n", ""])
def test_an_answer_cut_by_the_servers_end_is_a_reset(run: Run, tmp_path: Path, framing: str, tls: bool) -> None:
    """However its end is told: who reads until the connection closes would take it for the whole."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n5\r\nabc".encode())
            await reader.read()

        listen, context = Listen(HTTP), None
        if tls:
            listen, context = Listen("https://127.0.0.1:0", tls=write_server(tmp_path)), client_context()
        async with target(serve) as port, proxy(config=config(listen)) as here:
            reader, writer = await asyncio.open_connection(str(here.address.host), here.address.port, ssl=context)
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            await reader.readuntil(b"abc")
            await here.server.close()
            assert await end_of(reader) == "reset"
            assert (await here.ended.get()).close == "shutdown"
            writer.close()

    run(main)


def test_an_answer_that_waits_at_the_servers_end_is_a_reset(run_once: Run) -> None:
    """Small answers that nobody has taken, on a connection that waits for more."""

    async def main() -> None:
        content = "x" * 3500
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode()
        async with origin(answer) as there, proxy() as here:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (str(here.address.host), here.address.port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
            waiting = here.server.parts.forwarding.kept.clients
            while not any(stream.unsent for stream in waiting):
                writer.write(ask(there.url))
                await here.ended.get()
                await until(lambda: waiting)
            await here.server.close()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run_once(main)


# --- the log ---


def test_every_request_has_its_line(run: Run, tmp_path: Path) -> None:
    """Status, user and octets each, connect_ms only where a connection was made; none for an end in silence."""
    path = tmp_path / "access.log"

    async def main() -> None:
        listening = Config(listen=[Listen(HTTP)], log=Log(access=str(path)))
        async with (
            origin() as there,
            proxy(config=listening, users={"alice": "secret"}) as here,
            client(here.address) as streams,
        ):
            for octets in (
                ask(there.url, fields=ALICE),
                ask(there.url),
                ask(there.url, fields=ALICE),
                ask(there.url, "POST", ALICE, b"data"),
            ):
                await exchange(streams, octets)

    run(main)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("protocol", "command", "reply", "user", "up", "down", "close")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        ("http", "forward", 200, "alice", 0, 5, "server"),
        ("http", "forward", 407, None, 0, 0, "denied"),
        ("http", "forward", 200, "alice", 0, 5, "server"),
        ("http", "forward", 200, "alice", 4, 5, "server"),
    ]
    assert [line["connect_ms"] is None for line in lines] == [False, True, True, False]
    assert len({line["id"] for line in lines}) == 4
    assert "secret" not in path.read_text()


def test_the_document_names_tests_that_exist() -> None:
    """Each point of HTTP in docs/conformance.md leads to tests here."""
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    rows = re.findall(r"^\| H\d+ \|.*$", page, re.M)
    assert len(rows) == 14
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row)
        assert names
        assert set(names) <= set(globals())
