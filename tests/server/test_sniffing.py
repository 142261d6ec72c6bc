"""Sniffing as clients meet it: real programs through a server, what its sessions say, and what its rules refuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authorities import server_context
from conftest import Run
from hellos import client_hello, hello, server_name
from processes import in_thread, need
from support import echo, reset_on_close, silent, target, tunnel
from tabi.config import Config, InterceptConfig, Listen, Log, ResolverConfig, RuleConfig, Seconds, Timeouts
from tabi.server.server import Server
from tabi.session import Session, Sniffed
from tabi.wire.client_hello import decode_client_hello

HELLO = client_hello("name.test", ("h2",))
ALERT = b"\x15\x03\x03\x00\x02\x02\x31"
LISTEN = "mixed://127.0.0.1:0"


Running = AsyncIterator[tuple[Server, list[Session]]]


@contextlib.asynccontextmanager
async def sniffing(*rules: RuleConfig, sniff: bool = True, **options: Any) -> Running:
    """A server, and its sessions that are over."""
    resolver = ResolverConfig(hosts={"name.test": ["127.0.0.1"]})
    listen = [Listen(LISTEN, sniff=sniff)]
    config = Config(listen=listen, log=Log("none"), rule=list(rules), resolver=resolver, **options)
    over: list[Session] = []
    async with Server(config=config, on_close=over.append) as server:
        yield server, over


async def until(condition: Any) -> None:
    """Let the loop turn until something holds."""
    while not condition():
        await asyncio.sleep(0.001)


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, if there is one."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")


def curl(server: Server, scheme: str, url: str, port: int, *more: str) -> list[str]:
    """A curl that resolves by itself, so that the server gets an address."""
    place = server.addresses[0]
    proxy = f"{scheme}://127.0.0.1:{place.port}"
    names = [f"{name}:{port}:127.0.0.1" for name in ("name.test", "www.bad.test")]
    resolve = [word for name in names for word in ("--resolve", name)]
    return [need("curl"), "-sSk", "--max-time", "10", "--proxytunnel", "--proxy", proxy, *resolve, *more, url]


@pytest.mark.every_hosting
@pytest.mark.parametrize("scheme", ["socks5", "socks4", "http"])
def test_curl_with_tls(run: Run, scheme: str) -> None:
    """By an address: the page arrives, and the session knows the name and what curl offers."""

    async def main() -> None:
        async with target(answer_http, context=server_context()) as port, sniffing() as (server, over):
            done = await in_thread(curl(server, scheme, f"https://name.test:{port}/", port))
            assert (done.stdout, done.stderr) == (b"hi", b"")
            await until(lambda: over)
            session, sniffed = over[0], over[0].sniffed
            assert sniffed is not None
            assert session.destination is not None
            assert (sniffed.protocol, sniffed.sni) == ("tls", "name.test")
            assert sniffed.alpn[-1] == "http/1.1"
            assert sniffed.ja4 is not None
            assert sniffed.ja4[3] == "d"
            if scheme != "http":
                assert str(session.destination.host) == "127.0.0.1"
            assert session.up > 100

    run(main)


@pytest.mark.every_hosting
def test_a_name_that_is_denied(run: Run) -> None:
    """curl says what the alert says; the log has the rule, and the destination no octet. Others go on."""

    async def main() -> None:
        rule = RuleConfig("deny", "no-names", hosts=["*.bad.test"])
        came: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.append(await reader.read())

        async with target(listen) as port, sniffing(rule) as (server, over):
            done = await in_thread(curl(server, "socks5", f"https://www.bad.test:{port}/", port))
            assert done.returncode == 35
            assert b"access denied" in done.stderr
            await until(lambda: over and came)
            session = over[0]
            assert (session.close, session.rule, session.reply_code, session.up) == ("denied", "no-names", 0, 0)
            assert session.error == "rule no-names: deny www.bad.test, which its TLS asks for"
            assert came == [b""]
            assert server.metrics.value("tabi_denied_total", action="deny", rule="no-names") == 1
            async with tunnel(server.addresses[0], port) as (reader, writer):
                writer.write(HELLO)
                writer.write_eof()
                assert await reader.read() == b""
            assert came[1] == HELLO

    run(main)


def test_openssl(run_once: Run) -> None:
    """openssl s_client by CONNECT of HTTP."""

    async def main() -> None:
        async with target(echo, context=server_context()) as port, sniffing() as (server, over):
            place = f"127.0.0.1:{server.addresses[0].port}"
            command = [need("openssl"), "s_client", "-proxy", place, "-connect", f"127.0.0.1:{port}"]
            done = await in_thread([*command, "-servername", "name.test", "-alpn", "h2", "-brief"])
            assert done.returncode == 0
            await until(lambda: over)
            sniffed = over[0].sniffed
            assert sniffed is not None
            assert (sniffed.protocol, sniffed.sni, sniffed.alpn) == ("tls", "name.test", ("h2",))

    run_once(main)


@pytest.mark.parametrize(("option", "protocol"), [("--http1.1", "http/1"), ("--http2-prior-knowledge", "h2")])
def test_http_without_tls(run_once: Run, option: str, protocol: str) -> None:
    """In a tunnel, as curl begins it."""

    async def main() -> None:
        async with target(answer_http) as port, sniffing() as (server, over):
            await in_thread(curl(server, "socks5", f"http://127.0.0.1:{port}/", port, option))
            await until(lambda: over)
            assert over[0].sniffed == Sniffed(protocol)

    run_once(main)


@pytest.mark.every_hosting
@pytest.mark.parametrize(
    ("greeting", "protocol"), [(b"SSH-2.0-OpenSSH_9.2\r\n", "ssh"), (b"220 mail.test ESMTP\r\n", "raw")]
)
def test_a_server_that_speaks_first(run: Run, greeting: bytes, protocol: str) -> None:
    """Nothing waits, and the rest of the conversation goes on."""

    async def main() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            await echo(reader, writer)

        async with target(greet) as port, sniffing() as (server, over):
            async with tunnel(server.addresses[0], port) as (reader, writer):
                assert await reader.readexactly(len(greeting)) == greeting
                writer.write(b"EHLO name.test\r\n")
                assert await reader.readexactly(16) == b"EHLO name.test\r\n"
            await until(lambda: over)
            assert (over[0].sniffed, over[0].up, over[0].down) == (Sniffed(protocol), 16, 16 + len(greeting))

    run(main)


@pytest.mark.every_hosting
def test_a_hello_in_segments_and_records_of_an_octet(run: Run) -> None:
    """It arrives whole, and was read."""

    async def main() -> None:
        octets = hello(server_name(b"name.test"), size=1)
        async with target(echo) as port, sniffing() as (server, over):
            async with tunnel(server.addresses[0], port) as (reader, writer):
                writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(len(octets)):
                    writer.write(octets[at : at + 1])
                    await asyncio.sleep(0)
                assert await reader.readexactly(len(octets)) == octets
            await until(lambda: over)
            assert over[0].sniffed is not None
            assert over[0].sniffed.sni == "name.test"

    run(main)


def test_a_hello_with_the_request(run_once: Run) -> None:
    """A client that does not wait for its reply is denied too, and gets the reply first."""

    async def main() -> None:
        rule = RuleConfig("deny", "no-names", hosts=["name.test"])
        async with target(silent) as port, sniffing(rule) as (server, over):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.addresses[0].port)
            writer.write(b"\5\1\0\5\1\0\1\x7f\0\0\1" + port.to_bytes(2) + HELLO)
            found = await reader.read()
            assert found[:5] == b"\5\0\5\0\0"
            assert found.endswith(ALERT)
            writer.close()
            await until(lambda: over)
            assert over[0].close == "denied"

    run_once(main)


@pytest.mark.parametrize("action", ["reset", "drop"])
def test_other_refusals(run_once: Run, action: Any) -> None:
    """A reset, or no answer until the handshake's time is over."""

    async def main() -> None:
        rule = RuleConfig(action, "no-names", hosts=["name.test"])
        timeouts = Timeouts(handshake=Seconds(0.3))
        async with target(silent) as port, sniffing(rule, timeouts=timeouts) as (server, over):
            async with tunnel(server.addresses[0], port) as (reader, writer):
                writer.write(HELLO)
                if action == "reset":
                    with pytest.raises(ConnectionResetError):
                        await reader.read()
                else:
                    assert await reader.read() == b""
            assert (over[0].close, over[0].rule) == ("denied", "no-names")

    run_once(main)


def test_a_rule_that_says_it_for_what_it_allows(run_once: Run) -> None:
    """Other sessions have the relays at once."""

    async def main() -> None:
        async with target(echo) as port, target(echo) as other:
            rule = RuleConfig("allow", "look", ports=[port], sniff=True)
            async with sniffing(rule, sniff=False) as (server, over):
                for where in (port, other):
                    async with tunnel(server.addresses[0], where) as (reader, writer):
                        writer.write(b"GET / HTTP/1.1\r\n")
                        assert await reader.readexactly(3) == b"GET"
                await until(lambda: len(over) == 2)
                by_rule = {session.rule: session.sniffed for session in over}
                assert by_rule == {"look": Sniffed("http/1"), None: None}

    run_once(main)


def test_a_reload_turns_it_on_and_off(run_once: Run) -> None:
    """For new sessions. Without any sniffing commands have the very carrier that they have in a server without."""

    async def main() -> None:
        async with target(echo) as port, sniffing(sniff=False) as (server, over):
            parts = server.parts
            assert parts is not None
            assert parts.sniffer is None
            plain = parts.connect.carrier
            assert plain is parts.relays
            for sniff in (True, False, True):
                listen = [Listen(LISTEN, sniff=sniff)]
                assert server.reload(msgspec.structs.replace(server.config, listen=listen)) == []
                assert (parts.connect.carrier is plain) == (not sniff)
                async with tunnel(server.addresses[0], port) as (reader, writer):
                    writer.write(b"SSH-2.0-x\r\n")
                    assert await reader.readexactly(3) == b"SSH"
                await until(lambda: over)
                assert (over.pop().sniffed is not None) == sniff

    run_once(main)


def test_sessions_that_wait_are_seen_and_end(run_once: Run) -> None:
    """They are in the list of sessions, may be ended from outside, and end with the server."""

    async def main() -> None:
        async with (
            target(silent) as port,
            sniffing() as (server, over),
            tunnel(server.addresses[0], port) as (reader, writer),
            tunnel(server.addresses[0], port),
        ):
            writer.write(HELLO[:20])
            await until(lambda: len(server.sessions()) == 2)
            first, _ = sorted(server.sessions(), key=lambda info: info.id)
            assert (first.up, first.down) == (0, 0)
            first.end()
            assert await reader.read() == b""
            assert (over[0].close, over[0].error) == ("kicked", "ended from outside")
            await server.close()
            assert over[1].close == "shutdown"

    run_once(main)


def test_a_client_that_goes_before_it_says_anything(run_once: Run) -> None:
    """A reset reaches the destination."""

    async def main() -> None:
        broken = asyncio.Event()

        async def expect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
                return
            broken.set()

        async with target(expect) as port, sniffing() as (server, over):
            async with tunnel(server.addresses[0], port) as (_, writer):
                reset_on_close(writer.get_extra_info("socket"))
            await broken.wait()
            await until(lambda: over)
            assert (over[0].close, over[0].sniffed) == ("reset", None)

    run_once(main)


def test_the_access_log(run_once: Run, tmp_path: Path) -> None:
    """The keys are behind those of every line."""

    async def main() -> None:
        log = tmp_path / "access.log"
        config = Config(listen=[Listen(LISTEN, sniff=True)], log=Log(str(log)))
        async with (
            target(echo) as port,
            Server(config=config) as server,
            tunnel(server.addresses[0], port) as (reader, writer),
        ):
            writer.write(HELLO)
            assert await reader.readexactly(len(HELLO)) == HELLO
            writer.close()
            await until(lambda: not server.sessions())
        line = json.loads(await asyncio.to_thread(log.read_text))
        assert list(line)[-6:] == ["close", "sniffed", "sni", "alpn", "ja3", "ja4"]
        assert (line["sniffed"], line["sni"], line["alpn"]) == ("tls", "name.test", ["h2"])
        hello = decode_client_hello(HELLO)
        assert hello is not None
        assert (line["ja3"], line["ja4"]) == (hello.ja3, hello.ja4)

    run_once(main)


def test_with_interception(run_once: Run) -> None:
    """What is looked into is sniffed all the same, and denied by a name before that; a reload changes either."""

    async def main() -> None:
        rule = RuleConfig("deny", "no-names", hosts=["name.test"])
        look = [InterceptConfig(tls=False)]
        async with target(answer_http) as port, sniffing(rule, intercept=look) as (server, over):
            for intercepted, sniff in ((True, True), (False, True), (True, True), (True, False)):
                listen = [Listen(LISTEN, sniff=sniff)]
                config = msgspec.structs.replace(server.config, intercept=look * intercepted, listen=listen)
                assert server.reload(config) == []
                done = await in_thread(curl(server, "socks5", f"http://127.0.0.1:{port}/", port))
                assert done.stdout == b"hi"
                await until(lambda: over)
                session = over[-1]
                assert session.sniffed == (Sniffed("http/1") if sniff or intercepted else None)
                assert (session.intercepted is not None) == intercepted
                async with tunnel(server.addresses[0], port) as (reader, writer):
                    writer.write(HELLO)
                    writer.write_eof()
                    assert await reader.read() == (ALERT if sniff else b"")
                await until(lambda: not server.sessions())
                assert over[-1].sniffed is None or over[-1].close == "denied"
                over.clear()

    run_once(main)
