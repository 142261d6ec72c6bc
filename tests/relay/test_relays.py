"""Relays: all of a worker: the sweep over them, their end, and which kind each is."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from authorities import TlsPeer, accept, client_context
from conftest import Run
from sockets import (
    Bench,
    read,
    read_all,
    send,
    send_and_end,
    until,
)
from tabi.config import LimitsConfig, Seconds
from tabi.errors import LimitExceeded
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Limits as Accounts
from tabi.policy.quantities import Quota
from tabi.relay.flow import Flow
from tabi.relay.pipes import BUFFER_SIZE
from tabi.relay.relay import Relay
from tabi.relay.staged import StagedFlow
from tabi.relay.tls import TlsRelay
from tabi.session import Session

MIB = 1 << 20


def test_the_timer_sweeps_by_itself(run: Run) -> None:
    """Nobody has to call: the relays' own timer ends what is idle, and stops when there is nothing left."""

    async def main() -> None:
        with Bench(idle=0.05, half_closed=0.05) as bench:
            first, second = bench.ends(), bench.ends()
            first.start()
            second.start()
            await first.ended.wait()
            await second.ended.wait()
            assert first.session.close == second.session.close == "idle"
            await until(lambda: bench.relays.timer is None)
            third = bench.ends()
            third.start()
            await third.ended.wait()
            assert third.session.close == "idle"

    run(main)


def test_shutdown_closes_every_relay_and_the_pool(run: Run) -> None:
    """At the end of a server its relays end, each with its line, and no descriptor stays."""

    async def main() -> None:
        with Bench() as bench:
            quiet, busy = bench.ends(), bench.ends()
            quiet.start()
            busy.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(send(busy.client, bytes(MIB)))
                group.create_task(read(busy.server, MIB))
            bench.relays.close("shutdown")
            assert quiet.session.close == busy.session.close == "shutdown"
            assert (busy.session.up, busy.session.down) == (MIB, 0)
            assert not bench.relays.active
            assert bench.relays.timer is None
            assert bench.relays.pipes.idle == []
            assert await read_all(quiet.client) == b""
            bench.relays.close("shutdown")

    run(main)


def test_one_relays_end_may_end_others(run: Run) -> None:
    """``done`` may close relays that the sweep under way has not come to yet."""

    async def main() -> None:
        with Bench(idle=300) as bench:
            both = bench.ends(), bench.ends()
            for ends in both:
                ends.start()

            def close_the_rest(session: object) -> None:
                for relay in tuple(bench.relays.active.values()):
                    relay.close("shutdown")

            bench.relays.done = close_the_rest
            bench.relays.sweep(monotonic() + 301)
            assert sorted(ends.session.close for ends in both) == ["idle", "shutdown"]

    run(main)


def test_relays_do_not_disturb_each_other(run: Run) -> None:
    """Twenty relays at once, bulk in both directions through few pipes: every one carries its own octets."""

    async def main() -> None:
        with Bench(pipes=3) as bench:

            async def one(number: int) -> None:
                ends = bench.ends()
                ends.start(b"head %d" % number)
                data = bytes([number]) * (3 * BUFFER_SIZE)
                async with asyncio.TaskGroup() as group:
                    group.create_task(send_and_end(ends.client, data))
                    group.create_task(send_and_end(ends.server, data[::-1] + b"end"))
                    up = group.create_task(read_all(ends.server))
                    down = group.create_task(read_all(ends.client))
                assert up.result() == b"head %d" % number + data
                assert down.result() == data + b"end"
                await ends.ended.wait()

            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(one(number))
            assert bench.relays.pipes.lent == 0

    run(main)


@pytest.mark.parametrize("side", [None, "near_client", "near_server"])
def test_tls_at_one_side_makes_it_a_relay_that_copies(run_once: Run, side: str | None) -> None:
    """Without TLS there is splice, and nothing of what TLS needs."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            if side is not None:
                far = ends.client if side == "near_client" else ends.server
                await accept(getattr(ends, side), TlsPeer(far, client_context()))
            ends.start()
            assert type(ends.relay) is (Relay if side is None else TlsRelay)

    run_once(main)


def test_a_session_with_a_lease_can_be_ended(run_once: Run) -> None:
    """Its lease learns how; only where octets are counted is it a relay that counts them."""

    async def main() -> None:
        day = LimitsConfig(max_session=Seconds(86400))
        for terms, kind in ((day, Flow), (LimitsConfig(quota=Quota.parse("1 GB/day")), StagedFlow)):
            with Bench() as bench:
                ends = bench.ends()
                lease = Accounts(Ledger(), server=terms).admit(None, ends.session.client.host, 0, 0)
                assert lease is not None
                ends.session.lease = lease
                ends.start()
                assert type(ends.relay.up) is type(ends.relay.down) is kind
                lease.end(LimitExceeded("limit: too long", "max_session"))
                assert (ends.session.close, ends.session.error) == ("limit", "limit: too long")

    run_once(main)


def test_the_relay_of_a_session_can_be_asked_for(run_once: Run) -> None:
    """While it runs."""

    async def main() -> None:
        with Bench() as bench:
            ends = bench.ends()
            assert bench.relays.get(ends.session) is None
            ends.start()
            relay = bench.relays.get(ends.session)
            assert relay is not None
            assert relay.session is ends.session
            relay.close("kicked")
            assert bench.relays.get(ends.session) is None

    run_once(main)


def test_siblings_share_pipes_and_pacer(run_once: Run) -> None:
    """But each tells its own owner of what has ended."""

    async def main() -> None:
        with Bench(pipes=1) as bench:
            over: list[Session] = []
            other = bench.relays.sibling(over.append)
            assert (other.pipes, other.pacer) == (bench.relays.pipes, bench.relays.pacer)
            assert (other.idle, other.half_closed) == (bench.relays.idle, bench.relays.half_closed)
            ends = bench.ends()
            other.start(ends.near_client, ends.near_server, ends.session, b"", b"")
            assert bench.relays.get(ends.session) is None
            other.close("shutdown")
            assert over == [ends.session]
            assert not ends.ended.is_set()

    run_once(main)


def test_a_session_is_given_to_them(run_once: Run) -> None:
    """See `carrier.relays_for`: a relay of theirs can have stages."""

    async def main() -> None:
        with Bench() as bench:
            assert bench.relays.relays_for(bench.ends().session) is bench.relays

    run_once(main)
