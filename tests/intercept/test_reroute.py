"""Asking another server: the request, the answer and its content, against real servers and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from conftest import Run
from origin import make_authority, make_certificates, origin
from support import target
from tabi.errors import ConnectTimeout, HttpError, PolicyDenied, RemoteProtocolError
from tabi.intercept.flow import Reroute
from tabi.intercept.reroute import Fetched, fetch, make_request
from tabi.net.stream import Stream
from tabi.wire.address import Address

END = b"\r\n\r\n"


class Opener:
    """Opens connections, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Address, bool, str | None]] = []
        self.streams: list[Stream] = []

    async def __call__(self, destination: Address, tls: bool, via: str | None) -> Stream:
        self.asked.append((destination, tls, via))
        sock = socket.create_connection(("127.0.0.1", destination.port), 20)
        stream = Stream.from_socket(sock)
        self.streams.append(stream)
        if tls:
            context = ssl.create_default_context()
            make_authority().configure_trust(context)
            await stream.start_tls(context, str(destination.host))
        return stream


async def ask(
    url: str,
    method: str = "GET",
    fields: Iterable[tuple[bytes, bytes]] = (),
    content: bytes = b"",
    opener: Callable[..., Awaitable[Stream]] | None = None,
    connect: float = 20.0,
    idle: float = 20.0,
) -> Fetched:
    """Ask for a URL."""
    return await fetch(opener or Opener(), Reroute(url, None), method, fields, content, connect=connect, idle=idle)


async def collect(fetched: Fetched, pieces: list[bytes]) -> None:
    """Read its content piece by piece."""
    async for piece in fetched.content():
        pieces.append(piece)  # noqa: PERF401  what came before an error counts


async def read(fetched: Fetched) -> bytes:
    """All of its content."""
    try:
        return b"".join([piece async for piece in fetched.content()])
    finally:
        await fetched.aclose()


@contextlib.asynccontextmanager
async def server(*answers: bytes, wait: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that sends pieces of an answer when the request's head is there; gives its URL and what it was sent."""
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(END))
        for answer in answers:
            writer.write(answer)
            await writer.drain()
            await asyncio.sleep(0)
        if wait:
            await reader.read()

    async with target(handle) as port:
        yield f"http://127.0.0.1:{port}/", seen


def test_real_servers(run_once: Run, tmp_path: Path) -> None:
    """By http and https: content, HEAD, what is posted, conditions; each has a connection of its own."""
    files = {"/page": b"a page" * 50_000}
    with origin(files) as plain, origin(files, tls=make_certificates(tmp_path)) as secure:

        async def main() -> None:
            for one in (plain, secure):
                opener = Opener()
                url = one.url("/page?q#fragment", "localhost" if one is secure else "127.0.0.1")
                fetched = await fetch(opener, Reroute(url, "eu"), "GET", [(b"X-A", b"b")], b"", connect=20, idle=20)
                assert opener.asked[0][1:] == (one is secure, "eu")
                assert (fetched.status, fetched.reason) == (200, b"OK")
                assert dict(fetched.fields)[b"Content-Length"] == b" 300000"
                assert await read(fetched) == files["/page"]
                assert opener.streams[0].fd < 0
                fetched = await ask(one.url("/page", "localhost"), "HEAD")
                assert dict(fetched.fields)[b"Content-Length"] == b" 300000"
                assert await read(fetched) == b""
                fetched = await ask(one.url("/", "localhost"), "POST", content=b"posted" * 100_000)
                assert await read(fetched) == b"posted" * 100_000
                assert await read(await ask(one.url("/none", "localhost"))) == b"not here\n"
                first = one.asked[0]
                assert (first.path, first.fields["x-a"], first.fields["connection"]) == ("/page?q", "b", "close")
                assert len({asked.port for asked in one.asked}) == 4

        run_once(main)


def test_the_request() -> None:
    """Host is the URL's; what is for one connection stays behind, also what Connection names; framing is written."""
    fields = [
        (b"Host", b"old.example"),
        (b"accept", b"a"),
        (b"Connection", b"keep-alive, X-Own"),
        (b"X-Own", b"1"),
        (b"Keep-Alive", b"5"),
        (b"Proxy-Authorization", b"Basic eA=="),
        (b"TE", b"trailers"),
        (b"Trailer", b"X"),
        (b"Upgrade", b"websocket"),
        (b"Expect", b"100-continue"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"99"),
        (b"Content-Encoding", b"br"),
        (b"Cookie", b"a=\xff"),
        (b"Accept", b"b"),
    ]
    request, octets = make_request("https://u:p@New.example:8443/a/\udcff?b#c", "POST", fields, b"content")
    assert (request.destination, request.tls) == (Address("New.example", 8443), True)
    assert octets == (
        b"POST /a/%FF?b HTTP/1.1\r\nHost: New.example:8443\r\naccept: a\r\nContent-Encoding: br\r\nCookie: a=\xff\r\n"
        b"Accept: b\r\nContent-Length: 7\r\nAuthorization: Basic dTpw\r\nVia: 1.1 tabi\r\nConnection: close\r\n\r\n"
        b"content"
    )
    assert b"Content-Length: 0\r\n" in make_request("http://a/", "PUT", [], b"")[1]
    assert b"Content-Length" not in make_request("http://a/", "GET", [], b"")[1]
    assert make_request("http://[::1]/", "OPTIONS", [], b"")[1].startswith(b"OPTIONS / HTTP/1.1\r\nHost: [::1]\r\n")


@pytest.mark.parametrize(
    ("url", "method", "fields"),
    [
        ("http://a/", "CONNECT", []),
        ("a:443", "CONNECT", []),
        ("/path", "GET", []),
        ("ftp://a/", "GET", []),
        ("http://a/ b", "GET", []),
        ("http://a/", "G T", []),
        ("http://a/", "GET", [(b"a", b"b\r\nc: d")]),
        ("http://a/", "GET", [(b"a:", b"b")]),
    ],
)
def test_what_cannot_be_sent(url: str, method: str, fields: list[tuple[bytes, bytes]]) -> None:
    """Is not, and nothing is opened."""
    with pytest.raises(HttpError):
        make_request(url, method, fields, b"")


CHUNKS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n"
    b"5;x=y\r\nhello\r\n00a\r\n, chunked!\r\n0\r\nX: trailer\r\n\r\n"
)
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more", b"hello"),
        (b"HTTP/1.1 200\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        (CHUNKS, b"hello, chunked!"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + SHORT, b"a"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 32 + SHORT, b"a"),
    ],
)
@pytest.mark.parametrize("cut", ["whole", "octets"])
def test_answers(run_once: Run, answer: bytes, content: bytes, cut: str) -> None:
    """However they are framed, and in whatever pieces they come."""
    pieces = [answer] if cut == "whole" else [answer[at : at + 1] for at in range(len(answer))]

    async def main() -> None:
        async with server(*pieces) as (url, _):
            fetched = await ask(url)
            names = {name.lower() for name, _ in fetched.fields}
            assert not names & {b"transfer-encoding", b"link", b"connection"}
            assert await read(fetched) == content

    run_once(main)


def test_fields_of_the_connection_stay_behind(run_once: Run) -> None:
    """Those of the answer too; the others come as they are, in their order."""
    answer = (
        b"HTTP/1.1 200 Fine\r\nset-cookie: a\r\nConnection: X-Own\r\nX-Own: 1\r\nKeep-Alive: 5\r\n"
        b"Upgrade: h2c\r\nSet-Cookie:b\r\nContent-Length: 00\r\n\r\n"
    )

    async def main() -> None:
        async with server(answer) as (url, _):
            fetched = await ask(url)
            await fetched.aclose()
            assert fetched.reason == b"Fine"
            assert fetched.fields == [(b"set-cookie", b" a"), (b"Set-Cookie", b"b"), (b"Content-Length", b" 0")]

    run_once(main)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "ended the connection before its answer"),
        (b"HTTP/1.1 200 OK\r\n", "ended the connection before its answer"),
        (b"SSH-2.0-x\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "101"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 33, "more than 32 interim answers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "64|65536|too long|limit"),
    ],
)
def test_bad_answers(run_once: Run, answer: bytes, said: str) -> None:
    """Are errors, and the connection is closed."""

    async def main() -> None:
        opener = Opener()
        async with server(answer) as (url, _):
            with pytest.raises(RemoteProtocolError, match=said):
                await ask(url, opener=opener)
            assert opener.streams[0].fd < 0

    run_once(main)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5x\r\n",
    ],
)
def test_content_that_is_not_whole(run_once: Run, answer: bytes) -> None:
    """What came is there; then it is an error, not an end."""

    async def main() -> None:
        async with server(answer[:-1], answer[-1:]) as (url, _):
            fetched = await ask(url)
            got: list[bytes] = []
            with pytest.raises(RemoteProtocolError):
                await collect(fetched, got)
            assert b"".join(got) == b"hello"
            await fetched.aclose()

    run_once(main)


def test_deadlines(run_once: Run) -> None:
    """Of the connection, of the head and of each piece of content."""

    async def never(destination: Address, tls: bool, via: str | None) -> Stream:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def main() -> None:
        with pytest.raises(ConnectTimeout, match=r"^a:80: no answer within 0.01 s$"):
            await ask("http://a/", opener=never, connect=0.01)
        opener = Opener()
        async with server(wait=True) as (url, _):
            with pytest.raises(RemoteProtocolError, match=r"^no octet passed for 0.05 s$"):
                await ask(url, opener=opener, idle=0.05)
            assert opener.streams[0].fd < 0
        async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", wait=True) as (url, _):
            fetched = await ask(url)
            fetched.idle = 0.05
            assert await anext(fetched.content()) == b"abc"
            with pytest.raises(RemoteProtocolError, match=r"^no octet passed"):
                await anext(fetched.content())
            await fetched.aclose()

    run_once(main)


def test_errors_of_the_opener_come_as_they_are(run_once: Run) -> None:
    """The guard's, and a timeout of the kernel's."""

    async def main() -> None:
        for error in (
            PolicyDenied("the guard"),
            TimeoutError(110, "timed out"),
            ConnectionRefusedError(111, "refused"),
        ):

            async def refuse(*_: object, error: Exception = error) -> Stream:
                raise error

            with pytest.raises(type(error)) as caught:
                await ask("http://a/", opener=refuse)
            assert caught.value is error

    run_once(main)


def test_a_cancelled_request_closes_its_connection(run_once: Run) -> None:
    """While the head is awaited."""

    async def main() -> None:
        opener = Opener()
        async with server(wait=True) as (url, seen):
            task = asyncio.get_running_loop().create_task(ask(url, opener=opener))
            while not seen:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert opener.streams[0].fd < 0

    run_once(main)


def test_an_answer_before_all_of_the_request(run_once: Run) -> None:
    """A server that takes no more says why; so does one that only stops to read."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"

    async def main() -> None:
        async with server(refusal, wait=True) as (url, _):
            fetched = await ask(url, "POST", content=bytes(100_000))
            assert (fetched.status, await read(fetched)) == (413, b"no")

        gate = asyncio.Event()

        async def stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(refusal)
            await gate.wait()

        async with target(stop) as port:
            fetched = await ask(f"http://127.0.0.1:{port}/", "POST", content=bytes(30_000_000), idle=0.1)
            assert (fetched.status, await read(fetched)) == (413, b"no")
            gate.set()

    run_once(main)


def test_content_waits_for_whoever_reads_it(run_once: Run) -> None:
    """A large answer is not read ahead: its server waits."""
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(END)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(bytes(100_000))
            sent += 100_000
            await writer.drain()

    async def main() -> None:
        async with target(pour) as port:
            fetched = await ask(f"http://127.0.0.1:{port}/")
            before = -1
            while sent != before:  # until the server can send no more
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 50_000_000
            total = 0
            async for piece in fetched.content():
                total += len(piece)
            assert total == 100_000_000
            await fetched.aclose()

    run_once(main)
