"""One port for every protocol: the first octets decide, none is lost, and what is none of them ends with a reason."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Run, run_in_loop
from doubles import FakeResolver, client_from, config, end_of, greet, open_tunnel, read_reply, reset, until
from sockets import tcp_pair, turns
from support import GREETING, client, request, target
from tabi import RemoteProtocolError, Server, Session
from tabi.config import Listen
from tabi.ingress.conversation import Ingress
from tabi.ingress.mixed import MixedIngress
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.wire.address import Address, parse_address
from tabi.wire.http_syntax import EMPTY_LINES
from tabi.wire.sniff import Protocol

MIXED = "mixed://127.0.0.1:0"
CLIENT = parse_address("192.0.2.9:40000")

BEGINNINGS = {
    "http behind an empty line": (Protocol.HTTP, b"\r\nGET http://example.com/ HTTP/1.1\r\n\r\n"),
    "socks5": (Protocol.SOCKS5, GREETING + request("127.0.0.1", 80)),
    "socks4": (Protocol.SOCKS4, b"\x04\x01\x00\x50\x7f\x00\x00\x01user\x00"),
    "socks4a": (Protocol.SOCKS4, b"\x04\x01\x00\x50\x00\x00\x00\x01\x00example.com\x00"),
    "tls": (Protocol.TLS, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
    "http get": (Protocol.HTTP, b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"),
    "http post": (Protocol.HTTP, b"POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n"),
    "http propfind": (Protocol.HTTP, b"PROPFIND http://example.com/ HTTP/1.1\r\n\r\n"),
    "http connect": (Protocol.HTTP, b"CONNECT example.com:443 HTTP/1.1\r\n\r\n"),
    "http/2": (Protocol.HTTP2, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "proxy v1": (Protocol.PROXY_V1, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + GREETING),
    "proxy v2": (Protocol.PROXY_V2, b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00" + GREETING),
}


class Recorder:
    """An ingress that receives so many octets."""

    protocol = "recorder"

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = b""

    async def serve(self, client: Stream, session: Session) -> None:
        while len(self.received) < self.size and (data := await client.receive(self.size - len(self.received))):
            self.received += data


def recorders(size: int) -> dict[Protocol, Recorder]:
    """One for every protocol."""
    return {protocol: Recorder(size) for protocol in Protocol if protocol is not Protocol.UNKNOWN}


def mixed(inside: dict[Protocol, Recorder]) -> MixedIngress:
    """An ingress over these."""
    protocols: dict[Protocol, Ingress] = {**inside}
    return MixedIngress(protocols)


@contextlib.asynccontextmanager
async def serving(**seconds: float) -> AsyncIterator[tuple[Server, asyncio.Queue[Session]]]:
    """A server, and the sessions that have ended at it."""
    ended: asyncio.Queue[Session] = asyncio.Queue()
    settings = config(Listen(MIXED), **seconds)
    async with Server(config=settings, resolver=FakeResolver(), on_close=ended.put_nowait) as server:
        yield server, ended


async def feed(octets: bytes, step: int) -> tuple[Protocol, bytes]:
    """Give octets to a mixed ingress, ``step`` at a time; says who got them, and what they got."""
    inside = recorders(len(octets))
    near, far = tcp_pair()
    with far:
        async with Stream(get_reactor(), near) as stream, asyncio.TaskGroup() as group:
            group.create_task(mixed(inside).serve(stream, Session(1, MIXED, CLIENT, 0.0)))
            for at in range(0, len(octets), step):
                far.send(octets[at : at + step])
                await turns()
    ((protocol, recorder),) = ((protocol, found) for protocol, found in inside.items() if found.received)
    return protocol, recorder.received


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reactor of levels looks again after a moment."""
    monkeypatch.setattr("tabi.net.stream.PEEK_PAUSE", 0.001)


@pytest.mark.parametrize("step", [1, 1000], ids=["octet by octet", "at once"])
@pytest.mark.parametrize("name", BEGINNINGS)
def test_the_first_octets_decide_and_none_is_lost(run: Run, name: str, step: int) -> None:
    """Whatever the pieces, whoever speaks the protocol gets every octet from the first one on."""
    protocol, octets = BEGINNINGS[name]

    async def main() -> None:
        assert await feed(octets, step) == (protocol, octets)

    run(main)


def test_every_number_of_methods_is_socks5(run_once: Run) -> None:
    """NMETHODS 0 to 255, among them those that are letters, and 3, with which TLS would go on."""

    async def main() -> None:
        for count in range(256):
            octets = b"\x05%c" % count + bytes(count)
            assert await feed(octets, len(octets)) == (Protocol.SOCKS5, octets)

    run_once(main)


@settings(max_examples=25)
@given(st.sampled_from(sorted(BEGINNINGS)), st.integers(1, 40))
def test_pieces_of_any_size(name: str, step: int) -> None:
    """Chunking changes nothing."""
    protocol, octets = BEGINNINGS[name]
    assert run_in_loop(lambda: feed(octets, step)) == (protocol, octets)


def test_a_protocol_that_nobody_speaks_here(run: Run) -> None:
    """It is refused, and the message says what would have been taken."""

    async def main() -> None:
        near, far = tcp_pair()
        with far:
            async with Stream(get_reactor(), near) as stream:
                far.send(b"GET / HTTP/1.1\r\n")
                ingress = mixed({Protocol.SOCKS5: Recorder(1), Protocol.SOCKS4: Recorder(1)})
                with pytest.raises(RemoteProtocolError) as caught:
                    await ingress.serve(stream, Session(1, MIXED, CLIENT, 0.0))
                assert str(caught.value) == "begins with b'GET / HTTP/1.1\\r\\n', expected one of socks5, socks4"
                assert await stream.receive() == b"GET / HTTP/1.1\r\n"

    run(main)


# --- through a server ---


def test_socks5_and_socks4_through_one_port(run: Run) -> None:
    """Both tunnels stand beside each other; the log has the protocol of each."""

    async def main() -> None:
        async with serving() as (server, ended), target() as port:
            destination = Address(parse_address(f"127.0.0.1:{port}").host, port)
            async with client(server.addresses[0]) as five, client(server.addresses[0]) as four:
                await open_tunnel(five, destination)
                four[1].write(b"\x04\x01" + port.to_bytes(2, "big") + b"\x7f\x00\x00\x01\x00")
                assert (await four[0].readexactly(8))[:2] == b"\x00\x5a"
                for reader, writer in (five, four):
                    writer.write(b"ping")
                    assert await reader.readexactly(4) == b"ping"
            assert {(await ended.get()).protocol, (await ended.get()).protocol} == {"socks5", "socks4"}

    run(main)


NO_HEADER = "a PROXY header from a client that is not in proxy_protocol, or a second one"


@pytest.mark.parametrize(
    ("octets", "error"),
    [
        (BEGINNINGS["tls"][1], "TLS, but this listener has no certificate, or TLS is inside TLS"),
        (BEGINNINGS["proxy v1"][1], NO_HEADER),
        (BEGINNINGS["proxy v2"][1], NO_HEADER),
        (b"\x00\x01\x02", "begins with b'\\x00\\x01\\x02', expected one of socks5, socks4, http"),
        (b"\xff" * 4096, "begins with " + repr(b"\xff" * 16) + ", expected one of socks5, socks4, http"),
        (b"\r\n\r\n\0GET", "begins with b'\\r\\n\\r\\n\\x00GET', expected one of socks5, socks4, http"),
        (b"A" * 5000, "begins with b'AAAAAAAAAAAAAAAA', expected one of socks5, socks4, http"),
        (b"GET\thttp://", "begins with b'GET\\thttp://', expected one of socks5, socks4, http"),
    ],
)
def test_what_is_refused_and_why(run: Run, octets: bytes, error: str) -> None:
    """The connection ends without an answer, and the session says what came; the server goes on."""

    async def main() -> None:
        async with serving() as (server, ended), client(server.addresses[0]) as (reader, writer):
            writer.write(octets)
            assert await end_of(reader) in ("end", "reset")
            session = await ended.get()
            assert session.error is not None
            assert session.error.startswith(error)
            assert (session.close, session.protocol, session.command, session.reply_code) == ("error", None, None, None)
            async with client(server.addresses[0]) as streams:
                assert await greet(streams) == 0

    run(main)


@pytest.mark.parametrize("octets", [b"", b"\r\n", b"\x16", b"PROX", b"A" * 20])
def test_silence_ends_with_the_handshakes_deadline(run: Run, octets: bytes) -> None:
    """Who says nothing, or not enough to be known, has as long as any other handshake."""

    async def main() -> None:
        async with serving(handshake=0.1) as (server, ended), client(server.addresses[0]) as (reader, writer):
            writer.write(octets)
            assert await end_of(reader) in ("end", "reset")
            session = await ended.get()
            assert (session.close, session.error) == ("error", "handshake: not done within 0.1 s")

    run(main)


@pytest.mark.parametrize("lines", [0, 1, EMPTY_LINES])
@pytest.mark.parametrize("whole", [True, False])
def test_empty_lines_before_a_request(run: Run, lines: int, whole: bool) -> None:
    """Some clients send one behind the content of the request before (RFC 9112 section 2.2): it is read over."""
    octets = b"\r\n" * lines + b"OPTIONS http://x/ HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n"

    async def main() -> None:
        async with serving() as (server, _), client(server.addresses[0]) as (reader, writer):
            for at in range(0, len(octets), len(octets) if whole else 1):
                writer.write(octets[at : at + len(octets) if whole else at + 1])
                await turns()
            assert (await reader.readline()).split()[1] == b"200"

    run(main)


def test_too_many_empty_lines_before_a_request(run: Run) -> None:
    """HTTP refuses them, with its own words."""

    async def main() -> None:
        async with serving() as (server, _), client(server.addresses[0]) as (reader, writer):
            writer.write(b"\r\n" * (EMPTY_LINES + 1) + b"GET http://x/ HTTP/1.1\r\n")
            assert (await reader.readline()).split()[1] == b"400"

    run(main)


def test_octets_do_not_prolong_the_handshake(run: Run) -> None:
    """The deadline runs through the looking and the protocol behind it."""

    async def main() -> None:
        async with serving(handshake=0.1) as (server, ended), client(server.addresses[0]) as (reader, writer):
            writer.write(b"\x05")
            await until(lambda: any(session.protocol for session in server.parts.sessions.running))
            writer.write(b"\x01")
            assert await end_of(reader) == "end"
            assert (await ended.get()).error == "handshake: not done within 0.1 s"

    run(main)


@pytest.mark.parametrize(
    ("octets", "error"),
    [
        (b"", "the client sent nothing"),
        (b"PRO", "the client ended after b'PRO'"),
        (b"\x16", "the client ended after b'\\x16'"),
        (b"\x05", "the peer ended in the middle of the greeting"),
    ],
)
def test_a_client_that_ends_in_the_middle(run: Run, octets: bytes, error: str) -> None:
    """It is noted how far it came. Levels do not show an end behind octets: there the deadline says so."""

    async def main() -> None:
        async with serving(handshake=0.2) as (server, ended), client(server.addresses[0]) as (reader, writer):
            writer.write(octets)
            writer.write_eof()
            assert await end_of(reader) in ("end", "reset")
            unseen = not get_reactor().edge_triggered and error.startswith("the client ended")
            session = await ended.get()
            assert session.error == ("handshake: not done within 0.2 s" if unseen else error)
            assert session.close == "error"

    run(main)


def test_a_client_that_vanishes_with_a_reset(run: Run) -> None:
    """It ends as any reset during the handshake."""

    async def main() -> None:
        async with serving() as (server, ended), client(server.addresses[0]) as (_, writer):
            await until(lambda: server.parts.sessions.running)
            reset(writer)
            assert (await ended.get()).close == "reset"

    run(main)


def test_the_rules_behind_it_are_the_same(run: Run) -> None:
    """The guard asks where the client is, whatever it speaks."""

    async def main() -> None:
        async with serving() as (server, ended), client_from(server, "203.0.113.9") as streams:
            assert await greet(streams) == 0
            streams[1].write(request("127.0.0.1", 80))
            assert (await read_reply(streams[0]))[0] == 2
            assert await streams[0].read() == b""
            streams[1].close()
            async with client_from(server, "203.0.113.9") as (reader, writer):
                writer.write(b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00")
                assert await reader.read() == b"\x00\x5b" + bytes(6)
            assert [(await ended.get()).close for _ in range(2)] == ["denied", "denied"]

    run(main)
