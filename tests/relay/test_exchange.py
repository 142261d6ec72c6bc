"""One request and its answer between two connections: in any pieces, at any speed, and broken at any place."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.uri import parse_uri

from authorities import client_context, write_server
from conftest import Run, run_in_loop
from doubles import Streams, client_from, config, end_of, queued, reset, until
from http_proxy import (
    CONTINUE,
    HTTP,
    MIB,
    OK,
    Message,
    ask,
    exchange,
    origin,
    proxy,
    read_message,
)
from sockets import Bench, Ends, read, read_all, send, waiting
from sockets import reset as vanish
from support import client, echo, target
from tabi.config import LimitsConfig, Listen
from tabi.net.dial import Dialer
from tabi.net.reactor import ENDED, IN, get_reactor
from tabi.net.stream import Stream
from tabi.net.timeouts import IdleTimeouts
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Limits as Accounts
from tabi.policy.quantities import Quota, Seconds
from tabi.relay.exchange import INTERIM_LIMIT, Exchange, ExchangeFailed
from tabi.relay.exchange import ServerConnection as KeptServer
from tabi.wire.address import parse_host
from tabi.wire.http import decode_request

CHUNKS = b"5;ext=1\r\nhello\r\n1\r\n \r\n6\r\nworld!\r\n0\r\nChecksum: 1\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
UPGRADE = "Connection: Upgrade\r\nUpgrade: echo\r\n"
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def test_chunks_that_take_long_go_on_in_several_turns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, whole and in order: a peer that makes them expensive waits for the others between its steps."""
    monkeypatch.setattr("tabi.relay.http_content.STEPS", 100)
    count = 3000
    body = b"".join(b"1 \r\n%c\r\n" % (index % 256) for index in range(count)) + b"0\r\n\r\n"
    sent = body.replace(b"1 \r\n", b"1\r\n")

    async def main() -> None:
        turns = 0
        next_turn = get_reactor().next_turn

        def counted(owner: object = None) -> object:
            nonlocal turns
            turns += 1
            return next_turn(owner)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                assert (await read_message(reader)).content == sent
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

        async with target(answer) as port, proxy() as here, client(here.address) as (reader, writer):
            monkeypatch.setattr(get_reactor(), "next_turn", counted)
            for _ in range(2):
                writer.write(ask(f"http://127.0.0.1:{port}/", "POST", "Transfer-Encoding: chunked\r\n", body))
                assert (await read_message(reader)).content == sent
            assert turns >= 4 * (2 * count // 100 - 5)
            session = await here.ended.get()
            assert (session.up, session.down) == (len(sent), len(sent))

    run(main)


def test_a_session_ends_with_its_time_though_octets_always_flow(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that never waits for a stream, for its octets are expensive and many, finds out between its steps."""
    monkeypatch.setattr("tabi.relay.http_content.STEPS", 10)
    monkeypatch.setattr("tabi.ingress.gate.SWEEP", 0.05)

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"1 \r\nx\r\n" * 1000)
                    await writer.drain()

        settings = msgspec.structs.replace(
            config(Listen("http://127.0.0.1:0")), limits=LimitsConfig(max_session=Seconds(0.1))
        )
        async with target(answer) as port, proxy(config=settings) as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass
            writer.close()
            session = await here.ended.get()
            assert (session.close, session.error) == ("limit", "limit: server: 0.1 s for a session")

    run(main)


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


def test_an_empty_line_behind_an_interim_answer(run: Run) -> None:
    """Some servers write one too many: it is passed over, also where it comes by itself."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for octets in (CONTINUE + b"\r", b"\n", b"\r\n" + OK[:9], OK[9:]):
                writer.write(octets)
                await asyncio.sleep(0.01)

        async with target(serve) as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            assert (await read_message(reader)).status == 100
            assert (await read_message(reader)).content == b"hello"

    run(main)


@pytest.mark.parametrize(("scheme", "connections"), [("NTLM", 1), ("Negotiate", 1), ("Basic", 2)])
def test_an_answer_that_asks_for_credentials_of_the_connection(run: Run, scheme: str, connections: int) -> None:
    """A request with content goes out on the connection that was asked for them (RFC 4559)."""
    answer = f"HTTP/1.1 401 x\r\nWWW-Authenticate: {scheme}\r\nContent-Length: 0\r\n\r\n".encode()

    async def main() -> None:
        async with origin(answer) as there, proxy() as here, client(here.address) as streams:
            for _ in range(2):
                assert (await exchange(streams, ask(there.url, "POST", content=b"x"))).status == 401
            assert len(there.connections) == connections

    run(main)


def test_answers_that_others_take_too(run: Run) -> None:
    """Large heads, folded lines and a doubled length come to the client as one reader would have them."""
    cookies = "".join(f"Set-Cookie: {number}={'x' * 120}\r\n" for number in range(400))
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n{cookies}X: a\r\n\tb\r\ncontent-length: 5\r\n\r\nhello"

    async def main() -> None:
        async with origin(answer.encode()) as there, proxy() as here, client(here.address) as (reader, writer):
            for _ in range(2):
                writer.write(ask(there.url))
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                assert await reader.readexactly(5) == b"hello"
                assert head.lower().count("content-length") == 1
                assert "\r\nX: a b\r\n" in head
                assert cookies in head
            assert len(there.connections) == 1

    run(main)


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
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nrubbish\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;\x00\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\n folded\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!", "http_protocol_error"),
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


@pytest.mark.parametrize("offered", ["websocket", "websocket, h2c"])
def test_an_upgrade_to_what_was_not_offered(run: Run, offered: str) -> None:
    """502: a server must not choose it (RFC 9110 section 7.8), and requests inside h2c would not be looked at."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
            await end_of(reader)

        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            fields = f"Connection: Upgrade\r\nUpgrade: {offered}\r\n"
            assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/", fields=fields))).status == 502
            session = await here.ended.get()
            assert session.error == f"127.0.0.1:{port}: 101, for a protocol that was not requested"

    run(main)


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


# --- an exchange by itself: limits, and what breaks between two steps ---

GET = b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\n"
USED_UP = "limit: user alice: the quota of 4 B/day is used up"


class Client:
    """A client's connection as an exchange sees it."""

    keeps = True

    def __init__(self, ends: Ends, buffer: bytes) -> None:
        self.client = ends.near_client
        self.session = ends.session
        self.buffer = bytearray(buffer)
        self.moved = 0
        self.gone = False
        self.broken = False
        self.patience = IdleTimeouts(self.client.reactor, 300)

    async def send(self, octets: bytes) -> None:
        await self.client.send_all(octets)

    def break_off(self) -> None:
        self.broken = True


class Scene:
    """One exchange between two pairs of sockets, whose request was read already."""

    def __init__(self, bench: Bench, octets: bytes, quota: int | None = None) -> None:
        found = decode_request(octets)
        assert found is not None
        request, end = found
        self.ends = bench.ends()
        session = self.ends.session
        session.destination = request.destination
        if quota is not None:
            limits = Accounts(Ledger(), users={"alice": LimitsConfig(quota=Quota.parse(f"{quota} B/day"))})
            session.lease = limits.admit("alice", parse_host("192.0.2.1"), time.monotonic_ns(), 0)
        self.client = Client(self.ends, octets[end:])
        self.server = KeptServer(self.ends.near_server, request.destination, session, None)
        self.exchange = Exchange(self.client, self.server, request, bench.relays, bench.relays.pacer)

    async def fail(self) -> ExchangeFailed:
        """Run it, and return what it fails with; not an octet went to the client."""
        with pytest.raises(ExchangeFailed) as caught:
            await self.exchange.run()
        assert waiting(self.ends.client) == 0
        return caught.value


def failure(exc: ExchangeFailed) -> tuple[int, str, str]:
    """What the client is to be told."""
    return exc.status, exc.error, str(exc)


def test_content_counts(run: Run) -> None:
    """What a limit counts are the octets of content in both directions, whether they came with the head or later."""

    async def main() -> None:
        with Bench() as bench:
            scene = Scene(bench, POST + b"01234", quota=1000)
            async with asyncio.TaskGroup() as group:
                group.create_task(scene.exchange.run())
                await until(lambda: scene.ends.session.up == 5)
                await send(scene.ends.client, b"56789")
                await until(lambda: scene.ends.session.up == 10)
                await send(scene.ends.server, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
                await until(lambda: scene.ends.session.down == 3)
                await send(scene.ends.server, b"def")
            got = await read(scene.ends.server, waiting(scene.ends.server))
            assert got.startswith(b"POST / HTTP/1.1\r\nHost: a.example\r\n")
            assert got.endswith(b"\r\n\r\n0123456789")
            assert (scene.ends.session.up, scene.ends.session.down) == (10, 6)
            assert (await read(scene.ends.client, waiting(scene.ends.client))).endswith(b"abcdef")
            lease = scene.ends.session.lease
            assert lease is not None
            assert lease.left == 984

    run(main)


@pytest.mark.parametrize("late", [False, True])
def test_content_that_is_too_much(run: Run, late: bool) -> None:
    """Before an answer the client is told so; the destination has part of it, and must not take it for the whole."""

    async def main() -> None:
        with Bench() as bench:
            scene = Scene(bench, POST + (b"" if late else b"0123456789"), quota=4)
            if late:
                await send(scene.ends.client, b"0123456789")
            assert failure(await scene.fail()) == (429, "connection_limit_reached", USED_UP)
            assert scene.ends.session.up == 4
            with pytest.raises(ConnectionResetError):
                await read_all(scene.ends.server)

    run(main)


def test_an_answer_when_nothing_is_left(run: Run) -> None:
    """The client is told so in place of an answer with content; one without content costs nothing."""

    async def main() -> None:
        with Bench() as bench:
            for length, told in ((1, True), (0, False)):
                scene = Scene(bench, POST.replace(b"10", b"4") + b"0123", quota=4)
                await send(scene.ends.server, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
                if told:
                    assert failure(await scene.fail()) == (429, "connection_limit_reached", USED_UP)
                else:
                    assert await scene.exchange.run() == (True, True)

    run(main)


@pytest.mark.parametrize("length", [b"Content-Length: 8\r\n", b""])
@pytest.mark.parametrize("at_once", [False, True])
def test_an_answer_that_becomes_too_much(run: Run, length: bytes, at_once: bool) -> None:
    """It ends where nothing is left; where its end would look like the end of the content it ends with a reset."""

    async def main() -> None:
        with Bench() as bench:
            scene = Scene(bench, GET, quota=4)
            head = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n"
            await send(scene.ends.server, head + (b"abcdefgh" if at_once else b""))
            async with asyncio.TaskGroup() as group:
                running = group.create_task(scene.exchange.run())
                if not at_once:
                    await until(lambda: waiting(scene.ends.client) > 0)
                    await send(scene.ends.server, b"abcdefgh")
            assert running.result() == (False, False)
            session = scene.ends.session
            assert (session.down, session.close, session.error) == (4, "limit", USED_UP)
            assert scene.client.broken is not bool(length)

    run(main)


def test_interim_answers_have_an_end(run: Run) -> None:
    """Each is progress, so that no deadline would end them."""

    async def main() -> None:
        with Bench() as bench:
            scene = Scene(bench, GET)
            await send(scene.ends.server, CONTINUE * (INTERIM_LIMIT + 1))
            with pytest.raises(ExchangeFailed) as caught:
                await scene.exchange.run()
            text = f"a.example:80: more than {INTERIM_LIMIT} interim responses"
            assert failure(caught.value) == (502, "http_protocol_error", text)
            assert not caught.value.unanswered

    run(main)


def test_interim_answers_are_not_for_http_1_0(run: Run) -> None:
    """It does not know them (RFC 9110 section 15.2)."""

    async def main() -> None:
        with Bench() as bench:
            scene = Scene(bench, GET.replace(b"1.1", b"1.0"))
            await send(scene.ends.server, CONTINUE + OK)
            assert await scene.exchange.run() == (False, True)
            got = await read(scene.ends.client, waiting(scene.ends.client))
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")
            assert got.endswith(b"hello")

    run(main)


def test_a_destination_that_is_gone_before_the_request(run: Run) -> None:
    """Nothing of an answer has come, so that it may be asked again."""

    async def main() -> None:
        with Bench() as bench:
            scene = Scene(bench, POST.replace(b"10", b"99999") + bytes(99999))
            vanish(scene.ends.server)
            await until(lambda: scene.ends.near_server.events & ENDED or not bench.relays.reactor.edge_triggered)
            exc = await scene.fail()
            assert (exc.status, exc.error, exc.unanswered) == (502, "connection_terminated", True)

    run(main)


def test_a_destination_that_takes_no_more_may_still_answer(run: Run) -> None:
    """Its answer goes to the client, though the content was not taken; neither connection is used again."""

    async def main() -> None:
        with Bench() as bench:
            scene = Scene(bench, POST.replace(b"10", b"99999"))
            near: Any = scene.ends.near_server.sock
            near_client: Any = scene.ends.near_client.sock
            async with asyncio.TaskGroup() as group:
                running = group.create_task(scene.exchange.run())
                await until(lambda: waiting(scene.ends.server) > 0)
                near.shutdown(socket.SHUT_WR)  # what is sent from now on fails
                await send(scene.ends.client, bytes(500))
                await until(lambda: waiting(near_client) == 0 and not scene.exchange.reading)
                await send(scene.ends.server, OK)
            assert running.result() == (False, False)
            assert (scene.ends.session.reply_code, scene.ends.session.up) == (200, 0)
            assert (await read(scene.ends.client, waiting(scene.ends.client))).endswith(b"hello")

    run(main)


def test_a_kept_connection_that_was_reset_is_not_used(run: Run) -> None:
    """On every hosting of the reactor, whether or not it has told of the reset."""

    async def main() -> None:
        with Bench() as bench:
            scene = Scene(bench, GET)
            assert scene.server.quiet
            vanish(scene.ends.server)
            near: Any = scene.ends.near_server.sock
            await until(lambda: near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07")  # TCP_CLOSE
            scene.ends.near_server.events &= ~ENDED  # it was not told yet
            scene.ends.near_server.events |= IN
            assert not scene.server.quiet

    run(main)
