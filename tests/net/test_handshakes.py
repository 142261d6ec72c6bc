"""Connections before their request: how many an address has, and which of them end when there is no room."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from conftest import Run
from sockets import tcp_pair, turns
from tabi.errors import LimitExceeded
from tabi.net import handshakes
from tabi.net.handshakes import ENDED_AT_ONCE, Handshakes
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.policy.clients import ClientTable, ClientTerms


class Scene:
    """Handshakes, and clients that say nothing."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.reactor = get_reactor()
        self.under_test = Handshakes(self.reactor.loop, 10)
        self.tasks: dict[Stream, asyncio.Task[bytes]] = {}

    def make(self) -> Stream:
        """A client."""
        near, far = tcp_pair()
        self.stack.enter_context(far)
        stream = Stream(self.reactor, near)
        self.stack.callback(stream.close)
        return stream

    async def silent(self, key: int | None, count: int = 1) -> list[Stream]:
        """Clients of an address that something waits for, and that have asked for nothing."""
        found = [self.make() for _ in range(count)]
        for stream in found:
            self.under_test.start(stream)
            if key is not None:
                self.under_test.count(stream, key)
            await self.wait_for(stream)
        return found

    async def wait_for(self, stream: Stream) -> Stream:
        """Wait for a client in a task."""
        self.tasks[stream] = self.reactor.loop.create_task(stream.receive())
        await asyncio.sleep(0)
        return stream

    async def over(self, stream: Stream) -> BaseException | None:
        """What the task that waits for a client was woken with."""
        await turns()
        task = self.tasks.pop(stream)
        self.under_test.stop(stream)
        assert task.done()
        return task.exception()


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """A scene, closed at the end."""
    with ExitStack() as stack:
        found = Scene(stack)
        try:
            yield found
        finally:
            for task in found.tasks.values():
                task.cancel()
            await asyncio.gather(*found.tasks.values(), return_exceptions=True)
            found.under_test.close()


def test_connections_count_for_their_address_until_their_request(run_once: Run) -> None:
    """Nothing is kept of an address that has none, also if a connection stops twice or has run out of time."""

    async def main() -> None:
        async with scene() as at:
            first, second = await at.silent(7, 2)
            (other,) = await at.silent(8)
            await at.silent(None)
            assert at.under_test.counts == {7: 2, 8: 1}
            at.under_test.stop(first)
            at.under_test.stop(first)
            assert at.under_test.counts == {7: 1, 8: 1}
            del at.under_test.pending[second]  # as `tick` does
            at.under_test.stop(second)
            at.under_test.stop(other)
            assert (at.under_test.counts, at.under_test.keys) == ({}, {})

    run_once(main)


def test_what_the_table_counts_is_told_to_it_once(run_once: Run) -> None:
    """A connection with a row counts there as well, until its request."""

    async def main() -> None:
        table = ClientTable()
        async with scene() as at:
            at.under_test.table = table
            (with_row,) = await at.silent(None)
            (without,) = await at.silent(7)
            row = table.admit(7, ClientTerms(), 0)
            assert row is not None
            at.under_test.count(with_row, 7, row)
            assert sum(table.cells) == 7 + 1 + 1
            at.under_test.stop(without)
            at.under_test.stop(with_row)
            at.under_test.stop(with_row)
            assert sum(table.cells) == 7 + 1

    run_once(main)


def test_those_that_rest_go_first(run: Run) -> None:
    """A kept connection and a refused client before those that have not come to their request; the oldest first."""

    async def main() -> None:
        async with scene() as at:
            await at.silent(1, 3)
            kept = [await at.wait_for(at.make()) for _ in range(ENDED_AT_ONCE)]
            refused = [await at.wait_for(at.make()) for _ in range(2)]
            for stream in refused:
                at.under_test.linger.start(stream)
            at.under_test.kept.update(dict.fromkeys(kept))
            assert at.under_test.make_room(0) == kept
            # Those are about to end: nobody chooses them again.
            assert at.under_test.make_room(100) == refused
            assert at.under_test.make_room(100) == []
            for stream in (*kept, *refused):
                assert isinstance(await at.over(stream), TimeoutError)

    run(main)


def test_the_oldest_of_the_address_that_has_most(run: Run) -> None:
    """Whoever has few keeps them, however old they are."""

    async def main() -> None:
        async with scene() as at:
            await at.silent(1, 2)
            many = await at.silent(2, 20)
            await at.silent(None, 3)
            assert at.under_test.make_room(0) == many[:ENDED_AT_ONCE]
            error = await at.over(many[0])
            assert isinstance(error, LimitExceeded)
            assert (error.limit, "no room" in str(error)) == ("room", True)

    run(main)


def test_some_always_stay(run_once: Run) -> None:
    """So that who is short of room because of much work goes on to take new clients, one after another."""

    async def main() -> None:
        async with scene() as at:
            found = await at.silent(1, 5)
            assert at.under_test.make_room(5) == []
            assert at.under_test.make_room(3) == found[:2]

    run_once(main)


@pytest.mark.parametrize("count", [0, 2])
def test_who_is_not_waited_for_does_not_end(run_once: Run, count: int) -> None:
    """A client whose password is being looked at waits for us, not we for it."""

    async def main() -> None:
        async with scene() as at:
            busy = at.make()
            at.under_test.start(busy)
            found = await at.silent(1, count)
            assert at.under_test.make_room(0) == found
            assert not busy.expired

    run_once(main)


def test_nothing_waits_for_a_client_that_was_closed(run_once: Run) -> None:
    """A connection may end in the same turn."""

    async def main() -> None:
        async with scene() as at:
            (stream,) = await at.silent(1)
            assert stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            stream.close()
            assert at.under_test.make_room(0) == []
            assert isinstance(await at.over(stream), ConnectionAbortedError)

    run_once(main)


# --- TLS ---


def test_so_many_have_begun_tls_and_no_more(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who begins has older ones end that wait for their client, those of the address that has most of them."""
    monkeypatch.setattr(handshakes, "MAX_TLS", 4)

    async def main() -> None:
        async with scene() as at:
            few = await at.silent(1, 1)
            many = await at.silent(2, 3)
            for number, stream in enumerate((*few, *many)):
                assert at.under_test.begin_tls(stream, number, False)
            newcomer = at.make()
            told: list[str] = []
            at.under_test.tell = told.append
            assert at.under_test.begin_tls(newcomer, 4, False)
            assert told == ["4 clients inside TLS have asked for nothing yet"]
            assert list(at.under_test.tls) == [*few, newcomer]
            for stream in many:
                error = await at.over(stream)
                assert isinstance(error, LimitExceeded)
                assert error.limit == "tls"
            at.under_test.stop(newcomer)
            assert list(at.under_test.tls) == few

    run_once(main)


def test_clients_that_are_far_away_have_time_while_there_is_much_to_compute(
    run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed for them would be lost: who comes waits behind those that wait for their turn."""
    monkeypatch.setattr(handshakes, "MAX_TLS", 2)

    async def main() -> None:
        async with scene() as at:
            first, second = await at.silent(1, 2)
            at.under_test.begin_tls(first, 10, True)
            at.under_test.begin_tls(second, 11, True)
            newcomer = at.make()
            assert not at.under_test.begin_tls(newcomer, 10 + handshakes.PATIENCE - 0.1, True)
            assert at.under_test.begin_tls(newcomer, 10 + handshakes.PATIENCE, True)
            assert (first.expired, second.expired) == (True, False)
            await at.over(first)

    run_once(main)


def test_where_all_wait_for_us_a_newcomer_is_refused(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is ended for whom we are at work, and nothing spins."""
    monkeypatch.setattr(handshakes, "MAX_TLS", 1)

    async def main() -> None:
        async with scene() as at:
            busy = at.make()
            assert at.under_test.begin_tls(busy, 0, False)
            assert not at.under_test.begin_tls(at.make(), 10, True)
            with pytest.raises(LimitExceeded, match="1 handshakes of TLS are under way"):
                at.under_test.begin_tls(at.make(), 10, False)
            assert not busy.expired

    run_once(main)
