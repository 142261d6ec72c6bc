"""Associations within limits: datagrams count like octets of TCP, what is too fast is dropped, a quota is the end."""

from __future__ import annotations

import pytest

from conftest import Run
from datagrams import Place, association, destination, unwrap
from sockets import until
from tabi.config import LimitsConfig, make_config
from tabi.policy.ledger import USED
from tabi.policy.limits import UP
from tabi.relay import limited_association
from tabi.relay.limited_association import LimitedAssociation
from tabi.wire.address import Address
from tabi.wire.datagram import encode_header

SECOND = 1_000_000_000


class Clock:
    """A clock, in nanoseconds, that goes on only when it is told."""

    def __init__(self) -> None:
        self.now = 100 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every association."""
    clock = Clock()
    monkeypatch.setattr(limited_association, "monotonic_ns", clock)
    return clock


def place(limits: dict[str, object]) -> Place:
    """A server on which everybody together has limits."""
    found: LimitsConfig = make_config({"limits": limits}).limits
    return Place(limits=found)


def used(here: Place) -> int:
    """Octets that everybody has used."""
    ledger = here.server.ledger
    return ledger.cells[ledger.rows["server"] + USED]


def test_payload_counts_in_both_directions(run: Run, kernel: str) -> None:
    """Octets of payload and not of headers; those of a datagram that went nowhere are given back at the end."""

    async def main() -> None:
        async with place({"quota": "1 GB/day"}) as here, association(here.address) as client:
            with destination() as echo:
                for _ in range(3):
                    assert unwrap(await client.ask(echo.header + bytes(1000))) == (echo.address, bytes(1000))
            found = here.one
            assert isinstance(found, LimitedAssociation)
            client.send(b"rubbish that is no datagram")
            await until(lambda: here.drops == {"malformed": 1})
            assert used(here) > 6000
            session = await here.end(client)
            found.close("shutdown")
            assert (session.up, session.down, session.close) == (3000, 3000, "client")
            assert used(here) == 6000

    run(main)


def test_what_waits_for_a_name_is_given_back(run: Run) -> None:
    """It was charged when it came; the association ends before anybody knows where to."""

    async def main() -> None:
        async with place({"quota": "1 GB/day"}) as here, association(here.address) as client:
            here.resolver.answering.clear()
            client.send(encode_header(Address("slow.test", 9)) + bytes(700))
            await until(lambda: here.resolver.asked)
            assert used(here) >= 700  # where its header ends is not known before the first one
            session = await here.end(client)
            assert (session.up, session.drops, used(here)) == (0, {"waiting": 1}, 0)

    run(main)


def test_a_quota_ends_the_association(run: Run, kernel: str) -> None:
    """What does not fit is dropped, the control connection ends, and the line says why."""

    async def main() -> None:
        async with place({"quota": "2500 B/day"}) as here, association(here.address) as client:
            with destination() as echo:
                await client.ask(echo.header + bytes(1000))
                client.send(echo.header + bytes(1000))  # one more gets there: 500 octets are left for the answer
                assert await client.reader.read(1) == b""
                session = await here.ended.get()
                assert len(echo.received) in (1, 2)
        assert session.close == "limit"
        assert session.error == "limit: server: the quota of 2500 B/day is used up"
        assert session.drops is not None
        assert session.drops["limited"] >= 1

    run(main)


def test_one_without_payload_ends_it_where_nothing_is_left(run: Run, kernel: str) -> None:
    """Others have used the quota to the octet: what is sent next ends the association, however little it is."""

    async def main() -> None:
        async with place({"quota": "2500 B/day"}) as here, association(here.address) as client:
            with destination(answer=lambda data, sender: ()) as sink:
                for _ in range(2):
                    client.send(sink.header)
                await until(lambda: len(sink.received) == 2)
                found = here.one
                assert isinstance(found, LimitedAssociation)
                found.meter.lease.spend(UP, 2500, 0)
                client.send(sink.header)
                assert await client.reader.read(1) == b""
                session = await here.ended.get()
                assert (session.close, session.datagrams_up, session.drops) == ("limit", 2, {"limited": 1})
                assert session.error == "limit: server: the quota of 2500 B/day is used up"

    run(main)


def test_one_that_is_larger_than_the_bucket_passes_when_that_is_full(run: Run, kernel: str, clock: Clock) -> None:
    """Else it never would; those behind it pay for it."""

    async def main() -> None:
        async with place({"bandwidth": "1 kB/s", "burst": 4096}) as here, association(here.address) as client:
            with destination(answer=lambda data, sender: ()) as sink:
                client.send(sink.header + bytes(30_000))
                await until(lambda: sink.received)
                client.send(sink.header + bytes(1000))
                await until(lambda: here.drops == {"limited": 1})
            assert [len(data) for data, _ in sink.received] == [30_000]

    run(main)


@pytest.mark.parametrize("burst", [6000, 1_000_000])
def test_what_is_too_fast_is_dropped(run: Run, kernel: str, clock: Clock, burst: int) -> None:
    """As a narrow way drops it: those of a burst that fit pass, the others are counted and nobody waits for them."""

    async def main() -> None:
        async with place({"bandwidth": "1500 B/s", "burst": burst}) as here, association(here.address) as client:
            with destination(answer=lambda data, sender: ()) as sink:
                expected = min(20, burst // 1500)
                dropped = {"limited": 20 - expected} if expected < 20 else {}
                for _ in range(20):
                    client.send(sink.header + bytes(1500))
                await until(lambda: len(sink.received) == expected and here.drops == dropped)
                clock.now += 2 * SECOND  # room for two more
                for _ in range(2):
                    client.send(sink.header + bytes(1500))
                await until(lambda: len(sink.received) == expected + 2)
            session = await here.end(client)
            assert (session.datagrams_up, session.drops, session.close) == (expected + 2, dropped, "client")

    run(main)


def test_what_is_too_fast_for_the_client_is_dropped(run: Run, kernel: str, clock: Clock) -> None:
    """Each direction has a bucket of its own: answers have as much room as what asked for them."""

    async def main() -> None:
        async with place({"bandwidth": "1500 B/s", "burst": 6000}) as here, association(here.address) as client:
            with destination(answer=lambda data, sender: [(data, sender)] * 3) as echo:
                for _ in range(2):
                    client.send(echo.header + bytes(1500))
                for _ in range(4):
                    assert unwrap(await client.receive()) == (echo.address, bytes(1500))
                await until(lambda: here.drops == {"limited": 2})
            session = await here.end(client)
            assert (session.datagrams_up, session.datagrams_down, session.drops) == (2, 4, {"limited": 2})

    run(main)
