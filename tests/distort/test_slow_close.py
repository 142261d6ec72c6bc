"""SlowClose: octets pass at once, and only the end is late."""

from __future__ import annotations

from tabi.distort.slow_close import SlowClose
from tabi.policy.limits import DOWN, UP
from virtual import Net


def test_only_the_end_is_late() -> None:
    """The other direction goes on meanwhile, and the relay is not idle."""
    net = Net([(UP, SlowClose(40.0))])
    net.send(b"octets", end=True)
    assert (net.server.outbox, net.server.said) == (b"octets", "open")
    net.send(b"answer", direction=DOWN)
    assert net.client.outbox == b"answer"
    net.relay.sweep(net.loop.now, 30, 30)
    net.relay.sweep(net.loop.now + 35, 30, 30)
    net.advance(39)
    assert (net.server.said, net.relay.closed) == ("open", False)
    net.advance(1)
    assert (net.server.said, net.client.said) == ("end", "open")


def test_taken_off_the_end_comes() -> None:
    """And nothing where there is none yet."""
    for end in (False, True):
        stage = SlowClose(40.0)
        net = Net([(UP, stage)])
        net.send(b"octets", end=end)
        net.relay.remove_stage(stage)
        assert net.server.said == ("end" if end else "open")
        net.finish()
