"""Limit: exactly so many octets of a connection, then the end that was asked for."""

from __future__ import annotations

import pytest

from sockets import octets
from stages import Holding
from tabi.distort.latency import Latency
from tabi.distort.limit import GRACE, Limit
from tabi.policy.faults import Ending
from tabi.policy.limits import DOWN, UP
from virtual import Net

WHY = "one: the limit of 100 octets"


@pytest.mark.parametrize("then", ["close", "reset"])
def test_more_than_that_is_the_end_at_once(then: Ending) -> None:
    """Exactly so many pass, whatever the pieces; both sides see the end that was asked for."""
    for piece in (1, 7, 100, 1000):
        net = Net([(UP, Limit(100, then, "one"))])
        data = octets(1000)
        for at in range(0, len(data), piece):
            net.send(data[at : at + piece])
        assert net.server.outbox == data[:100]
        assert (net.client.said, net.server.said) == (("end", "end") if then == "close" else ("reset", "reset"))
        assert (net.session.close, net.session.error, net.session.up) == ("fault", WHY, 100)


def test_less_than_that_is_an_ordinary_connection() -> None:
    """With an ordinary end."""
    net = Net([(UP, Limit(100, "reset", "one"))])
    net.send(octets(99), end=True)
    net.send(b"answer", end=True, direction=DOWN)
    net.finish()
    assert (net.server.outbox, net.client.outbox) == (octets(99), b"answer")
    assert (net.session.close, net.session.error) == ("client", None)


@pytest.mark.parametrize("seconds", [0.0, GRACE / 2])
def test_a_source_that_ends_exactly_there(seconds: float) -> None:
    """It is its own end, and no fault: half-close is kept."""
    net = Net([(UP, Limit(100, "reset", "one"))])
    net.send(octets(100), end=not seconds)
    net.advance(seconds)
    net.send(end=True)
    net.advance(1)
    assert (net.server.outbox, net.server.said, net.client.said) == (octets(100), "end", "open")
    net.send(b"answer", end=True, direction=DOWN)
    assert (net.session.close, net.session.error, net.client.outbox) == ("client", None, b"answer")


def test_a_source_that_goes_on_waiting() -> None:
    """Nobody waits for one octet more."""
    net = Net([(UP, Limit(100, "close", "one"))])
    net.send(octets(100))
    assert (net.server.outbox, net.relay.closed) == (octets(100), False)
    net.advance(GRACE)
    assert (net.session.close, net.session.error, net.server.said) == ("fault", WHY, "end")


def test_one_octet_more_while_it_looks() -> None:
    """It is not passed on, and the end does not wait for the rest of that time."""
    net = Net([(UP, Limit(100, "close", "one"))])
    net.send(octets(100))
    net.advance(GRACE / 2)
    net.send(b"x")
    assert (net.server.outbox, net.session.close) == (octets(100), "fault")


def test_nothing_passes() -> None:
    """A limit of 0 is the end at once."""
    net = Net([(UP, Limit(0, "close", "one"))])
    assert (net.session.close, net.server.outbox, net.session.up) == ("fault", b"", 0)


def test_octets_behind_it_arrive_before_the_end() -> None:
    """Those that a later stage holds, and those that the sink has not taken; a reset does not overtake them either."""
    for then in ("close", "reset"):
        net = Net([(UP, Limit(100, then, "one")), (UP, Latency(1.0))])
        net.server.room = 30
        net.send(octets(200))
        net.advance(0.5)
        assert not net.relay.closed
        net.send(octets(1000))  # nothing more is read
        assert len(net.client.inbox) >= 1000
        net.advance(1)
        assert (net.server.outbox, net.relay.closed) == (octets(100)[:30], False)
        net.read()
        assert (net.server.outbox, net.session.close) == (octets(100), "fault")


def test_put_on_later_it_counts_from_the_beginning() -> None:
    """Also what the sink has not taken yet, and what a stage before it holds."""
    holding = Holding()
    net = Net([(UP, holding)])
    net.send(octets(40))
    holding.release()
    net.server.room = 0
    net.send(octets(30))
    holding.release()
    net.relay.add_stage(UP, stage := Limit(100, "close", "one"))
    assert stage.left == 30
    net.send(octets(100))
    net.read()
    holding.release()
    net.finish()
    assert (len(net.server.outbox), net.session.close) == (100, "fault")


def test_put_on_too_late() -> None:
    """It is over at once, without another octet."""
    net = Net()
    net.send(octets(150))
    net.relay.add_stage(UP, Limit(100, "close", "one"))
    net.turns()
    assert (net.session.close, net.session.error, len(net.server.outbox)) == ("fault", WHY, 150)


def test_taken_off_in_time() -> None:
    """While it looks whether there is more: the connection goes on."""
    stage = Limit(100, "close", "one")
    net = Net([(UP, stage)])
    net.send(octets(100))
    net.relay.remove_stage(stage)
    net.advance(1)
    net.send(b"more", end=True)
    assert (net.server.outbox, net.server.said, net.session.error) == (octets(100) + b"more", "end", None)


def test_a_stage_behind_it_that_ends_first() -> None:
    """The relay is over then, and nothing is asked of it any more."""
    net = Net([(UP, Limit(100, "close", "one")), (UP, Limit(50, "reset", "two"))])
    net.send(octets(200))
    net.finish()
    assert (net.session.error, len(net.server.outbox)) == ("two: the limit of 50 octets", 50)
