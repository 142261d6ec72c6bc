"""TimedEnd: a connection ends after a time, busy or not."""

from __future__ import annotations

import asyncio

import pytest

from conftest import Run
from sockets import Bench, fill, read_all, until
from tabi.distort.timed_end import TimedEnd
from tabi.policy.faults import Ending
from tabi.policy.limits import UP
from virtual import Net


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("live", [False, True], ids=["from the start", "live"])
def test_both_sides_get_it_at_its_time(how: Ending, live: bool) -> None:
    """Counted from when it is put on, while octets pass; the line says why."""
    net = Net() if live else Net([(UP, TimedEnd(5.0, how, "one"))])
    if live:
        net.advance(3.0)
        net.relay.add_stage(UP, TimedEnd(5.0, how, "one"))
    for _ in range(49):
        net.advance(0.1)
        net.send(b"x")
    assert (len(net.server.outbox), net.relay.closed) == (49, False)
    net.advance(0.2)
    said = "end" if how == "close" else "reset"
    assert (net.client.said, net.server.said) == (said, said)
    what = "closed" if how == "close" else "reset"
    assert (net.session.close, net.session.error) == ("fault", f"one: {what} after 5 s")


def test_taken_off_it_does_nothing() -> None:
    """Its timer is no more."""
    stage = TimedEnd(5.0, "reset", "one")
    net = Net([(UP, stage)])
    net.relay.remove_stage(stage)
    net.finish()
    assert not net.relay.closed


def test_the_kernel_splices_all_the_same() -> None:
    """It sees no octets."""
    net = Net([(UP, TimedEnd(3600.0, "reset", "one"))])
    assert not net.up.copying


def test_a_reset_is_one_for_peers_that_do_not_read(run_once: Run) -> None:
    """With real sockets, full in both directions: neither side takes what it has for the whole."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            while fill(ends.client) + fill(ends.server):
                await asyncio.sleep(0.001)
            ends.relay.add_stage(UP, TimedEnd(0.01, "reset", "one"))
            await ends.ended.wait()
            for sock in (ends.client, ends.server):
                with pytest.raises(ConnectionResetError):
                    await read_all(sock)
            assert ends.session.close == "fault"

    run_once(main)


def test_an_end_is_one_for_peers_that_read(run_once: Run) -> None:
    """With real sockets: what was sent before arrives, then the end."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            ends.relay.add_stage(UP, TimedEnd(0.05, "close", "one"))
            ends.client.send(b"up")
            ends.server.send(b"down")
            await until(lambda: ends.bench.relays.get(ends.session) is None or ends.relay.counts == (2, 4))
            await ends.ended.wait()
            assert (await read_all(ends.server), await read_all(ends.client)) == (b"up", b"down")

    run_once(main)
