"""Blackhole: what goes into it is lost, the end is not, and a reset is seen."""

from __future__ import annotations

from tabi.distort.blackhole import Blackhole
from tabi.policy.limits import DOWN, UP
from tabi.relay.stage import LONGEST_HOLD
from virtual import Net


def test_everything_is_thrown_away() -> None:
    """The sender does not notice, and the receiver waits, for the end too; the other direction goes on."""
    net = Net([(UP, Blackhole())])
    net.send(bytes(1 << 20))
    net.send(b"last", end=True)
    net.send(b"answer", direction=DOWN)
    assert (len(net.client.inbox), net.server.outbox, net.server.said) == (0, b"", "open")
    assert (net.client.outbox, net.session.up) == (b"answer", 0)


def test_it_is_not_idle_for_an_hour() -> None:
    """If it has swallowed something: it is not the peers that are silent. Then it is."""
    net = Net([(UP, Blackhole())])
    assert not net.up.holds(net.loop.now)
    net.send(b"octets")
    net.relay.sweep(net.loop.now + 3000, 30, 30)
    assert not net.relay.closed
    net.advance(LONGEST_HOLD + 1)
    net.relay.sweep(net.loop.now, 30, 30)
    assert net.session.close == "idle"


def test_a_reset_is_seen() -> None:
    """Of either side, at once, also behind an end."""
    for who in (UP, DOWN):
        net = Net([(UP, Blackhole()), (DOWN, Blackhole())])
        net.send(b"octets", end=True)
        net.reset(who)
        assert net.session.close == "reset"


def test_taken_off_what_comes_next_passes() -> None:
    """And an end that it has swallowed."""
    for end in (False, True):
        stage = Blackhole()
        net = Net([(UP, stage)])
        net.send(b"lost", end=end)
        net.relay.remove_stage(stage)
        if not end:
            net.send(b"behind", end=True)
        assert (net.server.outbox, net.server.said) == (b"" if end else b"behind", "end")
