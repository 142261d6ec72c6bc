"""Datagrams by egresses that were opened for them: through proxies and pools, and what comes back from there."""

from __future__ import annotations

import contextlib
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from conftest import Run
from datagrams import (
    Front,
    Inspector,
    Place,
    Watcher,
    association,
    destination,
    fake_proxy,
    pass_on,
    refusal,
    udp_socket,
    unwrap,
)
from sockets import until
from tabi.net.udp_path import UdpPath
from tabi.relay import udp_context, udp_routes, udp_sockets
from tabi.session import Session
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import LAST, MAX_DATAGRAM, encode_header


class Full:
    """A socket that takes no datagram."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def sendmsg(self, *arguments: object) -> int:
        raise BlockingIOError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def is_quiet(place: Place) -> bool:
    """Whether a server has no association."""
    return not place.server.parts.associations.active


def test_datagrams_go_through_a_proxy(run: Run, kernel: str) -> None:
    """Of every size, to addresses of both families and to a name that only the proxy knows; each comes back whole."""

    async def main() -> None:
        async with Place(names={"there.test": ["127.0.0.1"]}) as up, Front({"url": up.server.url}) as front:
            async with association(front.address) as mine:
                with destination() as echo, destination("::1") as other:
                    named = encode_header(Address("there.test", echo.address.port))
                    for header, source in ((echo.header, echo), (other.header, other), (named, echo)):
                        for payload in (b"x", b"", bytes(9000), bytes(60000)):
                            assert unwrap(await mine.ask(header + payload)) == (source.address, payload)
                    many = [b"%d" % number * 10 for number in range(100, 200)]
                    for payload in many:
                        mine.send(echo.header + payload)
                    assert [unwrap(await mine.receive())[1] for _ in many] == many
                assert front.resolver.asked == []
                session = await front.end(mine)
            theirs = await up.ended.get()
            assert (session.via, session.drops, session.close) == ("out", {}, "client")
            assert (session.up, session.down, session.datagrams_up) == (theirs.up, theirs.down, theirs.datagrams_up)
            assert session.up == session.down

    run(main)


def test_datagrams_go_through_a_chain(run: Run, kernel: str) -> None:
    """Each proxy has its own association; the last one sees the destination, and its end is the end of all."""

    async def main() -> None:
        async with Place() as one, Place() as two, Place() as three:
            chain = {"chain": [place.server.url for place in (one, two, three)]}
            async with Front(chain) as front, association(front.address) as mine:
                with destination() as echo:
                    for payload in (b"x", b"", bytes(50000)):
                        assert unwrap(await mine.ask(echo.header + payload)) == (echo.address, payload)
                    ((_, sender), *_) = echo.received
                    assert len(three.one.router.sockets) == 1
                    assert sender[1] == three.one.router.sockets[0].sock.getsockname()[1]
                    assert front.server.parts.associations.controls == 3
                await front.end(mine)
                assert front.server.parts.associations.controls == 0
                for place in (one, two, three):
                    await until(partial(is_quiet, place))

    run(main)


@pytest.mark.parametrize(
    ("reply_code", "expected", "text"),
    [
        (2, 2, "0.0.0.0:0: the proxy says not allowed by ruleset (reply 02)"),
        (7, 7, "0.0.0.0:0: the proxy says command not supported (reply 07)"),
        (0, 1, "a proxy gives"),
    ],
)
def test_a_client_is_told_where_its_way_carries_no_datagrams(
    run: Run, reply_code: int, expected: int, text: str
) -> None:
    """At once, with the proxy's own reply if there is one; nothing stays open."""

    async def main() -> None:
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front:
            proxy.reply_code = reply_code
            if not reply_code:
                proxy.bound = Address(ip_address("127.0.0.1"), 0)
                address = proxy.url.removeprefix("socks5://")
                assert await refusal(front) == (1, f"{address}: the proxy gives 127.0.0.1:0 for its relay")
            else:
                assert await refusal(front) == (expected, text)
            assert not front.server.parts.associations.active

    run(main)


def test_a_relay_that_there_is_no_way_to(run: Run) -> None:
    """The client gets a failure, its own port and the connection to the proxy are closed."""

    async def main() -> None:
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front:
            proxy.bound = parse_address("255.255.255.255:9")
            assert await refusal(front) == (1, "255.255.255.255:9: permission denied")
            assert (front.server.parts.associations.active, front.server.parts.associations.controls) == (set(), 0)
            await until(lambda: all(writer.is_closing() for writer in proxy.controls))

    run(main)


def test_a_way_that_does_not_open_is_tried_again_later(run: Run) -> None:
    """Its datagrams are dropped meanwhile, and the line says why; others are not held up."""

    async def main() -> None:
        now = 0.0
        rules = [{"ports": [53], "action": "allow", "via": "out"}]
        async with fake_proxy() as proxy, Front({"url": proxy.url}, rule=rules) as front:
            proxy.reply_code = 5
            front.server.parts.associations.context.time = lambda: now
            async with association(front.address) as mine:
                header = encode_header(parse_address("192.0.2.1:53"))
                mine.send(header + b"lost")
                await until(lambda: front.drops == {"unsent": 1})
                mine.send(header + b"lost too")
                await until(lambda: front.drops == {"unsent": 2})
                assert proxy.asked == 1
                proxy.reply_code, now = 0, 11.0
                mine.send(header + b"found")
                assert (await proxy.arrived())[0] == header + b"found"
                session = await front.end(mine)
                assert session.error is not None
                assert "reply 05" in session.error

    run(main)


def test_an_end_at_the_proxy_is_no_end_of_the_client(run: Run) -> None:
    """What comes soon after is dropped; then the way out is opened again, for all of its destinations."""

    async def main() -> None:
        now = 0.0
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front:
            front.server.parts.associations.context.time = lambda: now
            async with association(front.address) as mine:
                header = encode_header(parse_address("192.0.2.1:53"))
                mine.send(header + b"1")
                assert (await proxy.arrived())[0] == header + b"1"
                proxy.end()
                await until(lambda: not front.one.router.sockets)
                assert front.server.parts.associations.controls == 0
                mine.send(header + b"lost")
                await until(lambda: front.drops == {"unsent": 1})
                now = udp_routes.RETRY
                mine.send(header + b"2")
                assert (await proxy.arrived())[0] == header + b"2"
                assert proxy.asked == 2
                session = await front.end(mine)
                assert session.error == "egress out: a proxy has ended the association"

    run(main)


def test_an_end_right_behind_the_reply(run: Run) -> None:
    """A proxy that ends at once has opened nothing: the datagrams are dropped, and the line says why."""

    async def main() -> None:
        rules = [{"ports": [53], "action": "allow", "via": "out"}]
        async with fake_proxy() as proxy, Front({"url": proxy.url}, rule=rules) as front:
            real = front.server.parts.gate.associate

            async def open_and_lose(session: Session, via: str) -> UdpPath:
                path = await real(session, via)
                proxy.end()
                with contextlib.suppress(ConnectionResetError):
                    assert await path.controls[0].peek(1) == b""
                return path

            async with association(front.address) as mine:
                front.one.router.open_path = open_and_lose
                mine.send(encode_header(parse_address("192.0.2.1:53")) + b"lost")
                await until(lambda: front.drops == {"unsent": 1})
                session = await front.end(mine)
                assert session.error == "egress out: a proxy has ended the association behind its reply"
                assert front.server.parts.associations.controls == 0

    run(main)


def test_a_client_that_leaves_while_its_way_is_opened(run: Run) -> None:
    """The proxy is left too, and what waited is counted."""

    async def main() -> None:
        rules = [{"ports": [53], "action": "allow", "via": "out"}]
        async with fake_proxy() as proxy, Front({"url": proxy.url}, rule=rules) as front:
            proxy.answering.clear()
            async with association(front.address) as mine:
                mine.send(encode_header(parse_address("192.0.2.1:53")) + b"x")
                mine.send(encode_header(Address("name.test", 53)) + b"y")
                await until(lambda: proxy.asked and len(front.one.router.lookups or ()) == 2)
                session = await front.end(mine)
                assert session.drops == {"waiting": 2}
            await until(lambda: not front.server.parts.associations.context.lookups)

    run(main)


def test_what_comes_from_the_relay(run: Run, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders that the client has sent to, with headers of any length, in any order; strangers and rubbish are dropped
    and counted, fragments put together."""
    monkeypatch.setattr(udp_sockets, "MAX_SENDERS", 2)

    async def main() -> None:
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front, association(front.address) as mine:
            known = [parse_address("192.0.2.1:53"), parse_address("[2001:db8::1]:53"), parse_address("192.0.2.2:1")]
            for address in known:
                mine.send(encode_header(address) + b"x")
            arrived = [await proxy.arrived() for _ in known]
            sender = arrived[0][1]

            def deliver(data: bytes) -> None:
                proxy.relay.sendto(data, sender)

            for address in (known[0], known[1], known[1], known[0], known[2], known[1]):
                for payload in (b"y", b"", bytes(1000)):
                    deliver(encode_header(address) + payload)
                for payload in (b"y", b"", bytes(1000)):
                    assert unwrap(await mine.receive()) == (address, payload)
            assert front.drops == {}
            for data in (b"", b"\0\0\0", b"\0\0\0\x09" + bytes(20), encode_header(known[0])[:9]):
                deliver(data)
            stranger = parse_address("192.0.2.99:53")
            for _ in range(2):  # taken apart, and cut where it should be
                deliver(encode_header(known[0]) + b"y")
                assert unwrap(await mine.receive()) == (known[0], b"y")
                deliver(encode_header(stranger) + b"z")
            deliver(encode_header(Address("name.test", 53)) + b"z")
            deliver(encode_header(known[0], 1) + b"frag")
            deliver(encode_header(known[0], 2 | LAST) + b"ment")
            assert unwrap(await mine.receive()) == (known[0], b"fragment")
            assert front.drops == {"malformed": 4, "unsolicited": 3}
            deliver(encode_header(known[0], 1) + b"never whole")
            deliver(encode_header(known[0]) + b"!")
            assert unwrap(await mine.receive()) == (known[0], b"!")
            mine.send(encode_header(Address("name.test", 53)) + b"x")  # from then on anyone may be meant
            await proxy.arrived()
            for address in (stranger, Address("name.test", 53)):
                deliver(encode_header(address) + b"z")
                assert unwrap(await mine.receive()) == (address, b"z")
            session = await front.end(mine)
            assert session.drops == {"malformed": 4, "unsolicited": 3, "fragment": 1}

    run(main)


def test_fragments_from_the_relay_wait_for_a_time_and_within_a_bound(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count among those of all associations, and are given back at the end."""

    async def main() -> None:
        now = 0.0
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front, association(front.address) as mine:
            associations = front.server.parts.associations
            associations.context.time = lambda: now
            header, first = (
                encode_header(parse_address("192.0.2.1:53")),
                b"\0\0\x01" + encode_header(parse_address("192.0.2.1:53"))[3:],
            )
            mine.send(header + b"x")
            _, sender = await proxy.arrived()
            proxy.relay.sendto(first + b"four", sender)
            await until(lambda: associations.context.memory.held == 4)
            associations.sweep(9.0)
            assert associations.context.memory.held == 4
            associations.sweep(11.0)
            assert (associations.context.memory.held, front.drops) == (0, {"fragment": 1})
            monkeypatch.setattr(udp_context, "MEMORY", 8)
            proxy.relay.sendto(first + bytes(9), sender)
            await until(lambda: front.drops == {"fragment": 2})
            assert associations.context.memory.held == 0
            proxy.relay.sendto(first + b"four", sender)
            await until(lambda: associations.context.memory.held == 4)
            session = await front.end(mine)
            assert (associations.context.memory.held, session.drops) == (0, {"fragment": 3})

    run(main)


def test_what_is_too_long_with_its_header(run: Run, kernel: str) -> None:
    """A datagram of the longest kind, whose header here is longer than that to the client, or cannot be sent on."""

    async def main() -> None:
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front, association(front.address) as mine:
            address = parse_address("192.0.2.1:53")
            header = encode_header(address)
            mine.send(header + b"x")
            _, sender = await proxy.arrived()
            proxy.relay.sendto(header + bytes(MAX_DATAGRAM - len(header)), sender)
            assert len(await mine.receive()) == MAX_DATAGRAM
            # Put together from fragments it may be longer than any datagram.
            for frag in (1, 2 | LAST):
                proxy.relay.sendto(encode_header(address, frag) + bytes(MAX_DATAGRAM // 2), sender)
            await until(lambda: front.drops == {"too_large": 1})
            front.one.port.sock = Full(front.one.port.sock)  # type: ignore[assignment]
            proxy.relay.sendto(encode_header(address, 1 | LAST) + b"x", sender)
            await until(lambda: front.drops == {"too_large": 1, "unsent": 1})
            await front.end(mine)

    run(main)


def test_limits_hold_through_proxies(run: Run) -> None:
    """What comes back is charged as it is without one, also what is taken apart; the rest is dropped."""

    async def main() -> None:
        async with fake_proxy() as proxy:
            limits = {"bandwidth": "1 kB/s", "burst": 4096}
            async with Front({"url": proxy.url}, limits=limits) as front, association(front.address) as mine:
                known = [parse_address("192.0.2.1:53"), parse_address("[2001:db8::1]:53")]
                for address in known:
                    mine.send(encode_header(address) + b"x")
                (_, sender), _ = [await proxy.arrived() for _ in known]
                for address in known:  # the second has a header that is longer than expected, and is taken apart
                    for _ in range(3):
                        proxy.relay.sendto(encode_header(address) + bytes(1500), sender)
                for _ in range(2):
                    assert unwrap(await mine.receive()) == (known[0], bytes(1500))
                await until(lambda: front.drops == {"limited": 4})
                await front.end(mine)

    run(main)


def test_a_pool_gives_datagrams_to_a_member_that_can_carry_them(run: Run) -> None:
    """One that speaks HTTP is passed over and stays in; one that is dead is out; the one used counts as long."""

    async def main() -> None:
        async with fake_proxy() as proxy:
            with udp_socket() as silent:
                dead = f"socks5://127.0.0.1:{silent.getsockname()[1]}"
            members = {"members": ["http://127.0.0.1:9", dead, proxy.url], "balance": "round-robin"}
            async with Front(members) as front:
                async with association(front.address) as mine:
                    mine.send(encode_header(parse_address("192.0.2.1:53")) + b"x")
                    await proxy.arrived()
                    pool = front.server.parts.egresses.pools[0].pool
                    http, gone, used = pool.members
                    assert (http.failures, gone.failures, used.failures) == (0, 1, 0)
                    assert (used.running, front.one.session.member) == (1, proxy.url)
                    await front.end(mine)
                assert used.running == 0
            async with Front({"members": ["http://127.0.0.1:9", "socks4://127.0.0.1:9"]}) as front:
                reply_code, error = await refusal(front)
                assert reply_code == 7
                assert error is not None
                assert error.startswith("pool out: no member that answers can do that: 127.0.0.1:9 is not a SOCKS5 ")

    run(main)


def test_a_way_out_without_proxies_is_opened_too(run: Run) -> None:
    """One from another address has sockets of its own, beside those of the direct egress."""

    async def main() -> None:
        with destination() as echo, destination() as other:
            rules = [{"ports": [other.address.port], "action": "allow", "via": "out"}]
            async with Front({"source": ["127.0.0.5"]}, rule=rules) as front, association(front.address) as mine:
                for one in (echo, other):
                    assert unwrap(await mine.ask(one.header + b"x")) == (one.address, b"x")
                front.server.parts.associations.sweep(0.0)
                assert [sender[0] for one in (echo, other) for _, sender in one.received] == ["127.0.0.1", "127.0.0.5"]
                assert len(front.one.router.sockets) == 2
                await front.end(mine)

    run(main)


def test_nothing_is_left_of_many(run_once: Run) -> None:
    """Two hundred associations through a proxy, one after the other: no descriptor and no count stays."""

    async def main() -> None:
        async with Place() as up, Front({"url": up.server.url}) as front:
            with destination() as echo:
                for _ in range(200):
                    async with association(front.address) as mine:
                        assert unwrap(await mine.ask(echo.header + b"x")) == (echo.address, b"x")
                        await front.end(mine)
            await until(lambda: not up.server.parts.associations.active)
            assert (front.server.parts.associations.controls, front.server.parts.associations.context.memory.held) == (
                0,
                0,
            )

    run_once(main)


def test_who_is_inspected_gets_one_by_one(run: Run, kernel: str) -> None:
    """What comes back through proxies is shown without its headers to whoever looks."""

    async def main() -> None:
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front:
            inspector = front.server.parts.associations.inspector = Inspector(pass_on)
            async with association(front.address) as mine:
                addresses = [parse_address("192.0.2.1:53"), parse_address("[2001:db8::1]:53")]
                for address in addresses:
                    mine.send(encode_header(address) + b"x")
                (_, sender), _ = [await proxy.arrived() for _ in addresses]
                for address in addresses * 2:
                    proxy.relay.sendto(encode_header(address) + b"y", sender)
                    assert unwrap(await mine.receive()) == (address, b"y")
                down = [found.address for found in inspector.seen if found.direction == "down"]
                assert down == addresses * 2

    run(main)


def test_new_senders_are_heard_of(run: Run, kernel: str) -> None:
    """Behind a proxy too; from one on it is looked into."""

    async def main() -> None:
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front, association(front.address) as mine:
            one, other = parse_address("192.0.2.1:53"), parse_address("192.0.2.1:54")
            watcher = Watcher(front.one, ("down", other))
            mine.send(encode_header(one) + b"x")
            _, sender = await proxy.arrived()
            for address in (one, one, one, other, other, one):
                proxy.relay.sendto(encode_header(address) + b"y", sender)
                assert unwrap(await mine.receive()) == (address, b"y")
            assert {*watcher.heard} == {("up", one), ("down", one), ("down", other)}
            assert [found.address for found in watcher.inspector.seen] == [other, other, one]

    run(main)
