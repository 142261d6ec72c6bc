"""HTTP/1 inside an intercepted session, octet by octet."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from pathlib import Path

import pytest

from authorities import authority, server_context
from conftest import Run
from doubles import end_of, reset, until
from interceptions import GET, OK, hooks_of, intercepting, origin, talk
from support import reset_on_close, target


@pytest.fixture(params=["passing", "task"])
def hooks(request: pytest.FixtureRequest) -> tuple[object, ...]:
    """Both ways in which HTTP/1 is carried."""
    return hooks_of(request.param)


# --- octets pass ---

Hooks = tuple[object, ...]

ODD_REQUEST = (
    b"GET /a%20b?c=d&&e HTTP/1.1\r\nhOsT:localhost\r\nX-A:  two  \r\nX-a:\t\r\nCookie: a=\xff\xc3\xbc; b\r\n"
    b"x-empty:\r\nX-A: again\r\n\r\n"
)
ODD_ANSWER = (
    b"HTTP/1.1 299 \xc3\xbcber  gut\r\nserver:x\r\nX-B:  \r\nSET-cookie: a=b\r\nset-COOKIE: c=d\r\n"
    b"Content-length:5\r\n\r\nhello"
)


@pytest.mark.parametrize("tls", [True, False])
def test_heads_pass_octet_for_octet(run: Run, hooks: Hooks, tmp_path: Path, tls: bool) -> None:
    """Case, order, white space, odd values and reasons are what they were, in both directions, whether or not a
    recorder looks at them."""

    async def main() -> None:
        for records in (False, True):
            folder = tmp_path / str(records)
            folder.mkdir()
            async with (
                intercepting(folder, *hooks, records=records) as proxy,
                origin(ODD_ANSWER, plain=not tls) as there,
            ):
                async with (proxy.tls if tls else proxy.plain)(there.port) as streams:
                    await talk(streams, ODD_REQUEST, ODD_ANSWER)
                assert there.heads == [ODD_REQUEST]
                session = await proxy.ended.get()
                assert (session.up, session.down) == (len(ODD_REQUEST), len(ODD_ANSWER))
                assert (session.error, session.intercepted) == (None, "intercept[0]")
                if records:
                    assert proxy.records is not None
                    (record,) = proxy.records
                    assert (record.method, record.status, record.response_body) == ("GET", 299, b"hello")

    run(main)


def test_any_method_where_the_protocol_is_known(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """ALPN says that it is HTTP/1.1: then no method is a way around inspection."""

    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().issue_cert("localhost").configure_cert(context)
        context.set_alpn_protocols(["http/1.1"])
        async with intercepting(tmp_path, *hooks, records=True) as proxy, origin(OK, context=context) as there:
            async with proxy.tls(there.port, alpn=("http/1.1",)) as streams:
                await talk(streams, b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", OK)
            await proxy.ended.get()
            assert proxy.records is not None
            assert [record.method for record in proxy.records] == ["BREW"]

    run(main)


EXCHANGES = {
    "chunks": (GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-T:  t \r\n\r\n"),
    "uploaded chunks": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK,
    ),
    "head": (b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"),
    "no content": (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not modified": (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 999\r\n\r\n"),
    "interim": (GET, b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 102 \r\n\r\n" + OK),
    "lengths": (GET, OK.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n")),
    "upload": (b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 005\r\n\r\nhello", OK),
    "absolute": (b"GET http://localhost/a HTTP/1.1\r\nHost: localhost\r\n\r\n", OK),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", OK),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", OK),
    "old": (
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"),
    ),
    "old answer": (GET, b"HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi"),
}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("exchanged", EXCHANGES.values(), ids=EXCHANGES)
def test_exchanges_pass_octet_for_octet(
    run: Run, hooks: Hooks, tmp_path: Path, exchanged: tuple[bytes, bytes], recorded: bool
) -> None:
    """Every framing that HTTP has, with another exchange behind it on the same connections, sent at once."""
    request, answer = exchanged

    async def main() -> None:
        async with intercepting(tmp_path, *hooks, records=recorded) as proxy, origin(answer, OK) as there:
            async with proxy.tls(there.port) as streams:
                await talk(streams, request + GET, answer + OK)
            assert b"".join(head + body for head, body in zip(there.heads, there.bodies, strict=True)) == request + GET
            assert there.connections == 1
            session = await proxy.ended.get()
            assert (session.up, session.down) == (len(request + GET), len(answer + OK))
            assert (session.error, session.close) == (None, "client")

    run(main)


def test_slow_octets(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """Heads and content in pieces of one octet, from both sides."""
    request = EXCHANGES["uploaded chunks"][0]
    answer = EXCHANGES["chunks"][1]

    async def main() -> None:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(len(request))
            for at in range(len(answer)):
                writer.write(answer[at : at + 1])
                await writer.drain()
                await asyncio.sleep(0)
            await reader.read()

        async with intercepting(tmp_path, *hooks) as proxy, target(drip, context=server_context()) as port:  # noqa: SIM117
            async with proxy.tls(port) as (reader, writer):
                for at in range(len(request)):
                    writer.write(request[at : at + 1])
                    await asyncio.sleep(0)
                assert await reader.readexactly(len(answer)) == answer

    run(main)


# --- ends ---


def test_content_until_the_end(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """The client sees the end of the content as one, and with TLS as one that was said (close_notify)."""
    answer = b"HTTP/1.1 200 OK\r\n\r\nall of it"

    async def main() -> None:
        async with intercepting(tmp_path, *hooks) as proxy, origin(answer, stays=False) as there:
            async with proxy.peer(there.port) as peer:
                await peer.send(GET)
                assert await peer.read_all() == answer
                assert peer.notified
            session = await proxy.ended.get()
            assert (session.error, session.close) == (None, "server")

    run(main)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n\r\npart", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"]
)
def test_content_that_is_cut(run: Run, hooks: Hooks, tmp_path: Path, answer: bytes) -> None:
    """An end without close_notify is no end of the content: the client sees none either, nor a whole message."""

    async def main() -> None:
        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
            await reader.read()

        async with intercepting(tmp_path, *hooks) as proxy, target(cut, context=server_context()) as port:
            async with proxy.peer(port) as peer:
                await peer.send(GET)
                assert await peer.read(len(answer)) == answer
                try:
                    assert await peer.read_all() == b""
                except ConnectionResetError:
                    pass
                else:
                    assert b"Content-Length" not in answer
                assert not peer.notified
            await proxy.ended.get()

    run(main)


def test_a_server_that_is_reset_in_the_middle(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """The client sees a reset: it must not take what it has for the whole."""
    part = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"

    async def main() -> None:
        async def part_of_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(part)
            await writer.drain()
            await read.wait()
            reset(writer)

        read, context = asyncio.Event(), server_context()
        async with intercepting(tmp_path, *hooks, records=True) as proxy, target(part_of_it, context=context) as port:
            async with proxy.tls(port) as (reader, writer):
                writer.write(GET)
                assert await reader.readexactly(len(part)) == part
                read.set()
                assert await end_of(reader) == "reset"
            session = await proxy.ended.get()
            assert session.close == "reset"
            text = "connection reset by peer" if hooks else "the connection has ended"
            assert [record.error for record in proxy.records or ()] == [text]

    run(main)


def test_an_answer_that_is_cut_short(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """The client sees a reset; what is told of the flow is that its answer had begun."""
    part = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"

    async def main() -> None:
        async def part_of_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(part)

        context = server_context()
        async with intercepting(tmp_path, *hooks, records=True) as proxy, target(part_of_it, context=context) as port:
            async with proxy.tls(port) as (reader, writer):
                writer.write(GET)
                assert await end_of(reader) == "reset"
            await proxy.ended.get()
            text = "the connection ended in the middle of the content"
            assert [record.error for record in proxy.records or ()] == [text]

    run(main)


def test_a_connection_that_is_closed_while_nothing_is_asked(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """What the destination says unasked (408) goes to the client, and so does its end."""
    late = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    async def main() -> None:
        async def tired(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await writer.drain()
            await answered.wait()
            writer.write(late)

        answered = asyncio.Event()
        async with intercepting(tmp_path, *hooks) as proxy, target(tired, context=server_context()) as port:
            async with proxy.tls(port) as streams:
                await talk(streams, GET, OK)
                answered.set()
                assert await streams[0].read() == late
            session = await proxy.ended.get()
            assert (session.close, session.error) == ("server", None)

    run(main)


def test_a_kept_connection_that_dies_under_a_request(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """The client sees its connection end without an answer, as it would without us, and may ask again."""

    async def main() -> None:
        async with intercepting(tmp_path, *hooks) as proxy:

            async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(OK)
                await reader.readuntil(b"\r\n\r\n")

            async with target(once, context=server_context()) as port, proxy.tls(port) as streams:
                await talk(streams, GET, OK)
                streams[1].write(GET)
                assert await end_of(streams[0]) in ("end", "reset")
            session = await proxy.ended.get()
            assert session.error == f"localhost:{port}: the connection ended before its answer"

    run(main)


def test_a_connection_that_ends_before_its_first_answer(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """The client is told so."""

    async def main() -> None:
        async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")

        async with intercepting(tmp_path, *hooks) as proxy, target(gone, context=server_context()) as port:
            async with proxy.tls(port) as (reader, writer):
                writer.write(GET)
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: tabi; error=connection_terminated")
            session = await proxy.ended.get()
            assert (session.close, session.error) == (
                "error",
                f"localhost:{port}: the connection ended before its answer",
            )

    run(main)


def test_a_client_that_goes_while_the_server_thinks(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """The destination is told at once: by a reset for a reset, by an end for an end."""

    async def main() -> None:
        async def think(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            try:
                ends.append(await reader.read())
            except ConnectionError:
                ends.append(b"reset")

        ends: list[bytes] = []
        asked = asyncio.Event()
        async with intercepting(tmp_path, *hooks) as proxy, target(think, context=server_context()) as port:
            for kind in ("reset", "close", "close at once"):
                asked.clear()
                async with proxy.peer(port) as peer:
                    await peer.send(GET)
                    if kind == "close at once":
                        peer.sock.shutdown(socket.SHUT_WR)
                    await asked.wait()
                    if kind == "reset":
                        reset_on_close(peer.sock)
                    peer.sock.close()
                    await until(lambda: len(ends) == 1)
                    ends.clear()
                await proxy.ended.get()

    run(main)


def test_requests_and_an_end_at_once(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """A client that sends all that it wants, and its end: it gets every answer."""

    async def main() -> None:
        async with intercepting(tmp_path, *hooks) as proxy, origin(OK, OK, OK, plain=True) as there:
            async with proxy.plain(there.port) as (reader, writer):
                writer.write(GET * 3)
                writer.write_eof()
                assert await reader.read() == OK * 3
            assert (await proxy.ended.get()).error is None

    run(main)


def test_an_answer_behind_half_a_close(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """A client that has ended its side gets the answer, whose server was told of the end."""

    async def main() -> None:
        async def last(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == GET
            writer.write(OK)

        async with intercepting(tmp_path, *hooks) as proxy, target(last) as port:  # noqa: SIM117
            async with proxy.plain(port) as (reader, writer):
                writer.write(GET)
                writer.write_eof()
                assert await reader.read() == OK

    run(main)


# --- uploads ---


def test_a_refusal_of_a_large_upload(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """An answer that comes early arrives, though the client goes on sending and the destination has closed."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!"

    async def main() -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(refusal)
            if not hooks:  # then the relay has only what the kernel has
                await reader.read()

        for tls in (True, False):
            folder = tmp_path / str(tls)
            folder.mkdir()
            context = server_context() if tls else None
            async with intercepting(folder, *hooks) as proxy, target(refuse, context=context) as port:
                async with (proxy.tls if tls else proxy.plain)(port) as (reader, writer):
                    size = 20_000_000
                    writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
                    async with asyncio.TaskGroup() as group:
                        group.create_task(pour(writer, size))
                        assert await reader.readexactly(len(refusal)) == refusal
                await proxy.ended.get()

    run(main)


async def pour(writer: asyncio.StreamWriter, size: int) -> None:
    """Send so many octets, as far as they are taken."""
    try:
        for _ in range(size // 100_000):
            writer.write(bytes(100_000))
            await writer.drain()
    except ConnectionError:
        pass


def test_expect_continue(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """The destination decides whether the content is wanted."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readuntil(b"\r\n\r\n") == head
            writer.write(go_on)
            assert await reader.readexactly(5) == b"hello"
            writer.write(OK)
            assert await reader.readuntil(b"\r\n\r\n") == head
            writer.write(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

        async with intercepting(tmp_path, *hooks) as proxy, target(serve, context=server_context()) as port:  # noqa: SIM117
            async with proxy.tls(port) as streams:
                await talk(streams, head, go_on)
                await talk(streams, b"hello", OK)
                await talk(streams, head, b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")

    run(main)


@pytest.mark.parametrize("broken", [b"5\r\nhello", b"x\r\n", b"5\nhello\r\n"])
def test_an_upload_that_breaks(run: Run, hooks: Hooks, tmp_path: Path, broken: bytes) -> None:
    """Chunks that are none are refused, and an end in the middle is no end."""

    async def main() -> None:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            try:
                octets.append(await reader.read())
            except ConnectionResetError:
                pass
            seen.set()

        seen = asyncio.Event()
        octets: list[bytes] = []
        async with intercepting(tmp_path, *hooks) as proxy, target(take) as port:
            async with proxy.plain(port) as (reader, writer):
                writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
                await asyncio.sleep(0.05)
                writer.write(broken)
                writer.write_eof()
                answer = await reader.read()
            assert answer[9:12] == b"400" or (broken == b"5\r\nhello" and answer[9:12] == b"502")
            await seen.wait()
            await proxy.ended.get()
            assert b"\n\r\n" not in b"".join(octets)

    run(main)


# --- other protocols behind an exchange ---


def test_upgrade(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """Behind 101 octets pass both ways, those too that came early; either half may end first."""
    ask = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readuntil(b"\r\n\r\n") == ask
            writer.write(switch + b"early")
            while data := await reader.read(1000):
                writer.write(data)

        for recorded in (False, True):
            folder = tmp_path / str(recorded)
            folder.mkdir()
            async with (
                intercepting(folder, *hooks, records=recorded) as proxy,
                target(serve, context=server_context()) as port,
            ):
                async with proxy.peer(port) as peer:
                    await peer.send(ask + b"hasty")
                    assert await peer.read(len(switch) + 10) in (switch + b"earlyhasty", switch + b"hastyearly")
                    await peer.send(b"more")
                    assert await peer.read(4) == b"more"
                    await peer.end()
                    assert await peer.read_all() == b""
                session = await proxy.ended.get()
                assert (session.up, session.down) == (len(ask) + 9, len(switch) + 14)
                if recorded:
                    assert proxy.records is not None
                    assert [record.status for record in proxy.records] == [101]

    run(main)


UNASKED = {
    "not asked for": (GET, b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"),
    "another one": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
    ),
}


@pytest.mark.parametrize("exchanged", UNASKED.values(), ids=UNASKED)
def test_a_change_of_protocols_that_was_not_asked_for(
    run: Run, hooks: Hooks, tmp_path: Path, exchanged: tuple[bytes, bytes]
) -> None:
    """Otherwise a destination could end inspection by itself."""
    request, answer = exchanged

    async def main() -> None:
        async with intercepting(tmp_path, *hooks) as proxy, origin(answer) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(request)
                assert (await reader.read()).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert "101" in str((await proxy.ended.get()).error)

    run(main)


def test_no_upgrade_to_http2(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """Inside h2c requests would pass without being looked at: it is not offered to the destination."""
    asked = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
    )

    async def main() -> None:
        async with intercepting(tmp_path, *hooks) as proxy, origin(OK, OK) as there:
            async with proxy.tls(there.port) as streams:
                await talk(streams, asked, OK)
                await talk(streams, asked.replace(b"h2c", b"h2c, echo"), OK)
            assert b"h2c" not in b"".join(there.heads)
            assert b"Upgrade" not in there.heads[0]
            assert b"echo" in there.heads[1]

    run(main)


def test_connect_inside(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """A proxy inside TLS: what follows its 200 is another's, what follows a refusal is no request."""
    ask = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readuntil(b"\r\n\r\n") == ask
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")
            while data := await reader.read(1000):
                writer.write(data)

        async with intercepting(tmp_path, *hooks) as proxy, target(serve, context=server_context()) as port:  # noqa: SIM117
            async with proxy.tls(port) as streams:
                await talk(streams, ask + b"early", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nearly")
                await talk(streams, GET, GET)

        folder = tmp_path / "refused"
        folder.mkdir()
        no = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        async with intercepting(folder, *hooks) as proxy, origin(no, OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(ask + GET)
                assert await reader.read() == no
            assert there.heads == [ask]

    run(main)


# --- what is refused ---

WRONG = {
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "bare LF": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "LF in a field": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\nC: d\r\n\r\n",
    "fold": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n",
    "space before a colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\nhello",
    "other coding": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "two codings": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: other.test\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "minus": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "plus": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\nx",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "too long": b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "null": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: \0\r\n\r\n",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_requests_that_two_readers_could_take_for_two_things(
    run: Run, hooks: Hooks, tmp_path: Path, wrong: bytes
) -> None:
    """They are refused, and nothing of them reaches the destination."""

    async def main() -> None:
        async with intercepting(tmp_path, *hooks) as proxy, origin(OK, OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                await talk((reader, writer), GET, OK)
                writer.write(wrong + GET)
                answer = await reader.read()
                assert answer[9:12] in (b"400", b"414", b"431", b"501", b"505")
                assert len(re.findall(rb"HTTP/1.1 \d", answer)) == 1
            assert there.heads == [GET]
            session = await proxy.ended.get()
            assert (session.close, bool(session.error)) == ("error", True)

    run(main)


WRONG_ANSWERS = {
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "too long": b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 600 + b"\r\n",
    "endless": b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "other coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
}


@pytest.mark.parametrize("wrong", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_answers_that_two_readers_could_take_for_two_things(
    run: Run, hooks: Hooks, tmp_path: Path, wrong: bytes
) -> None:
    """The client gets none of them, but is told."""

    async def main() -> None:
        async with intercepting(tmp_path, *hooks) as proxy, origin(wrong) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(GET)
                answer = (await reader.read()).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
                assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: tabi; error=http_protocol_error")
                assert len(re.findall(rb"HTTP/1.1 \d", answer)) == 1
            session = await proxy.ended.get()
            assert (session.close, bool(session.error)) == ("error", True)

    run(main)


def test_folded_answers_are_mended(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """RFC 9112 sections 5.1 and 5.2: what some readers would see otherwise is made plain."""
    odd = b"HTTP/1.1 200 OK\r\nA : b\r\nC: d\r\n e\r\nContent-Length: 5\r\n\r\nhello"
    plain = b"HTTP/1.1 200 OK\r\nA: b\r\nC: d e\r\nContent-Length: 5\r\n\r\nhello"

    async def main() -> None:
        async with intercepting(tmp_path, *hooks) as proxy, origin(odd) as there, proxy.tls(there.port) as streams:
            await talk(streams, GET, plain)

    run(main)
