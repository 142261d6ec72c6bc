"""Distorted: a relay whose stages follow the entries, and the pair of sockets behind one."""

from __future__ import annotations

import socket

import msgspec
import pytest

from conftest import Run
from distorting import distort
from sockets import Bench, read, send, tcp_pair, turns, until
from tabi.distort.distorted import BUFFER, SMALL_BUFFER, Distorted, buffer_for, named, names_of, open_pair_for
from tabi.distort.draws import Drawn, Entry
from tabi.policy.faults import Fault, Line
from tabi.policy.schedule import Schedule

LATE = Fault(down=Line(latency=1000.0))


def entry_with(fault: Fault, now: list[float] | None = None, schedule: Schedule | None = None) -> Entry:
    """One at work; ``now`` is its clock."""
    made = distort("some")
    made = msgspec.structs.replace(made, fault=fault, schedule=schedule or made.schedule)
    return Entry(made, 0.0, lambda: 0.0 if now is None else now[0])


def test_stages_come_and_go(run: Run) -> None:
    """With the entries, their schedules, and the relay; what is held goes out when they go."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            now = [0.0]
            late = Drawn(entry_with(LATE, now, Schedule(end=10.0)), 0)
            one = Distorted(ends.session, bench.relays, ends.session)
            assert one.relay is None
            assert one.prepare([late]) != []
            bench.relays.start(ends.near_client, ends.near_server, ends.session, b"", b"", one.stages[late.entry])
            assert one.relay is not None
            relay = one.relay
            await send(ends.server, b"one")
            await until(lambda: relay.down.held == 3)
            one.look(late, True)  # it was on
            assert relay.down.held == 3
            now[0] = 20.0
            one.look(late, False)
            assert await read(ends.client, 3) == b"one"
            one.update(late)  # it does not act
            assert not one.stages
            now[0] = 0.0
            one.look(late, True)
            await send(ends.server, b"two")
            await until(lambda: relay.down.held == 3)
            more = Drawn(entry_with(Fault(down=Line(slice=1))), 0)
            one.add(more)
            assert (more.entry.active, late.entry.active) == (1, 1)
            one.renew(more.entry)
            one.renew(entry_with(LATE))  # which it does not have
            one.forget(late.entry)
            assert late.entry.active == 0
            assert await read(ends.client, 3) == b"two"
            relay.close("shutdown")
            one.add(late)
            one.forget(more.entry)
            one.over()
            assert (more.entry.active, late.entry.active) == (0, 0)

    run(main)


def test_a_fault_that_ends_the_relay_at_once(run: Run) -> None:
    """While its stages are put on: the others are left."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            ends.start()
            one = Distorted(ends.session, bench.relays, ends.session)
            one.add(Drawn(entry_with(Fault(reset_after=0.0, close_after=1.0)), 0))
            await turns(20)
            assert one.relay is None
            assert ends.session.close == "fault"

    run(main)


def test_a_pair_has_the_names_of_the_connection() -> None:
    """In whose place it is; a connection that is over has none."""
    here, there = tcp_pair()
    with there:
        names = names_of(here)
        ours, theirs = open_pair_for([Drawn(entry_with(LATE), 0)])
        with theirs, named(ours, names) as sock:
            assert (sock.getsockname(), sock.getpeername()) == names
            assert sock.gettimeout() == 0.0
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        here.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            names_of(here)


@pytest.mark.parametrize(
    ("rates", "size"),
    [
        ((0.0, 0.0), BUFFER),
        ((1.0, 0.0), SMALL_BUFFER),
        ((0.0, 1e6), 50_000),
        ((1e6, 2e6), 50_000),
        ((1e9, 1e9), BUFFER),
    ],
)
def test_the_size_of_its_buffers(rates: tuple[float, float], size: int) -> None:
    """Smaller where bandwidth is limited, for the lower rate of both directions, but never so small that it stalls."""
    entry = entry_with(Fault(up=Line(bandwidth=rates[0]), down=Line(bandwidth=rates[1])))
    assert buffer_for(entry) == size
    for sock in open_pair_for([Drawn(entry, 0), Drawn(entry_with(LATE), 1)]):
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * size
