"""The faults of one association: what its datagrams pass, in which order they go on, and what waits."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from datagrams import Faulty, association, entries
from sockets import turns, until
from tabi.distort import faulty_association
from tabi.distort.datagram_path import COST
from tabi.distort.draws import Entry
from tabi.distort.faulty_association import HELD_BACK, MOST_COPIES, FaultyAssociation
from tabi.distort.memory import HELD_BY_ONE, LEAST, Memory
from tabi.policy.distorts import Distort, Distorts
from tabi.policy.faults import Fault, Line
from tabi.policy.rules import Conditions, Rule, Texts
from tabi.relay.datagram_inspector import Direction
from tabi.relay.inspection import Inspection
from tabi.session import Session
from tabi.wire.address import Address, parse_address

RULE = Rule(0, None, "allow", None, None, Conditions(), Texts())
ONE, TWO = parse_address("198.51.100.1:5000"), parse_address("198.51.100.2:5000")

Sent = list[tuple[Direction, Address, bytes]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What associations send behind their faults; the network does not see it."""
    found: Sent = []
    monkeypatch.setattr(Inspection, "send", lambda self, *datagram: found.append(datagram))
    return found


@contextlib.asynccontextmanager
async def faulty(*said: dict[str, Any], **parts: Any) -> AsyncIterator[Faulty]:
    """An association with these entries, whose clock stands."""
    async with Faulty(*said, **parts) as place, association(place.address):
        place.stop_the_clock()
        place.take(*entries(*said))  # they begin at that clock
        await turns()
        yield place


def payloads(sent: Sent) -> list[bytes]:
    """What was sent, without where to."""
    return [payload for _, _, payload in sent]


def numbers(count: int, first: int = 0) -> list[bytes]:
    """So many payloads that are told apart."""
    return [b"%06d" % number for number in range(first, first + count)]


# --- losses ---


def losses(run: Run, sent: Sent, **fault: Any) -> set[bytes]:
    """Which of 20,000 datagrams are lost, at a new server."""
    sent.clear()

    async def main() -> None:
        async with faulty({"seed": 7, "fault": fault}) as place:
            for payload in numbers(20_000):
                place.carry("up", ONE, payload)
            lost = 20_000 - len(sent)
            assert place.drops == {"fault": lost}
            place.one.sweep(place.clock() + 1e6, 1.0)
            assert not place.one.closed  # its client is there

    run(main)
    return set(numbers(20_000)) - set(payloads(sent))


def test_the_same_seed_loses_the_same(run_once: Run, sent: Sent) -> None:
    """10 % within 1 point of 20,000 datagrams, and the same ones in each run."""
    found = losses(run_once, sent, loss=0.1)
    assert len(found) == pytest.approx(2000, abs=200)
    assert losses(run_once, sent, loss=0.1) == found


def test_losses_come_in_bursts(run_once: Run, sent: Sent) -> None:
    """As long as the model's, on average."""
    found = losses(run_once, sent, loss=0.1, burst=3)
    row = [payload in found for payload in numbers(20_000)]
    bursts = sum(not before and lost for before, lost in zip([False, *row], row, strict=False))
    assert len(found) == pytest.approx(2000, abs=400)
    assert len(found) / bursts == pytest.approx(3, rel=0.1)


def test_each_direction_and_each_association_has_its_own_dice(run_once: Run, sent: Sent) -> None:
    """The losses of one do not depend on what the other sends."""

    async def lost(place: Faulty, other: int) -> list[bytes]:
        sent.clear()
        for payload in numbers(300):
            for _ in range(other):
                place.carry("down", ONE, b"other")
            place.carry("up", ONE, payload)
        return [payload for payload in payloads(sent) if payload != b"other"]

    async def main() -> None:
        found = []
        for other in (0, 3):
            async with Faulty({"seed": 7, "fault": {"loss": 0.5}}) as place:
                for _ in range(2):
                    async with association(place.address) as client:
                        found.append(await lost(place, other))
                        await place.end(client)
        assert found[0] == found[2] != found[1] == found[3]

    run_once(main)


# --- time ---


def test_latency_and_its_order(run_once: Run, sent: Sent) -> None:
    """Each is so late; with jitter none overtakes another."""

    async def main() -> None:
        async with faulty({"fault": {"latency": "1s"}}) as place:
            place.carry("up", ONE, b"1")
            place.clock.now += 0.5
            place.carry("down", ONE, b"2")
            assert sent == []
            place.later(0.5)
            assert sent == [("up", ONE, b"1")]
            place.later(0.5)
            assert sent == [("up", ONE, b"1"), ("down", ONE, b"2")]
            assert (place.faults.held, place.faults.waiting, place.faults.timer) == (0, [], None)
        sent.clear()
        async with faulty({"fault": {"latency": "100ms", "jitter": "100ms"}}) as place:
            for payload in numbers(500):
                place.carry("up", ONE, payload)
                place.later(0.001)
            for _ in range(20):
                place.later(1)
            assert payloads(sent) == numbers(500)

    run_once(main)


def test_what_is_due_goes_before_what_comes(run_once: Run, sent: Sent) -> None:
    """A timer that is late does not change the order, nor does an entry that acts no more."""

    async def main() -> None:
        fault = {"latency": "1s", "every": "10 s good, 1 s gone"}
        async with faulty({"fault": fault}) as place:
            place.molding.distortion.entries[next(iter(place.molding.distortion.entries))].began = place.clock()
            place.clock.now += 10.5
            place.carry("up", ONE, b"late")
            place.clock.now += 0.6
            place.carry("up", ONE, b"behind it")
            place.clock.now += 0.4
            place.carry("up", ONE, b"third")
            assert sent == []
            place.later(0)
            assert payloads(sent) == [b"late", b"behind it", b"third"]
            place.carry("up", ONE, b"at once")
            assert payloads(sent)[3:] == [b"at once"]

    run_once(main)


def test_few_go_on_in_one_turn(run_once: Run, sent: Sent) -> None:
    """The others in the next ones, by themselves."""

    async def main() -> None:
        async with faulty({"fault": {"latency": "1s"}}) as place:
            for payload in numbers(1000):
                place.carry("up", ONE, payload)
            place.later(1)
            assert len(sent) == faulty_association.AT_ONCE
            await until(lambda: len(sent) == 1000)
            assert payloads(sent) == numbers(1000)

    run_once(main)


@pytest.mark.parametrize("bound", ["count", "octets", "all"])
def test_what_waits_is_bounded(run_once: Run, sent: Sent, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """In number, in octets of an association, and by what all in a process hold: the rest is lost as ``waiting``."""
    size = 1000 if bound == "count" else 60_000
    if bound == "count":
        monkeypatch.setattr(faulty_association, "MAX_WAITING", 2)
    fits = {"count": 2, "octets": HELD_BY_ONE // (size + COST), "all": 0 if size + COST > LEAST else 1}[bound]

    async def main() -> None:
        async with faulty({"fault": {"latency": "10s"}}) as place:
            memory = place.molding.datagrams.memory = Memory(0 if bound == "all" else 1 << 30)
            for _ in range(fits + 3):
                place.carry("up", ONE, bytes(size))
            assert (place.drops, memory.held) == ({"waiting": 3}, fits * (size + COST))
            place.later(10)
            await until(lambda: len(sent) == fits)
            assert memory.held == 0

    run_once(main)


def test_what_waits_at_the_end_is_dropped(run_once: Run, sent: Sent) -> None:
    """Counted, also what was held back to be overtaken, and the memory is given back."""

    async def main() -> None:
        async with Faulty({"fault": {"latency": "10s", "reorder": 0.5}, "seed": 1}) as place:
            memory = place.molding.datagrams.memory
            before = memory.held
            async with association(place.address) as client:
                for payload in numbers(100):
                    place.carry("up", ONE, payload)
                assert memory.held == before + 100 * (6 + COST)
                session = await place.end(client)
            assert (session.drops, memory.held, sent) == ({"waiting": 100}, before, [])
            assert not place.molding.datagrams.faulty

    run_once(main)


def test_bandwidth(run_once: Run, sent: Sent) -> None:
    """One after the other, and what finds no room in the queue is lost."""

    async def main() -> None:
        async with faulty({"fault": {"bandwidth": 1000, "queue": 3000}}) as place:
            for payload in numbers(5):
                place.carry("up", ONE, payload.ljust(1000))
            assert place.drops == {"fault": 2}
            for count in (0, 1, 2, 3):
                assert len(sent) == count
                place.later(1)

    run_once(main)


@pytest.mark.parametrize("shared", [False, True])
def test_bandwidth_that_associations_share(run_once: Run, sent: Sent, shared: bool) -> None:
    """Or not."""

    async def main() -> None:
        async with Faulty({"fault": {"bandwidth": 1000, "queue": 9000, "shared": shared}}) as place:
            place.stop_the_clock()
            async with association(place.address), association(place.address):
                for one in place.molding.datagrams.faulty.values():
                    one.carry("up", ONE, bytes(1000))
                place.clock.now += 1
                for one in place.molding.datagrams.faulty.values():
                    one.go()
                assert len(sent) == (1 if shared else 2)

    run_once(main)


# --- order ---


def test_the_share_that_is_overtaken(run_once: Run, sent: Sent) -> None:
    """Each of them by the next one that is not, and none of the others."""

    async def main() -> None:
        async with faulty({"seed": 3, "fault": {"reorder": 0.2}}) as place:
            for payload in numbers(2000):
                place.carry("up", ONE, payload)
                await turns(1)
            place.later(2 * HELD_BACK)
            await until(lambda: len(sent) == 2000)
            row = [int(payload) for payload in payloads(sent)]
            assert sorted(row) == list(range(2000))
            overtaken = sum(number < max(row[: at + 1]) for at, number in enumerate(row))
            assert overtaken == pytest.approx(400, abs=40)
            assert place.faults.held == 0

    run_once(main)


def test_one_that_nothing_overtakes_goes_on_by_itself(run_once: Run, sent: Sent) -> None:
    """After a while. Those of another destination or the other direction do not overtake it."""

    async def main() -> None:
        async with faulty({"ports": [5000], "fault": {"reorder": 1.0}}) as place:
            other = parse_address("198.51.100.1:53")
            place.carry("up", ONE, b"1")
            place.carry("up", ONE, b"2")
            place.carry("up", other, b"other")
            assert payloads(sent) == [b"other"]
            place.later(HELD_BACK)
            assert payloads(sent) == [b"other", b"1", b"2"]

    run_once(main)


def test_what_was_to_be_overtaken_is_forgotten_when_it_has_gone(run_once: Run, sent: Sent) -> None:
    """Where nothing ever overtakes it, the memory does not grow."""

    async def main() -> None:
        async with faulty({"fault": {"reorder": 1.0}}) as place:
            for payload in numbers(500):
                place.carry("up", ONE, payload)
                place.later(HELD_BACK)
            assert payloads(sent) == numbers(500)
            assert len(place.faults.paths["up", ONE].held_back) <= 1

    run_once(main)


def test_overtaken_ones_keep_their_latency(run_once: Run, sent: Sent) -> None:
    """They follow the one that has overtaken them, when that goes on."""

    async def main() -> None:
        async with faulty({"seed": 0, "fault": {"latency": "1s", "reorder": 0.5}}) as place:
            for payload in numbers(50):
                place.carry("up", ONE, payload)
                place.clock.now += 0.001
            place.later(0.9)
            assert sent == []
            place.later(0.2)
            await until(lambda: len(sent) >= 49)
            assert sorted(payloads(sent)) != payloads(sent)

    run_once(main)


# --- entries and destinations ---


def test_entries_for_two_destinations(run_once: Run, sent: Sent) -> None:
    """Each acts on its own, in both directions; a third destination is as without faults."""
    said = (
        {"hosts": [str(ONE.host)], "fault": {"blackhole": True, "direction": "down"}},
        {"hosts": [str(TWO.host)], "fault": {"latency": "1s"}},
    )
    three = parse_address("198.51.100.3:5000")

    async def main() -> None:
        async with faulty(*said) as place:
            directions: tuple[Direction, Direction] = ("up", "down")
            for direction in directions:
                for address in (ONE, TWO, three):
                    place.carry(direction, address, b"x")
            assert sent == [("up", ONE, b"x"), ("up", three, b"x"), ("down", three, b"x")]
            place.later(1)
            assert sent[3:] == [("up", TWO, b"x"), ("down", TWO, b"x")]
            assert place.drops == {"fault": 1}

    run_once(main)


def test_all_entries_that_match_act_in_their_order(run_once: Run, sent: Sent) -> None:
    """What one makes late comes late to the next one."""

    async def main() -> None:
        async with faulty({"fault": {"latency": "1s"}}, {"fault": {"mtu": 3}}, {"fault": {"bandwidth": 1}}) as place:
            place.carry("up", ONE, b"long")
            place.carry("up", ONE, b"x")
            place.carry("up", ONE, b"yz")
            for seconds, count in ((1.9, 0), (0.1, 1), (1.9, 1), (0.1, 2)):
                place.later(seconds)
                assert len(sent) == count
            assert place.drops == {"fault": 1}

    run_once(main)


def test_one_that_is_late_does_not_hold_the_line_of_others(run_once: Run, sent: Sent) -> None:
    """Bandwidth behind latency is taken when a datagram comes there, and not while it is still on its way."""

    async def main() -> None:
        far, narrow = {"latency": "1s"}, {"bandwidth": 1000, "queue": 150}
        async with faulty({"hosts": ["198.51.100.1"], "fault": far}, {"fault": narrow}) as place:
            place.carry("up", ONE, bytes(100))
            for _ in range(2):
                place.carry("up", TWO, bytes(100))
                place.later(0.1)
            assert [address for _, address, _ in sent] == [TWO, TWO]
            place.later(0.8)
            assert len(sent) == 2
            place.later(0.1)
            assert [address for _, address, _ in sent] == [TWO, TWO, ONE]
            assert (place.drops, place.faults.held) == ({}, 0)

    run_once(main)


def test_jitter_takes_no_room_of_a_queue_behind_it(run_once: Run, sent: Sent) -> None:
    """Nothing is lost where less comes than the line carries; the order stays."""

    async def main() -> None:
        shaky, narrow = {"latency": "1s", "jitter": "1s"}, {"bandwidth": 10_000, "queue": 2000}
        async with faulty({"fault": shaky, "seed": 3}, {"fault": narrow}, {"fault": {"latency": "1ms"}}) as place:
            for payload in numbers(300):
                place.carry("up", ONE, payload)
                place.later(0.02)
            for _ in range(30):
                place.later(0.1)
            assert payloads(sent) == numbers(300)
            assert (place.drops, place.faults.held, place.faults.waiting) == ({}, 0, [])

    run_once(main)


def test_a_limit_waits_for_the_entries_behind_it(run_once: Run, sent: Sent) -> None:
    """Its last datagram passes all of them before the end."""

    async def main() -> None:
        limit, late = {"limit": 1, "latency": "20ms"}, {"latency": "20ms"}
        async with (
            Faulty({"fault": limit}, {"fault": late}, {"fault": late}) as place,
            association(place.address) as client,
        ):
            for payload in (b"x", b"y"):
                place.carry("up", ONE, payload)
            assert await client.reader.read() == b""
            session = await place.ended.get()
            assert (payloads(sent), session.close, session.drops) == ([b"x"], "fault", {"fault": 1})

    run_once(main)


def test_copies_pass_what_is_behind(run_once: Run, sent: Sent) -> None:
    """Both of them: late, in a line, and copied once more."""

    async def main() -> None:
        twice = {"duplicate": 1}
        said = [twice, {"latency": "1s"}, twice | {"bandwidth": 1000}, {"latency": "1s"}]
        async with faulty(*({"fault": fault} for fault in said)) as place:
            place.carry("up", ONE, bytes(100))
            place.later(1)
            for seconds, count in ((1.1, 1), (0.1, 2), (0.1, 3), (0.1, 4)):
                place.later(seconds)
                assert len(sent) == count
            assert (place.faults.held, place.faults.waiting) == (0, [])

    run_once(main)


def test_a_copy_comes_behind_its_datagram(run_once: Run, sent: Sent) -> None:
    """It does not make it late, in a line that both pass."""

    async def main() -> None:
        async with faulty({"fault": {"duplicate": 1, "bandwidth": 100}}) as place:
            place.carry("up", ONE, bytes(10))
            for count in (1, 2):
                place.later(0.1)
                assert len(sent) == count

    run_once(main)


def test_copies_of_copies_have_a_bound(run_once: Run, sent: Sent) -> None:
    """Thirty entries that duplicate all would make a billion."""

    async def main() -> None:
        async with faulty(*({"fault": {"duplicate": 1}} for _ in range(30))) as place:
            place.carry("up", ONE, b"x")
            assert MOST_COPIES <= len(sent) <= 2 * MOST_COPIES

    run_once(main)


def test_none_overtakes_one_that_waits_for_an_entry_that_has_ended(run_once: Run, sent: Sent) -> None:
    """A schedule ends while a datagram is on its way there: those that come then are right behind it."""

    async def main() -> None:
        first = {"latency": "1s", "every": "10 s good, 1 s gone"}
        async with faulty({"fault": first}, {"fault": {"mtu": 1000}}) as place:
            next(iter(place.molding.distortion.entries.values())).began = place.clock()
            place.later(10.5)
            place.carry("up", ONE, b"1")
            place.later(0.6)
            place.carry("up", ONE, b"2")
            place.later(0.3)
            assert sent == []
            place.later(0.1)
            assert payloads(sent) == [b"1", b"2"]

    run_once(main)


def test_what_waits_passes_the_entries_that_stay(run_once: Run, sent: Sent) -> None:
    """The one in front of them is taken away: what it has held comes to the others now, in its order."""

    async def main() -> None:
        late, lossy, last = entries({"fault": {"latency": "9s"}}, {"fault": {"mtu": 3}}, {"fault": {"latency": "1s"}})
        async with faulty() as place:
            place.take(late, lossy, last)
            await turns()
            for payload in (b"1", b"long", b"2"):
                place.carry("up", ONE, payload)
                place.later(0.1)
            place.take(lossy, last)
            await turns()
            place.carry("up", ONE, b"3")
            assert (sent, place.drops) == ([], {"fault": 1})
            place.later(0.9)
            assert sent == []
            place.later(0.1)
            assert payloads(sent) == [b"1", b"2", b"3"]
            assert (place.faults.held, place.faults.waiting) == (0, [])

    run_once(main)


def test_what_comes_down_is_matched_by_the_name_that_was_asked_for(run_once: Run, sent: Sent) -> None:
    """As the client has named it."""

    async def main() -> None:
        async with faulty({"hosts": ["far.test"], "fault": {"blackhole": True}}) as place:
            place.carry("down", ONE, b"1")
            place.carry("up", Address("far.test", 5000), b"3")
            assert place.one.inspection is not None
            place.one.inspection.named[TWO] = Address("far.test", 5000)
            place.carry("down", TWO, b"2")
            assert payloads(sent) == [b"1"]

    run_once(main)


def test_an_entry_with_addresses_acts_on_names(run_once: Run, sent: Sent) -> None:
    """From when their address is known on, in both directions; what takes time to resolve takes it once."""
    name, address = Address("far.test", 5000), ONE
    said = {"hosts": ["198.51.100.0/24"], "fault": {"blackhole": True}}, {"fault": {"resolve": "2s"}}

    async def main() -> None:
        async with faulty(*said) as place:
            place.carry("up", name, b"1")
            place.later(2)
            assert payloads(sent) == [b"1"]
            place.one.found(name, address)
            place.carry("up", name, b"2")
            place.carry("down", address, b"3")
            assert place.drops == {"fault": 2}
            place.one.found(Address("other.test", 5000), TWO)
            place.take(*entries(said[1]))
            await turns()
            place.carry("up", name, b"4")
            place.later(2)
            place.carry("up", name, b"5")
            assert payloads(sent) == [b"1", b"4", b"5"]

    run_once(main)


def test_destinations_are_remembered_within_a_bound(run_once: Run, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten, and found again."""
    monkeypatch.setattr(faulty_association, "MAX_PATHS", 2)

    async def main() -> None:
        async with faulty({"fault": {"loss": 0.001}}) as place:
            for number in (1, 2, 3, 1):
                place.carry("up", parse_address(f"198.51.100.{number}:1"), b"x")
                assert len(place.faults.paths) <= 2
            assert len(place.faults.acting) == 1

    run_once(main)


def test_an_entry_is_drawn_once_for_an_association(run_once: Run, sent: Sent) -> None:
    """Not for each destination; with a seed the same associations in each run."""

    async def chosen() -> list[bool]:
        found = []
        async with Faulty({"probability": 0.5, "seed": 5, "fault": {"blackhole": True}}) as place:
            for _ in range(20):
                async with association(place.address) as client:
                    sent.clear()
                    for number in range(5):
                        place.carry("up", parse_address(f"198.51.100.{number}:1"), b"x")
                    assert len(sent) in (0, 5)
                    found.append(not sent)
                    (entry,) = place.molding.distortion.entries.values()
                    assert entry.active == (not sent)
                    session = await place.end(client)
                    assert bool(session.distorted) is not bool(sent)
            assert (entry.matched, entry.chosen, entry.active) == (20, sum(found), 0)
        return found

    async def main() -> None:
        first = await chosen()
        assert 0 < sum(first) < 20
        assert await chosen() == first

    run_once(main)


def test_a_schedule_counts_for_each_datagram(run_once: Run, sent: Sent) -> None:
    """Good for a while, then gone, and so on."""

    async def main() -> None:
        async with faulty({"fault": {"blackhole": True, "every": "3 s good, 2 s gone"}}) as place:
            (entry,) = place.molding.distortion.entries.values()
            entry.began = place.clock()
            for number in range(10):
                place.carry("up", ONE, b"%d" % number)
                place.clock.now += 1
            assert payloads(sent) == [b"0", b"1", b"2", b"5", b"6", b"7"]

    run_once(main)


# --- names ---


def test_names_that_have_no_address_or_take_long(run_once: Run, sent: Sent) -> None:
    """Datagrams to names are lost, or the first ones wait; those to addresses, also as text, do not."""
    name, number = Address("far.test", 5000), Address("198.51.100.7", 5000)

    async def main() -> None:
        async with faulty({"fault": {"resolve": 4}}) as place:
            for address in (name, number, ONE):
                place.carry("up", address, b"x")
            assert [address for _, address, _ in sent] == [number, ONE]
            assert place.drops == {"fault": 1}
        sent.clear()
        async with faulty({"fault": {"resolve": "2s"}}) as place:
            place.carry("up", name, b"1")
            place.clock.now += 1.5
            place.carry("up", name, b"2")
            place.carry("down", number, b"0")
            place.later(0.5)
            place.carry("up", name, b"3")
            assert payloads(sent) == [b"0", b"1", b"2", b"3"]

    run_once(main)


def test_datagrams_to_what_is_refused_are_lost(run_once: Run, sent: Sent) -> None:
    """An association is refused only if everything is."""

    async def main() -> None:
        async with faulty({"hosts": [str(ONE.host)], "fault": {"refuse": 5}}) as place:
            place.carry("up", ONE, b"1")
            place.carry("up", TWO, b"2")
            assert payloads(sent) == [b"2"]

    run_once(main)


# --- ends ---


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("latency", [None, "20ms"])
def test_a_limit_ends_the_association(run_once: Run, sent: Sent, then: str, latency: str | None) -> None:
    """Behind the last datagram that passes, however late that is."""
    fault = {"limit": 10, "then": then, "direction": "up"} | ({"latency": latency} if latency else {})

    async def main() -> None:
        async with Faulty({"name": "short", "fault": fault}) as place, association(place.address) as client:
            place.carry("down", ONE, bytes(50))
            for _ in range(4):
                place.carry("up", ONE, b"12345")
            with pytest.raises(ConnectionResetError) if then == "reset" else contextlib.nullcontext():
                assert await client.reader.read() == b""
            session = await place.ended.get()
            assert (session.close, session.error) == ("fault", "short: the limit of 10 octets")
            assert payloads(sent) == [bytes(50), b"12345", b"12345"]
            assert session.drops == {"fault": 2}

    run_once(main)


def test_another_limit_while_the_last_datagram_is_late(run_once: Run, sent: Sent) -> None:
    """It ends the association, although the one before did not come to it."""

    async def main() -> None:
        late = {"latency": "1h", "direction": "up"}
        async with Faulty({"name": "short", "fault": {"limit": 5, **late}}) as place, association(place.address):
            place.carry("up", ONE, b"12345")
            place.take(*entries({"name": "short", "fault": {"limit": 7, "direction": "up"}}))
            await turns()
            assert payloads(sent) == [b"12345"]
            assert not place.one.closed
            place.carry("up", ONE, b"1234567")
            session = await place.ended.get()
            assert (session.close, session.error) == ("fault", "short: the limit of 7 octets")

    run_once(main)


@pytest.mark.parametrize("stays", [True, False])
def test_a_name_waits_no_longer_than_its_fault(run_once: Run, sent: Sent, stays: bool) -> None:
    """One that is changed or taken away delays neither what waits nor what comes then."""
    name = Address("far.test", 5000)

    async def main() -> None:
        said: dict[str, Any] = {"name": "slow", "fault": {"resolve": "1h"}}
        late = {"name": "beside", "ports": [9], "fault": {"latency": "1s"}}
        async with faulty(said, late) as place:
            place.carry("up", name, b"1")
            assert sent == []
            place.take(*entries(*([said | {"fault": {"loss": 1e-9}}] if stays else []), late))
            await turns()
            assert payloads(sent) == [b"1"]
            place.carry("up", name, b"2")
            assert payloads(sent) == [b"1", b"2"]

    run_once(main)


@pytest.mark.parametrize(("key", "what"), [("reset_after", "reset"), ("close_after", "closed")])
def test_an_end_after_a_time(run_once: Run, key: str, what: str) -> None:
    """From the beginning if it is for all destinations, whether there are datagrams or not."""

    async def main() -> None:
        async with Faulty({"fault": {key: "10ms"}}) as place, association(place.address) as client:
            with pytest.raises(ConnectionResetError) if what == "reset" else contextlib.nullcontext():
                assert await client.reader.read() == b""
            session = await place.ended.get()
            assert (session.close, session.error) == ("fault", f"distort[0]: {what} after 0.01 s")

    run_once(main)


def test_an_end_after_a_time_of_one_destination(run_once: Run, sent: Sent) -> None:
    """From its first datagram; not while the schedule says that all is good, and not if the entry is gone."""
    said = {"hosts": [str(ONE.host)], "fault": {"close_after": "10ms"}}

    async def main() -> None:
        async with Faulty(said) as place, association(place.address):
            place.carry("up", TWO, b"x")
            (entry,) = place.molding.distortion.entries.values()
            assert entry not in place.faults.acting
            place.carry("up", ONE, b"x")
            assert (await place.ended.get()).close == "fault"
        good = {**said, "fault": {"close_after": "1ms", "every": "1h good, 1s gone"}}
        async with Faulty(good) as place, association(place.address):
            place.carry("up", ONE, b"x")
            (acting,) = place.faults.acting.values()
            assert acting is not None
            assert acting.counting is not None
            assert acting.counting.when() - place.molding.datagrams.loop.time() > 3500
        async with Faulty(said) as place, association(place.address):
            place.carry("up", ONE, b"x")
            (acting,) = place.faults.acting.values()
            assert acting is not None
            place.take()
            assert acting.counting is not None
            assert acting.counting.cancelled()

    run_once(main)


def test_an_end_after_a_time_that_its_schedule_allows(run_once: Run) -> None:
    """Counted from when it begins to act, as on a connection; not if it acts for a shorter time. Its timer comes by
    itself when the schedule changes."""

    async def main() -> None:
        async with faulty({"fault": {"close_after": "3s", "every": "3 s good, 2 s gone"}}) as place:
            (entry,) = place.molding.distortion.entries.values()
            (acting,) = place.faults.acting.values()
            assert acting is not None
            entry.began = place.clock()
            for _ in range(20):
                place.faults.count(acting)
                place.clock.now += 0.5
            assert not place.one.closed
        loop = asyncio.get_running_loop()
        said = {"fault": {"close_after": "40ms", "every": "40ms good, 60s gone"}}
        async with Faulty(said) as place, association(place.address) as client:
            (entry,) = place.molding.distortion.entries.values()
            assert await client.reader.read() == b""
            assert loop.time() - entry.began >= 0.08 - 0.002

    run_once(main)


def test_a_stall_that_its_schedule_begins_anew(run_once: Run, sent: Sent) -> None:
    """Counted from when it begins to act, each time."""

    async def main() -> None:
        async with faulty({"fault": {"stall": "2s", "every": "3 s good, 4 s gone"}}) as place:
            (entry,) = place.molding.distortion.entries.values()
            (acting,) = place.faults.acting.values()
            assert acting is not None
            entry.began = place.clock()
            for number in range(14):
                place.faults.count(acting)
                place.carry("up", ONE, b"%d" % number)
                place.clock.now += 1
            assert payloads(sent) == [b"%d" % number for number in range(14) if number % 7 < 5]

    run_once(main)


def test_what_comes_after_the_end(run_once: Run, sent: Sent) -> None:
    """Is not looked at."""

    async def main() -> None:
        async with faulty({"fault": {"latency": "1s"}}) as place:
            faults = place.faults
            place.one.close("client")
            faults.carry("up", ONE, b"x")
            assert (faults.waiting, faults.session.drops) == ([], {})

    run_once(main)


# --- pairs ---


class Timeless:
    """A loop whose clock goes where a test puts it, the clock of associations as well."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self.numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Any, *arguments: Any) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(self.now + seconds, callback, arguments, self)  # type: ignore[arg-type]
        heapq.heappush(self.timers, (self.now + seconds, next(self.numbers), timer))
        return timer

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, timer: object) -> None:
        """Asked by each that is cancelled."""

    def advance(self, seconds: float) -> None:
        """Time passes."""
        until = self.now + seconds
        while self.timers and self.timers[0][0] <= until:
            when, _, timer = heapq.heappop(self.timers)
            self.now = max(self.now, when)
            if not timer.cancelled():
                timer._callback(*timer._args)  # type: ignore[attr-defined]
        self.now = until


class Virtual:
    """An association that is not there: what it would send is in ``sent``. It owns its faults, too."""

    def __init__(self, memory: Memory) -> None:
        self.loop = Timeless()
        self.time = self.clock = self.loop.time
        self.memory = memory
        self.distortion: Any = self
        self.entries: dict[Distort, Entry] = {}
        self.distorts = Distorts()
        self.faulty: dict[Session, FaultyAssociation] = {}
        self.session = Session(1, "socks5://127.0.0.1:0", parse_address("127.0.0.1:1"), 0.0)
        self.session.command, self.session.drops = "associate", {}
        self.sent: list[bytes] = []
        self.ended = ""
        self.closed = False
        self.inspection = self.router = self
        self.inspect = self.watch = None
        self.named: dict[Address, Address] = {}
        self.routes: dict[bytes, object] = {}
        self.faults = FaultyAssociation(self, self.session)  # type: ignore[arg-type]
        self.faults.begin(self)  # type: ignore[arg-type]

    def find_named(self, most: int) -> dict[Address, Address]:
        return {}

    def look_into(self, inspect: object, faults: object = None) -> None:
        """Everything passes the faults anyway."""

    def send(self, direction: str, address: Address, payload: bytes) -> None:
        self.sent.append(payload)

    def end(self, reason: str, error: str, reset: bool) -> None:
        self.ended, self.closed = reason, True
        self.faults.over()

    def take(self, *found: Distort) -> None:
        """Act by these entries."""
        self.distorts = Distorts(found)
        self.entries = {one: self.entries.get(one) or Entry(one, self.loop.now, self.loop.time) for one in found}
        self.faults.renew()


LINES = {
    "latency": Line(latency=0.3),
    "jitter": Line(latency=0.05, jitter=0.05, distribution="normal"),
    "bandwidth": Line(bandwidth=1e5, queue=1 << 30),
    "duplicate": Line(duplicate=0.5),
    "reorder": Line(reorder=0.4),
    "always reorder": Line(reorder=1.0, latency=0.01),
    "queue": Line(bandwidth=1e4),
    "loss": Line(loss=0.3),
    "bursts": Line(loss=0.3, burst=3),
    "mtu": Line(mtu=500),
    "corrupt": Line(corrupt=0.01),
    "limit": Line(limit=20_000, latency=0.1),
    "stall": Line(stall=0.5),
    "blackhole": Line(blackhole=True),
}
LOSSLESS = ("latency", "jitter", "bandwidth", "duplicate", "reorder", "always reorder", "corrupt")


@given(
    st.lists(st.sampled_from(sorted(LINES)), min_size=2, max_size=2),
    st.integers(0, 1 << 32),
    st.sampled_from([1 << 28, 3000]),
)
def test_any_pair_keeps_order_and_content(names: list[str], seed: int, most: int) -> None:
    """Put on at the beginning or later, taken off while datagrams are under way: each arrives as it was or is counted,
    twice only where it is duplicated, in order unless some are to be overtaken; the memory is bounded, and free."""
    dice, memory = random.Random(seed), Memory(most)
    one = Virtual(memory)
    made = [Distort(RULE, name, number, seed=seed, fault=Fault(up=LINES[name])) for number, name in enumerate(names)]
    waiting, on, count = list(made), list[Distort](), 0
    for _ in range(dice.randrange(5, 60)):
        match dice.randrange(5):
            case 0 if waiting:
                on.append(waiting.pop(0))
                one.take(*on)
            case 1 if on:
                on.pop(dice.randrange(len(on)))
                one.take(*on)
            case 2:
                one.loop.advance(dice.choice([0.0001, 0.02, 0.2]))
            case _:
                for _ in range(dice.choice([1, 20])):
                    one.faults.carry("up", ONE, b"%06d" % count + bytes(dice.choice([0, 100, 1200])))
                    count += not one.closed
        assert memory.held == one.faults.held <= min(most, HELD_BY_ONE) + LEAST
        if one.closed:
            break
    for _ in range(300):
        one.loop.advance(0.5)
    assert memory.held == one.faults.held == 0
    assert one.ended == ("fault" if one.closed else "")
    assert one.closed <= ("limit" in names)
    drops = one.session.drops
    assert drops is not None
    lost = sum(drops.values())
    if "corrupt" not in names:
        found = [int(payload[:6]) for payload in one.sent]
        assert set(found) <= set(range(count))
        if "reorder" not in names and "always reorder" not in names:
            assert found == sorted(found)
        if "duplicate" not in names:
            assert len(found) == len(set(found)) == count - lost
        assert max(map(found.count, found), default=0) <= 2 ** names.count("duplicate")
    if set(names) <= {*LOSSLESS}:
        assert set(drops) <= {"waiting"}
        assert most < 1 << 28 or len(one.sent) >= count
    one.faults.over()
    assert [entry.active for entry in one.entries.values() if entry.active] == []
