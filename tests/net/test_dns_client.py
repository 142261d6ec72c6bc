"""Name servers by TCP, TLS and HTTPS: what is asked, what is believed, and what becomes of servers that fail."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
from collections.abc import AsyncIterator
from ipaddress import ip_address

import dns.rcode
import pytest
from dns.rdatatype import RdataType

from authorities import client_context, stranger
from conftest import PATIENCE, Run
from doubles import FakeResolver, until
from name_servers import HttpServer, Lie, StreamServer, Zone, stream_server, tls_context
from support import closed_port
from tabi.errors import DialError
from tabi.net import dns_client, kinds
from tabi.net.dns_client import Carrier, DnsServer, HttpsCarrier, StreamCarrier
from tabi.net.resolve import Answer, Named
from tabi.url import parse_server_url
from tabi.wire.socks5 import ReplyCode

TABLE = {
    "both.test": ["192.0.2.1", "192.0.2.2", "2001:db8::1"],
    "four.test": ["192.0.2.4"],
    "six.test": ["2001:db8::6"],
    "none.test": [],
    "alias.test": "second.test",
    "second.test": "both.test",
    "loop.test": "loop2.test",
}
KINDS = ("tcp", "tls", "https", "h2")


@contextlib.asynccontextmanager
async def server(
    kind: str,
    zone: Zone,
    seconds: float = PATIENCE,
    host: str = "127.0.0.1",
    bootstrap: FakeResolver | None = None,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[DnsServer, StreamServer | HttpServer]]:
    """A server of a kind, and what asks it."""
    plain = kind == "tcp"
    serve = StreamServer(zone) if kind in ("tcp", "tls") else HttpServer(zone)
    async with stream_server(serve, None if plain else tls_context(*(["h2"] if kind == "h2" else []))) as port:
        url = parse_server_url(f"{'https' if kind == 'h2' else kind}://{host}:{port}")
        carrier: Carrier
        if kind in ("tcp", "tls"):
            carrier = StreamCarrier(url, bootstrap, None if plain else context or client_context())
        else:
            carrier = HttpsCarrier(url, bootstrap, context or client_context())
        client = DnsServer(str(url), carrier, seconds, 0 if plain else 128)
        try:
            yield client, serve
        finally:
            await client.close()
            await asyncio.sleep(0)


async def fails(client: DnsServer, name: str = "four.test") -> str:
    """Ask; returns the error's text, behind the names that begin it."""
    with pytest.raises(DialError) as caught:
        await client.answer(name)
    assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
    start = f"{name}: {client.name}: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "addresses", "text"),
    [
        ("both.test", TABLE["both.test"], None),
        ("four.test", TABLE["four.test"], None),
        ("six.test", TABLE["six.test"], None),
        ("alias.test", TABLE["both.test"], None),
        ("none.test", [], "no address"),
        ("unknown.test", [], "domain name not found"),
        ("loop.test", [], "domain name not found"),
    ],
)
def test_a_name_is_asked_for(run_once: Run, kind: str, name: str, addresses: list[str], text: str | None) -> None:
    """Addresses of both kinds with their time to live, by way of aliases; that there are none is an answer too."""

    async def main() -> None:
        zone = Zone(TABLE, ttl=77)
        async with server(kind, zone) as (client, serve):
            found = await client.answer(name)
            assert set(found.addresses) == set(map(ip_address, addresses))  # dnspython's servers shuffle them
            assert found.ttl == 77
            assert addresses or found.text == text
            assert sorted(zone.asked) == [(name, RdataType.A), (name, RdataType.AAAA)]
            await client.answer("four.test")
            assert serve.connections == 1 or kind == "https"  # HTTP/1.1 has two for two questions at once

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
def test_many_questions_at_once_get_each_their_answer(run_once: Run, kind: str) -> None:
    """Over connections that stay."""

    async def main() -> None:
        zone = Zone({f"n{number}.test": [f"192.0.2.{number}"] for number in range(1, 31)})
        async with server(kind, zone) as (client, serve):
            found = await asyncio.gather(*map(client.answer, zone.table))
            assert [str(answer.addresses[0]) for answer in found] == [zone.table[name][0] for name in zone.table]
            assert serve.connections == 1 or kind == "https"

    run_once(main)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test", ".".join(["label"] * 60)])
def test_what_is_no_name_is_asked_of_nobody(run_once: Run, name: str) -> None:
    """It has no address, and no server is at fault."""

    async def main() -> None:
        zone = Zone(TABLE)
        async with server("tcp", zone) as (client, _):
            found = await client.answer(name)
            assert (found.addresses, found.ttl) == ([], None)
            assert found.text.startswith("misformatted name: ")
            assert zone.asked == []

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR])
def test_a_server_that_cannot_answer(run_once: Run, kind: str, rcode: dns.rcode.Rcode) -> None:
    """That is no answer: the error says what the server said."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.rcode = rcode
        async with server(kind, zone) as (client, _):
            assert await fails(client) == dns.rcode.to_text(rcode).lower()

    run_once(main)


def test_half_an_answer_is_enough_where_it_has_an_address(run_once: Run) -> None:
    """Servers that know nothing of IPv6 exist; where the other half has nothing either, it is a failure."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.fails = {RdataType.AAAA}
        async with server("tcp", zone) as (client, _):
            assert await client.answer("four.test") == Answer([ip_address("192.0.2.4")], 60, whole=False)
            assert await fails(client, "six.test") == "servfail"

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rcode", [dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.SERVFAIL])
def test_a_server_that_dislikes_edns(run_once: Run, kind: str, rcode: dns.rcode.Rcode) -> None:
    """It is asked without; by TCP, where nothing needs EDNS, at once so."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.dislikes_edns = rcode
        async with server(kind, zone) as (client, _):
            assert (await client.answer("four.test")).addresses
            assert len(zone.asked) == (2 if kind == "tcp" else 4)

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_addresses_that_is_not_answered_delays_little(
    run_once: Run, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who gives up a question does not take the connection from others."""
    monkeypatch.setattr(kinds, "DELAY", 0.05)

    async def main() -> None:
        zone = Zone(TABLE)
        zone.drops.add(RdataType.AAAA)
        async with server(kind, zone) as (client, serve):
            found = await client.answer("both.test")
            assert [address.version for address in found.addresses] == [4, 4]
            assert found.rest is not None
            before = serve.connections
            found.rest.cancel()
            zone.drops.clear()
            monkeypatch.setattr(kinds, "DELAY", PATIENCE)
            assert len((await client.answer("both.test")).addresses) == 3
            assert serve.connections == before or kind == "https"
            zone.dropping.set()

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lie", ["id", "question", "no response", "nonsense"])
def test_a_lie_is_not_believed(run_once: Run, kind: str, lie: Lie) -> None:
    """An answer to another question, or none at all, is no answer to this one."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.lie = lie
        async with server(kind, zone, seconds=0.2) as (client, _):
            text = await fails(client)
            assert text.startswith(("no answer within 0.2 s", "no message: ", "an answer to another question"))
            zone.lie, client.seconds = "", PATIENCE
            assert (await client.answer("six.test")).addresses == [ip_address("2001:db8::6")]

    run_once(main)


def test_a_record_of_another_name_says_nothing(run_once: Run) -> None:
    """What was not asked for is not taken for what was."""

    async def main() -> None:
        zone = Zone(TABLE)
        zone.lie = "record"
        async with server("tcp", zone) as (client, _):
            assert (await client.answer("four.test")).addresses == []

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_silent_has_a_deadline(run_once: Run, kind: str) -> None:
    """Then its connection is taken for dead, and the next question has another."""

    async def main() -> None:
        zone = Zone(TABLE)
        async with server(kind, zone) as (client, serve):
            await client.answer("four.test")
            before = serve.connections
            zone.answering.clear()
            client.seconds = 0.2
            assert await fails(client) == "no answer within 0.2 s"
            zone.answering.set()
            client.seconds = PATIENCE
            assert (await client.answer("four.test")).addresses
            assert serve.connections > before

    run_once(main)


def test_a_name_that_takes_long_costs_nobody_else_the_connection(run_once: Run) -> None:
    """Where others are answered meanwhile, the connection is not dead."""

    async def main() -> None:
        slow, release = Zone(TABLE), asyncio.Event()
        honest = slow.reply

        async def reply(octets: bytes) -> bytes:
            if b"\x03six" in octets:
                await release.wait()
            return await honest(octets)

        slow.reply = reply  # type: ignore[method-assign]
        async with server("tcp", slow, seconds=0.2) as (client, serve):
            patient = DnsServer(client.name, client.carrier, PATIENCE)
            await patient.answer("four.test")
            waiting = asyncio.get_running_loop().create_task(fails(client, "six.test"))
            await asyncio.sleep(0)
            await patient.answer("four.test")
            assert await waiting == "no answer within 0.2 s"
            await patient.answer("both.test")
            assert serve.connections == 1
            release.set()

    run_once(main)


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_connection_that_the_server_has_closed_is_replaced(run_once: Run, kind: str) -> None:
    """Whether that is known by then, or found out by asking."""

    async def main() -> None:
        zone = Zone(TABLE)
        async with server(kind, zone) as (client, serve):
            assert isinstance(serve, StreamServer)
            serve.questions_each = 3
            for _ in range(4):
                assert (await client.answer("four.test")).addresses
            assert serve.connections > 1

    run_once(main)


def test_a_connection_that_is_idle_is_closed(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server has better use for it; a new one is opened for the next question."""
    monkeypatch.setattr(dns_client, "IDLE", 0.02)

    async def main() -> None:
        async with server("tcp", Zone(TABLE)) as (client, serve):
            await client.answer("four.test")
            assert isinstance(client.carrier, StreamCarrier)
            (connection,) = client.carrier.connections
            await connection.task
            assert (await client.answer("four.test")).addresses
            assert serve.connections == 2

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_listens(run_once: Run, kind: str) -> None:
    """It fails at once."""

    async def main() -> None:
        with closed_port() as port:
            url = parse_server_url(f"{'https' if kind in ('https', 'h2') else kind}://127.0.0.1:{port}")
            if kind in ("tcp", "tls"):
                carrier: Carrier = StreamCarrier(url, None, None if kind == "tcp" else client_context())
            else:
                carrier = HttpsCarrier(url, None, client_context())
            client = DnsServer(str(url), carrier, 20)
            await fails(client)
            await client.close()

    run_once(main)


@pytest.mark.parametrize("kind", ["tls", "https", "h2"])
def test_a_server_that_cannot_prove_its_name_is_asked_nothing(run_once: Run, kind: str) -> None:
    """A wrong name and an authority that is not trusted: no question leaves."""

    async def main() -> None:
        zone = Zone(TABLE)
        distrusting = ssl.create_default_context()
        stranger().configure_trust(distrusting)
        async with server(kind, zone, context=distrusting) as (client, _):
            assert "certificate verify failed" in await fails(client)
        bootstrap = FakeResolver({"dns.example": ["127.0.0.1"]})
        async with server(kind, zone, host="dns.example", bootstrap=bootstrap) as (client, _):
            assert "certificate verify failed" in await fails(client)
        assert zone.asked == []

    run_once(main)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_servers_own_name_is_found_by_another_resolver(run_once: Run, kind: str) -> None:
    """And proved to be that name; if one of its addresses refuses, the next one is tried."""

    async def main() -> None:
        bootstrap = FakeResolver({"localhost": ["127.0.0.2", "127.0.0.1"]})  # nobody listens on the first
        async with server(kind, Zone(TABLE), host="localhost", bootstrap=bootstrap) as (client, serve):
            for _ in range(3):
                assert (await client.answer("four.test")).addresses
            assert set(bootstrap.asked) == {"localhost"}
            if isinstance(serve, HttpServer):
                host = serve.heads[0].get("host") or serve.heads[0][":authority"]
                assert host.startswith("localhost:")

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_of_what_is_encrypted_tells_nothing(run_once: Run, kind: str) -> None:
    """Questions for short and long names have the same length (RFC 8467)."""

    async def main() -> None:
        zone = Zone(TABLE)
        async with server(kind, zone) as (client, _):
            for name in ("a.test", "a-rather-long-name.of-many.characters.test"):
                await client.answer(name)
            assert (set(zone.sizes) == {128}) == (kind != "tcp")

    run_once(main)


@pytest.mark.parametrize("kind", ["https", "h2"])
def test_what_is_sent_by_https(run_once: Run, kind: str) -> None:
    """POST to the path, with the types of RFC 8484, and nothing of who asks."""

    async def main() -> None:
        async with server(kind, Zone(TABLE)) as (client, serve):
            await client.answer("four.test")
            assert isinstance(serve, HttpServer)
            head = serve.heads[0]
            assert head["accept"] == head["content-type"] == "application/dns-message"
            assert head["user-agent"] == "tabi"
            assert head.get(":request", "POST /dns-query HTTP/1.1") == "POST /dns-query HTTP/1.1"
            assert (head.get(":method", "POST"), head.get(":path", "/dns-query")) == ("POST", "/dns-query")

    run_once(main)


@pytest.mark.parametrize("kind", ["https", "h2"])
def test_what_https_says_instead_of_an_answer(run_once: Run, kind: str) -> None:
    """Another status, and more than a message can be."""

    async def main() -> None:
        async with server(kind, Zone(TABLE)) as (client, serve):
            assert isinstance(serve, HttpServer)
            serve.status = 503
            assert await fails(client) == "http status 503"
            serve.status, serve.padding = 200, 10_000 if kind == "h2" else 1 << 20
            assert (await fails(client)).startswith(("more than 65535 octets", "no message: "))
            serve.padding = 0
            assert (await client.answer("four.test")).addresses

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
def test_close_leaves_nothing_and_nobody_waiting(run_once: Run, kind: str) -> None:
    """A question under way is cancelled first, as `NameCache.close` does; asyncio has nothing to complain of."""

    async def main() -> None:
        complaints: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        zone = Zone(TABLE)
        zone.answering.clear()
        async with server(kind, zone) as (client, _):
            task = asyncio.get_running_loop().create_task(client.answer("four.test"))
            await until(lambda: len(zone.asked) == 2)
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled()
        gc.collect()
        assert complaints == []

    run_once(main)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_address_is_called(run_once: Run, kind: str) -> None:
    """One question for PTR, an answer with its time to live, by way of aliases; that there is none is one too."""

    async def main() -> None:
        zone = Zone(ttl=77, names={"192.0.2.1": ["one.test"], "2001:db8::1": ["six.test"], "192.0.2.7": ["a/b.test"]})
        zone.table["9.2.0.192.in-addr.arpa"] = "9.0-15.2.0.192.in-addr.arpa"
        zone.pointers["9.0-15.2.0.192.in-addr.arpa"] = ["nine.test"]
        async with server(kind, zone) as (client, _):
            for address, expected in (
                ("192.0.2.1", Named("one.test", 77)),
                ("2001:db8::1", Named("six.test", 77)),
                ("192.0.2.9", Named("nine.test", 77)),
                ("192.0.2.8", Named(None, 77, "domain name not found")),
                ("192.0.2.7", Named(None, 77, "'a/b.test.' is not a host name")),
            ):
                zone.asked.clear()
                assert await client.reverse(ip_address(address)) == expected
                assert [rdtype for _, rdtype in zone.asked] == [RdataType.PTR]

    run_once(main)


def test_a_server_that_cannot_say_what_an_address_is_called(run_once: Run) -> None:
    """It failed, it lies, it is silent: a DialError, as for names."""

    async def main() -> None:
        zone = Zone(names={"192.0.2.1": ["one.test"]})
        async with server("tcp", zone, 0.2) as (client, _):
            zone.fails.add(RdataType.PTR)
            with pytest.raises(DialError, match=r"^192\.0\.2\.1: tcp://.*: servfail$") as caught:
                await client.reverse(ip_address("192.0.2.1"))
            assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
            zone.fails.clear()
            zone.answering.clear()
            with pytest.raises(DialError, match=r"no answer within 0\.2 s$"):
                await client.reverse(ip_address("192.0.2.1"))
            zone.answering.set()

    run_once(main)
