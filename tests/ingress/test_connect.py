"""CONNECT: what the guard lets through, what is dialled, and that nothing is left when it goes wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import Run
from doubles import (
    LOOPBACK,
    SUCCESS,
    FakeResolver,
    Scene,
    ask_for,
    client_from,
    greet,
    logged,
    open_tunnel,
    read_reply,
    reset,
    until,
)
from support import client, request, reset_on_close, target
from tabi import Server, Session
from tabi.net.dial import Dialer
from tabi.net.stream import Stream
from tabi.relay.carrier import carry_of
from tabi.relay.tunnel import Tunnel, Tunnels
from tabi.wire.address import Address

OUTSIDE = "203.0.113.9"

INNER = (
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd12:3456::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",
)


async def ask_from(server: Server, host: str, wanted: str, port: int) -> int:
    """What a client at ``host`` is answered. A refusal must be followed by the end."""
    async with client_from(server, host) as (reader, writer):
        assert await greet((reader, writer)) == 0
        writer.write(request(wanted, port))
        reply_code, _ = await read_reply(reader)
        if reply_code:
            assert await reader.read() == b""
        return reply_code


@pytest.mark.parametrize("host", INNER)
def test_a_client_from_outside_does_not_reach_inner_addresses(run: Run, host: str) -> None:
    """Loopback, link-local, private, multicast, and IPv4 dressed as IPv6: 02, whether by address or by name."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        resolver = FakeResolver({"inner.test": [host]})
        async with Server(LOOPBACK, resolver=resolver, on_close=ended.put_nowait) as server:
            for wanted in (host, "inner.test"):
                assert await ask_from(server, OUTSIDE, wanted, 80) == 2
                session = await ended.get()
                assert (session.close, session.reply_code, session.address) == ("denied", 2, None)
                assert session.error is not None
                assert session.error.startswith("guard: ")

    run(main)


@pytest.mark.parametrize(
    "addresses",
    [
        ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"],
        ["2606:4700::1111", "fe80::1"],
        ["10.0.0.1", "::1"],
    ],
)
def test_one_inner_address_of_a_name_forbids_it(run: Run, addresses: list[str]) -> None:
    """A name that stands for an outer and an inner address is forbidden as a whole: none of them is dialled."""

    async def main() -> None:
        async with Server(LOOPBACK, resolver=FakeResolver({"mixed.test": addresses})) as server:
            assert await ask_from(server, OUTSIDE, "mixed.test", 80) == 2

    run(main)


def test_the_guard_is_asked_with_the_address_that_is_dialled(run: Run) -> None:
    """A name is resolved once: it cannot be an outer address for the guard and an inner one for the connection."""

    async def main() -> None:
        resolver = FakeResolver({"here.test": ["127.0.0.1"]})
        async with Server(LOOPBACK, resolver=resolver) as server, target() as port:
            assert await ask_for(server, "here.test", port) == 0
            assert resolver.asked == ["here.test"]
            assert await ask_from(server, OUTSIDE, "here.test", port) == 2
            assert resolver.asked == ["here.test"] * 2

    run(main)


@pytest.mark.parametrize("inside", ["127.0.0.1", "127.9.9.9", "::1"])
def test_a_client_on_loopback_reaches_inner_addresses(run: Run, inside: str) -> None:
    """It could go there anyway."""

    async def main() -> None:
        async with Server(LOOPBACK, resolver=FakeResolver({"here.test": ["127.0.0.1"]})) as server, target() as port:
            assert await ask_from(server, inside, "127.0.0.1", port) == 0
            assert await ask_from(server, inside, "here.test", port) == 0

    run(main)


@pytest.mark.parametrize("outside", ["192.168.1.7", "10.0.0.1", "fe80::1", "fd00::1", "2001:db8::7"])
def test_a_neighbour_is_outside_too(run: Run, outside: str) -> None:
    """A client from the private network does not reach this machine's loopback through the proxy."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            assert await ask_from(server, outside, "127.0.0.1", 80) == 2

    run(main)


def test_a_name_that_is_an_address_in_text_is_one(run: Run) -> None:
    """An address sent as ATYP 3 is no way around the guard, and needs no resolver."""

    async def main() -> None:
        resolver = FakeResolver()
        async with Server(LOOPBACK, resolver=resolver) as server, target() as port:
            for host, reply_code in ((OUTSIDE, 2), ("127.0.0.1", 0)):
                async with client_from(server, host) as (reader, writer):
                    assert await greet((reader, writer)) == 0
                    writer.write(b"\x05\x01\x00\x03\x09127.0.0.1" + port.to_bytes(2, "big"))
                    assert (await read_reply(reader))[0] == reply_code
            assert resolver.asked == []

    run(main)


def test_a_denied_session_is_in_the_access_log(run: Run, tmp_path: Any) -> None:
    """Its line says close "denied" and why."""
    path = tmp_path / "access.log"

    async def main() -> None:
        async with Server(config=logged(path)) as server:
            assert await ask_from(server, OUTSIDE, "169.254.169.254", 80) == 2
            await until(lambda: not server.parts.sessions.running)

    run(main)
    line = path.read_text()
    assert '"close":"denied"' in line
    assert '"error":"guard: 169.254.169.254 is in 169.254.0.0/16' in line


@pytest.mark.parametrize("host", ["here.test", "both.test", "127.0.0.1"])
def test_what_was_dialled_is_noted(run: Run, host: str) -> None:
    """A session's address is the one that was connected to; its destination is what the client asked for."""

    async def main() -> None:
        async with Scene() as scene, target() as port, client(scene.server.addresses[0]) as streams:
            await open_tunnel(streams, Address(host, port))
            streams[1].write_eof()
            assert await streams[0].read() == b""
            session = await scene.ended.get()
            assert str(session.address) == f"127.0.0.1:{port}"
            assert str(session.destination) == f"{host}:{port}"

    run(main)


def test_a_destination_that_vanishes_at_once_is_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset between the connection and its reply gives a failure reply, not an end without one."""
    dial = Dialer.dial_many
    vanished = asyncio.Event()

    async def dial_late(*arguments: Any) -> Stream:
        stream = await dial(*arguments)
        await vanished.wait()
        return stream

    monkeypatch.setattr(Dialer, "dial_many", dial_late)

    async def main() -> None:
        vanished.clear()

        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reset(writer)
            await writer.wait_closed()
            vanished.set()

        async with Scene() as scene, target(vanish) as port:
            assert await ask_for(scene.server, "both.test", port) == 5
            session = await scene.ended.get()
            assert (session.close, session.reply_code) == ("error", 5)

    run(main)


@pytest.mark.every_hosting
def test_what_the_destination_says_first_comes_behind_the_reply(run: Run) -> None:
    """A destination that speaks at once, and even ends at once, does not overtake the reply."""

    async def main() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 ready\r\n")
            writer.write_eof()
            await reader.read()

        async with Server(LOOPBACK) as server, target(speak) as port:
            for _ in range(20):
                async with client(server.addresses[0]) as (reader, writer):
                    writer.write(b"\x05\x01\x00" + request("127.0.0.1", port))
                    answer = await reader.read()
                    assert answer[:6] == b"\x05\x00" + SUCCESS
                    assert answer[12:] == b"220 ready\r\n"

    run(main)


@pytest.mark.every_hosting
def test_a_client_that_ends_while_it_is_dialled_is_served(run: Run) -> None:
    """A client that sends everything at once and ends its direction still gets the answer."""

    async def main() -> None:
        async with Scene() as scene, target() as port:
            scene.resolver.answering.clear()
            reader, writer = await scene.client()
            writer.write(b"\x05\x01\x00" + request("here.test", port) + b"question")
            writer.write_eof()
            await until(lambda: scene.resolver.asked)
            scene.resolver.answering.set()
            assert (await reader.read())[12:] == b"question"
            session = await scene.ended.get()
            assert (session.close, session.up, session.down) == ("client", 8, 8)

    run(main)


@pytest.mark.every_hosting
def test_a_destination_that_resets_while_the_client_waits(run: Run) -> None:
    """The session of a tunnel that the destination has reset ends as "reset", with what was delivered."""

    async def main() -> None:
        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(4))
            await writer.drain()
            await reader.readexactly(2)
            reset_on_close(writer.get_extra_info("socket"))
            writer.transport.abort()

        async with Scene() as scene, target(vanish) as port, client(scene.server.addresses[0]) as streams:
            await open_tunnel(streams, Address("127.0.0.1", port))
            streams[1].write(b"ping")
            assert await streams[0].readexactly(4) == b"ping"
            streams[1].write(b"go")
            session = await scene.ended.get()
            assert (session.close, session.up, session.down) == ("reset", 6, 4)

    run(main)


def test_a_carrier_of_ones_own_gets_both_streams(run: Run) -> None:
    """Behind the reply, with what the client has sent behind its request, and the session stays the server's until the
    carrier has ended; a server that closes cancels it."""

    async def shout(tunnel: Tunnel) -> None:
        while data := await tunnel.client.receive():
            await tunnel.server.send_all(data.upper())
            await tunnel.client.send_all(await tunnel.server.receive())

    async def main() -> None:
        async with Scene() as scene, target() as port:
            server = scene.server
            server.parts.connect.carrier = carrier = Tunnels(carry_of(shout), server.parts.relays)
            server.closing.push_async_callback(carrier.close, "shutdown")
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(b"\x05\x01\x00" + request("127.0.0.1", port) + b"early")
                assert (await reader.readexactly(12))[2:6] == SUCCESS
                assert await reader.readexactly(5) == b"EARLY"
                writer.write(b"late")
                assert await reader.readexactly(4) == b"LATE"
                (session,) = server.parts.sessions.running
                found = carrier.get(session)
                assert found is not None
                assert found.counts == (9, 9)
                writer.write_eof()
                assert await reader.read() == b""
            session = await scene.ended.get()
            assert (session.close, session.up, session.down) == ("client", 9, 9)
            async with client(server.addresses[0]) as streams:
                await open_tunnel(streams, Address("127.0.0.1", port))
                await server.close()
                assert await streams[0].read() == b""
            session = await scene.ended.get()
            assert session.close == "shutdown"
            assert not server.parts.sessions.running

    run(main)
