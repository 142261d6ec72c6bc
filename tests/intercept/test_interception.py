"""Interception as a whole, from outside: what is looked into, what is relayed, and how sessions end."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from pathlib import Path
from typing import Any, Literal

import pytest

from authorities import authority, client_context, server_context
from conftest import Run
from depth import pairs
from doubles import end_of, queued, reset, until
from interceptions import GET, OK, hooks_of, intercepting, origin, refused, talk
from support import target
from tabi.config import Log
from tabi.config.schema import InterceptConfig, LimitsConfig, Seconds
from tabi.intercept.events import ClientHelloInfo, Connection, TlsInfo
from tabi.intercept.flow import Flow
from tabi.policy.quantities import Quota

Hooks = tuple[object, ...]


@pytest.fixture(params=["passing", "task"])
def hooks(request: pytest.FixtureRequest) -> Hooks:
    """Both ways in which HTTP/1 is carried."""
    return hooks_of(request.param)


# --- what is looked into ---


def test_what_is_not_chosen(run: Run, tmp_path: Path) -> None:
    """It is relayed: the client sees the destination's own certificate."""

    async def main() -> None:
        entries = [InterceptConfig(hosts=["other.test"])]
        async with intercepting(tmp_path, entries=entries) as proxy, origin(OK) as there:
            async with proxy.tls(there.port, context=client_context()) as streams:
                await talk(streams, GET, OK)
            session = await proxy.ended.get()
            assert (session.intercepted, session.error) == (None, None)

    run(main)


def test_exemptions(run: Run, tmp_path: Path) -> None:
    """The first entry that matches decides."""

    async def main() -> None:
        entries = [InterceptConfig(action="pass", hosts=["localhost"]), InterceptConfig(name="all", verify=False)]
        both = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().issue_cert("localhost", "other.test").configure_cert(both)
        async with intercepting(tmp_path, entries=entries) as proxy, origin(OK, OK, context=both) as there:
            async with proxy.tls(there.port, context=client_context()) as streams:
                await talk(streams, GET, OK)
            async with proxy.tls(there.port, "other.test") as streams:
                await talk(streams, GET, OK)
            assert [(await proxy.ended.get()).intercepted for _ in range(2)] == [None, "all"]

    run(main)


@pytest.mark.parametrize("tls", [True, False])
def test_a_server_that_speaks_first(run: Run, tmp_path: Path, tls: bool) -> None:
    """SMTP and SSH, inside TLS and outside: nothing waits for the client."""

    async def main() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")
            assert await reader.readline() == b"EHLO me\r\n"
            writer.write(b"250 hello\r\n")
            await reader.read()

        context = server_context() if tls else None
        async with intercepting(tmp_path) as proxy, target(greet, context=context) as port:
            async with (proxy.tls if tls else proxy.plain)(port) as (reader, writer):
                assert await reader.readline() == b"220 mail.example ESMTP\r\n"
                writer.write(b"EHLO me\r\n")
                assert await reader.readline() == b"250 hello\r\n"
            session = await proxy.ended.get()
            assert (session.error, session.up, session.down) == (None, 9, 35)

    run(main)


@pytest.mark.parametrize("octets", [b"\0\1\2binary", b"SSH-2.0-x\r\n", b"G", b"GET", b"HELO x\r\n", b"x" * 5000])
def test_unknown_protocols_inside_tls(run: Run, tmp_path: Path, octets: bytes) -> None:
    """They are relayed both ways, and each side's end becomes the other's."""

    async def main() -> None:
        async with intercepting(tmp_path) as proxy, target(echo_tls, context=server_context()) as port:
            async with proxy.tls(port) as (reader, writer):
                writer.write(octets + b"\r\n\r\n\r\n")
                assert await reader.readexactly(len(octets)) == octets
            session = await proxy.ended.get()
            assert (session.error, session.intercepted) == (None, "intercept[0]")

    run(main)


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("before", [b"\r\n", b"x-"])
def test_a_request_that_begins_in_another_way(run: Run, tmp_path: Path, tls: bool, before: bytes) -> None:
    """An empty line, which servers pass over, or a method of one's own is no way out of inspection."""

    async def main() -> None:
        async with intercepting(tmp_path, records=True) as proxy, origin(OK, plain=not tls) as there:
            async with (proxy.tls if tls else proxy.plain)(there.port) as streams:
                await talk(streams, before + GET, OK)
            assert (await proxy.ended.get()).intercepted == "intercept[0]"
            assert [record.method for record in proxy.records or ()] == [(before + b"GET").decode().strip()]

    run(main)


async def echo_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def test_a_client_that_only_ends(run: Run, tmp_path: Path) -> None:
    """Its end reaches the destination, whose answer still comes."""

    async def main() -> None:
        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == b""
            writer.write(b"late")

        async with intercepting(tmp_path) as proxy, target(late) as port:  # noqa: SIM117
            async with proxy.plain(port) as (reader, writer):
                writer.write_eof()
                assert await reader.read() == b"late"

    run(main)


def test_a_silent_connection(run: Run, tmp_path: Path) -> None:
    """Nobody says anything inside TLS: the idle time ends it."""

    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with intercepting(tmp_path, idle=0.4) as proxy, target(silent, context=server_context()) as port:
            async with proxy.tls(port) as (reader, _):
                assert await end_of(reader) in ("end", "reset")
            assert (await proxy.ended.get()).close == "idle"

    run(main)


def test_hooks_of_connections(run: Run, tmp_path: Path) -> None:
    """They see a hello, TLS and octets, and may pass or drop a connection."""
    told: list[object] = []
    actions: list[Literal["intercept", "pass", "drop"]] = ["intercept"]

    class Hook:
        def client_hello(self, hello: ClientHelloInfo) -> None:
            told.append(hello.sni)
            hello.action = actions[0]

        def tls_established(self, tls: TlsInfo, connection: Connection) -> None:
            told.append((tls.version, connection.host))

        def tcp_data(self, connection: Connection, direction: str, data: bytes) -> bytes:
            return data.upper()

    async def main() -> None:
        async with intercepting(tmp_path, Hook()) as proxy, target(echo_tls, context=server_context()) as port:
            async with proxy.tls(port) as streams:
                await talk(streams, b"hello\r\n", b"HELLO\r\n")
            assert told == ["localhost", ("TLSv1.3", "localhost")]
            assert (await proxy.ended.get()).error is None
            actions[0] = "pass"
            async with proxy.tls(port, context=client_context()) as streams:
                await talk(streams, b"hello\r\n", b"hello\r\n")
            assert (await proxy.ended.get()).intercepted is None
            actions[0] = "drop"
            with await proxy.socket(port) as sock, pytest.raises(ConnectionError):
                await asyncio.open_connection(sock=sock, ssl=proxy.context(), server_hostname="localhost")
            session = await proxy.ended.get()
            assert (session.close, session.error) == ("denied", "a hook has dropped the connection")

    run(main)


def test_hooks_of_octets_without_tls(run: Run, tmp_path: Path) -> None:
    """Both directions end by themselves; a reset of the destination is seen at once."""

    class Hook:
        def tcp_data(self, connection: Connection, direction: str, data: bytes) -> bytes:
            return data.upper() if direction == "up" else data

    async def main() -> None:
        async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(5)
            reset(writer)

        async with intercepting(tmp_path, Hook()) as proxy:
            async with target() as port, proxy.plain(port) as (reader, writer):
                writer.write(b"hello")
                writer.write_eof()
                assert await reader.read() == b"HELLO"
            session = await proxy.ended.get()
            assert (session.up, session.down, session.error) == (5, 5, None)
            async with target(gone) as port, proxy.plain(port) as (reader, writer):
                writer.write(b"hello")
                assert await end_of(reader) == "reset"
            assert (await proxy.ended.get()).close == "reset"

    run(main)


# --- another host than the connection's ---


@pytest.mark.parametrize("hosts", [b"Host: other.test", b"Host: LOCALHOST:1x", b"Host: localhost.evil"])
def test_a_misdirected_request(
    run: Run, hooks: Hooks, tmp_path: Path, hosts: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, or refused with 421."""

    async def main() -> None:
        for mismatch in ("log", "deny"):
            folder = tmp_path / mismatch
            folder.mkdir()
            async with intercepting(folder, *hooks, mismatch=mismatch) as proxy, origin(OK, OK) as there:
                async with proxy.tls(there.port) as (reader, writer):
                    await talk((reader, writer), GET.replace(b"localhost", b"LocalHost:%d" % there.port), OK)
                    writer.write(GET.replace(b"Host: localhost", hosts))
                    if mismatch == "log":
                        assert await reader.readexactly(len(OK)) == OK
                        continue
                    assert (await reader.read()).startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
                session = await proxy.ended.get()
                assert (session.close, session.error) == ("denied", "a request for another host than the connection's")
                assert len(there.heads) == 1

    with caplog.at_level(logging.WARNING, "tabi"):
        run(main)


def test_the_host_of_a_target(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """A URI in the request line names a host too, and without a name of the connection any host is right."""

    async def main() -> None:
        async with intercepting(tmp_path, *hooks, mismatch="deny") as proxy:  # noqa: SIM117
            async with origin(OK, OK, plain=True) as there:
                async with proxy.plain(there.port, "127.0.0.1") as streams:
                    await talk(streams, GET.replace(b"localhost", b"any.test"), OK)
                async with proxy.plain(there.port) as (reader, writer):
                    writer.write(GET.replace(b" / ", b" http://other.test/ "))
                    assert (await reader.read()).startswith(b"HTTP/1.1 421 ")

    run(main)


# --- ends from outside ---


@pytest.mark.parametrize(
    ("where", "how", "hooks"),
    pairs(
        ["idle", "asking", "uploading", "downloading", "hook"], ["kick", "close", "limit", "idle"], ["passing", "task"]
    ),
    indirect=["hooks"],
)
def test_sessions_that_are_ended(run: Run, hooks: Hooks, tmp_path: Path, where: str, how: str) -> None:
    """Wherever they are, both sides are closed, every flow is told of once, and the log says why."""

    class Waits:
        async def request(self, flow: Flow) -> None:
            await asyncio.sleep(60)

    class Told:
        def flow_end(self, flow: Flow) -> None:
            ends.append(flow.error)

    ends: list[str | None] = []

    async def main() -> None:
        used = (Waits(), Told()) if where == "hook" else (*hooks, Told())
        begun, closed = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                if where != "hook" and where != "idle":
                    await reader.readuntil(b"\r\n\r\n")
                    if where == "downloading":
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
                begun.set()
                await reader.read()
            except ConnectionError:
                pass
            finally:
                closed.set()

        config = {"limits": LimitsConfig(max_session=Seconds(0.6))} if how == "limit" else None
        seconds: Any = {"idle": 0.5} if how == "idle" else {}
        async with intercepting(tmp_path, *used, config=config, **seconds) as proxy:  # noqa: SIM117
            async with target(serve, context=server_context()) as port, proxy.tls(port) as (reader, writer):
                if where == "uploading":
                    writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\npart")
                elif where != "idle":
                    writer.write(GET)
                if where == "hook":
                    await asyncio.sleep(0.1)
                else:
                    await begun.wait()
                if where == "downloading":
                    await reader.readuntil(b"part")
                if how == "kick":
                    for running in proxy.server.sessions():
                        running.end()
                elif how == "close":
                    await proxy.server.close()
                try:
                    rest = await reader.read()
                except ConnectionResetError:
                    rest = b""
                assert rest in (b"", b"part")
                session = await proxy.ended.get()
                assert session.close == {"kick": "kicked", "close": "shutdown"}.get(how, how)
                await closed.wait()
        assert len(ends) == (where != "idle")
        assert all(ends)

    run(main)


def test_a_session_that_ends_as_it_begins(run: Run, tmp_path: Path) -> None:
    """Nothing is left of one whose task has never run."""

    async def main() -> None:
        async with intercepting(tmp_path) as proxy, origin(OK) as there:
            interception = proxy.server.parts.interception
            assert interception is not None
            start = interception.tunnels.start

            def start_and_end(*args: Any) -> None:
                start(*args)
                interception.tunnels.active[args[2]].end("kicked")

            interception.tunnels.start = start_and_end  # type: ignore[method-assign, assignment]
            with await proxy.socket(there.port) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, GET)
                assert (await proxy.ended.get()).close == "kicked"

    run(main)


def test_a_quota(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """What is inside TLS is counted, and a session ends when there is no more."""

    async def main() -> None:
        big = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
        config = {"limits": LimitsConfig(quota=Quota.parse("100 KB/day"))}
        async with intercepting(tmp_path, *hooks, config=config) as proxy, origin(big) as there:
            async with proxy.tls(there.port) as (reader, writer):
                writer.write(GET)
                try:
                    got = await reader.read()
                except ConnectionError:
                    got = b""
                assert len(got) <= 100_000
            session = await proxy.ended.get()
            assert session.close == "limit"
            assert session.up + session.down <= 100_000

    run(main)


def test_an_upload_that_nobody_reads(run: Run, hooks: Hooks, tmp_path: Path) -> None:
    """The client is slowed down: only so much is kept."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            async with intercepting(tmp_path, *hooks) as proxy:
                loop = asyncio.get_running_loop()
                sock = await proxy.socket(listener.getsockname()[1])
                theirs, _ = await loop.sock_accept(listener)
                with sock, theirs:
                    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
                    sending = asyncio.gather(loop.sock_sendall(sock, head + bytes(100_000_000)))
                    ports = sock.getpeername()[1], sock.getsockname()[1]
                    await until(lambda: queued(*ports)[1] > 100_000)
                    session = proxy.server.sessions()[0]
                    assert session.up < 20_000_000
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)

    run(main)


# --- the log ---


def test_lines_of_the_log(run: Run, tmp_path: Path) -> None:
    """They say which entry looked into a session, and that a client has refused our certificate."""
    path = tmp_path / "access.log"

    async def main() -> None:
        config = {"log": Log(access=str(path))}
        entries = [InterceptConfig(name="web", hosts=["localhost"], verify=False, on_pinning="pass")]
        async with intercepting(tmp_path, entries=entries, config=config) as proxy, origin(OK, OK, OK) as there:
            async with proxy.tls(there.port) as streams:
                await talk(streams, GET, OK)
            async with origin(OK, plain=True) as other, proxy.plain(other.port, "other.test") as streams:
                await talk(streams, GET, OK)
            assert await refused(proxy, there.port, "localhost", client_context())
            for _ in range(3):
                await proxy.ended.get()

    run(main)
    one, other, pinned = [json.loads(line) for line in path.read_text().splitlines()]
    assert (one["intercepted"], "pinned" in one, one["up"], one["down"]) == ("web", False, len(GET), len(OK))
    assert "intercepted" not in other
    assert "pinned" not in other
    assert (pinned["intercepted"], pinned["pinned"], pinned["close"]) == ("web", True, "error")
    assert pinned["error"] == "TLS: the client says: unknown ca"
