"""HTTP/1 that passes through the stages of a relay: pipelining, what is put off, and what is given back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from authorities import server_context
from conftest import Run
from http_proxy import read_message
from interceptions import GET, OK, intercepting, origin, talk
from support import target
from tabi.intercept.flow import Flow
from tabi.intercept.passing import PIPELINED, is_websocket

NEXT = b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Told:
    """What hooks were told, in its order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def request(self, flow: Flow) -> None:
        self.events.append(f"request {flow.request.path}")

    def response(self, flow: Flow) -> None:
        self.events.append(f"response {flow.request.path}")

    def flow_end(self, flow: Flow) -> None:
        self.events.append(f"end {flow.request.path}")


def ask(path: str) -> bytes:
    """A request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def test_requests_do_not_wait_for_answers(run: Run, tmp_path: Path) -> None:
    """The destination gets the second one before it has answered the first; each answer is of its own request."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readexactly(len(ask("/a") + ask("/b"))) == ask("/a") + ask("/b")
            for octet in OK + OK:
                writer.write(bytes((octet,)))
                await writer.drain()
            await reader.read()

        told = Told()
        async with intercepting(tmp_path, told) as proxy, target(serve, context=server_context()) as port:  # noqa: SIM117
            async with proxy.tls(port) as streams:
                await talk(streams, ask("/a") + ask("/b"), OK + OK)
        assert told.events == [f"{what} /{name}" for what, name in (("request", "a"), ("request", "b"))] + [
            f"{what} /{name}" for name in "ab" for what in ("response", "end")
        ]

    run(main)


def test_only_so_many_requests_wait_for_answers(run: Run, tmp_path: Path) -> None:
    """Then the client is not read any more, until there is an answer."""

    async def main() -> None:
        count = 2 * PIPELINED
        got = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(PIPELINED * len(GET))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.readexactly(1)
            got.set()
            writer.write(OK * PIPELINED)
            await reader.readexactly((count - PIPELINED) * len(GET))
            writer.write(OK * (count - PIPELINED))
            await reader.read()

        async with intercepting(tmp_path) as proxy, target(serve) as port, proxy.plain(port) as streams:
            await talk(streams, GET * count, OK * count)
            assert got.is_set()

    run(main)


def test_a_wrong_request_behind_good_ones(run: Run, tmp_path: Path) -> None:
    """Those before it are answered first, and nothing behind it reaches the destination."""

    async def main() -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readexactly(2 * len(GET)) == GET + GET
            asked.set()
            await answer.wait()
            writer.write(OK + OK)
            assert await reader.read() == b""

        async with intercepting(tmp_path) as proxy, target(serve) as port, proxy.plain(port) as (reader, writer):
            writer.write(GET + GET + b"GET / HTTP/9.9\r\n\r\n" + GET)
            await asked.wait()
            answer.set()
            assert await reader.readexactly(2 * len(OK)) == OK + OK
            assert (await read_message(reader)).status == 505
            assert await reader.read() == b""

    run(main)


def test_a_failing_hook_behind_good_requests(run: Run, tmp_path: Path) -> None:
    """With on_error = "close" as well."""

    class Fails:
        def request(self, flow: Flow) -> None:
            if flow.request.path == "/next":
                raise ZeroDivisionError

    async def main() -> None:
        told = Told()
        async with intercepting(tmp_path, Fails(), told, on_error="close") as proxy, origin(OK, plain=True) as there:
            async with proxy.plain(there.port) as (reader, writer):
                writer.write(GET + NEXT)
                assert await reader.readexactly(len(OK)) == OK
                assert (await read_message(reader)).status == 502
            assert there.heads == [GET]
        assert told.events.count("end /next") == told.events.count("end /") == 1

    run(main)


def test_what_follows_an_upgrade_is_no_request(run: Run, tmp_path: Path) -> None:
    """Until it is answered: octets of another protocol are not read as HTTP, and requests wait."""
    upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readexactly(len(upgrade)) == upgrade
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.readexactly(1)
            writer.write(OK)
            assert await reader.readexactly(len(NEXT + upgrade)) == NEXT + upgrade
            writer.write(OK + switch)
            while data := await reader.read(1000):
                writer.write(data)

        async with intercepting(tmp_path) as proxy, target(serve) as port, proxy.plain(port) as streams:
            await talk(streams, upgrade + NEXT + upgrade + b"\x81\x00\r\n\xff", OK, OK, switch, b"\x81\x00\r\n\xff")
            await talk(streams, b"more", b"more")

    run(main)


def test_many_small_chunks(run: Run, tmp_path: Path) -> None:
    """They are read in turns, so that others have theirs, and in order."""
    body = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    post = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + body

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in (head + body, OK):
                assert await reader.readexactly(len(post)) == post
                writer.write(answer)
            await reader.read()

        async with intercepting(tmp_path, records=True) as proxy, target(serve) as port:
            async with proxy.plain(port) as streams:
                await talk(streams, post + post, head + body, OK)
            await proxy.ended.get()
            assert proxy.records is not None
            assert [record.request_size for record in proxy.records] == [20_000, 20_000]
            assert [record.response_size for record in proxy.records] == [20_000, 5]

    run(main)


def test_an_answer_that_was_not_asked_for(run: Run, tmp_path: Path) -> None:
    """Octets that a destination sends behind its answer go to the client as they are."""

    async def main() -> None:
        async with intercepting(tmp_path) as proxy, origin(OK + b"more", plain=True) as there:  # noqa: SIM117
            async with proxy.plain(there.port) as streams:
                await talk(streams, GET, OK + b"more")

    run(main)


def test_websocket() -> None:
    """What asks for it."""
    assert is_websocket(b"WebSocket")
    assert is_websocket(b"x, websocket")
    assert not is_websocket(b"echo")
    assert not is_websocket(None)


@pytest.mark.parametrize("behind", [b"GET / HTTP/9.9\r\n\r\n", b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_destination_that_ends_before_what_waits(run: Run, tmp_path: Path, behind: bytes) -> None:
    """Requests that wait for an answer before them end with it: nothing stays behind, and every flow is told of."""

    class Reroutes:
        def request(self, flow: Flow) -> None:
            if flow.request.path == "/next":
                flow.reroute("http://third.test/")

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.05)

        told = Told()
        async with intercepting(tmp_path, Reroutes(), told) as proxy, target(serve) as port:
            async with proxy.plain(port) as (reader, writer):
                await talk((reader, writer), GET, OK)
                writer.write(GET + behind)
                assert await reader.read() == b""
            session = await proxy.ended.get()
            assert session.error == f"localhost:{port}: the connection ended before its answer"
        assert len([event for event in told.events if event.startswith("end")]) == 2 + (b"next" in behind)

    run(main)
