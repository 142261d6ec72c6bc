"""Meter: what is limited arrives whole and in order, no more than there is to use, and the end is an end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from authorities import TlsPeer, accept, client_context
from conftest import Run
from sockets import Bench, Ends, fill, read, read_all, reset, send, send_and_end, tcp_pair, turns, until, waiting
from tabi.config import LimitsConfig
from tabi.policy.ledger import USED, Ledger
from tabi.policy.limits import DOWN, QUANTUM, UP, Lease
from tabi.policy.limits import Limits as Accounts
from tabi.policy.quantities import Bandwidth, Quota, Size
from tabi.relay import meter, staged
from tabi.relay.flow import BLOCKED, PAUSED, QUEUED, Flow
from tabi.relay.meter import Meter
from tabi.relay.pacer import TICK, Pacer
from tabi.relay.pipes import BUFFER_SIZE, PIPE_SIZE
from tabi.relay.staged import StagedFlow
from tabi.relay.tls import TlsRelay
from tabi.wire.address import parse_host

MIB = 1 << 20
CLIENT = parse_host("192.0.2.1")
MANY = 50


class Clock:
    """A clock, in nanoseconds, that goes on only when it is told."""

    def __init__(self) -> None:
        self.now = 10**10

    def __call__(self) -> int:
        return self.now

    def tick(self, pacer: Pacer, seconds: float = TICK) -> None:
        """Let that much time go by, and have the pacer serve who waits."""
        self.now += int(seconds * 1e9)
        pacer.close()
        pacer.tick()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every flow, and of the pacer of `clocked_bench`."""
    clock = Clock()
    monkeypatch.setattr(meter, "monotonic_ns", clock)
    return clock


def clocked_bench(clock: Clock, pipes: int = 8) -> Bench:
    """A bench where no bucket fills but by `Clock.tick`."""
    bench = Bench(pipes)
    bench.relays.pacer.time = clock
    return bench


def meter_of(flow: Flow) -> Meter:
    """The stage of a limited direction."""
    assert isinstance(flow, StagedFlow)
    (stage,) = flow.stages
    assert isinstance(stage, Meter)
    return stage


def standing(pacer: Pacer) -> int:
    """How many wait."""
    return sum(map(len, pacer.queues.values()))


def octets(count: int, seed: int = 1) -> bytes:
    """Data in which every piece differs."""
    return random.Random(seed).randbytes(count)


def accounts(bandwidth: float | None = None, quota: int | None = None, burst: int | None = None) -> Accounts:
    """Limits of one user."""
    terms = LimitsConfig(
        bandwidth=None if bandwidth is None else Bandwidth.parse(bandwidth),
        quota=None if quota is None else Quota.parse(f"{quota} B/day"),
        burst=None if burst is None else Size.parse(burst),
    )
    return Accounts(Ledger(), users={"alice": terms})


def lease_of(limits: Accounts) -> Lease:
    """What a session of hers may move."""
    lease = limits.admit("alice", CLIENT, time.monotonic_ns(), 0)
    assert lease is not None
    return lease


async def arrived(ends: Ends, count: int) -> None:
    """Wait until so many octets of the client's wait for the relay."""
    near: Any = ends.near_client.sock
    await until(lambda: waiting(near) >= count)


@contextlib.asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have something done, as far as it comes; what it fails with is nobody's business."""

    async def do() -> None:
        with contextlib.suppress(OSError):
            await work

    async with asyncio.TaskGroup() as group:
        task = group.create_task(do())
        yield
        task.cancel()


def used(limits: Accounts) -> int:
    """Octets that she has used."""
    return limits.ledger.cells[limits.ledger.rows["user alice"] + USED]


def limited_ends(bench: Bench, limits: Accounts, buffers: int | None = None) -> Ends:
    """A client and a server whose session has a lease."""
    ends = bench.ends(tcp_pair(buffers), tcp_pair(buffers))
    ends.session.lease = lease_of(limits)
    return ends


@pytest.mark.parametrize("pipes", [8, 0], ids=["spliced", "copied"])
@pytest.mark.parametrize("size", [1, BUFFER_SIZE, MIB + 12_345])
def test_content_arrives_whole_in_both_directions(run: Run, pipes: int, size: int) -> None:
    """Within a bandwidth that makes it wait now and then; what was used is what arrived."""

    async def main() -> None:
        limits = accounts(20e6, 1 << 40)
        with Bench(pipes) as bench:
            ends = limited_ends(bench, limits)
            head = octets(100, 3)
            ends.start(head, b"answer")
            up, down = octets(size), octets(size, 2)
            async with asyncio.TaskGroup() as group:
                group.create_task(send_and_end(ends.client, up))
                group.create_task(send_and_end(ends.server, down))
                there = group.create_task(read_all(ends.server))
                back = group.create_task(read_all(ends.client))
            assert there.result() == head + up
            assert back.result() == b"answer" + down
            await ends.ended.wait()
            assert (ends.session.up, ends.session.down) == (size + 100, size)
            assert used(limits) == 2 * size + 100

    run(main)


def test_bandwidth_is_kept_by_one_and_by_many(run: Run) -> None:
    """Twenty of one user together take as long as one alone."""

    async def main() -> None:
        for count in (1, 20):
            limits = accounts(10e6, burst=1)
            with Bench(pipes=32) as bench:
                each = 4 * MIB // count
                several = [limited_ends(bench, limits) for _ in range(count)]
                began = time.monotonic()
                async with asyncio.TaskGroup() as group:
                    for ends in several:
                        ends.start()
                        group.create_task(send_and_end(ends.client, bytes(each)))
                        group.create_task(read_all(ends.server))
                seconds = time.monotonic() - began
                assert seconds > (4 * MIB - count * (1 << 16) - 1_000_000) / 10e6

    run(main)


@pytest.mark.parametrize("pipes", [8, 0], ids=["spliced", "copied"])
def test_a_quota_ends_it_to_the_octet(run: Run, pipes: int) -> None:
    """What was counted arrives at the server, then an end; nothing more, and no reset."""

    async def main() -> None:
        limits = accounts(quota=3 * MIB)
        with Bench(pipes) as bench:
            ends = limited_ends(bench, limits)
            ends.start()
            data = octets(5 * MIB)
            async with meanwhile(send(ends.client, data)):
                got = await read_all(ends.server)
            assert got == data[: 3 * MIB]
            assert (ends.session.up, ends.session.close) == (3 * MIB, "limit")
            assert ends.session.error == "limit: user alice: the quota of 3 MiB/day is used up"
            assert used(limits) == 3 * MIB

    run(main)


def test_a_relay_on_a_quota_that_is_used_up_begins_with_its_end(run: Run) -> None:
    """Another has used the last of it: the first octet ends this one."""

    async def main() -> None:
        limits = accounts(quota=1000)
        with Bench() as bench:
            ends = limited_ends(bench, limits)
            other = lease_of(limits)
            ends.start()
            other.spend(UP, 1000, 0)
            await send(ends.client, b"x")
            assert await read_all(ends.server) == b""
            assert ends.session.close == "limit"

    run(main)


@pytest.mark.parametrize("pipes", [8, 0], ids=["spliced", "copied"])
def test_what_reaches_nobody_is_given_back(run: Run, pipes: int) -> None:
    """A server that takes nothing: what waits for it is charged while it waits, and not when the relay has closed."""

    async def main() -> None:
        limits = accounts(quota=1 << 40)
        with Bench(pipes) as bench:
            ends = limited_ends(bench, limits, 4096)
            ends.start()
            relay = ends.relay
            async with meanwhile(send(ends.client, octets(4 * MIB))):
                await until(lambda: relay.up.state == BLOCKED)
                await turns(50)
                assert used(limits) > relay.up.octets
                relay.close("shutdown")
                relay.close("shutdown")
                assert used(limits) == ends.session.up

    run(main)


def test_a_head_that_comes_too_late_is_given_back(run: Run) -> None:
    """The client was reset before its answer: what it had sent behind its request goes nowhere, and costs nothing."""

    async def main() -> None:
        limits = accounts(quota=1 << 40)
        with Bench() as bench:
            ends = limited_ends(bench, limits)
            reset(ends.client)
            ends.start(b"head", answer=b"reply")
            await ends.ended.wait()
            assert (ends.session.close, ends.session.up, used(limits)) == ("reset", 0, 0)

    run(main)


class Gone(socket.socket):
    """A socket that turns out to be gone when something is sent."""

    def send(self, *arguments: Any) -> int:
        """Fail as a socket that was reset does."""
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def test_what_a_broken_server_did_not_take_is_given_back(run: Run) -> None:
    """It was read and charged, and there is nobody to send it to."""

    async def main() -> None:
        limits = accounts(quota=1 << 40)
        with Bench() as bench:
            far, near = tcp_pair()
            gone = Gone(fileno=near.detach())
            gone.setblocking(False)
            ends = bench.ends(server=(far, gone))
            ends.session.lease = lease_of(limits)
            ends.start()
            await send(ends.client, b"to nobody")
            await ends.ended.wait()
            assert (ends.session.close, ends.session.up, used(limits)) == ("reset", 0, 0)

    run(main)


def test_a_slow_server_gets_all(run: Run) -> None:
    """Small buffers, a pipe that empties in parts: whole, and in order."""

    async def main() -> None:
        with Bench() as bench:
            ends = limited_ends(bench, accounts(quota=1 << 40), 4096)
            ends.start()
            data = octets(MIB)
            got = bytearray()
            async with asyncio.TaskGroup() as group:
                group.create_task(send_and_end(ends.client, data))
                while part := await asyncio.get_running_loop().sock_recv(ends.server, 3000):
                    got += part
                    await turns(1)
            assert got == data

    run(main)


def test_a_paused_flow_reads_nothing(run: Run, clock: Clock) -> None:
    """Its sender is slowed down by TCP: what it sends stays in the kernel until the pacer lets the flow go on."""

    async def main() -> None:
        limits = accounts(40_000, burst=4096)
        with clocked_bench(clock) as bench:
            ends = limited_ends(bench, limits)
            data = octets(20_000)
            await send(ends.client, data)
            await arrived(ends, 20_000)
            ends.start()
            relay = ends.relay
            near: Any = relay.up.source
            await until(lambda: relay.up.state == PAUSED)
            assert (relay.up.octets, waiting(near)) == (4096, 20_000 - 4096)
            await turns(20)
            assert (relay.up.state, relay.up.octets) == (PAUSED, 4096)
            assert meter_of(relay.up).room(1) == 0
            assert standing(bench.relays.pacer) == 1
            clock.tick(bench.relays.pacer, 0.02)  # 800 octets: less than a packet
            assert relay.up.octets == 4096
            for rounds in range(1, 8):
                clock.tick(bench.relays.pacer)
                assert relay.up.octets == 4096 + 800 + 2000 * rounds
            clock.tick(bench.relays.pacer)
            assert await read(ends.server, 20_000) == data

    run(main)


def test_who_waits_for_a_bucket_is_not_idle(run: Run, clock: Clock) -> None:
    """However long it stands behind others; the idle time begins when it may move again."""

    async def main() -> None:
        with clocked_bench(clock) as bench:
            ends = limited_ends(bench, accounts(40_000, burst=4096))
            ends.start()
            relay = ends.relay
            await send_and_end(ends.client, bytes(5000))
            await until(lambda: relay.up.state == PAUSED)
            bench.relays.sweep(10_000.0)
            bench.relays.sweep(20_000.0)
            assert not relay.closed
            for _ in range(2):  # for the octets, and for the end behind them
                clock.tick(bench.relays.pacer)
            assert relay.up.ended
            bench.relays.sweep(20_001.0)
            bench.relays.sweep(20_060.9)
            assert not relay.closed
            bench.relays.sweep(20_061.0)
            assert (ends.session.close, ends.session.up) == ("idle", 5000)

    run(main)


def test_many_of_one_account_get_the_same(run: Run, clock: Clock) -> None:
    """Fifty uploads of one user: each has its turn of a quantum, so that after some rounds none has got twice what
    another has, and all together what the bandwidth says."""

    async def main() -> None:
        with clocked_bench(clock, 2 * MANY) as bench:
            pacer = bench.relays.pacer
            limits = accounts(10e6)
            several = [limited_ends(bench, limits) for _ in range(MANY)]

            async def feed(ends: Ends) -> None:
                while True:
                    await send(ends.client, bytes(MIB))

            async def drain(ends: Ends) -> None:
                while await asyncio.get_running_loop().sock_recv(ends.server, MIB):
                    pass

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work(ends)) for ends in several for work in (feed, drain)]
                for ends in several:
                    ends.start()
                relays = [ends.relay for ends in several]
                await until(lambda: standing(pacer) == MANY)
                begin = [relay.up.octets for relay in relays]
                assert sum(begin) == 1_000_000  # what the bucket held
                for _ in range(60):
                    before = [relay.up.octets for relay in relays]
                    clock.tick(pacer)
                    await until(lambda: standing(pacer) == MANY)
                    moved = [relay.up.octets - had for relay, had in zip(relays, before, strict=True)]
                    assert max(moved) <= 2 * QUANTUM
                got = [relay.up.octets - had for relay, had in zip(relays, begin, strict=True)]
                assert sum(got) <= 60 * 500_000
                assert sum(got) >= 59 * 500_000
                assert max(got) < 2 * min(got)
                for task in tasks:
                    task.cancel()

    run(main)


def test_a_turn_is_as_long_as_the_pacer_says(run: Run, clock: Clock) -> None:
    """Where there is much for few, a turn is more than a quantum: the account's bandwidth is used."""

    async def main() -> None:
        with clocked_bench(clock) as bench:
            pacer = bench.relays.pacer
            limits = accounts(40e6)
            several = [limited_ends(bench, limits, 8 * MIB) for _ in range(4)]
            lease_of(limits).spend(UP, 4_000_000, clock.now)
            for ends in several:
                fill(ends.client)
                await arrived(ends, MIB)
                ends.start()
            relays = [ends.relay for ends in several]
            await until(lambda: standing(pacer) == 4)
            clock.tick(pacer)
            async with asyncio.TaskGroup() as group:
                for ends in several:
                    group.create_task(read(ends.server, 2 * QUANTUM))
                await until(lambda: standing(pacer) == 4)
            got = [relay.up.octets for relay in relays]
            assert 2_000_000 - QUANTUM < sum(got) <= 2_000_000  # a tick's worth
            assert max(got) < 2 * min(got)

    run(main)


def test_a_keystroke_does_not_wait_behind_downloads(run: Run, clock: Clock) -> None:
    """Of those that wait for a bucket, who sends little goes first, whoever came before it."""

    async def main() -> None:
        with clocked_bench(clock) as bench:
            pacer = bench.relays.pacer
            limits = accounts(10e6)
            bulk, small = limited_ends(bench, limits), limited_ends(bench, limits)
            lease_of(limits).spend(UP, 1_000_000, clock.now)
            for ends in (bulk, small):
                ends.start()
            meter_of(bulk.relay.up).taken = QUANTUM
            fill(bulk.client)
            await until(lambda: standing(pacer) == 1)
            await send(small.client, b"x")
            await until(lambda: standing(pacer) == 2)
            clock.tick(pacer, 0.001)  # room for a packet or six, which is less than a turn
            assert await read(small.server, 1) == b"x"
            assert bulk.relay.up.octets == 0
            clock.tick(pacer)
            assert bulk.relay.up.octets > 0

    run(main)


@pytest.mark.parametrize("pipes", [8, 0], ids=["spliced", "copied"])
def test_a_server_that_takes_nothing_uses_up_nothing(run: Run, clock: Clock, pipes: int) -> None:
    """Its flow does not read on, so that it is not charged and does not wait for the bucket; TCP stops the client."""

    async def main() -> None:
        limits = accounts(1e9, quota=1 << 40)
        with clocked_bench(clock, pipes) as bench:
            ends = limited_ends(bench, limits, 65536)
            ends.start()
            relay = ends.relay
            sent = fill(ends.client)
            while relay.up.state != BLOCKED:
                await asyncio.sleep(0)
                sent += fill(ends.client)
            await turns(20)
            charged = used(limits)
            sent += fill(ends.client)
            for _ in range(20):
                clock.tick(bench.relays.pacer)
                await turns(1)
            assert used(limits) == charged == relay.up.octets + relay.up.held
            assert charged - relay.up.octets <= PIPE_SIZE
            assert not standing(bench.relays.pacer)
            ends.client.shutdown(socket.SHUT_WR)
            assert len(await read_all(ends.server)) == sent == used(limits)

    run(main)


def test_what_the_other_direction_was_short_of_is_not_waited_for(run: Run, clock: Clock) -> None:
    """The user's quota ends in the downlink while the uplink stands behind others for the server's bandwidth: it ends
    too, and those others go on. There is no bucket that a quota would wait for."""

    async def main() -> None:
        quota, bandwidth = LimitsConfig(quota=Quota.parse("1 MB/day")), LimitsConfig(bandwidth=Bandwidth.parse(10e6))
        limits = Accounts(Ledger(), users={"alice": quota}, server=bandwidth)
        with clocked_bench(clock) as bench:
            ends, other = limited_ends(bench, limits), bench.ends()
            ends.start()
            relay = ends.relay
            await send(ends.client, bytes(QUANTUM))
            assert await read(ends.server, QUANTUM) == bytes(QUANTUM)
            relay.up.give_pipe_back()
            other.session.lease = lease = limits.admit("bob", CLIENT, clock.now, 0)
            assert lease is not None
            lease.spend(UP, 10_000_000, clock.now)
            other.start()
            await send(other.client, b"x")
            await until(lambda: standing(bench.relays.pacer) == 1)
            meter_of(relay.down).note(1_000_000)
            meter_of(relay.up).left = 1000  # said before that
            await send(ends.client, b"y")
            await until(lambda: relay.closed or standing(bench.relays.pacer) == 2)
            assert (ends.session.close, ends.session.error) == (
                "limit",
                "limit: user alice: the quota of 1 MB/day is used up",
            )
            clock.tick(bench.relays.pacer, 2)
            assert await read(other.server, 1) == b"x"

    run(main)


def test_a_flow_that_took_its_share_lets_others_go_first(run: Run) -> None:
    """While somebody waits, who has had a quantum stands behind; its relay may close meanwhile."""

    async def main() -> None:
        limits = accounts(1e9)
        with Bench() as bench:
            ends = limited_ends(bench, limits)
            ends.start()
            relay = ends.relay
            meter_of(relay.up).taken = QUANTUM
            (account,) = ends.session.lease.meters
            account.waiting += 1
            await send(ends.client, b"x" * 100)
            await until(lambda: relay.up.state == PAUSED)
            account.waiting -= 1
            assert await read(ends.server, 100) == b"x" * 100
            meter_of(relay.up).taken = QUANTUM
            account.waiting += 1
            await send(ends.client, b"y")
            await until(lambda: relay.up.state == PAUSED)
            relay.close("shutdown")
            account.waiting -= 1
            await until(lambda: not bench.relays.pacer.queues)
            assert await read_all(ends.server) == b""

    run(main)


def test_long_transfers_take_turns_with_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its share of a turn a flow waits for the next one, whether it copies or splices."""

    async def main() -> None:
        for pipes in (8, 0):
            states: list[int] = []

            def wait(flow: StagedFlow, state: int, states: list[int] = states) -> None:
                states.append(state)
                Flow.wait(flow, state)

            monkeypatch.setattr(StagedFlow, "wait", wait)
            with Bench(pipes) as bench:
                ends = limited_ends(bench, accounts(quota=1 << 40), 4 << 20)
                data = octets(4 * MIB)
                sent = fill(ends.client, data)
                await arrived(ends, MIB)
                ends.start()
                assert await read(ends.server, MIB) == data[:MIB]
                assert sent > MIB
            assert QUEUED in states

    run(main)


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("bulk", [False, True], ids=["small", "bulk"])
def test_a_reset_is_passed_on(run: Run, side: str, bulk: bool) -> None:
    """A reset of one side, in the middle of a transfer or of silence, is a reset of the other."""

    async def main() -> None:
        with Bench() as bench:
            ends = limited_ends(bench, accounts(quota=1 << 40))
            ends.start()
            if bulk:
                async with asyncio.TaskGroup() as group:
                    group.create_task(send(ends.client, bytes(MIB)))
                    group.create_task(read(ends.server, MIB))
            here, there = (ends.client, ends.server) if side == "client" else (ends.server, ends.client)
            reset(here)
            with pytest.raises(ConnectionResetError):
                await read_all(there)
            assert ends.session.close == "reset"

    run(main)


@pytest.mark.parametrize("error", [errno.ECONNRESET, errno.EPIPE])
def test_a_splice_that_fails_ends_both(run: Run, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Whatever the kernel says in the middle of it."""

    def splice(*arguments: int, flags: int) -> int:
        raise OSError(error, os.strerror(error))

    async def main() -> None:
        with Bench() as bench:
            ends = limited_ends(bench, accounts(quota=1 << 40))
            ends.start()
            monkeypatch.setattr(staged, "splice", splice)
            await send(ends.client, bytes(BUFFER_SIZE * 2))
            await ends.ended.wait()
            assert ends.session.close == "reset"

    run(main)


def test_a_sender_that_ends_at_a_full_buffer(run: Run) -> None:
    """The end behind a whole buffer is seen, with a pipe and without one."""

    async def main() -> None:
        for pipes in (8, 0):
            with Bench(pipes) as bench:
                ends = limited_ends(bench, accounts(quota=1 << 40))
                await send_and_end(ends.client, bytes(BUFFER_SIZE))
                await arrived(ends, BUFFER_SIZE)
                ends.start()
                assert await read_all(ends.server) == bytes(BUFFER_SIZE)

    run(main)


def test_the_end_of_a_quota_is_approached_in_steps() -> None:
    """Of many that use one quota none takes more than a step at once near its end, whatever it asks for."""
    limits = accounts(quota=MIB)
    lease = lease_of(limits)
    assert lease.spend(DOWN, 0, 0) == MIB
    assert lease.spend(DOWN, 1, 0) == 1 << 16
    assert lease.spend(DOWN, MIB - 11, 0) == 10
    assert PIPE_SIZE > 1 << 16


def test_tls_within_limits(run: Run) -> None:
    """What is counted is plaintext; what is small and what is not arrives; a quota ends it in order."""

    async def main() -> None:
        limits = accounts(50e6, quota=2 * MIB)
        with Bench() as bench:
            ends = limited_ends(bench, limits)
            peer = TlsPeer(ends.client, client_context())
            await accept(ends.near_client, peer)
            ends.start()
            assert isinstance(ends.relay, TlsRelay)
            assert meter_of(ends.relay.up).lease is meter_of(ends.relay.down).lease is ends.session.lease
            await peer.send(b"small")
            assert await read(ends.server, 5) == b"small"
            data = octets(3 * MIB)
            async with meanwhile(send(ends.server, data)):
                assert await peer.read_all() == data[: 2 * MIB - 5]
            assert peer.notified
            assert (ends.session.up, ends.session.down, ends.session.close) == (5, 2 * MIB - 5, "limit")

    run(main)


def test_tls_within_a_bandwidth(run: Run) -> None:
    """Both directions, paced: content arrives whole, and the end of each is told."""

    async def main() -> None:
        limits = accounts(20e6, 1 << 40)
        with Bench() as bench:
            ends = limited_ends(bench, limits)
            peer = TlsPeer(ends.client, client_context())
            await accept(ends.near_client, peer)
            ends.start(b"head ")
            up, down = octets(MIB + 1), octets(2 * MIB + 3, 2)

            async def speak() -> None:
                await peer.send(up)
                assert await peer.read_all() == down
                await peer.end()
                ends.client.shutdown(socket.SHUT_WR)

            async with asyncio.TaskGroup() as group:
                group.create_task(speak())
                group.create_task(send_and_end(ends.server, down))
                there = group.create_task(read_all(ends.server))
            assert there.result() == b"head " + up
            assert peer.notified
            await ends.ended.wait()
            assert (ends.session.up, ends.session.down) == (len(up) + 5, len(down))
            assert used(limits) == len(up) + 5 + len(down)

    run(main)


def test_what_is_unread_at_the_end_of_a_quota_resets_nobody(run: Run) -> None:
    """A client that sent more than it may still gets all that was on its way to it, and then an end."""

    async def main() -> None:
        limits = accounts(quota=100_000)
        with Bench() as bench:
            ends = limited_ends(bench, limits)
            ends.start()
            await send(ends.server, bytes(90_000))
            await until(lambda: used(limits) == 90_000)
            await send(ends.client, bytes(20_000))
            await ends.ended.wait()
            assert await read_all(ends.server) == bytes(10_000)
            assert await read_all(ends.client) == bytes(90_000)

    run(main)
