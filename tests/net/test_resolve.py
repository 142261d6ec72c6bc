"""SystemResolver against a name server of the test, on loopback."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import cast

import pycares
import pytest
from dns.rdatatype import RdataType

from conftest import Run
from name_servers import Zone, udp_server
from tabi import Server
from tabi.errors import DialError
from tabi.net import resolve
from tabi.net.resolve import Answer, SystemResolver
from tabi.wire.socks5 import ReplyCode

A, AAAA = 1, 28
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3


class NameServer(asyncio.DatagramProtocol):
    """Answers queries (RFC 1035 section 4) from a table of addresses by name, or with one RCODE."""

    def __init__(self, table: dict[str, list[str]], rcode: int, silent: bool) -> None:
        self.table = table
        self.rcode = rcode
        self.silent = silent
        self.asked: list[tuple[str, int]] = []
        self.heard = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Decode the one question and send the answer."""
        labels, offset = [], 12
        while length := data[offset]:
            labels.append(data[offset + 1 : offset + 1 + length].decode())
            offset += 1 + length
        offset += 5
        name = ".".join(labels).lower()
        (qtype,) = struct.unpack_from("!H", data, offset - 4)
        self.asked.append((name, qtype))
        self.heard.set()
        if self.silent:
            return
        records = [
            struct.pack("!HHHIH", 0xC00C, qtype, 1, 60, len(address.packed)) + address.packed
            for address in map(ip_address, self.table.get(name, []))
            if (address.version == 4) == (qtype == A)
        ]
        rcode = self.rcode or (NOERROR if name in self.table else NXDOMAIN)
        header = data[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, len(records), 0, 0)
        self.transport.sendto(header + data[12:offset] + b"".join(records), addr)


@asynccontextmanager
async def name_server(
    table: dict[str, list[str]], rcode: int = NOERROR, silent: bool = False, names_alone: bool = False
) -> AsyncIterator[tuple[SystemResolver, NameServer]]:
    """A name server and a resolver that asks it."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: NameServer(table, rcode, silent), local_addr=("127.0.0.1", 0)
    )
    host, port = transport.get_extra_info("sockname")
    resolver = SystemResolver(loop, [f"{host}:{port}"], names_alone=names_alone)
    try:
        yield resolver, server
    finally:
        await resolver.close()
        transport.close()
        await asyncio.sleep(0)


def test_a_name_is_resolved_to_all_of_its_addresses(run: Run) -> None:
    """IPv4 and IPv6 addresses come as such, none of them twice."""

    async def main() -> None:
        table = {"both.test": ["127.0.0.1", "127.0.0.2", "::1"]}
        async with name_server(table) as (resolver, server):
            found = await resolver.resolve("both.test")
            assert len(found) == 3
            assert set(found) == {IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2"), IPv6Address("::1")}
            assert {qtype for name, qtype in server.asked if name == "both.test"} == {A, AAAA}

    run(main)


@pytest.mark.parametrize("address", ["127.0.0.9", "::1"])
def test_a_name_may_have_addresses_of_one_family_only(run: Run, address: str) -> None:
    """No record of the other family is no error."""

    async def main() -> None:
        async with name_server({"one.test": [address]}) as (resolver, _):
            assert await resolver.resolve("one.test") == [ip_address(address)]

    run(main)


def test_names_are_resolved_side_by_side(run: Run) -> None:
    """Many queries at once get each its own answer."""

    async def main() -> None:
        table = {f"host{number}.test": [f"127.0.0.{number}"] for number in range(1, 21)}
        async with name_server(table) as (resolver, _):
            found = await asyncio.gather(*(resolver.resolve(name) for name in table))
            assert [str(addresses[0]) for addresses in found] == [addresses[0] for addresses in table.values()]

    run(main)


@pytest.mark.parametrize(
    ("table", "rcode"),
    [({}, NOERROR), ({}, NXDOMAIN), ({"name.test": []}, NOERROR), ({}, SERVFAIL)],
    ids=["unknown", "nxdomain", "no-address", "servfail"],
)
def test_a_name_without_an_address_is_host_unreachable(run: Run, table: dict[str, list[str]], rcode: int) -> None:
    """C8: a name that is unknown, has no address, or whose servers fail, is reply 04; the message names it."""

    async def main() -> None:
        async with name_server(table, rcode) as (resolver, _):
            with pytest.raises(DialError, match=r"^name\.test: ") as caught:
                await resolver.resolve("name.test")
            assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
            assert caught.value.errno is None

    run(main)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test", ".".join(["label"] * 60)])
def test_what_is_no_name_is_an_error_like_any_other(run: Run, name: str) -> None:
    """A client may send any text: what cannot be asked for is answered, not raised as something else."""

    async def main() -> None:
        async with name_server({}) as (resolver, _):
            with pytest.raises(DialError) as caught:
                await resolver.resolve(name)
            assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE

    run(main)


def test_an_answer_says_how_long_it_may_be_kept(run: Run) -> None:
    """The records' time to live comes with the addresses; of what does not exist only that it does not."""

    async def main() -> None:
        async with name_server({"name.test": ["127.0.0.1", "::1"]}) as (resolver, _):
            found = await resolver.answer("name.test")
            assert (set(found.addresses), found.ttl) == ({IPv4Address("127.0.0.1"), IPv6Address("::1")}, 60)
            assert await resolver.answer("other.test") == Answer([], None, "domain name not found")

    run(main)


def test_names_may_be_asked_for_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of the configuration is asked for the very name; a search domain of the system is not tried on it."""
    monkeypatch.setenv("LOCALDOMAIN", "search.test")  # as resolv.conf(5) has it

    async def main() -> None:
        for alone, asked in ((False, {"name", "name.search.test"}), (True, {"name"})):
            async with name_server({}, names_alone=alone) as (resolver, server):
                assert (await resolver.answer("name")).addresses == []
                assert {name for name, _ in server.asked} == asked

    run(main)


def test_the_hosts_file_is_read(run: Run) -> None:
    """localhost is known without asking anyone."""

    async def main() -> None:
        async with name_server({}) as (resolver, server):
            found = await resolver.resolve("localhost")
            assert found
            assert all(address.is_loopback for address in found)
            assert server.asked == []

    run(main)


def test_the_systems_settings_are_the_default(run_once: Run) -> None:
    """Without name servers given, it can be made, asked for localhost, and closed."""

    async def main() -> None:
        resolver = SystemResolver(asyncio.get_running_loop())
        try:
            assert all(address.is_loopback for address in await resolver.resolve("localhost"))
        finally:
            await resolver.close()

    run_once(main)


def test_nobody_is_kept_waiting_by_a_silent_server(run: Run) -> None:
    """A query without an answer can be cancelled, blocks no one meanwhile, and leaves nothing behind at the end."""

    async def main() -> None:
        async with name_server({}, silent=True) as (resolver, server):
            task = asyncio.get_running_loop().create_task(resolver.resolve("silent.test"))
            await server.heard.wait()
            assert (await resolver.resolve("localhost"))[0].is_loopback
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


def test_queries_under_way_end_when_the_resolver_closes(run: Run) -> None:
    """Nobody waits for an answer that cannot come any more."""

    async def main() -> None:
        async with name_server({}, silent=True) as (resolver, server):
            task = asyncio.get_running_loop().create_task(resolver.resolve("silent.test"))
            await server.heard.wait()
            await resolver.close()
            with pytest.raises(DialError):
                await task

    run(main)


def test_nobody_waits_and_no_question_is_left(run: Run) -> None:
    """Questions whose waiters have gone are ended by close, and their errors bother nobody."""

    async def main() -> None:
        complaints: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with name_server({}, silent=True) as (resolver, server):
            task = asyncio.get_running_loop().create_task(resolver.resolve("silent.test"))
            await server.heard.wait()
            task.cancel()
            await asyncio.wait((task,))
            assert list(resolver.questions) == ["silent.test"]
            tasks = asyncio.all_tasks()
            await resolver.close()
            assert not resolver.questions
            assert asyncio.all_tasks() == tasks
        gc.collect()
        assert complaints == []

    run(main)


def test_equal_names_under_way_are_one_question(run: Run) -> None:
    """One question, an answer for each; who stops waiting takes it from nobody else."""

    async def main() -> None:
        async with name_server({"name.test": ["127.0.0.1"]}) as (resolver, server):
            loop = asyncio.get_running_loop()
            gone, *tasks = [loop.create_task(resolver.resolve("name.test")) for _ in range(5)]
            await asyncio.sleep(0)
            gone.cancel()
            assert await asyncio.gather(*tasks) == [[IPv4Address("127.0.0.1")]] * 4
            assert gone.cancelled()
            assert sorted(qtype for _, qtype in server.asked) == [A, AAAA]
            assert not resolver.questions

    run(main)


def test_what_is_asked_at_a_time_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """c-ares hangs without ids: a place is taken until c-ares has answered, though nobody waits; then reply 01."""
    monkeypatch.setattr(resolve, "LOOKUPS", 3)

    async def main() -> None:
        async with name_server({}, silent=True) as (resolver, _):
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(resolver.resolve(f"name{number}.test")) for number in range(3)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            with pytest.raises(DialError, match=r"^late\.test: too many names are being resolved$") as caught:
                await resolver.resolve("late.test")
            assert caught.value.reply_code == ReplyCode.GENERAL_FAILURE
            again = loop.create_task(resolver.resolve("name0.test"))
            await asyncio.sleep(0)
            assert not again.done()
            await resolver.close()
            await asyncio.wait((again,))
            assert isinstance(again.exception(), DialError)

    run(main)


def test_a_question_that_nobody_answers_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the tries, not after c-ares' own idea of them; then its place is free and the name can be asked again."""
    monkeypatch.setattr(resolve, "TIMEOUT", 0.05)
    monkeypatch.setattr(resolve, "TRIES", 2)

    async def main() -> None:
        async with name_server({}, silent=True) as (resolver, server):
            with pytest.raises(DialError) as caught:
                await resolver.resolve("silent.test")
            assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
            assert sorted(qtype for _, qtype in server.asked) == [A, A, AAAA, AAAA]
            assert not resolver.questions

    run(main)


def test_an_address_without_a_record_is_told_by_the_resolver_itself(
    run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is a success without any address is a failure too."""

    class Nothing:
        nodes: tuple[()] = ()
        cnames: tuple[()] = ()

    async def main() -> None:
        async with name_server({}) as (resolver, _):

            def nothing(name: str, type: socket.SocketKind) -> asyncio.Future[Nothing]:
                future = asyncio.get_running_loop().create_future()
                future.set_result(Nothing())
                return future

            with monkeypatch.context() as patch:
                patch.setattr(resolver.resolver, "getaddrinfo", nothing)
                with pytest.raises(DialError, match="no address") as caught:
                    await resolver.resolve("name.test")
            assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE

    run_once(main)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0x7F000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("10.0.258", "10.0.1.2"),
    ],
)
def test_numbers_as_names_are_read_as_the_c_library_reads_them(name: str, address: str) -> None:
    """What a client means by them is what every other program means: the guard sees the address that is dialled."""
    assert resolve.find_number(name) == ip_address(address)


@pytest.mark.parametrize("name", ["example.com", "a1", "1a", "x0x7f", "localhost.", "1.2.3.4.example"])
def test_names_are_no_numbers(name: str) -> None:
    """Only the last label decides: no top-level domain is a number."""
    assert resolve.find_number(name) is None


@pytest.mark.parametrize("name", ["256.256.256.256", "1.2.3.4.5", "08.1", "99999999999", "0xfg", "example.1"])
def test_what_ends_in_a_number_but_is_no_address_is_unknown(name: str) -> None:
    """It is asked of no resolver, and gets reply 04."""
    with pytest.raises(DialError) as caught:
        resolve.find_number(name)
    assert caught.value.reply_code == 4


@asynccontextmanager
async def reverse_server(zone: Zone, names_alone: bool = True) -> AsyncIterator[SystemResolver]:
    """A name server that knows what addresses are called, and a resolver that asks it."""
    async with udp_server(zone) as port:
        loop = asyncio.get_running_loop()
        resolver = SystemResolver(loop, [f"127.0.0.1:{port}"], 5, 1, names_alone=names_alone)
        try:
            yield resolver
        finally:
            await resolver.close()
            await asyncio.sleep(0)


def test_what_an_address_is_called(run: Run) -> None:
    """Of both kinds; of several names one; an alias within the reverse zone is followed (RFC 2317)."""

    async def main() -> None:
        zone = Zone(names={"192.0.2.1": ["one.test"], "2001:db8::1": ["six.test"], "192.0.2.2": ["a.test", "b.test"]})
        zone.table["9.2.0.192.in-addr.arpa"] = "9.0-15.2.0.192.in-addr.arpa"
        zone.pointers["9.0-15.2.0.192.in-addr.arpa"] = ["nine.test"]
        async with reverse_server(zone) as resolver:
            for address, names in (
                ("192.0.2.1", ["one.test"]),
                ("2001:db8::1", ["six.test"]),
                ("192.0.2.2", ["a.test", "b.test"]),
                ("192.0.2.9", ["nine.test"]),
            ):
                found = await resolver.reverse(ip_address(address))
                assert found.name in names
                assert found.ttl == 60
            assert not resolver.questions

    run(main)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "domain name not found"),
        (["a\\032b.test"], "is not a host name"),
        (["10.0.0.1"], "is not a host name"),
        ([r"\010\255.test"], "is not a host name"),
    ],
)
def test_an_address_without_a_name_that_is_one(run_once: Run, names: list[str], text: str) -> None:
    """There is none, or what somebody says is none: not an error of the resolver."""

    async def main() -> None:
        async with reverse_server(Zone(names={"192.0.2.1": names})) as resolver:
            found = await resolver.reverse(IPv4Address("192.0.2.1"))
            assert found.name is None
            assert text in found.text

    run_once(main)


def test_of_several_names_the_first_that_is_one() -> None:
    """A name that nobody can use stands in the way of none that can be used."""
    assert resolve.make_named(["a b.test", b"caf\xe9.test", b"good.test."], 7) == resolve.Named("good.test", 7)
    assert resolve.make_named([], 7) == resolve.Named(None, 7, "no name")


def test_name_servers_that_fail_to_find_a_name(run_once: Run) -> None:
    """It is not known whether there is one: reply 04, and the error has the address."""

    async def main() -> None:
        zone = Zone()
        zone.fails.add(RdataType.PTR)
        async with reverse_server(zone) as resolver:
            with pytest.raises(DialError, match=r"^192\.0\.2\.1: ") as caught:
                await resolver.reverse(IPv4Address("192.0.2.1"))
            assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE

    run_once(main)


def test_the_hosts_file_says_what_an_address_is_called(run_once: Run) -> None:
    """Of the system, not of name servers that are asked alone; a zone of this machine means nothing to them."""

    async def main() -> None:
        zone = Zone(names={"127.0.0.1": ["asked.test"], "fe80::1": ["link.test"]})
        async with reverse_server(zone, names_alone=False) as resolver:
            assert (await resolver.reverse(IPv4Address("127.0.0.1"))).name != "asked.test"
            assert zone.asked == []
        async with reverse_server(zone) as resolver:
            assert (await resolver.reverse(IPv4Address("127.0.0.1"))).name == "asked.test"
            assert (await resolver.reverse(IPv6Address("fe80::1%1"))).name == "link.test"

    run_once(main)


def test_records_of_the_reverse_zone_in_any_letters() -> None:
    """DNS does not tell capitals apart (RFC 4343); a chain lasts as long as its shortest; a loop ends; strangers."""

    def alias(name: str, to: str, ttl: int) -> pycares.DNSRecord:
        return pycares.DNSRecord(name, pycares.QUERY_TYPE_CNAME, 1, ttl, pycares.CNAMERecordData(to))

    def pointer(name: str, to: str, ttl: int) -> pycares.DNSRecord:
        return pycares.DNSRecord(name, pycares.QUERY_TYPE_PTR, 1, ttl, pycares.PTRRecordData(to))

    chain = [pointer("other.arpa", "other.test", 1), alias("A.ARPA", "B.arpa", 5), pointer("b.Arpa", "Host.test", 9)]
    assert resolve.read_pointers("a.arpa", chain) == resolve.Named("Host.test", 5)
    loop = [alias("a.arpa", "b.arpa", 5), alias("b.arpa", "a.arpa", 5)]
    assert resolve.read_pointers("a.arpa", loop) == resolve.Named(None, 5)


class WithoutClose:
    """Half a resolver."""

    async def resolve(self, name: str) -> list[IPv4Address | IPv6Address]:
        """Find nothing."""
        return []


@pytest.mark.parametrize(
    ("resolver", "message"),
    [
        (1, r"^resolver: int does not have `async def resolve`$"),
        (WithoutClose, r"^resolver: the class WithoutClose itself, expected WithoutClose\(\)$"),
        (WithoutClose(), r"^resolver: WithoutClose does not have `async def close`$"),
    ],
)
def test_what_is_not_a_resolver_is_told_at_the_start(resolver: object, message: str) -> None:
    """A server that could not resolve a name, or not close, is not even made."""
    with pytest.raises(TypeError, match=message):
        Server("socks5://127.0.0.1:0", resolver=resolver)  # type: ignore[arg-type]
