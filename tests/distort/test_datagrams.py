"""Faults on associations as clients meet them: with real sockets, and as entries come and go while they run."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from authentication import Turned
from conftest import Run
from datagrams import (
    FEATURES,
    Faulty,
    Inspector,
    Place,
    association,
    destination,
    entries,
    pass_on,
    refusal,
    udp_socket,
    unwrap,
    use_features,
    used,
)
from doubles import hear_opens
from sockets import turns, until
from tabi import Proxy
from tabi.distort.choosing import MOST_KNOWN
from tabi.distort.datagrams import DatagramFaults
from tabi.distort.faulty_association import FaultyAssociation
from tabi.policy.distorts import Distort, Distorts
from tabi.relay.datagram import Association
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.datagram import encode_header

HOLE: dict[str, Any] = {"fault": {"blackhole": True}}
LATE: dict[str, Any] = {"fault": {"latency": "1h"}}


def is_plain(found: Association) -> bool:
    """Whether its datagrams go in runs, at full speed."""
    return found.inspection is None and found.routes is found.router.routes


def take(place: Place, *found: Distort) -> None:
    """Act by these entries from now on."""
    place.server.parts.take_distorts(Distorts(found))


# --- what clients meet ---


def test_a_round_trip_takes_twice_the_latency(run_once: Run) -> None:
    """By the clock of the loop; nothing is lost, and nothing is left."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Faulty({"fault": {"latency": "30ms"}}) as place, Proxy(place.server.url).associate() as client:
            with destination() as echo:
                began = loop.time()
                for number in range(20):
                    await client.send(b"%02d" % number, (str(echo.address.host), echo.address.port))
                assert [(await client.receive())[0] for _ in range(20)] == [b"%02d" % number for number in range(20)]
                assert 0.06 - 0.001 <= loop.time() - began < 0.5
            assert (place.faults.held, place.one.session.drops) == (0, {})

    run_once(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_losses_through_sockets(run_once: Run, host: str) -> None:
    """Each datagram is there or counted, and the counts of the session are those that were sent on."""

    async def main() -> None:
        fault = {"loss": 0.3, "direction": "up"}
        async with Faulty({"seed": 1, "fault": fault}) as place, association(place.address) as client:
            with destination(host) as echo:
                for number in range(500):
                    client.send(echo.header + b"%d" % number)
                    if not number % 50:
                        await turns()
                session = place.one.session
                assert session.drops is not None
                await until(lambda: session.datagrams_up + place.drops.get("fault", 0) == 500)
                await until(lambda: len(echo.received) == session.datagrams_up)
                assert 0.2 < session.drops["fault"] / 500 < 0.4
                for data, _ in echo.received:
                    assert unwrap(await client.receive()) == (echo.address, data)

    run_once(main)


def test_duplicates_and_reordering_through_sockets(run_once: Run) -> None:
    """All come, each twice, and not in their order."""

    async def main() -> None:
        fault = {"duplicate": 1, "reorder": 0.3, "direction": "up"}
        async with Faulty({"seed": 1, "fault": fault}) as place, association(place.address) as client:
            with destination() as echo:
                payloads = [b"%03d" % number for number in range(100)]
                for payload in payloads:
                    client.send(echo.header + payload)
                await until(lambda: len(echo.received) == 200)
                found = [data for data, _ in echo.received]
                assert sorted(found) == sorted(payloads * 2) != found

    run_once(main)


def test_protected_datagrams_pass_faults(run_once: Run) -> None:
    """What is inside of the wrapping is lost, or changed."""
    turned = Turned()

    def protect(session: Session) -> None:
        session.protection = turned

    async def main() -> None:
        async with Faulty({"fault": {"mtu": 100}}, {"fault": {"corrupt": 1, "direction": "up"}}) as place:
            hear_opens(place.server, protect)
            async with association(place.address) as client:
                with destination() as echo:
                    client.send(turned.wrap(echo.header + bytes(101)))
                    address, payload = unwrap(turned.unwrap(await client.ask(turned.wrap(echo.header + bytes(100)))))
                    assert address == echo.address
                    assert [octet.bit_count() for octet in payload] == [1] * 100
                    assert place.drops == {"fault": 1}
                place.take()
                await turns()
                assert place.one.inspection is not None
                assert place.one.inspection.faults is None

    run_once(main)


def test_inspectors_and_hooks_see_what_a_perfect_network_has(run_once: Run) -> None:
    """What is lost behind them they have seen, in both directions; what they delay passes the faults when it goes."""

    async def main() -> None:
        async with Faulty({"fault": {"loss": 1.0, "direction": "down"}}) as place:
            inspector = place.server.parts.associations.inspector = Inspector(pass_on)
            async with association(place.address) as client:
                with destination() as echo:
                    client.send(echo.header + b"x")
                    await until(lambda: place.drops == {"fault": 1})
                    assert inspector.payloads == [("up", b"x"), ("down", b"x")]
                    inspector.look = lambda datagram, emit: emit(datagram.payload, delay=0.01)
                    client.send(echo.header + b"y")
                    await until(lambda: place.drops == {"fault": 2})
                    assert inspector.payloads[2:] == [("up", b"y"), ("down", b"y")]

    run_once(main)


def test_names_of_destinations(run_once: Run) -> None:
    """An entry for a name acts on what goes to it, and on what comes from its address."""
    said = {"hosts": ["far.test"], "fault": {"loss": 1.0, "direction": "down"}}

    async def main() -> None:
        async with Faulty(said, names={"far.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as far, destination() as near:
                client.send(encode_header(Address("far.test", far.address.port)) + b"1")
                await until(lambda: place.drops == {"fault": 1})
                assert unwrap(await client.ask(near.header + b"2")) == (near.address, b"2")
                assert [data for data, _ in far.received] == [b"1"]

    run_once(main)


@pytest.mark.parametrize("said", [{}, {"hosts": ["*"]}])
def test_an_association_that_is_refused(run_once: Run, said: dict[str, Any]) -> None:
    """By the code that the entry says, if it is for all destinations."""

    async def main() -> None:
        async with Faulty({"name": "shut", **said, "fault": {"refuse": 4}}) as place:
            assert await refusal(place) == (4, "refused by shut")
            assert not place.molding.datagrams.faulty
            (entry,) = place.molding.distortion.entries.values()
            assert (entry.chosen, entry.active) == (1, 0)

    run_once(main)


def test_an_association_is_not_refused_for_a_part_of_its_destinations(run_once: Run) -> None:
    """Nor while the schedule says that all is good."""

    async def main() -> None:
        parts = {"hosts": ["127.0.0.0/8"], "fault": {"refuse": 4}}
        good = {"fault": {"refuse": 4, "every": "1h good, 1s gone"}}
        async with Faulty(parts, good) as place, association(place.address) as client:
            with destination() as echo:
                client.send(echo.header + b"x")
                await until(lambda: place.drops == {"fault": 1})

    run_once(main)


# --- who is left alone ---


def test_who_is_not_chosen_stays_at_full_speed(run_once: Run) -> None:
    """Associations that no entry can match, or that match one for connections alone, are as without any."""

    async def main() -> None:
        said = [
            {"users": ["bob"], **HOLE},
            {"clients": ["198.51.100.0/24"], **HOLE},
            {"commands": ["connect"], **HOLE},
            {"fault": {"slice": 10}},
        ]
        async with Faulty(*said) as place, association(place.address) as client:
            assert is_plain(place.one)
            assert not place.molding.datagrams.faulty
            with destination() as echo:
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
            assert place.one.session.distorted is None

    run_once(main)


def test_who_sends_elsewhere_stays_at_full_speed(run: Run) -> None:
    """As long as no entry acts on one of its destinations; from the first such datagram on it has the fault, there and
    back, and other destinations pass."""
    said = {"hosts": ["far.test"], "name": "far", "fault": {"loss": 1.0, "direction": "down"}}

    async def main() -> None:
        async with Faulty(said, names={"far.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as near, destination() as far:
                for _ in range(3):
                    assert unwrap(await client.ask(near.header + b"1")) == (near.address, b"1")
                assert is_plain(place.one)
                (entry,) = place.molding.distortion.entries.values()
                assert (entry.matched, entry.active, place.one.session.distorted) == (0, 0, None)
                client.send(encode_header(Address("far.test", far.address.port)) + b"2")
                await until(lambda: place.drops == {"fault": 1})
                assert (entry.matched, entry.active) == (1, 1)
                assert not is_plain(place.one)
                assert unwrap(await client.ask(near.header + b"3")) == (near.address, b"3")
                place.take()
                assert is_plain(place.one)

    run(main)


def test_who_is_not_drawn_stays_at_full_speed(run_once: Run) -> None:
    """Whatever it sends to; it is asked once."""

    async def main() -> None:
        said = {"ports": ["1-65535"], "probability": 0.01, "seed": 3, **HOLE}
        async with Faulty(said) as place, association(place.address) as client:
            with destination() as one, destination() as other:
                for echo in (one, other, one):
                    assert unwrap(await client.ask(echo.header + b"1")) == (echo.address, b"1")
                (entry,) = place.molding.distortion.entries.values()
                assert entry.matched == 1
                assert is_plain(place.one)

    run_once(main)


def test_an_address_that_a_name_turns_out_to_have(run_once: Run) -> None:
    """An entry for a network acts on what comes from there from then on."""

    async def main() -> None:
        said = {"hosts": ["127.0.0.0/8"], "fault": {"loss": 1.0, "direction": "down"}}
        async with Faulty(said, names={"far.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as far:
                client.send(encode_header(Address("far.test", far.address.port)) + b"1")
                await until(lambda: place.drops == {"fault": 1})

    run_once(main)


def test_a_sender_that_nobody_has_asked(run_once: Run) -> None:
    """Another port of a host that the client has sent to: its entry acts on what it sends."""

    async def main() -> None:
        with destination() as echo, udp_socket() as other:
            said = {"ports": [other.getsockname()[1]], **HOLE}
            async with Faulty(said) as place, association(place.address) as client:
                assert unwrap(await client.ask(echo.header + b"1")) == (echo.address, b"1")
                assert is_plain(place.one)
                other.sendto(b"2", ("127.0.0.1", echo.received[0][1][1]))
                await until(lambda: place.drops == {"fault": 1})
                assert unwrap(await client.ask(echo.header + b"3")) == (echo.address, b"3")

    run_once(main)


def test_an_entry_for_a_destination_that_is_known(run: Run) -> None:
    """It acts on an association that runs, by the name and by the address, and on senders that it knows; when just that
    entry is taken away the association goes at full speed again."""

    async def main() -> None:
        async with Faulty(names={"far.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as echo:
                header = encode_header(Address("far.test", echo.address.port))
                other = {"hosts": ["other.test"], "fault": {"blackhole": True}}
                for number, hosts in enumerate((["far.test"], ["127.0.0.0/8"], [], ["127.0.0.1"]), 1):
                    found = {"hosts": hosts, "ports": ["1-65535"], "fault": {"loss": 1.0, "direction": "down"}}
                    place.take(*entries(other))
                    assert is_plain(place.one)
                    for _ in range(2):
                        assert unwrap(await client.ask(header + b"1")) == (echo.address, b"1")
                    place.take(*entries(other, found if hosts else {**found, "hosts": None}))
                    assert not is_plain(place.one)
                    client.send(header + b"2")
                    await until(partial(lambda number: place.drops == {"fault": number}, number))

    run(main)


def test_limits_hold_when_a_fault_begins(run_once: Run) -> None:
    """What was charged before is neither lost nor counted twice."""

    async def main() -> None:
        limits = {"bandwidth": "100 MB/s", "quota": "1 GB/day"}
        with destination() as near, destination() as far:
            said = {"ports": [far.address.port], "fault": {"latency": "1ms"}}
            async with Faulty(said, limits=limits) as place, association(place.address) as client:
                for header in (near.header, near.header, far.header, near.header):
                    for _ in range(3):
                        client.send(header + bytes(1000))
                    for _ in range(3):
                        await client.receive()
                session = await place.end(client)
                assert (session.up, session.down) == (12_000, 12_000)
                assert used(place) == 24_000

    run_once(main)


# --- entries that come and go ---


@pytest.mark.parametrize("udp", [{}, {"ports": "shared"}])
@pytest.mark.parametrize("kernel", FEATURES)
def test_a_fault_acts_on_associations_that_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, kernel: str, udp: dict[str, str]
) -> None:
    """At once, on those that began without any; when it is taken away they are at full speed again."""
    use_features(kernel, monkeypatch)

    async def main() -> None:
        listen = [{"url": "socks5://127.0.0.1:0", "udp": udp}]
        async with Faulty(listen=listen) as place, association(place.address) as client:
            with destination() as echo:
                assert unwrap(await client.ask(echo.header + b"1")) == (echo.address, b"1")
                assert is_plain(place.one)
                for lost in ({"fault": 1}, {"fault": 2}):
                    place.take(*entries(HOLE))
                    await turns()
                    client.send(echo.header + b"2")
                    await until(partial(lambda expected: place.drops == expected, lost))
                    place.take()
                    await turns()
                    assert is_plain(place.one)
                    for _ in range(3):
                        assert unwrap(await client.ask(echo.header + b"4")) == (echo.address, b"4")
                place.molding.live["one"] = entries(HOLE)[0]
                place.molding.take(Distorts())
                await turns()
                client.send(echo.header + b"5")
                await until(lambda: place.drops == {"fault": 3})
                session = place.one.session
                assert (session.datagrams_up, session.datagrams_down) == (7, 7)

    run(main)


def test_another_association_of_a_shared_port_is_left_alone(run_once: Run) -> None:
    """One is drawn, the other is not."""

    async def main() -> None:
        listen = [{"url": "socks5://127.0.0.1:0", "udp": {"ports": "shared"}}]
        async with Faulty(listen=listen) as place:
            anybody = Address(place.address.host, 0)  # with the port of its socket
            async with association(place.address, anybody) as one, association(place.address, anybody) as two:
                with destination() as echo:
                    for client in (one, two):
                        assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                    place.take(*entries({"probability": 0.5, "seed": 4, **HOLE}))
                    await turns()
                    (entry,) = place.molding.distortion.entries.values()
                    assert (entry.matched, entry.active) == (2, 1)
                    for client in (one, two):
                        client.send(echo.header + b"y")
                    await until(lambda: len(echo.received) == 3)
                    drops = [found.session.drops for found in place.server.parts.associations.active]
                    await until(lambda: {"fault": 1} in drops)
                    assert {} in drops

    run_once(main)


def test_what_waits_goes_on_when_its_fault_is_taken_away(run_once: Run) -> None:
    """In its order, and before what comes after it; nothing is left behind."""

    async def main() -> None:
        async with Faulty(LATE) as place, association(place.address) as client:
            with destination(answer=lambda data, sender: ()) as sink:
                payloads = [b"%03d" % number for number in range(100)]
                for payload in payloads:
                    client.send(sink.header + payload)
                await until(lambda: len(place.faults.waiting) == 100)
                memory = place.molding.datagrams.memory
                assert memory.held == place.faults.held > 0
                place.take()
                client.send(sink.header + b"100")
                await until(lambda: len(sink.received) == 101)
                assert [data for data, _ in sink.received] == [*payloads, b"100"]
                assert (memory.held, place.drops) == (0, {})
                assert is_plain(place.one)

    run_once(main)


def test_one_of_two_is_taken_away(run_once: Run) -> None:
    """What waits goes on, and the other one acts on what comes; an entry that stays goes on as it is."""

    async def main() -> None:
        stays = entries({"seed": 1, "fault": {"limit": 10_000}})[0]
        async with Faulty() as place, association(place.address) as client:
            with destination(answer=lambda data, sender: ()) as sink:
                place.take(*entries(LATE), stays)
                await turns()
                client.send(sink.header + bytes(1000))
                await until(lambda: place.faults.waiting)
                place.take(stays)
                await until(lambda: len(sink.received) == 1)
                client.send(sink.header + bytes(1000))
                await until(lambda: len(sink.received) == 2)
                (acting,) = place.faults.acting.values()
                assert acting is not None
                assert acting.lines["up"].left == 8000
                place.take(stays, *entries(HOLE))
                await turns()
                client.send(sink.header + bytes(1000))
                await until(lambda: place.drops == {"fault": 1})
                assert acting.lines["up"].left == 7000

    run_once(main)


def test_entries_that_change_before_an_association_begins(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there when it does act on it, and no others."""
    begin = DatagramFaults.begin

    async def main() -> None:
        async with Faulty(LATE) as place:

            def change(self: DatagramFaults, session: Session) -> None:
                begin(self, session)
                place.take(*now)

            for now in ((), tuple(entries(HOLE))):
                monkeypatch.setattr(DatagramFaults, "begin", change)
                async with association(place.address) as client:
                    monkeypatch.undo()
                    with destination() as echo:
                        client.send(echo.header + b"x")
                        if now:
                            await until(lambda: place.drops == {"fault": 1})
                        else:
                            assert unwrap(await client.receive()) == (echo.address, b"x")
                        await place.end(client)
                assert not place.molding.datagrams.faulty
                place.take(*entries(LATE))

    run_once(main)


def test_an_entry_that_gets_another_fault(run_once: Run) -> None:
    """It is the same entry, drawn once: what waits goes on, and what comes then has the new fault."""

    async def main() -> None:
        async with Faulty(LATE) as place, association(place.address) as client:
            with destination() as echo:
                client.send(echo.header + b"waits")
                await until(lambda: place.faults.held)
                (entry,) = place.molding.distortion.entries.values()
                place.take(*entries({"fault": {"duplicate": 1, "direction": "up"}}))
                assert [*place.molding.distortion.entries.values()] == [entry]
                assert (entry.active, entry.chosen, place.faults.held) == (1, 1, 0)
                client.send(echo.header + b"twice")
                await until(lambda: len(echo.received) == 3)
                assert [data for data, _ in echo.received] == [b"waits", b"twice", b"twice"]

    run_once(main)


def test_faults_that_come_and_go_leave_nothing_on_an_association(run_once: Run) -> None:
    """However often: what is remembered of those that are gone has a bound."""

    async def main() -> None:
        async with Faulty() as place, association(place.address):
            for number in range(3 * MOST_KNOWN):
                place.take(*entries({"name": f"one-{number}", **HOLE}))
                await turns(1)
                place.take()
                await turns(1)
            session = place.one.session
            assert not session.ended
            assert len(session.distorted) <= MOST_KNOWN
            assert len(session.distorted.asked) <= 1
            assert is_plain(place.one)

    run_once(main)


def test_an_association_that_ends_while_entries_change(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left alone."""

    async def main() -> None:
        async with Faulty(HOLE) as place, association(place.address):
            one = place.one
            spread = place.server.parts.reactor.spread

            def later(things: Any, act: Any) -> None:
                one.close("client")
                spread(things, act)

            monkeypatch.setattr(place.server.parts.reactor, "spread", later)
            place.molding.datagrams.take()
            assert not place.molding.datagrams.faulty

    run_once(main)


def test_many_associations_leave_nothing(run_once: Run) -> None:
    """Neither entries that act, nor memory, nor timers."""

    async def main() -> None:
        async with Faulty({"fault": {"latency": "1h", "reset_after": "1h", "reorder": 0.5}}) as place:
            (entry,) = place.molding.distortion.entries.values()
            with destination() as echo:
                for _ in range(20):
                    async with association(place.address) as client:
                        client.send(echo.header + b"x")
                        await until(lambda: place.faults.waiting)
                        assert entry.active == 1
                        found: FaultyAssociation = place.faults
                        await place.end(client)
                        assert found.timer is None or found.timer.cancelled()
            assert (entry.active, entry.chosen, place.molding.datagrams.memory.held) == (0, 20, 0)
            assert not place.molding.datagrams.faulty

    run_once(main)
