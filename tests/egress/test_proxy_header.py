"""The PROXY header toward destinations: what it says, that it comes first, and what becomes of failures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

import msgspec
import pytest

from conftest import Run
from doubles import LOOPBACK, FakeResolver, client_from, config, greet, open_bind, open_tunnel, read_reply
from support import client, closed_port, permit_outer, request, target, tunnel
from tabi import Config, DialError, PolicyDenied, Proxy, Server, Session
from tabi.config import EgressConfig, Listen
from tabi.egress import base
from tabi.egress.direct import Direct
from tabi.egress.proxy_header import SendProxyHeader
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address
from tabi.session import UNIX
from tabi.wire.address import Address, parse_address
from tabi.wire.proxy_protocol import ProxyHeader, decode_header

Version = Literal[1, 2]
VERSIONS: tuple[Version, ...] = (1, 2)
NAMES = {"here.test": ["127.0.0.1"], "here6.test": ["::1"]}


class Receiver:
    """A destination that reads a header and sends everything behind it back."""

    def __init__(self) -> None:
        self.headers: asyncio.Queue[ProxyHeader] = asyncio.Queue()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b""
        while (found := decode_header(data)) is None:
            octet = await reader.read(1)
            assert octet, f"ended after {data!r}"
            data += octet
        self.headers.put_nowait(found[0])
        while data := await reader.read(65536):
            writer.write(data)
        writer.write_eof()


def settings(version: Version, *listen: Listen) -> Config:
    """A configuration that sends the header."""
    return msgspec.structs.replace(config(*listen), egress={"direct": EgressConfig(version)})


@contextlib.asynccontextmanager
async def egress(version: Version, host: str = "127.0.0.1") -> AsyncIterator[tuple[SendProxyHeader, Receiver, int]]:
    """An egress by itself, and a destination on ``host``."""
    receiver = Receiver()
    dialer = Dialer(get_reactor(), FakeResolver(NAMES), 10)
    async with target(receiver, host) as port:
        yield SendProxyHeader(Direct(dialer), version), receiver, port
    await dialer.close()


def session_of(client: str) -> Session:
    """A session of a client."""
    return Session(1, LOOPBACK, Address(UNIX, 1000) if client == UNIX else parse_address(client), 0.0)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("source", "host", "dialled"),
    [
        ("203.0.113.9:50000", "127.0.0.1", "127.0.0.1"),
        ("203.0.113.9:50000", "here.test", "127.0.0.1"),
        ("[2001:db8::9]:50000", "::1", "::1"),
        ("[2001:db8::9]:50000", "here6.test", "::1"),
        ("[2001:db8::9]:50000", "127.0.0.1", "127.0.0.1"),
        ("203.0.113.9:50000", "::1", "::1"),
    ],
)
def test_the_header_has_the_client_and_the_address_dialled(
    run: Run, version: Version, source: str, host: str, dialled: str
) -> None:
    """Of a name the address that it stood for; of mixed families both arrive as what they are."""

    async def main() -> None:
        async with egress(version, dialled) as (way, receiver, port):
            destination = parse_address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            async with await way.open(destination, allow_any_address, session_of(source)) as stream:
                await stream.send_all(b"ping")
                assert await stream.receive() == b"ping"
            header = await receiver.headers.get()
            there = parse_address(f"[{dialled}]:{port}" if ":" in dialled else f"{dialled}:{port}")
            assert (header.version, header.local) == (version, False)
            assert (header.source, header.destination) == (parse_address(source), there)

    run(main)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", [UNIX, None])
def test_a_client_without_an_ip_address_is_nobody(run: Run, version: Version, source: str | None) -> None:
    """Whoever came through a unix socket, or nobody at all: UNKNOWN or LOCAL, which every receiver takes."""

    async def main() -> None:
        async with egress(version) as (way, receiver, port):
            session = source and session_of(source)
            async with await way.open(parse_address(f"127.0.0.1:{port}"), allow_any_address, session or None):
                header = await receiver.headers.get()
                assert (header.version, header.local, header.source) == (version, True, None)

    run(main)


def test_failures_are_those_of_the_way_below(run: Run) -> None:
    """Refused, forbidden, unknown: as without the header."""

    async def main() -> None:
        async with egress(1) as (way, receiver, port):
            assert way.name == "direct"
            session = session_of("203.0.113.9:1")
            with closed_port() as closed, pytest.raises(DialError, match="refused"):
                await way.open(parse_address(f"127.0.0.1:{closed}"), allow_any_address, session)
            with pytest.raises(PolicyDenied):
                await way.open(parse_address(f"127.0.0.1:{port}"), permit_outer, session)
            with pytest.raises(DialError, match="not found"):
                await way.open(Address("nowhere.test", 80), allow_any_address, session)
            assert receiver.headers.empty()

    run(main)


@pytest.mark.parametrize("call", ["getpeername", "send"])
def test_a_destination_that_is_gone_before_the_header(run: Run, call: str) -> None:
    """Reset between the connection and the header: it is closed, and the failure is one of connecting."""

    class Gone:
        """A socket on which a call fails."""

        def __init__(self, stream: Stream) -> None:
            self.sock = stream.sock

        def __getattr__(self, name: str) -> object:
            def fail(*arguments: object) -> None:
                raise ConnectionResetError(104, "Connection reset by peer")

            return fail if name == call else getattr(self.sock, name)

    class Below(base.Egress):
        name = "below"

        def __init__(self, below: Direct) -> None:
            self.below = below
            self.opened: list[Stream] = []

        async def open(self, destination: Address, address_filter: object, session: Session | None = None) -> Stream:
            stream = await self.below.open(destination, allow_any_address)
            stream.sock = Gone(stream)  # type: ignore[assignment]
            self.opened.append(stream)
            return stream

    async def main() -> None:
        dialer = Dialer(get_reactor(), FakeResolver(), 10)
        async with target() as port:
            below = Below(Direct(dialer))
            with pytest.raises(DialError, match="reset") as caught:
                await SendProxyHeader(below, 2).open(parse_address(f"127.0.0.1:{port}"), allow_any_address)
            assert caught.value.reply_code == 5
            assert [stream.fd for stream in below.opened] == [-1]
        await dialer.close()

    run(main)


# --- in a server ---


@pytest.mark.parametrize("version", VERSIONS)
def test_early_data_comes_behind_the_header(run: Run, version: Version) -> None:
    """What the client sends with its request does not overtake it; ``up`` counts payload only."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        receiver = Receiver()
        async with (
            Server(config=settings(version), on_close=ended.put_nowait) as server,
            target(receiver) as port,
        ):
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(b"\x05\x01\x00" + request("127.0.0.1", port) + b"early")
                writer.write_eof()
                assert (await reader.read())[12:] == b"early"
                own = writer.get_extra_info("sockname")
            header = await receiver.headers.get()
            assert header.source == parse_address(f"{own[0]}:{own[1]}")
            session = await ended.get()
            assert (session.via, session.up, session.down, session.error) == ("direct", 5, 5, None)

    run(main)


def test_without_the_key_there_is_no_header(run: Run) -> None:
    """0 and absence are the same: the first octet is the client's."""

    async def main() -> None:
        for egresses in ({}, {"direct": EgressConfig()}, {"direct": EgressConfig(0)}):
            configured = msgspec.structs.replace(config(), egress=egresses)
            async with (
                Server(config=configured) as server,
                target() as port,
                tunnel(server.addresses[0], port) as (reader, writer),
            ):
                writer.write(b"x")
                assert await reader.read(100) == b"x"

    run(main)


def test_bind_has_no_header(run: Run) -> None:
    """The peer that calls is nobody that the proxy has connected to."""

    async def main() -> None:
        async with Server(config=settings(1)) as server, client(server.addresses[0]) as streams:
            bound = await open_bind(streams)
            async with client(bound) as (far_reader, _):
                assert (await read_reply(streams[0]))[0] == 0
                streams[1].write(b"x")
                assert await far_reader.read(100) == b"x"

    run(main)


def test_through_the_client_it_is_the_proxy_that_sends(run: Run) -> None:
    """`Proxy` as a client of such a server gets a stream without a header in it."""

    async def main() -> None:
        receiver = Receiver()
        async with (
            Server(config=settings(2)) as server,
            target(receiver) as port,
            Proxy(server.url).connect("127.0.0.1", port) as stream,
        ):
            await stream.send_all(b"ping")
            assert await stream.receive() == b"ping"

    run(main)


@pytest.mark.parametrize("version", VERSIONS)
def test_tabi_behind_tabi(run: Run, version: Version) -> None:
    """One sends, the other trusts it: the client's address arrives, and the second guards against the client."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        second = config(Listen("mixed://127.0.0.1:0", proxy_protocol=["127.0.0.1"]))
        async with (
            Server(config=second, on_close=ended.put_nowait, open=True) as inner,
            Server(config=settings(version)) as outer,
            target() as port,
        ):
            there = inner.addresses[0]
            async with client(outer.addresses[0], "127.0.0.5") as streams:
                await open_tunnel(streams, there)
                await open_tunnel(streams, parse_address(f"127.0.0.1:{port}"))
                streams[1].write(b"ping")
                assert await streams[0].readexactly(4) == b"ping"
                own = streams[1].get_extra_info("sockname")
            session = await ended.get()
            assert (str(session.client.host), session.client.port) == own

    run(main)


def test_tabi_behind_tabi_guards_against_the_client(run: Run) -> None:
    """A client from outside, let through to the second by the first, gets at nothing inner there."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        second = config(Listen("socks5://127.0.0.1:0", proxy_protocol=["127.0.0.1"]))
        async with Server(config=second, on_close=ended.put_nowait, open=True) as inner:
            dialer = Dialer(get_reactor(), FakeResolver(), 10)
            way = SendProxyHeader(Direct(dialer), 2)
            async with await way.open(inner.addresses[0], allow_any_address, session_of("203.0.113.9:50000")) as stream:
                await stream.send_all(b"\x05\x01\x00" + request("127.0.0.1", 80))
                while b"\x05\x02\x00\x01" not in (data := await stream.receive()):
                    assert data == b"\x05\x00"
            session = await ended.get()
            assert (str(session.client), session.close) == ("203.0.113.9:50000", "denied")
            await dialer.close()

    run(main)


def test_the_guard_stays_in_front(run: Run) -> None:
    """A header is no way around the rules of the server that sends it."""

    async def main() -> None:
        async with Server(config=settings(1)) as server, client_from(server, "203.0.113.9") as streams:
            assert await greet(streams) == 0
            streams[1].write(request("127.0.0.1", 80))
            assert (await read_reply(streams[0]))[0] == 2

    run(main)
