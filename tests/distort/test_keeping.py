"""Keeping: what stages hold is counted, waits for a sink that takes nothing, and goes on in turns."""

from __future__ import annotations

import pytest

from sockets import octets
from stages import Holding, Passing
from tabi.distort.keeping import PIECE, Keeping
from tabi.distort.memory import LEAST, Memory
from tabi.policy.limits import DOWN, UP
from tabi.relay.flow import BLOCKED, PAUSED
from tabi.relay.stage import LONGEST_HOLD, Stage
from virtual import Net


class Pieces(Keeping):
    """Emits ten octets at a time, with so many seconds between them."""

    def __init__(self, seconds: float = 0.0, memory: Memory | None = None) -> None:
        super().__init__(Memory() if memory is None else memory)
        self.seconds = seconds

    def step(self) -> float:
        """See `Keeping.step`."""
        self.emit(self.take(10))
        return self.seconds


def test_all_goes_on_in_order_and_the_end_behind_it() -> None:
    """At once where there is nothing to wait for, else in steps; the memory is free again."""
    for seconds in (0.0, 1.0):
        stage = Pieces(seconds)
        net = Net([(UP, stage)])
        data = octets(95)
        net.send(data, end=True)
        if seconds:
            assert (net.server.outbox, stage.held, stage.memory.held) == (data[:10], 85, 85)
            net.advance(8.0)
            assert (len(net.server.outbox), net.server.said) == (90, "open")
            net.advance(1.0)
        assert (net.server.outbox, net.server.said, stage.memory.held) == (data, "end", 0)
        assert max(net.server.sizes) == 10


def test_a_turn_that_is_over_leaves_the_rest_to_the_next() -> None:
    """So that a peer cannot make one turn long; at least one step is done in each."""
    stage = Pieces()
    net = Net([(UP, stage)])
    net.reactor.busy = True
    net.client.inbox += octets(50)
    net.reactor.handlers[net.CLIENT](1)
    assert len(net.server.outbox) == 10
    net.turn()
    assert len(net.server.outbox) == 20
    net.send(b"more", end=True)
    assert net.server.outbox == octets(50) + b"more"
    assert net.server.said == "end"


def test_a_sink_that_takes_nothing_leaves_them_where_they_are_counted() -> None:
    """What is emitted to a full sink is outside of the bound of memory: there is one piece of it at most."""
    stage = Pieces()
    net = Net([(UP, stage)])
    net.server.room = 25
    data = octets(1000)
    net.send(data)
    assert (len(net.up.kept), stage.held, net.up.state) == (5, 970, BLOCKED)
    net.send(b"end", end=True)  # nothing is read
    assert stage.held == 970
    net.read(12)
    assert (len(net.server.outbox), len(net.up.kept), net.up.state) == (37, 3, BLOCKED)
    net.read()
    assert (net.server.outbox, net.server.said) == (data + b"end", "end")
    assert (stage.held, stage.memory.held, net.up.held) == (0, 0, 0)


def test_a_timer_that_meets_a_full_sink_waits_for_it() -> None:
    """Nothing is lost, and nothing is stuck when there is room again, also if the source has ended meanwhile."""
    stage = Pieces(1.0)
    net = Net([(UP, stage)])
    net.server.room = 10
    net.send(octets(40), end=True)
    net.advance(1.0)
    assert (len(net.server.outbox), stage.held, net.up.state) == (10, 20, BLOCKED)
    net.advance(100.0)
    assert (stage.held, stage.waiting) == (20, False)
    net.read()
    assert len(net.server.outbox) == 30
    net.finish()
    assert (net.server.outbox, net.server.said) == (octets(40), "end")


def test_a_sink_that_is_filled_again_stops_the_others_too() -> None:
    """Two stages with something to emit: the last one begins, and the other waits for it. The order stays."""
    first, second = Pieces(1.0), Pieces(1.0)
    net = Net([(UP, first), (UP, second)])
    net.server.room = 0
    data = octets(300)
    net.send(data, end=True)
    for _ in range(100):
        net.read(7)
        net.advance(0.7)
    net.read()
    net.finish()
    assert (net.server.outbox, net.server.said) == (data, "end")
    assert (first.memory.held, second.memory.held) == (0, 0)


@pytest.mark.parametrize("how", ["close", "reset", "cut", "client", "server", "stage", "fails"])
@pytest.mark.parametrize("full", [False, True], ids=["free", "full"])
def test_whoever_ends_it_the_memory_is_free(how: str, full: bool) -> None:
    """In order, by a reset of either side, of a stage behind it in the middle of a step, or by a failure."""

    class Ending(Stage):
        """Ends the relay at the third piece."""

        count = 0

        def receive(self, data: bytes) -> None:
            """See `Stage`."""
            self.count += 1
            if self.count == 3:
                if how == "fails":
                    raise ZeroDivisionError
                self.reset()
            self.emit(data)

    memory = Memory()
    stages = [Pieces(0.0 if how in ("stage", "fails") else 1.0, memory), Pieces(0.0, memory)]
    net = Net([*((UP, stage) for stage in stages), *([(UP, Ending())] if how in ("stage", "fails") else [])])
    if full:
        net.server.room = 5
    net.send(octets(1000))
    match how:
        case "close":
            net.relay.close("shutdown")
        case "reset":
            net.relay.break_off()
        case "cut":
            net.relay.cut("why")
        case "client":
            net.reset(UP)
        case "server":
            net.reset(DOWN)
        case _:
            net.read()
    assert net.relay.closed
    assert memory.held == 0
    assert [stage.held for stage in stages] == [0, 0]
    got = len(net.server.outbox)
    for stage in stages:  # whoever still calls them
        stage.go()
        stage.resume_writing()
    net.finish()
    assert (len(net.server.outbox), memory.held) == (got, 0)


def test_a_stage_behind_it_that_ends_the_relay_at_once() -> None:
    """What comes in the same read is dropped, and not counted for ever."""

    class Last(Stage):
        """Ends the relay at the first octet."""

        def receive(self, data: bytes) -> None:
            """See `Stage`."""
            self.end_relay("close", "over")

    memory = Memory()
    net = Net([(UP, Passing()), (UP, Pieces(0.0, memory)), (UP, Last())])
    net.send(octets(100))
    assert (net.relay.closed, memory.held, net.session.close, net.session.error) == (True, 0, "fault", "over")


def test_taken_off_it_lets_all_go() -> None:
    """While a timer is pending, in the middle of long work, or before a full sink; the end follows."""
    for seconds, room in ((5.0, 1 << 30), (0.0, 1 << 30), (5.0, 3)):
        stage = Pieces(seconds)
        net = Net([(UP, stage)])
        net.reactor.busy = True
        net.server.room = room
        net.client.inbox += octets(500)
        net.client.peer_ended = room > 3
        net.reactor.handlers[net.CLIENT](0x2001)
        assert stage.held
        net.relay.remove_stage(stage)
        assert (stage.held, stage.memory.held, stage.flow, stage.timers) == (0, 0, None, set())
        net.send(b"behind", end=True) if room == 3 else None
        net.read()
        net.finish()
        assert net.server.outbox == octets(500) + (b"behind" if room == 3 else b"")
        assert net.server.said == "end"


def test_a_removal_that_raises_frees_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be let go ends the relay with a reset of both sides."""

    class Bad(Stage):
        """Fails at the second chunk."""

        count = 0

        def receive(self, data: bytes) -> None:
            """See `Stage`."""
            self.count += 1
            if self.count == 2:
                raise ZeroDivisionError
            self.emit(data)

    memory = Memory()
    stage = Pieces(1.0, memory)
    net = Net([(UP, stage), (UP, Pieces(1.0, memory)), (UP, Bad())])
    net.send(octets(200))
    net.relay.remove_stage(stage)
    net.finish()
    assert (net.relay.closed, net.session.close, memory.held) == (True, "error", 0)
    assert (net.client.said, net.server.said) == ("reset", "reset")


def test_memory_that_is_used_up_stops_nobody() -> None:
    """Each takes in a little, its sender waits, and all arrives."""
    memory = Memory(most=0)
    nets = [Net([(UP, Pieces(0.01, memory)), (UP, Pieces(0.01, memory))]) for _ in range(3)]
    data = octets(LEAST + 3000)
    for net in nets:
        net.send(data, end=True)
        assert net.up.state == PAUSED
        assert net.up.held <= LEAST
    for net in nets:
        net.finish()
        assert (net.server.outbox, net.server.said) == (data, "end")
    assert memory.held == 0


def test_one_that_waits_is_not_idle() -> None:
    """And waits no longer than a timer may."""
    stage = Pieces(10 * LONGEST_HOLD)
    net = Net([(UP, stage)])
    net.send(octets(30))
    assert stage.holds(net.relay.quiet_since)
    net.advance(LONGEST_HOLD)
    assert len(net.server.outbox) == 20


def test_what_another_lets_go_is_held_by_the_next() -> None:
    """More than it would have read: it is counted too."""
    memory = Memory()
    first, stage = Holding(), Pieces(1.0, memory)
    net = Net([(UP, first), (UP, stage)])
    net.send(octets(PIECE))
    assert memory.held == 0
    first.release()
    assert memory.held == PIECE - 10
    net.relay.close("shutdown")
    assert memory.held == 0


def test_a_subclass_says_what_a_step_is() -> None:
    """By itself it knows none."""
    with pytest.raises(NotImplementedError):
        Keeping().step()
