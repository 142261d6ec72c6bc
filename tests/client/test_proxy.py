"""The public client, against servers of ours and proxies that are scripted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

import tabi
from authorities import authority, write_server
from conftest import Run
from doubles import SUCCESS, caller, config, reset, unanswering, until
from name_servers import Zone, udp_server
from sshd import ssh_server
from support import GREETING, closed_port, datagram_target, echo, replying, request, silent, take_request, target
from tabi.config import Listen, make_config
from tabi.egress.socks5 import Socks5
from tabi.wire.address import Address, encode_address, parse_address
from tabi.wire.datagram import encode_header


async def exchange(stream: tabi.Stream, data: bytes = b"hello") -> None:
    """Send and get the same back."""
    await stream.send_all(data)
    received = b""
    while len(received) < len(data):
        received += await stream.receive()
    assert received == data


@pytest.mark.every_hosting
def test_async_with_closes_the_stream(run: Run) -> None:
    """Inside it carries octets, behind it the destination has seen the end."""
    sessions: list[tabi.Session] = []

    async def main() -> None:
        async with target() as port, tabi.Server("socks5://127.0.0.1:0", on_close=sessions.append) as server:
            async with tabi.Proxy(server.url).connect("127.0.0.1", port) as stream:
                await exchange(stream)
            assert stream.fd < 0
            await server.drain()

    run(main)
    assert [(session.up, session.down, session.close) for session in sessions] == [(5, 5, "client")]


def test_await_leaves_closing_to_the_caller(run: Run) -> None:
    """`stream = await proxy.connect(…)` stays open until its close."""

    async def main() -> None:
        async with target() as port, tabi.Server("socks5://127.0.0.1:0") as server:
            stream = await tabi.Proxy(server.url).connect("127.0.0.1", port)
            await exchange(stream)
            stream.close()

    run(main)


def test_a_connect_that_nobody_awaits_does_nothing(run: Run) -> None:
    """No connection is opened. Python warns, as it does for every coroutine that is forgotten."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server:
            with pytest.warns(RuntimeWarning, match=r"coroutine 'Proxy.open' was never awaited"):
                tabi.Proxy(server.url).connect("127.0.0.1", 1)
            assert not server.parts.sessions.running

    run(main)


def test_what_opens_is_a_coroutine(run: Run) -> None:
    """`create_task` and `TaskGroup` take it, and cancel it as they do with others."""

    async def main() -> None:
        async with target() as port, tabi.Server("socks5://127.0.0.1:0") as server, asyncio.TaskGroup() as group:
            proxy = tabi.Proxy(server.url)
            task = group.create_task(proxy.connect("127.0.0.1", port))
            async with await task as stream:
                await exchange(stream)
            with unanswering() as silent:
                waiting = group.create_task(proxy.connect("127.0.0.1", silent))
                await until(lambda: server.parts.sessions.running)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

    run(main)


def test_the_socket_of_a_connection(run: Run) -> None:
    """`open_socket` gives a connected socket, for libraries that want one; it is the caller's to close."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with target() as port, tabi.Server("socks5://127.0.0.1:0") as server:
            proxy = tabi.Proxy(server.url)
            with await proxy.open_socket("127.0.0.1", port) as sock:
                await loop.sock_sendall(sock, b"hello")
                assert await loop.sock_recv(sock, 5) == b"hello"
            async with proxy.open_socket("127.0.0.1", port) as sock:
                assert sock.gettimeout() == 0
                await loop.sock_sendall(sock, b"hello")
                assert await loop.sock_recv(sock, 5) == b"hello"
            assert sock.fileno() < 0
            await server.drain()

    run(main)


def test_the_proxy_resolves_names(run_once: Run) -> None:
    """The name arrives as it is, international ones as IDNA; the client asks no resolver of its own."""

    class Resolver:
        def __init__(self) -> None:
            self.names: list[str] = []

        async def resolve(self, name: str) -> list[object]:
            self.names.append(name)
            return [parse_address("127.0.0.1:0").host]

        async def close(self) -> None:
            """Nothing is held."""

    resolver = Resolver()

    async def main() -> None:
        async with (
            target() as port,
            tabi.Server("socks5://127.0.0.1:0", resolver=resolver) as server,  # type: ignore[arg-type]
        ):
            for name in ("only.here.invalid", "bücher.invalid"):
                async with tabi.Proxy(server.url).connect(name, port) as stream:
                    await exchange(stream)

    run_once(main)
    assert resolver.names == ["only.here.invalid", "xn--bcher-kva.invalid"]


def test_users(run: Run) -> None:
    """Right ones get in, whatever characters they have; wrong ones and none are an AuthError."""

    async def main() -> None:
        async with target() as port, tabi.Server("socks5://127.0.0.1:0", users={"a:b@c": "p/w:%41 ü"}) as server:
            async with tabi.Proxy(server.url).connect("127.0.0.1", port) as stream:
                await exchange(stream)
            for url in (server.urls[0], server.urls[0].replace("//", "//alice:wrong@")):
                with pytest.raises(tabi.AuthError):
                    await tabi.Proxy(url).connect("127.0.0.1", port)

    run(main)


def test_a_refused_destination_is_a_proxy_error(run: Run) -> None:
    """With the proxy's reply code."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server:
            with closed_port() as port, pytest.raises(tabi.ProxyError) as caught:
                await tabi.Proxy(server.url).connect("127.0.0.1", port)
            assert caught.value.reply_code == 5

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_that_is_not_there_is_a_dial_error(run: Run, host: str) -> None:
    """By address and by name."""

    async def main() -> None:
        with closed_port() as port, pytest.raises(tabi.DialError, match="connection refused"):
            await tabi.Proxy(f"socks5://{host}:{port}").connect("127.0.0.1", 1)

    run(main)


def test_a_proxy_whose_name_does_not_exist_is_a_dial_error(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the resolver says becomes one of our own errors."""

    async def main() -> None:
        async def getaddrinfo(*_: object, **__: object) -> object:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        with pytest.raises(tabi.DialError, match=r"proxy.invalid: name or service not known"):
            await tabi.Proxy("socks5://proxy.invalid:1").connect("127.0.0.1", 1)

    run_once(main)


@pytest.mark.every_hosting
def test_the_timeout_is_for_each_proxy(run: Run) -> None:
    """The first proxy answers, the second does not: it is the second that is named."""

    async def main() -> None:
        async with target(silent) as port, tabi.Server("socks5://127.0.0.1:0") as server:
            proxy = tabi.Proxy(server.url, f"socks5://127.0.0.1:{port}", timeout=0.2)
            with pytest.raises(tabi.ProxyError, match=f"127.0.0.1:{port}: the proxy did not answer within 0.2 s"):
                await proxy.connect("127.0.0.1", 1)

    run(main)


def test_what_is_no_proxy_is_a_remote_protocol_error(run: Run) -> None:
    """An echo is no SOCKS5 server."""

    async def main() -> None:
        async with target(echo) as port:
            with pytest.raises(tabi.RemoteProtocolError):
                await tabi.Proxy(f"socks5://127.0.0.1:{port}").connect("127.0.0.1", 1)

    run(main)


def test_a_chain_goes_through_every_proxy_in_order(run: Run) -> None:
    """Each with its own user; the destination is resolved by the last."""
    first_seen: list[tabi.Session] = []
    second_seen: list[tabi.Session] = []

    async def main() -> None:
        async with (
            target() as port,
            tabi.Server("socks5://127.0.0.1:0", users={"a": "1"}, on_close=first_seen.append) as first,
            tabi.Server("socks5://127.0.0.1:0", users={"b": "2"}, on_close=second_seen.append) as second,
        ):
            second_place = second.addresses[0]
            async with tabi.Proxy(first.url, second.url).connect("localhost", port) as stream:
                await exchange(stream)
            await second.drain()
            await first.drain()
        assert [(session.user, session.destination) for session in first_seen] == [("a", second_place)]
        assert [(session.user, str(session.destination)) for session in second_seen] == [("b", f"localhost:{port}")]

    run(main)


def test_an_error_of_a_later_proxy_is_told_apart(run: Run) -> None:
    """A second proxy that cannot be reached is the first one's refusal, named by its address."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server:
            with closed_port() as port, pytest.raises(tabi.ProxyError, match=f"127.0.0.1:{port}: ") as caught:
                await tabi.Proxy(server.url, f"socks5://127.0.0.1:{port}").connect("127.0.0.1", 1)
            assert caught.value.reply_code == 5

    run(main)


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send, end, and get everything back with asyncio's streams."""
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()


def test_a_failure_leaves_no_connection_to_an_ssh_server(
    run_once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays open for as long as something goes through it: where nothing came of the request, it ends at once."""
    keys = tmp_path / ".ssh"
    keys.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))

    async def main() -> None:
        async with ssh_server(keys, accept=lambda *_: False) as server:
            with pytest.raises(tabi.ProxyError):
                await tabi.Proxy(f"ssh://alice:hunter2@127.0.0.1:{server.port}").connect("localhost", 1)
            (connection,) = server.connections
            async with asyncio.timeout(10):
                await connection.wait_closed()

    run_once(main)


@pytest.mark.every_hosting
def test_open_connection_gives_asyncio_streams(run: Run) -> None:
    """For code that wants those."""

    async def main() -> None:
        async with target() as port, tabi.Server("socks5://127.0.0.1:0") as server:
            await talk(*await tabi.Proxy(server.url).open_connection("127.0.0.1", port))

    run(main)


async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo; TLS knows no half-close, so that this ends by closing."""
    while data := await reader.read(100):
        writer.write(data)


@pytest.mark.parametrize("name", ["localhost", "elsewhere.invalid"])
def test_open_connection_speaks_tls_with_the_destination(run: Run, name: str) -> None:
    """The certificate is checked against the destination's name, or the one that was given."""
    authority = trustme.CA()
    server_context, client_context = (ssl.SSLContext(p) for p in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    authority.issue_cert(name).configure_cert(server_context)
    authority.configure_trust(client_context)

    async def main() -> None:
        tls = await asyncio.start_server(once, "127.0.0.1", 0, ssl=server_context)
        port = tls.sockets[0].getsockname()[1]
        async with tls, tabi.Server("socks5://127.0.0.1:0") as server:
            proxy = tabi.Proxy(server.url)
            other = None if name == "localhost" else name
            await talk(*await proxy.open_connection("localhost", port, ssl=client_context, server_hostname=other))
            with pytest.raises(ssl.SSLCertVerificationError):
                await proxy.open_connection("127.0.0.1", port, ssl=client_context)
            with pytest.raises(ssl.SSLCertVerificationError):
                await proxy.open_connection("localhost", port, ssl=True)
            while len(asyncio.all_tasks()) > 1:  # asyncio's server is not at the end of the refused ones yet
                await asyncio.sleep(0)

    run(main)


@pytest.mark.every_hosting
def test_open_connection_cancelled_in_the_tls_handshake_closes_its_socket(run: Run) -> None:
    """The destination sees the end of what it never answered."""

    async def main() -> None:
        reached, ended = asyncio.Event(), asyncio.Event()

        async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read(1) == b"\x16"  # a TLS handshake
            reached.set()
            try:
                while await reader.read(1000):
                    pass
            except ConnectionError:
                pass
            ended.set()

        async with target(stall) as port, tabi.Server("socks5://127.0.0.1:0") as server, asyncio.TaskGroup() as group:
            opening = group.create_task(tabi.Proxy(server.url).open_connection("127.0.0.1", port, ssl=True))
            await reached.wait()
            opening.cancel()
            await ended.wait()

    run(main)


@pytest.mark.every_hosting
def test_no_octet_behind_the_reply_is_lost(run: Run) -> None:
    """A destination that speaks first, in the same segment as the reply, is heard in full."""
    payload = bytes(range(256)) * 100

    async def main() -> None:
        async with target(replying(b"\x05\x00\x00\x01" + bytes(6) + payload)) as port:
            proxy = tabi.Proxy(f"socks5://127.0.0.1:{port}")
            reader, writer = await proxy.open_connection("127.0.0.1", 1)
            assert await reader.readexactly(len(payload)) == payload
            writer.close()
            await writer.wait_closed()

    run(main)


def test_opening_leaves_no_timer_behind(run_once: Run) -> None:
    """A connection that is open has no deadline any more: a client that opens thousands does not collect timers."""

    async def main() -> None:
        async with target() as port, tabi.Server("socks5://127.0.0.1:0") as server:
            proxy = tabi.Proxy(server.url, timeout=1234)
            async with proxy.connect("127.0.0.1", port) as stream:
                await exchange(stream)
                loop = asyncio.get_running_loop()
                timers = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
                assert not [handle for handle in timers if handle.when() > loop.time() + 1000]

    run_once(main)


@pytest.mark.parametrize(
    "urls", [["socks5://alice:hunter2@127.0.0.1:1"], ["socks5://[::1]:1", "socks5://a:hunter2@b:2"]]
)
def test_the_repr_has_the_addresses_and_no_password(urls: list[str]) -> None:
    """It may end up in a log."""
    text = repr(tabi.Proxy(*urls))
    assert text.startswith("Proxy(socks5://")
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:1080", "ftp://127.0.0.1:1", "socks5://", "socks5://h:99999", "socks5://a:hunter2@h:x"]
)
def test_a_wrong_url_is_a_value_error_without_its_password(url: str) -> None:
    """At construction, not at the first use."""
    with pytest.raises(ValueError, match="expected socks5://") as caught:
        tabi.Proxy(url)
    assert "hunter2" not in str(caught.value)


def test_a_proxy_needs_a_url() -> None:
    """None at all is an error too."""
    with pytest.raises(ValueError, match="needs a URL"):
        tabi.Proxy()


@pytest.mark.parametrize("host", ["", "white space", "x" * 256])
def test_a_host_that_is_none_is_a_value_error(host: str) -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match=r"host name|white space"):
        tabi.Proxy("socks5://127.0.0.1:1").connect(host, 1)


@pytest.mark.parametrize("port", [-1, 65536, 70000, True])
def test_a_port_that_is_none_is_a_value_error(port: int) -> None:
    """It is found before anything is opened."""
    with pytest.raises(ValueError, match="is not a port"):
        tabi.Proxy("socks5://127.0.0.1:1").connect("x", port)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_a_value_error(timeout: float) -> None:
    """A deadline is a time to come."""
    with pytest.raises(ValueError, match="timeout"):
        tabi.Proxy("socks5://127.0.0.1:1", timeout=timeout)


@pytest.mark.parametrize("host", [None, 5, b"127.0.0.1"])
def test_what_is_neither_text_nor_an_address_is_a_type_error(host: Any) -> None:
    """It would be asked for as a name otherwise."""
    proxy = tabi.Proxy("socks5://127.0.0.1:1")
    with pytest.raises(TypeError, match="is not a host"):
        proxy.connect(host, 1)
    if host is not None:  # anyone
        with pytest.raises(TypeError, match="is not a host"):
            proxy.bind(host)


# --- bind ---


def test_a_bind_that_nobody_awaits_does_nothing(run: Run) -> None:
    """No connection is opened. Python warns, as it does for every coroutine that is forgotten."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server:
            with pytest.warns(RuntimeWarning, match=r"coroutine 'Proxy.listen' was never awaited"):
                tabi.Proxy(server.url).bind("127.0.0.1")
            assert not server.parts.sessions.running

    run(main)


def test_a_bind_through_a_chain(run: Run) -> None:
    """The last proxy listens; the way there is a CONNECT through the others, each with its user."""
    first_seen: list[tabi.Session] = []
    second_seen: list[tabi.Session] = []

    async def main() -> None:
        async with (
            tabi.Server("socks5://127.0.0.1:0", users={"a": "1"}, on_close=first_seen.append) as first,
            tabi.Server("socks5://127.0.0.1:0", users={"b": "2"}, on_close=second_seen.append) as second,
        ):
            async with (
                tabi.Proxy(first.url, second.url).bind("127.0.0.1") as listener,
                caller(listener.address) as (reader, _),
                await listener.accept() as stream,
            ):
                await stream.send_all(b"hello")
                assert await reader.readexactly(5) == b"hello"
            await second.drain()
            await first.drain()

    run(main)
    assert [(session.user, session.command) for session in first_seen] == [("a", "connect")]
    assert [(session.user, session.command) for session in second_seen] == [("b", "bind")]


@pytest.mark.parametrize("command", ["bind", "associate"])
def test_a_reset_behind_the_reply_is_a_reset(run_once: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """The system then no longer knows who the proxy was (ENOTCONN)."""
    ask = Socks5.ask_over

    async def ask_and_be_reset(self: Socks5, *arguments: Any) -> Any:
        asked = await ask(self, *arguments)
        released.set()
        with pytest.raises(ConnectionResetError):
            await asked.stream.receive()
        return asked

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take_request(reader, writer)
        writer.write(SUCCESS + bytes(4) + b"\x10\x00")
        await released.wait()
        reset(writer)

    async def main() -> None:
        async with target(answer) as port:
            proxy = tabi.Proxy(f"socks5://localhost:{port}")
            with pytest.raises(tabi.ProxyError, match="the proxy has reset the connection"):
                await (proxy.bind() if command == "bind" else proxy.associate())

    released = asyncio.Event()
    monkeypatch.setattr(Socks5, "ask_over", ask_and_be_reset)
    run_once(main)


# --- associations ---


class Associator:
    """A proxy that knows one request, UDP ASSOCIATE, and its relay, which is in the test's hands."""

    def __init__(self, host: str) -> None:
        self.relay = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.relay.setblocking(False)
        self.relay.bind((host, 0))
        self.bound: Address | None = None
        self.reply_code = 0
        self.ended = asyncio.Event()
        self.url = ""

    @property
    def port(self) -> int:
        """That of the relay."""
        return int(self.relay.getsockname()[1])

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(3) == GREETING
        writer.write(b"\x05\x00")
        assert await reader.readexactly(10) == request("0.0.0.0", 0, 3)
        bound = self.bound or Address(parse_address("0.0.0.0:0").host, self.port)
        writer.write(b"\x05%c\x00" % self.reply_code + encode_address(bound))
        assert await reader.read() == b""
        self.ended.set()

    async def exchange(self, association: tabi.Association) -> None:
        """A datagram each way, and where the first one came from."""
        loop = asyncio.get_running_loop()
        await association.send(b"question", ("example.com", 53))
        data, client = await loop.sock_recvfrom(self.relay, 65536)
        assert data == encode_header(Address("example.com", 53)) + b"question"
        await loop.sock_sendto(self.relay, encode_header(parse_address("192.0.2.1:53")) + b"answer", client)
        assert await association.receive() == (b"answer", parse_address("192.0.2.1:53"))


@contextlib.asynccontextmanager
async def associator(host: str = "127.0.0.1") -> AsyncIterator[Associator]:
    """Such a proxy, running."""
    double = Associator(host)
    with double.relay:
        async with target(double, host) as port:
            double.url = f"socks5://[{host}]:{port}" if ":" in host else f"socks5://{host}:{port}"
            yield double


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("bound", [None, "0.0.0.0", "[::]", "itself", "localhost"])
def test_an_association_goes_to_the_relay_that_the_proxy_names(run: Run, bound: str | None, host: str) -> None:
    """An address as it is, an unspecified one means the proxy's own, and a name is resolved here."""

    async def main() -> None:
        async with associator(host) as proxy:
            if bound is not None:
                text = bound if bound != "itself" else f"[{host}]" if ":" in host else host
                if text == "localhost":
                    asyncio.get_running_loop().getaddrinfo = resolve_to(host)  # type: ignore[method-assign]
                proxy.bound = parse_address(f"{text}:{proxy.port}")
            async with tabi.Proxy(proxy.url).associate() as association:
                await proxy.exchange(association)
            await proxy.ended.wait()

    run(main)


def resolve_to(*hosts: str) -> Any:
    """A ``getaddrinfo`` that knows only these addresses."""

    async def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (host, 0)) for host in hosts]

    return getaddrinfo


@pytest.mark.parametrize("bound", ["[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]"])
def test_a_relay_may_be_ipv4_inside_ipv6(run: Run, bound: str) -> None:
    """As a dual-stack proxy gives it."""

    async def main() -> None:
        async with associator() as proxy:
            proxy.bound = parse_address(f"{bound}:{proxy.port}")
            async with tabi.Proxy(proxy.url).associate() as association:
                await proxy.exchange(association)

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("found", [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
def test_of_a_relays_addresses_the_proxys_family_is_taken(run_once: Run, host: str, found: tuple[str, ...]) -> None:
    """The relay expects us from the address that the proxy knows us by."""

    async def main() -> None:
        async with associator(host) as proxy:
            proxy.bound = Address("relay.invalid", proxy.port)
            asyncio.get_running_loop().getaddrinfo = resolve_to(*found)  # type: ignore[method-assign]
            async with tabi.Proxy(proxy.url).associate() as association:
                await proxy.exchange(association)

    run_once(main)


@pytest.mark.every_hosting
def test_an_awaited_association_is_closed_by_the_caller(run: Run) -> None:
    """`association = await proxy.associate()`; its close ends the control connection."""

    async def main() -> None:
        async with associator() as proxy:
            association = await tabi.Proxy(proxy.url).associate()
            await proxy.exchange(association)
            assert not proxy.ended.is_set()
            association.close()
            await proxy.ended.wait()

    run(main)


def test_a_refused_association_is_a_proxy_error(run: Run) -> None:
    """With the proxy's reply code."""

    async def main() -> None:
        async with associator() as proxy:
            proxy.reply_code = 7
            with pytest.raises(tabi.ProxyError, match="command not supported") as caught:
                await tabi.Proxy(proxy.url).associate()
            assert caught.value.reply_code == 7

    run(main)


@pytest.mark.parametrize(
    ("bound", "error", "match"),
    [
        ("127.0.0.1:0", tabi.RemoteProtocolError, r"the proxy gives 127\.0\.0\.1:0 for its relay"),
        ("0x7f.invalid.0x1:53", tabi.DialError, "neither an address nor a name"),
        ("255.255.255.255:53", tabi.DialError, "permission denied"),
    ],
)
def test_a_relay_that_nobody_can_reach_is_an_error(
    run: Run, bound: str, error: type[tabi.TabiError], match: str
) -> None:
    """And the control connection is closed."""

    async def main() -> None:
        async with associator() as proxy:
            proxy.bound = parse_address(bound)
            with pytest.raises(error, match=match):
                await tabi.Proxy(proxy.url).associate()
            await proxy.ended.wait()

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("through", [False, True])
def test_a_proxy_that_does_not_say_its_address(run: Run, host: str, through: bool) -> None:
    """BND 0.0.0.0 means the proxy's own address: that of its URL, or what its name stood for when it was reached."""

    async def main() -> None:
        async with (
            target(replying(SUCCESS + bytes(4) + b"\x10\x00")) as port,
            tabi.Server("socks5://127.0.0.1:0") as server,
        ):
            urls = [server.url] * through + [f"socks5://{host}:{port}"]
            async with tabi.Proxy(*urls).bind() as listener:
                assert str(listener.address) == f"{host if through else '127.0.0.1'}:4096"

    run(main)


def test_the_name_of_a_relay_has_the_proxys_deadline(run_once: Run) -> None:
    """A resolver that does not answer is given up."""

    async def main() -> None:
        async def never(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        async with associator() as proxy:
            proxy.bound = Address("relay.invalid", 53)
            asyncio.get_running_loop().getaddrinfo = never  # type: ignore[assignment]
            with pytest.raises(tabi.DialError, match=r"relay\.invalid: no answer within 0\.2 s"):
                await tabi.Proxy(proxy.url, timeout=0.2).associate()
            await proxy.ended.wait()

    run_once(main)


def test_an_association_cancelled_while_it_opens_closes_its_connection(run: Run) -> None:
    """A proxy that never answers sees the end."""

    async def main() -> None:
        reached, ended = asyncio.Event(), asyncio.Event()

        async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(3)
            reached.set()
            assert await reader.read() == b""
            ended.set()

        async with target(stall) as port, asyncio.TaskGroup() as group:
            opening = group.create_task(tabi.Proxy(f"socks5://127.0.0.1:{port}").open_association())
            await reached.wait()
            opening.cancel()
            await ended.wait()

    run(main)


def test_a_peer_that_is_no_host_is_a_value_error() -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match="white space"):
        tabi.Proxy("socks5://127.0.0.1:1").bind("white space")


def test_a_chain_asks_every_proxy_for_an_association(run: Run) -> None:
    """The second through the first; a datagram bears a header for each, and goes to the first one's relay."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The first proxy: an association of its own, then a CONNECT to the second."""
        assert await reader.readexactly(3) == GREETING
        writer.write(b"\x05\x00")
        if await reader.readexactly(2) == b"\x05\x03":
            await reader.readexactly(8)
            writer.write(b"\x05\x00\x00" + encode_address(parse_address(f"127.0.0.1:{relay.getsockname()[1]}")))
            assert await reader.read() == b""
            return
        assert await reader.readexactly(8) == request("127.0.0.1", 1080)[2:]
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await second(reader, writer)

    second = Associator("127.0.0.1")
    second_url = "socks5://127.0.0.1:1080"
    second.bound = parse_address("192.0.2.2:1002")
    relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    relay.bind(("127.0.0.1", 0))
    relay.setblocking(False)

    async def main() -> None:
        async with target(pass_on) as port:
            async with tabi.Proxy(f"socks5://127.0.0.1:{port}", second_url).associate() as association:
                await association.send(b"question", ("example.com", 53))
                data = await asyncio.get_running_loop().sock_recv(relay, 65536)
                headers = (encode_header(address) for address in (second.bound, Address("example.com", 53)) if address)
                assert data == b"".join(headers) + b"question"
            await second.ended.wait()

    second.relay.close()
    with relay:
        run(main)


# --- associations with servers of ours ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.every_hosting
def test_datagrams_of_every_size_come_back(run: Run, host: str) -> None:
    """Whole, from the destination's address; a name is the proxy's to resolve, and the answer says what it found."""
    there = "127.0.0.1" if host == "localhost" else host

    async def main() -> None:
        async with (
            datagram_target(host=there) as port,
            tabi.Server("socks5://127.0.0.1:0") as server,
            tabi.Proxy(server.url).associate() as association,
        ):
            for size in (0, 1, 1472, 9000, 60000):
                payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
                await association.send(payload, (host, port))
                data, address = await association.receive()
                assert (data, str(address.host), address.port) == (payload, there, port)
            assert association.dropped == 0

    run(main)


def test_an_association_over_ipv6(run: Run) -> None:
    """The proxy itself is at ::1."""

    async def main() -> None:
        async with (
            datagram_target() as port,
            tabi.Server("socks5://[::1]:0") as server,
            tabi.Proxy(server.url).associate() as association,
        ):
            await association.send(b"hello", ("127.0.0.1", port))
            assert (await association.receive())[0] == b"hello"

    run(main)


def test_one_association_has_many_destinations(run: Run) -> None:
    """Each answer comes with the address that it is from; a window of them is under way at a time."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            ports = [await stack.enter_async_context(datagram_target()) for _ in range(20)]
            server = await stack.enter_async_context(tabi.Server("socks5://127.0.0.1:0"))
            association = await stack.enter_async_context(tabi.Proxy(server.url).associate())
            for turn in range(10):
                for port in ports:
                    await association.send(b"%d %d" % (turn, port), ("127.0.0.1", port))
                received = {await association.receive() for _ in ports}
                assert received == {(b"%d %d" % (turn, port), parse_address(f"127.0.0.1:{port}")) for port in ports}

    run(main)


def test_an_association_through_a_chain_of_servers(run: Run) -> None:
    """Each with its own user; datagrams pass all three and come back, and all of it ends with the close."""
    sessions: list[tabi.Session] = []

    async def main() -> None:
        async with (
            datagram_target() as port,
            tabi.Server("socks5://127.0.0.1:0", users={"a": "1"}, on_close=sessions.append) as first,
            tabi.Server("socks5://127.0.0.1:0", users={"b": "2"}, on_close=sessions.append) as second,
            tabi.Server("socks5://127.0.0.1:0", users={"c": "3"}, on_close=sessions.append) as third,
        ):
            async with tabi.Proxy(first.url, second.url, third.url).associate() as association:
                for size in (0, 1, 1472, 60000):
                    await association.send(bytes(size), ("localhost", port))
                    assert await association.receive() == (bytes(size), parse_address(f"127.0.0.1:{port}"))
            for server in (third, second, first):
                await server.drain()

    run(main)
    carried = sorted((session.user, session.datagrams_up) for session in sessions if session.command == "associate")
    assert carried == [("a", 4), ("b", 4), ("c", 4)]


def test_a_server_that_stops_ends_the_association(run: Run) -> None:
    """Who waits is told."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server:
            association = await tabi.Proxy(server.url).associate()
        with pytest.raises(ConnectionResetError, match="the proxy has ended the association"):
            await association.receive()
        association.close()

    run(main)


@contextlib.asynccontextmanager
async def answering(names: bool = True) -> AsyncIterator[tabi.Server]:
    """A proxy that knows two names both ways, and may be asked."""
    hosts = {"name.test": ["93.184.216.34"], "six.test": ["2606:4700::1"]}
    async with udp_server(Zone()) as port:
        config = make_config(
            {
                "log": {"access": "none"},
                "listen": [{"url": "socks5://127.0.0.1:0", "resolve_commands": names}],
                "resolver": {"hosts": hosts, "servers": [f"udp://127.0.0.1:{port}"]},
            }
        )
        async with tabi.Server(config=config) as server:
            yield server


def test_names_and_addresses_are_asked_of_the_proxy(run: Run) -> None:
    """Of the last one of a chain, whatever those before it speak; both kinds of addresses, as text and as objects."""

    async def main() -> None:
        async with answering() as last, tabi.Server("http://127.0.0.1:0") as first:
            for proxy in (tabi.Proxy(last.url), tabi.Proxy(first.url, last.url)):
                assert await proxy.resolve("name.test") == ip_address("93.184.216.34")
                assert await proxy.resolve("six.test") == ip_address("2606:4700::1")
                assert await proxy.resolve("192.0.2.9") == ip_address("192.0.2.9")
                assert await proxy.resolve_ptr("93.184.216.34") == "name.test"
                assert await proxy.resolve_ptr(ip_address("2606:4700::1")) == "six.test"

    run(main)


def test_what_the_proxy_does_not_know_or_does_not_answer(run_once: Run) -> None:
    """Its reply is the error: 04, and 07 where it has no such commands."""

    async def main() -> None:
        async with answering() as server, answering(names=False) as without:
            for url, reply_code in ((server.url, 4), (without.url, 7)):
                for question in (tabi.Proxy(url).resolve("other.test"), tabi.Proxy(url).resolve_ptr("192.0.2.9")):
                    with pytest.raises(tabi.ProxyError) as caught:
                        await question
                    assert caught.value.reply_code == reply_code

    run_once(main)


def test_questions_that_cannot_be_asked(run_once: Run) -> None:
    """What is no name or no address, and a proxy that does not speak SOCKS5: before anything is connected to."""

    async def main() -> None:
        proxy = tabi.Proxy("socks5://127.0.0.1:1")
        with pytest.raises(ValueError, match="1 to 255 octets"):
            await proxy.resolve("")
        with pytest.raises(ValueError, match=r"'name\.test' is not an address"):
            await proxy.resolve_ptr("name.test")
        for question in (
            tabi.Proxy("http://alice:secret@127.0.0.1:1").resolve("a"),
            tabi.Proxy("socks5://127.0.0.1:1", "socks4://127.0.0.1:2").resolve_ptr("::1"),
        ):
            with pytest.raises(ValueError, match=r"are asked of SOCKS5, and \w+://127.0.0.1:\d speaks something else"):
                await question

    run_once(main)


@pytest.mark.parametrize(
    ("octets", "reverse"),
    [
        (b"\x05\0\0\x03\x09name.test\0\0", False),
        (b"\x05\0\0\x01\xc0\0\x02\x01\0\0", True),
        (b"\x05\0\0\x03\x05<a>.b\0\0", True),
        (b"\x05\0\0\x03\x05a b.c\0\0", True),
    ],
)
def test_an_answer_that_is_none(run_once: Run, octets: bytes, reverse: bool) -> None:
    """A proxy may say anything: a name is one that can be used, an address is one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"\x05\x00")
        await reader.readexactly(4)
        writer.write(octets)
        await reader.read()

    async def main() -> None:
        async with target(serve) as port:
            proxy = tabi.Proxy(f"socks5://127.0.0.1:{port}")
            with pytest.raises(tabi.RemoteProtocolError):
                await (proxy.resolve_ptr("192.0.2.1") if reverse else proxy.resolve("name.test"))

    run_once(main)


def test_the_proxy_of_the_environment(run: Run) -> None:
    """ALL_PROXY names the proxy; what NO_PROXY has, and everything where there is none, is connected to directly."""

    async def main() -> None:
        sessions: asyncio.Queue[tabi.Session] = asyncio.Queue()
        async with target() as port, tabi.Server("socks5://127.0.0.1:0", on_close=sessions.put_nowait) as server:
            for environ, through in (
                ({"ALL_PROXY": server.url}, True),
                ({"all_proxy": server.url.replace("socks5", "socks5h")}, True),
                ({"ALL_PROXY": server.url, "NO_PROXY": "localhost,10.0.0.0/8"}, True),
                ({"ALL_PROXY": server.url, "NO_PROXY": "127.0.0.0/8"}, False),
                ({}, False),
            ):
                async with tabi.Proxy.from_environment(environ).connect("127.0.0.1", port) as stream:
                    await exchange(stream)
                assert not through or (await sessions.get()).up == 5
                assert sessions.empty()

    run(main)


def test_a_malformed_variable_is_a_value_error_without_its_password() -> None:
    """The message names the variable and what is wrong, and not the value, which may have a password."""
    for value in ("socks5://alice:hunter2@", "gopher://alice:hunter2@a:1", "socks5://alice:hunter2@a:99999"):
        with pytest.raises(ValueError, match=r"^ALL_PROXY: ") as caught:
            tabi.Proxy.from_environment({"ALL_PROXY": value})
        assert "hunter2" not in str(caught.value)


def test_without_a_proxy_there_is_nobody_to_ask() -> None:
    """Listening, datagrams and questions about names need a proxy: that is said at once."""
    proxy = tabi.Proxy.from_environment({})
    assert proxy.urls == ()
    for ask in (proxy.bind, proxy.associate):
        with pytest.raises(ValueError, match="needs a proxy, and ALL_PROXY names none"):
            ask()


def test_a_context_for_proxies_inside_tls(run: Run, tmp_path: Path) -> None:
    """`ssl` trusts what the context trusts, and shows its client certificate; the user is the one that it names."""

    async def main() -> None:
        files = write_server(tmp_path)
        (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
        client_ca = str(tmp_path / "ca.pem")
        listen = Listen(
            "https://127.0.0.1:0", tls=msgspec.structs.replace(files, client_ca=client_ca), users="required"
        )
        context = ssl.create_default_context(cafile=client_ca)
        authority().issue_cert("alice.example", common_name="alice").configure_cert(context)
        ended: asyncio.Queue[tabi.Session] = asyncio.Queue()
        server = tabi.Server(config=config(listen), on_close=ended.put_nowait)
        async with target() as port, server:
            async with tabi.Proxy(server.url, ssl=context).connect("127.0.0.1", port) as stream:
                await exchange(stream)
            assert (await ended.get()).user == "alice"

    run(main)
    with pytest.raises(ValueError, match="ca and ssl: expected one of them"):
        tabi.Proxy("https://127.0.0.1", ca="/nowhere", ssl=ssl.create_default_context())
    with pytest.raises(ValueError, match=r"ssl is bool, expected an ssl.SSLContext"):
        tabi.Proxy("https://127.0.0.1", ssl=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["socks5", "socks4", "http"])
def test_a_ping_asks_the_last_proxy(run: Run, scheme: str) -> None:
    """Through the others; it says what was answered."""

    async def main() -> list[str]:
        async with tabi.Server("mixed://127.0.0.1:0") as server:
            port = server.addresses[0].port
            url = f"{scheme}://127.0.0.1:{port}"
            return [await tabi.Proxy(*urls).ping() for urls in ((url,), (f"socks5://127.0.0.1:{port}", url))]

    assert run(main) == [{"socks5": "no authentication", "socks4": "reply 91", "http": "200 OK"}[scheme]] * 2


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_a_ping_tries_the_password(run: Run, scheme: str) -> None:
    """One that is wrong, or missing, is an AuthError: whoever asks wants to know whether the proxy can be used."""

    async def main() -> str:
        async with tabi.Server("mixed://127.0.0.1:0", users={"alice": "secret"}) as server:
            place = f"127.0.0.1:{server.addresses[0].port}"
            for user in ("", "alice:herring@"):
                with pytest.raises(tabi.AuthError):
                    await tabi.Proxy(f"{scheme}://{user}{place}").ping()
            return await tabi.Proxy(f"{scheme}://alice:secret@{place}").ping()

    assert run(main) == {"socks5": "user name and password", "http": "200 OK"}[scheme]


def test_without_a_proxy_there_is_nothing_to_ping(run_once: Run) -> None:
    """As for all that a proxy has to do."""
    with pytest.raises(ValueError, match="a ping needs a proxy"):
        run_once(tabi.Proxy.from_environment({}).ping)
