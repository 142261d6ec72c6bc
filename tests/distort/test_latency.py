"""Latency: octets and the end come late, in order, and as many are held as there is room for."""

from __future__ import annotations

import random
import statistics

import pytest

from sockets import octets
from tabi.distort.latency import SOON, Latency
from tabi.distort.memory import ENTRY, HELD_BY_ONE, LEAST, Memory
from tabi.policy.faults import MOST_SECONDS, Distribution
from tabi.policy.limits import DOWN, UP
from tabi.relay.flow import BLOCKED, PAUSED, READY
from virtual import Net


def test_each_chunk_comes_so_much_later() -> None:
    """Counted from when it was read: what comes in between does not wait for what came first. So does the end."""
    net = Net([(UP, Latency(0.1, memory=Memory()))])
    net.send(b"one")
    net.advance(0.04)
    net.send(b"two")
    net.advance(0.0599)
    assert net.server.outbox == b""
    net.advance(0.0002)
    assert net.server.outbox == b"one"
    net.advance(0.04)
    assert net.server.outbox == b"onetwo"
    net.send(end=True)
    net.advance(0.099)
    assert net.server.said == "open"
    net.advance(0.002)
    assert net.server.said == "end"
    assert net.session.close is not None


def test_the_other_direction_has_its_own() -> None:
    """A half-close travels with the same delay, and the answer behind it comes in its own time."""
    net = Net([(UP, Latency(1.0)), (DOWN, Latency(2.0))])
    net.send(b"request", end=True)
    net.advance(1.0)
    assert (net.server.outbox, net.server.said) == (b"request", "end")
    net.send(b"answer", end=True, direction=DOWN)
    net.advance(1.9)
    assert (net.client.outbox, net.relay.closed) == (b"", False)
    net.advance(0.11)
    assert (net.client.outbox, net.session.close) == (b"answer", "client")
    assert (net.session.up, net.session.down) == (7, 6)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize(("latency", "jitter"), [(0.1, 0.05), (0.01, 1.0)], ids=["less", "more"])
def test_jitter_keeps_the_order(distribution: Distribution, latency: float, jitter: float) -> None:
    """Also where it is larger than the latency: it is never negative, and none overtakes another, nor the end."""
    net = Net([(UP, Latency(latency, jitter, distribution, random.Random(7), Memory()))])
    data, now = octets(200), net.loop.now
    for at in range(0, len(data), 4):
        net.send(data[at : at + 4], end=at == len(data) - 4)
        net.advance(0.003)
        assert data.startswith(net.server.outbox)
    net.finish()
    assert (net.server.outbox, net.server.said) == (data, "end")
    assert net.loop.now - now < 50 * 0.003 + latency + (jitter if distribution == "uniform" else 5 * jitter)


def test_the_jitter_is_spread_as_it_says() -> None:
    """Evenly up to so far from the latency, or as its standard deviation; the same seed gives the same."""
    draws: dict[str, list[float]] = {}
    for name in ("uniform", "normal"):
        stage = Latency(1.0, 0.1, name, random.Random(3))
        draws[name] = [stage.draw() for _ in range(20_000)]
        again = Latency(1.0, 0.1, name, random.Random(3))
        assert [again.draw() for _ in range(100)] == draws[name][:100]
        assert statistics.mean(draws[name]) == pytest.approx(1.0, abs=0.003)
    assert 0.9 <= min(draws["uniform"]) < 0.901
    assert 1.099 < max(draws["uniform"]) <= 1.1
    assert statistics.stdev(draws["uniform"]) == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert statistics.stdev(draws["normal"]) == pytest.approx(0.1, rel=0.02)
    assert {Latency(MOST_SECONDS, MOST_SECONDS).draw() > MOST_SECONDS for _ in range(100)} == {False}


def test_the_longest_latency() -> None:
    """Whatever the clock says: a sum of floats is not longer than a timer may be."""
    for now in (0.1, 1e6 / 3, 12345.678):
        net = Net([(UP, Latency(MOST_SECONDS))])
        net.loop.now = now
        net.send(b"octets", end=True)
        net.advance(MOST_SECONDS - 1)
        assert net.server.outbox == b""
        net.advance(2)
        assert (net.server.outbox, net.server.said) == (b"octets", "end")


def test_a_clock_in_steps() -> None:
    """A timer that is called a moment early, or very late, brings all that is due, in one send."""
    stage = Latency(0.1)
    net = Net([(UP, stage)])
    for number in range(5):
        net.send(b"%d" % number)
        net.loop.now += 0.01
    net.loop.now = 0.1 + 0.1 - SOON / 2
    stage.go()
    assert net.server.outbox == b"0"
    net.loop.now += 10
    stage.go()
    assert (net.server.outbox, net.server.sizes) == (b"01234", [1, 4])
    net.finish()


def test_none_is_as_good_as_no_latency() -> None:
    """What is due at once goes on at once."""
    net = Net([(UP, Latency(0.0001, memory=Memory()))])
    net.send(b"octets", end=True)
    assert (net.server.outbox, net.server.said) == (b"octets", "end")


def test_much_that_is_due_at_once_takes_several_turns() -> None:
    """Thousands of chunks go on in pieces of 64 KiB, and the relay is still there for others between them."""
    stage = Latency(1.0, memory=Memory())
    net = Net([(UP, stage)])
    data = octets(1 << 19)
    for at in range(0, len(data), 100):
        net.send(data[at : at + 100])
    net.reactor.busy = True
    net.advance(1.0)
    assert net.server.outbox == data
    assert len(net.server.sizes) <= len(data) // (1 << 16) + 1
    assert stage.memory.held == 0


def test_the_bound_of_one() -> None:
    """Beyond it the sender waits, and goes on when some of it has gone."""
    stage = Latency(1.0, memory=Memory())
    net = Net([(UP, stage)])
    data = octets(2 * HELD_BY_ONE)
    net.send(data, end=True)
    assert net.up.state == PAUSED
    assert HELD_BY_ONE - (1 << 16) < stage.held <= HELD_BY_ONE
    assert stage.weight <= HELD_BY_ONE + ENTRY
    net.finish()
    assert (net.server.outbox, net.server.said, stage.memory.held) == (data, "end", 0)


def test_single_octets_count_as_what_they_cost() -> None:
    """A peer that sends them one by one fills no more memory than others."""
    stage = Latency(1.0, memory=Memory(0))
    net = Net([(UP, stage)])
    for _ in range(1000):
        net.send(b"x")
    assert (net.up.state, stage.held) == (PAUSED, -(-LEAST // (ENTRY + 1)))
    net.finish()
    assert len(net.server.outbox) == 1000


def test_a_sink_that_is_full_when_it_is_due() -> None:
    """It waits where it is counted, and the end behind it; then all of it comes."""
    stage = Latency(1.0, memory=Memory())
    net = Net([(UP, stage)])
    net.server.room = 4
    data = octets(300_000)
    net.send(data[:10])
    net.advance(0.5)
    net.send(data[10:], end=True)
    net.advance(5)
    assert (net.up.state, len(net.server.outbox), len(net.up.kept)) == (BLOCKED, 4, 6)
    assert stage.memory.held >= len(data) - 10
    net.read(100)
    net.read()
    assert (net.server.outbox, net.server.said, stage.memory.held) == (data, "end", 0)


def test_taken_off_in_the_middle() -> None:
    """What it holds goes out at once, and what comes then is not late."""
    for end in (False, True):
        stage = Latency(10.0, memory=Memory())
        net = Net([(UP, stage)])
        net.send(b"one ", end=False)
        net.advance(1)
        net.send(b"two ", end=end)
        net.relay.remove_stage(stage)
        assert net.server.outbox == b"one two "
        assert net.server.said == ("end" if end else "open")
        if not end:
            net.send(b"three", end=True)
        net.finish()
        assert net.server.outbox == b"one two " + (b"" if end else b"three")
        assert (net.server.said, net.up.state, stage.memory.held) == ("end", READY, 0)


def test_a_held_chunk_is_not_idle() -> None:
    """A relay with a latency that is longer than its idle time goes on."""
    net = Net([(UP, Latency(50.0))])
    net.send(b"octets")
    net.relay.sweep(net.loop.now + 40, 30, 30)
    assert not net.relay.closed
    net.advance(50)
    net.relay.sweep(net.loop.now + 40, 30, 30)  # it has moved
    net.relay.sweep(net.loop.now + 80, 30, 30)
    assert net.session.close == "idle"
