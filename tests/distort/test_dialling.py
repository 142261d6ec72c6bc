"""Dialling: faults before there is a connection, and on the connections of requests that are forwarded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from authorities import client_context, server_context
from conftest import Run
from distorting import LATE, Served, config_of, distorting, entry_of, until
from doubles import Streams
from http_proxy import OK, Origin, ask, exchange, origin
from support import GREETING, client, echo, request, reset_on_close, target, tunnel
from tabi import Proxy
from tabi.config import EgressConfig, LimitsConfig, Listen, RuleConfig, Seconds, Timeouts
from tabi.distort import dialling
from tabi.distort.slicing import Slicing
from tabi.errors import ProxyError

every_hosting = pytest.mark.every_hosting
RESOLVE, RESOLVE_PTR = 0xF0, 0xF1


async def command(streams: Streams, octets: bytes) -> int:
    """The reply of SOCKS5 to a request."""
    reader, writer = streams
    writer.write(GREETING)
    assert await reader.readexactly(2) == b"\x05\x00"
    writer.write(octets)
    return (await reader.readexactly(2))[1]


# --- refuse, delay, names ---


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_a_refusal_has_its_reply(run: Run, scheme: str) -> None:
    """As if the destination had said so; a limit counts the session no longer, and others are not refused."""

    async def main() -> None:
        fault = entry_of({"refuse": "connection refused"}, name="down", hosts=["far.test"])
        limits = LimitsConfig(connections=1)
        async with target(echo) as port, distorting(fault, names=["far.test", "near.test"], limits=limits) as it:
            proxy = Proxy(f"{scheme}://{it.address}")
            for _ in range(2):
                with pytest.raises(ProxyError) as caught:
                    await proxy.open_connection("far.test", port)
                assert caught.value.reply_code == 5
            await until(lambda: len(it.over) == 2 and not it.server.parts.sessions.running)
            assert it.over[0].error == f"far.test:{port}: refused by down"
            assert it.over[0].distorted[0].entry is it.entry("down")
            _, writer = await proxy.open_connection("near.test", port)
            writer.close()

    run(main)


def test_rules_refuse_first(run: Run) -> None:
    """A session that a rule refuses is no fault's."""

    async def main() -> None:
        async with distorting(entry_of({"refuse": 5}), rule=[RuleConfig(action="deny")]) as it:
            async with client(it.address) as streams:
                assert await command(streams, request("127.0.0.1", 9)) == 2
            assert it.entry("distort[0]").chosen == 0

    run(main)


def test_a_delay_is_not_cut_by_the_deadline_of_connecting(run: Run) -> None:
    """It comes before that, and is in ``connect_ms``."""

    async def main() -> None:
        timeouts = Timeouts(connect=Seconds(0.1))
        async with target(echo) as port, distorting(entry_of({"dial_delay": "200ms"}), timeouts=timeouts) as it:
            async with tunnel(it.address, port) as (reader, writer):
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
            await until(lambda: it.over)
            assert it.over[0].connect_seconds is not None
            assert it.over[0].connect_seconds >= 0.2

    run(main)


@every_hosting
def test_a_fault_that_goes_lets_those_go_on_that_wait(run: Run) -> None:
    """Taken away, changed, or its schedule is over: nobody waits for it any more, nor is refused by it."""

    async def main() -> None:
        now = [0.0]
        async with target(echo) as port, distorting(names=["here.test"]) as it:
            for fault in ({"dial_delay": LATE, "refuse": 5}, {"resolve": LATE}):
                for how in ("removed", "changed", "over"):
                    if how == "over":
                        it.set("none", {"slice": 1}, hosts=["no.test"])
                        it.distortion.clock = lambda: now[0]
                        now[0] = 0.0
                        entry = it.set("wait", {**fault, "until": "1970-01-01T00:00:10Z"})
                    else:
                        entry = it.set("wait", fault)
                    opening = asyncio.get_running_loop().create_task(
                        Proxy(f"socks5://{it.address}").open_connection("here.test", port)
                    )
                    await until(lambda entry=entry: entry.resting)
                    if how == "removed":
                        it.remove("wait")
                    elif how == "changed":
                        assert it.set("wait", {"dial_delay": "1ms"}) is entry
                    else:
                        now[0] = 20.0
                        it.distortion.look()
                    _, writer = await opening
                    writer.close()
                    with contextlib.suppress(KeyError):
                        it.remove("wait")

    run(main)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_client_that_leaves_while_it_waits(run: Run, how: str) -> None:
    """Its session ends soon, and what a limit had counted is free again."""

    async def main() -> None:
        limits = LimitsConfig(connections=1)
        async with distorting(entry_of({"dial_delay": LATE}, name="wait"), limits=limits) as it:
            async with client(it.address) as (reader, writer):
                writer.write(GREETING)
                await reader.readexactly(2)
                writer.write(request("127.0.0.1", 9))
                await until(lambda: it.entry("wait").resting)
                if how == "reset":
                    reset_on_close(writer.get_extra_info("socket"))
                writer.close()
                await until(lambda: it.over)
            assert not it.server.parts.sessions.running
            assert not it.server.parts.gate.leases
            assert not it.entry("wait").resting

    run(main)


def test_a_server_that_stops_while_sessions_wait(run: Run) -> None:
    """They end with it."""

    async def main() -> None:
        async with distorting(entry_of({"dial_delay": LATE}, name="wait")) as it, client(it.address) as streams:
            async with client(it.address) as other:
                streams[1].write(GREETING + request("127.0.0.1", 9))
                other[1].write(ask("http://127.0.0.1:9/"))
                await until(lambda: len(it.entry("wait").resting) == 2)
                await it.server.close()
            assert [session.close for session in it.over] == ["shutdown"] * 2

    run(main)


@pytest.mark.parametrize(
    ("number", "host", "fault", "reply"),
    [
        (RESOLVE, "here.test", {"resolve": 4}, 4),
        (RESOLVE, "here.test", {"refuse": 3}, 3),
        (RESOLVE, "here.test", {"dial_delay": LATE}, 0),
        (RESOLVE, "127.0.0.1", {"resolve": 4}, 0),
        (RESOLVE_PTR, "127.0.0.1", {"resolve": 4}, 4),
        (1, "here.test", {"resolve": "host unreachable"}, 4),
        (1, "127.0.0.1", {"resolve": 4}, 0),
        (2, "here.test", {"resolve": 4}, 4),
        (2, "127.0.0.1", {"refuse": 6}, 6),
        (2, "127.0.0.1", {"dial_delay": LATE}, 0),
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_every_command(run: Run, number: int, host: str, fault: Any, reply: int, live: bool) -> None:
    """CONNECT, BIND and questions for names; also the first fault of a server with clients that are connected."""

    async def main() -> None:
        faults = [] if live else [entry_of(fault, name="fault")]
        listen = [Listen("socks5://127.0.0.1:0", resolve_commands=True)]
        async with (
            target(echo) as port,
            distorting(*faults, names=["here.test"], listen=listen) as it,
            client(it.address) as streams,
        ):
            streams[1].write(GREETING)
            assert await streams[0].readexactly(2) == b"\x05\x00"
            if live:
                it.set("fault", fault)
            streams[1].write(request(host, port, number))
            assert (await streams[0].readexactly(2))[1] == reply
            assert (it.entry("fault").chosen == 1) or not reply

    run(main)


def test_a_name_takes_long(run: Run) -> None:
    """``resolve`` with a time: names wait, addresses do not."""

    async def main() -> None:
        async with target(echo) as port, distorting(entry_of({"resolve": "100ms"}), names=["here.test"]) as it:
            for host, least in (("here.test", 0.1), ("127.0.0.1", 0.0)):
                async with tunnel(it.address, port, host):
                    pass
                await until(lambda: it.over)
                seconds = it.over.pop().connect_seconds
                assert seconds is not None
                assert least <= seconds < least + 0.1

    run(main)


def test_the_address_of_a_name_is_known_in_time(run: Run) -> None:
    """``hosts`` with a network match a name by the address that was dialled."""

    async def main() -> None:
        fault = entry_of({"slice": 10}, name="net", hosts=["127.0.0.0/8"])
        async with (
            target(echo) as port,
            distorting(fault, names=["here.test"]) as it,
            tunnel(it.address, port, "here.test"),
        ):
            await until(lambda: it.entry("net").active == 1)

    run(main)


# --- through other proxies ---


@pytest.mark.parametrize("via", ["socks5", "http", "chain"])
def test_through_other_proxies(run: Run, via: str) -> None:
    """Faults are between the client and the proxy, whatever the way out."""

    async def main() -> None:
        async with target(echo) as port, distorting() as one, distorting() as other:
            url = f"{'socks5' if via == 'chain' else via}://{one.address}"
            ways = {"out": EgressConfig(chain=[url, f"http://{other.address}"] if via == "chain" else [url])}
            fault = entry_of({"down": {"latency": LATE}, "dial_delay": "1ms"}, name="late")
            async with distorting(fault, egress=ways, rule=[RuleConfig(via="out")]) as it:
                async with tunnel(it.address, port) as (reader, writer):
                    writer.write(b"hello")
                    await until(lambda: [found for found in it.distortion.all if found.relay and found.relay.down.held])
                    it.server.reload(config_of(egress=ways, rule=[RuleConfig(via="out")]))
                    assert await reader.readexactly(5) == b"hello"
                async with client(it.address) as streams, origin() as there:
                    assert (await exchange(streams, ask(there.url))).content == b"hello"

    run(main)


# --- requests that are forwarded ---


@contextlib.asynccontextmanager
async def forwarding(*distorts: Any, **options: Any) -> AsyncIterator[tuple[Served, Origin, Streams]]:
    """A server, an origin, and a client's connection."""
    async with origin() as there, distorting(*distorts, **options) as it, client(it.address) as streams:
        yield it, there, streams


@every_hosting
def test_requests_are_forwarded_late(run: Run) -> None:
    """A request's answer has the faults of its destination. Requests with the same entries use a kept connection, and
    those that have others do not."""

    async def main() -> None:
        async with forwarding() as (it, there, streams):
            assert (await exchange(streams, ask(there.url))).content == b"hello"
            it.set("slices", {"slice": 3})
            for _ in range(3):
                assert (await exchange(streams, ask(there.url))).content == b"hello"
            assert [len(asked) for asked in there.connections] == [1, 3]
            assert it.entry("slices").active == 1
            it.set("none", {"slice": 1}, hosts=["other.test"])
            it.server.reload(config_of())
            assert (await exchange(streams, ask(there.url))).content == b"hello"
            it.remove("slices")
            assert (await exchange(streams, ask(there.url))).content == b"hello"
            assert [len(asked) for asked in there.connections][2:] in ([1], [1, 1])
            assert len(it.server.parts.molding.egresses.made) == 0  # type: ignore[union-attr]

    run(main)


@every_hosting
def test_a_fault_for_a_request_under_way(run: Run) -> None:
    """What the destination sends from then on is late; the connection is not kept for requests without the fault."""

    async def main() -> None:
        gone = asyncio.Event()
        count = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            with contextlib.suppress(asyncio.IncompleteReadError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
                    await gone.wait()
                    writer.write(b"after")

        async with target(serve) as port, distorting() as it, client(it.address) as (reader, writer):
            for _ in range(2):
                gone.clear()
                writer.write(ask(f"http://127.0.0.1:{port}/"))
                await reader.readuntil(b"first")
                it.set("late", {"latency": LATE})
                (one,) = [one for one in it.distortion.all if one.drawn]
                gone.set()
                await until(lambda one=one: one.relay is not None and one.relay.down.held == 5)
                it.remove("late")
                assert await reader.readexactly(5) == b"after"
            assert count == 2

    run(main)


def test_an_end_by_a_fault_in_an_answer(run: Run) -> None:
    """The line of that request says so, and not that of the next one."""

    async def main() -> None:
        fault = entry_of({"down": {"limit": 5}, "then": "reset"}, name="short", hosts=["far.test"])
        async with forwarding(fault, names=["far.test", "near.test"]) as (it, there, streams):
            got = await exchange(streams, ask(f"http://far.test:{there.port}/"))
            assert got.status == 502
            got = await exchange(streams, ask(f"http://near.test:{there.port}/"))
            assert got.content == b"hello"
            assert [session.close for session in it.over] == ["fault", "server"]

    run(main)


def test_faults_of_dialling_for_requests(run: Run) -> None:
    """They hold for the connections that are opened, and a request on a kept one needs none."""

    async def main() -> None:
        async with forwarding() as (it, there, streams):
            it.set("slow", {"dial_delay": "1ms"})
            for _ in range(3):
                assert (await exchange(streams, ask(there.url))).content == b"hello"
            assert [len(asked) for asked in there.connections] == [3]
            it.set("down", {"refuse": "connection refused"})
            got = await exchange(streams, ask(there.url))
            assert got.status == 502
            assert "connection_refused" in got.fields["proxy-status"]
            it.remove("down")
            assert (await exchange(streams, ask(there.url))).content == b"hello"

    run(main)


@pytest.mark.parametrize("upgraded", [False, True])
def test_a_fault_that_changes_while_a_kept_connection_is_used_again(run: Run, upgraded: bool) -> None:
    """It acts on it once, by its new figures, whichever request of the connection it was first drawn for."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await reader.readuntil(b"\r\n\r\n")
        if upgraded:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\nhello")
            await echo(reader, writer)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            await reader.read()

    async def main() -> None:
        fields = "Connection: upgrade\r\nUpgrade: test\r\n" if upgraded else ""
        async with target(serve) as port, distorting() as it, client(it.address) as (reader, writer):
            it.set("slices", {"slice": 100})
            for _ in range(2):
                writer.write(ask(f"http://127.0.0.1:{port}/", fields=fields))
                await reader.readuntil(b"hello")
            assert (it.entry("slices").active, it.entry("slices").chosen) == (1, 2)
            (one,) = it.distortion.all
            it.set("slices", {"slice": 200})
            assert it.distortion.all == (one,)
            assert it.entry("slices").active == 1
            ((_, stage), _) = one.stages[it.entry("slices")]
            assert isinstance(stage, Slicing)
            assert stage.size == 200

    run(main)


def test_a_fault_of_dialling_that_gets_to_be_one_of_octets(run: Run) -> None:
    """Also on a kept connection, which had none when it was opened."""

    async def main() -> None:
        async with forwarding() as (it, there, streams):
            it.set("late", {"dial_delay": "1ms"})
            for _ in range(2):
                assert (await exchange(streams, ask(there.url))).content == b"hello"
            assert it.distortion.all == ()
            it.set("late", {"slice": 3})
            for _ in range(2):
                assert (await exchange(streams, ask(there.url))).content == b"hello"
            assert [len(asked) for asked in there.connections] == [2, 2]
            assert it.entry("late").active == 1

    run(main)


def test_requests_inside_tls_and_an_upgrade(run: Run) -> None:
    """Faults are below the TLS toward the destination; a protocol that is changed to keeps them, once."""

    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n")
        await echo(reader, writer)

    async def main() -> None:
        there = Origin(lambda _: OK)
        async with (
            target(there.serve, context=server_context()) as port,
            target(upgrade) as upgrading,
            distorting(entry_of({"slice": 100}, name="slices")) as it,
            client(it.address) as streams,
        ):
            it.server.parts.forwarding.tls.context = client_context()
            for _ in range(2):
                assert (await exchange(streams, ask(f"https://127.0.0.1:{port}/"))).content == b"hello"
            assert [len(asked) for asked in there.connections] == [2]
            reader, writer = streams
            fields = "Connection: upgrade\r\nUpgrade: test\r\n"
            got = await exchange(streams, ask(f"http://127.0.0.1:{upgrading}/", fields=fields))
            assert got.status == 101
            assert it.entry("slices").active == 1
            writer.write(bytes(1 << 20))
            assert await reader.readexactly(1 << 20) == bytes(1 << 20)
            late = it.set("late", {"latency": LATE})
            assert late.active == 1
            writer.write(b"hello")
            await until(lambda: [one for one in it.distortion.all if one.relay and one.relay.up.held])
            it.remove("late")
            assert await reader.readexactly(5) == b"hello"

    run(main)


def test_a_tunnel_of_a_client_with_requests(run: Run) -> None:
    """CONNECT on a connection that has forwarded requests before the first fault was set."""

    async def main() -> None:
        async with forwarding() as (it, there, streams), target(echo) as port:
            assert (await exchange(streams, ask(there.url))).content == b"hello"
            it.set("late", {"down": {"latency": LATE}})
            reader, writer = streams
            writer.write(ask(f"127.0.0.1:{port}", "CONNECT"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"hello")
            await until(lambda: [one for one in it.distortion.all if one.relay and one.relay.down.held])
            it.remove("late")
            assert await reader.readexactly(5) == b"hello"

    run(main)


def test_egresses_that_are_known_again_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many combinations of entries requests are drawn for."""
    monkeypatch.setattr(dialling, "KEPT", 3)

    async def main() -> None:
        faults = [entry_of({"slice": 100}, hosts=[f"{number}.test"]) for number in range(10)]
        names = [f"{number}.test" for number in range(10)]
        async with forwarding(*faults, names=names) as (it, there, streams):
            for name in names:
                assert (await exchange(streams, ask(f"http://{name}:{there.port}/"))).content == b"hello"
                assert len(it.server.parts.molding.egresses.made) <= 3  # type: ignore[union-attr]

    run(main)
