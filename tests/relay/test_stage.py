"""Stage: by itself it passes everything on; it has timers, and none outlives its place on a relay."""

from __future__ import annotations

import asyncio
import logging

import pytest

from conftest import Run
from sockets import Bench, read, read_all, send, send_and_end, turns, until
from stages import Counting, Holding
from tabi.policy.faults import Ending
from tabi.policy.limits import DOWN, UP
from tabi.relay.stage import LONGEST_HOLD, SLACK, Stage
from virtual import Net


def test_by_itself_it_passes_everything_on(run: Run) -> None:
    """Octets and the end; it holds nothing, and whoever takes it off loses nothing."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            stages = [Stage(), Stage()]
            for stage in stages:
                ends.relay.add_stage(UP, stage)
            await send(ends.client, b"one")
            assert await read(ends.server, 3) == b"one"
            ends.relay.remove_stage(stages[0])
            await send_and_end(ends.client, b"two")
            assert await read_all(ends.server) == b"two"
            assert (stages[1].ended, stages[1].said_end, stages[1].held) == (True, True, 0)
            stages[1].end()  # once is enough
            stages[1].emit(b"behind the end")
            stages[1].emit_end()
            ends.server.close()
            await ends.ended.wait()
            assert (ends.session.up, ends.session.close) == (6, "client")

    run(main)


def test_what_is_on_no_relay_cannot_emit() -> None:
    """Nor can one that only counts: a fault of whoever wrote it, which is said."""
    for stage in (Stage(), Counting()):
        with pytest.raises(RuntimeError, match="cannot emit"):
            stage.emit(b"octets")
        with pytest.raises(RuntimeError, match="cannot end"):
            stage.emit_end()
        stage.call_at(0.0, lambda: None)
        stage.call_later(0.0, lambda: None)
        stage.next_turn(lambda: None)
        stage.go_on()
        stage.reset()
        stage.end_relay("close", "why")
        stage.end_relay_after("close", "why")
        assert not stage.timers
        assert (stage.is_blocked, stage.is_late) == (False, False)


def test_a_timer_lets_go_what_is_held(run: Run) -> None:
    """It is called at its time, and where it makes room the flow reads on."""

    class Late(Holding):
        """Holds until a timer."""

        def receive(self, data: bytes) -> None:
            super().receive(data)
            if not self.timers:
                self.call_later(0.001, self.let_go)

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            stage = Late(1)
            ends.relay.add_stage(UP, stage)
            for number in range(3):
                await send(ends.client, b"octets %d" % number)
                assert await read(ends.server, 8) == b"octets %d" % number
            assert not stage.timers

    run(main)


def test_a_timer_that_fails_ends_the_relay(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """As a stage that fails when it gets octets does."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            stage = Stage()
            ends.relay.add_stage(UP, stage)
            stage.call_at(0.0, lambda: 1 // 0)
            await ends.ended.wait()
            assert ends.session.close == "error"

    caplog.set_level(logging.ERROR, "tabi")
    run(main)
    assert len(caplog.records) == 1


def test_a_timer_has_a_longest_time(run: Run) -> None:
    """Nothing is held for ever."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            stage = Stage()
            ends.relay.add_stage(UP, stage)
            now = asyncio.get_running_loop().time()
            with pytest.raises(ValueError, match="the longest is 3600 s"):
                stage.call_at(now + LONGEST_HOLD + 60, lambda: None)
            stage.call_at(now + LONGEST_HOLD - 60, lambda: None)
            assert len(stage.timers) == 1
            ends.relay.close("shutdown")
            assert not stage.timers

    run(main)


def test_no_timer_outlives_its_place(run: Run) -> None:
    """Neither that of a stage that was taken off, nor of one whose relay has closed."""

    async def main() -> None:
        called: list[int] = []
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            first, second = Stage(), Stage()
            for stage in (first, second):
                ends.relay.add_stage(UP, stage)
                stage.call_at(0.0, lambda: called.append(1))
            ends.relay.remove_stage(first)
            ends.relay.close("shutdown")
            await turns()
            assert not called

    run(main)


def test_it_holds_the_relay_only_so_long(run: Run) -> None:
    """With a timer, while there is something that it holds: octets, an end, or the reading; not beyond LONGEST_HOLD."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            stage = Holding()
            ends.relay.add_stage(UP, stage)
            since = ends.relay.quiet_since
            now = asyncio.get_running_loop().time()
            assert not stage.holds(since)
            stage.call_at(now + 1000, lambda: None)
            assert not stage.holds(since)
            await send(ends.client, b"octets")
            await until(lambda: stage.held)
            assert stage.holds(since + LONGEST_HOLD - 1)
            assert not stage.holds(since + LONGEST_HOLD + 1)
            stage.release()
            assert not stage.holds(since)
            ends.client.shutdown(1)
            await until(lambda: stage.ended)
            assert stage.holds(since)
            stage.release()
            assert not stage.holds(since)

    run(main)


def test_who_does_not_read_on_purpose_is_not_idle(run: Run) -> None:
    """A stage that stops the reading holds nothing itself."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            stage = Counting()
            stage.shut = True
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", [(UP, stage)])
            await send(ends.client, b"octets")
            await until(lambda: ends.relay.up.state != 0)
            assert not stage.holds(ends.relay.quiet_since)
            stage.call_at(asyncio.get_running_loop().time() + 1000, stage.open)
            assert stage.holds(ends.relay.quiet_since)

    run(main)


def test_it_may_stop_the_reading_and_reset(run: Run) -> None:
    """`go_on` lets the flow read what it has left meanwhile; `reset` is the end of both sides."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            stage = Counting()
            stage.shut = True
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", [(UP, stage)])
            await send(ends.client, b"octets")
            await until(lambda: ends.relay.up.state != 0)
            stage.open()
            assert await read(ends.server, 6) == b"octets"
            stage.reset()
            with pytest.raises(ConnectionResetError):
                await read(ends.server, 1)
            assert ends.session.close == "reset"

    run(main)


def test_a_timer_as_long_as_may_be() -> None:
    """A sum of floats is rounded: a time, and the longest one after it, is not too long."""
    for now in (0.1, 0.3, 1e6 / 3, 12345.678):
        net = Net()
        net.loop.now = now
        stage = Stage()
        net.relay.add_stage(UP, stage)
        stage.call_later(LONGEST_HOLD, stage.reset)
        with pytest.raises(ValueError, match="the longest is 3600 s"):
            stage.call_later(LONGEST_HOLD + 2 * SLACK, stage.reset)


def test_the_next_turn() -> None:
    """It is called once, in the next turn, unless it was taken off or put on elsewhere; a failure ends the relay."""
    called: list[int] = []
    net = Net()
    stages = [Stage(), Stage(), Stage()]
    for stage in stages:
        net.relay.add_stage(UP, stage)
        stage.next_turn(lambda: called.append(1))
    net.relay.remove_stage(stages[0])
    net.relay.remove_stage(stages[1])
    other = Net()
    other.relay.add_stage(UP, stages[1])
    assert not called
    assert net.turns() == 1
    assert called == [1]
    stages[2].next_turn(lambda: 1 // 0)
    net.turns()
    assert (net.session.close, stages[2].flow) == ("error", None)


def test_it_knows_that_a_turn_is_over() -> None:
    """Who has much to do asks, and leaves the rest to the next one."""
    net = Net()
    stage = Stage()
    net.relay.add_stage(UP, stage)
    assert not stage.is_late
    net.reactor.busy = True
    assert stage.is_late


def test_it_knows_that_the_sink_takes_nothing() -> None:
    """And hears when it does again."""

    class Waiting(Stage):
        """Counts that."""

        count = 0

        def resume_writing(self) -> None:
            self.count += 1

    net = Net()
    stage = Waiting()
    net.relay.add_stage(UP, stage)
    net.server.room = 3
    net.send(b"octets")
    assert (stage.is_blocked, stage.count) == (True, 0)
    net.read(1)
    assert (stage.is_blocked, stage.count) == (True, 0)
    net.read()
    assert (stage.is_blocked, stage.count) == (False, 1)
    net.send(b"more", end=True)
    assert (net.server.outbox, net.server.said, stage.count) == (b"octetsmore", "end", 1)


ENDINGS: list[tuple[Ending, str]] = [("close", "end"), ("reset", "reset")]


def test_it_ends_the_relay_for_a_reason() -> None:
    """Now: what is on its way is dropped."""
    for how, said in ENDINGS:
        net = Net()
        holding, stage = Holding(), Stage()
        net.relay.add_stage(UP, holding)
        net.relay.add_stage(DOWN, stage)
        net.send(b"octets")
        stage.end_relay(how, "the reason")
        assert (net.client.said, net.server.said, net.server.outbox) == (said, said, b"")
        assert (net.session.close, net.session.error) == ("fault", "the reason")


def test_it_ends_the_relay_behind_what_it_has_emitted() -> None:
    """The sink takes all of it first, whatever stages behind hold."""
    for how, said in ENDINGS:
        net = Net()
        stage, holding = Stage(), Holding()
        for one in (stage, holding):
            net.relay.add_stage(UP, one)
        net.server.room = 2
        net.send(b"octets")
        stage.end_relay_after(how, "the reason")
        stage.end_relay_after("reset", "not again")
        assert (net.relay.closed, holding.ended) == (False, True)
        holding.release()
        assert (net.relay.closed, net.server.outbox) == (False, b"oc")
        net.read()
        assert (net.client.said, net.server.said, net.server.outbox) == (said, said, b"octets")
        assert (net.session.close, net.session.error) == ("fault", "the reason")
