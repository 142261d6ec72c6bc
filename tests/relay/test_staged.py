"""StagedFlow: whatever stages are put on and taken off meanwhile, every octet arrives once and in order."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
import ssl
from functools import partial
from typing import Any

import pytest

from authorities import TlsPeer, accept, client_context
from conftest import Run
from sockets import (
    Bench,
    Ends,
    fill,
    octets,
    read,
    read_all,
    reset,
    send,
    send_and_end,
    tcp_pair,
    turns,
    unix_pair,
    until,
)
from stages import Counting, Failing, Holding, Passing, Slicing
from tabi.net.reactor import OUT
from tabi.policy.limits import DOWN, UP
from tabi.relay import flow as flow_module
from tabi.relay import staged
from tabi.relay.flow import BLOCKED, PAUSED, QUEUED, READY
from tabi.relay.pipes import BUFFER_SIZE
from tabi.relay.stage import Stage
from tabi.relay.staged import StagedFlow
from virtual import Net

MIB = 1 << 20
SMALL = 4096

both_ways = pytest.mark.parametrize("pipes", [8, 0], ids=["spliced", "copied"])


def staged_up(ends: Ends) -> StagedFlow:
    """The uplink of a running relay, which has stages."""
    flow = ends.relay.up
    assert isinstance(flow, StagedFlow)
    return flow


def is_in(ends: Ends, state: int) -> bool:
    """Whether the uplink is in a state."""
    return ends.relay.up.state == state


async def stop_reading(ends: Ends) -> int:
    """Send until the relay's uplink is blocked; how much that was."""
    sent = 0
    while ends.relay.up.state != BLOCKED:
        sent += fill(ends.client)
        await asyncio.sleep(0)
    return sent


@pytest.fixture
def spliced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each splice of a flow with stages has moved."""
    moved: list[int] = []
    real = flow_module.splice
    assert real is not None

    def splice(*arguments: int, flags: int) -> int:
        count: int = real(*arguments, flags=flags)
        moved.append(count)
        return count

    monkeypatch.setattr(staged, "splice", splice)
    return moved


class Chaos:
    """Puts stages on a relay and takes them off, in both directions, as a seed says."""

    def __init__(self, ends: Ends, random: random.Random) -> None:
        self.ends = ends
        self.random = random
        self.on: list[Stage] = []

    def act(self) -> None:
        """One thing, if the relay still runs."""
        relay = self.ends.bench.relays.get(self.ends.session)
        if relay is None:
            return
        stage: Stage
        match self.random.randrange(7):
            case 0 | 1 if len(self.on) < 5:
                limit = self.random.randrange(1, 100_000)
                stage = self.random.choice([Passing(), Slicing(), Counting(), Holding(), Holding(limit)])
                relay.add_stage(self.random.choice((UP, DOWN)), stage)
                self.on.append(stage)
            case 2 | 3 if self.on:
                stage = self.on.pop(self.random.randrange(len(self.on)))
                relay.remove_stage(stage)
            case 4:
                for stage in self.on:
                    if isinstance(stage, Counting):
                        stage.open()
                        stage.shut = self.random.random() < 0.3
            case _:
                for stage in self.on:
                    if isinstance(stage, Holding):
                        stage.release()

    def end(self) -> None:
        """Take off all that are on."""
        relay = self.ends.bench.relays.get(self.ends.session)
        while self.on and relay is not None and not relay.closed:
            relay.remove_stage(self.on.pop())


@both_ways
@pytest.mark.parametrize("buffers", [None, SMALL], ids=["large", "small"])
def test_any_interleaving_delivers_all_in_order(run: Run, pipes: int, buffers: int | None) -> None:
    """Stages of all kinds come and go at any moment, also behind an end: nothing is lost, doubled or out of order."""

    async def sending(sock: socket.socket, data: bytes, dice: random.Random) -> None:
        """Send in pieces of all sizes, then the end."""
        at = 0
        while at < len(data):
            piece = data[at : at + int(2 ** dice.uniform(0, 19))]
            await send(sock, piece)
            at += len(piece)
            await turns(dice.randrange(4))
        sock.shutdown(socket.SHUT_WR)

    async def main() -> None:
        for seed in range(10):
            dice = random.Random(seed)
            size = 60_000 if buffers else MIB
            up, down = (octets(int(size * dice.random()), number) for number in (seed, seed + 100))
            with Bench(pipes) as bench:
                ends = bench.ends(tcp_pair(buffers), tcp_pair(buffers))
                chaos = Chaos(ends, dice)
                ends.start(up[:100])
                async with asyncio.TaskGroup() as group:
                    group.create_task(sending(ends.client, up[100:], random.Random(seed + 1)))
                    group.create_task(sending(ends.server, down, random.Random(seed + 2)))
                    there = group.create_task(read_all(ends.server))
                    back = group.create_task(read_all(ends.client))
                    for _ in range(dice.randrange(10, 200)):
                        chaos.act()
                        await turns(dice.randrange(3))
                    chaos.end()
                assert there.result() == up, f"seed {seed}"
                assert back.result() == down, f"seed {seed}"
                await ends.ended.wait()
                session = ends.session
                assert (session.up, session.down) == (len(up), len(down)), f"seed {seed}"
                assert session.close in ("client", "server")
                assert bench.relays.pipes.lent == 0

    run(main)


def test_what_is_in_the_pipe_goes_out_before_the_stage(run: Run, spliced: list[int]) -> None:
    """A stage that is put on a spliced relay sees what comes after what the pipe holds, and all of it is counted."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
            ends.start()
            sent = await stop_reading(ends)
            pipe = ends.relay.up.pipe
            assert pipe is not None
            held, before = pipe.held, ends.relay.up.octets
            assert held
            stage = Passing()
            ends.relay.add_stage(UP, stage)
            ends.client.shutdown(socket.SHUT_WR)
            assert len(await read_all(ends.server)) == sent
            assert len(stage.seen) == sent - held - before
            assert staged_up(ends).octets == sent
            assert bench.relays.pipes.lent == 0

    run(main)


def test_without_stages_it_splices_again(run: Run, spliced: list[int]) -> None:
    """A stage that needs octets has the direction copied; with the last one off, bulk goes by splice."""

    async def main() -> None:
        data = octets(MIB)
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            stage, counter = Passing(), Counting()
            ends.relay.add_stage(UP, counter)
            ends.relay.add_stage(UP, stage)
            for number in (1, 2):
                async with asyncio.TaskGroup() as group:
                    group.create_task(send(ends.client, data))
                    there = group.create_task(read(ends.server, MIB))
                assert there.result() == data
                assert bool(spliced) == (number == 2)
                ends.relay.remove_stage(stage)
            assert stage.seen == data
            assert counter.count == 2 * MIB
            assert stage.flow is None
            assert (ends.relay.up.octets, staged_up(ends).stages) == (2 * MIB, (counter,))

    run(main)


@both_ways
def test_a_stage_that_holds_too_much_stops_the_sender(run: Run, pipes: int) -> None:
    """Nothing more is read above its limit, and reading goes on when it has let go."""

    async def main() -> None:
        with Bench(pipes) as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
            ends.start()
            stage = Holding(100_000)
            ends.relay.add_stage(UP, stage)
            flow, sent = staged_up(ends), 0
            while flow.state != PAUSED:
                sent += fill(ends.client)
                await asyncio.sleep(0)
            await turns(20)
            assert 100_000 <= stage.held < 100_000 + BUFFER_SIZE
            assert flow.held == stage.held
            flow.go_on()  # not yet
            assert flow.state == PAUSED
            ends.client.shutdown(socket.SHUT_WR)
            async with asyncio.TaskGroup() as group:
                there = group.create_task(read_all(ends.server))
                while not there.done():
                    stage.release()
                    await asyncio.sleep(0)
            assert len(there.result()) == sent

    run(main)


@both_ways
def test_what_came_behind_the_head_is_read_without_another_event(run: Run, pipes: int) -> None:
    """Readiness that the stream has seen already is no news to the reactor; an end is seen too."""

    async def main() -> None:
        with Bench(pipes) as bench:
            ends = bench.ends()
            await send_and_end(ends.client, b" behind")
            await ends.near_client.readable()
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"head", [(UP, Counting())])
            assert await read_all(ends.server) == b"head behind"

    run(main)


@both_ways
def test_a_stage_that_says_so_stops_reading(run: Run, pipes: int) -> None:
    """One that only counts too; what waits is read as soon as it lets the flow go on, without another event."""

    async def main() -> None:
        with Bench(pipes) as bench:
            ends = bench.ends()
            stage = Counting()
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"head", [(UP, stage)])
            assert await read(ends.server, 4) == b"head"
            stage.shut = True
            await send(ends.client, b"behind")
            await until(lambda: staged_up(ends).state == PAUSED)
            assert (ends.relay.up.octets, stage.count) == (4, 4)
            stage.open()
            assert await read(ends.server, 6) == b"behind"
            stage.shut = True
            await send_and_end(ends.client, b"last")
            await until(lambda: staged_up(ends).state == PAUSED)
            ends.relay.remove_stage(stage)
            assert await read_all(ends.server) == b"last"
            assert stage.count == 10

    run(main)


def test_an_end_waits_behind_what_is_held(run: Run) -> None:
    """A half-close passes the stages in order, however long that takes; the other direction goes on meanwhile."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            first, second = Holding(), Holding()
            ends.relay.add_stage(UP, first)
            ends.relay.add_stage(UP, second)
            await send_and_end(ends.client, b"request")
            await until(lambda: first.ended)
            await send(ends.server, b"meanwhile")
            assert await read(ends.client, 9) == b"meanwhile"
            first.release()
            assert (second.held, second.ended, ends.relay.up.ended) == (7, True, False)
            assert (ends.relay.up.octets, staged_up(ends).state) == (0, PAUSED)
            second.release()
            assert await read_all(ends.server) == b"request"
            assert (ends.relay.up.ended, ends.relay.up.state) == (True, READY)
            late = Passing()
            ends.relay.add_stage(UP, late)
            assert late.ended
            late.emit(b"too late")
            ends.server.close()
            await ends.ended.wait()
            assert (ends.session.close, ends.session.up, ends.session.down) == ("client", 7, 9)

    run(main)


def test_an_end_that_finds_a_full_sink_comes_last(run: Run) -> None:
    """What a stage emits while the sink takes nothing is kept; the end behind it too, and what is emitted later goes
    nowhere."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(unix_pair(4 * BUFFER_SIZE), unix_pair(SMALL))
            near = ends.near_server.sock
            assert isinstance(near, socket.socket)
            before = fill(near)
            stage = Holding()
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"head", [(UP, stage)])
            flow = staged_up(ends)
            await send(ends.client, octets(50_000))
            await until(lambda: stage.held == 50_004)
            stage.release()
            assert (flow.state, flow.held) == (BLOCKED, 50_004)
            stage.emit(b"more")
            stage.emit_end()
            flow.receive(b"behind the end")
            flow.end()
            assert not flow.ended
            assert (await read_all(ends.server))[before:] == b"head" + octets(50_000) + b"more"
            assert flow.ended

    run(main)


def test_a_stage_may_end_it_early(run: Run) -> None:
    """The sink gets an end, nothing more is read from the source, and the other direction lives on."""

    class First(Stage):
        """Lets five octets through."""

        def receive(self, data: bytes) -> None:
            self.emit(data[:5])
            self.emit_end()
            self.emit(b"never")
            self.emit_end()

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            ends.relay.add_stage(UP, First())
            await send(ends.client, b"12345678")
            assert await read_all(ends.server) == b"12345"
            await send_and_end(ends.client, b"unread")
            await send_and_end(ends.server, b"answer")
            assert await read(ends.client, 6) == b"answer"
            await ends.ended.wait()
            assert (ends.session.up, ends.session.close) == (5, "client")

    run(main)


def test_a_stage_may_change_and_drop(run: Run) -> None:
    """What arrives is what the last stage emits; what is counted too."""

    class Doubling(Stage):
        """Doubles each octet, and drops x."""

        def receive(self, data: bytes) -> None:
            self.emit(b"".join(bytes((octet, octet)) for octet in data if octet != 120))

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            ends.relay.add_stage(DOWN, Doubling())
            await send_and_end(ends.server, b"axbxc")
            assert await read_all(ends.client) == b"aabbcc"
            ends.client.close()
            await ends.ended.wait()
            assert ends.session.down == 6

    run(main)


@pytest.mark.parametrize("who", ["client", "server", "stage"])
def test_a_reset_overtakes_what_is_held(run: Run, who: str) -> None:
    """As in TCP: both sides get a reset at once, and the stages hear how much reached nobody."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            holding, behind = Holding(), Passing()
            ends.relay.add_stage(UP, holding)
            ends.relay.add_stage(UP, behind)
            await send(ends.client, b"held")
            await until(lambda: holding.held)
            if who == "stage":
                behind.reset()
                other = ends.server
            else:
                gone, other = (ends.client, ends.server) if who == "client" else (ends.server, ends.client)
                reset(gone)
            with pytest.raises(ConnectionResetError):
                await read(other, 1)
            await ends.ended.wait()
            assert (ends.session.close, ends.session.up) == ("reset", 0)
            assert (holding.unsent, behind.unsent) == (4, 4)
            assert holding.flow is None
            behind.reset()  # there is nothing left to reset
            holding.go_on()
            holding.let_go()  # it goes nowhere
            holding.emit_end()

    run(main)


@both_ways
def test_a_sink_that_is_reset_while_it_is_full(run: Run, pipes: int) -> None:
    """Whether the pipe or a stage has its octets: the source gets a reset."""

    async def main() -> None:
        with Bench(pipes) as bench:
            for stage in (Passing(), Counting()):
                ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
                ends.start()
                ends.relay.add_stage(UP, stage)
                await stop_reading(ends)
                reset(ends.server)
                with pytest.raises(ConnectionResetError):
                    await read(ends.client, 1)
                await ends.ended.wait()
                assert ends.session.close == "reset"
            assert bench.relays.pipes.lent == 0

    run(main)


class Broken(socket.socket):
    """A socket that turns out to be gone when something is sent or received."""

    def send(self, *arguments: Any) -> int:
        """Fail as a socket that was reset does."""
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    def recv_into(self, *arguments: Any) -> int:
        """Fail too."""
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_socket_that_is_found_broken(run: Run, side: str) -> None:
    """A reset of the source or of the sink that a call finds out becomes one of the other side."""

    async def main() -> None:
        with Bench() as bench:
            far, near = tcp_pair()
            gone = Broken(fileno=near.detach())
            gone.setblocking(False)
            ends = bench.ends(**{side: (far, gone)})
            ends.start()
            stage = Passing()
            ends.relay.add_stage(UP, stage)
            await send(ends.client, b"octets")
            with pytest.raises(ConnectionResetError):
                await read(ends.server if side == "client" else ends.client, 1)
            await ends.ended.wait()
            assert (ends.session.close, ends.session.up) == ("reset", 0)
            assert stage.unsent == (0 if side == "client" else 6)

    run(main)


class Alerting(socket.socket):
    """A socket whose peer says in TLS why it ends."""

    def recv_into(self, *arguments: Any) -> int:
        """Fail as OpenSSL does."""
        raise ssl.SSLError(1, "[SSL] tlsv13 alert certificate required (_ssl.c:1)")


@pytest.mark.parametrize("side", ["client", "server"])
def test_what_a_peer_says_in_tls(run: Run, side: str) -> None:
    """An alert is a reset for the other side, and the session has its words; those that were there before stay."""

    async def main() -> None:
        for before in (None, "known"):
            with Bench() as bench:
                far, near = tcp_pair()
                gone = Alerting(fileno=near.detach())
                gone.setblocking(False)
                ends = bench.ends(**{side: (far, gone)})
                ends.session.error = before
                ends.start()
                ends.relay.add_stage(UP, Passing())
                ends.relay.add_stage(DOWN, Passing())
                await send(far, b"octets")
                await ends.ended.wait()
                said = f"TLS: the {side} says: certificate required"
                assert (ends.session.close, ends.session.error) == ("reset", before or said)

    run(main)


@pytest.mark.parametrize("error", [errno.ECONNRESET, errno.EPIPE])
@pytest.mark.parametrize("number", [1, 2])
def test_a_splice_that_fails_ends_both(run: Run, monkeypatch: pytest.MonkeyPatch, error: int, number: int) -> None:
    """Into the pipe or out of it, whatever the kernel says."""
    calls: list[int] = []
    real = flow_module.splice
    assert real is not None

    def splice(*arguments: int, flags: int) -> int:
        calls.append(1)
        if len(calls) == number:
            raise OSError(error, os.strerror(error))
        return int(real(*arguments, flags=flags))

    monkeypatch.setattr(staged, "splice", splice)

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", [(UP, Counting())])
            sending = asyncio.get_running_loop().create_task(send(ends.client, bytes(BUFFER_SIZE * 8)))
            await ends.ended.wait()
            assert ends.session.close == "reset"
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    run(main)


@pytest.mark.parametrize("where", ["room", "note", "receive", "receive_end", "flush"])
@both_ways
def test_a_stage_that_fails_ends_the_relay(run: Run, caplog: pytest.LogCaptureFixture, where: str, pipes: int) -> None:
    """Both sides get a reset, since octets may be lost; the line says so, and the log has where it was."""

    async def main() -> None:
        with Bench(pipes) as bench:
            ends = bench.ends()
            ends.start()
            stage = Failing(where)
            ends.relay.add_stage(UP, stage)
            relay = ends.relay
            await send_and_end(ends.client, b"octets" if where != "flush" else b"")
            if where == "flush":
                relay.remove_stage(stage)
            with pytest.raises(ConnectionResetError):
                await read_all(ends.server)
            await ends.ended.wait()
            assert (ends.session.close, ends.session.error) == ("error", "internal error: ZeroDivisionError")
            assert stage.flow is None

    caplog.set_level(logging.ERROR, "tabi")
    run(main)
    (record,) = caplog.records
    assert record.getMessage() == "a stage of a relay failed"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_a_counting_stage_that_fails_while_it_is_spliced(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """What was in the pipe is not sent any more, and the pipe is closed."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            stage = Failing("")
            stage.copies = False  # type: ignore[misc]
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", [(UP, stage)])
            await send(ends.client, bytes(BUFFER_SIZE))
            assert await read(ends.server, BUFFER_SIZE) == bytes(BUFFER_SIZE)
            async with asyncio.TaskGroup() as group:
                group.create_task(send(ends.client, bytes(BUFFER_SIZE * 4)))
                group.create_task(read(ends.server, BUFFER_SIZE * 4))
            await until(lambda: ends.relay.up.pipe is not None)
            stage.where = "note"
            await send(ends.client, b"x")
            await ends.ended.wait()
            assert (ends.session.close, ends.session.up) == ("error", 5 * BUFFER_SIZE)
            assert bench.relays.pipes.lent == 0

    run(main)
    assert len(caplog.records) == 1


def test_a_stage_that_fails_at_the_end_disturbs_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The relay ends as it would have, and the others are told."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            other = Passing()
            stages = [(UP, Failing("closed")), (UP, other)]
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", stages)
            ends.client.shutdown(socket.SHUT_WR)
            ends.server.shutdown(socket.SHUT_WR)
            await ends.ended.wait()
            assert ends.session.close in ("client", "server")
            assert ends.session.error is None
            assert (other.unsent, other.flow) == (0, None)

    run(main)
    assert len(caplog.records) == 1


def test_stages_may_change_in_the_middle_of_a_turn(run: Run) -> None:
    """A counting stage calls for one that needs octets, and that one takes itself off: from then on it is spliced."""

    class Once(Passing):
        """Looks at the first octets only."""

        def receive(self, data: bytes) -> None:
            super().receive(data)
            if self.flow is not None:
                self.flow.relay.remove_stage(self)

    class Calling(Counting):
        """Puts another stage on after a while."""

        def note(self, count: int) -> None:
            super().note(count)
            if self.count > 3 * BUFFER_SIZE and not once.seen and once.flow is None and self.flow is not None:
                self.flow.relay.add_stage(UP, once)

    once = Once()

    async def main() -> None:
        data = octets(MIB)
        for pipes in (8, 0):
            once.__init__()  # type: ignore[misc]
            with Bench(pipes) as bench:
                ends = bench.ends(tcp_pair(SMALL), tcp_pair(SMALL))
                bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", [(UP, Calling())])
                async with asyncio.TaskGroup() as group:
                    group.create_task(send_and_end(ends.client, data))
                    there = group.create_task(read_all(ends.server))
                assert there.result() == data
                assert 0 < len(once.seen) <= BUFFER_SIZE

    run(main)


def test_a_queued_flow_goes_on_by_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its share of a turn it needs no further event, whether it copies or splices; if it has ended meanwhile,
    nothing happens."""
    monkeypatch.setattr(staged, "SHARE", BUFFER_SIZE)

    async def main() -> None:
        data = octets(600_000)
        for pipes in (8, 0):
            for stage in (Counting(), Passing()):
                with Bench(pipes) as bench:
                    ends = bench.ends(unix_pair(900_000), unix_pair(900_000))
                    ends.start()
                    ends.relay.add_stage(UP, stage)
                    await turns()
                    await send(ends.client, data)
                    await until(partial(is_in, ends, QUEUED))
                    assert await read(ends.server, len(data)) == data
                    await until(partial(is_in, ends, READY))
            with Bench(pipes) as bench:
                ends = bench.ends(unix_pair(900_000), unix_pair(900_000))
                ends.start()
                ender = Passing()
                ends.relay.add_stage(UP, ender)
                assert ends.relay.up.state == QUEUED
                ender.emit_end()
                await turns()
                assert await read_all(ends.server) == b""
                assert not ends.relay.closed

    run(main)


def test_a_stage_that_sees_octets_leaves_turns_to_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may do anything with them: its flow is not prompt, and looks at the clock after each read."""

    async def main() -> None:
        data = octets(300_000)
        with Bench(0) as bench:
            ends = bench.ends(unix_pair(400_000), unix_pair(400_000))
            ends.start()
            monkeypatch.setattr(bench.relays.reactor, "late", lambda: True)
            ends.relay.add_stage(UP, Counting())
            assert ends.relay.up.prompt
            ends.relay.add_stage(UP, Passing())
            assert not ends.relay.up.prompt
            await turns()
            await send(ends.client, data)
            await until(partial(is_in, ends, QUEUED))
            assert 0 < ends.relay.up.octets < len(data)
            assert await read(ends.server, len(data)) == data

    run(main)


def test_what_ends_while_it_waits_for_room(run: Run) -> None:
    """The source has ended, a stage holds the end, and the sink is full: first the octets, then the end."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(unix_pair(4 * BUFFER_SIZE), unix_pair(SMALL))
            near = ends.near_server.sock
            assert isinstance(near, socket.socket)
            before = fill(near)
            stage = Holding()
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", [(UP, stage)])
            await send_and_end(ends.client, b"octets")
            await until(lambda: stage.ended)
            flow = staged_up(ends)
            stage.flush()
            assert flow.state == BLOCKED
            assert (await read(ends.server, before + 6))[before:] == b"octets"
            await until(lambda: flow.state == PAUSED)
            ends.relay.remove_stage(stage)
            assert await read_all(ends.server) == b""

    run(main)


def test_a_stage_that_cannot_be_put_on(run: Run) -> None:
    """What it raises goes to whoever puts it on; the relay goes on without it, and its timers are gone."""

    class Early(Failing):
        """Asks for a timer before it fails."""

        def attached(self) -> None:
            assert self.flow is not None
            self.call_at(self.flow.loop.time(), lambda: self.emit(b"never"))
            super().attached()

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            stage = Early("attached")
            with pytest.raises(ZeroDivisionError):
                ends.relay.add_stage(UP, stage)
            assert (stage.flow, stage.timers, staged_up(ends).stages) == (None, set(), ())
            await send(ends.client, b"octets")
            assert await read(ends.server, 6) == b"octets"

    run(main)


def test_a_stage_that_resets_before_a_read(run: Run) -> None:
    """Nothing is read any more."""

    class Resetting(Counting):
        """Resets in place of reading."""

        def room(self, most: int) -> int:
            self.reset()
            return 0

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            ends.relay.add_stage(UP, Resetting())
            await ends.ended.wait()
            assert ends.session.close == "reset"

    run(main)


def test_what_is_held_on_purpose_is_not_idle(run: Run) -> None:
    """A stage with a timer may hold what it has beyond the idle time; without one the relay ends."""

    async def main() -> None:
        with Bench(idle=300) as bench:
            ends = bench.ends()
            ends.start()
            stage = Holding()
            ends.relay.add_stage(UP, stage)
            assert not staged_up(ends).holds(0.0)
            await send(ends.client, b"held")
            await until(lambda: stage.held)
            loop = asyncio.get_running_loop()
            stage.call_at(loop.time() + 1000, stage.let_go)
            began = ends.relay.quiet_since
            bench.relays.sweep(began + 400)
            bench.relays.sweep(began + 900)
            assert not ends.relay.closed
            stage.leave()  # as if the timer had never been
            stage.flow = staged_up(ends)
            bench.relays.sweep(began + 901)
            assert ends.session.close == "idle"

    run(main)


class Narrow:
    """A socket below TLS that has room only when it is told to."""

    def __init__(self, below: Any) -> None:
        self.below = below
        self.room = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)

    def send(self, data: bytes) -> int:
        """Send, if there is room."""
        if not self.room:
            raise BlockingIOError
        return int(self.below.send(data))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_tls_with_stages(run: Run, when: str) -> None:
    """What a stage sees is plaintext; an end that finds no room is told later, as without stages."""

    async def main() -> None:
        data = octets(MIB)
        with Bench() as bench:
            ends = bench.ends()
            peer = TlsPeer(ends.client, client_context())
            await accept(ends.near_client, peer)
            sock: Any = ends.near_client.sock
            sock.below = below = Narrow(sock.below)
            ends.start()
            up, down = Passing(), Passing()
            if when == "before":
                ends.relay.add_stage(UP, up)
                ends.relay.add_stage(DOWN, down)
            async with asyncio.TaskGroup() as group:
                group.create_task(send(ends.server, data))
                back = group.create_task(peer.read(MIB))
            assert back.result() == data
            below.room = False
            ends.server.shutdown(socket.SHUT_WR)
            await until(lambda: ends.relay.down.ended)
            assert ends.relay.down.state == BLOCKED
            if when == "meanwhile":
                ends.relay.add_stage(DOWN, down)
                ends.relay.add_stage(UP, up)
            await peer.send(b"up")
            await peer.end()
            assert await read_all(ends.server) == b"up"
            assert not ends.relay.closed
            below.room = True
            ends.relay.up.on_ready(OUT)  # as the kernel would say it
            assert await peer.read_all() == b""
            assert peer.notified
            await ends.ended.wait()
            assert ends.session.close == "server"
            assert up.seen == b"up"
            assert down.seen == (data if when == "before" else b"")

    run(main)


class Writing(Holding):
    """Holds what finds a full sink, and lets it go a few octets at a time."""

    def receive(self, data: bytes) -> None:
        """See `Stage`."""
        super().receive(data)
        self.resume_writing()

    def resume_writing(self) -> None:
        """See `Stage`."""
        while self.octets and not self.is_blocked:
            data = bytes(self.octets[:4])
            del self.octets[:4]
            self.held = len(self.octets)
            self.emit(data)
        if self.ended and not self.octets:
            self.emit_end()

    def receive_end(self) -> None:
        """See `Stage`."""
        self.resume_writing()


def test_stages_wait_for_a_sink_that_takes_nothing() -> None:
    """What they hold goes out when it does: the last one first, and the others if there still is room."""
    net = Net()
    first, last = Writing(), Writing()
    for stage in (first, last):
        net.relay.add_stage(UP, stage)
    net.server.room = 6
    net.send(b"0123456789")
    assert (net.server.outbox, len(net.up.kept), first.held, last.held) == (b"012345", 2, 2, 0)
    last.octets += b"ab"  # as if it had held that up
    last.held = 2
    net.read(3)
    assert (net.server.outbox, bytes(net.up.kept), first.held, last.held) == (b"01234567a", b"b", 2, 0)
    assert net.up.state == BLOCKED
    net.read()
    assert (net.server.outbox, net.up.state) == (b"01234567ab89", READY)
    net.send(b"end", end=True)
    assert (net.server.outbox, net.server.said) == (b"01234567ab89end", "end")


def test_an_end_that_a_stage_held_for_a_full_sink() -> None:
    """Is told once, and the flow that has told it reads no more."""
    net = Net()
    net.relay.add_stage(UP, Writing())
    net.server.room = 4
    net.send(b"0123456", end=True)
    net.send(b"7", end=True)
    assert (net.server.outbox, net.up.source_ended, net.up.ended) == (b"0123", False, False)
    net.read(1)
    net.read()
    assert (net.server.outbox, net.server.said, net.up.ended) == (b"01234567", "end", True)
    net.send(b"answer", end=True, direction=DOWN)
    assert (net.client.outbox, net.session.close) == (b"answer", "client")


def test_a_stage_that_fails_when_there_is_room_again() -> None:
    """Ends the relay, as one that fails elsewhere."""

    class Bad(Stage):
        def resume_writing(self) -> None:
            raise ZeroDivisionError

    net = Net()
    net.relay.add_stage(UP, Bad())
    net.server.room = 0
    net.send(b"octets")
    net.read()
    assert (net.session.close, net.client.said) == ("error", "reset")


def test_an_early_end_stays_when_its_stage_is_taken_off() -> None:
    """What stages before it hold, and what the source sends, would come behind a gap: it goes nowhere. So it is if
    the end is still on its way."""

    class Ender(Stage):
        """Lets one octet through."""

        def receive(self, data: bytes) -> None:
            self.emit(data[:1])
            self.emit_end()

    for holds, order in ((True, 0), (True, 1), (False, 0)):
        net = Net()
        first, ender, last = Holding(), Ender(), Holding() if holds else Passing()
        stages = [first, ender, last]
        for stage in stages:
            net.relay.add_stage(UP, stage)
        net.send(b"octets")
        first.release()
        net.send(b"more")
        for stage in (ender, first) if order == 0 else (first, ender):
            net.relay.remove_stage(stage)
        net.relay.add_stage(UP, late := Holding())
        net.send(b"behind")
        if holds:
            assert last.seen == b"o"
            net.relay.remove_stage(last)
            net.relay.remove_stage(late)
        assert (net.server.outbox, net.server.said, net.client.said) == (b"o", "end", "open")
        net.send(b"answer", end=True, direction=DOWN)
        assert (net.client.outbox, net.session.close) == (b"answer", "client")


def test_what_a_stage_emits_behind_the_end_of_the_relay() -> None:
    """One that is in the middle of something goes on into the void, also through others."""

    class Two(Stage):
        """Emits each chunk twice."""

        def receive(self, data: bytes) -> None:
            self.emit(data)
            self.emit(data)

    class Last(Stage):
        """Ends the relay."""

        def receive(self, data: bytes) -> None:
            assert self.flow is not None
            self.end_relay("reset", "over")

    net = Net()
    between = Passing()
    for stage in (Two(), between, Last(), Counting()):
        net.relay.add_stage(UP, stage)
    net.send(b"octets")
    assert (net.session.close, bytes(between.seen)) == ("fault", b"octets")
    between.emit(b"more")
    between.emit_end()
    assert net.server.outbox == b""


def test_taken_off_what_it_holds_may_be_the_end_of_the_relay() -> None:
    """A stage behind it says so; nothing is put together anew then."""

    class Last(Stage):
        def receive(self, data: bytes) -> None:
            self.end_relay("close", "over")

    net = Net()
    holding = Holding()
    for stage in (holding, Last()):
        net.relay.add_stage(UP, stage)
    net.send(b"octets")
    net.relay.remove_stage(holding)
    assert (net.session.error, holding.flow, net.server.outbox) == ("over", None, b"")


def test_a_direction_may_be_the_last_of_the_relay() -> None:
    """Its end is then that of both sides, behind what the sink has not taken yet."""
    for room in (2, 100):
        net = Net()
        stage = Stage()
        net.relay.add_stage(UP, stage)
        net.server.room = room
        net.send(b"octets")
        stage.end_relay_after("close", "the reason")
        net.read()
        assert (net.server.outbox, net.server.said, net.client.said) == (b"octets", "end", "end")
        assert (net.session.close, net.session.error) == ("fault", "the reason")


def test_a_reset_waits_until_the_kernel_has_sent_what_was_before_it(run: Run) -> None:
    """A reset drops what was not sent (tcp(7)): a slow reader gets all, and then the reset."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            ends.near_client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
            ends.start()
            stage = Stage()
            ends.relay.add_stage(DOWN, stage)
            await send(ends.server, bytes(40_000))
            await until(lambda: ends.relay.down.octets == 40_000)
            down = ends.relay.down
            assert isinstance(down, StagedFlow)
            assert staged.is_sending(down.sink_fd)
            stage.end_relay_after("reset", "the reason")
            await turns()
            assert not ends.relay.closed
            assert await read(ends.client, 40_000) == bytes(40_000)
            with pytest.raises(ConnectionResetError):
                await read_all(ends.client)
            assert (ends.session.close, ends.session.error) == ("fault", "the reason")

    run(main)


def test_what_is_no_socket_sends_nothing() -> None:
    """Where the kernel does not tell, a reset is not held up."""
    with open(os.devnull) as file:
        assert not staged.is_sending(file.fileno())
