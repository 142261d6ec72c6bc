"""What the toxics of toxiproxy 2.12 do, as its source says, and what faults do in their place.

Who comes from there finds each toxic here, and where a fault does something else on purpose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import NamedTuple

import pytest

from sockets import octets
from tabi.config.distort import FaultConfig, LineConfig
from tabi.config.faults import fault_errors, make_fault
from tabi.distort.dialling import pass_faults
from tabi.distort.draws import Drawn, Entry
from tabi.distort.streams import stages_of
from tabi.errors import DialError
from tabi.policy.distorts import Distort
from tabi.policy.limits import DOWN, UP
from tabi.policy.rules import Conditions, Rule, Texts
from tabi.relay.flow import PAUSED
from tabi.relay.stage import Stage
from tabi.session import Session
from tabi.wire.address import Address
from virtual import Net

RULE = Rule(0, None, "allow", None, None, Conditions(), Texts())


class Row(NamedTuple):
    """One behaviour."""

    toxic: str
    theirs: str
    ours: str
    check: Callable[[], None]


ROWS: list[Row] = []


def row(toxic: str, theirs: str, ours: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """What this function checks of ours."""

    def add(check: Callable[[], None]) -> Callable[[], None]:
        ROWS.append(Row(toxic, theirs, ours, check))
        return check

    return add


def drawn(probability: float = 1.0, seed: int = 7, **fault: object) -> Drawn:
    """A session that is drawn for a fault of the configuration, which `tabi check` has nothing against."""
    config = FaultConfig(**fault)  # type: ignore[arg-type]
    assert list(fault_errors(config, "fault")) == []
    entry = Entry(Distort(RULE, "one", probability=probability, seed=seed, fault=make_fault(config)), 0.0)
    found = entry.draw()
    assert found is not None
    return found


def down(**line: object) -> list[tuple[int, Stage]]:
    """Stages of the downlink: toxiproxy's default."""
    return stages_of(drawn(down=LineConfig(**line)))  # type: ignore[arg-type]


def take_off(net: Net, stages: list[tuple[int, Stage]]) -> None:
    """All of them."""
    for _, stage in stages:
        net.relay.remove_stage(stage)


def answer(net: Net, data: bytes = b"", end: bool = False) -> None:
    """The server sends."""
    net.send(data, end, DOWN)


# --- latency ---


@row("latency", "counted from when a chunk arrived", "same")
def latency_is_counted_from_the_arrival() -> None:
    net = Net(down(latency=1.0))
    for number in range(3):
        answer(net, b"%d" % number)
        net.advance(0.1)
    net.advance(0.85)
    assert net.client.outbox == b"01"
    assert [when - 0.1 for when in net.client.times] == pytest.approx([1.0, 1.1])


@row(
    "latency", "jitter uniform in [L - J, L + J), in whole ms", "uniform too, not rounded; `distribution` names others"
)
def jitter_is_uniform() -> None:
    net = Net(down(latency=1.0, jitter=0.5))
    began = []
    for _ in range(300):
        began.append(net.loop.now)
        answer(net, b"x")
        net.advance(2.0)
    took = [when - begin for when, begin in zip(net.client.times, began, strict=True)]
    assert 0.5 <= min(took) < 0.55
    assert 1.45 < max(took) <= 1.5
    assert any(round(second, 3) != second for second in took)


@row("latency", "a chunk that is late holds the next ones; less than 0 is 0", "same")
def order_is_kept() -> None:
    net = Net(down(latency=0.01, jitter=2.0))
    for number in range(256):
        answer(net, bytes((number,)))
    net.finish()
    assert net.client.outbox == bytes(range(256))


@row("latency", "a queue of 1,024 chunks, then back-pressure", "a bound in octets, then back-pressure")
def the_queue_has_a_bound() -> None:
    net = Net(down(latency=1.0))
    for _ in range(100):
        answer(net, bytes(100_000))
    assert net.relay.down.state == PAUSED
    assert net.relay.down.held <= 4 << 20
    net.finish()
    assert len(net.client.outbox) == 100 * 100_000


@row("latency", "EOF is not delayed", "the end is as late as octets are")
def the_end_is_late() -> None:
    net = Net(down(latency=1.0))
    answer(net, end=True)
    net.advance(0.9)
    assert net.client.said == "open"
    net.advance(0.2)
    assert net.client.said == "end"


@row("latency", "taken off: all goes out at once", "same")
def latency_taken_off() -> None:
    net = Net(stages := down(latency=100.0))
    answer(net, b"held")
    take_off(net, stages)
    assert net.client.outbox == b"held"


@row("latency", "two of them do not add", "each entry is late by its own")
def two_latencies_add() -> None:
    net = Net([*down(latency=1.0), *down(latency=2.0)])
    answer(net, b"x")
    net.finish()
    assert net.client.times[0] - 0.1 == pytest.approx(3.0)


# --- bandwidth ---


@row("bandwidth", "each connection and direction alone; KB are 1,000 octets", "same")
def bandwidth_of_each_connection() -> None:
    one = drawn(down=LineConfig(bandwidth=1e5))
    for _ in range(2):
        net = Net(stages_of(one))
        net.send(octets(50_000))
        assert net.server.outbox == octets(50_000)
        answer(net, bytes(500_000))
        net.advance(2.0)
        assert len(net.client.outbox) == pytest.approx(200_000, rel=0.02)


@row("bandwidth", "-", "`shared`: one line for all of them")
def bandwidth_is_shared() -> None:
    one = drawn(bandwidth=1000.0, shared=True)
    nets = [Net(stages_of(one)) for _ in range(2)]
    for net in nets:
        answer(net, bytes(100))
        net.advance(10)
    assert [net.client.times[-1] for net in nets] == pytest.approx([0.2, 0.3], abs=0.01)


@row("bandwidth", "pieces of 100 ms each", "pieces of 20 ms, or a segment within 100 ms")
def bandwidth_in_pieces() -> None:
    net = Net(down(bandwidth=1e6))
    answer(net, bytes(200_000))
    net.finish()
    assert max(net.client.sizes) <= 20_000


@row("bandwidth", "a rate of 0 stalls it", "a rate of 0 is an error; `stall` says it")
def bandwidth_of_nothing() -> None:
    net = Net(down(stall=0.0))
    answer(net, b"octets")
    net.advance(1000)
    assert (net.client.outbox, bytes(net.server.inbox)) == (b"", b"octets")


@row("bandwidth", "taken off: what waits goes out, what waits for over 5 s is lost", "nothing is lost")
def bandwidth_taken_off() -> None:
    net = Net(stages := down(bandwidth=1.0))
    answer(net, octets(100), end=True)
    net.advance(10)
    take_off(net, stages)
    assert (net.client.outbox, net.client.said) == (octets(100), "end")


# --- ends ---


@row("slow_close", "only the end is late", "same")
def slow_close() -> None:
    net = Net(down(slow_close=2.0))
    answer(net, b"octets", end=True)
    net.advance(1.9)
    assert (net.client.outbox, net.client.said) == (b"octets", "open")
    net.advance(0.2)
    assert net.client.said == "end"


@row("timeout", "all is thrown away; closed when no chunk came for that time, never while busy",
     "`blackhole` with `close_after`, counted from when it is put on, busy or not")  # fmt: skip
def timeout() -> None:
    net = Net(stages_of(drawn(blackhole=True, close_after=5.0)))
    for _ in range(49):
        answer(net, b"octets")
        net.advance(0.1)
    assert (net.client.outbox, net.relay.closed) == (b"", False)
    net.advance(0.2)
    assert (net.client.said, net.server.said, net.session.close) == ("end", "end", "fault")


@row("timeout", "taken off: the connection is closed", "it lives on, without what was lost")
def timeout_taken_off() -> None:
    net = Net(stages := stages_of(drawn(blackhole=True, close_after=5.0)))
    answer(net, b"lost")
    take_off(net, stages)
    net.advance(100)
    answer(net, b"octets")
    assert (net.client.outbox, net.client.said) == (b"octets", "open")


@row("reset_peer", "waits for a chunk, then the time; a FIN if it is added later; to one side",
     "after the time, busy or silent; a reset also on running connections; to both sides")  # fmt: skip
def reset_peer() -> None:
    net = Net()
    net.advance(10)
    for direction, stage in stages_of(drawn(reset_after=1.0)):
        net.relay.add_stage(direction, stage)
    net.advance(0.9)
    assert not net.relay.closed
    net.advance(0.2)
    assert (net.client.said, net.server.said) == ("reset", "reset")


@row(
    "limit_data",
    "passes exactly N octets, then closes",
    "same, or `then` resets; the source's own end there is no fault",
)
def limit_data() -> None:
    for then, said in (("close", "end"), ("reset", "reset")):
        net = Net(stages_of(drawn(down=LineConfig(limit=1000), then=then)))
        answer(net, octets(5000))
        assert (net.client.outbox, net.client.said, net.session.close) == (octets(1000), said, "fault")
    net = Net(down(limit=1000))
    answer(net, octets(1000), end=True)
    assert (net.client.outbox, net.client.said, net.relay.closed) == (octets(1000), "end", False)


@row("limit_data", "closes as soon as N have passed", "same, within 50 ms in which the source may end by itself")
def limit_data_exactly() -> None:
    net = Net(down(limit=1000))
    answer(net, octets(1000))
    net.advance(0.06)
    assert (net.client.outbox, net.client.said, net.session.close) == (octets(1000), "end", "fault")


@row("limit_data", "the count belongs to the connection", "same")
def limit_data_counts() -> None:
    net = Net(stages := down(limit=5000))
    answer(net, octets(800))
    take_off(net, stages)
    for direction, stage in down(limit=1000):
        net.relay.add_stage(direction, stage)
    answer(net, octets(800))
    assert (len(net.client.outbox), net.session.close) == (1000, "fault")


# --- slices and losses ---


@row("slicer", "pieces of about the average, with a pause after each", "same: evenly spread around the size")
def slicer() -> None:
    net = Net(down(slice=100, slice_variation=50, slice_gap=0.01))
    answer(net, octets(10_000))
    net.finish()
    assert net.client.outbox == octets(10_000)
    assert 50 <= min(net.client.sizes[:-1]) < 70
    assert 130 < max(net.client.sizes) <= 150
    gaps = [after - before for before, after in zip(net.client.times, net.client.times[1:], strict=False)]
    assert gaps == pytest.approx([0.01] * len(gaps))


@row("slicer", "taken off: the rest in one piece", "same")
def slicer_taken_off() -> None:
    net = Net(stages := down(slice=100, slice_gap=1.0))
    answer(net, octets(1000))
    take_off(net, stages)
    assert net.client.sizes == [100, 900]


@row("packet_loss", "whole chunks vanish from the stream, and the end is lost", "TCP sends again: a loss is a wait")
def packet_loss() -> None:
    net = Net(down(loss=0.3))
    data = octets(200_000)
    answer(net, data, end=True)
    assert len(net.client.outbox) < len(data)
    net.finish()
    assert (net.client.outbox, net.client.said) == (data, "end")
    assert net.loop.now > 0.5


# --- which connections ---


@row("toxicity", "drawn for each direction, and again at every change", "drawn once for a connection, and kept")
def toxicity() -> None:
    distort = Distort(RULE, "one", probability=0.5, seed=7, fault=make_fault(FaultConfig(latency=1.0)))
    found = [Entry(distort, 0.0) for _ in range(2)]
    first, second = ([entry.draw() is not None for _ in range(100)] for entry in found)
    assert first == second
    assert 30 < sum(first) < 70
    one = next(drawn for drawn in (found[0].draw() for _ in range(100)) if drawn)
    assert {direction for direction, _ in stages_of(one)} == {UP, DOWN}


@row("toxicity", "0 has an effect: linger is set", "0 is nobody")
def toxicity_of_nothing() -> None:
    entry = Entry(Distort(RULE, "one", probability=0.0, fault=make_fault(FaultConfig(reset_after=0.1))), 0.0)
    assert not any(entry.draw() for _ in range(100))


@row("stream", "downstream by default", "both directions, or `up`, `down` and `direction`")
def directions() -> None:
    for direction, wanted in (("both", {UP, DOWN}), ("up", {UP}), ("down", {DOWN})):
        stages = stages_of(drawn(latency=1.0, direction=direction))
        assert {way for way, _ in stages} == wanted


@row(
    "down", "the listener is closed, so that a connection is refused", "`refuse`: the reply of SOCKS that is asked for"
)
def refuse() -> None:
    session = Session(1, "test", Address(IPv4Address("127.0.0.1"), 1), 0.0)
    session.command, session.destination = "connect", Address("down.test", 80)
    session.distorted = (drawn(refuse="connection refused"),)
    with pytest.raises(DialError) as raised:
        asyncio.run(pass_faults(session, None))
    assert raised.value.reply_code == 5


@row("half-close", "the end of one side closes the other's connection, and an answer is lost", "is kept")
def half_close() -> None:
    net = Net(stages_of(drawn(latency=1.0, slice=3, loss=0.1)))
    net.send(b"request", end=True)
    net.finish()
    assert (net.server.outbox, net.server.said, net.client.said) == (b"request", "end", "open")
    answer(net, b"a late answer", end=True)
    net.finish()
    assert (net.client.outbox, net.session.close) == (b"a late answer", "client")


@pytest.mark.parametrize("one", ROWS, ids=[f"{one.toxic}: {one.check.__name__}" for one in ROWS])
def test_what_toxics_do_and_what_faults_do(one: Row) -> None:
    """Each row of the table."""
    assert one.theirs
    assert one.ours
    one.check()
