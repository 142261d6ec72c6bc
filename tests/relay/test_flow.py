"""Flow: every octet arrives, once and in order, whether copied or spliced, whoever is slow."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import Callable

import pytest

from conftest import Run
from sockets import (
    Bench,
    Ends,
    Pair,
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
    waiting,
)
from tabi.net.reactor import READABLE
from tabi.relay import flow
from tabi.relay import pipes as pipes_module
from tabi.relay.flow import BLOCKED, QUEUED, READY
from tabi.relay.pipes import BUFFER_SIZE

MIB = 1 << 20
BULK = 4 * MIB + 12_345
SMALL = 4096  # SO_SNDBUF and SO_RCVBUF that make most sends short


@pytest.fixture
def spliced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each splice has moved."""
    moved: list[int] = []
    real = flow.splice
    assert real is not None

    def splice(*arguments: int, flags: int) -> int:
        count: int = real(*arguments, flags=flags)
        moved.append(count)
        return count

    monkeypatch.setattr(flow, "splice", splice)
    return moved


async def known_readable(ends: Ends, count: int) -> None:
    """Let the octets arrive, and the client's stream know that it is readable, before the relay takes over."""
    near = ends.near_client
    sock = socket.socket(fileno=os.dup(near.fd))
    with sock:
        await until(lambda: waiting(sock) >= count)
    while not near.events & READABLE:
        await near.readable()


def test_small_traffic_is_copied_both_ways(run: Run, spliced: list[int]) -> None:
    """A ping-pong goes through the shared buffer: no pipe is taken, no splice called."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            for number in range(20):
                await send(ends.client, b"ping %d" % number)
                assert await read(ends.server, len(b"ping %d" % number)) == b"ping %d" % number
                await send(ends.server, b"pong %d" % number)
                assert await read(ends.client, len(b"pong %d" % number)) == b"pong %d" % number
            assert bench.relays.pipes.lent == 0
            assert spliced == []

    run(main)


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
@pytest.mark.parametrize("pipes", [8, 1, 0])
def test_bulk_is_exact_both_ways_at_once(run: Run, spliced: list[int], pair: Callable[[], Pair], pipes: int) -> None:
    """Some MiB in each direction arrive unchanged, over TCP and unix sockets, with pipes enough, too few, or none."""

    async def main() -> None:
        up, down = octets(BULK, 1), octets(BULK, 2)
        with Bench(pipes) as bench:
            ends = bench.ends(pair(), pair())
            ends.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(send_and_end(ends.client, up))
                group.create_task(send_and_end(ends.server, down))
                at_server = group.create_task(read_all(ends.server))
                at_client = group.create_task(read_all(ends.client))
            await ends.ended.wait()
            assert at_server.result() == up
            assert at_client.result() == down
            assert (ends.session.up, ends.session.down) == (BULK, BULK)
            assert bench.relays.pipes.lent == 0
            assert bool(spliced) == (pipes > 0)

    run(main)


@pytest.mark.parametrize("pipes", [8, 0])
def test_small_buffers_lose_nothing(run: Run, pipes: int) -> None:
    """Sends that are cut short again and again go on where they stopped."""

    async def main() -> None:
        data = octets(MIB)
        with Bench(pipes) as bench:
            ends = bench.ends(tcp_pair(SMALL), tcp_pair(SMALL))
            ends.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(send_and_end(ends.client, data))
                group.create_task(send_and_end(ends.server, data[::-1]))
                at_server = group.create_task(read_all(ends.server))
                at_client = group.create_task(read_all(ends.client))
            await ends.ended.wait()
            assert at_server.result() == data
            assert at_client.result() == data[::-1]

    run(main)


def refuse_pipe2(flags: int) -> tuple[int, int]:
    """os.pipe2 without descriptors left."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def refuse_fcntl(fd: int, command: int, argument: int = 0) -> int:
    """fcntl.fcntl for a user over the limit."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("refused", ["pipe2", "size"])
def test_bulk_is_exact_where_pipes_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, spliced: list[int], refused: str
) -> None:
    """Without descriptors for a pipe the flow copies; with a pipe of the usual size it splices: never a failure."""
    if refused == "pipe2":
        monkeypatch.setattr(os, "pipe2", refuse_pipe2)
    else:
        monkeypatch.setattr(fcntl, "fcntl", refuse_fcntl)

    async def main() -> None:
        data = octets(BULK)
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(send_and_end(ends.client, data))
                at_server = group.create_task(read_all(ends.server))
            assert at_server.result() == data
            assert bool(spliced) == (refused == "size")

    run(main)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_read_that_fills_the_buffer_leaves_nothing_behind(run: Run, extra: int) -> None:
    """Exactly a buffer full, and an octet more, arrive without another event."""

    async def main() -> None:
        data = octets(BUFFER_SIZE + extra)
        for pipes in (8, 0):
            with Bench(pipes) as bench:
                ends = bench.ends(unix_pair(4 * BUFFER_SIZE), unix_pair(4 * BUFFER_SIZE))
                await send(ends.client, data)
                await known_readable(ends, len(data))
                ends.start()
                assert await read(ends.server, len(data)) == data
                await send(ends.client, b"more")
                assert await read(ends.server, 4) == b"more"

    run(main)


def test_the_last_octets_come_before_the_end(run: Run) -> None:
    """Data and FIN that arrive together: the data is relayed, then the end."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            await send_and_end(ends.client, b"last words")
            ends.start()
            assert await read_all(ends.server) == b"last words"

    run(main)


@pytest.mark.parametrize("pipes", [8, 0])
def test_a_reader_that_stops_stalls_the_sender(run: Run, pipes: int) -> None:
    """Back-pressure: what cannot be written is not read, this process keeps a buffer at most, and all arrives later."""

    async def main() -> None:
        with Bench(pipes) as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
            ends.start()
            up, sent, chunk = ends.relay.up, 0, bytes(range(256)) * 256
            while True:
                try:
                    sent += ends.client.send(chunk[sent % 256 :])
                except BlockingIOError:
                    if up.state == BLOCKED:
                        break
                    await asyncio.sleep(0)
            assert sent < 3 * MIB
            assert len(up.rest or b"") <= BUFFER_SIZE
            assert bench.relays.pipes.lent == (1 if pipes else 0)
            before = up.octets
            await turns(20)
            assert (up.octets, up.state) == (before, BLOCKED)

            ends.client.shutdown(socket.SHUT_WR)
            arrived = await read_all(ends.server)
            assert len(arrived) == sent
            assert arrived == (bytes(range(256)) * (sent // 256 + 1))[:sent]

    run(main)


@pytest.mark.parametrize("count", [10, BUFFER_SIZE])
def test_a_full_sink_is_waited_for(run: Run, count: int) -> None:
    """A sink that takes nothing at all keeps what was read until there is room, for a head as for the first octets."""

    async def main() -> None:
        data = octets(count)
        for head in (data, b""):
            with Bench() as bench:
                ends = bench.ends(unix_pair(4 * BUFFER_SIZE), unix_pair(SMALL))
                near = ends.near_server.sock
                assert isinstance(near, socket.socket)
                before = fill(near)
                if not head:
                    await send(ends.client, data)
                    await known_readable(ends, count)
                ends.start(head)
                assert ends.relay.up.state == BLOCKED
                assert ends.relay.up.octets == 0
                assert (await read(ends.server, before + count))[before:] == data
                assert ends.relay.up.state == READY

    run(main)


def test_a_head_longer_than_the_send_buffer_comes_first(run: Run) -> None:
    """What a client sent right behind its request arrives before what it sends later, however long it is."""

    async def main() -> None:
        head, data = octets(50_000, 1), octets(MIB, 2)
        with Bench() as bench:
            ends = bench.ends(tcp_pair(SMALL), tcp_pair(SMALL))
            sending = asyncio.get_running_loop().create_task(send_and_end(ends.client, data))
            await turns()
            ends.start(head)
            assert ends.relay.up.state == BLOCKED
            assert await read_all(ends.server) == head + data
            await sending

    run(main)


class Watched(socket.socket):
    """A socket that says when something is sent on it."""

    sending: Callable[[], object]

    def send(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        """Send, and say so."""
        self.sending()
        return super().send(data)


@pytest.mark.parametrize("pipes", [8, 0])
def test_a_flow_that_used_up_its_share_lets_others_go_first(
    run: Run, monkeypatch: pytest.MonkeyPatch, pipes: int
) -> None:
    """Fairness: with 300 KB waiting, one flow moves its share, another gets its turn, then the first goes on."""
    monkeypatch.setattr(flow, "SHARE", BUFFER_SIZE)
    monkeypatch.setattr(pipes_module, "PIPE_SIZE", BUFFER_SIZE)
    monkeypatch.setattr(flow, "PIPE_SIZE", BUFFER_SIZE)

    async def main() -> None:
        data = octets(300_000)
        with Bench(pipes) as bench:
            big = bench.ends(unix_pair(400_000), unix_pair(400_000))
            far, near = unix_pair()
            watched = Watched(fileno=near.detach())
            watched.setblocking(False)
            small = bench.ends(unix_pair(), (far, watched))
            moved: list[int] = []
            big.start()
            small.start()
            up = big.relay.up
            watched.sending = lambda: moved.append(up.octets)
            await send(big.client, data)
            await send(small.client, b"x")
            assert await read(small.server, 1) == b"x"
            assert len(moved) == 1
            assert moved[0] < len(data)
            assert await read(big.server, len(data)) == data

    run(main)


@pytest.mark.parametrize("pipes", [8, 0])
def test_a_queued_flow_goes_on_by_itself(run: Run, monkeypatch: pytest.MonkeyPatch, pipes: int) -> None:
    """After its share a flow needs no further event to move the rest."""
    monkeypatch.setattr(flow, "SHARE", BUFFER_SIZE)

    async def main() -> None:
        data = octets(300_000)
        with Bench(pipes) as bench:
            ends = bench.ends(unix_pair(400_000), unix_pair(400_000))
            await send(ends.client, data)
            await known_readable(ends, len(data))
            ends.start()
            assert ends.relay.up.state == QUEUED
            assert await read(ends.server, len(data)) == data
            await until(lambda: ends.relay.up.state == READY)

    run(main)


@pytest.mark.parametrize("pipes", [8, 0])
def test_a_flow_moves_something_in_each_of_its_turns(run: Run, monkeypatch: pytest.MonkeyPatch, pipes: int) -> None:
    """Where every turn has used up its time before the flow is called, it is slow, but it goes on."""

    async def main() -> None:
        data = octets(300_000)
        with Bench(pipes) as bench:
            monkeypatch.setattr(bench.relays.reactor, "late", lambda: True)
            ends = bench.ends(unix_pair(400_000), unix_pair(400_000))
            ends.start()
            await send_and_end(ends.client, data)
            assert await read_all(ends.server) == data

    run(main)


class Trickle(socket.socket):
    """A socket whose octets come one by one, as fast as they are read."""

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Receive one."""
        return super().recv_into(buffer, 1)


def test_a_source_that_is_read_to_its_end_leaves_turns_to_the_others(
    run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender as quick as the flow, in small pieces, has no more than the time of a turn, and loses nothing."""

    async def main() -> None:
        with Bench(0) as bench:
            far, near = unix_pair()
            trickle = Trickle(fileno=near.detach())
            trickle.setblocking(False)
            ends = bench.ends((far, trickle))
            reactor = bench.relays.reactor
            with monkeypatch.context() as patched:
                patched.setattr(reactor, "late", lambda: True)
                await send_and_end(ends.client, octets(100))
                await known_readable(ends, 100)
                ends.start(b"head")
                assert ends.relay.up.state == QUEUED
            assert await read_all(ends.server) == b"head" + octets(100)

    run_once(main)


def test_a_relay_closed_while_a_flow_is_queued_stays_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn that was put off finds the relay closed and does nothing."""
    monkeypatch.setattr(flow, "SHARE", BUFFER_SIZE)

    async def main() -> None:
        with Bench(0) as bench:
            ends = bench.ends(unix_pair(400_000), unix_pair(400_000))
            await send(ends.client, octets(300_000))
            await known_readable(ends, 300_000)
            ends.start()
            assert ends.relay.up.state == QUEUED
            bench.relays.close("shutdown")
            await turns()
            assert ends.session.up == BUFFER_SIZE
            assert len(await read_all(ends.server)) == BUFFER_SIZE

    run(main)


async def fails_with_reset(sock: socket.socket) -> bytes:
    """Read until a reset comes; returns what came before. An orderly end fails the test."""
    data = b""
    while True:
        try:
            chunk = await asyncio.get_running_loop().sock_recv(sock, 65536)
        except ConnectionResetError:
            return data
        assert chunk, "an orderly end in place of a reset"
        data += chunk


@pytest.mark.parametrize("bulk", [0, 4 * BUFFER_SIZE])
def test_a_reset_of_the_source_is_passed_on(run: Run, bulk: int) -> None:
    """Whether it was copying or splicing, a source that is reset resets the sink."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            if bulk:
                async with asyncio.TaskGroup() as group:
                    group.create_task(send(ends.client, octets(bulk)))
                    group.create_task(read(ends.server, bulk))
                await until(lambda: ends.relay.up.pipe is not None)
            reset(ends.client)
            assert await fails_with_reset(ends.server) == b""
            await ends.ended.wait()
            assert ends.session.close == "reset"
            assert bench.relays.pipes.lent == 0

    run(main)


@pytest.mark.parametrize("head", [b"", b"head"])
def test_a_sink_that_was_reset_resets_the_source(run: Run, head: bytes) -> None:
    """The first octets or the head find the server gone: the client is told so by a reset."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            await send(ends.client, b"data")
            await known_readable(ends, 4)
            reset(ends.server)
            ends.start(head)
            assert await fails_with_reset(ends.client) == b""
            assert ends.session.close == "reset"
            assert ends.session.up == 0

    run(main)


@pytest.mark.parametrize("pipes", [8, 0])
def test_a_blocked_sink_that_is_reset_resets_the_source(run: Run, pipes: int) -> None:
    """A server that does not read and then goes: no octets wait for it any longer."""

    async def main() -> None:
        with Bench(pipes) as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
            ends.start()
            while ends.relay.up.state != BLOCKED:
                fill(ends.client)
                await asyncio.sleep(0)
            reset(ends.server)
            await fails_with_reset(ends.client)
            await ends.ended.wait()
            assert ends.session.close == "reset"
            assert bench.relays.pipes.lent == 0

    run(main)


def test_a_blocked_source_that_is_reset_resets_the_sink(run: Run) -> None:
    """A client that is reset while the server does not read: the server sees a reset when it reads on."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
            ends.start()
            while ends.relay.up.state != BLOCKED:
                fill(ends.client)
                await asyncio.sleep(0)
            reset(ends.client)
            if bench.relays.reactor.edge_triggered:
                await ends.ended.wait()  # an edge tells at once, a level that is not watched does not
            await fails_with_reset(ends.server)
            await ends.ended.wait()
            assert ends.session.close == "reset"

    run(main)


def test_an_end_that_is_followed_by_a_reset_is_a_reset(run: Run) -> None:
    """A client that has ended and is then reset: the server that still sends is told."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            ends.client.shutdown(socket.SHUT_WR)
            assert await read_all(ends.server) == b""
            reset(ends.client)
            if not bench.relays.reactor.edge_triggered:
                await send(ends.server, b"too late")
            await ends.ended.wait()
            assert ends.session.close == "reset"
            with pytest.raises(BrokenPipeError):  # tcp(7): what a reset is to a socket that has seen the end
                ends.server.send(b"more")

    run(main)


def test_a_flow_that_splices_is_not_prompt(run: Run) -> None:
    """In a turn that has used up its time it waits; one that copies little is called."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(unix_pair(400_000), unix_pair(400_000))
            ends.start()
            assert ends.relay.up.prompt
            await send(ends.client, octets(300_000))
            await until(lambda: ends.relay.up.pipe is not None)
            assert not ends.relay.up.prompt

    run(main)


def test_what_a_flow_holds_is_known(run: Run) -> None:
    """Octets that were read and that the sink has not taken, in the pipe or beside it. None of that is on purpose."""

    async def main() -> None:
        for pipes in (8, 0):
            with Bench(pipes) as bench:
                ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
                ends.start()
                up, sent = ends.relay.up, 0
                assert up.held == 0
                while not up.held:
                    sent += fill(ends.client)
                    await asyncio.sleep(0)
                assert up.held == (up.pipe.held if up.pipe is not None else len(up.rest or b""))
                assert not up.holds(0.0)
                ends.client.shutdown(socket.SHUT_WR)
                assert len(await read_all(ends.server)) == sent
                assert up.held == 0

    run(main)
