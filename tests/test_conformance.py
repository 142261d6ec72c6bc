"""docs/conformance.md, point by point, from outside: octets over a socket to a running server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from conftest import Run
from datagrams import association, destination, receive, udp_socket, unwrap
from doubles import (
    LOOPBACK,
    SUCCESS,
    Doorman,
    FakeResolver,
    ask,
    ask_for,
    caller,
    client_from,
    config,
    end_of,
    expect_reset,
    greet,
    logged,
    no_descriptors_left,
    open_bind,
    queued,
    read_bound,
    read_reply,
    reset,
    unanswering,
    until,
)
from support import client, closed_port, credentials, request, target, tunnel
from tabi import Server, Session
from tabi.config import EgressConfig, Listen, Udp
from tabi.wire.address import UNSPECIFIED, Address, from_sockaddr, parse_address
from tabi.wire.datagram import encode_header
from tabi.wire.proxy_protocol import encode_v1, encode_v2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 10, 255])
def test_c01_any_number_of_methods(run: Run, count: int) -> None:
    """Octet 2 of the greeting is NMETHODS: 1 to 255 methods are read, and the one that suits is found among them."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as streams:
            assert await greet(streams, bytes(range(0x80, 0x80 + min(count, 127) - 1)).ljust(count, b"\x00")) == 0

    run(main)


def test_c02_refusal_is_two_octets_and_the_end(run: Run) -> None:
    """Where no method suits, the answer is 05 FF, and then the connection ends."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            writer.write(b"\x05\x01\x80")
            assert await reader.read() == b"\x05\xff"

    run(main)


def test_c03_no_method_that_was_not_offered(run: Run) -> None:
    """A server without users does not choose 00 when only 02 was offered, and one with users does not choose 02."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            writer.write(b"\x05\x01\x02")
            assert await reader.read() == b"\x05\xff"
        users = {"alice": "secret"}
        async with Server(LOOPBACK, users=users) as server, client(server.addresses[0]) as (reader, writer):
            writer.write(b"\x05\x02\x00\x01")
            assert await reader.read() == b"\x05\xff"

    run(main)


def test_c04_no_methods_at_all(run: Run) -> None:
    """NMETHODS 0 is answered with 05 FF at once, not waited on."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            writer.write(b"\x05\x00")
            assert await reader.read() == b"\x05\xff"

    run(main)


def test_c06_success_only_when_the_connection_stands(run: Run) -> None:
    """A closed port gives a failure reply, never success and then the end."""

    async def main() -> None:
        with closed_port() as port:
            async with Server(LOOPBACK) as server:
                assert await ask_for(server, "127.0.0.1", port) == 5

    run(main)


def test_c06_a_refusal_that_comes_late_is_a_refusal_too(run: Run) -> None:
    """A destination that refuses only after a while is no success either, on any hosting of the reactor."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(unanswering())
            async with Server(LOOPBACK) as server, asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(ask_for(server, "127.0.0.1", port))
                await until(lambda: any(session.via for session in server.parts.sessions.running))
                stack.close()  # the kernel's next try, within a second or two, finds nobody there
                assert await asking == 5

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_c07_bound_address_is_that_toward_the_destination(run: Run, host: str) -> None:
    """BND.ADDR and BND.PORT are what the destination sees as its peer."""

    async def main() -> None:
        seen: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.put_nowait(writer.get_extra_info("peername")[:2])
            await reader.read()

        async with (
            target(note, host) as port,
            Server(LOOPBACK) as server,
            client(server.addresses[0]) as (reader, writer),
        ):
            assert await greet((reader, writer)) == 0
            writer.write(request(host, port))
            reply_code, bound = await read_reply(reader)
            peer = await seen.get()
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            assert reply_code == 0
            assert bound[1:-2] == socket.inet_pton(family, peer[0])
            assert int.from_bytes(bound[-2:], "big") == peer[1]

    run(main)


def test_c08_refused(run: Run) -> None:
    """Nobody listens: 05, by address and by name."""

    async def main() -> None:
        with closed_port() as port:
            async with Server(LOOPBACK, resolver=FakeResolver({"closed.test": ["127.0.0.1"]})) as server:
                assert await ask_for(server, "127.0.0.1", port) == 5
                assert await ask_for(server, "closed.test", port) == 5

    run(main)


@pytest.mark.parametrize("host", ["224.0.0.1", "ff02::1"])
def test_c08_network_unreachable(run: Run, host: str) -> None:
    """No way there: 03. TCP never has one to a multicast address."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            assert await ask_for(server, host, 80) == 3

    run(main)


def test_c08_name_unknown(run: Run) -> None:
    """A name that does not resolve: 04."""

    async def main() -> None:
        async with Server(LOOPBACK, resolver=FakeResolver()) as server:
            assert await ask_for(server, "nowhere.test", 80) == 4

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "silent.test", "both.test"])
def test_c08_timed_out(run: Run, host: str) -> None:
    """A destination that never answers: 04 when the connect deadline is over, by address, by name, by several."""

    async def main() -> None:
        names = {"silent.test": ["127.0.0.1"], "both.test": ["127.0.0.1", "127.0.0.1"]}
        resolver = FakeResolver(names)
        with unanswering() as port:
            async with Server(config=config(connect=0.2), resolver=resolver) as server:
                assert await ask_for(server, host, port) == 4

    run(main)


def test_c08_forbidden(run: Run) -> None:
    """What a rule forbids, here the guard: 02."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client_from(server, "203.0.113.9") as streams:
            assert await greet(streams) == 0
            streams[1].write(request("127.0.0.1", 80))
            assert (await read_reply(streams[0]))[0] == 2

    run(main)


def test_c08_own_fault(run: Run) -> None:
    """The proxy has no descriptor left to connect with: 01."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            assert await greet((reader, writer)) == 0
            with no_descriptors_left():
                writer.write(request("127.0.0.1", port))
                assert (await read_reply(reader))[0] == 1
            assert await reader.read() == b""

    run(main)


@pytest.mark.parametrize("command", [0, 4, 9, 0xFF])
def test_c09_unknown_command(run: Run, command: int) -> None:
    """A CMD that is not offered gets 07, and then the connection ends."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            assert await ask(server, request("127.0.0.1", 80, command)) == 7

    run(main)


@pytest.mark.parametrize("atyp", [0, 2, 5, 0xFF])
def test_c09_unknown_address_type(run: Run, atyp: int) -> None:
    """An ATYP that RFC 1928 does not have gets 08, and then the connection ends."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            assert await ask(server, b"\x05\x01\x00%c\x7f\x00\x00\x01\x00\x50" % atyp) == 8

    run(main)


def test_c09_empty_name(run: Run) -> None:
    """A name of no octets is a host that cannot be reached: 04."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            assert await ask(server, b"\x05\x01\x00\x03\x00\x00\x50") == 4

    run(main)


def test_c09_name_of_255_octets(run: Run) -> None:
    """The longest name that fits is read whole and resolved."""

    async def main() -> None:
        name = ".".join(["a" * 63] * 4)
        assert len(name) == 255
        async with target() as port, Server(LOOPBACK, resolver=FakeResolver({name: ["127.0.0.1"]})) as server:
            assert await ask_for(server, name, port) == 0

    run(main)


def test_c10_closed_soon_after_a_failure(run: Run) -> None:
    """The connection ends at once behind a failure reply, not only within 10 seconds."""

    async def main() -> None:
        with closed_port() as port:
            async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer)) == 0
                writer.write(request("127.0.0.1", port))
                assert (await read_reply(reader))[0] == 5
                began = time.monotonic()
                assert await reader.read() == b""
                assert time.monotonic() - began < 1.5  # tabi waits 2 s for a client to close: its end comes before

    run(main)


@pytest.mark.parametrize("version", [0, 4, 6])
def test_c11_version_of_the_request(run: Run, version: int) -> None:
    """A request whose VER is not 05 is not carried out: the connection ends without a reply."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            assert await greet((reader, writer)) == 0
            writer.write(bytes([version]) + request("127.0.0.1", port)[1:])
            assert await end_of(reader) == "end"

    run(main)


def test_c12_octet_by_octet(run: Run) -> None:
    """The handshake may come in any pieces, down to single octets that each are a segment."""

    async def main() -> None:
        async with (
            target() as port,
            Server(LOOPBACK, users={"alice": "secret"}) as server,
            client(server.addresses[0]) as (reader, writer),
        ):
            server_port, own_port = server.addresses[0].port, writer.get_extra_info("sockname")[1]
            message = b"\x05\x01\x02" + credentials(b"alice", b"secret") + request("127.0.0.1", port) + b"hello"
            for octet in message:
                writer.write(bytes([octet]))
                await until(lambda: queued(server_port, own_port)[1] == 0)
            assert await reader.readexactly(8) == b"\x05\x02\x01\x00" + SUCCESS
            await reader.readexactly(6)
            assert await reader.readexactly(5) == b"hello"

    run(main)


@pytest.mark.parametrize("size", [5, 100_000])
def test_c12_all_at_once_with_payload(run: Run, size: int) -> None:
    """A client that does not wait for answers gets them all, and what it sent behind the request is delivered."""

    async def main() -> None:
        payload = bytes(range(256)) * (size // 256) + b"hello"
        async with (
            target() as port,
            Server(LOOPBACK, users={"alice": "secret"}) as server,
            client(server.addresses[0]) as (reader, writer),
        ):
            message = b"\x05\x01\x02" + credentials(b"alice", b"secret") + request("127.0.0.1", port)
            writer.write(message + payload)
            writer.write_eof()
            assert await reader.readexactly(8) == b"\x05\x02\x01\x00" + SUCCESS
            await reader.readexactly(6)
            assert await reader.read() == payload

    run(main)


async def authenticate(server: Server, octets: bytes) -> bytes:
    """What a server answers to octets in the place of user name and password, up to its end if it refuses."""
    async with client(server.addresses[0]) as (reader, writer):
        assert await greet((reader, writer), b"\x02") == 2
        writer.write(octets)
        answer = await reader.read(2)
        return answer if answer == b"\x01\x00" else answer + await reader.read()


def test_c13_wrong_password(run: Run) -> None:
    """A wrong password and an unknown user get 01 01, and then the connection ends; the right one gets 01 00."""

    async def main() -> None:
        async with Server(LOOPBACK, users={"alice": "secret"}) as server:
            assert await authenticate(server, credentials(b"alice", b"secret")) == b"\x01\x00"
            assert await authenticate(server, credentials(b"alice", b"Secret")) == b"\x01\x01"
            assert await authenticate(server, credentials(b"bob", b"secret")) == b"\x01\x01"

    run(main)


@pytest.mark.parametrize("version", [0, 2, 5])
def test_c13_wrong_version(run: Run, version: int) -> None:
    """VER of user name and password is 01: anything else ends the connection, whatever stands behind it."""

    async def main() -> None:
        async with Server(LOOPBACK, users={"alice": "secret"}) as server:
            octets = bytes([version]) + credentials(b"alice", b"secret")[1:]
            assert await authenticate(server, octets) == b""

    run(main)


def test_c14_longest_user_name_and_password(run: Run) -> None:
    """255 octets each are compared to the last one."""

    async def main() -> None:
        async with Server(LOOPBACK, users={"u" * 255: "p" * 255}) as server:
            assert await authenticate(server, credentials(b"u" * 255, b"p" * 255)) == b"\x01\x00"
            assert await authenticate(server, credentials(b"u" * 255, b"p" * 254 + b"q")) == b"\x01\x01"
            assert await authenticate(server, credentials(b"u" * 254 + b"v", b"p" * 255)) == b"\x01\x01"
            assert await authenticate(server, credentials(b"u" * 255, b"p" * 254)) == b"\x01\x01"

    run(main)


def test_c14_any_octets(run: Run) -> None:
    """All 256 octets may stand in a name and a password, and arrive as they were sent."""

    async def main() -> None:
        first, second = bytes(range(255)), bytes(range(255, 0, -1))
        doorman = Doorman()
        async with Server(LOOPBACK, authenticate=doorman) as server:
            assert await authenticate(server, credentials(first, second)) == b"\x01\x01"
            assert await authenticate(server, credentials(second, second)) == b"\x01\x00"
        username, password, _ = doorman.asked[0]
        assert username.encode("utf-8", "surrogateescape") == first
        assert password.encode("utf-8", "surrogateescape") == second

    run(main)


def test_c14_a_password_is_octets_not_text(run: Run) -> None:
    """A password is its UTF-8 octets: another spelling, another case or a NUL behind it differ."""

    async def main() -> None:
        async with Server(LOOPBACK, users={"zo\u00eb": "caf\u00e9"}) as server:
            name = "zo\u00eb".encode()
            assert await authenticate(server, credentials(name, "caf\u00e9".encode())) == b"\x01\x00"
            for other in (
                "cafe\u0301".encode(),
                "caf\u00e9".encode("latin-1"),
                "CAF\u00c9".encode(),
                b"caf\xc3\xa9\x00",
            ):
                assert await authenticate(server, credentials(name, other)) == b"\x01\x01"

    run(main)


@pytest.mark.parametrize(("username", "password"), [(b"", b"secret"), (b"alice", b""), (b"", b"")])
def test_c14_empty_fields(run: Run, username: bytes, password: bytes) -> None:
    """ULEN 0 and PLEN 0 are read as what they are, match nobody, and are not waited on."""

    async def main() -> None:
        async with Server(LOOPBACK, users={"alice": "secret"}) as server:
            assert await authenticate(server, credentials(username, password)) == b"\x01\x01"

    run(main)


def test_c14_a_password_of_255_zero_octets(run: Run) -> None:
    """Zero octets end nothing and stand for nothing."""

    async def main() -> None:
        async with Server(LOOPBACK, users={"alice": "secret", "zero": "\x00" * 255}) as server:
            assert await authenticate(server, credentials(b"alice", b"\x00" * 255)) == b"\x01\x01"
            assert await authenticate(server, credentials(b"zero", b"\x00" * 255)) == b"\x01\x00"
            assert await authenticate(server, credentials(b"zero", b"\x00" * 254)) == b"\x01\x01"

    run(main)


def test_c15_passwords_are_secrets(run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """No password, right or wrong, is in the access log, in any other log, or in the server's repr."""
    access = tmp_path / "access.log"
    caplog.set_level(0)

    async def main() -> str:
        async with Server(users={"alice": "hunter2"}, config=logged(access)) as server:
            assert await authenticate(server, credentials(b"alice", b"hunter2")) == b"\x01\x00"
            assert await authenticate(server, credentials(b"alice", b"hunter3")) == b"\x01\x01"
            assert await authenticate(server, credentials(b"nobody", b"hunter5")) == b"\x01\x01"
            assert await authenticate(server, b"\x05\x05alice\x07hunter6") == b""
            return f"{server!r} {server.urls} {server.config!r} {server.compiled.users!r}"

    text = run(main)
    lines = access.read_text()
    assert lines.count("wrong user name or password") == 2
    assert "hunter" not in lines + caplog.text + text


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
def test_c16_two_replies(run: Run, source: str) -> None:
    """The first says where the peer may call, and somebody listens there by then; the second says who has called."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            bound = await open_bind((reader, writer), source)
            assert bound.port
            async with caller(bound, source) as (far_reader, far_writer):
                peer = await read_bound(reader)
                assert (str(peer.host), peer.port) == far_writer.get_extra_info("sockname")
                writer.write(b"ping")
                assert await far_reader.readexactly(4) == b"ping"
                far_writer.write(b"pong")
                assert await reader.readexactly(4) == b"pong"

    run(main)


def test_c16_a_peer_from_another_address_is_refused(run: Run) -> None:
    """It is reset, the client hears nothing of it, and the expected peer still gets through."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            bound = await open_bind((reader, writer), "127.0.0.2")
            await expect_reset(bound, "127.0.0.1")
            async with caller(bound, "127.0.0.2"):
                assert str((await read_bound(reader)).host) == "127.0.0.2"

    run(main)


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
def test_c16_anyone_may_call_where_nobody_is_named(run: Run, source: str) -> None:
    """DST 0.0.0.0 expects nobody in particular; BND is an address that can be called, not 0.0.0.0."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            bound = await open_bind((reader, writer), "0.0.0.0")
            assert str(bound.host) == "127.0.0.1"
            async with caller(bound, source):
                assert str((await read_bound(reader)).host) == source

    run(main)


def test_c16_nobody_calls(run: Run) -> None:
    """When timeouts.bind is over, the second reply is a failure, 06, and behind it the connection ends."""

    async def main() -> None:
        async with Server(config=config(bind=0.2)) as server, client(server.addresses[0]) as (reader, writer):
            await open_bind((reader, writer))
            assert (await read_reply(reader))[0] == 6
            assert await end_of(reader) == "end"

    run(main)


def test_c16_a_client_that_leaves_ends_its_bind(run: Run) -> None:
    """Nobody listens any more once the client has ended the connection."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            bound = await open_bind((reader, writer))
            writer.write_eof()
            assert await end_of(reader) == "end"
            with pytest.raises(ConnectionRefusedError):
                async with caller(bound):
                    pass

    run(main)


@pytest.mark.parametrize("declared", [None, Address(UNSPECIFIED.host, 0)], ids=["by the first datagram", "declared"])
def test_c17_only_the_clients_datagrams(run: Run, declared: Address | None) -> None:
    """Another address, and another port once the client's is known, are not relayed; the client goes on."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, association(server.addresses[0], declared) as client:
            relay = (str(client.relay.host), client.relay.port)
            with udp_socket("127.0.0.2") as elsewhere, udp_socket() as later, destination() as echo:
                elsewhere.sendto(echo.header + b"too early", relay)
                if declared is not None:
                    later.sendto(echo.header + b"too early", relay)
                assert unwrap(await client.ask(echo.header + b"one")) == (echo.address, b"one")
                elsewhere.sendto(echo.header + b"another address", relay)
                later.sendto(echo.header + b"another port", relay)
                assert unwrap(await client.ask(echo.header + b"two")) == (echo.address, b"two")
                assert [data for data, _ in echo.received] == [b"one", b"two"]

    run(main)


def test_c18_the_association_ends_with_its_connection(run: Run) -> None:
    """When the control connection ends, so does the port: a datagram there meets nobody."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with (
            Server(LOOPBACK, on_close=ended.put_nowait) as server,
            association(server.addresses[0]) as client,
        ):
            with destination() as echo:
                await client.ask(echo.header + b"x")
                client.leave()
                assert (await ended.get()).close == "client"
                with udp_socket() as sock:
                    sock.connect((str(client.relay.host), client.relay.port))
                    sock.send(echo.header + b"y")
                    with pytest.raises(ConnectionRefusedError):
                        await receive(sock)
                assert [data for data, _ in echo.received] == [b"x"]

    run(main)


@pytest.mark.parametrize(
    ("frags", "arrives"),
    [
        ((1, 2, 0x83), [b"123"]),
        ((0x81,), [b"1"]),
        ((2, 1, 0x83), []),
        ((1, 0x83), []),
        ((2, 0x83), []),
        ((1, 2, 1, 0x82), [b"34"]),
        ((1, 2), []),
        ((0x80,), []),
    ],
)
def test_c19_fragments_are_put_together_or_dropped(run: Run, frags: tuple[int, ...], arrives: list[bytes]) -> None:
    """In the order of their positions, up to the one that is marked as the last; never is a part relayed as a whole."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, association(server.addresses[0]) as client:
            with destination() as echo:
                for number, frag in enumerate(frags, 1):
                    client.send(echo.header[:2] + bytes([frag]) + echo.header[3:] + b"%d" % number)
                client.send(echo.header + b"whole")
                for expected in [*arrives, b"whole"]:
                    assert unwrap(await client.receive()) == (echo.address, expected)
                assert [data for data, _ in echo.received] == [*arrives, b"whole"]

    run(main)


def test_c19_fragments_can_be_dropped_altogether(run: Run) -> None:
    """fragments = "drop": then nothing comes of them."""

    async def main() -> None:
        listen = Listen(LOOPBACK, udp=Udp(fragments="drop"))
        async with Server(config=config(listen)) as server, association(server.addresses[0]) as client:
            with destination() as echo:
                for frag in (1, 0x82, 0x81):
                    client.send(echo.header[:2] + bytes([frag]) + echo.header[3:] + b"part")
                assert unwrap(await client.ask(echo.header + b"whole")) == (echo.address, b"whole")
                assert [data for data, _ in echo.received] == [b"whole"]

    run(main)


@pytest.mark.parametrize("ports", [None, "shared"])
def test_c20_the_port_can_be_reached(run: Run, ports: str | None) -> None:
    """On a listener on all addresses, BND is the one that the client has connected to, and datagrams reach it."""

    async def main() -> None:
        listen = Listen("socks5://0.0.0.0:0", udp=Udp(ports=ports))
        async with Server(config=config(listen), open=True) as server:
            place = Address(parse_address("127.0.0.1:0").host, server.addresses[0].port)
            async with association(place) as client:
                assert client.relay.host == place.host
                with destination() as echo:
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

    run(main)


def test_c21_a_bad_datagram_harms_nobody(run: Run) -> None:
    """Rubbish is dropped; the good datagrams around it, of this association and of another, pass."""

    async def main() -> None:
        async with (
            Server(LOOPBACK) as server,
            association(server.addresses[0]) as client,
            association(server.addresses[0]) as other,
        ):
            with destination() as echo:
                for rubbish in (
                    b"",
                    b"\0",
                    b"\0\0\0\1\x7f",
                    b"\0\0\0\2" + bytes(30),
                    b"\0\0\0\3\xffshort",
                    b"GET / HTTP",
                ):
                    client.send(rubbish)
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                    assert unwrap(await other.ask(echo.header + b"y")) == (echo.address, b"y")

    run(main)


def test_c21_a_closed_port_harms_nobody(run: Run) -> None:
    """A destination whose port is closed (ICMP says so) takes nothing from the others."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, association(server.addresses[0]) as client:
            with udp_socket() as gone:
                closed = encode_header(parse_address(f"127.0.0.1:{gone.getsockname()[1]}"))
            with destination() as echo:
                for _ in range(3):
                    client.send(closed + b"x")
                    assert unwrap(await client.ask(echo.header + b"y")) == (echo.address, b"y")

    run(main)


def test_c22_a_reply_bears_its_sender(run: Run) -> None:
    """The header of a reply has the address and port that it came from, also where that is another port."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, association(server.addresses[0]) as client:
            with udp_socket() as other, destination(answer=lambda data, sender: []) as echo:
                client.send(echo.header + b"x")
                await until(lambda: echo.received)
                other.sendto(b"from another port", echo.received[0][1])
                sender = Address(echo.address.host, other.getsockname()[1])
                assert unwrap(await client.receive()) == (sender, b"from another port")

    run(main)


@pytest.mark.parametrize("size", [9_000, 60_000, 65_497])
def test_c23_long_datagrams_are_whole(run: Run, size: int) -> None:
    """Up to the longest that there is, 65,507 octets with the header."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, association(server.addresses[0]) as client:
            with destination() as echo:
                payload = (b"%d" % size * size)[:size]
                assert unwrap(await client.ask(echo.header + payload)) == (echo.address, payload)

    run(main)


def test_c23_what_is_too_long_is_dropped(run: Run) -> None:
    """A reply that is too long with its header does not come cut."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, association(server.addresses[0]) as client:
            with destination(answer=lambda data, sender: [(bytes(65_507), sender), (b"next", sender)]) as echo:
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"next")

    run(main)


def test_c24_names_in_datagrams(run: Run) -> None:
    """ATYP 3: resolved once for the association, while datagrams to others pass."""

    async def main() -> None:
        resolver = FakeResolver({"here.test": ["127.0.0.1"]})
        async with Server(LOOPBACK, resolver=resolver) as server, association(server.addresses[0]) as client:
            with destination() as echo:
                named = encode_header(Address("here.test", echo.address.port))
                resolver.answering.clear()
                client.send(named + b"by name")
                assert unwrap(await client.ask(echo.header + b"by address")) == (echo.address, b"by address")
                resolver.answering.set()
                assert unwrap(await client.receive()) == (echo.address, b"by name")
                assert unwrap(await client.ask(named + b"again")) == (echo.address, b"again")
                assert resolver.asked == ["here.test"]

    run(main)


def test_c25_half_close(run: Run) -> None:
    """A client that has ended its direction still gets everything from the destination."""

    async def main() -> None:
        size = 1 << 20

        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == b"question"
            writer.write(bytes(size))
            await writer.drain()

        async with (
            target(late) as port,
            Server(LOOPBACK) as server,
            tunnel(server.addresses[0], port) as (reader, writer),
        ):
            writer.write(b"question")
            writer.write_eof()
            assert await reader.read() == bytes(size)

    run(main)


def test_c25_half_close_by_the_destination(run: Run) -> None:
    """The other way round: the destination has ended, and still gets everything from the client."""

    async def main() -> None:
        received: asyncio.Queue[int] = asyncio.Queue()

        async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write_eof()
            received.put_nowait(len(await reader.read()))

        async with (
            target(early) as port,
            Server(LOOPBACK) as server,
            tunnel(server.addresses[0], port) as (reader, writer),
        ):
            assert await reader.read() == b""
            writer.write(bytes(1 << 20))
            writer.write_eof()
            assert await received.get() == 1 << 20

    run(main)


@pytest.mark.parametrize("reserved", [0x01, 0x7F, 0xFF])
def test_c29_reserved_octet(run: Run, reserved: int) -> None:
    """RSV of a request is not looked at; that of a reply is 00."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
            assert await greet((reader, writer)) == 0
            octets = bytearray(request("127.0.0.1", port))
            octets[2] = reserved
            writer.write(octets)
            assert await reader.readexactly(4) == SUCCESS

    run(main)


def test_c30_the_deadline_covers_the_whole_handshake(run: Run) -> None:
    """A client that sends an octet now and then is cut off at the deadline: no octet prolongs it."""

    async def main() -> None:
        async with Server(config=config(handshake=0.3)) as server, client(server.addresses[0]) as (reader, writer):
            began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                ended = tasks.create_task(end_of(reader))
                writer.write(b"\x05\xff")
                for _ in range(250):
                    writer.write(b"\x00")
                    if (await asyncio.wait([ended], timeout=0.05))[0]:
                        break
                assert ended.done(), "the greeting is nearly complete: no deadline"
            assert 0.25 < time.monotonic() - began < 5

    run(main)


SOCKS4 = "socks4://127.0.0.1:0"
REQUEST4 = b"\x04\x01\x00\x50\x7f\x00\x00\x01"
REQUEST4A = b"\x04\x01\x00\x50\x00\x00\x00\x01"
REFUSED4 = b"\x00\x5b" + bytes(6)


def test_c31_a_socks4_request(run: Run) -> None:
    """04, CD, DSTPORT, DSTIP, USERID, NUL; of 4a the name and NUL: 00 5A and the proxy's own address, then octets."""

    async def main() -> None:
        resolver = FakeResolver({"n" * 63 + ".test": ["127.0.0.1"]})
        async with Server(SOCKS4, resolver=resolver) as server, target() as port:
            place = port.to_bytes(2, "big")
            for octets in (
                b"\x04\x01" + place + b"\x7f\x00\x00\x01alice\x00",
                b"\x04\x01" + place + b"\x00\x00\x00\xffalice\x00" + b"n" * 63 + b".test\x00",
            ):
                async with client(server.addresses[0]) as (reader, writer):
                    writer.write(octets + b"early")
                    reply = await reader.readexactly(8)
                    assert (reply[:2], reply[4:]) == (b"\x00\x5a", b"\x7f\x00\x00\x01")
                    assert await reader.readexactly(5) == b"early"

    run(main)


def test_c31_a_name_of_255_octets(run: Run) -> None:
    """It is resolved; one more is 5B, and so is none."""

    async def main() -> None:
        resolver = FakeResolver()
        async with Server(SOCKS4, resolver=resolver) as server:
            name = ".".join(["n" * 63] * 4)
            for host, asked in ((name, [name]), (name + "n", [name]), ("", [name])):
                async with client(server.addresses[0]) as (reader, writer):
                    writer.write(REQUEST4A + b"\x00" + host.encode() + b"\x00")
                    assert await reader.read() == REFUSED4
                    assert resolver.asked == asked

    run(main)


@pytest.mark.parametrize("head", [REQUEST4, REQUEST4A + b"user\x00"], ids=["userid", "name"])
@pytest.mark.parametrize("tail", [b"x" * 10_000 + b"\x00", b"x" * 10_000], ids=["long", "no nul"])
def test_c31_a_field_that_is_too_long(run: Run, head: bytes, tail: bytes) -> None:
    """A USERID or a name of 10,000 octets, with its NUL or without, is 5B at once, and is not collected."""

    async def main() -> None:
        async with Server(SOCKS4) as server, client(server.addresses[0]) as (reader, writer):
            writer.write(head + tail)
            assert await reader.read() == REFUSED4

    run(main)


def test_c31_a_userid_proves_nothing(run: Run) -> None:
    """Where users are required, SOCKS4 is 5B."""

    async def main() -> None:
        mixed = "mixed://127.0.0.1:0"  # nobody could use a listener that has nothing but SOCKS4: it is refused
        async with Server(mixed, users={"alice": "secret"}) as server, client(server.addresses[0]) as (reader, writer):
            writer.write(REQUEST4 + b"alice\x00")
            assert await reader.read() == REFUSED4

    run(main)


def test_c31_bind(run: Run) -> None:
    """Two replies of 8 octets: where the proxy listens, and who has called."""

    async def main() -> None:
        async with Server(SOCKS4) as server, client(server.addresses[0]) as (reader, writer):
            writer.write(b"\x04\x02\x00\x00\x7f\x00\x00\x01\x00")
            first = await reader.readexactly(8)
            assert (first[:2], first[4:]) == (b"\x00\x5a", b"\x7f\x00\x00\x01")
            async with caller(parse_address(f"127.0.0.1:{int.from_bytes(first[2:4], 'big')}")) as (_, far):
                port = far.get_extra_info("sockname")[1]
                assert await reader.readexactly(8) == b"\x00\x5a" + port.to_bytes(2, "big") + b"\x7f\x00\x00\x01"

    run(main)


def test_c32_a_client_that_nobody_knows_holds_little_memory(run: Run) -> None:
    """Before its user is known, less than 1 KiB of what a client sends is taken out of the kernel's queue."""

    async def main() -> None:
        doorman = Doorman()
        doorman.answering.clear()
        async with Server(LOOPBACK, authenticate=doorman) as server, client(server.addresses[0]) as (reader, writer):
            ports = server.addresses[0].port, writer.get_extra_info("sockname")[1]
            writer.write(b"\x05\xff" + b"\x02" * 255)
            assert await reader.readexactly(2) == b"\x05\x02"
            writer.write(credentials(b"u" * 255, b"p" * 255))
            await until(lambda: doorman.asked)
            flood = 100_000
            writer.write(bytes(flood))
            await writer.drain()
            await until(lambda: not writer.transport.get_write_buffer_size())
            await until(lambda: queued(ports[1], ports[0])[0] == 0)
            assert queued(*ports)[1] > flood - 1024

    run(main)


@pytest.mark.parametrize("users", [True, False])
def test_c32_a_greeting_that_does_not_end(run: Run, users: bool) -> None:
    """Octets without end in place of a handshake end the connection; they are not collected."""

    async def main() -> None:
        known = {"alice": "secret"} if users else None
        async with Server(LOOPBACK, users=known) as server, client(server.addresses[0]) as (_reader, writer):
            for _ in range(200):
                writer.write(b"\x05\xff" + b"\x02" * 255 + b"\x00" * 65536)
                try:
                    await writer.drain()
                except ConnectionError:
                    break
            await until(lambda: not server.parts.sessions.running)

    run(main)


def test_c33_a_reset_by_the_destination_is_a_reset(run: Run) -> None:
    """A client whose destination was reset sees a reset, not an orderly end."""

    async def main() -> None:
        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(2)
            reset(writer)

        async with (
            target(vanish) as port,
            Server(LOOPBACK) as server,
            tunnel(server.addresses[0], port) as (reader, writer),
        ):
            writer.write(b"go")
            with pytest.raises(ConnectionResetError):
                await reader.read()

    run(main)


def test_c33_a_reset_by_the_client_is_a_reset(run: Run) -> None:
    """A destination whose client was reset sees a reset, not an orderly end."""

    async def main() -> None:
        seen: asyncio.Queue[str] = asyncio.Queue()
        begun = asyncio.Event()

        async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(2)
            begun.set()
            seen.put_nowait(await end_of(reader))

        async with target(watch) as port, Server(LOOPBACK) as server, tunnel(server.addresses[0], port) as (_, writer):
            writer.write(b"go")
            await begun.wait()
            reset(writer)
            assert await seen.get() == "reset"

    run(main)


def test_c34_idle_limits_are_idle_not_absolute(run: Run) -> None:
    """A tunnel with traffic lives longer than the idle limit, and ends when the traffic stops."""

    async def main() -> None:
        async with (
            target() as port,
            Server(config=config(idle=0.5, half_closed=0.5)) as server,
            tunnel(server.addresses[0], port) as (reader, writer),
        ):
            until_when = time.monotonic() + 1.2
            while time.monotonic() < until_when:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                await asyncio.sleep(0.02)
            assert await end_of(reader) in ("end", "reset")

    run(main)


def test_c34_an_association_in_use_is_not_cut(run: Run) -> None:
    """Datagrams in time keep it, for longer than the limit; without any it ends, and the control connection with it."""

    async def main() -> None:
        async with Server(config=config(udp_idle=0.5)) as server, association(server.addresses[0]) as client:
            with destination() as echo:
                until_when = time.monotonic() + 1.2
                while time.monotonic() < until_when:
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                    await asyncio.sleep(0.02)
            assert await end_of(client.reader) == "end"

    run(main)


OUTSIDE, FRONT = parse_address("203.0.113.9:50000"), parse_address("198.51.100.1:1080")
TRUSTING = Listen("mixed://127.0.0.1:0", proxy_protocol=["127.0.0.1"])


@pytest.mark.parametrize("header", [encode_v1(OUTSIDE, FRONT), encode_v2(OUTSIDE, FRONT)], ids=["v1", "v2"])
def test_c35_the_header_says_who_the_client_is(run: Run, header: bytes) -> None:
    """Behind a proxy on loopback a client from outside is one from outside: 02 for an inner destination."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(config=config(TRUSTING), open=True, on_close=ended.put_nowait) as server:
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(header + b"\x05\x01\x00" + request("127.0.0.1", 80))
                assert (await reader.read())[:4] == b"\x05\x00\x05\x02"
            assert (await ended.get()).client == OUTSIDE

    run(main)


def test_c35_a_header_from_a_stranger(run: Run) -> None:
    """It ends the connection without an answer."""

    async def main() -> None:
        async with Server("mixed://127.0.0.1:0") as server, client(server.addresses[0]) as (reader, writer):
            writer.write(encode_v1(OUTSIDE, FRONT) + b"\x05\x01\x00")
            assert await end_of(reader) in ("end", "reset")

    run(main)


def test_c35_a_trusted_proxy_without_a_header(run: Run) -> None:
    """It ends the connection too: whose it is nobody knows."""

    async def main() -> None:
        async with (
            Server(config=config(TRUSTING), open=True) as server,
            client(server.addresses[0]) as (reader, writer),
        ):
            writer.write(b"\x05\x01\x00")
            assert await end_of(reader) in ("end", "reset")

    run(main)


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", encode_v2(None, None, local=True)], ids=["UNKNOWN", "LOCAL"])
def test_c36_health_checks_are_the_proxys_own(run: Run, header: bytes) -> None:
    """The client is then who has connected."""

    async def main() -> None:
        async with (
            Server(config=config(TRUSTING), open=True) as server,
            client(server.addresses[0]) as (reader, writer),
        ):
            writer.write(header)
            assert await greet((reader, writer)) == 0
            (session,) = server.parts.sessions.running
            assert (str(session.client.host), session.client.port) == writer.get_extra_info("sockname")

    run(main)


def test_c37_a_wrong_checksum(run: Run) -> None:
    """A right one is let through, one bit beside it ends the connection."""

    async def main() -> None:
        header = encode_v2(OUTSIDE, FRONT, checksum=True)
        async with Server(config=config(TRUSTING), open=True) as server:
            async with client(server.addresses[0]) as streams:
                streams[1].write(header)
                assert await greet(streams) == 0
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(header[:-1] + bytes([header[-1] ^ 1]) + b"\x05\x01\x00")
                assert await end_of(reader) in ("end", "reset")

    run(main)


@pytest.mark.parametrize("version", [1, 2])
def test_c38_destinations_learn_who_the_client_is(run: Run, version: Literal[1, 2]) -> None:
    """The header is the first that a destination reads, with the client's address and its own."""

    async def main() -> None:
        encode = encode_v1 if version == 1 else encode_v2
        settings = msgspec.structs.replace(config(), egress={"direct": EgressConfig(version)})
        async with Server(config=settings) as server, target() as port, tunnel(server.addresses[0], port) as streams:
            reader, writer = streams
            own = from_sockaddr(writer.get_extra_info("sockname"))
            header = encode(own, parse_address(f"127.0.0.1:{port}"))
            writer.write(b"early")
            assert await reader.readexactly(len(header) + 5) == header + b"early"

    run(main)


def test_the_document_names_these_tests() -> None:
    """docs/conformance.md lists every test of a point, under its point, and no other."""
    rows = (Path(__file__).parent.parent / "docs" / "conformance.md").read_text().splitlines()
    named = {name for row in rows for name in re.findall(r"`(test_c\d\d_\w+)`", row)}
    assert named == {name for name in globals() if name.startswith("test_c")}
    for row in rows:
        for point, name in ((row.split("|")[1].strip(), name) for name in re.findall(r"`test_c(\d\d)_", row)):
            assert point == f"C{int(name)}"
