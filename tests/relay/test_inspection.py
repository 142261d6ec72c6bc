"""Associations whose datagrams somebody looks at: what is seen, sent in their place, held up, and given back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from conftest import Run
from datagrams import (
    Client,
    Destination,
    Front,
    Inspector,
    Look,
    Place,
    association,
    destination,
    fake_proxy,
    limited,
    pass_on,
    unwrap,
    used,
)
from doubles import Clock
from sockets import turns, until
from tabi.config import Udp, make_config
from tabi.policy.limits import DOWN, UP
from tabi.relay import inspection, udp_context
from tabi.relay.datagram import Association
from tabi.relay.datagram_inspector import Datagram, Direction, Emit
from tabi.relay.inspection import DELAYED_COST
from tabi.relay.limited_association import LimitedAssociation
from tabi.session import Session
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import LAST, encode_header


def only_up(look: Look) -> Look:
    """Look at what goes up, and pass on what comes down."""
    return lambda datagram, emit: (look if datagram.direction == "up" else pass_on)(datagram, emit)


def only_down(look: Look) -> Look:
    """Look at what comes down, and pass on what goes up."""
    return lambda datagram, emit: (look if datagram.direction == "down" else pass_on)(datagram, emit)


@contextlib.asynccontextmanager
async def inspected(look: Look, place: Place | None = None) -> AsyncIterator[tuple[Place, Client, Inspector]]:
    """An association at a server whose datagrams are looked at."""
    inspector = Inspector(look)
    async with place or Place() as found:
        found.server.parts.associations.inspector = inspector
        async with association(found.address) as client:
            assert found.one.inspection is not None
            yield found, client, inspector


def held(place: Place) -> int:
    """Octets that wait in all associations of a server."""
    return place.server.parts.associations.context.memory.held


def nobody() -> Any:
    """A destination that answers nothing."""
    return destination(answer=lambda data, sender: ())


def received(echo: Destination) -> list[bytes]:
    """What a destination has got."""
    return [data for data, _ in echo.received]


def has(sink: Destination, count: int) -> bool:
    """Whether a destination has got so many."""
    return len(sink.received) == count


# --- what is seen, and what is sent in its place ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_payloads_are_seen_and_changed_both_ways(run: Run, kernel: str, host: str) -> None:
    """Of every size, by themselves and many at once, in their order; counted is what was sent."""

    def look(datagram: Datagram, emit: Emit) -> None:
        emit(b"<" + datagram.payload if datagram.direction == "up" else datagram.payload + b">")

    async def main() -> None:
        async with inspected(look) as (place, client, inspector):
            with destination(host) as echo:
                for size in (0, 1, 1472, 9000, 60000):
                    payload = b"x" * size
                    assert unwrap(await client.ask(echo.header + payload)) == (echo.address, b"<" + payload + b">")
                many = [b"%d" % number * 10 for number in range(100, 230)]
                for payload in many:
                    client.send(echo.header + payload)
                assert [unwrap(await client.receive())[1] for _ in many] == [b"<" + payload + b">" for payload in many]
                up = sum(len(data) for data in received(echo))
            session = await place.end(client)
            assert (session.datagrams_up, session.datagrams_down, session.drops) == (135, 135, {})
            assert (session.up, session.down) == (up, up + 135)
            assert len(inspector.seen) == 270

    run(main)


def test_what_an_inspector_is_shown(run: Run) -> None:
    """The destination as the client has named it, the sender by its address, and the session with its live counts."""
    counts: list[tuple[str, int, int]] = []

    def look(datagram: Datagram, emit: Emit) -> None:
        session = datagram.session
        counts.append((datagram.direction, session.datagrams_up, session.datagrams_down))
        emit(datagram.payload)

    async def main() -> None:
        async with inspected(look, Place(names={"here.test": ["127.0.0.1"]})) as (place, client, inspector):
            with destination() as echo:
                name = Address("here.test", echo.address.port)
                for header in (encode_header(name), echo.header):
                    assert unwrap(await client.ask(header + b"x")) == (echo.address, b"x")
                shown = [(datagram.direction, datagram.address) for datagram in inspector.seen]
                assert shown == [("up", name), ("down", echo.address), ("up", echo.address), ("down", echo.address)]
                assert {datagram.session for datagram in inspector.seen} == {place.one.session}
                assert [datagram.named for datagram in inspector.seen] == [None, name, None, name]
        assert counts == [("up", 0, 0), ("down", 1, 0), ("up", 1, 1), ("down", 2, 1)]

    run(main)


def test_names_of_senders(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that was asked for last, of a bounded number of senders; none where the client gave an address, or a
    proxy has resolved the name."""
    monkeypatch.setattr(inspection, "MAX_NAMED", 2)
    names = {f"{letter}.test": ["127.0.0.1"] for letter in "abc"}

    async def main() -> None:
        async with (
            inspected(pass_on, Place(names=names)) as (place, client, inspector),
            contextlib.AsyncExitStack() as at,
        ):
            first, second, third = (at.enter_context(destination()) for _ in range(3))
            for host, where in (
                (first.address.host, first),
                ("a.test", first),
                ("b.test", first),
                ("c.test", second),
                ("c.test", third),
                (first.address.host, first),
            ):
                await client.ask(encode_header(Address(host, where.address.port)) + b"x")
            named = [one.named.host if one.named else None for one in inspector.seen if one.direction == "down"]
            assert named == [None, "a.test", "b.test", "c.test", "c.test", None]
            assert place.one.inspection is not None
            assert len(place.one.inspection.named) == 2
        there = Place(names=names)
        async with there, inspected(pass_on, Front({"url": there.server.url})) as (place, client, inspector):
            with destination() as echo:
                await client.ask(encode_header(Address("a.test", echo.address.port)) + b"x")
            assert [one.named for one in inspector.seen] == [None, None]
            assert place.one.inspection is not None
            assert not place.one.inspection.named

    run(main)


def test_fragments_are_seen_as_one(run: Run) -> None:
    """Put together; what is malformed is dropped before anybody sees it."""

    async def main() -> None:
        async with inspected(pass_on, Place(Udp(fragments="reassemble"))) as (place, client, inspector):
            with destination() as echo:
                for frag, part in ((1, b"to"), (2 | LAST, b"gether")):
                    client.send(encode_header(echo.address, frag) + part)
                assert unwrap(await client.receive()) == (echo.address, b"together")
                client.send(b"rubbish that is no datagram")
                await until(lambda: place.drops == {"malformed": 1})
            assert inspector.payloads == [("up", b"together"), ("down", b"together")]

    run(main)


def test_none_or_several_are_sent_in_the_place_of_one(run: Run) -> None:
    """In the order in which they were emitted, as any octets."""

    def look(datagram: Datagram, emit: Emit) -> None:
        for payload in (bytearray(b"1"), memoryview(b"2"), datagram.payload) if datagram.payload != b"none" else ():
            emit(payload)

    async def main() -> None:
        async with inspected(only_up(look)) as (place, client, _):
            with nobody() as sink:
                for payload in (b"none", b"3"):
                    client.send(sink.header + payload)
                await until(lambda: len(sink.received) == 3)
                assert received(sink) == [b"1", b"2", b"3"]
            session = await place.end(client)
            assert (session.datagrams_up, session.up, session.drops) == (3, 3, {})

    run(main)


def test_another_destination_and_another_sender(run: Run) -> None:
    """What goes up is sent there, and answers are let in; what comes down bears the sender that was given."""

    async def main() -> None:
        with destination() as echo, nobody() as sink:
            port = echo.address.port

            def look(datagram: Datagram, emit: Emit) -> None:
                emit(datagram.payload, ("127.0.0.1", port) if datagram.direction == "up" else sink.address)

            async with inspected(look) as (_, client, _):
                assert unwrap(await client.ask(sink.header + b"x")) == (sink.address, b"x")
                assert (received(echo), received(sink)) == ([b"x"], [])

    run(main)


def test_rules_hold_for_what_is_emitted(run: Run) -> None:
    """An inspector cannot lead a client where it may not go: the destination it chose is decided upon."""

    async def main() -> None:
        rules = [{"hosts": ["secret.test"], "action": "deny"}]
        front = Front({"source": ["127.0.0.1"]}, rule=rules)
        secret = Address("secret.test", 53)
        async with inspected(only_up(lambda datagram, emit: emit(b"x", secret)), front) as (place, client, _):
            client.send(encode_header(parse_address("192.0.2.1:53")))
            await until(lambda: place.drops == {"denied": 1})
            session = await place.end(client)
            assert session.datagrams_up == 0

    run(main)


def test_through_a_proxy(run: Run, kernel: str) -> None:
    """Both ways; senders are told by the headers that come back, fragments are put together first."""

    async def main() -> None:
        async with fake_proxy() as proxy:

            def look(datagram: Datagram, emit: Emit) -> None:
                emit(datagram.payload + datagram.direction.encode())

            async with inspected(look, Front({"url": proxy.url})) as (place, client, inspector):
                address = parse_address("192.0.2.1:53")
                header = encode_header(address)
                client.send(header + b"x")
                data, sender = await proxy.arrived()
                assert data == header + b"xup"
                for _ in range(2):
                    proxy.relay.sendto(header + b"y", sender)
                    assert unwrap(await client.receive()) == (address, b"ydown")
                for frag, part in ((1, b"to"), (2 | LAST, b"gether")):
                    proxy.relay.sendto(encode_header(address, frag) + part, sender)
                assert unwrap(await client.receive()) == (address, b"togetherdown")
                stranger = encode_header(parse_address("192.0.2.9:53"))
                proxy.relay.sendto(stranger + b"z", sender)
                await until(lambda: place.drops == {"unsolicited": 1})
            assert len(inspector.seen) == 4

    run(main)


# --- later ---


def test_delayed_datagrams_go_in_the_order_of_their_times(run: Run) -> None:
    """Both ways; equal times keep their order, and the memory is given back as they go."""
    clock, delays = Clock(), {b"a": 2.0, b"b": 1.0, b"c": 1.0, b"d": 0.0}

    def look(datagram: Datagram, emit: Emit) -> None:
        emit(datagram.payload, delay=delays[datagram.payload])

    async def main() -> None:
        async with inspected(only_up(look)) as (place, client, _):
            place.server.parts.associations.context.time = clock
            found = place.one.inspection
            assert found is not None
            with nobody() as sink:
                for payload in delays:
                    client.send(sink.header + payload)
                await until(lambda: len(found.delayed) == 3 and sink.received)
                assert (received(sink), held(place)) == ([b"d"], 3 + 3 * DELAYED_COST)
                found.send_delayed()
                assert len(found.delayed) == 3
                clock.now += 1
                found.send_delayed()
                await until(lambda: len(sink.received) == 3)
                assert (received(sink), held(place)) == ([b"d", b"b", b"c"], 1 + DELAYED_COST)
                clock.now += 1
                found.send_delayed()
                await until(lambda: len(sink.received) == 4)
                assert (received(sink)[3], held(place), found.delayed_octets) == (b"a", 0, 0)

    run(main)


def test_a_timer_sends_what_was_delayed(run: Run) -> None:
    """By itself, the nearest first, in both directions."""

    def look(datagram: Datagram, emit: Emit) -> None:
        emit(b"slow " + datagram.payload, delay=0.02)
        emit(b"fast " + datagram.payload, delay=0.01)

    async def main() -> None:
        async with inspected(only_down(look)) as (place, client, _):
            with destination() as echo:
                client.send(echo.header + b"x")
                assert [unwrap(await client.receive()) for _ in range(2)] == [
                    (echo.address, b"fast x"),
                    (echo.address, b"slow x"),
                ]
            found = place.one.inspection
            assert found is not None
            assert (found.timer, held(place)) == (None, 0)

    run(main)


def test_what_is_delayed_is_dropped_with_the_association(run: Run) -> None:
    """It is counted, its memory is given back, its timer does nothing any more; so does an emit that comes later."""
    kept: list[Emit] = []

    def look(datagram: Datagram, emit: Emit) -> None:
        emit(datagram.payload, delay=0.01)
        kept.append(emit)

    async def main() -> None:
        async with inspected(look) as (place, client, _):
            with nobody() as sink:
                for _ in range(3):
                    client.send(sink.header + b"x")
                place.server.parts.associations.context.time = Clock()  # nobody's time comes
                await until(lambda: len(kept) == 3)
                one = place.one
                found = one.inspection
                assert found is not None
                waiting = len(found.delayed)
                session = await place.end(client)
                assert (session.drops, held(place)) == ({"waiting": waiting} if waiting else {}, 0)
                before = session.datagrams_up
                for emit in kept:
                    emit(b"too late")
                    emit(b"too late", delay=1)
                one.close("shutdown")
                await asyncio.sleep(0.02)
                assert (one.session.datagrams_up, found.delayed, len(sink.received)) == (before, [], before)

    run(main)


def test_an_inspector_may_emit_by_itself_later(run: Run) -> None:
    """What was shown in one turn may be sent in another."""
    kept: list[Emit] = []

    async def main() -> None:
        async with inspected(only_up(lambda datagram, emit: kept.append(emit))) as (_, client, _):
            with destination() as echo:
                client.send(echo.header + b"x")
                await until(lambda: kept)
                kept[0](b"later")
                assert unwrap(await client.receive()) == (echo.address, b"later")

    run(main)


@pytest.mark.parametrize("bound", ["count", "octets", "memory"])
def test_what_is_delayed_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """In number, in octets, and by what all associations share: the rest is dropped and counted."""
    if bound == "count":
        monkeypatch.setattr(inspection, "MAX_DELAYED", 2)
    else:
        name = (inspection, "MAX_DELAYED_OCTETS") if bound == "octets" else (udp_context, "MEMORY")
        monkeypatch.setattr(*name, 2 * (1000 + DELAYED_COST))

    async def main() -> None:
        async with inspected(lambda datagram, emit: emit(datagram.payload, delay=60)) as (place, client, _):
            with nobody() as sink:
                for _ in range(5):
                    client.send(sink.header + bytes(1000))
                await until(lambda: place.drops == {"waiting": 3})
                assert held(place) == 2 * (1000 + DELAYED_COST)
            session = await place.end(client)
            assert (session.drops, held(place)) == ({"waiting": 5}, 0)

    run(main)


# --- what goes wrong ---


def test_an_inspector_that_raises(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The datagram is dropped and counted, the first time of an association is logged; the association goes on."""

    def look(datagram: Datagram, emit: Emit) -> None:
        if datagram.payload == b"bad":
            raise KeyError("what went wrong")
        emit(datagram.payload)

    async def main() -> None:
        async with inspected(only_up(look)) as (place, client, _):
            with destination() as echo:
                for payload in (b"bad", b"bad", b"good"):
                    client.send(echo.header + payload)
                assert unwrap(await client.receive()) == (echo.address, b"good")
            session = await place.end(client)
            assert (session.drops, session.close) == ({"inspector": 2}, "client")
            (record,) = [record for record in caplog.records if "inspector" in record.message]
            assert "the inspector of datagrams raised, <Datagram up 127.0.0.1:" in record.message
            assert record.exc_info is not None
            assert record.levelno == logging.ERROR

    run(main)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("text",), TypeError, "the payload is str, expected bytes"),
        ((5,), TypeError, "the payload is int, expected bytes"),
        ((b"x", ("127.0.0.1", 0)), ValueError, "0 is not a port"),
        ((b"x", (None, 9)), TypeError, "None is not a host"),
        ((b"x", None, -1.0), ValueError, r"the delay is -1\.0, expected 0 to 3600 seconds"),
        ((b"x", None, float("nan")), ValueError, "the delay is nan"),
        ((b"x", None, float("inf")), ValueError, "the delay is inf"),
    ],
)
def test_what_cannot_be_emitted(run_once: Run, arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    """Whoever emits it is told, and nothing is sent."""

    def look(datagram: Datagram, emit: Any) -> None:
        with pytest.raises(error, match=text):
            emit(*arguments)
        emit(b"right")

    async def main() -> None:
        async with inspected(only_up(look)) as (place, client, _):
            with nobody() as sink:
                client.send(sink.header + b"x")
                await until(lambda: sink.received)
                assert received(sink) == [b"right"]
            assert (await place.end(client)).drops == {}

    run_once(main)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_an_inspector_may_end_the_association(run: Run, kernel: str, direction: Direction) -> None:
    """In the middle of a batch: it is shown nothing more, and what it emits afterwards goes nowhere."""

    async def main() -> None:
        async with Place() as place:

            def look(datagram: Datagram, emit: Emit) -> None:
                if datagram.direction == direction:
                    assert place.server.parts.associations.end(datagram.session, "limit", "seen enough")
                emit(datagram.payload)

            inspector = place.server.parts.associations.inspector = Inspector(look)
            async with association(place.address) as client:
                with destination(answer=lambda data, sender: [(data, sender)] * 5) as echo:
                    for _ in range(5 if direction == "up" else 1):
                        client.send(echo.header + b"x")
                    assert await client.reader.read(1) == b""
                    session = await place.ended.get()
                    await turns()
                    assert (session.close, session.error) == ("limit", "seen enough")
                    assert [datagram.direction for datagram in inspector.seen].count(direction) == 1
                    assert not place.server.parts.associations.end(inspector.seen[0].session, "limit")
                    assert len(echo.received) == (0 if direction == "up" else 1)

    run(main)


# --- limits ---


def test_the_client_pays_for_what_it_sends_and_gets(run: Run, kernel: str) -> None:
    """Also for what the inspector drops on its way up, and for each that it makes of one on its way down."""

    def look(datagram: Datagram, emit: Emit) -> None:
        if datagram.direction == "down":
            emit(datagram.payload)
            emit(datagram.payload)
        elif datagram.payload != bytes(1000):
            emit(b"x")

    async def main() -> None:
        async with inspected(look, limited({"quota": "1 GB/day"})) as (place, client, _):
            with destination(answer=lambda data, sender: [(bytes(300), sender)]) as echo:
                client.send(echo.header + bytes(1000))
                client.send(echo.header + bytes(2000))
                client.send(b"rubbish that is no datagram")
                for _ in range(2):
                    assert unwrap(await client.receive()) == (echo.address, bytes(300))
                await until(lambda: place.drops == {"malformed": 1})
            session = await place.end(client)
            assert (session.up, session.down, session.close) == (1, 600, "client")
            assert used(place) == 3600

    run(main)


def test_what_is_too_fast_is_dropped(run: Run) -> None:
    """On its way up before the inspector sees it, on its way down behind the inspector."""

    async def main() -> None:
        place = limited({"bandwidth": "1500 B/s", "burst": 6000})
        async with inspected(pass_on, place) as (_, client, inspector):
            with destination(answer=lambda data, sender: [(data, sender)] * 3) as echo:
                for _ in range(2):
                    client.send(echo.header + bytes(1500))
                for _ in range(4):
                    assert unwrap(await client.receive()) == (echo.address, bytes(1500))
                await until(lambda: place.drops == {"limited": 2})
                for _ in range(3):
                    client.send(echo.header + bytes(1500))
                await until(lambda: place.drops["limited"] >= 3)
            up = [direction for direction, _ in inspector.payloads].count("up")
            assert 2 <= up < 5

    run(main)


def test_a_quota_ends_it(run: Run) -> None:
    """As one that nobody looks at."""

    async def main() -> None:
        async with inspected(pass_on, limited({"quota": "2500 B/day"})) as (place, client, _):
            with nobody() as sink:
                for count in (1, 2):
                    client.send(sink.header + bytes(1000))
                    await until(partial(has, sink, count))
                client.send(sink.header + bytes(1000))
                assert await client.reader.read(1) == b""
                session: Session = await place.ended.get()
                assert (session.close, session.error) == ("limit", "limit: server: the quota of 2500 B/day is used up")

    run(main)


# --- faults, and what begins and ends in the middle ---


class Doubled:
    """Faults that send all twice."""

    def __init__(self, association: Association) -> None:
        self.association = association
        self.names: list[Address] = []

    def carry(self, direction: Direction, address: Address, payload: bytes) -> None:
        assert self.association.inspection is not None
        for _ in range(2):
            self.association.inspection.send(direction, address, payload)

    def found(self, destination: Address) -> None:
        self.names.append(destination)


@pytest.mark.parametrize("looked", [False, True])
def test_faults_come_and_go_while_it_runs(run: Run, kernel: str, looked: bool) -> None:
    """Behind the inspector, if there is one: it sees each datagram once. The port, the routes and the counts stay, also
    of the names that were resolved before."""

    async def main() -> None:
        async with Place(names={"here.test": ["127.0.0.1"]}) as place:
            inspector = Inspector(pass_on)
            if looked:
                place.server.parts.associations.inspector = inspector
            async with association(place.address) as client:
                with destination() as echo:
                    named = encode_header(Address("here.test", echo.address.port))
                    for _ in range(2):
                        assert unwrap(await client.ask(named + b"1")) == (echo.address, b"1")
                    one = place.one
                    inspect = inspector.inspect if looked else None
                    faults = Doubled(one)
                    one.look_into(inspect, faults)
                    client.send(named + b"2")
                    assert [unwrap(await client.receive())[1] for _ in range(4)] == [b"2"] * 4
                    one.found(Address("other.test", 53), echo.address)
                    one.found(Address("here.test", echo.address.port), echo.address)
                    assert faults.names == [Address("other.test", 53), Address("here.test", echo.address.port)]
                    assert one.inspection is not None
                    named_by_address = {echo.address: Address("here.test", echo.address.port)}
                    assert one.inspection.named == named_by_address
                    one.look_into(inspect)
                    assert (one.inspection is not None) is looked
                    for payload in (b"3", b"4", b"5"):
                        assert unwrap(await client.ask(named + payload)) == (echo.address, payload)
                    session = await place.end(client)
                    assert (session.datagrams_up, session.datagrams_down, session.drops) == (7, 9, {})
                    assert len(inspector.seen) == (13 if looked else 0)

    run(main)


def test_faults_of_an_association_that_has_ended(run_once: Run) -> None:
    """What they send is not sent any more."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                one = place.one
                one.look_into(None, Doubled(one))
                found = one.inspection
                assert found is not None
                await place.end(client)
                found.send("up", echo.address, b"x")
                assert one.session.datagrams_up == 0

    run_once(main)


def test_limits_hold_for_what_faults_send(run_once: Run) -> None:
    """The client pays for what it sends once, and for what it gets, twice here; the same after the faults are gone."""

    async def main() -> None:
        limits = make_config({"limits": {"quota": "1 GB/day"}}).limits
        async with Place(limits=limits) as place, association(place.address) as client:
            with destination() as echo:
                one = place.one
                assert unwrap(await client.ask(echo.header + bytes(100)))[1] == bytes(100)
                one.look_into(None, Doubled(one))
                client.send(echo.header + bytes(100))
                for _ in range(4):
                    await client.receive()
                assert isinstance(one, LimitedAssociation)
                assert one.meter.charged == {UP: 200, DOWN: 500}
                one.look_into(None)
                assert unwrap(await client.ask(echo.header + bytes(100)))[1] == bytes(100)
                assert one.meter.charged == {UP: 300, DOWN: 600}

    run_once(main)
