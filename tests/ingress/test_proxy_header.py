"""The PROXY header: whom it is taken from, what it changes, and that nobody else can send one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Run, run_in_loop
from datagrams import destination, receive, udp_socket, unwrap
from doubles import Doorman, Serving, Streams, config, end_of, greet, open_tunnel, read_bound, read_reply, reset, until
from sockets import tcp_pair, turns, unix_pair
from support import GREETING, client, credentials, request, target
from tabi import Config, RemoteProtocolError, Server, Session
from tabi.config import Listen, Log
from tabi.ingress.proxy_header import ProxyHeaderIngress
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.session import UNIX
from tabi.wire.address import Address, parse_address
from tabi.wire.proxy_protocol import HEADER_LIMIT, TlvType, encode_v1, encode_v2

OUTSIDE = parse_address("203.0.113.9:50000")
OUTSIDE6 = parse_address("[2001:db8::9]:50000")
NEAR = parse_address("127.0.0.1:50000")
FRONT = parse_address("198.51.100.1:1080")
PROXY = parse_address("127.0.0.1:40000")

URLS = ("socks5://127.0.0.1:0", "socks4://127.0.0.1:0", "mixed://127.0.0.1:0")

HEADERS = {
    "v1": encode_v1(OUTSIDE, FRONT),
    "v1, IPv6": encode_v1(OUTSIDE6, FRONT),
    "v2": encode_v2(OUTSIDE, FRONT),
    "v2, IPv6": encode_v2(OUTSIDE6, FRONT),
    "v2, checksum": encode_v2(OUTSIDE, FRONT, checksum=True),
    "v2, TLVs": encode_v2(OUTSIDE, FRONT, tlvs=((TlvType.AUTHORITY, b"x" * 400), (0xE0, b"y")), checksum=True),
}
NOBODY = {
    "UNKNOWN": b"PROXY UNKNOWN\r\n",
    "UNKNOWN with more": b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n",
    "LOCAL": encode_v2(None, None, local=True),
    "LOCAL with addresses": b"\r\n\r\n\0\r\nQUIT\n\x20\x11\x00\x0c" + b"\xcb\x00\x71\x09" * 2 + b"\x00\x50" * 2,
    "UNSPEC": encode_v2(None, None),
    "AF_UNIX": b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00\xd8" + b"/client".ljust(108, b"\0") + b"/server".ljust(108, b"\0"),
}
"""Headers that say nothing of an IP address."""


class Place(Serving):
    """A server that trusts 127.0.0.1, and the sessions that have ended: ``async with Place() as place``."""

    def __init__(
        self,
        url: str = URLS[0],
        trusted: tuple[str, ...] = ("127.0.0.1/32",),
        doorman: Doorman | None = None,
        **s: float,
    ) -> None:
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        settings = config(Listen(url, proxy_protocol=list(trusted)), **s)
        self.server = Server(config=settings, on_close=self.ended.put_nowait, authenticate=doorman, open=True)

    @contextlib.asynccontextmanager
    async def behind(self, header: bytes, host: str | None = None) -> AsyncIterator[Streams]:
        """A connection from a proxy, at ``host``, that has sent a header."""
        async with client(self.address, host) as streams:
            streams[1].write(header)
            yield streams

    @property
    def client(self) -> Address:
        """The client of the only session under way."""
        (session,) = self.server.parts.sessions.running
        return session.client


class Rest:
    """An ingress that receives what the header leaves."""

    protocol = "rest"

    def __init__(self) -> None:
        self.received: bytes | None = None
        self.client: Address | None = None

    async def serve(self, client: Stream, session: Session) -> None:
        self.client, self.received = session.client, b""
        while data := await client.receive():
            self.received += data


async def feed(octets: bytes, step: int, near: Address = PROXY, unix: bool = False) -> Rest:
    """Send octets and an end to an ingress that trusts whoever sends them, ``step`` at a time; gives what came out."""
    rest = Rest()
    here, there = unix_pair() if unix else tcp_pair()
    ingress = ProxyHeaderIngress(Listen(proxy_protocol=["127.0.0.0/8", "203.0.113.0/24", "unix"]).proxies, rest)
    with there:
        async with Stream(get_reactor(), here) as stream, asyncio.TaskGroup() as group:
            group.create_task(ingress.serve(stream, Session(1, URLS[0], near, 0.0)))
            for at in range(0, len(octets), step):
                there.send(octets[at : at + step])
                await turns(2)
            there.shutdown(socket.SHUT_WR)
    return rest


# --- the header, and not an octet more ---


@pytest.mark.parametrize("step", [1, 7, 100_000], ids=["octet by octet", "in pieces", "at once"])
@pytest.mark.parametrize("name", HEADERS)
def test_the_header_is_taken_and_the_rest_is_left(run: Run, name: str, step: int) -> None:
    """Whatever the pieces, the client is who the header says, and what follows reaches the protocol whole."""
    payload = GREETING + bytes(range(256)) * 3

    async def main() -> None:
        rest = await feed(HEADERS[name] + payload, step)
        assert (rest.client, rest.received) == (OUTSIDE6 if "IPv6" in name else OUTSIDE, payload)

    run(main)


@pytest.mark.parametrize("step", [1, 100_000], ids=["octet by octet", "at once"])
@pytest.mark.parametrize("name", NOBODY)
def test_a_header_about_nobody_keeps_the_connections_own_address(run: Run, name: str, step: int) -> None:
    """LOCAL and UNKNOWN are the proxy's own connections, its health checks; a client with a path has no IP address."""

    async def main() -> None:
        rest = await feed(NOBODY[name] + GREETING, step)
        assert (rest.client, rest.received) == (PROXY, GREETING)

    run(main)


def long_header(size: int) -> bytes:
    """A header of version 2 with so many octets, as balancers of clouds send it."""
    plain = encode_v2(OUTSIDE, FRONT)
    tlv = b"\xe1" + (size - len(plain) - 3).to_bytes(2, "big") + bytes(size - len(plain) - 3)
    return plain[:14] + (size - 16).to_bytes(2, "big") + plain[16:] + tlv


@pytest.mark.parametrize("size", [500, 501, 536, 537, 1000, HEADER_LIMIT])
def test_a_long_header(run: Run, size: int) -> None:
    """Up to 4 KiB are taken, of TLVs that nobody needs as well."""
    header = long_header(size)
    assert len(header) == size

    async def main() -> None:
        for step in (1, 200, 10_000):
            rest = await feed(header + GREETING, step)
            assert (rest.client, rest.received) == (OUTSIDE, GREETING)

    run(main)


def test_a_header_that_is_too_long(run: Run) -> None:
    """It is refused as soon as its length is there, and the log says why."""

    async def main() -> None:
        async with Place() as place, place.behind(long_header(HEADER_LIMIT + 1)[:16]) as (reader, _):
            assert await end_of(reader) in ("end", "reset")
            error = (await place.ended.get()).error
            assert error == "PROXY header: 4097 octets, expected at most 4096"

    run(main)


def test_loopback_of_another_machine_is_not_this_ones(run: Run) -> None:
    """A balancer elsewhere whose client is on its own loopback does not get this machine's for it."""

    async def main() -> None:
        for near in (NEAR, parse_address("[::1]:50000")):
            header = encode_v2(near, FRONT) + GREETING
            assert (await feed(header, 1000, OUTSIDE)).client == OUTSIDE
            assert (await feed(header, 1000)).client == near
            assert (await feed(header, 1000, Address(UNIX, 1000), unix=True)).client == near

    run(main)


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("name", ["LOCAL", "UNKNOWN"])
def test_a_health_check_leaves_no_line(run: Run, name: str, how: str) -> None:
    """Who says that it is the proxy itself, and asks for nothing, is no session; who asks is one like any other."""

    async def main() -> None:
        async with Place() as place, target() as port:
            async with place.behind(NOBODY[name]) as (reader, writer):
                await until(lambda: any(session.silent for session in place.server.parts.sessions.running))
                if how == "reset":
                    reset(writer)
                else:
                    writer.write_eof()
                    assert await end_of(reader) in ("end", "reset")
            async with place.behind(NOBODY[name]) as streams:
                await open_tunnel(streams, parse_address(f"127.0.0.1:{port}"))
            assert (await place.ended.get()).command == "connect"
            assert place.ended.empty()

    run(main)


def test_through_a_unix_socket(run: Run) -> None:
    """``"unix"`` is whoever comes that way; the header's client has an IP address all the same."""

    async def main() -> None:
        rest = await feed(HEADERS["v2"] + GREETING, 3, Address(UNIX, 1000), unix=True)
        assert (rest.client, rest.received) == (OUTSIDE, GREETING)

    run(main)


def test_who_is_trusted() -> None:
    """Networks of both families, and "unix", each only if it is named."""
    trusted = ProxyHeaderIngress(Listen(proxy_protocol=["10.0.0.0/8", "2001:db8::/32"]).proxies, Rest())
    for host, answer in (
        ("10.1.2.3", True),
        ("11.0.0.1", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("127.0.0.1", False),
        ("::1", False),
    ):
        assert trusted.trusts(parse_address(f"[{host}]:1" if ":" in host else f"{host}:1").host) is answer
    assert not trusted.trusts(UNIX)
    assert ProxyHeaderIngress((None,), Rest()).trusts(UNIX)
    assert not ProxyHeaderIngress((None,), Rest()).trusts(PROXY.host)


# --- what is no header ---

CHECKSUM = bytearray(HEADERS["v2, checksum"])
CHECKSUM[-1] ^= 1

BROKEN = [
    (bytes(CHECKSUM), "PROXY header: wrong checksum"),
    (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "PROXY header: 65551 octets, expected at most 4096"),
    (b"PROXY UNKNOWN " + b"x" * 200, "PROXY header: no CRLF in the first 107 octets"),
    (b"PROXY TCP4 203.0.113.9 198.51.100.1 99999 80\r\n", "PROXY header: port 99999, expected 0 to 65535"),
    (GREETING, "PROXY header: begins with b'\\x05\\x01\\x00', expected version 2's signature or 'PROXY'"),
    (b"\x04\x01\x00\x50", "PROXY header: begins with b'\\x04\\x01\\x00P', expected"),
    (b"GET / HTTP/1.1\r\n\r\n", "PROXY header: begins with b'GET / HTTP/1.1\\r\\n', expected"),
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(("octets", "error"), BROKEN)
def test_a_proxy_that_is_trusted_must_send_a_header(run: Run, url: str, octets: bytes, error: str) -> None:
    """Without one, or with one that is wrong, the connection ends without an answer: whose it is nobody knows."""

    async def main() -> None:
        async with Place(url) as place:
            async with place.behind(octets) as (reader, _):
                assert await end_of(reader) in ("end", "reset")
                session = await place.ended.get()
                assert (session.close, session.reply_code, session.command) == ("error", None, None)
                assert (session.error or "").startswith(error), session.error
            async with place.behind(HEADERS["v1"]):
                await until(lambda: place.server.parts.sessions.running and place.client == OUTSIDE)

    run(main)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("trusted", [(), ("192.0.2.0/24", "::1/128", "unix")])
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_from_a_stranger_is_refused(run: Run, url: str, trusted: tuple[str, ...], name: str) -> None:
    """Whoever is not named in proxy_protocol cannot say who it is, whatever the listener speaks."""

    async def main() -> None:
        async with Place(url, trusted) as place, place.behind(HEADERS[name]) as (reader, _):
            assert await end_of(reader) in ("end", "reset")
            session = await place.ended.get()
            assert (str(session.client.host), session.close, session.reply_code) == ("127.0.0.1", "error", None)
            if url.startswith("mixed"):
                assert (session.error or "").startswith("a PROXY header from a client that is not in proxy_protocol")
            else:
                assert ": version 0x" in (session.error or "")

    run(main)


@pytest.mark.parametrize("url", URLS)
def test_only_one_header(run: Run, url: str) -> None:
    """A client cannot send a second one behind the proxy's."""

    async def main() -> None:
        header = encode_v1(NEAR, FRONT)
        async with Place(url) as place, place.behind(HEADERS["v1"] + header) as (reader, _):
            assert await end_of(reader) in ("end", "reset")
            session = await place.ended.get()
            assert (session.client, session.close) == (OUTSIDE, "error")

    run(main)


def test_a_stranger_without_a_header_is_a_client(run: Run) -> None:
    """Who is not a proxy speaks for itself."""

    async def main() -> None:
        async with Place(trusted=("192.0.2.0/24",)) as place, client(place.address) as streams:
            assert await greet(streams) == 0
            assert str(place.client.host) == "127.0.0.1"

    run(main)


# --- silence and ends ---


@pytest.mark.parametrize("octets", [b"", b"PROXY TCP4 203", HEADERS["v2"][:20], HEADERS["v1"]])
def test_silence_ends_with_the_handshakes_deadline(run: Run, octets: bytes) -> None:
    """In front of the header, in it, and behind it."""

    async def main() -> None:
        async with Place(handshake=0.1) as place, place.behind(octets) as (reader, _):
            assert await end_of(reader) == "end"
            assert (await place.ended.get()).error == "handshake: not done within 0.1 s"

    run(main)


@pytest.mark.parametrize("octets", [b"", b"PROXY TCP4 203", HEADERS["v2"][:20]])
def test_a_proxy_that_ends_in_the_middle(run: Run, octets: bytes) -> None:
    """The log has what came, on every reactor: what belongs to the header is taken."""

    async def main() -> None:
        async with Place() as place, place.behind(octets) as (reader, writer):
            writer.write_eof()
            assert await end_of(reader) == "end"
            session = await place.ended.get()
            assert session.error == f"PROXY header: the proxy at {session.client} ended after {octets!r}"

    run(main)


def test_a_proxy_that_vanishes_with_a_reset(run: Run) -> None:
    """It ends as any reset during the handshake."""

    async def main() -> None:
        async with Place() as place, place.behind(b"") as (_, writer):
            await until(lambda: place.server.parts.sessions.running)
            reset(writer)
            assert (await place.ended.get()).close == "reset"

    run(main)


@settings(max_examples=40)
@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 1.1.1.1 ", b"\r\n\r\n\0\r\nQUIT\n\x21"]), st.binary(max_size=600))
def test_any_octets_are_a_header_or_an_error(beginning: bytes, noise: bytes) -> None:
    """A client, or RemoteProtocolError: nothing else comes out, and it ends."""

    async def main() -> None:
        try:
            rest = await feed(beginning + noise, 200)
            assert rest.received is not None
        except ExceptionGroup as group:
            assert [type(exc) for exc in group.exceptions] == [RemoteProtocolError]  # noqa: PT017 - it need not come

    run_in_loop(main)


# --- what the address in it is good for ---


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("url", URLS)
def test_the_guard_asks_where_the_client_is(run: Run, url: str, name: str) -> None:
    """Behind a proxy on loopback, a client from outside still does not reach inner addresses; nothing is dialled."""

    async def main() -> None:
        called: list[int] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            called.append(1)

        async with Place(url) as place, target(note) as port:
            ask4 = b"\x04\x01" + port.to_bytes(2, "big") + b"\x7f\x00\x00\x01\x00"
            ask5 = GREETING + request("127.0.0.1", port)
            async with place.behind(HEADERS[name] + (ask4 if "socks4" in url else ask5)) as (reader, _):
                refusal = b"\x00\x5b" + bytes(6) if "socks4" in url else b"\x05\x00\x05\x02\x00\x01" + bytes(6)
                assert await reader.read() == refusal
            session = await place.ended.get()
            assert (session.close, session.client.host) == ("denied", (OUTSIDE6 if "IPv6" in name else OUTSIDE).host)
            assert (session.error or "").startswith("guard: 127.0.0.1 is in 127.0.0.0/8")
            assert called == []

    run(main)


@pytest.mark.parametrize("header", [encode_v1(NEAR, FRONT), encode_v2(NEAR, FRONT), NOBODY["LOCAL"]])
def test_a_client_that_is_inner_itself_may(run: Run, header: bytes) -> None:
    """One that the header says is on loopback, and the proxy itself, go where the guard lets them."""

    async def main() -> None:
        async with Place() as place, target() as port, place.behind(header) as streams:
            assert await greet(streams) == 0
            streams[1].write(request("127.0.0.1", port))
            assert (await read_reply(streams[0]))[0] == 0
            streams[1].write(b"ping")
            assert await streams[0].readexactly(4) == b"ping"

    run(main)


def test_authenticate_is_told_the_headers_address(run: Run) -> None:
    """Who asks for users learns where the client is, not where the proxy is."""

    async def main() -> None:
        doorman = Doorman()
        async with Place(doorman=doorman) as place, place.behind(HEADERS["v2, IPv6"]) as streams:
            assert await greet(streams, b"\x02") == 2
            streams[1].write(credentials(b"alice", b"alice"))
            assert await streams[0].readexactly(2) == b"\x01\x00"
            assert doorman.asked == [("alice", "alice", "2001:db8::9")]

    run(main)


def test_datagrams_are_the_headers_clients(run: Run) -> None:
    """An association is pinned to the address in the header: others, the proxy among them, are dropped and counted."""

    async def main() -> None:
        header = encode_v2(parse_address("127.0.0.5:50000"), FRONT)
        async with Place() as place, place.behind(header) as streams:
            assert await greet(streams) == 0
            streams[1].write(request("0.0.0.0", 0, 3))
            bound = await read_bound(streams[0])
            relay = (str(bound.host), bound.port)
            with destination() as echo, udp_socket("127.0.0.1") as proxy, udp_socket("127.0.0.5") as own:
                proxy.sendto(echo.header + b"from the proxy", relay)
                own.sendto(echo.header + b"from the client", relay)
                assert unwrap(await receive(own)) == (echo.address, b"from the client")
                assert [data for data, _ in echo.received] == [b"from the client"]
            streams[1].close()
            session = await place.ended.get()
            assert (session.datagrams_up, session.drops) == (1, {"wrong_source": 1})

    run(main)


def test_the_access_log_has_the_headers_address(run_once: Run, tmp_path: Path) -> None:
    """``client`` is the client, with its port."""
    path = tmp_path / "access.log"

    async def main() -> None:
        listen = Listen(URLS[0], proxy_protocol=["127.0.0.1"])
        settings = Config(listen=[listen], log=Log(access=str(path)))
        async with Server(config=settings, open=True) as server:
            for header in HEADERS.values():
                async with client(server.addresses[0]) as (reader, writer):
                    writer.write(header + b"\x05\x01\x80")
                    assert await reader.read() == b"\x05\xff"
            await until(lambda: not server.parts.sessions.running)

    run_once(main)
    clients = [json.loads(line)["client"] for line in path.read_text().splitlines()]
    assert clients == [str(OUTSIDE6 if "IPv6" in name else OUTSIDE) for name in HEADERS]
