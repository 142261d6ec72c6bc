"""Where datagrams go, from outside: names, rules and the guard, sockets and egresses, and what waits for them."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv6Address

import pytest

from conftest import Run
from datagrams import Front, Place, association, destination, fake_proxy, refusal, udp_socket, unwrap
from doubles import no_descriptors_left
from sockets import until
from tabi.errors import PolicyDenied
from tabi.net.udp_path import UdpPath
from tabi.policy.policy import Pending
from tabi.relay import udp_context, udp_routes
from tabi.relay.udp_routes import FORGET_REFUSAL, MAX_LOOKUPS, MAX_WAITING
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import encode_header

SIZES = (0, 1, 1472, 9000, 60000)
ANY = Address(parse_address("0.0.0.0:0").host, 0)


@pytest.fixture
def outer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client counts as one from outside."""
    monkeypatch.setattr("tabi.policy.guard.Guard.is_for", lambda guard, host: True)


def test_an_ipv4_address_dressed_as_ipv6_is_reached_over_ipv4(run: Run) -> None:
    """::ffff:127.0.0.1 is 127.0.0.1, and the reply says so."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                dressed = Address(IPv6Address("::ffff:127.0.0.1"), echo.address.port)
                assert unwrap(await client.ask(encode_header(dressed) + b"x")) == (echo.address, b"x")

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
                await until(lambda: place.resolver.asked and len(place.one.routes[header].waiting) == 2)
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
            place.server.parts.associations.context.time = lambda: now
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
    monkeypatch.setattr(udp_routes, "MAX_ROUTES", 1)

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
            await until(lambda: not place.server.parts.associations.context.lookups)
            assert place.drops == {"waiting": 6, "unresolved": MAX_WAITING + MAX_LOOKUPS - 1}

    run(main)


def test_octets_that_wait_for_names_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one association and in all of them: the rest is dropped and counted, and what waited gives its room back."""
    monkeypatch.setattr(udp_routes, "MAX_HELD", 1000)
    monkeypatch.setattr(udp_context, "MEMORY", 1500)

    async def main() -> None:
        names = {"here.test": ["127.0.0.1"]}
        async with Place(names=names) as place, association(place.address) as one, association(place.address) as two:
            associations = place.server.parts.associations
            place.resolver.answering.clear()
            with destination() as echo:
                header = encode_header(Address("here.test", echo.address.port))
                for size in (600, 400, 1):
                    one.send(header + bytes(size))
                await until(lambda: associations.context.memory.held == 1000 and len(place.resolver.asked) == 1)
                for size in (501, 500):
                    two.send(header + bytes(size))
                await until(lambda: associations.context.memory.held == 1500)
                place.resolver.answering.set()
                assert [len(unwrap(await client.receive())[1]) for client in (one, one, two)] == [600, 400, 500]
                assert associations.context.memory.held == 0
                for client in (one, two):
                    assert (await place.end(client)).drops == {"waiting": 1}

    run(main)


def test_what_waits_is_counted_although_it_was_forgotten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every datagram is relayed or dropped for a reason, also one whose name other destinations have pushed out."""
    monkeypatch.setattr(udp_routes, "MAX_ROUTES", 1)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.resolver.answering.clear()
            with destination() as echo:
                client.send(encode_header(Address("slow.test", 9)) + b"x")
                await client.ask(echo.header + b"y")
            session = await place.end(client)
            assert (session.datagrams_up, session.drops) == (1, {"waiting": 1})
            assert place.server.parts.associations.context.memory.held == 0

    run(main)


# --- whose datagrams pass ---


def test_hosts_are_forgotten_in_the_order_of_their_first_contact(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An association remembers so many destinations, senders and hosts; a forgotten one is simply new again."""
    monkeypatch.setattr(udp_routes, "MAX_ROUTES", 2)
    monkeypatch.setattr(udp_routes, "MAX_CONTACTED", 2)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination("127.0.0.1") as one, destination("127.0.0.2") as two, destination("127.0.0.3") as three:
                for _ in range(2):
                    for echo in (one, two, three):
                        assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                        found = place.one
                        assert max(len(found.routes), len(found.router.contacted)) <= 2
                with udp_socket() as other:  # at the first one's address
                    other.sendto(b"forgotten", ("127.0.0.1", two.received[0][1][1]))
                    await until(lambda: place.drops == {"unsolicited": 1})

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


def test_no_socket_toward_a_destination(run: Run) -> None:
    """With the descriptors used up, datagrams are dropped and counted; when there are some again, they pass."""

    async def main() -> None:
        now = 0.0
        async with Place() as place, association(place.address) as client:
            place.server.parts.associations.context.time = lambda: now
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


def test_a_name_whose_first_address_has_no_socket(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next address is taken, and nothing is dropped or called an error."""

    async def main() -> None:
        names = {"both.test": ["127.0.0.1", "::1"]}
        async with Place(names=names) as place, association(place.address) as client:
            opened = place.server.parts.associations.context.io.open_socket

            def no_ipv4(family: int) -> socket.SocketType:
                if family == socket.AF_INET:
                    raise OSError(97, "Address family not supported by protocol")
                return opened(family)

            monkeypatch.setattr(place.server.parts.associations.context.io, "open_socket", no_ipv4)
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

    async def open_and_lose(router: udp_routes.UdpRouter, via: str) -> UdpPath:
        return UdpPath(None, router.context.dialer.resolver.resolve)

    monkeypatch.setattr(udp_routes.UdpRouter, "open_egress", open_and_lose)

    async def main() -> None:
        rules = [{"ports": [53], "action": "allow", "via": "out"}]
        async with Front({"url": "socks5://127.0.0.1:9"}, rule=rules) as front, association(front.address) as mine:
            mine.send(encode_header(parse_address("192.0.2.1:53")) + b"x")
            await until(lambda: front.drops == {"unsent": 1})
            session = await front.end(mine)
            assert session.error == "the egress has ended behind its opening"

    run(main)


def test_each_family_has_a_socket_of_its_own(run: Run) -> None:
    """Opened with the first datagram that needs it, and used by all that follow."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as one, destination() as two, destination("::1") as three, destination("::1") as four:
                for echo in (one, three, two, four):
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                assert [found.family for found in place.one.router.sockets] == [socket.AF_INET, socket.AF_INET6]
                assert one.received[0][1] == two.received[0][1]
                assert three.received[0][1] == four.received[0][1]

    run(main)


def test_an_egress_that_ends_takes_its_routes_along(run: Run) -> None:
    """Datagrams to those destinations are dropped for a while; those by other egresses go on."""

    async def main() -> None:
        rules = [{"ports": [53], "action": "allow", "via": "out"}]
        async with (
            fake_proxy() as proxy,
            Front({"url": proxy.url}, rule=rules) as front,
            association(front.address) as mine,
        ):
            with destination() as echo:
                header = encode_header(parse_address("192.0.2.1:53"))
                mine.send(header + b"1")
                assert (await proxy.arrived())[0] == header + b"1"
                assert unwrap(await mine.ask(echo.header + b"x")) == (echo.address, b"x")
                proxy.end()
                await until(lambda: len(front.one.router.sockets) == 1)
                mine.send(header + b"lost")
                await until(lambda: front.drops == {"unsent": 1})
                assert unwrap(await mine.ask(echo.header + b"y")) == (echo.address, b"y")
            session = await front.end(mine)
            assert session.error == "egress out: a proxy has ended the association"

    run(main)


def test_datagrams_wait_for_a_verdict_that_takes_time(run_once: Run) -> None:
    """Of an address and of a name: they are sent once the judge has spoken, or dropped."""
    settled: set[Address] = set()

    def destination_policy(asked: Address, addresses: object) -> Pending | None:
        async def settle() -> None:
            await asyncio.sleep(0)
            settled.add(asked)

        if asked not in settled:
            return Pending(settle)
        if asked.port == 1:
            raise PolicyDenied("not there")
        return None

    async def main() -> None:
        async with Place(names={"a.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            place.one.router.destination_policy = destination_policy
            with destination() as there:
                for header in (there.header, encode_header(Address("a.test", there.address.port))):
                    client.send(header + b"hello")
                    assert unwrap(await client.receive()) == (there.address, b"hello")
            client.send(encode_header(parse_address("127.0.0.1:1")) + b"hello")
            while not place.drops:
                await asyncio.sleep(0)
            assert place.drops == {"denied": 1}
            assert place.one.session.error == "not there"

    run_once(main)


def test_names_that_lead_to_an_address_can_be_listed(run_once: Run) -> None:
    """The last ones, by that address; no numbers, and no names that were not found. The senders can be forgotten."""

    async def main() -> None:
        async with Place(names={"a.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as one, destination() as two, destination() as three:
                client.send(encode_header(Address("missing.test", 9)) + b"x")
                for name in ("a.test", "127.0.0.1"):
                    for where in (one, two, three):
                        header = where.header if name != "a.test" else encode_header(Address(name, where.address.port))
                        await client.ask(header + b"x")
                router = place.one.router
                named = {where.address: Address("a.test", where.address.port) for where in (one, two, three)}
                assert router.find_named(9) == named
                assert len(router.find_named(2)) == 2
                router.forget_senders()
                assert not place.one.senders
                await client.ask(one.header + b"x")
                assert len(place.one.senders) == 1

    run_once(main)
