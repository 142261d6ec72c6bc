"""Connections whose sessions have not begun: how many begin in a turn, in which order, and what becomes of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from conftest import Run
from doubles import LOOPBACK, until
from support import request, target
from tabi import Server
from tabi.net.reactor import BUDGET, Reactor
from tabi.server.arrivals import LEAST, MOST, Admitted, Arrival, Arrivals
from tabi.server.clients import Clients
from tabi.wire.address import Address, parse_address

PEER = parse_address("192.0.2.1:1000")


class Turns:
    """A reactor whose turns the test makes, and a count for each address."""

    def __init__(self) -> None:
        self.started = self.lasted = 0.0
        self.is_late = False
        self.put_off: list[Callable[[], object]] = []
        self.begun: list[Any] = []
        self.given_up: list[Any] = []
        self.counts: dict[int, int] = {}
        self.arrivals = Arrivals(cast("Reactor", self), 10.0, cast("Clients", self))

    def late(self) -> bool:
        return self.is_late

    def later(self, callback: Callable[[], object]) -> None:
        self.put_off.append(callback)

    def turn(self, lasted: float = 0.0) -> None:
        """A turn of the loop, behind one that took so long."""
        self.started += 1
        self.lasted = lasted
        put_off, self.put_off = self.put_off, []
        for callback in put_off:
            callback()

    def wait(self, arrival: Arrival) -> None:
        assert arrival.admitted is not None
        self.counts[arrival.admitted[0]] = self.counts.get(arrival.admitted[0], 0) + 1

    def leave(self, arrival: Arrival) -> None:
        assert arrival.admitted is not None
        self.counts[arrival.admitted[0]] -= 1

    def give_up(self, arrival: Arrival) -> None:
        self.given_up.append(arrival.sock)

    def begin(self, sock: Any, peer: Address, admitted: Admitted | None) -> None:
        assert peer is PEER
        self.begun.append(sock)

    def add(self, name: str, since: float = float("inf")) -> None:
        """A connection of an address, the number in its name, accepted at that time."""
        self.arrivals.add(Arrival(self.begin, name, PEER, (int(name[0]), None), since))


def test_each_address_has_its_turn() -> None:
    """However many one has: the others wait for one of its sessions, and those of one address keep their order."""
    turns = Turns()
    turns.arrivals.most = LEAST
    for name in ("1a", "1b", "1c", "1d", "2a", "2b", "3a"):
        turns.add(name)
    assert (turns.arrivals.count, turns.counts) == (7, {1: 4, 2: 2, 3: 1})
    turns.turn(lasted=2 * BUDGET)
    assert turns.begun == ["1a", "2a", "3a", "1b"]
    turns.add("4a")
    turns.turn(lasted=2 * BUDGET)
    assert turns.begun[4:] == ["2b", "1c", "4a", "1d"]
    assert (turns.arrivals.count, turns.put_off) == (0, [])
    assert not any(turns.counts.values())


def test_fewer_begin_while_turns_take_long() -> None:
    """Half as many after each turn that was over its time, and again more one by one; one at least when it is late."""
    turns, counts = Turns(), []
    for lasted in (0.0, *[2 * BUDGET] * 5, 0.0, 0.0):
        turns.started += 1
        turns.lasted = lasted
        counts.append(sum(turns.arrivals.may_begin() for _ in range(2 * MOST)))
    assert counts == [64, 32, 16, 8, 4, 4, 8, 12]
    turns.started += 1
    turns.is_late = True
    assert [turns.arrivals.may_begin() for _ in range(3)] == [True, False, False]


def test_who_has_waited_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a handshake may take; what waits when the server closes is given up too."""
    monkeypatch.setattr("tabi.server.arrivals.monotonic", lambda: 100.0)
    turns = Turns()
    for name, since in (("1a", 89.0), ("1b", 91.0), ("2a", 90.0)):
        turns.add(name, since)
    turns.turn()
    assert (turns.begun, turns.given_up) == (["1b"], ["1a", "2a"])
    turns.add("1c", 99.0)
    turns.arrivals.close()
    assert turns.given_up[2:] == ["1c"]
    assert (turns.arrivals.count, turns.counts) == (0, {1: 0, 2: 0})
    turns.turn()
    assert turns.begun == ["1b"]


def test_a_crowd_is_served_and_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections than a turn begins: each gets its answer, and nothing stays counted."""
    monkeypatch.setattr("tabi.server.arrivals.MOST", 4)

    async def main() -> None:
        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with target(swallow) as port, Server(LOOPBACK) as server:
            sessions = server.parts.sessions
            sessions.arrivals.most = 1

            async def connect() -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.addresses[0].port)
                writer.write(b"\5\1\0" + request("127.0.0.1", port))
                assert (await reader.readexactly(12))[:4] == b"\5\0\5\0"
                writer.close()

            async with asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(connect())
            await until(lambda: not sessions.running)
            assert (sessions.arrivals.count, sessions.handshake.counts) == (0, {})

    run(main)


def test_a_server_that_closes_resets_what_waits(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays open, and nothing stays counted."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            sessions = server.parts.sessions
            monkeypatch.setattr(sessions.arrivals, "may_begin", lambda: False)
            with socket.create_connection(("127.0.0.1", server.addresses[0].port)) as client:
                client.setblocking(False)
                await until(lambda: sessions.arrivals.count == 1)
                assert server.parts.room() == server.parts.capacity - 1
                await server.close()
                with pytest.raises(ConnectionResetError):
                    await asyncio.get_running_loop().sock_recv(client, 1)
            assert (sessions.arrivals.count, sessions.handshake.counts) == (0, {})

    run_once(main)
