"""Bandwidth: so many octets per second, whatever timers are late by, alone and shared."""

from __future__ import annotations

import pytest

from sockets import octets
from stages import Holding
from tabi.distort.bandwidth import CREDIT, SOON, Bandwidth
from tabi.distort.draws import Bucket
from tabi.distort.memory import LEAST, Memory
from tabi.policy.limits import UP
from tabi.relay.flow import BLOCKED, PAUSED, READY
from virtual import Net


@pytest.mark.parametrize("rate", [1.0, 50.0, 1460.0, 20_000.0, 1e6, 1e9])
@pytest.mark.parametrize("late", [0.0, 0.003], ids=["exact", "late"])
def test_the_rate_is_exact(rate: float, late: float) -> None:
    """From the first octet to the last, with timers that are late too; the first one waits for its own time."""
    net = Net([(UP, Bandwidth(rate, memory=Memory()))])
    call_at, began = net.loop.call_at, net.loop.now
    net.loop.call_at = lambda when, callback: call_at(when + late, callback)  # type: ignore[method-assign]
    seconds = 20.0
    net.client.inbox += bytes(int(min(rate * seconds, 1 << 26)))
    total = len(net.client.inbox)
    net.send(end=True)
    net.finish()
    assert len(net.server.outbox) == total
    took = net.loop.now - began
    assert took == pytest.approx(total / rate, rel=0.01, abs=SOON + late)
    assert net.server.said == "end"
    if rate <= 1460:
        assert net.server.times[0] - began >= min(1.0, SOON + 0.01)


def test_a_slow_line_brings_small_pieces() -> None:
    """One octet each second is one octet each second, and not a segment after half an hour."""
    net = Net([(UP, Bandwidth(1.0))])
    net.send(octets(5))
    for number in range(1, 6):
        net.advance(1.0)
        assert net.server.outbox == octets(5)[:number]


def test_a_fast_line_keeps_nothing() -> None:
    """Octets go on in the turn in which they came, without a timer."""
    stage = Bandwidth(1e12)
    net = Net([(UP, stage)])
    net.send(octets(1 << 20), end=True)
    assert (net.server.outbox, net.server.said, net.loop.timers) == (octets(1 << 20), "end", [])


def test_who_was_silent_has_saved_nothing() -> None:
    """Apart from what timers may be late by."""
    net = Net([(UP, Bandwidth(1000.0))])
    net.advance(100)
    net.client.inbox += bytes(5000)
    net.send()
    net.advance(1.0)
    assert len(net.server.outbox) <= 1000 * (1 + CREDIT + SOON) + 1


def test_several_share_a_line() -> None:
    """All together have the rate, and each has its part of it."""
    bucket = Bucket()
    nets = [Net([(UP, Bandwidth(10_000.0, bucket))]) for _ in range(4)]
    for net in nets[1:]:
        net.loop, net.reactor.loop = nets[0].loop, nets[0].loop
        net.client.clock = net.server.clock = nets[0].loop.time
    for net in nets:
        net.send(bytes(50_000))
    for _ in range(1000):
        nets[0].advance(0.01)
        for net in nets:
            net.turns()
    got = [len(net.server.outbox) for net in nets]
    assert sum(got) == pytest.approx(100_000, rel=0.01)
    assert min(got) == pytest.approx(25_000, rel=0.1)


def test_one_piece_is_read_at_a_time() -> None:
    """The sender is held up by TCP, and what is not read yet takes no memory here."""
    stage = Bandwidth(100_000.0, memory=Memory())
    net = Net([(UP, stage)])
    net.send(bytes(1 << 20))
    assert (stage.held, stage.memory.held, net.up.state) == (2000, 2000, PAUSED)
    net.relay.close("shutdown")
    assert stage.memory.held == 0


def test_memory_that_is_used_up_stops_it_not() -> None:
    """It reads smaller pieces."""
    stage = Bandwidth(1e7, memory=Memory(0))
    net = Net([(UP, stage)])
    net.send(octets(200_000), end=True)
    assert stage.held <= LEAST
    net.finish()
    assert (net.server.outbox, net.server.said) == (octets(200_000), "end")


def test_what_a_stage_before_it_lets_go_comes_in_pieces() -> None:
    """Megabytes at once do not come at once after a long silence, but as the line brings them."""
    first, stage = Holding(1 << 30), Bandwidth(1e6, memory=Memory())
    net = Net([(UP, first), (UP, stage)])
    data = octets(2_000_000)
    net.send(data)
    first.release()
    for second in range(1, 5):
        net.advance(0.5)
        assert len(net.server.outbox) == pytest.approx(500_000 * second, rel=0.05)
    net.advance(0.05)
    assert net.server.outbox == data
    assert stage.memory.held == 0


def test_a_sink_that_is_full() -> None:
    """Nothing is booked while nothing can pass, so that the line is not slower afterwards."""
    stage = Bandwidth(1000.0, memory=Memory())
    net = Net([(UP, stage)])
    net.server.room = 10
    net.send(bytes(1000), end=True)
    net.advance(20)
    assert net.up.state == BLOCKED
    net.read()
    net.advance(1.1)
    assert (len(net.server.outbox), net.server.said) == (1000, "end")
    net = Net([(UP, stage := Bandwidth(1e12))])
    net.server.room = 0
    net.send(b"a")
    stage.receive(b"b")  # of a stage that is taken off just now
    assert stage.held == 1
    net.read()
    assert net.server.outbox == b"ab"


def test_taken_off_while_it_waits() -> None:
    """What it has goes out at once, and the flow reads on."""
    stage = Bandwidth(10.0, memory=Memory())
    net = Net([(UP, stage)])
    net.send(octets(100), end=True)
    net.advance(1.0)
    net.relay.remove_stage(stage)
    assert (net.server.outbox, net.server.said, net.up.state) == (octets(100), "end", READY)
    assert (stage.memory.held, stage.booked) == (0, 0)


def test_a_line_that_is_booked_for_hours() -> None:
    """A wait that is longer than a timer may be is several ones."""
    bucket = Bucket()
    net = Net([(UP, Bandwidth(1.0, bucket))])
    bucket.free_at = net.loop.now + 10_000
    net.send(b"x")
    net.advance(9_999)
    assert net.server.outbox == b""
    net.advance(2)
    assert net.server.outbox == b"x"
