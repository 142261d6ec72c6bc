"""What one address may hold of a server: silent connections shut nobody else out."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from conftest import Run
from doubles import SUCCESS, client_from, descriptor_limit, end_of, until
from sockets import turns
from support import request, target
from tabi import Config, Server
from tabi.config import GuardConfig, LimitsConfig, Listen, Log, PerClient, Rate, Seconds, Share, Timeouts
from tabi.server import clients
from tabi.server.clients import Repeated

LISTEN = "mixed://127.0.0.1:0"
ATTACKER = "198.51.100.9"
GUEST = "203.0.113.3"
HOURS = Timeouts(*[Seconds(1e6)] * 7)
DESCRIPTORS = 200
"""Room for 51 sessions."""

SHARE = 12
"""A quarter of them."""


def config(limits: PerClient | None = None, **keys: object) -> Config:
    """A configuration in which nothing ends by itself."""
    listen = Listen(LISTEN, **keys)  # type: ignore[arg-type]
    return Config(
        listen=[listen],
        timeouts=HOURS,
        log=Log("none"),
        limits=LimitsConfig(per_client=limits),
        guard=GuardConfig(deny=[]),
    )


class Crowd:
    """The clients of one server."""

    def __init__(self, server: Server, stack: AsyncExitStack) -> None:
        self.server = server
        self.stack = stack

    async def come(self, host: str, octets: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client of an address, which says something and waits."""
        streams = await self.stack.enter_async_context(client_from(self.server, host))
        streams[1].write(octets)
        await turns(2)
        return streams

    async def attack(self, host: str, count: int, octets: bytes = b"") -> None:
        """Many of them; some are refused."""
        for _ in range(count):
            await self.come(host, octets)

    @property
    def running(self) -> int:
        """Connections that the server has."""
        return len(self.server.parts.sessions.running)

    async def is_served(self, host: str, port: int) -> bool:
        """Whether a client of an address gets what it asks for."""
        reader, writer = await self.come(host, b"\x05\x01\x00")
        try:
            assert await reader.readexactly(2) == b"\x05\x00"
            writer.write(request("127.0.0.1", port))
            return await reader.readexactly(4) == SUCCESS
        except (OSError, asyncio.IncompleteReadError):
            return False


@asynccontextmanager
async def crowd(settings: Config | None = None, descriptors: int = DESCRIPTORS) -> AsyncIterator[Crowd]:
    """A server with little room, and those who want in."""
    with descriptor_limit(descriptors):
        async with Server(config=settings or config(), open=True) as server, AsyncExitStack() as stack:
            with descriptor_limit(4096):  # the clients are of this process too
                yield Crowd(server, stack)
                await stack.aclose()


def test_an_address_has_a_quarter_of_the_room_before_it_asks_for_something(run: Run) -> None:
    """What is more is reset at once; whoever else comes is served, and so is the same address when it has gone."""

    async def main() -> None:
        async with target() as port, crowd() as at:
            assert at.server.parts.capacity == 51
            await at.attack(ATTACKER, SHARE)
            assert at.running == SHARE
            reader, _ = await at.come(ATTACKER)
            assert await end_of(reader) == "end"  # it is a socketpair, which knows no reset
            assert at.running == SHARE
            assert not await at.is_served(ATTACKER, port)
            assert await at.is_served(GUEST, port)
            assert 'limit="unauthenticated"} 2' in at.server.metrics.render()
            sessions = at.server.parts.sessions
            for client in list(sessions.handshake.pending):
                client.expire()
            await until(lambda: not sessions.handshake.pending)
            assert sessions.handshake.counts == {}
            assert await at.is_served(ATTACKER, port)

    run(main)


def test_what_has_come_to_its_request_does_not_count(run_once: Run) -> None:
    """An address may use as much of the room as it likes, if it does not only sit there."""

    async def main() -> None:
        async with target() as port, crowd() as at:
            for _ in range(SHARE * 2):
                assert await at.is_served(GUEST, port)

    run_once(main)


SILENT = {
    "nothing": b"",
    "half a greeting": b"\x05\x03\x00",
    "half a request": b"\x05\x01\x00\x05\x01\x00",
    "half a head": b"GET http://127.0.0.1/ HT",
    "half of SOCKS4": b"\x04\x01\x00\x50",
    "half a ClientHello": b"\x16\x03\x01\x02\x00\x01",
    "a refused greeting": b"\x05\x01\x42",
    "a kept connection": b"OPTIONS http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n",
}


@pytest.mark.parametrize("octets", SILENT.values(), ids=list(SILENT))
@pytest.mark.parametrize("addresses", [3, 100])
def test_many_addresses_together_take_nobodys_place(run_once: Run, octets: bytes, addresses: int) -> None:
    """Each is below its share, all together fill the room: then those go that have waited longest for nothing."""

    async def main() -> None:
        async with target() as port, crowd(config(PerClient(unauthenticated=Share.parse("100%")))) as at:
            acceptor = at.server.parts.acceptors[0]
            for number in range(150):
                if acceptor.room() <= 0:
                    acceptor.make_room()
                    await turns()
                await at.come(f"198.51.100.{number % addresses}", octets)
            assert at.running <= at.server.parts.capacity
            if acceptor.room() <= 0:
                assert acceptor.make_room()
                await turns()
            assert await at.is_served(GUEST, port)

    run_once(main)


def test_an_acceptor_makes_room_by_itself(run: Run) -> None:
    """With connections that come through the kernel: nobody has to wait for a deadline."""

    async def main() -> None:
        with descriptor_limit(DESCRIPTORS):
            async with (
                target() as port,
                Server(config=config(PerClient(unauthenticated=Share.parse("100%")))) as server,
            ):
                with descriptor_limit(4096):
                    address = server.addresses[0]
                    silent = []
                    for number in range(120):
                        sock = socket.socket()
                        silent.append(sock)
                        sock.setblocking(False)
                        sock.bind((f"127.0.0.{10 + number % 50}", 0))
                        sock.connect_ex((str(address.host), address.port))
                    reader, writer = await asyncio.open_connection(str(address.host), address.port)
                    writer.write(b"\x05\x01\x00" + request("127.0.0.1", port))
                    assert (await reader.readexactly(6))[2:] == SUCCESS
                    assert len(server.parts.sessions.running) <= server.parts.capacity
                    writer.close()
                    await writer.wait_closed()
                    for sock in silent:
                        sock.close()

    run(main)


def test_work_that_fills_the_room_is_not_ended_for_others(run_once: Run) -> None:
    """Tunnels stay, and so do the few that come to their request one after another."""

    async def main() -> None:
        async with target() as port, crowd() as at:
            for _ in range(48):
                assert await at.is_served(GUEST, port)
            for _ in range(3):
                await at.come(GUEST)
            assert at.server.parts.room() == 0
            assert not at.server.parts.clients.make_room()
            assert at.running == 51

    run_once(main)


@pytest.mark.parametrize("hosts", [("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::2")])
def test_connections_of_each_address(run_once: Run, hosts: tuple[str, str]) -> None:
    """So many at once, whatever they do; one that ends makes room for another, another address has its own."""

    async def main() -> None:
        async with target() as port, crowd(config(PerClient(connections=2))) as at:
            streams = await at.come(hosts[0])
            assert await at.is_served(hosts[1], port)
            assert not await at.is_served(hosts[0], port)
            assert await at.is_served("2001:db8:0:1::1", port)
            assert await at.is_served("192.0.2.8", port)
            streams[1].close()
            await until(lambda: at.running == 3)
            assert await at.is_served(hosts[1], port)

    run_once(main)


def test_how_often_an_address_may_connect(run_once: Run) -> None:
    """As many at once as the rate says in its time."""

    async def main() -> None:
        async with target() as port, crowd(config(PerClient(connect_rate=Rate.parse("2/d")))) as at:
            assert [await at.is_served(GUEST, port) for _ in range(4)] == [True, True, False, False]
            assert await at.is_served("192.0.2.1", port)

    run_once(main)


def test_a_reload_brings_other_limits(run_once: Run) -> None:
    """For new connections; what was counted stays counted, and what was not is not taken back."""

    async def main() -> None:
        async with target() as port, crowd() as at:
            before = await at.come(GUEST)
            at.server.reload(config(PerClient(connections=1)))
            assert await at.is_served(GUEST, port)
            assert not await at.is_served(GUEST, port)
            before[1].close()
            await until(lambda: at.running == 1)
            assert not await at.is_served(GUEST, port)
            at.server.reload(config(PerClient(unauthenticated=Share.parse(2))))
            assert await at.is_served(GUEST, port)
            await at.attack(GUEST, 3)
            assert at.running == 4

    run_once(main)


def header(host: str) -> bytes:
    """Of the PROXY protocol, for a client of an address."""
    return f"PROXY TCP4 {host} 192.0.2.200 40000 1080\r\n".encode()


def test_behind_a_balancer_its_clients_count(run_once: Run) -> None:
    """As soon as the header has named them; the balancer itself may bring as many as it likes."""

    async def main() -> None:
        settings = config(PerClient(connections=2), proxy_protocol=["192.0.2.0/24"])
        async with target() as port, crowd(settings, 400) as at:
            await at.attack("192.0.2.1", 40)
            assert at.running == 40
            await at.attack("192.0.2.1", 2, header(ATTACKER))
            assert at.running == 42
            refused = await at.come("192.0.2.1", header(ATTACKER))
            assert await refused[0].read() == b""
            assert at.running == 42
            reader, writer = await at.come("192.0.2.1", header(GUEST) + b"\x05\x01\x00" + request("127.0.0.1", port))
            assert (await reader.readexactly(6))[2:] == SUCCESS
            writer.close()
            assert await at.is_served("203.0.113.77", port)

    run_once(main)


def test_clients_of_a_unix_socket_have_no_address(run_once: Run, tmp_path: Path) -> None:
    """They are on this machine, and are not limited."""

    async def main() -> None:
        path = str(tmp_path / "s")
        limits = LimitsConfig(per_client=PerClient(connections=1, unauthenticated=Share.parse(1)))
        settings = Config(listen=[Listen(f"unix://{path}?protocol=mixed")], log=Log("none"), limits=limits)
        async with Server(config=settings) as server, AsyncExitStack() as stack:
            for _ in range(5):
                _, writer = await asyncio.open_unix_connection(path)
                stack.callback(writer.close)
            await until(lambda: len(server.parts.sessions.running) == 5)

    run_once(main)


def test_an_attacker_does_not_fill_the_log(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """One line at once, then one for many; it names the address, the limit and how to find it."""

    async def main() -> None:
        async with crowd(config(PerClient(connections=1))) as at:
            with caplog.at_level(logging.WARNING, "tabi"):
                await at.attack(ATTACKER, 50)
        told = [record.message for record in caplog.records if ATTACKER in record.message]
        first = f"accept: {ATTACKER} is refused: limit: per_client: 1 connections at once"
        assert told == [first, f"{first}; so 48 times in 10 s"]

    run_once(main)


class Clock:
    """A loop's timers, which run when a test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Clock:
        assert seconds == clients.SAY_EVERY
        self.calls.append(callback)
        return self

    def cancel(self) -> None:
        self.calls.clear()

    def ring(self) -> None:
        """The time is over."""
        self.calls.pop()()


def test_messages_of_one_kind_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The first at once, the others in a sum; after a quiet while it begins anew."""
    clock = Clock()
    repeated = Repeated(clock)  # type: ignore[arg-type]
    for kind in ("a", "b", "a", "a"):
        repeated.say(kind, f"of {kind}")
    assert [record.message for record in caplog.records] == ["of a", "of b"]
    clock.ring()
    assert caplog.records[-1].message == "of a; so 2 times in 10 s"
    repeated.say("b", "of b again")
    repeated.say("a", "of a again")
    assert caplog.records[-1].message == "of b again"
    clock.ring()
    assert caplog.records[-1].message == "of a again; so 1 times in 10 s"
    clock.ring()
    assert clock.calls == []
    repeated.close()
    repeated.say("c", "of c")
    repeated.close()
    assert (len(caplog.records), clock.calls) == (6, [])
