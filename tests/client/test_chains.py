"""The public client through proxies of every kind, alone and in chains, in any order."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from pathlib import Path

import pytest

import tabi
from authorities import authority, server_context, write_server
from conftest import Run
from doubles import config
from processes import run_tabi
from support import closed_port, datagram_target, echo, target
from tabi.config import Config, Listen

PLAIN = ("socks5", "socks4", "http")
EVERY = (*PLAIN, "socks5+tls", "socks4+tls", "https")


def servers(folder: Path) -> tuple[Config, str]:
    """One server with a port for each of EVERY, and the file of its authority."""
    tls = write_server(folder)
    ca = folder / "authority.pem"
    ca.write_bytes(authority().cert_pem.bytes())
    listeners = [Listen(f"{scheme}://127.0.0.1:0", tls=tls if scheme not in PLAIN else None) for scheme in EVERY]
    return config(*listeners), str(ca)


async def exchange(stream: tabi.Stream, data: bytes = b"hello") -> None:
    """Send, end, and get the same back."""
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.send_all(data))
        received = b""
        while len(received) < len(data):
            received += await stream.receive()
    stream.send_eof()
    assert received == data
    assert await stream.receive() == b""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_one_proxy_of_every_kind(run: Run, tmp_path: Path, host: str) -> None:
    """The server's URL is enough, by address and by name."""
    setting, ca = servers(tmp_path)

    async def main() -> None:
        async with target() as port, tabi.Server(config=setting) as server:
            for url in server.urls:
                async with tabi.Proxy(url, ca=ca).connect(host, port) as stream:
                    await exchange(stream, b"hello" * 100_000)

    run(main)


def test_every_pair_and_all_of_them_in_a_row(run_once: Run, tmp_path: Path) -> None:
    """Each proxy reaches the next, whatever the two speak, TLS inside TLS included."""
    setting, ca = servers(tmp_path)

    async def main() -> None:
        async with target() as port, tabi.Server(config=setting) as server:
            for urls in (*itertools.product(server.urls, repeat=2), server.urls, server.urls[::-1]):
                async with tabi.Proxy(*urls, ca=ca).connect("localhost", port) as stream:
                    await exchange(stream)

    run_once(main)


def test_each_has_its_own_user(run_once: Run) -> None:
    """What one proxy is told of us, the others are not."""
    sessions: list[tabi.Session] = []

    async def main() -> None:
        async with (
            target() as port,
            tabi.Server("http://127.0.0.1:0", users={"a": "1"}, on_close=sessions.append) as first,
            tabi.Server("socks5://127.0.0.1:0", users={"b": "2"}, on_close=sessions.append) as second,
        ):
            async with tabi.Proxy(first.url, second.url).connect("localhost", port) as stream:
                await exchange(stream)
            await second.drain()
            await first.drain()

    run_once(main)
    assert {(session.user, session.protocol) for session in sessions} == {("a", "http"), ("b", "socks5")}


@pytest.mark.parametrize("scheme", PLAIN)
def test_a_second_proxy_that_is_not_there(run_once: Run, scheme: str) -> None:
    """It is the first one's refusal, named by the second one's address."""

    async def main() -> None:
        async with tabi.Server(f"{scheme}://127.0.0.1:0") as server:
            with closed_port() as port, pytest.raises(tabi.ProxyError, match=f"127.0.0.1:{port}: ") as caught:
                await tabi.Proxy(server.url, f"http://127.0.0.1:{port}").connect("127.0.0.1", 1)
            assert caught.value.reply_code == (1 if scheme == "socks4" else 5)

    run_once(main)


def test_ipv6_through_socks4_is_a_dial_error(run_once: Run) -> None:
    """SOCKS4 has no room for it; the proxy behind it may."""

    async def main() -> None:
        async with tabi.Server("socks4://127.0.0.1:0") as four, tabi.Server("http://127.0.0.1:0") as http:
            with pytest.raises(tabi.DialError, match="SOCKS4 carries no IPv6 address"):
                await tabi.Proxy(four.url).connect("::1", 1)
            async with target(host="::1") as port, tabi.Proxy(four.url, http.url).connect("::1", port) as stream:
                await exchange(stream)

    run_once(main)


@pytest.mark.parametrize(
    "urls",
    [
        ["http://h"],
        ["socks4://h"],
        ["socks5://h", "https://alice:hunter2@g"],
        ["https://alice:hunter2@g", "socks5://h"],
    ],
)
def test_bind_and_udp_need_socks5_all_the_way(urls: list[str]) -> None:
    """It is said at the call, and which proxy is in the way."""
    proxy = tabi.Proxy(*urls)
    for what, call in (("BIND", proxy.bind), ("UDP", proxy.associate)):
        with pytest.raises(ValueError, match=f"{what} needs SOCKS5 all the way, and (http|socks4)") as caught:
            call()
        assert "hunter2" not in str(caught.value)


def test_bind_and_udp_through_socks5_inside_tls(run: Run, tmp_path: Path) -> None:
    """The conversation is inside TLS; the peer's octets are too, the datagrams are not."""
    setting, ca = servers(tmp_path)

    async def main() -> None:
        async with datagram_target() as port, tabi.Server(config=setting) as server:
            proxy = tabi.Proxy(server.urls[3], ca=ca)
            async with proxy.associate() as association:
                await association.send(b"question", ("127.0.0.1", port))
                assert (await association.receive())[0] == b"question"
            async with proxy.bind() as listener:
                reader, writer = await asyncio.open_connection(str(listener.address.host), listener.address.port)
                async with await listener.accept() as stream:
                    writer.write(b"hello")
                    assert await stream.receive() == b"hello"
                writer.close()
                await writer.wait_closed()
                assert await reader.read() == b""

    run(main)


async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo; TLS knows no half-close, so that this ends by closing."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize("count", [1, 2])
def test_asyncios_streams_through_tls(run: Run, tmp_path: Path, count: int) -> None:
    """A socket cannot be taken from under TLS: a pair stands in for it; TLS with the destination goes through too."""
    setting, ca = servers(tmp_path)
    trusting = ssl.create_default_context(cafile=ca)
    data = bytes(range(256)) * 4000

    async def main() -> None:
        tls = await asyncio.start_server(once, "127.0.0.1", 0, ssl=server_context())
        async with target(echo) as port, tls, tabi.Server(config=setting) as server:
            proxy = tabi.Proxy(*[server.urls[5]] * count, ca=ca)
            for place, context in ((port, None), (tls.sockets[0].getsockname()[1], trusting)):
                reader, writer = await proxy.open_connection("localhost", place, ssl=context)
                writer.write(data)
                assert await reader.readexactly(len(data)) == data
                writer.close()
                await writer.wait_closed()
            await server.drain()

    run(main)


def test_a_stream_inside_tls_is_not_detached(run_once: Run, tmp_path: Path) -> None:
    """The error leaves it as it was."""
    setting, ca = servers(tmp_path)

    async def main() -> None:
        async with (
            target() as port,
            tabi.Server(config=setting) as server,
            tabi.Proxy(server.urls[5], ca=ca).connect("127.0.0.1", port) as stream,
        ):
            with pytest.raises(OSError, match="no socket can be taken away"):
                stream.detach()
            await exchange(stream)

    run_once(main)


def test_a_file_of_authorities_that_is_none(tmp_path: Path) -> None:
    """At construction; without a proxy inside TLS nobody looks at it."""
    with pytest.raises(ValueError, match=r"none\.pem: No such file"):
        tabi.Proxy("https://h", ca=tmp_path / "none.pem")
    tabi.Proxy("http://h", ca=tmp_path / "none.pem")


@pytest.mark.linux
def test_the_command_goes_through_every_kind(run_once: Run, tmp_path: Path) -> None:
    """`tabi connect` joins standard input and output with the end of such a chain."""
    setting, ca = servers(tmp_path)
    data = bytes(range(256)) * 1000

    async def main() -> None:
        async with target() as port, tabi.Server(config=setting) as server:
            for urls in ((server.urls[2],), (server.urls[5],), (server.urls[3], server.urls[1])):
                via = [word for url in urls for word in ("--via", url)]
                done = await asyncio.to_thread(run_tabi, "connect", *via, "--ca", ca, f"localhost:{port}", stdin=data)
                assert (done.returncode, done.stderr, done.stdout == data) == (0, b"", True)

    run_once(main)
