"""Associations, from outside: what passes, what does not and why, and that everything ends."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Address

import pytest

from conftest import Run
from datagrams import (
    Front,
    Inspector,
    Place,
    Watcher,
    association,
    destination,
    pass_on,
    udp_socket,
    unwrap,
    use_features,
)
from sockets import until
from support import client, reset_on_close
from tabi.config import Udp
from tabi.net.sockaddr import encode_sockaddr
from tabi.relay import datagram, udp_context
from tabi.relay.udp_routes import MAX_WAITING
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import MAX_DATAGRAM, encode_header

SIZES = (0, 1, 1472, 9000, 60000)
ANY = Address(parse_address("0.0.0.0:0").host, 0)


# --- what passes ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_of_every_size_pass_whole(run: Run, kernel: str, host: str) -> None:
    """There and back, from none to 60,000 octets, over IPv4 and IPv6; counted in datagrams and octets of payload."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination(host) as echo:
                for size in SIZES:
                    payload = bytes([size % 251]) * size
                    assert unwrap(await client.ask(echo.header + payload)) == (echo.address, payload)
                assert [len(data) for data, _ in echo.received] == list(SIZES)
            session = await place.end(client)
        assert (session.up, session.down) == (sum(SIZES), sum(SIZES))
        assert (session.datagrams_up, session.datagrams_down, session.drops) == (5, 5, {})
        assert (session.command, session.close, session.error, session.reply_code) == ("associate", "client", None, 0)

    run(main)


def test_destinations_take_turns(run: Run, kernel: str) -> None:
    """Datagrams of one batch, of several lengths, to several destinations over both families: each gets its own."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as one, destination() as two, destination("::1") as three:
                there = [one, two, three, one, one, three, three, two, one]
                for _ in range(3):  # new ones first, then known ones
                    for number, echo in enumerate(there):
                        client.send(echo.header + bytes(number) + b"!")
                    got = [unwrap(await client.receive()) for _ in there]
                    assert set(got) == {(echo.address, bytes(number) + b"!") for number, echo in enumerate(there)}
                for echo in (one, two, three):
                    lengths = [len(data) - 1 for data, _ in echo.received]
                    assert lengths == [number for number, other in enumerate(there) if other is echo] * 3

    run(main)


def test_a_client_over_ipv6(run: Run, kernel: str) -> None:
    """The control connection is over IPv6, and so is the port: destinations may be of either family."""

    async def main() -> None:
        async with Place(url="socks5://[::1]:0") as place, association(place.address, host="::1") as client:
            assert client.relay.host == IPv6Address("::1")
            with destination() as one, destination("::1") as two:
                for echo in (one, two):
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

    run(main)


# --- what does not pass ---


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"\0", b"\0\0\0", b"\0\0\0\1\x7f\0\0\1\0", b"\0\0\0\2" + bytes(20), b"\0\0\0\3\0\0\x09", b"\xff" * 300],
    ids=["nothing", "an octet", "no ATYP", "cut", "ATYP 2", "an empty name", "ff"],
)
def test_rubbish_between_good_ones(run: Run, kernel: str, rubbish: bytes) -> None:
    """A datagram that is none of section 7 is dropped and counted; those around it pass."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                for _ in range(2):
                    for data in (echo.header + b"one", rubbish, echo.header + b"two"):
                        client.send(data)
                    assert unwrap(await client.receive()) == (echo.address, b"one")
                    assert unwrap(await client.receive()) == (echo.address, b"two")
            assert (await place.end(client)).drops == {"malformed": 2}

    run(main)


def test_what_is_refused_is_counted(run: Run) -> None:
    """The first datagram, whose refusal is found out, and those behind it, which are dropped together."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            nowhere = encode_header(parse_address("127.0.0.1:0"))
            for count in range(1, 4):
                client.send(nowhere + b"x")
                await until(lambda count=count: place.drops == {"malformed": count})  # type: ignore[misc]
            assert (await place.end(client)).datagrams_up == 0

    run(main)


def test_what_finds_no_room_to_wait_is_counted(run: Run) -> None:
    """As many as may wait for a name do; the others are dropped, and those that waited are when the client leaves."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.resolver.answering.clear()
            for _ in range(MAX_WAITING + 2):
                client.send(encode_header(Address("slow.test", 9)) + b"x")
            await until(lambda: place.drops == {"waiting": 2})
            assert (await place.end(client)).drops == {"waiting": MAX_WAITING + 2}

    run(main)


def test_what_the_system_does_not_take(run: Run, kernel: str) -> None:
    """A send that fails (here to broadcast, which needs a permission) is counted, and the association goes on."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                header = encode_header(parse_address("255.255.255.255:9"))
                client.send(header + b"one")  # a new destination
                client.send(header + b"two")  # one that is known
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
            session = await place.end(client)
            assert (session.drops, session.datagrams_up) == ({"unsent": 2}, 1)

    run(main)


def test_a_way_that_does_not_take_gso_is_remembered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that a send has shown is the association's from then on."""
    use_features("batches", monkeypatch)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                await client.ask(echo.header + b"x")
                found = place.one
                found.note(0, 700)
                found.note(0, 900)
                assert found.limit == 700
                for _ in range(3):
                    client.send(echo.header + bytes(800))
                for _ in range(3):
                    assert unwrap(await client.receive()) == (echo.address, bytes(800))

    run(main)


# --- fragments ---


def fragment(frag: int, header: bytes, payload: bytes) -> bytes:
    """A datagram with FRAG."""
    return header[:2] + bytes([frag]) + header[3:] + payload


def test_fragments_become_one_datagram(run: Run, kernel: str) -> None:
    """In order they are put together; a whole datagram in between passes and the fragments before it are given up."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                for frag, payload in ((1, b"all "), (2, b"in "), (0x83, b"one")):
                    client.send(fragment(frag, echo.header, payload))
                assert unwrap(await client.receive()) == (echo.address, b"all in one")
                client.send(fragment(1, echo.header, b"given up"))
                assert unwrap(await client.ask(echo.header + b"whole")) == (echo.address, b"whole")
                client.send(fragment(0x82, echo.header, b"too late"))
                assert unwrap(await client.ask(echo.header + b"again")) == (echo.address, b"again")
                assert [data for data, _ in echo.received] == [b"all in one", b"whole", b"again"]
            session = await place.end(client)
            assert (session.drops, session.datagrams_up) == ({"fragment": 2}, 3)

    run(main)


def test_fragments_are_dropped_where_the_listener_says_so(run: Run) -> None:
    """fragments = "drop": each is counted, none is relayed."""

    async def main() -> None:
        async with Place(Udp(fragments="drop")) as place, association(place.address) as client:
            with destination() as echo:
                client.send(fragment(1, echo.header, b"one"))
                client.send(fragment(0x82, echo.header, b"two"))
                assert unwrap(await client.ask(echo.header + b"whole")) == (echo.address, b"whole")
            assert (await place.end(client)).drops == {"fragment": 2}

    run(main)


def test_fragments_wait_for_a_time_and_within_a_bound(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep gives them up when their time is over, so does the end; all associations share a bound."""
    monkeypatch.setattr(udp_context, "MEMORY", 10)

    async def main() -> None:
        now = 0.0
        async with Place() as place, association(place.address) as client:
            associations = place.server.parts.associations
            associations.context.time = lambda: now
            with destination() as echo:
                client.send(fragment(1, echo.header, b"12345678"))
                await until(lambda: associations.context.memory.held == 8)
                associations.sweep(9.9)
                client.send(fragment(2, echo.header, b"123"))
                await until(lambda: place.drops == {"fragment": 1})
                associations.sweep(10.0)
                assert (place.drops, associations.context.memory.held) == ({"fragment": 2}, 0)
                client.send(fragment(1, echo.header, b"12345678"))
                await until(lambda: associations.context.memory.held == 8)
            session = await place.end(client)
            assert (session.drops, associations.context.memory.held) == ({"fragment": 3}, 0)

    run(main)


# --- the control connection ---


def test_what_is_said_on_the_control_connection_is_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Octets behind the request mean nothing, however many they are; the association goes on."""
    monkeypatch.setattr(datagram, "READS", 2)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                client.writer.write(bytes(8192))  # just the share of a turn
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                client.writer.write(bytes(1 << 20))
                await client.writer.drain()
                client.writer.write(b"a little")
                place.one.queued = True
                place.one.on_control()  # an edge while the next share waits for its turn
                place.one.go_on()
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
            client.writer.write_eof()
            assert (await place.ended.get()).close == "client"

    run(main)


def test_octets_behind_the_request_and_the_end_at_once(run: Run) -> None:
    """A client that asks, goes on talking and leaves in one segment gets its reply, and the association ends."""

    async def main() -> None:
        async with Place() as place:
            reader, writer = await asyncio.open_connection(str(place.address.host), place.address.port)
            writer.write(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6) + b"more" + bytes(5000))
            writer.write_eof()
            assert (await reader.read())[:4] == b"\x05\x00\x05\x00"
            writer.close()
            await writer.wait_closed()
            session = await place.ended.get()
            assert (session.close, session.reply_code) == ("client", 0)

    run(main)


def test_a_reset_ends_the_association(run: Run) -> None:
    """The log says how it ended; the port is dead at once."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            reset_on_close(client.writer.get_extra_info("socket"))
            client.writer.transport.abort()
            session = await place.ended.get()
            assert session.close == "reset"
            with udp_socket(port=client.relay.port):
                pass

    run(main)


def test_a_reset_that_the_reply_meets(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is gone before its reply is a reset, and leaves nothing behind."""
    send_answer = datagram.Association.send_answer

    async def main() -> None:
        async with Place() as place, client(place.address) as (_, writer):

            def vanish_first(self: datagram.Association, answer: bytes) -> None:
                reset_on_close(writer.get_extra_info("socket"))
                writer.get_extra_info("socket")._sock.close()  # now, not in the loop's next turn
                send_answer(self, answer)

            monkeypatch.setattr(datagram.Association, "send_answer", vanish_first)
            writer.write(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6))
            assert (await place.ended.get()).close == "reset"
            writer.transport.abort()

    run_once(main)


# --- one by one ---


def test_it_is_looked_into_and_left_alone_again(run: Run, kernel: str) -> None:
    """In the middle: the datagrams of known destinations and known senders are seen from then on, and no more later."""
    inspector = Inspector(pass_on)

    async def main() -> None:
        async with Place(names={"here.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as echo:
                named = encode_header(Address("here.test", echo.address.port))
                one, seen = place.one, 0
                for inspect in (None, inspector.inspect, None, inspector.inspect):
                    one.look_into(inspect)
                    for header in (echo.header, named, named):
                        assert unwrap(await client.ask(header + b"x")) == (echo.address, b"x")
                        seen += 2 if inspect else 0
                    assert len(inspector.seen) == seen
                assert one.inspection is not None
                one.found(Address("there.test", 53), echo.address)
                assert one.inspection.named[echo.address].host == "there.test"
            session = await place.end(client)
            assert (session.datagrams_up, session.datagrams_down, session.drops) == (12, 12, {})

    run(main)


def test_new_destinations_are_heard_of(run: Run, kernel: str) -> None:
    """Once, before their first datagram goes; a name once more with its address. Others behind it go in runs."""

    async def main() -> None:
        async with Place(names={"here.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as echo:
                watcher = Watcher(place.one)
                name = Address("here.test", echo.address.port)
                for header in (echo.header, encode_header(name)):
                    for _ in range(3):
                        assert unwrap(await client.ask(header + b"x")) == (echo.address, b"x")
                up = [heard for heard in watcher.heard if heard[0] == "up"]
                assert up == [("up", echo.address), ("up", name), ("up", name, echo.address)]
                place.one.carry_down(echo.address, echo.header, b"y")
                assert watcher.heard[-1] == ("down", echo.address)
                assert unwrap(await client.receive()) == (echo.address, b"y")
                assert place.one.inspection is None

    run(main)


def test_it_is_looked_into_from_a_destination_on(run: Run, kernel: str) -> None:
    """With the very datagram that it was heard of with, and all behind it: none is lost, or seen before."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as one, destination() as other:
                watcher = Watcher(place.one, ("up", other.address))
                assert unwrap(await client.ask(one.header + b"0")) == (one.address, b"0")
                for number in range(5):
                    client.send(one.header + b"a%d" % number)
                for number in range(5):
                    client.send(other.header + b"b%d" % number)
                    client.send(one.header + b"c%d" % number)
                await until(lambda: len(one.received) == 11 and len(other.received) == 5)
                seen = [payload for direction, payload in watcher.inspector.payloads if direction == "up"]
                assert seen == [b"%s%d" % (kind, number) for number in range(5) for kind in (b"b", b"c")]
                assert [data for data, _ in one.received[1:6]] == [b"a%d" % number for number in range(5)]
            session = await place.end(client)
            assert (session.datagrams_up, session.drops) == (16, {})

    run(main)


# --- the end ---


def test_an_association_that_nobody_uses_ends(run: Run) -> None:
    """After ``udp_idle`` seconds without a datagram; what was dropped does not count as use."""

    async def main() -> None:
        now = 0.0
        async with Place(udp_idle=100) as place, association(place.address) as client:
            associations = place.server.parts.associations
            associations.context.time = lambda: now
            place.one.quiet_since = now
            with destination() as echo:
                for now in (90.0, 180.0, 270.0):
                    await client.ask(echo.header + b"x")
                    associations.sweep(now)
                client.send(b"rubbish")
                await until(lambda: place.drops)
                associations.sweep(369.9)
                assert associations.active
                associations.sweep(370.0)
            session = await place.ended.get()
            assert (session.close, session.datagrams_up) == ("idle", 3)
            assert await client.reader.read() == b""

    run(main)


def test_a_limit_ends_an_association(run: Run) -> None:
    """With its reason, and the control connection ends."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.one.cut("limit: too long")
            assert await client.reader.read() == b""
            session = await place.ended.get()
            assert (session.close, session.error) == ("limit", "limit: too long")

    run(main)


def test_it_may_end_with_a_reset(run: Run) -> None:
    """The client sees one on its control connection."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.one.end("fault", "too far", reset=True)
            with pytest.raises(ConnectionResetError):
                await client.reader.read()
            session = await place.ended.get()
            assert (session.close, session.error) == ("fault", "too far")

    run(main)


def test_one_that_faults_lose_all_of_is_not_idle(run_once: Run) -> None:
    """Its client sends: a line that loses all is not a client that is gone."""

    async def main() -> None:
        async with Place(udp_idle=100) as place, association(place.address) as client:
            one = place.one
            one.quiet_since = 0.0
            for now in (90.0, 180.0):
                one.drop("fault")
                one.sweep(now, 100.0)
            assert not one.closed
            one.sweep(280.0, 100.0)
            assert (await place.ended.get()).close == "idle"
            assert await client.reader.read() == b""

    run_once(main)


def test_the_end_comes_once(run: Run) -> None:
    """What comes behind it changes nothing: an event of the control connection, another reason to end, a limit."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            found = place.one
            session = await place.end(client)
            found.on_control()
            found.close("error")
            found.cut("limit: too late")
            assert (session.close, session.error) == ("client", None)

    run(main)


def test_what_is_too_long_with_the_headers_for_proxies(run: Run, kernel: str) -> None:
    """Is dropped as that, here: each proxy behind the first has a header more. What just fits passes."""

    async def main() -> None:
        async with (
            Place() as one,
            Place() as two,
            Front({"chain": [one.server.url, two.server.url]}) as front,
            association(front.address) as mine,
        ):
            with destination() as echo:
                fits = MAX_DATAGRAM - 2 * len(echo.header)
                mine.send(echo.header + bytes(fits + 1))
                await until(lambda: front.drops == {"too_large": 1})
                mine.send(echo.header + b"x")
                assert unwrap(await mine.receive()) == (echo.address, b"x")
                assert unwrap(await mine.ask(echo.header + bytes(fits))) == (echo.address, bytes(fits))
                mine.send(echo.header + bytes(fits + 1))
                await until(lambda: front.drops == {"too_large": 2})
            await front.end(mine)

    run(main)


def test_one_for_the_client_by_itself(run: Run) -> None:
    """It goes behind the header of its sender; one that is too long with it, or that nobody takes, is counted."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                await client.ask(echo.header + b"x")
                found = place.one
                address = parse_address("192.0.2.1:53")
                header = encode_header(address)
                found.carry_down(address, header, b"y")
                assert unwrap(await client.receive()) == (address, b"y")
                found.carry_down(address, header, bytes(MAX_DATAGRAM - len(header) + 1))
                relay, found.client = found.client, encode_sockaddr(parse_address("255.255.255.255:9"))
                found.carry_down(address, header, b"z")
                found.client = relay
                assert place.drops == {"too_large": 1, "unsent": 1}
            session = await place.end(client)
            assert (session.datagrams_down, session.down) == (2, 2)

    run(main)
