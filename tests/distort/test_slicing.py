"""Slicing: pieces of the size that was asked for, with the gap that was asked for, and nothing lost."""

from __future__ import annotations

import random
import statistics

import pytest

from sockets import octets
from tabi.distort.keeping import PIECE
from tabi.distort.memory import Memory
from tabi.distort.slicing import Slicing
from tabi.policy.limits import UP
from tabi.relay.flow import BLOCKED, PAUSED
from virtual import Net


def test_pieces() -> None:
    """All of the size, but for the last one of a chunk; the end comes behind them."""
    net = Net([(UP, Slicing(10))])
    net.send(octets(35), end=True)
    assert (net.server.sizes, net.server.outbox, net.server.said) == ([10, 10, 10, 5], octets(35), "end")


def test_what_is_smaller_is_left_as_it_is() -> None:
    """And is not kept."""
    stage = Slicing(1 << 30)
    net = Net([(UP, stage)])
    net.send(octets(100_000), end=True)
    assert (net.server.sizes, net.server.said) == ([65536, 100_000 - 65536], "end")


def test_the_variation() -> None:
    """Evenly spread around the size, and the same with the same seed."""
    sizes = []
    for _ in range(2):
        net = Net([(UP, Slicing(100, 50, dice=random.Random(5)))])
        net.send(octets(500_000))
        assert net.server.outbox == octets(500_000)
        sizes.append(net.server.sizes)
    assert sizes[0] == sizes[1]
    assert (min(sizes[0][:1000]), max(sizes[0])) == (50, 150)
    assert statistics.mean(sizes[0]) == pytest.approx(100, rel=0.03)


def test_gaps() -> None:
    """Between two pieces, also of different chunks; the end does not wait for one."""
    net = Net([(UP, Slicing(10, gap=0.5, memory=Memory()))])
    net.send(octets(25))
    net.advance(0.7)
    net.send(b"more")
    net.advance(10)
    assert net.server.outbox == octets(25) + b"more"
    assert [when - 0.1 for when in net.server.times] == pytest.approx([0, 0.5, 1.0])
    assert net.server.sizes == [10, 10, 9]
    net.send(b"last", end=True)
    assert net.server.said == "end"


def test_a_chunk_in_a_gap_waits_for_its_end() -> None:
    """Although nothing is kept then."""
    net = Net([(UP, Slicing(10, gap=0.5))])
    net.send(b"one")
    net.advance(0.2)
    net.send(b"two")
    assert net.server.outbox == b"one"
    net.advance(0.3)
    assert net.server.outbox == b"onetwo"


def test_single_octets_without_a_gap_take_many_turns() -> None:
    """64 KiB are 65,536 sends: others get their turns between them."""
    net = Net([(UP, Slicing(1, memory=Memory()))])
    net.reactor.busy = True
    net.client.inbox += octets(3000)
    net.client.peer_ended = True
    net.reactor.handlers[net.CLIENT](0x2001)
    assert len(net.server.outbox) == 1
    assert 2990 <= net.turns() <= 3010
    assert (net.server.outbox, net.server.said) == (octets(3000), "end")


def test_it_keeps_no_more_than_a_piece_of_the_flow() -> None:
    """The sender waits for the gaps."""
    stage = Slicing(1000, gap=1.0, memory=Memory())
    net = Net([(UP, stage)])
    net.send(octets(1 << 20), end=True)
    assert (stage.held < 2 * PIECE, net.up.state) == (True, PAUSED)
    net.finish()
    assert (net.server.outbox, net.server.said, stage.memory.held) == (octets(1 << 20), "end", 0)


def test_a_full_sink_gets_slices_too() -> None:
    """What it did not take is one piece, and the others come as they are."""
    net = Net([(UP, Slicing(100))])
    net.server.room = 150
    net.send(octets(1000))
    assert net.up.state == BLOCKED
    net.read()
    assert net.server.sizes == [100, 50, 50, *[100] * 8]


def test_taken_off_in_a_gap() -> None:
    """The rest comes in one piece."""
    stage = Slicing(10, gap=5.0, memory=Memory())
    net = Net([(UP, stage)])
    net.send(octets(100), end=True)
    net.relay.remove_stage(stage)
    assert (net.server.sizes, net.server.said, stage.memory.held) == ([10, 90], "end", 0)
