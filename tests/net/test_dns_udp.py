"""UdpServer against name servers of the test, on loopback: by UDP, and by TCP what does not fit."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import dns.message
import dns.rcode
import pytest
from dns.rdatatype import RdataType

from conftest import PATIENCE, Run
from doubles import until
from name_servers import StreamServer, Zone, stream_server, udp_server
from support import closed_port
from tabi.errors import DialError
from tabi.net import dns_udp, kinds
from tabi.net.dns_udp import UdpServer
from tabi.net.resolve import Answer
from tabi.wire.address import Address
from tabi.wire.dns import A
from tabi.wire.socks5 import ReplyCode

LOOPBACK = IPv4Address("127.0.0.1")
TABLE = {
    "both.test": ["192.0.2.1", "2001:db8::1"],
    "four.test": ["192.0.2.4"],
    "six.test": ["2001:db8::6"],
    "none.test": [],
}


@asynccontextmanager
async def asking(port: int, seconds: float = PATIENCE, **options: Any) -> AsyncIterator[UdpServer]:
    """What asks a server; at the end nothing is left of it."""
    client = UdpServer(asyncio.get_running_loop(), Address(LOOPBACK, port), seconds, **options)
    try:
        yield client
    finally:
        await client.close()
        await asyncio.sleep(0)
        assert not client.sockets
        assert not client.tasks


async def fails(client: UdpServer, name: str = "four.test") -> tuple[str, int | None]:
    """Ask; returns the error's text, behind the names that begin it, and its reply code."""
    with pytest.raises(DialError) as caught:
        await client.answer(name)
    start = f"{name}: {client.address}: "
    assert str(caught.value).startswith(start)
    assert caught.value.errno is None
    return str(caught.value).removeprefix(start), caught.value.reply_code


@pytest.mark.parametrize(
    ("name", "addresses", "text"),
    [
        ("both.test", TABLE["both.test"], "no address"),
        ("four.test", TABLE["four.test"], "no address"),
        ("six.test", TABLE["six.test"], "no address"),
        ("none.test", [], "no address"),
        ("unknown.test", [], "domain name not found"),
    ],
)
def test_a_name_is_asked_for(run: Run, name: str, addresses: list[str], text: str) -> None:
    """Addresses of both kinds with their time to live; that there are none has one too."""

    async def main() -> None:
        zone = Zone(TABLE, ttl=77)
        async with udp_server(zone) as port, asking(port) as client:
            found = await client.answer(name)
            assert set(found.addresses) == set(map(ip_address, addresses))
            assert (found.ttl, found.whole, found.rest) == (77, True, None)
            assert addresses or found.text == text
            assert sorted(zone.asked) == [(name, RdataType.A), (name, RdataType.AAAA)]

    run(main)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_what_an_address_is_called(run_once: Run, address: str) -> None:
    """Of both kinds; what has no name, or none that is one, has the reason."""

    async def main() -> None:
        zone = Zone(names={address: ["one.test"], "192.0.2.66": [r"evil\010.test"]})
        zone.table["9.2.0.192.in-addr.arpa"] = "9.0-15.2.0.192.in-addr.arpa"
        zone.pointers["9.0-15.2.0.192.in-addr.arpa"] = ["nine.test"]
        async with udp_server(zone) as port, asking(port) as client:
            assert (await client.reverse(ip_address(address)))[:2] == ("one.test", 60)
            assert (await client.reverse(ip_address("192.0.2.9"))).name == "nine.test"  # RFC 2317
            nobody = await client.reverse(ip_address("192.0.2.7"))
            assert (nobody.name, nobody.text) == (None, "domain name not found")
            assert "is not a host name" in (await client.reverse(ip_address("192.0.2.66"))).text

    run_once(main)


def test_a_question_has_no_edns(run_once: Run) -> None:
    """A server that answers EDNS with an error, or a forwarder that mixes answers with and without DNS cookies, is
    never met by it."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.dislikes_edns = dns.rcode.FORMERR
        async with udp_server(zone) as port, asking(port) as client:
            assert (await client.answer("four.test")).addresses

    run_once(main)


def test_many_names_at_once_get_each_their_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share a few sockets, which are closed when nothing is asked any more."""
    monkeypatch.setattr(dns_udp, "SHARED", 16)
    monkeypatch.setattr(dns_udp, "SOCKETS", 2)

    async def main() -> None:
        zone = Zone({f"n{number}.test": [f"192.0.2.{number}"] for number in range(1, 61)})
        async with udp_server(zone) as port, asking(port) as client:
            asked = asyncio.gather(*map(client.answer, zone.table))
            await asyncio.sleep(0)
            assert len(client.sockets) == 2
            found = await asked
            assert [str(answer.addresses[0]) for answer in found] == [zone.table[name][0] for name in zone.table]
            assert client.sockets == []

    run(main)


def test_each_lookup_has_a_port_of_its_own(run_once: Run) -> None:
    """Who wants to forge an answer has to guess it, as well as the ID."""

    async def main() -> None:
        seen = set()
        zone = Zone(TABLE)
        async with udp_server(zone) as port, asking(port) as client:
            for _ in range(8):
                zone.answering.clear()
                asked = asyncio.get_running_loop().create_task(client.answer("four.test"))
                await until(lambda: client.sockets)
                (one,) = client.sockets
                seen.add((one.sock.getsockname()[1], *one.waiting))
                zone.answering.set()
                await asked
        assert len(seen) == 8

    run_once(main)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test", ".".join(["label"] * 60)])
def test_what_is_no_name_is_asked_of_nobody(run_once: Run, name: str) -> None:
    """It has no address, and no server is at fault."""

    async def main() -> None:
        zone = Zone(TABLE)
        async with udp_server(zone) as port, asking(port) as client:
            found = await client.answer(name)
            assert (found.addresses, found.ttl) == ([], None)
            assert found.text.startswith("misformatted name: ")
            assert zone.asked == []

    run_once(main)


@pytest.mark.parametrize(
    ("rcode", "text"), [(2, "servfail"), (5, "refused"), (1, "formerr"), (4, "notimp"), (9, "rcode 9")]
)
def test_a_server_that_cannot_answer(run_once: Run, rcode: int, text: str) -> None:
    """That is no answer: the error says what the server said, reply 04."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.rcode = dns.rcode.Rcode(rcode)
        async with udp_server(zone) as port, asking(port) as client:
            assert await fails(client) == (text, ReplyCode.HOST_UNREACHABLE)

    run_once(main)


@pytest.mark.parametrize("lie", ["id", "question", "no response", "nonsense"])
def test_a_lie_is_not_believed(run_once: Run, lie: Any) -> None:
    """It is ignored, for it may be forged: the true answer may come yet."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.lie = lie
        async with udp_server(zone) as port, asking(port, 0.2) as client:
            assert await fails(client) == ("no answer within 0.2 s", ReplyCode.HOST_UNREACHABLE)

    run_once(main)


def test_a_datagram_that_is_lost_is_sent_again(run_once: Run) -> None:
    """Half of the time is for the second one."""

    async def main() -> None:
        zone, first = Zone(TABLE), set[bytes]()
        honest = zone.reply

        async def reply(octets: bytes) -> bytes:
            if octets not in first:
                first.add(octets)
                await asyncio.Event().wait()
            return await honest(octets)

        zone.reply = reply  # type: ignore[method-assign]
        async with udp_server(zone) as port, asking(port, 0.4) as client:
            assert (await client.answer("both.test")).addresses
            assert len(first) == 2

    run_once(main)


def test_a_server_that_is_not_there_is_told_at_once(run_once: Run) -> None:
    """Reply 01: nothing is known of the name; so it is where this machine has no way to the server."""

    async def main() -> None:
        with closed_port() as port:
            async with asking(port) as client:
                assert await fails(client) == ("connection refused", ReplyCode.GENERAL_FAILURE)
        client = UdpServer(asyncio.get_running_loop(), Address(IPv6Address("fe80::1%nothere0"), 53), PATIENCE)
        with pytest.raises(DialError) as caught:
            await client.answer("four.test")
        assert caught.value.reply_code == ReplyCode.GENERAL_FAILURE

    run_once(main)


@pytest.mark.parametrize("only_tcp", [False, True])
def test_what_does_not_fit_comes_by_tcp(run_once: Run, only_tcp: bool) -> None:
    """At the same port; or everything, if that is wanted."""

    async def main() -> None:
        by_udp, by_tcp = Zone(TABLE), Zone({"four.test": [f"192.0.2.{number}" for number in range(1, 200)]})
        serve = StreamServer(by_tcp)
        async with stream_server(serve) as port, udp_server(by_udp, port, truncate=True):
            async with asking(port, only_tcp=only_tcp) as client:
                assert len((await client.answer("four.test")).addresses) == 199
                assert bool(by_udp.asked) == (not only_tcp)
            for writer in serve.writers:
                writer.close()

    run_once(main)


def test_without_tcp_a_part_is_better_than_nothing(run_once: Run) -> None:
    """Some networks let only UDP through; where the part is empty it is a failure."""

    async def main() -> None:
        zone = Zone({"four.test": ["192.0.2.4"], "none.test": []})
        honest = zone.reply

        async def reply(octets: bytes) -> bytes:
            found = bytearray(await honest(octets))
            found[2] |= 2  # TC
            return bytes(found)

        zone.reply = reply  # type: ignore[method-assign]
        async with udp_server(zone) as port, asking(port) as client:
            found = await client.answer("four.test")
            assert (found.addresses, found.whole) == ([ip_address("192.0.2.4")], False)
            text, reply_code = await fails(client, "none.test")
            assert "refused" in text or "connect" in text
            assert reply_code == ReplyCode.HOST_UNREACHABLE

    run_once(main)


@pytest.mark.parametrize("lie", ["id", "question", "nonsense"])
def test_a_lie_by_tcp_is_a_failure(run_once: Run, lie: Any) -> None:
    """There is nothing else to wait for on a connection."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.lie = lie
        async with stream_server(StreamServer(zone)) as port, asking(port, only_tcp=True) as client:
            text, _ = await fails(client)
            assert text

    run_once(main)


def test_a_silent_server_by_tcp_has_a_deadline(run_once: Run) -> None:
    """As by UDP."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.answering.clear()
        async with stream_server(StreamServer(zone)) as port, asking(port, 0.1, only_tcp=True) as client:
            assert (await fails(client))[0] == "no answer within 0.1 s"
            zone.answering.set()

    run_once(main)


@pytest.mark.parametrize("how", ["drops", "fails", "denies"])
def test_ipv4_only_is_never_failed_by_ipv6(run_once: Run, how: str) -> None:
    """It is not even asked for."""

    async def main() -> None:
        zone = Zone(TABLE)
        getattr(zone, how).add(RdataType.AAAA)
        async with udp_server(zone) as port, asking(port, kinds=(A,)) as client:
            assert await client.answer("both.test") == Answer([ip_address("192.0.2.1")], 60)
            assert zone.asked == [("both.test", RdataType.A)]

    run_once(main)


@pytest.mark.parametrize("kind", [RdataType.A, RdataType.AAAA])
def test_a_kind_that_is_not_answered_delays_little(
    run_once: Run, kind: RdataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty milliseconds; what comes later is the rest."""
    monkeypatch.setattr(kinds, "DELAY", 0.05)

    async def main() -> None:
        zone = Zone(TABLE)
        zone.drops.add(kind)
        async with udp_server(zone) as port, asking(port) as client:
            started = asyncio.get_running_loop().time()
            found = await client.answer("both.test")
            assert asyncio.get_running_loop().time() - started < 1
            assert [address.version for address in found.addresses] == [6 if kind == RdataType.A else 4]
            assert found.rest is not None
            zone.dropping.set()
            assert {address.version for address in (await found.rest).addresses} == {4, 6}

    run_once(main)


@pytest.mark.parametrize("how", ["fails", "denies"])
def test_a_kind_that_fails_leaves_the_other(run_once: Run, how: str) -> None:
    """SERVFAIL, or that there is no such name, for IPv6 alone; without IPv4 a failure stays one."""

    async def main() -> None:
        zone = Zone(TABLE)
        getattr(zone, how).add(RdataType.AAAA)
        async with udp_server(zone) as port, asking(port) as client:
            found = await client.answer("both.test")
            assert (found.addresses, found.whole) == ([ip_address("192.0.2.1")], how == "denies")
            if how == "fails":
                assert (await fails(client, "six.test"))[0] == "servfail"

    run_once(main)


def test_who_gives_up_leaves_nothing(run_once: Run) -> None:
    """Neither a socket nor a timer nor a complaint."""

    async def main() -> None:
        complaints: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        zone = Zone(TABLE)
        zone.answering.clear()
        async with udp_server(zone) as port, asking(port) as client:
            for what in (client.answer("four.test"), client.reverse(LOOPBACK)):
                task = asyncio.get_running_loop().create_task(what)
                await until(lambda: client.sockets)
                task.cancel()
                await asyncio.wait((task,))
                await asyncio.sleep(0)
                assert client.sockets == []
        gc.collect()
        assert complaints == []

    run_once(main)


@pytest.mark.parametrize("only_tcp", [False, True])
def test_questions_under_way_end_when_it_is_closed(run_once: Run, only_tcp: bool) -> None:
    """Nobody waits for an answer that cannot come any more."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.answering.clear()
        async with stream_server(StreamServer(zone)) as port, udp_server(zone, port):
            client = UdpServer(asyncio.get_running_loop(), Address(LOOPBACK, port), PATIENCE, only_tcp=only_tcp)
            task = asyncio.get_running_loop().create_task(client.answer("four.test"))
            await until(lambda: zone.asked)
            await client.close()
            with pytest.raises(DialError, match="the resolver was closed"):
                await task
            zone.answering.set()

    run_once(main)


def test_a_socket_that_cannot_send_fails_its_questions(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, unless it is only full: then the datagram counts as lost."""

    class Full(socket.socket):
        error: OSError = BlockingIOError()

        def send(self, *_: Any) -> int:
            raise self.error

    async def main() -> None:
        monkeypatch.setattr(socket, "socket", Full)
        async with asking(9, 0.1) as client:
            assert (await fails(client))[0] == "no answer within 0.1 s"
            Full.error = OSError(101, "Network is unreachable")
            assert await fails(client) == ("network is unreachable", ReplyCode.GENERAL_FAILURE)

    run_once(main)


def test_the_message_of_a_question_is_short(run_once: Run) -> None:
    """Head, name, type, class: 12 octets and the name's 11 and 4."""

    async def main() -> None:
        zone = Zone(TABLE)
        async with udp_server(zone) as port, asking(port) as client:
            await client.answer("four.test")
            assert zone.sizes == [27, 27]
            assert dns.message.make_query("four.test", "A", use_edns=False).to_wire().__len__() == 27

    run_once(main)
