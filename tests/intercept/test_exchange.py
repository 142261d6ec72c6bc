"""Exchanges that hooks change, from outside: what the destination gets, what the client gets, and what hooks are told.

Plain hooks have HTTP/1 carried by the relay, and async ones by a task: most tests are of both.
"""

from __future__ import annotations

import asyncio
import gzip
import inspect
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest

from authorities import server_context
from conftest import Run
from doubles import end_of, until
from interceptions import GET, OK, intercepting, origin, talk
from support import target
from tabi.errors import TooLarge
from tabi.intercept.flow import Flow

Kind = Callable[[Any], Any]


def waits(hook: Any) -> Any:
    """The same hook with async methods."""
    made = type(type(hook).__name__, (), {})()
    for name in dir(hook):
        method = getattr(hook, name)
        if name.startswith("_") or not inspect.ismethod(method):
            continue

        def make(method: Any, name: str) -> Any:
            async def call(*args: Any) -> Any:
                await asyncio.sleep(0)
                return method(*args)

            async def of_flow(flow: Flow) -> Any:
                return await call(flow)

            async def of_chunk(flow: Flow, chunk: bytes) -> Any:
                return await call(flow, chunk)

            return of_chunk if name.endswith("_body") else of_flow

        setattr(made, name, make(method, name))
    return made


@pytest.fixture(params=[lambda hook: hook, waits], ids=["plain", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Hooks as they are, and the same with async methods."""
    found: Kind = request.param
    return found


class Told:
    """Counts what is told at the end of flows."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, int, str | None]] = []
        self.errors: list[str | None] = []

    def flow_end(self, flow: Flow) -> None:
        self.ends.append((flow.request.path, 0 if flow.response is None else flow.response.status, flow.error))

    def error(self, flow: Flow) -> None:
        self.errors.append(flow.error)


# --- heads ---


def test_heads_are_changed(run: Run, tmp_path: Path, kind: Kind) -> None:
    """Only what a hook changes is changed, in both directions; what is behind it is right."""

    class Hook:
        def request(self, flow: Flow) -> None:
            assert flow.request.url == f"https://localhost:{flow.port}/a"
            flow.request.path = "/b?c"
            flow.request.headers["X-New"] = "1"
            del flow.request.headers["cookie"]
            flow.tags.add("seen")

        def response(self, flow: Flow) -> None:
            assert flow.response is not None
            flow.response.status = 418
            flow.response.headers.add("Set-Cookie", "e=f")

    asked = b"GET /a HTTP/1.1\r\nhost:  localhost\r\nCOOKIE: x\r\nx-Odd:  y \r\n\r\n"
    expected = b"GET /b?c HTTP/1.1\r\nhost:  localhost\r\nx-Odd:  y \r\nX-New: 1\r\n\r\n"
    answer = b"HTTP/1.1 200 Fine\r\nSET-cookie:a=b\r\nContent-Length: 5\r\n\r\nhello"
    changed = b"HTTP/1.1 418 I'm a Teapot\r\nSET-cookie:a=b\r\nContent-Length: 5\r\nSet-Cookie: e=f\r\n\r\nhello"

    async def main() -> None:
        told = Told()
        async with intercepting(tmp_path, kind(Hook()), kind(told)) as proxy, origin(answer, answer) as there:
            async with proxy.tls(there.port) as streams:
                await talk(streams, asked + asked, changed + changed)
            assert there.heads == [expected, expected]
            assert (await proxy.ended.get()).error is None
        assert told.ends == [("/b?c", 418, None)] * 2
        assert told.errors == []

    run(main)


BREAKS: dict[str, Callable[[Flow], object]] = {
    "length": lambda flow: flow.request.headers.__setitem__("Content-Length", "50"),
    "coding": lambda flow: flow.request.headers.add("Transfer-Encoding", "chunked"),
    "removed": lambda flow: flow.request.headers.remove("Content-Length"),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_framing_is_not_a_hooks(run: Run, tmp_path: Path, kind: Kind, change: Callable[[Flow], object]) -> None:
    """Whatever a hook does to fields of framing: messages end where they end."""

    class Hook:
        def request(self, flow: Flow) -> None:
            change(flow)

        def response(self, flow: Flow) -> None:
            assert flow.response is not None
            flow.response.headers["Content-Length"] = "50"
            flow.response.headers.remove("Content-Length")

    asked = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"

    async def main() -> None:
        async with intercepting(tmp_path, kind(Hook())) as proxy, origin(OK, OK) as there:
            async with proxy.tls(there.port) as streams:
                await talk(streams, asked, OK)
                await talk(streams, asked, OK)
            assert there.bodies == [b"hello", b"hello"]

    run(main)


STATUSES = (
    (b"GET", OK, 204, b"HTTP/1.1 204 No Content\r\n\r\n"),
    (b"GET", OK, 304, b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", 200, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    (
        b"HEAD",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        404,
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n",
    ),
    (
        b"GET",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        204,
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ),
)


@pytest.mark.parametrize("case", STATUSES)
def test_statuses_with_and_without_content(
    run: Run, tmp_path: Path, kind: Kind, case: tuple[bytes, bytes, int, bytes]
) -> None:
    """A hook that changes the status: the client gets the content that this status has."""
    method, answer, status, expected = case

    class Hook:
        def response(self, flow: Flow) -> None:
            assert flow.response is not None
            if flow.request.path == "/":
                flow.response.status = status

    async def main() -> None:
        async with intercepting(tmp_path, kind(Hook())) as proxy, origin(answer, OK) as there:  # noqa: SIM117
            async with proxy.tls(there.port) as streams:
                await talk(streams, method + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n", expected)
                await talk(streams, b"GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n", OK)

    run(main)


METHODS = (
    ("GET", "HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("HEAD", "GET", OK, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
)


@pytest.mark.parametrize("case", METHODS)
def test_another_method(run: Run, tmp_path: Path, kind: Kind, case: tuple[str, str, bytes, bytes]) -> None:
    """A hook that asks with another method: the client gets what its own method has."""
    asked, sent, answer, expected = case

    class Hook:
        def request(self, flow: Flow) -> None:
            if flow.request.path == "/":
                flow.request.method = sent

        def response(self, flow: Flow) -> None:
            """Be there."""

    async def main() -> None:
        async with intercepting(tmp_path, kind(Hook())) as proxy, origin(answer, OK) as there:  # noqa: SIM117
            async with proxy.tls(there.port) as streams:
                await talk(streams, f"{asked} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), expected)
                await talk(streams, b"GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n", OK)

    run(main)


def test_another_method_without_a_hook_of_responses(run: Run, tmp_path: Path, kind: Kind) -> None:
    """The same where nobody sees the answer."""

    class Hook:
        def request(self, flow: Flow) -> None:
            if flow.request.path == "/":
                flow.request.method = "GET"

    async def main() -> None:
        async with intercepting(tmp_path, kind(Hook())) as proxy, origin(OK, OK) as there:  # noqa: SIM117
            async with proxy.tls(there.port) as streams:
                head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
                await talk(streams, b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", head)
                await talk(streams, b"GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n", OK)

    run(main)


# --- content ---

CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "br": brotli.compress,
    "deflate": zlib.compress,
}
DECODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "deflate": zlib.decompress,
}
FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "length": lambda body: b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
    "chunks": lambda body: b"Transfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\nT: x\r\n\r\n" % (len(body), body),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("coding", CODINGS)
def test_another_content(run: Run, tmp_path: Path, kind: Kind, coding: str, framing: str) -> None:
    """It is encoded as the old one was, with its length, in both directions."""
    old = CODINGS[coding](b"old") * (1 if coding != "gzip" else 2)
    fields = f"Content-Encoding: {coding}\r\n".encode()

    class Hook:
        def request(self, flow: Flow) -> None:
            flow.request.set_body("n\xfc")

        def response(self, flow: Flow) -> None:
            assert flow.response is not None
            flow.response.set_body(b"newer")

    async def main() -> None:
        asked = b"POST / HTTP/1.1\r\nHost: localhost\r\n" + fields + FRAMINGS[framing](old)
        answer = b"HTTP/1.1 200 OK\r\n" + fields + FRAMINGS[framing](old)
        async with intercepting(tmp_path, kind(Hook()), records=True) as proxy, origin(answer, answer) as there:
            async with proxy.tls(there.port) as (reader, writer):
                for _ in range(2):
                    writer.write(asked)
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: ")
                    body = await reader.readexactly(int(head.split()[-1]))
                    assert DECODE[coding](body) == b"newer"
            assert [DECODE[coding](body).decode() for body in there.bodies] == ["n\xfc"] * 2
            await proxy.ended.get()
            assert proxy.records is not None
            assert [DECODE[coding](record.request_body) for record in proxy.records] == ["n\xfc".encode()] * 2
            assert [record.response_body for record in proxy.records] == [body] * 2

    run(main)


class Reads:
    """Reads everything, in each of the ways."""

    def __init__(self) -> None:
        self.found: list[object] = []

    async def request(self, flow: Flow) -> None:
        self.found.append(await flow.request.read())
        assert await flow.request.text() == await flow.request.text()

    async def response(self, flow: Flow) -> None:
        assert flow.response is not None
        self.found.append(await flow.response.json())


@pytest.mark.parametrize("framing", FRAMINGS)
def test_content_is_read(run: Run, tmp_path: Path, framing: str) -> None:
    """Messages are held back and go on as they came: chunks, extensions, trailers and codings too."""

    async def main() -> None:
        body = FRAMINGS[framing](gzip.compress(b'{"a": 1}'))
        asked = b"POST / HTTP/1.1\r\nHost: localhost\r\n" + FRAMINGS[framing](b"\xffhello")
        answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n" + body
        hook = Reads()
        async with intercepting(tmp_path, hook, records=True) as proxy, origin(answer, answer) as there:
            async with proxy.tls(there.port) as (reader, writer):
                for _ in range(2):
                    for octet in asked:
                        writer.write(bytes((octet,)))
                        await asyncio.sleep(0)
                    assert await reader.readexactly(len(answer)) == answer
            assert hook.found == [b"\xffhello", {"a": 1}] * 2
            await proxy.ended.get()
            assert proxy.records is not None
            assert [record.request_body for record in proxy.records] == [b"\xffhello"] * 2
            assert [gzip.decompress(record.response_body) for record in proxy.records] == [b'{"a": 1}'] * 2
        sent = b"".join(head + content for head, content in zip(there.heads, there.bodies, strict=True))
        assert sent == (asked + asked if framing == "length" else sent)

    run(main)


def test_content_is_read_up_to_its_end(run: Run, tmp_path: Path) -> None:
    """Content that ends with the connection."""
    answer = b'HTTP/1.1 200 OK\r\n\r\n{"a": 1}'

    async def main() -> None:
        hook = Reads()
        async with intercepting(tmp_path, hook) as proxy, origin(answer, stays=False) as there:  # noqa: SIM117
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(GET)
                assert await reader.read() == answer
        assert hook.found == [b"", {"a": 1}]

    run(main)


def test_reading_lets_the_client_go_on(run: Run, tmp_path: Path) -> None:
    """A client that waits for 100 (Continue) hears it from us; then the destination is not asked for it."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"

    async def main() -> None:
        answer = OK.replace(b"hello", b"12345")
        async with intercepting(tmp_path, Reads()) as proxy, origin(answer, answer) as there:
            async with proxy.tls(there.port) as streams:
                for _ in range(2):
                    await talk(streams, head, b"HTTP/1.1 100 Continue\r\n\r\n")
                    await talk(streams, b"hello", answer)
            assert there.heads == [head.replace(b"Expect: 100-continue\r\n", b"")] * 2
            assert there.bodies == [b"hello"] * 2

    run(main)


BOMBS = {
    "large": (b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000),
    "gzip": FRAMINGS["length"](gzip.compress(bytes(50_000_000), 1)).replace(
        b"Con", b"Content-Encoding: gzip\r\nCon", 1
    ),
    "br": FRAMINGS["length"](brotli.compress(bytes(50_000_000), quality=1)).replace(
        b"Con", b"Content-Encoding: br\r\nCon", 1
    ),
    "small chunks": b"Transfer-Encoding: chunked\r\n\r\n"
    + (b"1;" + b"x" * 200 + b"\r\na\r\n") * 100_000
    + b"0\r\n\r\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_content_that_is_too_large(run: Run, tmp_path: Path, bomb: str) -> None:
    """A hook gets an error, and memory has its bound; the message goes on as it came."""
    answer = b"HTTP/1.1 200 OK\r\n" + BOMBS[bomb]

    class Hook:
        async def response(self, flow: Flow) -> None:
            assert flow.response is not None
            with pytest.raises(TooLarge):
                await flow.response.text()
            reader: Any = flow.response._reader
            held.append(len(reader.held))

    held: list[int] = []

    async def main() -> None:
        async with intercepting(tmp_path, Hook()) as proxy, origin(answer, OK) as there:  # noqa: SIM117
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(GET)
                assert await reader.readexactly(len(answer)) == answer
        assert held[0] < 10_000_000

    run(main)


# --- pieces of content ---

ANSWERS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n"
    b"2\r\nhe\r\n3\r\nllo\r\n0\r\nT: x\r\n\r\n",
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
}


class Shouts:
    """Puts content into capitals."""

    def request_body(self, flow: Flow, chunk: bytes) -> bytes:
        assert chunk
        return chunk.upper() + b"!"

    def response_body(self, flow: Flow, chunk: bytes) -> bytes | None:
        assert chunk
        return chunk.upper() + b"!"


@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize("answer", ANSWERS)
def test_pieces_of_answers(run: Run, tmp_path: Path, kind: Kind, answer: str, minor: int) -> None:
    """They may grow: they go on in chunks, or to a client of HTTP/1.0 until the end."""

    async def main() -> None:
        octets = ANSWERS[answer] if minor or answer != "chunks" else ANSWERS["length"]
        async with intercepting(tmp_path, kind(Shouts())) as proxy, origin(octets, stays=False) as there:  # noqa: SIM117
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(b"GET / HTTP/1.%d\r\nHost: localhost\r\n\r\n" % minor)
                found = await reader.read()
        head, _, body = found.partition(b"\r\n\r\n")
        if answer in ("nothing", "no content"):
            assert found == ANSWERS[answer]
            return
        assert b"Content-Length" not in head
        assert b"Trailer" not in head
        if minor:
            assert head.endswith(b"\r\nTransfer-Encoding: chunked")
            assert dechunked(body).replace(b"!", b"") == b"HELLO"
        else:
            assert b"chunked" not in head
            assert body.replace(b"!", b"") == b"HELLO"

    run(main)


def dechunked(octets: bytes) -> bytes:
    """What chunks carry; they must be whole, and nothing behind them."""
    found = b""
    while True:
        line, _, octets = octets.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            assert octets == b"\r\n"
            return found
        found += octets[:size]
        assert octets[size : size + 2] == b"\r\n"
        octets = octets[size + 2 :]


UPLOADS = {
    "length": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    "nothing": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    "none": GET,
}


@pytest.mark.parametrize("upload", UPLOADS)
def test_pieces_of_requests(run: Run, tmp_path: Path, kind: Kind, upload: str) -> None:
    """As answers; a request without content stays as it is."""

    async def main() -> None:
        async with intercepting(tmp_path, kind(Shouts()), records=True) as proxy, origin(OK, OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                for _ in range(2):
                    for octet in UPLOADS[upload]:
                        writer.write(bytes((octet,)))
                        await asyncio.sleep(0)
                    assert b"Transfer-Encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
                    await reader.readuntil(b"0\r\n\r\n")
            for head, body in zip(there.heads, there.bodies, strict=True):
                if upload in ("nothing", "none"):
                    assert head + body == UPLOADS[upload]
                else:
                    assert dechunked(body).replace(b"!", b"") == b"HELLO"
            await proxy.ended.get()
            assert proxy.records is not None
            assert {record.response_body.replace(b"!", b"") for record in proxy.records} == {b"HELLO"}

    run(main)


def test_pieces_that_were_read_before(run: Run, tmp_path: Path) -> None:
    """A hook that reads everything, and one that sees pieces."""

    class Both(Reads):
        def request_body(self, flow: Flow, chunk: bytes) -> bytes:
            return chunk.upper()

        def response_body(self, flow: Flow, chunk: bytes) -> bytes:
            return chunk.replace(b"1", b"2")

    async def main() -> None:
        answer = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
        async with intercepting(tmp_path, Both()) as proxy, origin(answer) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(UPLOADS["length"])
                await reader.readuntil(b"\r\n\r\n")
                assert dechunked(await reader.readuntil(b"0\r\n\r\n")) == b'{"a": 2}'
            assert [dechunked(body) for body in there.bodies] == [b"HELLO"]

    run(main)


# --- answers of hooks ---


def answering(path: str, event: str, **answer: Any) -> Any:
    """A hook that answers requests for a path."""

    class Hook:
        """Answers."""

    def act(self: object, flow: Flow) -> None:
        if flow.request.path == path:
            flow.respond(**answer)

    setattr(Hook, event, act)
    return Hook()


def ask(path: str, method: str = "GET", content: bytes = b"", more: str = "", minor: int = 1) -> bytes:
    """A request."""
    length = f"Content-Length: {len(content)}\r\n" if content else ""
    return f"{method} {path} HTTP/1.{minor}\r\nHost: localhost\r\n{length}{more}\r\n".encode() + content


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """An answer with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = head.lower()
    if b"content-length: " not in fields:
        return head, b""
    return head, await reader.readexactly(int(fields.partition(b"content-length: ")[2].split(b"\r\n")[0]))


def test_an_answer_in_place_of_a_request(run: Run, tmp_path: Path, kind: Kind) -> None:
    """The destination is not asked, and the connection goes on with what was sent behind it."""

    async def main() -> None:
        told = Told()
        hook = answering("/mine", "request", status=403, body="n\xf6", headers=[("X-A", "b"), ("Connection", "x")])
        async with intercepting(tmp_path, kind(hook), kind(told), records=True) as proxy, origin(OK, OK, OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(ask("/a") + ask("/mine") + ask("/mine", "POST", b"xyz") + ask("/b") + ask("/mine", "HEAD"))
                assert await read_answer(reader) == (OK[:-5], b"hello")
                for _ in range(2):
                    head, body = await read_answer(reader)
                    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\nX-A: b\r\nContent-Length: 3\r\nDate: ")
                    assert body.decode() == "n\xf6"
                assert await read_answer(reader) == (OK[:-5], b"hello")
                assert b"Content-Length: 3\r\n" in await reader.readuntil(b"\r\n\r\n")
                await talk((reader, writer), ask("/c"), OK)
            assert [head.split()[1] for head in there.heads] == [b"/a", b"/b", b"/c"]
            assert (await proxy.ended.get()).error is None
            assert proxy.records is not None
            assert [record.status for record in proxy.records] == [200, 403, 403, 200, 403, 200]
        assert [path for path, _, _ in told.ends] == ["/a", "/mine", "/mine", "/b", "/mine", "/c"]

    run(main)


def test_an_answer_before_the_content(run: Run, tmp_path: Path, kind: Kind) -> None:
    """A client that waits with its content, or sends much of it: it gets the answer."""

    async def main() -> None:
        hook = answering("/mine", "request", status=413, body=b"no")
        async with intercepting(tmp_path, kind(hook)) as proxy, origin(OK) as there:
            for content, more in ((b"", "Expect: 100-continue\r\nContent-Length: 9\r\n"), (bytes(3_000_000), "")):
                async with proxy.tls(there.port) as (reader, writer):
                    writer.write(ask("/mine", "POST", content, more))
                    head, body = await read_answer(reader)
                    assert (head[:12], body) == (b"HTTP/1.1 413", b"no")
                await proxy.ended.get()
        assert there.heads == []

    run(main)


def test_an_answer_in_place_of_an_answer(run: Run, tmp_path: Path, kind: Kind) -> None:
    """What the destination has said is not read as the answer to the next request."""

    async def main() -> None:
        hook = answering("/mine", "response", body=b"mine")
        told = Told()
        for answer in (
            OK,
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(OK) * 50_000) + OK * 50_000,
            ANSWERS["chunks"],
        ):
            folder = tmp_path / str(len(answer))
            folder.mkdir()
            async with (
                intercepting(folder, kind(hook), kind(told)) as proxy,
                origin(answer, ANSWERS["length"]) as there,
            ):
                async with proxy.tls(there.port) as (reader, writer):
                    writer.write(ask("/mine"))
                    head, body = await read_answer(reader)
                    assert body == b"mine"
                    if b"Connection: close" in head:
                        assert await reader.read() == b""
                    else:
                        await talk((reader, writer), ask("/"), OK)
                await proxy.ended.get()

    run(main)


def test_an_answer_in_place_of_another_protocol(run: Run, tmp_path: Path, kind: Kind) -> None:
    """The destination has changed to it: no other request goes there."""
    more = "Connection: upgrade\r\nUpgrade: echo\r\n"
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"

    async def main() -> None:
        told = Told()
        hook = answering("/mine", "response", body=b"mine")
        async with intercepting(tmp_path, kind(hook), kind(told)) as proxy, origin(switch, OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(ask("/mine", more=more) + ask("/"))
                assert (await read_answer(reader))[1] == b"mine"
                assert await reader.read() == b""
            assert len(there.heads) == 1
        assert told.ends == [("/mine", 200, None)]

    run(main)


def test_an_answer_to_http_1_0(run: Run, tmp_path: Path, kind: Kind) -> None:
    """It says what becomes of the connection."""

    async def main() -> None:
        async with intercepting(tmp_path, kind(answering("/", "request", body=b"x"))) as proxy, origin(OK) as there:  # noqa: SIM117
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(ask("/", more="Connection: keep-alive\r\n", minor=0))
                head, body = await read_answer(reader)
                assert (b"\r\nConnection: keep-alive\r\n" in head, body) == (True, b"x")
                writer.write(ask("/", minor=0))
                head, body = await read_answer(reader)
                assert (b"\r\nConnection: close\r\n" in head, body) == (True, b"x")
                assert await reader.read() == b""

    run(main)


@pytest.mark.parametrize("event", ["request", "response"])
def test_no_answer(run: Run, tmp_path: Path, kind: Kind, event: str) -> None:
    """A hook that drops a flow: the client sees a reset, and the log says that it was denied."""

    class Hook:
        """Drops."""

    setattr(Hook, event, lambda self, flow: flow.drop())

    async def main() -> None:
        told = Told()
        async with intercepting(tmp_path, kind(Hook()), kind(told)) as proxy, origin(OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(GET)
                assert await end_of(reader) == "reset"
            session = await proxy.ended.get()
            assert (session.error, session.close) == ("a hook has dropped it", "denied")
            assert len(there.heads) == (event == "response")
        assert told.errors == ["a hook has dropped it"]
        assert [error for _, _, error in told.ends] == told.errors

    run(main)


# --- hooks that fail ---


class Fails:
    """Raises, after it has changed something."""

    def __init__(self, event: str) -> None:
        self.event = event

    def fail(self, event: str, flow: Flow) -> None:
        if event == self.event:
            message = flow.request if flow.response is None else flow.response
            message.headers["X-A"] = "b"
            message.set_body(b"other")
            raise ZeroDivisionError("on purpose")

    def request(self, flow: Flow) -> None:
        self.fail("request", flow)

    def response(self, flow: Flow) -> None:
        self.fail("response", flow)

    def request_body(self, flow: Flow, chunk: bytes) -> None:
        self.fail("request_body", flow)

    def response_body(self, flow: Flow, chunk: bytes) -> None:
        self.fail("response_body", flow)

    def flow_end(self, flow: Flow) -> None:
        self.fail("flow_end", flow)


EVENTS = ("request", "response", "request_body", "response_body", "flow_end")


@pytest.mark.parametrize("event", EVENTS)
def test_a_hook_that_raises(run: Run, tmp_path: Path, kind: Kind, event: str, caplog: pytest.LogCaptureFixture) -> None:
    """The flow goes on untouched, and the log has a traceback."""

    async def main() -> None:
        told = Told()
        used = kind(only(Fails(event), event))
        async with intercepting(tmp_path, used, kind(told)) as proxy, origin(OK, OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                for _ in range(2):
                    writer.write(UPLOADS["length"])
                    head = await reader.readuntil(b"\r\n\r\n")
                    body = (
                        await reader.readexactly(5) if b"chunked" not in head else await reader.readuntil(b"0\r\n\r\n")
                    )
                    assert b"hello" in body
                    assert b"X-A" not in head
            assert b"".join(there.heads).count(b"X-A") == 0
            assert all(b"hello" in body for body in there.bodies)
        assert len(told.ends) == 2
        assert told.errors == []

    run(main)
    assert caplog.text.count("ZeroDivisionError: on purpose") == 2


def only(hook: Any, event: str) -> Any:
    """A hook with one method of another."""

    class Made:
        """One method."""

    method = getattr(hook, event)
    if event.endswith("_body"):
        setattr(Made, event, lambda self, flow, chunk: method(flow, chunk))
    else:
        setattr(Made, event, lambda self, flow: method(flow))
    return Made()


@pytest.mark.parametrize("event", EVENTS[:-1])
def test_a_hook_that_raises_and_closes(run: Run, tmp_path: Path, kind: Kind, event: str) -> None:
    """With on_error = "close" the flow ends: the client is told, or sees a reset where it has part of an answer."""

    async def main() -> None:
        told = Told()
        used = kind(only(Fails(event), event))
        async with intercepting(tmp_path, used, kind(told), on_error="close") as proxy, origin(OK, OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(UPLOADS["length"])
                answer = b""
                try:
                    answer = await reader.read()
                except ConnectionResetError:
                    pass
                if answer:
                    assert answer.startswith(
                        b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: tabi; error=proxy_internal_error"
                    )
                    assert b"ZeroDivision" not in answer
            session = await proxy.ended.get()
            assert session.close == "error"
            assert "failed" in str(session.error)
        assert len(told.ends) == len(told.errors) == 1
        assert told.errors == [session.error]

    run(main)


def test_a_hook_that_takes_too_long(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has a deadline; then the flow goes on."""

    class Hook:
        async def request(self, flow: Flow) -> None:
            flow.request.headers["X-A"] = "b"
            await asyncio.sleep(60)

    async def main() -> None:
        async with intercepting(tmp_path, Hook(), hook_seconds=0.1) as proxy, origin(OK) as there:
            async with proxy.tls(there.port) as streams:
                await talk(streams, GET, OK)
            assert there.heads == [GET]

    run(main)
    assert "Hook.request: not done within 0.1 s" in caplog.text


def test_a_client_that_goes_while_a_hook_waits(run: Run, tmp_path: Path) -> None:
    """Its destination is not asked, or is told at once; the flow has an error."""

    class Hook:
        async def request(self, flow: Flow) -> None:
            waiting.set()
            await gone.wait()

    waiting, gone = asyncio.Event(), asyncio.Event()

    async def main() -> None:
        told = Told()

        async def think(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with intercepting(tmp_path, Hook(), told) as proxy, target(think, context=server_context()) as port:
            async with proxy.peer(port) as peer:
                await peer.send(GET)
                await waiting.wait()
            gone.set()
            await proxy.ended.get()
            await until(lambda: told.ends)
        assert told.errors[0]

    run(main)


def test_content_that_breaks_while_a_hook_reads(run: Run, tmp_path: Path) -> None:
    """The hook gets the error, and so does the exchange: nothing of it goes on as if it were whole."""

    class Hook:
        async def request(self, flow: Flow) -> None:
            await flow.request.read()

    async def main() -> None:
        told = Told()
        async with intercepting(tmp_path, Hook(), told) as proxy, origin(OK, OK) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(
                    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nxyz\r\n" + GET
                )
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
                assert answer.count(b"HTTP/1.1 ") == 1
            assert there.heads == []
        assert len(told.ends) == 1
        assert told.errors == ["chunk size: expected 1 to 15 hexadecimal digits and CRLF"]

    run(main)
