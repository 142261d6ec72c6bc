"""Associations, from outside: what passes, what does not and why, and that everything ends."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv6Address

import pytest

from conftest import Run
from datagrams import Front, Place, association, destination, fake_proxy, refusal, udp_socket, unwrap, use_features
from doubles import no_descriptors_left
from sockets import until
from support import client, reset_on_close
from tabi.config import Udp
from tabi.net.hops import Hops
from tabi.relay import datagram
from tabi.relay.datagram import FORGET_REFUSAL, MAX_LOOKUPS, MAX_WAITING
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import MAX_DATAGRAM, encode_header

SIZES = (0, 1, 1472, 9000, 60000)
ANY = Address(parse_address("0.0.0.0:0").host, 0)


@pytest.fixture
def outer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client counts as one from outside."""
    monkeypatch.setattr("tabi.policy.guard.Guard.is_for", lambda guard, host: True)


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


def test_an_ipv4_address_dressed_as_ipv6_is_reached_over_ipv4(run: Run) -> None:
    """::ffff:127.0.0.1 is 127.0.0.1, and the reply says so."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                dressed = Address(IPv6Address("::ffff:127.0.0.1"), echo.address.port)
                assert unwrap(await client.ask(encode_header(dressed) + b"x")) == (echo.address, b"x")

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


# --- names ---


def test_a_name_is_resolved_once(run: Run, kernel: str) -> None:
    """What waits for the resolver is sent in order; from then on the name is known while the association lives."""

    async def main() -> None:
        async with Place(names={"here.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as echo:
                header = encode_header(Address("here.test", echo.address.port))
                place.resolver.answering.clear()
                for payload in (b"one", b"two"):
                    client.send(header + payload)
                await until(lambda: place.resolver.asked and len(place.one.ways[header].waiting) == 2)
                place.resolver.answering.set()
                assert unwrap(await client.receive()) == (echo.address, b"one")
                assert unwrap(await client.receive()) == (echo.address, b"two")
                assert unwrap(await client.ask(header + b"three")) == (echo.address, b"three")
                assert place.resolver.asked == ["here.test"]

    run(main)


def test_waiting_for_a_name_holds_up_nobody(run: Run) -> None:
    """Datagrams to addresses pass while the resolver does not answer, and the association can end meanwhile."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.resolver.answering.clear()
            with destination() as echo:
                client.send(encode_header(Address("slow.test", 9)) + b"x")
                assert unwrap(await client.ask(echo.header + b"y")) == (echo.address, b"y")
            session = await place.end(client)
            assert session.drops == {"waiting": 1}

    run(main)


def test_of_a_name_with_both_families_the_clients_own_is_taken(run: Run) -> None:
    """Nobody tells when a datagram arrives nowhere, so that there is no second try."""

    async def main() -> None:
        async with Place(names={"both.test": ["::1", "127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as echo:
                header = encode_header(Address("both.test", echo.address.port))
                assert unwrap(await client.ask(header + b"x")) == (echo.address, b"x")

    run(main)


def test_a_name_that_is_not_found_is_asked_for_again_later(run: Run) -> None:
    """Its datagrams are dropped and counted, the log has the reason, and after a while the resolver is asked anew."""

    async def main() -> None:
        now = 0.0
        async with Place() as place, association(place.address) as client:
            place.server.parts.associations.time = lambda: now
            header = encode_header(Address("no.test", 9))
            client.send(header + b"x")
            await until(lambda: place.drops == {"unresolved": 1})
            client.send(header + b"x")
            await until(lambda: place.drops == {"unresolved": 2})
            assert place.resolver.asked == ["no.test"]
            now = FORGET_REFUSAL
            with destination() as echo:
                place.resolver.names["no.test"] = ["127.0.0.1"]
                header = encode_header(Address("no.test", echo.address.port))
                assert unwrap(await client.ask(header + b"x")) == (echo.address, b"x")
            client.send(encode_header(Address("no.test", 9)) + b"x")
            await until(lambda: len(place.resolver.asked) == 3)
            session = await place.end(client)
            assert session.error == "no.test: domain name not found"

    run(main)


def test_a_resolver_that_does_not_answer_has_a_deadline(run: Run) -> None:
    """``timeouts.connect`` is the resolver's too."""

    async def main() -> None:
        async with Place(connect=0.02) as place, association(place.address) as client:
            place.resolver.answering.clear()
            client.send(encode_header(Address("slow.test", 9)) + b"x")
            await until(lambda: place.drops)
            session = await place.end(client)
            assert (session.drops, session.error) == ({"unresolved": 1}, "slow.test: not resolved within 0.02 s")

    run(main)


def test_a_name_that_changed_its_mind_is_resolved_in_vain(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer for a destination that was forgotten meanwhile harms nobody."""
    monkeypatch.setattr(datagram, "MAX_WAYS", 1)

    async def main() -> None:
        async with Place(names={"here.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            place.resolver.answering.clear()
            with destination() as echo:
                client.send(encode_header(Address("here.test", echo.address.port)) + b"named")
                await until(lambda: place.resolver.asked)
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                place.resolver.answering.set()
                assert unwrap(await client.receive()) == (echo.address, b"named")

    run(main)


def test_what_waits_for_names_is_bounded(run: Run) -> None:
    """So many datagrams for a name, and so many names at a time; the rest is dropped and counted."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.resolver.answering.clear()
            for _ in range(MAX_WAITING + 3):
                client.send(encode_header(Address("name0.test", 9)) + b"x")
            for number in range(MAX_LOOKUPS + 2):
                client.send(encode_header(Address(f"name{number}.test", 9)) + b"x")
            await until(lambda: place.drops.get("waiting", 0) == 3 + 1 + 2 and len(place.resolver.asked) == MAX_LOOKUPS)
            place.resolver.answering.set()
            await until(lambda: not place.server.parts.associations.lookups)
            assert place.drops == {"waiting": 6, "unresolved": MAX_WAITING + MAX_LOOKUPS - 1}

    run(main)


def test_octets_that_wait_for_names_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one association and in all of them: the rest is dropped and counted, and what waited gives its room back."""
    monkeypatch.setattr(datagram, "MAX_HELD", 1000)
    monkeypatch.setattr(datagram, "MEMORY", 1500)

    async def main() -> None:
        names = {"here.test": ["127.0.0.1"]}
        async with Place(names=names) as place, association(place.address) as one, association(place.address) as two:
            associations = place.server.parts.associations
            place.resolver.answering.clear()
            with destination() as echo:
                header = encode_header(Address("here.test", echo.address.port))
                for size in (600, 400, 1):
                    one.send(header + bytes(size))
                await until(lambda: associations.held == 1000 and len(place.resolver.asked) == 1)
                for size in (501, 500):
                    two.send(header + bytes(size))
                await until(lambda: associations.held == 1500)
                place.resolver.answering.set()
                assert [len(unwrap(await client.receive())[1]) for client in (one, one, two)] == [600, 400, 500]
                assert associations.held == 0
                for client in (one, two):
                    assert (await place.end(client)).drops == {"waiting": 1}

    run(main)


def test_what_waits_is_counted_although_it_was_forgotten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every datagram is relayed or dropped for a reason, also one whose name other destinations have pushed out."""
    monkeypatch.setattr(datagram, "MAX_WAYS", 1)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.resolver.answering.clear()
            with destination() as echo:
                client.send(encode_header(Address("slow.test", 9)) + b"x")
                await client.ask(echo.header + b"y")
            session = await place.end(client)
            assert (session.datagrams_up, session.drops) == (1, {"waiting": 1})
            assert place.server.parts.associations.held == 0

    run(main)


# --- whose datagrams pass ---


def test_hosts_are_forgotten_in_the_order_of_their_first_contact(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An association remembers so many destinations, senders and hosts; a forgotten one is simply new again."""
    monkeypatch.setattr(datagram, "MAX_WAYS", 2)
    monkeypatch.setattr(datagram, "MAX_CONTACTED", 2)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination("127.0.0.1") as one, destination("127.0.0.2") as two, destination("127.0.0.3") as three:
                for _ in range(2):
                    for echo in (one, two, three):
                        assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                        found = place.one
                        assert max(len(found.ways), len(found.contacted)) <= 2
                with udp_socket() as other:  # at the first one's address
                    other.sendto(b"forgotten", ("127.0.0.1", two.received[0][1][1]))
                    await until(lambda: place.drops == {"stranger": 1})

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


def test_port_0_is_no_destination(run: Run) -> None:
    """Nobody can be there."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            client.send(encode_header(parse_address("127.0.0.1:0")) + b"x")
            await until(lambda: place.drops == {"malformed": 1})

    run(main)


@pytest.mark.usefixtures("outer")
def test_the_guard_is_asked_for_every_destination(run: Run) -> None:
    """A client from outside reaches no inner address, by number or by name; the log says which, and why."""

    async def main() -> None:
        names = {"inner.test": ["127.0.0.1"], "mixed.test": ["192.0.2.1", "10.0.0.1"]}
        async with Place(names=names) as place, association(place.address) as client:
            with destination() as echo:
                client.send(echo.header + b"one")
                client.send(echo.header + b"two")
                await until(lambda: place.drops == {"denied": 2})
                for number, name in enumerate(names, 3):
                    client.send(encode_header(Address(name, echo.address.port)) + b"x")
                    await until(lambda number=number: place.drops == {"denied": number})  # type: ignore[misc]
                assert echo.received == []
            session = await place.end(client)
            assert session.error == "guard: 127.0.0.1 is in 127.0.0.0/8, which a client from outside may not reach"

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


def test_no_socket_toward_a_destination(run: Run) -> None:
    """With the descriptors used up, datagrams are dropped and counted; when there are some again, they pass."""

    async def main() -> None:
        now = 0.0
        async with Place() as place, association(place.address) as client:
            place.server.parts.associations.time = lambda: now
            with destination() as echo:
                with no_descriptors_left():
                    client.send(echo.header + b"x")
                    await until(lambda: place.drops == {"unsent": 1})
                client.send(echo.header + b"x")
                await until(lambda: place.drops == {"unsent": 2})
                now = FORGET_REFUSAL
                assert unwrap(await client.ask(echo.header + b"y")) == (echo.address, b"y")
            session = await place.end(client)
            assert session.error == "127.0.0.1: Too many open files"

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
    monkeypatch.setattr(datagram, "MEMORY", 10)

    async def main() -> None:
        now = 0.0
        async with Place() as place, association(place.address) as client:
            associations = place.server.parts.associations
            associations.time = lambda: now
            with destination() as echo:
                client.send(fragment(1, echo.header, b"12345678"))
                await until(lambda: associations.held == 8)
                associations.sweep(9.9)
                client.send(fragment(2, echo.header, b"123"))
                await until(lambda: place.drops == {"fragment": 1})
                associations.sweep(10.0)
                assert (place.drops, associations.held) == ({"fragment": 2}, 0)
                client.send(fragment(1, echo.header, b"12345678"))
                await until(lambda: associations.held == 8)
            session = await place.end(client)
            assert (session.drops, associations.held) == ({"fragment": 3}, 0)

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


# --- the end ---


def test_an_association_that_nobody_uses_ends(run: Run) -> None:
    """After ``udp_idle`` seconds without a datagram; what was dropped does not count as use."""

    async def main() -> None:
        now = 0.0
        async with Place(udp_idle=100) as place, association(place.address) as client:
            associations = place.server.parts.associations
            associations.time = lambda: now
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


def test_a_name_whose_first_address_has_no_socket(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next address is taken, and nothing is dropped or called an error."""

    async def main() -> None:
        names = {"both.test": ["127.0.0.1", "::1"]}
        async with Place(names=names) as place, association(place.address) as client:
            opened = place.server.parts.associations.mail.open_socket

            def no_ipv4(family: int) -> socket.SocketType:
                if family == socket.AF_INET:
                    raise OSError(97, "Address family not supported by protocol")
                return opened(family)

            monkeypatch.setattr(place.server.parts.associations.mail, "open_socket", no_ipv4)
            with destination("::1") as echo:
                header = encode_header(Address("both.test", echo.address.port))
                assert unwrap(await client.ask(header + b"x")) == (echo.address, b"x")
            session = await place.end(client)
            assert (session.drops, session.error) == ({}, None)

    run(main)


# --- ways out ---


def test_rules_choose_the_way_of_each_datagram(run: Run) -> None:
    """By port, by network and by name: the way out is opened with the first datagram that takes it, and once."""

    async def main() -> None:
        async with fake_proxy() as proxy:
            rules = [
                {"ports": [5353], "action": "allow", "via": "out"},
                {"hosts": ["192.0.2.0/24", "2001:db8::/32", "*.out.test"], "action": "allow", "via": "out"},
            ]
            names = {"inner.test": ["192.0.2.7", "2001:db8::7"], "outer.test": ["127.0.0.1"], "a.out.test": []}
            async with Front({"url": proxy.url}, names, rule=rules) as front, association(front.address) as mine:
                with destination() as echo:
                    assert unwrap(await mine.ask(echo.header + b"straight")) == (echo.address, b"straight")
                    assert (proxy.asked, front.one.session.via) == (0, "direct")
                    proxy.answering.clear()
                    for payload in (b"1", b"2"):
                        mine.send(encode_header(parse_address("127.0.0.1:5353")) + payload)
                    mine.send(encode_header(parse_address("192.0.2.1:7")) + b"3")
                    mine.send(encode_header(Address("b.out.test", 7)) + b"4")
                    # The resolver is asked where a network may decide, and its first IPv4 address is what is asked for.
                    mine.send(encode_header(Address("inner.test", 7)) + b"5")
                    named = encode_header(Address("outer.test", echo.address.port))
                    assert unwrap(await mine.ask(named + b"straight too")) == (echo.address, b"straight too")
                    await until(lambda: proxy.asked)
                    proxy.answering.set()
                    found = {(await proxy.arrived())[0] for _ in range(5)}
                    assert found == {
                        encode_header(parse_address("127.0.0.1:5353")) + b"1",
                        encode_header(parse_address("127.0.0.1:5353")) + b"2",
                        encode_header(parse_address("192.0.2.1:7")) + b"3",
                        encode_header(Address("b.out.test", 7)) + b"4",
                        encode_header(parse_address("192.0.2.7:7")) + b"5",
                    }
                    assert (proxy.asked, front.one.session.via) == (1, "out")
                    assert sorted(front.resolver.asked) == ["inner.test", "outer.test"]
                front.server.parts.associations.sweep(0.0)
                session = await front.end(mine)
                assert session.drops == {}

    run(main)


def test_names_are_resolved_here_where_the_way_out_says_so(run: Run) -> None:
    """The proxy gets addresses only, which the guard has seen; the rule about datagrams of a name is asked before."""

    async def main() -> None:
        names = {"here.test": ["8.8.8.8"], "inner.test": ["10.0.0.1"]}
        async with fake_proxy() as proxy:
            egress = {"url": proxy.url, "resolve": "here"}
            async with Front(egress, names, guard={"exempt": []}) as front, association(front.address) as mine:
                mine.send(encode_header(Address("inner.test", 53)) + b"x")
                await until(lambda: front.drops == {"denied": 1})
                mine.send(encode_header(Address("here.test", 53)) + b"x")
                assert (await proxy.arrived())[0] == encode_header(parse_address("8.8.8.8:53")) + b"x"
                # A name that is a number is an address to whoever resolves it.
                mine.send(encode_header(Address("127.1", 53)) + b"x")
                await until(lambda: front.drops == {"denied": 2})
                await front.end(mine)
            egress = {"url": proxy.url}
            async with Front(egress, names, guard={"exempt": []}) as front, association(front.address) as mine:
                mine.send(encode_header(Address("0x7f000001", 53)) + b"x")
                await until(lambda: front.drops == {"denied": 1})
                await front.end(mine)

    run(main)


def test_a_way_out_from_another_address(run: Run) -> None:
    """An egress without a proxy gives datagrams its source, too; names are resolved here then."""

    async def main() -> None:
        egress = {"source": ["127.0.0.5"]}
        names = {"here.test": ["127.0.0.1"]}
        async with Front(egress, names) as front, association(front.address) as mine:
            with destination() as echo:
                for header in (echo.header, encode_header(Address("here.test", echo.address.port))):
                    assert unwrap(await mine.ask(header + b"x")) == (echo.address, b"x")
                assert {sender[0] for _, sender in echo.received} == {"127.0.0.5"}
            assert (await front.end(mine)).via == "out"

    run(main)


def test_block_drops_datagrams(run: Run) -> None:
    """All of an association at once with a refusal, those to some destinations one by one."""

    async def main() -> None:
        async with Front({"chain": ["block"]}, rule=[{"action": "allow", "via": "block"}]) as front:
            assert await refusal(front) == (2, "egress block: datagrams")
        rules = [{"ports": [53], "action": "allow", "via": "block"}]
        async with Front({"chain": ["block"]}, rule=rules) as front, association(front.address) as mine:
            mine.send(encode_header(parse_address("192.0.2.1:53")) + b"x")
            await until(lambda: front.drops == {"denied": 1})
            session = await front.end(mine)
            assert session.error == "egress block: datagrams"

    run(main)


def test_a_way_out_that_has_ended_before_it_is_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has waited for it is dropped and counted, and the line says why."""

    async def exit_and_lose(association: datagram.Association, via: str) -> Hops:
        return Hops(None, association.associations.dialer.resolver.resolve)

    monkeypatch.setattr(datagram.Association, "exit", exit_and_lose)

    async def main() -> None:
        rules = [{"ports": [53], "action": "allow", "via": "out"}]
        async with Front({"url": "socks5://127.0.0.1:9"}, rule=rules) as front, association(front.address) as mine:
            mine.send(encode_header(parse_address("192.0.2.1:53")) + b"x")
            await until(lambda: front.drops == {"unsent": 1})
            session = await front.end(mine)
            assert session.error == "the way out has ended behind its opening"

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
