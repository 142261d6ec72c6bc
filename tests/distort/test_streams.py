"""The chain of stages that a fault is: its order, pairs of faults, faults that come and go, and real connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from sockets import Bench, Ends, octets, read, read_all, reset, send, send_and_end, tcp_pair, turns, until
from tabi.distort.bandwidth import Bandwidth
from tabi.distort.blackhole import Blackhole
from tabi.distort.corruption import Corruption
from tabi.distort.draws import Drawn, Entry
from tabi.distort.latency import Latency
from tabi.distort.limit import Limit
from tabi.distort.memory import HELD_BY_ONE, LEAST, Memory
from tabi.distort.slicing import Slicing
from tabi.distort.slow_close import SlowClose
from tabi.distort.stall import Stall
from tabi.distort.stream_loss import StreamLoss
from tabi.distort.streams import stages_of
from tabi.distort.timed_end import TimedEnd
from tabi.distort.tls_cut import Cut, Hello
from tabi.policy.distorts import Distort
from tabi.policy.faults import Fault, Line
from tabi.policy.limits import DOWN, UP
from tabi.policy.rules import Conditions, Rule, Texts
from tabi.relay.stage import Stage
from virtual import Net

RULE = Rule(0, None, "allow", None, None, Conditions(), Texts())
MIB = 1 << 20


def drawn(fault: Fault, seed: int | None = 7) -> Drawn:
    """A session that is drawn for a fault."""
    found = Entry(Distort(RULE, "one", seed=seed, fault=fault), 0.0).draw()
    assert found is not None
    return found


ALL = Line(
    latency=0.002,
    jitter=0.001,
    bandwidth=1e8,
    loss=0.01,
    corrupt=1e-15,
    slice=5000,
    slice_variation=1000,
    limit=1 << 50,
    stall=3600.0,
    slow_close=0.01,
)


def test_the_order_is_fixed() -> None:
    """For each direction: what is thrown away or cut, losses, bandwidth, latency, slices, the end."""
    fault = Fault(up=ALL, down=ALL, tls_cut="close", reset_after=3600.0, close_after=3000.0)
    stages = stages_of(drawn(fault))
    chain = [Stall, Corruption, Limit, StreamLoss, Bandwidth, Latency, Slicing, SlowClose]
    assert [type(stage) for direction, stage in stages if direction == UP] == [*chain, Hello, TimedEnd, TimedEnd]
    assert [type(stage) for direction, stage in stages if direction == DOWN] == [*chain, Cut]
    assert [type(stage) for _, stage in stages_of(drawn(Fault(up=Line(blackhole=True))))] == [Blackhole]


def test_nothing_is_no_stage() -> None:
    """A direction without a fault is spliced as ever."""
    assert stages_of(drawn(Fault())) == []
    assert [direction for direction, _ in stages_of(drawn(Fault(down=Line(latency=1.0))))] == [DOWN]


def test_each_session_has_stages_of_its_own_and_may_share_a_line() -> None:
    """Of one entry: with ``shared`` all have the same bucket, for each direction one."""
    for shared in (False, True):
        one = drawn(Fault(up=Line(bandwidth=1.0), down=Line(bandwidth=1.0), shared=shared))
        buckets = [stage.bucket for _ in range(2) for _, stage in stages_of(one) if isinstance(stage, Bandwidth)]
        assert len({id(bucket) for bucket in buckets}) == (2 if shared else 4)


def test_the_same_seed_gives_the_same_faults_whatever_is_beside_them() -> None:
    """Losses do not depend on a jitter that is drawn in between."""

    def lost(line: Line) -> list[bool]:
        return [stage.losses.next() for _, stage in stages_of(drawn(Fault(up=line))) for _ in range(100)
                if isinstance(stage, StreamLoss)]  # fmt: skip

    assert lost(Line(loss=0.5)) == lost(Line(loss=0.5, latency=1.0, jitter=0.5, corrupt=0.5))
    assert True in lost(Line(loss=0.5))


# --- pairs ---

Make = Callable[[random.Random, Memory], Stage]

KINDS: dict[str, Make] = {
    "latency": lambda dice, memory: Latency(dice.choice([0.0001, 0.05, 2.0]), memory=memory),
    "jitter": lambda dice, memory: Latency(0.05, dice.choice([0.01, 1.0]), "normal", dice, memory),
    "bandwidth": lambda dice, memory: Bandwidth(dice.choice([20_000.0, 1e6, 1e12]), memory=memory),
    "slices": lambda dice, memory: Slicing(dice.choice([50, 999]), 40, 0.0, dice, memory),
    "gaps": lambda dice, memory: Slicing(5000, 4000, 0.01, dice, memory),
    "loss": lambda dice, memory: StreamLoss(dice.choice([0.01, 0.4]), 2.0, dice, memory),
    "slow_close": lambda dice, memory: SlowClose(1.0),
    "stall": lambda dice, memory: Stall(dice.choice([0.0, 0.3]), memory),
    "corruption": lambda dice, memory: Corruption(dice.choice([0.01, 1.0]), dice, memory),
    "limit": lambda dice, memory: Limit(dice.choice([1, 5000, 100_000]), "close", "one"),
    "blackhole": lambda dice, memory: Blackhole(),
    "reset_after": lambda dice, memory: TimedEnd(3000.0, "reset", "one"),
}
FOREVER = (Stall, Blackhole, TimedEnd)
"""They have timers as long as they are on."""


@given(
    st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=2),
    st.integers(0, 1 << 32),
    st.sampled_from([1 << 28, 3000]),
    st.booleans(),
)
def test_any_pair_keeps_order_and_content(names: list[str], seed: int, most: int, busy: bool) -> None:
    """Put on at the beginning or later, taken off while octets are under way, with a sink that takes little at a time:
    every octet arrives once and in order, the end behind them, and no memory is held."""
    dice, memory = random.Random(seed), Memory(most)
    stages = [KINDS[name](dice, memory) for name in names]
    first = dice.randrange(3)
    net = Net([(UP, stage) for stage in stages[:first]])
    net.reactor.busy = busy
    waiting, on = stages[first:], stages[:first]
    data = octets(dice.choice([10, 3000, 150_000]), seed)
    at, ended, lossless = 0, False, not {"corruption", "blackhole"} & set(names)
    for _ in range(dice.randrange(5, 40)):
        match dice.randrange(6):
            case 0 if waiting:
                on.append(waiting.pop(0))
                net.relay.add_stage(UP, on[-1])
            case 1 if on:
                net.relay.remove_stage(on.pop(dice.randrange(len(on))))
            case 2:
                net.server.room = dice.choice([0, 10, 5000])
            case 3:
                net.read(dice.choice([100, 70_000]))
            case 4:
                net.advance(dice.choice([0.0001, 0.02, 0.7]))
            case _:
                piece = data[at : at + dice.choice([1, 500, 70_000])]
                at += len(piece)
                ended = ended or (at == len(data) and dice.random() < 0.5)
                net.send(piece, end=ended)
        net.turns()
        if net.relay.closed:
            break
        if lossless:
            assert data.startswith(net.server.outbox)
        assert memory.held <= 2 * (min(most + LEAST, HELD_BY_ONE) + LEAST) + 2 * MIB
    if not net.relay.closed:
        for stage in [*on] if dice.random() < 0.5 else [stage for stage in on if isinstance(stage, FOREVER)]:
            net.relay.remove_stage(stage)
        net.send(data[at:], end=True)
        net.read()
        net.finish()
    got = bytes(net.server.outbox)
    if net.session.error:
        assert net.session.close == "fault"
        assert len(got) <= max(stage.octets for stage in stages if isinstance(stage, Limit)) or len(got) <= len(data)
    elif lossless:
        assert got == data
    elif "blackhole" not in names:
        assert len(got) == len(data)
    if lossless:
        assert data.startswith(got)
    assert net.server.said == "end"
    assert (memory.held, [stage.held for stage in stages]) == (0, [0, 0])


@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=2), st.integers(0, 1 << 32))
def test_a_reset_overtakes_any_pair(names: list[str], seed: int) -> None:
    """Of either side, at any time: the other one sees it at once, and no memory is held."""
    dice, memory = random.Random(seed), Memory()
    net = Net([(UP, KINDS[name](dice, memory)) for name in names])
    net.server.room = dice.choice([0, 1000, 1 << 40])
    for _ in range(dice.randrange(4)):
        net.send(octets(dice.choice([1, 30_000])))
        net.advance(dice.choice([0.0, 0.02]))
    if not net.relay.closed:
        who = dice.choice([UP, DOWN])
        net.reset(who)
        assert (net.session.close, (net.server if who == UP else net.client).said) == ("reset", "reset")
    got = len(net.server.outbox)
    net.finish()
    assert (memory.held, len(net.server.outbox)) == (0, got)


# --- real connections ---


def start(ends: Ends, fault: Fault) -> None:
    """Begin to relay with the stages of a fault."""
    ends.bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", stages_of(drawn(fault)))


@pytest.mark.every_hosting
@pytest.mark.parametrize(
    "line",
    [
        Line(latency=0.01, jitter=0.01),
        Line(bandwidth=5e6),
        Line(slice=700, slice_variation=600),
        Line(slice=40_000, slice_gap=0.001),
        Line(loss=0.001),
        Line(slow_close=0.02),
        ALL,
    ],
    ids=["latency", "bandwidth", "slices", "gaps", "loss", "slow close", "all"],
)
def test_real_connections(run: Run, line: Line, memory: Memory) -> None:
    """Both directions at once, through small buffers, each with its half-close."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
            start(ends, Fault(up=line, down=line))
            up, down = octets(MIB // 4, 1), octets(MIB // 4 + 5, 2)
            async with asyncio.TaskGroup() as group:
                group.create_task(send_and_end(ends.client, up))
                there = group.create_task(read_all(ends.server))
                back = group.create_task(read_all(ends.client))
                await until(lambda: ends.relay.up.ended)
                assert not back.done()
                group.create_task(send_and_end(ends.server, down))
            assert (there.result(), back.result()) == (up, down)
            await ends.ended.wait()
            assert (ends.session.up, ends.session.down, ends.session.close) == (len(up), len(down), "client")
            assert memory.held == 0

    run(main)


@pytest.mark.every_hosting
def test_faults_come_and_go_in_the_middle_of_a_transfer(run: Run, memory: Memory) -> None:
    """With real sockets: nothing is lost or stuck, and half-close is kept."""
    lines = [
        Line(latency=0.005),
        Line(bandwidth=3e5),
        Line(slice=100),
        Line(loss=0.2),
        Line(stall=0.0),
        Line(stall=0.001, slow_close=5.0, latency=3.0),
    ]

    async def main() -> None:
        for seed, line in enumerate(lines):
            with Bench() as bench:
                ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
                ends.start()
                up = octets(MIB, seed)
                async with asyncio.TaskGroup() as group:
                    group.create_task(send_and_end(ends.client, up))
                    there = group.create_task(read_all(ends.server))
                    for _ in range(5):
                        stages = stages_of(drawn(Fault(up=line)))
                        for direction, stage in stages:
                            ends.relay.add_stage(direction, stage)
                        await turns(20)
                        for _, stage in stages:
                            ends.relay.remove_stage(stage)
                        await turns(3)
                assert there.result() == up
                await send_and_end(ends.server, b"answer")
                assert await read_all(ends.client) == b"answer"
                await ends.ended.wait()
                assert ends.session.close == "client"
                assert memory.held == 0

    run(main)


@pytest.mark.parametrize("size", [0, 2000])
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_is_seen_while_nothing_is_read(run_once: Run, side: str, size: int, memory: Memory) -> None:
    """By a connection of the kernel that is muted, or is going to be: whatever holds octets up, and none."""

    async def main() -> None:
        for line in (Line(stall=0.0), Line(blackhole=True), Line(latency=100.0), Line(bandwidth=1.0)):
            with Bench() as bench:
                ends = bench.ends()
                start(ends, Fault(up=line, down=line))
                here, there = (ends.client, ends.server) if side == "client" else (ends.server, ends.client)
                for sock in (ends.client, ends.server):
                    await send(sock, bytes(size))
                await turns(20)
                reset(here)
                with pytest.raises(ConnectionResetError):
                    await read_all(there)
                await ends.ended.wait()
                assert (ends.session.close, memory.held) == ("reset", 0)

    run_once(main)


def test_limit_with_a_reset(run_once: Run) -> None:
    """Both sides see a reset, and what had passed before it."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            start(ends, Fault(down=Line(limit=1000), then="reset"))
            await send(ends.client, b"request")
            assert await read(ends.server, 7) == b"request"
            await send(ends.server, bytes(900))
            assert await read(ends.client, 900) == bytes(900)
            await send(ends.server, bytes(5000))
            for sock in (ends.client, ends.server):
                with pytest.raises(ConnectionResetError):
                    await read_all(sock)
            assert (ends.session.close, ends.session.down) == ("fault", 1000)

    run_once(main)


def test_a_peer_that_does_not_read_and_goes(run_once: Run, memory: Memory) -> None:
    """Megabytes under way to a sink that is full, whose peer closes: the sender gets a reset."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair(65536))
            start(ends, Fault(up=Line(latency=0.02)))
            sending = asyncio.get_running_loop().create_task(send(ends.client, bytes(8 * MIB)))
            await until(lambda: ends.relay.up.state == 1)
            assert memory.held
            ends.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            ends.server.close()
            with pytest.raises(ConnectionError):
                await sending
            await ends.ended.wait()
            assert memory.held == 0

    run_once(main)


async def read_slowly(sock: socket.socket) -> int:
    """Octets until a reset, while the relay has turns between them."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while chunk := await read(sock, 4096):
            count += len(chunk)
            await turns(2)
        raise AssertionError("an end, and no reset")
    return count


def test_a_reset_at_the_limit_waits_for_a_slow_reader(run: Run) -> None:
    """The kernel would throw away what it has not sent yet: exactly so many octets arrive."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair())
            start(ends, Fault(down=Line(limit=MIB), then="reset"))
            sending = asyncio.get_running_loop().create_task(send(ends.server, bytes(MIB + 1)))
            await turns(200)
            assert await read_slowly(ends.client) == MIB
            await ends.ended.wait()
            assert (ends.session.close, ends.session.down) == ("fault", MIB)
            await sending

    run(main)


def test_a_reset_at_the_limit_of_who_never_reads(run_once: Run) -> None:
    """It is over when the peer goes, and nobody looks at its descriptor any more."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends(tcp_pair(65536), tcp_pair())
            start(ends, Fault(down=Line(limit=MIB), then="reset"))
            await send(ends.server, bytes(MIB + 1))
            await turns(200)
            assert not ends.relay.closed
            reset(ends.client)
            await ends.ended.wait()

    run_once(main)
