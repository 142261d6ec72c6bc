"""Plain HTTP requests to the proxy, as hooks see and change them, from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from doubles import Streams, end_of, reset, until
from http_proxy import Message, ask, exchange, origin, read_message
from interceptions import Intercepting, intercepting
from support import client, closed_port, target
from tabi.config.schema import LimitsConfig, Seconds
from tabi.intercept.flow import Flow
from tabi.policy.quantities import Quota

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


class Told:
    """Counts what is told at the end of flows."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, int, str | None]] = []
        self.errors: list[str | None] = []

    def flow_end(self, flow: Flow) -> None:
        self.ends.append((flow.request.path, 0 if flow.response is None else flow.response.status, flow.error))

    def error(self, flow: Flow) -> None:
        self.errors.append(flow.error)


@contextlib.asynccontextmanager
async def asking(proxy: Intercepting) -> AsyncIterator[Streams]:
    """A client of the proxy."""
    async with client(proxy.address) as streams:
        yield streams


def test_a_request_is_seen(run: Run, tmp_path: Path) -> None:
    """As the destination gets it, and so is the answer; the client's connection and the destination's are kept."""

    class Hook:
        def request(self, flow: Flow) -> None:
            seen.append(flow.request.url)
            assert flow.request.headers["Via"] == "1.1 tabi"
            flow.request.headers["X-New"] = "1"

        async def response(self, flow: Flow) -> None:
            assert flow.response is not None
            seen.append(await flow.response.text())
            flow.response.set_body("bye")

    seen: list[str] = []

    async def main() -> None:
        told = Told()
        async with intercepting(tmp_path, Hook(), told, records=True) as proxy, origin(OK) as there:
            async with asking(proxy) as streams:
                for content in (b"", b"content", b""):
                    answer = await exchange(
                        streams, ask(there.url + "/a", "POST" if content else "GET", content=content)
                    )
                    assert (answer.status, answer.content, answer.fields["via"]) == (200, b"bye", "1.1 tabi")
            assert [message.fields["x-new"] for message in there.requests] == ["1"] * 3
            assert [message.content for message in there.requests] == [b"", b"content", b""]
            assert len(there.connections) < 3
            assert seen == [f"{there.url}/a", "hello"] * 3
            sessions = [await proxy.ended.get() for _ in range(3)]
            assert [(session.up, session.down) for session in sessions] == [(0, 3), (7, 3), (0, 3)]
            assert {session.intercepted for session in sessions} == {"intercept[0]"}
            assert [session.reply_code for session in sessions] == [200] * 3
            assert proxy.records is not None
            assert [record.request_body for record in proxy.records] == [b"", b"content", b""]
        assert told.ends == [("/a", 200, None)] * 3

    run(main)


def test_nothing_is_changed_without_hooks(run: Run, tmp_path: Path) -> None:
    """A forwarded message is the same as without interception."""

    async def main() -> None:
        answers = []
        heads = []
        for records in (False, True):
            folder = tmp_path / str(records)
            folder.mkdir()
            async with (
                intercepting(folder, records=records) as proxy,
                origin(CHUNKED) as there,
                asking(proxy) as streams,
            ):
                for minor in (1, 0):
                    octets = ask(there.url, "POST", "X-A:  b \r\nCookie: \xff\r\n", b"content", minor)
                    answers.append(await exchange(streams, octets))
                    heads.append({**there.requests[-1].fields, "host": ""})
                    if not minor:
                        break
                    assert answers[-1].content == b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
        strip = [{**answer.fields, "date": ""} for answer in answers]
        assert strip[:2] == strip[2:]
        assert [answer.content for answer in answers[:2]] == [answer.content for answer in answers[2:]]
        assert heads[:2] == heads[2:]

    run(main)


@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize("answer", [OK, CHUNKED, b"HTTP/1.0 200 OK\r\n\r\nhello"])
def test_pieces_of_answers(run: Run, tmp_path: Path, answer: bytes, minor: int) -> None:
    """Hooks see content without chunks; it goes on as the client can read it."""

    class Hook:
        def response_body(self, flow: Flow, chunk: bytes) -> bytes:
            return chunk.upper()

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)

        async with intercepting(tmp_path, Hook()) as proxy, target(serve) as port, asking(proxy) as streams:
            found = await exchange(streams, ask(f"http://127.0.0.1:{port}/", minor=minor))
            if minor:
                assert found.fields["transfer-encoding"] == "chunked"
                assert b"HE" in found.content
            else:
                assert found.content == b"HELLO"

    run(main)


@pytest.mark.parametrize("event", ["request", "response"])
def test_an_answer_of_a_hook(run: Run, tmp_path: Path, event: str) -> None:
    """In place of the destination's: nothing is dialled, or its answer is not seen; connections stay in step."""

    class Hook:
        """Answers."""

    def act(self: object, flow: Flow) -> None:
        if flow.request.path == "/mine":
            flow.respond(403, "mine")

    setattr(Hook, event, act)

    async def main() -> None:
        big = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000)
        for answer in (OK, big):
            folder = tmp_path / str(len(answer))
            folder.mkdir()

            def respond(message: Message, answer: bytes = answer) -> bytes:
                return answer if "/mine" in message.line else OK

            async with intercepting(folder, Hook()) as proxy, origin(respond) as there:
                for content in (b"", bytes(3_000_000)):
                    async with asking(proxy) as streams:
                        found = await exchange(streams, ask(there.url + "/mine", "POST", content=content))
                        assert (found.status, found.content) == (403, b"mine")
                        if found.fields.get("connection") == "close":
                            continue
                        assert (await exchange(streams, ask(there.url + "/b"))).content == b"hello"
                session = await proxy.ended.get()
                assert (session.reply_code, session.close, session.error) == (403, "server", None)

    run(main)


@pytest.mark.parametrize("event", ["request", "response"])
def test_no_answer(run: Run, tmp_path: Path, event: str) -> None:
    """A hook that drops a flow."""

    class Hook:
        """Drops."""

    setattr(Hook, event, lambda self, flow: flow.drop())

    async def main() -> None:
        told = Told()
        async with (
            intercepting(tmp_path, Hook(), told) as proxy,
            origin(OK) as there,
            asking(proxy) as (reader, writer),
        ):
            writer.write(ask(there.url))
            assert await end_of(reader) == "reset"
            session = await proxy.ended.get()
            assert (session.close, session.error) == ("denied", "a hook has dropped it")
        assert told.errors == ["a hook has dropped it"]

    run(main)


@pytest.mark.parametrize("event", ["request", "response", "request_body", "response_body"])
def test_a_hook_that_fails(run: Run, tmp_path: Path, event: str) -> None:
    """With on_error = "close" the client is told, or sees a reset."""

    class Hook:
        """Fails."""

    def act(self: object, *args: Any) -> None:
        raise ZeroDivisionError

    setattr(Hook, event, (lambda self, flow, chunk: act(self)) if "body" in event else (lambda self, flow: act(self)))

    async def main() -> None:
        told = Told()
        for on_error in ("pass", "close"):
            folder = tmp_path / on_error
            folder.mkdir()
            async with intercepting(folder, Hook(), told, on_error=on_error) as proxy, origin(OK) as there:
                async with asking(proxy) as (reader, writer):
                    writer.write(ask(there.url, "POST", content=b"content"))
                    if on_error == "pass":
                        assert b"hello" in (await read_message(reader)).content
                        assert there.requests[0].content.replace(b"7\r\n", b"").startswith(b"content")
                        continue
                    try:
                        assert (await read_message(reader)).status == 502
                    except (ConnectionResetError, asyncio.IncompleteReadError):
                        pass
                session = await proxy.ended.get()
                assert "failed" in str(session.error)
        assert len(told.ends) == 2
        assert len(told.errors) == 1

    run(main)


def test_a_kept_connection_that_was_closed(run: Run, tmp_path: Path) -> None:
    """The request goes out on another one, as without interception; the hooks see it once."""

    async def main() -> None:
        told = Told()

        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            with contextlib.suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
            reset(writer)

        async with intercepting(tmp_path, told) as proxy, target(once) as port, asking(proxy) as streams:
            for _ in range(3):
                assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/"))).content == b"hello"
        assert told.ends == [("/", 200, None)] * 3

    run(main)


def test_destinations_that_fail(run: Run, tmp_path: Path) -> None:
    """The client gets the same as without interception, and hooks are told of the error once."""

    async def main() -> None:
        told = Told()

        async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")

        async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"nothing of HTTP\r\n\r\n")

        async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
            await reader.read()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with intercepting(tmp_path, told, idle=0.5) as proxy:
            for handler, status in ((gone, 502), (wrong, 502), (switch, 502), (silent, 504)):
                async with target(handler) as port, asking(proxy) as streams:
                    answer = await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
                    assert answer.status == status
                    session = await proxy.ended.get()
                    assert session.reply_code == status
                    assert told.errors[-1] == session.error
            with closed_port() as port:
                async with asking(proxy) as streams:
                    assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/"))).status == 502
                    session = await proxy.ended.get()
                    assert told.errors[-1] == session.error
        assert len(told.ends) == len(told.errors) == 5

    run(main)


def test_an_answer_that_breaks_off(run: Run, tmp_path: Path) -> None:
    """The client sees a reset, not an end."""

    async def main() -> None:
        told = Told()

        async def part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK[:-2])
            await writer.drain()

        async with intercepting(tmp_path, told) as proxy, target(part) as port, asking(proxy) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert (await proxy.ended.get()).close == "reset"
        assert told.errors == ["the connection ended in the middle of the content"]

    run(main)


@pytest.mark.parametrize("content", [b"x\r\n", b"2\r\nok\r\nxyz\r\n"])
def test_content_that_is_wrong(run: Run, tmp_path: Path, content: bytes) -> None:
    """The client hears 400, and the destination gets nothing whole."""

    async def main() -> None:
        told = Told()
        async with intercepting(tmp_path, told) as proxy, origin(OK) as there, asking(proxy) as (reader, writer):
            writer.write(ask(there.url, "POST", "Transfer-Encoding: chunked\r\n"))
            await asyncio.sleep(0.02)
            writer.write(content)
            assert (await read_message(reader)).status == 400
            assert not there.requests
            writer.close()  # else the proxy waits two seconds for that, so that the answer is not lost
            session = await proxy.ended.get()
            assert session.reply_code == 400
        assert told.errors == [session.error]

    run(main)


@pytest.mark.parametrize(
    "limits", [LimitsConfig(quota=Quota.parse("100 KB/day")), LimitsConfig(max_session=Seconds(0.4))]
)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_limits(run: Run, tmp_path: Path, limits: LimitsConfig, direction: str) -> None:
    """They hold for what hooks look at, too."""

    async def main() -> None:
        told = Told()

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if direction == "up":
                await reader.read()
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
            for _ in range(5000):
                writer.write(bytes(10_000))
                await writer.drain()
                await asyncio.sleep(0.001)

        async with intercepting(tmp_path, told, config={"limits": limits}) as proxy, target(endless) as port:
            async with asking(proxy) as (reader, writer):
                length = "Content-Length: 5000000\r\n" if direction == "up" else ""
                writer.write(ask(f"http://127.0.0.1:{port}/", "POST" if length else "GET", length))
                if direction == "up" and limits.quota is not None:
                    writer.write(bytes(200_000))
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            session = await proxy.ended.get()
            assert session.close == "limit"
            assert session.up + session.down <= 100_000 or limits.quota is None
        assert len(told.ends) == len(told.errors) == 1

    run(main)


def test_a_change_of_protocols(run: Run, tmp_path: Path) -> None:
    """Behind 101 a relay carries the rest, and the flow has ended."""

    async def main() -> None:
        told = Told()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nearly")
            while data := await reader.read(1000):
                writer.write(data)

        async with intercepting(tmp_path, told) as proxy, target(serve) as port, asking(proxy) as (reader, writer):
            writer.write(ask(f"http://127.0.0.1:{port}/", fields="Connection: Upgrade\r\nUpgrade: echo\r\n"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            writer.write(b"hello")
            assert await reader.readexactly(10) == b"earlyhello"
            writer.write_eof()
            assert await reader.read() == b""
            session = await proxy.ended.get()
            assert (session.up, session.down) == (5, 10)
        assert told.ends == [("/", 101, None)]

    run(main)


@pytest.mark.parametrize("how", ["kick", "close", "client"])
def test_requests_that_are_ended(run: Run, tmp_path: Path, how: str) -> None:
    """While a hook waits, or the destination: nothing is left, and the flow has an error."""

    class Hook:
        async def request(self, flow: Flow) -> None:
            if flow.request.path == "/hook":
                await asyncio.sleep(60)

    async def main() -> None:
        told = Told()
        gone = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                asked.set()
                await reader.read()
            gone.set()

        asked = asyncio.Event()
        for path in ("/hook", "/slow"):
            folder = tmp_path / path[1:]
            folder.mkdir()
            async with intercepting(folder, Hook(), told, hook_seconds=1.0) as proxy, target(silent) as port:
                async with asking(proxy) as (reader, writer):
                    writer.write(ask(f"http://127.0.0.1:{port}{path}"))
                    if path == "/slow":
                        await asked.wait()
                    else:
                        await until(lambda: proxy.server.sessions())
                        await asyncio.sleep(0.05)
                    if how == "kick":
                        proxy.server.sessions()[0].end()
                    elif how == "close":
                        await proxy.server.close()
                    else:
                        reset(writer)
                    if how != "client":
                        with contextlib.suppress(ConnectionError):
                            await reader.read()
                await proxy.ended.get()
                if path == "/slow":
                    await gone.wait()
        assert len(told.ends) == len(told.errors) == 2
        assert all(told.errors)

    run(main)


@pytest.mark.parametrize("methods", [("GET", "HEAD"), ("HEAD", "GET")])
def test_another_method(run: Run, tmp_path: Path, methods: tuple[str, str]) -> None:
    """The client gets what its own method has, and the destination is asked in the version that the proxy speaks."""
    asked, sent = methods

    class Hook:
        def request(self, flow: Flow) -> None:
            flow.request.method = sent

    async def main() -> None:
        def answer(message: Message) -> bytes:
            return OK[:-5] if message.line.startswith("HEAD") else OK

        async with intercepting(tmp_path, Hook()) as proxy, origin(answer) as there:
            for minor in (1, 0):
                async with asking(proxy) as streams:
                    for _ in range(minor + 1):
                        found = await exchange(streams, ask(there.url + "/", asked, minor=minor))
                        assert (found.status, found.content) == (200, b"")
            assert {message.line for message in there.requests} == {f"{sent} / HTTP/1.1"}

    run(main)


def test_interim_answers(run: Run, tmp_path: Path) -> None:
    """They go on to a client that knows them, but not to one of HTTP/1.0."""

    async def main() -> None:
        hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        async with intercepting(tmp_path, Told()) as proxy, origin(hint + OK) as there:
            for minor in (1, 0):
                async with asking(proxy) as (reader, writer):
                    writer.write(ask(there.url + "/", minor=minor))
                    if minor:
                        assert (await read_message(reader)).status == 103
                    assert (await read_message(reader)).status == 200

    run(main)
