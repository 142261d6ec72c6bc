"""What all ways out through a proxy share: the guard, addresses that were decided on, and TLS with the proxy."""

from __future__ import annotations

import asyncio
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authorities import authority, client_certificate, client_context, write_server
from conftest import Run
from doubles import LOOPBACK, config, reset
from support import closed_port, permit_outer, target
from tabi import Proxy, Server, Session
from tabi.config import Config, Listen
from tabi.egress.chain import make_chain, make_context
from tabi.egress.direct import Direct
from tabi.errors import DialError, PolicyDenied, ProxyError, RemoteProtocolError
from tabi.net.dial import AddressFilter, Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.net.tls import get_tls_shared
from tabi.policy.guard import allow_any_address
from tabi.url import parse_url
from tabi.wire.address import UNSPECIFIED, Address, parse_address

PROTOCOLS = ["socks5", "socks4", "http"]
INSIDE_TLS = ["socks5+tls", "socks4+tls", "https"]


async def open_through(
    *urls: str,
    destination: Address,
    address_filter: AddressFilter = allow_any_address,
    session: Session | None = None,
    seconds: float = 10,
    ca: str | None = None,
) -> Stream:
    """Open through a chain as a server does."""
    dialer = Dialer(get_reactor(), ThreadResolver(), seconds)
    proxies = [parse_url(url) for url in urls]
    contexts = [make_context(url, ca) for url in proxies]
    try:
        egress = make_chain(proxies, contexts, Direct(dialer), dialer.deadlines, get_tls_shared(), optimistic=True)
        return await egress.open(destination, address_filter, session)
    finally:
        await dialer.close()


async def talk(stream: Stream) -> None:
    """Send and get the same back; then both directions end."""
    async with stream:
        await stream.send_all(b"ping")
        assert await stream.receive() == b"ping"
        stream.send_eof()
        assert await stream.receive() == b""


def secured(folder: Path) -> tuple[Config, str]:
    """The configuration of a server inside TLS on three ports, one for each protocol; and its authority's file."""
    tls = write_server(folder)
    ca = folder / "authority.pem"
    ca.write_bytes(authority().cert_pem.bytes())
    return config(*(Listen(f"{scheme}://127.0.0.1:0", tls=tls) for scheme in INSIDE_TLS)), str(ca)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("host", ["10.0.0.1", "::1", "127.1", "0x7f000001"])
def test_the_guard_sees_what_is_an_address(run_once: Run, protocol: str, host: str) -> None:
    """Also one that is written as a number, which the proxy would take for an address; the proxy is not reached."""

    async def main() -> None:
        address = Address(ip_address(host) if host[:2] in ("10", "::") else host, 80)
        with closed_port() as port, pytest.raises(PolicyDenied, match="guard: "):
            await open_through(f"{protocol}://127.0.0.1:{port}", destination=address, address_filter=permit_outer)

    run_once(main)


def test_the_guard_does_not_look_at_the_proxy(run_once: Run) -> None:
    """Who runs the server has said where that is; what a number that is no address is, is found out here."""

    async def main() -> None:
        async with Server("socks5://127.0.0.1:0") as server:
            with pytest.raises(ProxyError):
                await open_through(server.url, destination=Address("nowhere.invalid", 80), address_filter=permit_outer)
            with pytest.raises(DialError, match="neither an address nor a name"):
                await open_through(server.url, destination=Address("1.2.3.4.5", 80), address_filter=permit_outer)

    run_once(main)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_name_that_was_decided_on_is_asked_for_as_its_address(run_once: Run, protocol: str) -> None:
    """The proxy could find another one; of several the first of IPv4, which every proxy can say. Each is permitted."""
    sessions: list[Session] = []

    async def main() -> None:
        request = Session(1, "socks5://127.0.0.1:1", UNSPECIFIED, 0.0)
        request.addresses = [ip_address("::1"), ip_address("127.0.0.1")]
        async with target() as port, Server(f"{protocol}://127.0.0.1:0", on_close=sessions.append) as server:
            request.destination = destination = Address("example.com", port)
            await talk(await open_through(server.url, destination=destination, session=request))
            with pytest.raises(PolicyDenied):
                await open_through(server.url, destination=destination, session=request, address_filter=permit_outer)
            await server.drain()
        assert [str(session.destination) for session in sessions] == [f"127.0.0.1:{port}"]

    run_once(main)


# --- TLS ---


@pytest.mark.parametrize("index", range(3), ids=INSIDE_TLS)
def test_a_proxy_inside_tls(run: Run, tmp_path: Path, index: int) -> None:
    """Every protocol, with the authorities of a file; the server says that it was TLS."""
    sessions: list[Session] = []
    setting, ca = secured(tmp_path)

    async def main() -> None:
        async with target() as port, Server(config=setting, on_close=sessions.append) as server:
            url = server.urls[index].replace("127.0.0.1", "localhost")
            await talk(await open_through(url, destination=Address("localhost", port), ca=ca))
            await server.drain()

    run(main)
    assert [(session.protocol, session.up, session.down) for session in sessions] == [(INSIDE_TLS[index], 4, 4)]


@pytest.mark.every_hosting
def test_tls_inside_tls_inside_tls(run: Run, tmp_path: Path) -> None:
    """A chain of proxies that all speak TLS: each one's handshake goes through the one before."""
    setting, ca = secured(tmp_path)

    async def main() -> None:
        async with target() as port, Server(config=setting) as server:
            await talk(await open_through(*server.urls, destination=parse_address(f"127.0.0.1:{port}"), ca=ca))

    run(main)


def test_a_certificate_of_somebody_else(run_once: Run, tmp_path: Path) -> None:
    """The system trusts nobody like that, and the handshake says so; nothing was asked for."""
    setting, _ = secured(tmp_path)

    async def main() -> None:
        async with Server(config=setting) as server:
            for url in server.urls:
                with pytest.raises(RemoteProtocolError, match="unable to get local issuer"):
                    await open_through(url, destination=parse_address("127.0.0.1:1"))

    run_once(main)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing until the peer ends."""
    await reader.read()


def test_the_deadline_is_over_the_handshake_too(run_once: Run, tmp_path: Path) -> None:
    """A proxy that does not even speak TLS is given up in the same time."""

    async def main() -> None:
        async with target(silent) as port:
            with pytest.raises(ProxyError, match=r"did not answer within 0\.05 s"):
                await open_through(f"https://127.0.0.1:{port}", destination=parse_address("a:1"), seconds=0.05)

    run_once(main)


def test_a_proxy_that_speaks_no_tls(run_once: Run) -> None:
    """A URL with the wrong scheme is found out by the first octet."""

    async def main() -> None:
        async with Server("http://127.0.0.1:0") as server:
            url = server.url.replace("http:", "https:")
            with pytest.raises(RemoteProtocolError, match="expected TLS"):
                await open_through(url, destination=parse_address("a:1"))

    run_once(main)


# --- within a server ---


@pytest.mark.parametrize("index", range(6))
def test_a_server_goes_out_through_a_proxy(run: Run, tmp_path: Path, index: int) -> None:
    """What its client asks for is opened through the proxy and carried by a relay, in bulk and to both ends."""
    tls = write_server(tmp_path)
    ca = tmp_path / "authority.pem"
    ca.write_bytes(authority().cert_pem.bytes())
    listeners = [Listen(f"{scheme}://127.0.0.1:0") for scheme in PROTOCOLS]
    listeners += [Listen(f"{scheme}://127.0.0.1:0", tls=tls) for scheme in INSIDE_TLS]
    data = bytes(range(256)) * 8000

    async def main() -> None:
        async with (
            target() as port,
            Server(config=config(*listeners)) as outer,
            Server("socks5://127.0.0.1:0") as server,
        ):
            url = parse_url(outer.urls[index])
            contexts = [make_context(url, str(ca))]
            egress = make_chain(
                [url],
                contexts,
                Direct(server.parts.gate.dialer),
                server.parts.gate.dialer.deadlines,
                get_tls_shared(),
                optimistic=True,
            )
            server.parts.gate.replace(server.parts.gate.policy, {"direct": egress})
            for host in ("127.0.0.1", "localhost"):
                async with Proxy(server.url).connect(host, port) as stream, asyncio.TaskGroup() as group:
                    group.create_task(stream.send_all(data))
                    received = bytearray()
                    while len(received) < len(data):
                        received += await stream.receive()
                    assert received == data
                    stream.send_eof()
                    assert await stream.receive() == b""
            with closed_port() as nobody, pytest.raises(ProxyError) as caught:
                await Proxy(server.url).connect("127.0.0.1", nobody)
            assert caught.value.reply_code == (1 if url.protocol == "socks4" else 5)

    run(main)


def test_a_proxy_that_is_silent_or_breaks_is_a_reply(run_once: Run) -> None:
    """Whatever happens on the way out, the client of a server is told something."""

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        reset(writer)

    async def main() -> None:
        for handler in (silent, breaks):
            async with target(handler) as port, Server("socks5://127.0.0.1:0") as server:
                url = parse_url(f"http://127.0.0.1:{port}")
                short = FixedTimeouts(asyncio.get_running_loop(), 0.05)
                egress = make_chain([url], [None], Direct(server.parts.gate.dialer), short, get_tls_shared())
                server.parts.gate.replace(server.parts.gate.policy, {"direct": egress})
                with pytest.raises(ProxyError, match=r"reply 01"):
                    await Proxy(server.url).connect("127.0.0.1", 1)

    run_once(main)


def test_what_a_proxy_breaks_is_no_breach_of_its_client(run_once: Run) -> None:
    """A name of no length is reply 04 to a client that sends it; as a proxy's BND it is 01, and the error names who."""

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"\x05\x00\x05\x00\x00\x03\x00\x00\x00")
        await reader.read()

    async def main() -> None:
        async with target(breaks) as port:
            with pytest.raises(RemoteProtocolError, match=rf"^127\.0\.0\.1:{port}: ") as caught:
                await open_through(f"socks5://127.0.0.1:{port}", destination=Address("example.com", 443))
            assert caught.value.reply_code is None

    run_once(main)


# --- a context and a certificate of one's own ---


def with_authorities(folder: Path) -> tuple[Config, str]:
    """A server whose clients must have a certificate, and its authority's file."""
    tls = write_server(folder)
    ca = folder / "authority.pem"
    ca.write_bytes(authority().cert_pem.bytes())
    tls = msgspec.structs.replace(tls, client_ca=str(ca))
    return config(Listen("https://127.0.0.1:0", tls=tls, users="required")), str(ca)


def test_a_proxy_that_wants_a_certificate(run_once: Run, tmp_path: Path) -> None:
    """By files, or in a context that is ready; without one it refuses."""
    setting, ca = with_authorities(tmp_path)
    leaf = client_certificate("alice")
    chain, key = tmp_path / "alice.pem", tmp_path / "alice.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    sessions: list[Session] = []

    async def main() -> None:
        async with target() as port, Server(config=setting, on_close=sessions.append) as server:
            url = parse_url(server.urls[0].replace("127.0.0.1", "localhost"))
            files = make_context(url, ca, certificate=(str(chain), str(key)))
            ready = make_context(url, ready=client_context(certificate=leaf))
            dialer = Dialer(get_reactor(), ThreadResolver(), 10)
            for context in (files, ready):
                egress = make_chain([url], [context], Direct(dialer), dialer.deadlines, get_tls_shared())
                await talk(await egress.open(Address("localhost", port), allow_any_address))
            egress = make_chain([url], [make_context(url, ca)], Direct(dialer), dialer.deadlines, get_tls_shared())
            with pytest.raises((ProxyError, RemoteProtocolError)):
                await egress.open(Address("localhost", port), allow_any_address)
            await dialer.close()
            await server.drain()

    run_once(main)
    assert [session.user for session in sessions if session.destination] == ["alice", "alice"]


def test_a_context_that_is_ready_is_not_changed() -> None:
    """It is the caller's: the same object, for a proxy inside TLS alone."""
    ready = ssl.create_default_context()
    assert make_context(parse_url("https://127.0.0.1:1"), ready=ready) is ready
    assert make_context(parse_url("http://127.0.0.1:1"), ready=ready) is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ready": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "a context for servers, expected one for clients"),
        ({"ready": ssl.create_default_context(), "ca": "ca.pem"}, "a context and files beside it"),
        ({"ready": ssl.create_default_context(), "certificate": ("c.pem", "c.key")}, "a context and files beside it"),
        ({"certificate": ("nowhere.pem", "nowhere.key")}, r"nowhere\.key: No such file"),
        ({"certificate": (__file__, __file__)}, r"test_upstream\.py: no "),
    ],
    ids=["server", "ca", "both", "missing", "rubbish"],
)
def test_what_is_no_context_for_a_proxy(options: Any, why: str) -> None:
    """It is told before anything is dialled."""
    with pytest.raises(ValueError, match=why):
        make_context(parse_url("https://127.0.0.1:1"), **options)


def test_the_system_s_authorities_never_get_a_certificate(tmp_path: Path) -> None:
    """That context is shared by all proxies."""
    leaf = client_certificate("alice")
    chain, key = tmp_path / "alice.pem", tmp_path / "alice.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    url = parse_url("https://127.0.0.1:1")
    assert make_context(url, certificate=(str(chain), str(key))) is not make_context(url)
    assert make_context(url) is make_context(url)


# --- BND of a reply ---


@pytest.mark.parametrize(("protocol", "says"), [("socks5", True), ("socks4", True), ("http", False)])
def test_what_a_proxy_connected_from(run_once: Run, protocol: str, says: bool) -> None:
    """The stream has it where the proxy says it, asked in one message or in several; another kind of proxy does not."""

    async def main() -> None:
        async with target() as port, Server(f"{protocol}://127.0.0.1:0") as server, Server(LOOPBACK) as first:
            stream = await open_through(server.url, destination=parse_address(f"127.0.0.1:{port}"))
            bound = stream.bound
            await talk(stream)
            if says:
                assert bound is not None
                assert (str(bound.host), bound.port > 0) == ("127.0.0.1", True)
            else:
                assert bound is None
            chained = await open_through(first.url, server.url, destination=parse_address(f"127.0.0.1:{port}"))
            assert (chained.bound is not None) == says
            await talk(chained)
            asked = await Proxy(server.url).connect("127.0.0.1", port)
            assert (asked.bound is not None) == says
            await talk(asked)

    run_once(main)
