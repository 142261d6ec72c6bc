"""Requests for https:// and wss:// that a client sends in plain text: TLS is the proxy's part, and so is its trust."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from authorities import authority, client_context, server_context, stranger
from conftest import Run
from doubles import Streams, end_of, reset, until
from http_proxy import OK, Message, Origin, Proxy, ask, exchange, proxy, read_message
from support import Handler, client, target
from tabi.egress.chain import HTTP_PROTOCOLS
from tabi.ingress import origin_tls
from tabi.ingress.refusal import DETAILS
from tabi.net.tls import make_client_context


@contextlib.asynccontextmanager
async def trusting(**options: Any) -> AsyncIterator[Proxy]:
    """A proxy that trusts the authority of the tests."""
    async with proxy(**options) as here:
        here.server.parts.forwarding.tls.context = client_context()
        yield here


def origin() -> Origin:
    """A destination whose ``serve`` answers each request."""
    return Origin(lambda _: OK)


async def refused(streams: Streams, port: int) -> tuple[int, str, str]:
    """Ask for something: the status, the error's type and its text."""
    got = await exchange(streams, ask(f"https://127.0.0.1:{port}/"))
    return got.status, got.fields["proxy-status"].split("; ")[1].removeprefix("error="), got.content.decode()


@pytest.mark.every_hosting
def test_requests_inside_tls(run: Run) -> None:
    """They are forwarded as others are, several on one connection, content in both directions."""

    async def main() -> None:
        there = origin()
        async with (
            target(there.serve, context=server_context()) as port,
            trusting() as here,
            client(here.address) as streams,
        ):
            url = f"https://127.0.0.1:{port}"
            for octets in (ask(f"{url}/a"), ask(f"{url}/b"), ask(f"{url}/c", "POST", content=bytes(1 << 20))):
                assert (await exchange(streams, octets)).content == b"hello"
            assert [request.line for request in there.requests] == [
                *("GET /a HTTP/1.1", "GET /b HTTP/1.1", "POST /c HTTP/1.1")
            ]
            assert {request.fields["host"] for request in there.requests} == {f"127.0.0.1:{port}"}
            assert [len(asked) for asked in there.connections] == [2, 1]
            session = await here.ended.get()
            assert (session.command, session.reply_code, session.down) == ("forward", 200, 5)

    run(main)


def test_the_name_is_checked_and_sent(run: Run) -> None:
    """The certificate must name the host of the target, a name or an address; a dot at its end is not part of it."""

    async def main() -> None:
        context = server_context()
        names: list[str | None] = []
        context.sni_callback = lambda _, name, __: names.append(name)
        there = origin()
        async with target(there.serve, context=context) as port, trusting() as here, client(here.address) as streams:
            here.server.parts.dialer.resolver.names["localhost."] = ["127.0.0.1"]  # type: ignore[attr-defined]
            for host in ("127.0.0.1", "localhost."):
                assert (await exchange(streams, ask(f"https://{host}:{port}/"))).status == 200
            got = await exchange(streams, ask(f"https://here.test:{port}/"))
            assert got.status == 502
            assert "; error=tls_certificate_error; " in got.fields["proxy-status"]
            assert b"here.test" in got.content
            assert b"its certificate is not accepted" in got.content
            assert "not valid for 'here.test'" in str([(await here.ended.get()).error for _ in range(3)][-1])
            assert names[1:] == ["localhost", "here.test"]
            assert len(there.requests) == 2

    run(main)


def test_a_kept_connection_without_tls_is_not_used(run: Run) -> None:
    """Nor the other way round, though the port is the same: nothing that was meant for TLS goes out in plain text."""

    async def main() -> None:
        plain: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while (data := await reader.read(4096))[:3] == b"GET":
                plain.append(data)
                writer.write(OK)
            assert data[:1] == b"\x16"
            plain.append(b"TLS")

        async with target(serve) as port, trusting() as here, client(here.address) as streams:
            assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/"))).status == 200
            assert (await refused(streams, port))[0] == 502
            assert plain[1:] == [b"TLS"]

    run(main)


@pytest.mark.parametrize("what", ["stranger", "not TLS", "alert", "reset", "end"])
def test_a_handshake_that_fails(run: Run, what: str) -> None:
    """502 with a type of RFC 9209, the reason in the log; the client's connection goes on, the other one ends."""
    errors = {
        "stranger": ("tls_certificate_error", "TLS: the certificate of the server: "),
        "not TLS": ("tls_protocol_error", "begins with b'SSH-2.0', expected TLS"),
        "alert": ("tls_alert_received", "TLS: the server says: "),
        "reset": ("connection_terminated", "connection reset by peer"),
        "end": ("tls_protocol_error", "TLS: the server ended within the handshake"),
    }
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if what == "stranger":
            await reader.read()
            return
        await reader.read(4096)
        if what == "not TLS":
            writer.write(b"SSH-2.0")
        elif what == "alert":
            writer.write(b"\x15\x03\x03\x00\x02\x02\x28")
        elif what == "reset":
            reset(writer)
        if what in ("not TLS", "alert"):
            await end_of(reader)

    async def main() -> None:
        context = None
        if what == "stranger":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            stranger().issue_cert("127.0.0.1").configure_cert(context)
        async with target(serve, context=context) as port, trusting() as here, client(here.address) as streams:
            for _ in range(2):
                status, error, text = await refused(streams, port)
                assert (status, error) == (502, errors[what][0])
                assert text == f"502 Bad Gateway: 127.0.0.1:{port}: {DETAILS[error]}\n"
            session = await here.ended.get()
            assert (session.reply_code, session.close) == (502, "error")
            assert str(session.error).startswith(f"127.0.0.1:{port}: {errors[what][1]}")

    run(main)


def test_a_handshake_that_takes_too_long(run: Run) -> None:
    """It is within the deadline of the connection: 504."""

    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with target(silent) as port, trusting(connect=0.2) as here, client(here.address) as streams:
            assert (await refused(streams, port))[:2] == (504, "connection_timeout")

    run(main)


def test_a_websocket_inside_tls(run: Run) -> None:
    """wss:// in a target is https to the server; after 101 a relay carries it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        while data := await reader.read(4096):
            writer.write(data)

    async def main() -> None:
        async with (
            target(serve, context=server_context()) as port,
            trusting() as here,
            client(here.address) as (reader, writer),
        ):
            writer.write(ask(f"wss://127.0.0.1:{port}/", fields="Connection: Upgrade\r\nUpgrade: echo\r\n"))
            assert (await read_message(reader)).status == 101
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            writer.write_eof()
            assert await reader.read() == b""

    run(main)


@pytest.mark.parametrize("notify", [True, False], ids=["close_notify", "without"])
def test_an_answer_that_ends_with_the_connection(run: Run, notify: bool) -> None:
    """It is whole only with a close_notify (RFC 9112 section 9.8): anybody on the way can end the connection below."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if notify:
            writer.close()
            await writer.wait_closed()
        else:
            writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
            await end_of(reader)

    async def main() -> None:
        async with (
            target(serve, context=server_context()) as port,
            trusting() as here,
            client(here.address) as (reader, writer),
        ):
            writer.write(ask(f"https://127.0.0.1:{port}/"))
            await reader.readuntil(b"\r\n\r\nhello")
            assert await end_of(reader) == ("end" if notify else "reset")
            writer.close()
            session = await here.ended.get()
            why = None if notify else f"127.0.0.1:{port}: the connection ended in the middle of the content"
            assert (session.reply_code, session.error, session.down) == (200, why, 5)

    run(main)


@pytest.mark.every_hosting
def test_a_kept_connection_is_closed_when_the_destination_ends_it(run: Run) -> None:
    """As one without TLS, at its close_notify or its end."""

    async def main() -> None:
        go = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_message(reader)
            writer.write(OK)
            await go.wait()
            writer.close()
            await writer.wait_closed()

        async with (
            target(serve, context=server_context()) as port,
            trusting() as here,
            client(here.address) as streams,
        ):
            await exchange(streams, ask(f"https://127.0.0.1:{port}/"))
            reactor = here.server.parts.reactor
            before = len(reactor.handlers)
            go.set()
            await until(lambda: len(reactor.handlers) < before)

    run(main)


def test_the_context_is_made_once_and_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not in the loop's thread, for reading the authorities takes long, and one time for all that want it at once. It
    is for HTTP/1.1, with the authorities that OpenSSL finds (SSL_CERT_FILE)."""
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(authority().cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    made: list[tuple[threading.Thread, tuple[str, ...]]] = []

    def make(ca: str | None, protocols: tuple[str, ...]) -> ssl.SSLContext:
        made.append((threading.current_thread(), protocols))
        return make_client_context(ca, protocols)

    monkeypatch.setattr(origin_tls, "trusting_system", make)

    async def one(here: Proxy, port: int) -> Message:
        async with client(here.address) as streams:
            return await exchange(streams, ask(f"https://127.0.0.1:{port}/"))

    async def main() -> None:
        serve: Handler = origin().serve
        async with target(serve, context=server_context()) as port, proxy() as here:
            answers = await asyncio.gather(*[one(here, port) for _ in range(5)])
            assert {answer.status for answer in answers} == {200}
            ((thread, protocols),) = made
            assert thread is not threading.main_thread()
            assert protocols == HTTP_PROTOCOLS

    run(main)
