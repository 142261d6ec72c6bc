"""Relay: how it begins, how each kind of end passes to the other side, and what is written down of it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic

import pytest

from conftest import Run
from sockets import (
    Bench,
    Pair,
    exchange,
    fill,
    read,
    read_all,
    reset,
    send,
    send_and_end,
    tcp_pair,
    turns,
    unix_pair,
    until,
    waiting,
)
from stages import Failing, Holding, Passing
from tabi.net.reactor import IN, OUT
from tabi.net.stream import Stream
from tabi.policy.faults import Ending
from tabi.policy.limits import DOWN, UP
from tabi.relay import relay
from tabi.relay.flow import BLOCKED, READY
from tabi.relay.staged import StagedFlow

MIB = 1 << 20


def test_the_head_comes_before_what_the_client_sends_later(run: Run) -> None:
    """C12: payload right behind the request is delivered, and first."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            await send(ends.client, b"behind")
            ends.start(b"head ")
            assert await read(ends.server, 11) == b"head behind"

    run(main)


def test_the_answer_comes_before_what_the_server_sent_already(run: Run) -> None:
    """C6: the client reads the reply first, though the destination spoke first, and it counts as no payload."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            await send_and_end(ends.server, b"banner")
            await turns()
            ends.start(answer=b"reply ")
            assert await read_all(ends.client) == b"reply banner"
            ends.client.close()
            await ends.ended.wait()
            assert ends.session.down == len(b"banner")

    run(main)


def test_a_client_that_was_reset_before_the_answer_ends_as_reset(run: Run) -> None:
    """C33: a socket tells of its reset once; that the answer finds it must not turn it into an orderly end."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            reset(ends.client)
            ends.start(b"head", answer=b"reply")
            await ends.ended.wait()
            assert ends.session.close == "reset"
            with pytest.raises(ConnectionResetError):
                await read(ends.server, 1)

    run(main)


def test_what_was_there_before_the_relay_is_relayed(run: Run) -> None:
    """Readiness that the streams have seen already is no news to the reactor: the relay must not wait for it."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            await send(ends.client, b"early up")
            await send(ends.server, b"early down")
            await ends.near_client.readable()
            await ends.near_server.readable()
            ends.start()
            assert await read(ends.server, 8) == b"early up"
            assert await read(ends.client, 10) == b"early down"

    run(main)


def test_the_reply_comes_before_what_the_server_says_first(run: Run) -> None:
    """A reply that waits for the end of the turn is sent before a greeting of the server is relayed."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()

            async def session() -> None:
                await ends.near_client.receive()  # resumed in the reactor's turn, as a session is
                ends.near_client.send_soon(b"reply ")
                ends.start()

            await send(ends.server, b"greeting")
            await ends.near_server.readable()
            async with asyncio.TaskGroup() as group:
                group.create_task(session())
                await turns()
                await send(ends.client, b"request")
            assert await read(ends.client, 14) == b"reply greeting"

    run(main)


@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close_is_kept(run: Run, first: str) -> None:
    """C25: after one side has ended, the other still sends 1 MiB; the one that ended first is the session's close."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            here, there = (ends.client, ends.server) if first == "client" else (ends.server, ends.client)
            await send_and_end(here, b"request")
            assert await read_all(there) == b"request"
            assert not ends.ended.is_set()
            answer = bytes(range(256)) * 4096
            async with asyncio.TaskGroup() as group:
                group.create_task(send_and_end(there, answer))
                arrived = group.create_task(read_all(here))
            assert arrived.result() == answer
            await ends.ended.wait()
            session = ends.session
            assert session.close == first
            assert (session.up, session.down) == ((7, MIB) if first == "client" else (MIB, 7))

    run(main)


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_both_sides_are_closed_at_the_end(run: Run, pair: Callable[[], Pair]) -> None:
    """When both have ended nothing of the relay is left, and ``done`` has been called."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(pair(), pair())
            ends.start()
            await exchange(ends)
            ends.client.shutdown(socket.SHUT_WR)
            ends.server.shutdown(socket.SHUT_WR)
            await ends.ended.wait()
            assert not bench.relays.active
            assert await read_all(ends.client) == b""
            assert await read_all(ends.server) == b""

    run(main)


@pytest.mark.parametrize("which", ["client", "server"])
def test_a_reset_becomes_a_reset(run: Run, which: str) -> None:
    """C33: the other side gets ECONNRESET, not what looks like an orderly end."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            await exchange(ends)
            gone, other = (ends.client, ends.server) if which == "client" else (ends.server, ends.client)
            reset(gone)
            with pytest.raises(ConnectionResetError):
                await read(other, 1)
            await ends.ended.wait()
            session = ends.session
            assert (session.close, session.up, session.down) == ("reset", 2, 4)

    run(main)


class NoShutdown(socket.socket):
    """A socket that turns out to be gone when it is told of the end, and whose options cannot be set any more."""

    def shutdown(self, how: int, /) -> None:
        """Fail as a socket that was reset does."""
        raise OSError(107, "Transport endpoint is not connected")

    def setsockopt(self, *arguments: object) -> None:
        """Fail too."""
        raise OSError(22, "Invalid argument")


def test_an_end_that_cannot_be_passed_on_is_a_reset(run: Run) -> None:
    """A server that is gone by the time the client ends: the client gets a reset, whatever fails on the way."""

    async def main() -> None:
        with Bench() as bench:
            far, near = tcp_pair()
            gone = NoShutdown(fileno=near.detach())
            gone.setblocking(False)
            ends = bench.ends(server=(far, gone))
            ends.start()
            ends.client.shutdown(socket.SHUT_WR)
            await ends.ended.wait()
            assert ends.session.close == "reset"
            with pytest.raises(ConnectionResetError):
                await read(ends.client, 1)

    run(main)


def test_ending_twice_is_harmless(run: Run) -> None:
    """Whatever else happens to a relay that has ended, its session is handed in once, with its first reason."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            relay = ends.relay
            relay.close("idle")
            relay.close("shutdown")
            relay.break_off()
            assert ends.session.close == "idle"
            assert await read_all(ends.server) == b""

    run(main)


def test_a_relay_that_breaks_at_once_leaves_the_server_alone(run: Run) -> None:
    """The client's first octets find the server reset: what the server had sent before is not touched any more."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            await send(ends.server, b"greeting")
            await ends.near_server.readable()
            reset(ends.server)
            ends.start(b"head")
            assert ends.ended.is_set()
            assert ends.session.close == "reset"
            with pytest.raises(ConnectionResetError):
                await read(ends.client, 1)

    run(main)


# --- time ---


def test_a_quiet_relay_ends_as_idle(run: Run) -> None:
    """After ``idle`` seconds without an octet, not before, both sides are closed."""

    async def main() -> None:
        with Bench(idle=300, half_closed=60) as bench:
            ends = bench.ends()
            ends.start()
            await exchange(ends)
            bench.relays.sweep(1000.0)
            bench.relays.sweep(1299.9)
            assert not ends.ended.is_set()
            bench.relays.sweep(1300.0)
            assert ends.ended.is_set()
            assert (ends.session.close, ends.session.up, ends.session.down) == ("idle", 2, 4)
            assert await read_all(ends.client) == b""
            assert await read_all(ends.server) == b""

    run(main)


def test_a_relay_that_never_carried_anything_is_idle_from_its_start(run: Run) -> None:
    """The first octet may keep everybody waiting no longer than the next ones."""

    async def main() -> None:
        with Bench(idle=300) as bench:
            began = monotonic()
            ends = bench.ends()
            ends.start()
            bench.relays.sweep(began + 299)
            assert not ends.ended.is_set()
            bench.relays.sweep(monotonic() + 300)
            assert ends.session.close == "idle"

    run(main)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_traffic_in_either_direction_resets_the_idle_time(run: Run, direction: str) -> None:
    """C34: idle limits are idle, not absolute."""

    async def main() -> None:
        with Bench(idle=300) as bench:
            ends = bench.ends()
            ends.start()
            here, there = (ends.client, ends.server) if direction == "up" else (ends.server, ends.client)
            for now in range(1000, 3000, 200):
                await send(here, b"x")
                assert await read(there, 1) == b"x"
                bench.relays.sweep(now)
            assert not ends.ended.is_set()
            bench.relays.sweep(2800 + 300)
            assert ends.session.close == "idle"

    run(main)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_half_closed_relay_has_its_own_limit(run: Run, first: str) -> None:
    """Once one side has ended, the shorter limit holds, and traffic resets that too."""

    async def main() -> None:
        with Bench(idle=300, half_closed=60) as bench:
            ends = bench.ends()
            ends.start()
            await exchange(ends)
            bench.relays.sweep(1000.0)
            here, there = (ends.client, ends.server) if first == "client" else (ends.server, ends.client)
            here.shutdown(socket.SHUT_WR)
            assert await read_all(there) == b""
            bench.relays.sweep(1059.0)
            await send(there, b"x")
            assert await read(here, 1) == b"x"
            bench.relays.sweep(1060.0)
            bench.relays.sweep(1119.0)
            assert not ends.ended.is_set()
            bench.relays.sweep(1120.0)
            assert ends.session.close == "idle"

    run(main)


def test_a_quiet_flow_gives_its_pipe_back(run: Run) -> None:
    """Pipes are scarce: after a sweep without traffic the pool has it again, and bulk may still come."""

    async def main() -> None:
        data = bytes(range(256)) * 4096
        with Bench(pipes=1) as bench:
            ends, pool = bench.ends(), bench.relays.pipes
            ends.start()
            for _ in range(2):
                async with asyncio.TaskGroup() as group:
                    group.create_task(send(ends.client, data))
                    arrived = group.create_task(read(ends.server, len(data)))
                assert arrived.result() == data
                now = monotonic()
                bench.relays.sweep(now)
                assert pool.lent == 1
                bench.relays.sweep(now + 1)
                assert pool.lent == 0
                assert len(pool.idle) == 1
            await exchange(ends)

    run(main)


def test_a_pipe_with_octets_in_it_stays_with_its_flow(run: Run) -> None:
    """A reader that has stopped gets its octets later: a sweep does not take the pipe away from under them."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
            ends.start()
            relay, sent = ends.relay, 0
            while relay.up.pipe is None or not relay.up.pipe.held:
                sent += fill(ends.client)
                await asyncio.sleep(0)
            now = monotonic()
            bench.relays.sweep(now)
            bench.relays.sweep(now + 1)
            assert bench.relays.pipes.lent == 1
            ends.client.shutdown(socket.SHUT_WR)
            assert len(await read_all(ends.server)) == sent

    run(main)


# --- many ---


def test_the_streams_give_their_sockets_away(run: Run) -> None:
    """After the start the relay owns both sockets: closing the streams does not cut it."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            stream: Stream
            for stream in (ends.near_client, ends.near_server):
                stream.close()
            await exchange(ends)

    run(main)


def test_what_a_limit_ends_ends_in_order(run: Run) -> None:
    """What was sent arrives, then an end and no reset; the line has the reason."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            await send(ends.client, b"the last")
            assert await read(ends.server, 8) == b"the last"
            ends.relay.cut("limit: user alice: 1 s for a session")
            assert (await read_all(ends.server), await read_all(ends.client)) == (b"", b"")
            assert (ends.session.close, ends.session.error) == ("limit", "limit: user alice: 1 s for a session")

    run(main)


@pytest.mark.parametrize("reads", [1, 64])
@pytest.mark.parametrize("ended", [False, True])
def test_what_is_unread_when_it_is_cut_is_thrown_away(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, reads: int, ended: bool
) -> None:
    """So that closing makes no reset of it, up to a bound: the other direction's octets arrive."""
    monkeypatch.setattr(relay, "UNREAD", reads)

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            await send(ends.server, b"on its way")
            await until(lambda: ends.relay.down.octets)
            ends.relay.up.state = BLOCKED  # reads nothing
            await send(ends.client, bytes(1000))
            if ended:
                ends.client.shutdown(socket.SHUT_WR)
            await until(lambda: waiting(ends.relay.up.source) == 1000)  # type: ignore[arg-type]
            ends.relay.cut("limit: too much")
            assert await read_all(ends.client) == b"on its way"
            assert ends.session.close == "limit"

    run_once(main)


def test_an_answer_that_finds_the_client_gone(run: Run) -> None:
    """It is a reset for a destination that has spoken first, and nothing of the relay is called any more."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            await send(ends.server, b"220 ready")
            await ends.near_server.peek(1)
            ends.near_client.sock.shutdown(socket.SHUT_WR)
            ends.start(answer=b"reply")
            await until(lambda: not bench.relays.active)
            assert (ends.session.close, ends.session.down) == ("reset", 0)

    run(main)


# --- from outside ---


def test_counts_are_known_while_it_runs(run: Run) -> None:
    """With what came before the relay, and at the end the same as the session's."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.session.up = 10
            ends.start(b"head")
            relay = ends.relay
            assert bench.relays.get(ends.session) is relay
            assert await read(ends.server, 4) == b"head"
            await exchange(ends, b"up", b"down!")
            assert relay.counts == (16, 5)
            relay.close("shutdown")
            assert relay.counts == (ends.session.up, ends.session.down) == (16, 5)

    run(main)


def test_it_can_be_ended_from_outside(run: Run) -> None:
    """In order, with its own reason; once it has ended nothing changes that."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            await exchange(ends)
            relay = ends.relay
            relay.cut("ended by an operator", "kicked")
            assert (await read_all(ends.server), await read_all(ends.client)) == (b"", b"")
            relay.cut("limit: too late")
            relay.fail("internal error: too late")
            assert (ends.session.close, ends.session.error) == ("kicked", "ended by an operator")

    run(main)


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_stages_are_put_on_and_taken_off_while_it_runs(run: Run, direction: int) -> None:
    """In one direction; the other one stays what it was."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            relay = ends.relay
            before = relay.up, relay.down
            stage, other = Passing(), Passing()
            relay.add_stage(direction, stage)
            await exchange(ends)
            assert bytes(stage.seen) == (b"up" if direction == UP else b"down")
            assert (relay.up is before[0], relay.down is before[1]) == (direction != UP, direction == UP)
            with pytest.raises(ValueError, match="on a relay already"):
                relay.add_stage(direction, stage)
            relay.remove_stage(other)  # it is not on
            relay.remove_stage(stage)
            await exchange(ends)
            assert bytes(stage.seen) == (b"up" if direction == UP else b"down")
            relay.close("shutdown")
            relay.remove_stage(stage)
            with pytest.raises(RuntimeError, match="has closed"):
                relay.add_stage(direction, stage)

    run(main)


@pytest.mark.parametrize("paused", [False, True])
def test_both_sockets_are_given_back_open(run: Run, paused: bool) -> None:
    """With what was read and not taken, and what was counted; the relay has nothing to do with the session any more."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            relay, up, down = ends.relay, Passing(), Holding(0 if paused else 1 << 18)
            relay.put_on([(UP, up), (DOWN, down)])
            await send(ends.client, b"up")
            assert await read(ends.server, 2) == b"up"
            await send(ends.server, b"down")
            await until(lambda: (not paused and down.held == 4) or (paused and relay.down.state != READY))
            assert isinstance(relay.up, StagedFlow)
            relay.up.kept += b"more"  # as if the server had not taken it
            fds = relay.up.source_fd, relay.down.source_fd
            assert relay.release() == (b"more", b"")
            for fd in fds:
                relay.reactor.replace(fd, lambda events: None)
            assert relay.closed
            assert bench.relays.get(ends.session) is None
            assert not ends.ended.is_set()
            assert (ends.session.up, ends.session.down) == (2, 0)
            for fd in fds:
                os.fstat(fd)  # still open
            for sock in (relay.up.source, relay.down.source):
                relay.reactor.close(sock)

    run(main)


def test_a_flow_that_is_replaced_in_the_middle_of_its_turn(run: Run) -> None:
    """The stage of one direction puts one on the other, in whose handler it was called: nothing is lost."""

    class Calling(Passing):
        """Puts a stage on the uplink when it gets something."""

        def receive(self, data: bytes) -> None:
            super().receive(data)
            if self.flow is not None and other.flow is None:
                self.flow.relay.add_stage(UP, other)

    other = Passing()

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            relay = ends.relay
            relay.add_stage(DOWN, Calling())
            await turns()
            await send(ends.server, b"down")
            await send(ends.client, b"up")
            near = relay.down.source
            await until(lambda: waiting(near) == 4 and waiting(relay.up.source) == 2)  # type: ignore[arg-type]
            relay.down.state = BLOCKED
            relay.up.on_ready(OUT | IN)
            assert await read(ends.client, 4) == b"down"
            assert await read(ends.server, 2) == b"up"
            assert other.seen == b"up"

    run(main)


def test_stages_are_put_on_all_or_none(run: Run) -> None:
    """Where one cannot be put on before the start, nothing starts, and both streams stay their owner's."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            first, second = Passing(), Failing("attached")
            with pytest.raises(ZeroDivisionError):
                bench.relays.start(
                    ends.near_client, ends.near_server, ends.session, b"", b"", [(UP, first), (UP, second)]
                )
            assert (first.flow, second.flow) == (None, None)
            assert not bench.relays.active
            assert ends.near_client.fd >= 0
            second.where = ""
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", [(UP, first), (UP, second)])
            await exchange(ends)
            assert first.seen == b"up"

    run(main)


def test_a_failure_of_ours_resets_both_sides(run: Run) -> None:
    """Neither may take what it has for the whole."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            await exchange(ends)
            ends.relay.fail("internal error: ValueError")
            for sock in (ends.client, ends.server):
                with pytest.raises(ConnectionResetError):
                    await read(sock, 1)
            assert (ends.session.close, ends.session.error) == ("error", "internal error: ValueError")

    run(main)


def test_a_relay_that_holds_something_on_purpose_is_not_idle(run: Run) -> None:
    """A stage of either direction says so."""

    async def main() -> None:
        for direction in (UP, DOWN):
            with Bench(idle=300) as bench:
                ends = bench.ends()
                ends.start()
                stage = Holding()
                ends.relay.add_stage(direction, stage)
                stage.call_at(asyncio.get_running_loop().time() + 1000, stage.let_go)
                await send(ends.client if direction == UP else ends.server, b"held")
                await until(partial(stage.holds, ends.relay.quiet_since))
                began = ends.relay.quiet_since
                bench.relays.sweep(began + 301)
                assert not ends.ended.is_set()
                stage.release()
                bench.relays.sweep(began + 302)
                bench.relays.sweep(began + 603)  # 602 may be 299.99… after 302
                assert (ends.session.close, ends.session.error) == ("idle", None)

    run(main)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_fault_ends_it(run: Run, how: Ending) -> None:
    """With an end or a reset of both sides, for the reason that is given; later ones change nothing."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            await exchange(ends)
            relay = ends.relay
            relay.end(how, "the reason")
            relay.end("close", "another")
            relay.end("reset", "another")
            for sock in (ends.client, ends.server):
                if how == "close":
                    assert await read_all(sock) == b""
                else:
                    with pytest.raises(ConnectionResetError):
                        await read_all(sock)
            assert (ends.session.close, ends.session.error) == ("fault", "the reason")

    run(main)


def test_the_descriptor_of_the_client(run: Run) -> None:
    """That of the client's connection while it runs, and none afterwards."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            fd = ends.near_client.sock.fileno()
            ends.start()
            relay = ends.relay
            assert relay.client_fd == fd
            relay.close("shutdown")
            assert relay.client_fd == -1

    run(main)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_only_what_the_server_has_sent(run: Run, staged: bool, ended: bool) -> None:
    """A client of which nothing more is taken gets all that the server has sent, and then an end, without having ended
    itself. What it has sent meanwhile goes nowhere."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            relay, up, down = ends.relay, Holding(), Holding()
            if staged:
                relay.add_stage(UP, up)
                relay.add_stage(DOWN, down)
                await send(ends.client, b"up")
                await until(lambda: up.held)
            await send(ends.server, b"down")
            await until(lambda: down.held if staged else relay.down.octets)
            if ended:
                ends.server.shutdown(socket.SHUT_WR)
                await until(lambda: down.ended if staged else relay.closed or relay.down.ended)
            relay.only_down()
            if staged:
                up.let_go()
                down.let_go()
            if not ended:
                await until(lambda: relay.down.octets == 4)
                ends.server.shutdown(socket.SHUT_WR)
                if staged:
                    await until(lambda: down.ended)
                    down.let_go()
            assert await read_all(ends.client) == b"down"
            assert await read_all(ends.server) == b""
            await ends.ended.wait()
            assert ends.session.close == "server"
            assert (ends.session.up, ends.session.down) == (0, 4)

    run(main)
