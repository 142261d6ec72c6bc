"""StreamLoss: no octet is missing; a loss is a wait, as long as that of TCP."""

from __future__ import annotations

import random

import pytest

from sockets import octets
from tabi.distort.latency import Latency
from tabi.distort.limit import Limit
from tabi.distort.memory import ENTRY, HELD_BY_ONE, LEAST, Memory
from tabi.distort.stream_loss import LONGEST_TIMEOUT, SEGMENT, TIMEOUT, StreamLoss
from tabi.policy.limits import UP
from tabi.relay.flow import BLOCKED, PAUSED
from virtual import Net


class Told:
    """Losses that are told beforehand; then there are none."""

    def __init__(self, lost: str) -> None:
        self.lost = list(lost)

    def next(self) -> bool:
        """See `Losses.next`."""
        return bool(self.lost) and self.lost.pop(0) == "x"


def lossy(lost: str, memory: Memory | None = None) -> StreamLoss:
    """A stage that loses those with an x."""
    stage = StreamLoss(0.5, memory=Memory() if memory is None else memory)
    stage.losses = Told(lost)  # type: ignore[assignment]
    return stage


def test_what_is_lost_waits_and_all_behind_it() -> None:
    """What came before it does not."""
    stage = lossy("..x")
    net = Net([(UP, stage)])
    data = octets(4 * SEGMENT)
    net.send(data)
    assert net.server.outbox == data[: 2 * SEGMENT]
    net.advance(TIMEOUT / 2)
    net.send(b"behind", end=True)
    net.advance(TIMEOUT / 2 - 0.001)
    assert (len(net.server.outbox), net.server.said) == (2 * SEGMENT, "open")
    net.advance(0.002)
    assert (net.server.outbox, net.server.said, stage.memory.held) == (data + b"behind", "end", 0)


def test_each_loss_of_the_same_doubles_the_wait() -> None:
    """Up to a bound; after a success it begins anew."""
    net = Net([(UP, lossy("x" * 12 + "." + "x"))])
    net.send(octets(2 * SEGMENT))
    waits = [min(TIMEOUT * 2**number, LONGEST_TIMEOUT) for number in range(12)]
    net.advance(sum(waits) - 0.001)
    assert net.server.outbox == b""
    net.advance(0.002)
    assert len(net.server.outbox) == SEGMENT
    net.advance(TIMEOUT)
    assert len(net.server.outbox) == 2 * SEGMENT


def test_a_chunk_is_a_segment_however_small() -> None:
    """The answers of a dialogue are lost as often as other segments."""
    net = Net([(UP, lossy(".x..x"))])
    for number in range(4):
        net.send(b"%d" % number)
    assert net.server.outbox == b"0"
    net.advance(TIMEOUT)
    assert net.server.outbox == b"012"
    net.finish()
    assert net.server.outbox == b"0123"


@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_all_arrives(burst: float) -> None:
    """In order, whatever is lost; the same seed makes it take as long."""
    data, times = octets(500_000), []
    for _ in range(2):
        stage = StreamLoss(0.2, burst, random.Random(3), Memory())
        net = Net([(UP, stage)])
        for at in range(0, len(data), 7000):
            net.send(data[at : at + 7000], end=at + 7000 >= len(data))
            net.advance(0.01)
        net.finish()
        assert (net.server.outbox, net.server.said, stage.memory.held) == (data, "end", 0)
        times.append(net.server.times)
    assert times[0] == times[1]


def test_all_is_lost() -> None:
    """Nothing ever passes, and what waits has a bound."""
    stage = StreamLoss(1.0, memory=Memory())
    net = Net([(UP, stage)])
    net.send(octets(HELD_BY_ONE + 100_000), end=True)
    net.advance(3000)
    assert (net.server.outbox, net.up.state, net.relay.closed) == (b"", PAUSED, False)
    assert stage.held <= HELD_BY_ONE
    net.relay.close("shutdown")
    assert stage.memory.held == 0


def test_single_octets() -> None:
    """Count as what they cost, and thousands that are due go on in a few sends."""
    memory = Memory(0)
    stage = lossy("x", memory)
    net = Net([(UP, stage)])
    for _ in range(1000):
        net.send(b"x")
    assert (net.up.state, stage.held) == (PAUSED, -(-LEAST // (ENTRY + 1)))
    net.finish()
    assert (len(net.server.outbox), memory.held) == (1000, 0)
    assert len(net.server.sizes) < 10


def test_long_work_takes_several_turns() -> None:
    """Megabytes that were held up go on in pieces."""
    stage = lossy("x")
    net = Net([(UP, stage)])
    net.reactor.busy = True
    net.send(octets(1 << 20), end=True)
    net.advance(TIMEOUT)
    assert (net.server.outbox, net.server.said) == (octets(1 << 20), "end")
    assert max(net.server.sizes) <= (1 << 16) + SEGMENT


def test_a_sink_that_is_full() -> None:
    """When the time-out is over: it waits for it, without another loss."""
    stage = lossy("x.")
    net = Net([(UP, stage)])
    net.send(b"one")
    net.server.room = 0
    net.send(b"two", end=True)
    net.advance(TIMEOUT)
    assert (net.up.state, stage.held) == (BLOCKED, 0)
    net.read()
    assert (net.server.outbox, net.server.said) == (b"onetwo", "end")


def test_the_relay_ends_in_the_middle_of_a_chunk() -> None:
    """What comes behind it is not held for ever."""
    memory = Memory()
    net = Net([(UP, lossy(".x", memory)), (UP, Limit(10, "close", "one"))])
    net.send(octets(3 * SEGMENT))
    assert (net.session.close, memory.held) == ("fault", 0)


def test_taken_off_while_it_waits() -> None:
    """What waits goes out at once, in one piece, and the end behind it."""
    stage = lossy(".x")
    net = Net([(UP, stage), (UP, Latency(0.01))])
    data = octets(5 * SEGMENT)
    net.send(data, end=True)
    net.relay.remove_stage(stage)
    assert stage.memory.held == 0
    net.finish()
    assert (net.server.outbox, net.server.said) == (data, "end")
