"""Stall: nothing passes any more, nothing is lost, and a reset is seen all the same."""

from __future__ import annotations

import pytest

from stages import Holding
from tabi.distort.memory import Memory
from tabi.distort.stall import Stall
from tabi.policy.limits import DOWN, UP
from tabi.relay.flow import PAUSED
from tabi.relay.stage import LONGEST_HOLD
from virtual import Net


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_after_a_time_nothing_passes(seconds: float) -> None:
    """Nor the end. The sender's octets stay where they are, the other direction goes on, and nobody takes the relay
    for idle."""
    net = Net([(UP, Stall(seconds))])
    if seconds:
        net.send(b"before ")
        net.advance(seconds)
    net.send(b"behind", end=True)
    net.advance(1000)
    assert (net.server.outbox, net.server.said) == (b"before " if seconds else b"", "open")
    assert (bytes(net.client.inbox), net.up.state) == (b"behind", PAUSED)
    net.send(b"answer", direction=DOWN)
    assert net.client.outbox == b"answer"
    net.relay.sweep(net.loop.now, 30, 30)
    net.relay.sweep(net.loop.now + 1000, 30, 30)
    assert not net.relay.closed


def test_taken_off_all_comes() -> None:
    """Also what a stage before it has emitted meanwhile, and the end."""
    holding, stage = Holding(), Stall(1.0, Memory())
    net = Net([(UP, holding), (UP, stage)])
    net.send(b"one ")
    holding.release()
    net.send(b"two ")
    net.advance(1.0)
    holding.release()
    assert (net.server.outbox, stage.held, stage.memory.held) == (b"one ", 4, 4)
    net.relay.remove_stage(holding)
    net.send(b"three", end=True)
    net.relay.remove_stage(stage)
    assert (net.server.outbox, net.server.said, stage.memory.held) == (b"one two three", "end", 0)


def test_an_end_that_was_held_before_it() -> None:
    """It comes when the stall is over, and not before."""
    holding, stage = Holding(), Stall(1.0, Memory())
    net = Net([(UP, holding), (UP, stage)])
    net.send(b"one", end=True)
    net.advance(1.0)
    holding.release()
    stage.resume_writing()
    assert (net.server.outbox, net.server.said) == (b"", "open")
    net.relay.remove_stage(stage)
    assert (net.server.outbox, net.server.said) == (b"one", "end")


def test_an_end_before_it() -> None:
    """Passes at once."""
    net = Net([(UP, Stall(10.0))])
    net.send(b"one", end=True)
    assert (net.server.outbox, net.server.said) == (b"one", "end")


@pytest.mark.parametrize("who", [UP, DOWN])
def test_a_reset_is_seen(who: int) -> None:
    """Although nothing is read from the one, and nothing comes from the other."""
    net = Net([(UP, Stall(0.0)), (DOWN, Stall(0.0))])
    net.send(b"octets")
    net.send(b"octets", direction=DOWN)
    assert len(net.reactor.muted) == 2
    net.reset(who)
    assert (net.session.close, net.server.said if who == UP else net.client.said) == ("reset", "reset")


def test_it_does_not_live_for_ever() -> None:
    """If nobody says anything, it is idle in the end."""
    net = Net([(UP, Stall(0.0))])
    net.send(b"octets", end=True)
    net.advance(LONGEST_HOLD + 10)
    assert not net.relay.closed
    net.relay.sweep(net.loop.now, 30, 30)
    assert net.session.close == "idle"
