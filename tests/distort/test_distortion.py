"""Distortion: faults act on the sessions that are chosen, whoever carries them, and on no others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from authorities import authority, client_context, server_context, write_server
from conftest import Run
from destinations import write_authority
from distorting import LATE, config_of, distorting, entry_of, until
from intercepting import Mark, answer
from intercepting import origin as https_origin
from support import GREETING, client, echo, request, reset_on_close, silent, target, tunnel
from tabi import Proxy, Tunnel
from tabi.config import Bandwidth, InterceptConfig, LimitsConfig, Listen, Seconds, Timeouts
from tabi.distort import distorted
from tabi.distort.choosing import MOST_KNOWN

every_hosting = pytest.mark.every_hosting
SIZE = 3 << 20


def octets(count: int, seed: int = 1) -> bytes:
    """Some that no other place has."""
    return random.Random(seed).randbytes(count)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send, and get the same back."""
    writer.write(data)
    assert await reader.readexactly(len(data)) == data


async def passing(tunnel: Tunnel) -> None:
    """A program's carrier: it carries by itself."""

    async def pour(source: Any, sink: Any) -> None:
        while data := await source.receive():
            await sink.send_all(data)
        sink.send_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(pour(tunnel.client, tunnel.server))
        group.create_task(pour(tunnel.server, tunnel.client))


async def relaying(tunnel: Tunnel) -> None:
    """A program's carrier that leaves the session to a relay, and waits for it."""
    await tunnel.relay()


CARRIERS: dict[str, dict[str, Any]] = {"relays": {}, "program": {"carrier": passing}, "relaying": {"carrier": relaying}}
"""Options of a server, by what carries its sessions."""
carriers = pytest.mark.parametrize("carrier", CARRIERS)


# --- who is chosen ---


def test_a_hundred_chosen_and_a_hundred_others(run: Run) -> None:
    """Side by side: what the chosen ones send waits, the others are on the relay that splices, without any stage."""

    async def main() -> None:
        async with (
            target(echo) as port,
            distorting(
                entry_of({"latency": LATE}, name="late", hosts=["far.test"]), names=["far.test", "near.test"]
            ) as it,
            contextlib.AsyncExitStack() as stack,
        ):
            both = {}
            for host in ("far.test", "near.test"):
                both[host] = [await stack.enter_async_context(tunnel(it.address, port, host)) for _ in range(100)]
            for _, writer in [*both["far.test"], *both["near.test"]]:
                writer.write(b"hello")
            for reader, _ in both["near.test"]:
                assert await reader.readexactly(5) == b"hello"
            for session in it.server.parts.sessions.running:
                assert session.destination is not None
                assert it.is_staged(session) == (session.destination.host == "far.test")
            assert (it.entry("late").active, it.entry("late").chosen, it.entry("late").matched) == (100, 100, 100)
            assert all(not reader._buffer for reader, _ in both["far.test"])  # type: ignore[attr-defined]

    run(main)


def test_what_is_drawn_is_drawn_once_and_the_same_in_each_run(run_once: Run) -> None:
    """With a seed the same sessions of those that match are chosen. A session keeps it when other entries change."""

    async def drawn() -> list[bool]:
        config = entry_of({"latency": LATE}, name="half", probability=0.5, seed=7)
        async with target(echo) as port, distorting(config) as it, contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(tunnel(it.address, port))
            sessions = list(it.server.parts.sessions.running)
            found = [bool(session.distorted) for session in sessions]
            it.set("other", {"latency": "1ms"})
            await until(lambda: it.entry("other").active == 20)
            it.remove("other")
            reloaded = config_of(entry_of({"latency": "2ms"}, name="more", hosts=["no.test"]), config)
            it.server.reload(reloaded)
            assert [any(one.entry is it.entry("half") for one in session.distorted) for session in sessions] == found
            assert it.entry("half").chosen == sum(found)
            return found

    async def main() -> None:
        first = await drawn()
        assert 0 < sum(first) < 20
        assert await drawn() == first

    run_once(main)


@pytest.mark.parametrize("scheme", ["socks5", "socks4", "http"])
def test_every_protocol_of_clients(run: Run, scheme: str) -> None:
    """The answer of the proxy comes at once, undistorted, and what the destination sends comes late."""

    async def main() -> None:
        async with target(echo) as port, distorting(entry_of({"down": {"latency": LATE}}, name="late")) as it:
            reader, writer = await Proxy(f"{scheme}://{it.address}").open_connection("127.0.0.1", port)
            writer.write(b"hello")
            await until(lambda: it.entry("late").active)
            (session,) = it.server.parts.sessions.running
            await until(lambda: it.relay_of(session).down.held == 5)
            it.server.reload(config_of())
            assert await reader.readexactly(5) == b"hello"
            writer.close()

    run(main)


def test_bind(run: Run) -> None:
    """The second reply comes at once; the first fault of a server acts also on the calls that are awaited by then."""

    async def main() -> None:
        async with distorting() as it, client(it.address) as (reader, writer):
            writer.write(b"\x05\x01\x00\x05\x02\x00\x01\x7f\0\0\1\0\0")
            reply = (await reader.readexactly(12))[2:]
            it.set("late", {"latency": LATE})
            _, peer_writer = await asyncio.open_connection("127.0.0.1", int.from_bytes(reply[-2:]))
            assert (await reader.readexactly(10))[:2] == b"\x05\x00"
            peer_writer.write(b"call")
            await until(lambda: it.entry("late").active == 1)
            (session,) = it.server.parts.sessions.running
            await until(lambda: it.relay_of(session).down.held == 4)
            it.remove("late")
            assert await reader.readexactly(4) == b"call"
            peer_writer.close()

    run(main)


def test_a_unix_listener_and_tls(run: Run, tmp_path: Path) -> None:
    """Clients of unix sockets, and those inside TLS, in front of a program's carrier: new sessions and running ones."""

    async def main() -> None:
        listen = [
            Listen(f"unix://{tmp_path}/sock?protocol=socks5"),
            Listen("socks5+tls://127.0.0.1:0", tls=write_server(tmp_path)),
        ]
        async with target(echo) as port, distorting(listen=listen, carrier=passing) as it:

            async def connect(tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                if tls:
                    place = it.address.port
                    reader, writer = await asyncio.open_connection(
                        "127.0.0.1", place, ssl=client_context(), server_hostname="localhost"
                    )
                else:
                    reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/sock")
                writer.write(GREETING)
                assert await reader.readexactly(2) == b"\x05\x00"
                writer.write(request("127.0.0.1", port))
                assert (await reader.readexactly(10))[:2] == b"\x05\x00"
                return reader, writer

            for tls in (False, True):
                for runs in (False, True):
                    if not runs:
                        it.set("late", {"down": {"latency": LATE}})
                    reader, writer = await connect(tls)
                    if runs:
                        await exchange(reader, writer, b"first")
                        it.set("late", {"down": {"latency": LATE}})
                    writer.write(b"hello")
                    await until(lambda: [one for one in it.distortion.all if one.relay and one.relay.down.held])
                    it.remove("late")
                    assert await reader.readexactly(5) == b"hello"
                    await exchange(reader, writer, octets(1 << 20))
                    writer.close()
                    await until(lambda: not it.server.parts.sessions.running and not it.distortion.all)

    run(main)


# --- sessions that run ---


@every_hosting
@carriers
def test_a_fault_for_a_session_that_runs(run: Run, carrier: str) -> None:
    """Added in the middle of a transfer both ways, changed and taken away: the content stays exact and in order, and
    everything arrives although it was held."""

    async def main() -> None:
        async with (
            target(echo) as port,
            distorting(**CARRIERS[carrier]) as it,
            tunnel(it.address, port) as (reader, writer),
        ):
            data = octets(SIZE)
            got = bytearray()

            async def receive() -> None:
                while len(got) < len(data):
                    got.extend(await reader.read(65536))

            receiving = asyncio.get_running_loop().create_task(receive())
            writer.write(data[: SIZE // 3])
            await until(lambda: len(got) > 1 << 16)
            entry = it.set("late", {"latency": LATE})
            assert entry.active == 1
            (one,) = it.distortion.all
            writer.write(data[SIZE // 3 : SIZE // 2])
            await until(lambda: one.relay is not None and one.relay.up.held)
            it.set("late", {"slice": 1000})
            assert (it.entry("late") is entry, entry.chosen) == (True, 1)
            writer.write(data[SIZE // 2 :])
            await receiving
            it.set("late", {"latency": LATE})
            writer.write(b"more")
            await until(lambda: one.relay is not None and one.relay.up.held == 4)
            it.remove("late")
            assert entry.active == 0
            assert await reader.readexactly(4) == b"more"
            assert bytes(got) == data
            writer.write_eof()
            assert await reader.read() == b""
            await until(lambda: it.over)
            assert (it.over[0].up, it.over[0].down, it.over[0].close) == (SIZE + 4, SIZE + 4, "client")

    run(main)


@every_hosting
@carriers
def test_a_fault_for_a_session_that_rests(run: Run, carrier: str) -> None:
    """It acts on what comes next. A second one joins it, and each can go by itself."""

    async def main() -> None:
        async with (
            target(echo) as port,
            distorting(**CARRIERS[carrier]) as it,
            tunnel(it.address, port) as (reader, writer),
        ):
            await exchange(reader, writer, b"before")
            it.set("late", {"up": {"latency": LATE}})
            it.set("hole", {"down": {"latency": LATE}})
            (one,) = it.distortion.all
            writer.write(b"hello")
            await until(lambda: one.relay is not None and one.relay.up.held == 5)
            it.remove("late")
            await until(lambda: one.relay is not None and one.relay.down.held == 5)
            assert (it.entry("hole").active, it.distortion.all) == (1, (one,))
            it.remove("hole")
            assert await reader.readexactly(5) == b"hello"

    run(main)


@carriers
def test_faults_that_come_and_go_leave_nothing_on_a_session(run: Run, carrier: str) -> None:
    """However often: what is remembered of those that are gone has a bound, and those that stay are among it."""

    async def main() -> None:
        async with (
            target(echo) as port,
            distorting(**CARRIERS[carrier]) as it,
            tunnel(it.address, port) as (reader, writer),
        ):
            stays = it.set("stays", {"slice": 1000})
            for number in range(3 * MOST_KNOWN):
                it.set(f"one-{number}", {"slice": 2000})
                it.remove(f"one-{number}")
            await exchange(reader, writer, b"hello")
            (session,) = it.server.parts.sessions.running
            assert len(session.distorted) <= MOST_KNOWN
            assert len(session.distorted.asked) <= 2
            assert session.distorted[0].entry is stays
            assert len(session.ended or ()) <= 2
            assert (stays.active, stays.chosen) == (1, 1)

    run(main)


@pytest.mark.parametrize("protocol", ["http", "raw"])
@pytest.mark.parametrize("early", [True, False])
def test_sniffed_listeners(run: Run, protocol: str, early: bool) -> None:
    """Sessions whose first octets are looked at, before and after that."""

    async def main() -> None:
        listen = [Listen("mixed://127.0.0.1:0", sniff=True)]
        async with target(echo) as port, distorting(listen=listen) as it:
            if early:
                it.set("late", {"down": {"latency": LATE}})
            async with tunnel(it.address, port) as (reader, writer):
                data = b"GET / HTTP/1.1\r\n\r\n" if protocol == "http" else b"\x01\x02 octets"
                if not early:
                    it.set("late", {"down": {"latency": LATE}})
                writer.write(data)
                await until(lambda: [one for one in it.distortion.all if one.relay and one.relay.down.held])
                it.remove("late")
                assert await reader.readexactly(len(data)) == data
                await exchange(reader, writer, data * 10)
            await until(lambda: it.over)
            assert it.over[0].sniffed is not None

    run(main)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An authority of the user's; and the file with that of origins."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write_authority(tmp_path / "tabi")
    path = tmp_path / "origins.pem"
    path.write_bytes(authority().cert_pem.bytes())
    return str(path)


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
@pytest.mark.parametrize("early", [True, False])
def test_intercepted_sessions(run: Run, trusted: str, alpn: str, early: bool) -> None:
    """Faults act below the TLS of what is looked into, which goes on through them."""

    async def main() -> None:
        context: ssl.SSLContext = server_context.__wrapped__()
        context.set_alpn_protocols([alpn])

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if alpn == "http/1.1":
                await answer(reader, writer)
            elif await reader.read(1):  # the preface, which is not ours to answer
                writer.write(b"\0\0\0\4\0\0\0\0\0")
                await reader.read()

        hello = ssl.create_default_context()
        hello.check_hostname, hello.verify_mode = False, ssl.CERT_NONE
        hello.set_alpn_protocols([alpn])
        mark = Mark()
        async with (
            target(serve, context=context) as port,
            distorting(intercept=[InterceptConfig(trust=trusted)], hooks=[mark]) as it,
        ):
            if early:
                it.set("late", {"down": {"slice": 7}})
            reader, writer = await Proxy(f"socks5://{it.address}").open_connection(
                "127.0.0.1", port, ssl=hello, server_hostname="localhost"
            )
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == alpn
            if alpn == "h2":
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                assert (await reader.readexactly(9))[3:5] == b"\4\0"
            if not early:
                it.set("late", {"down": {"latency": LATE}})
            if alpn == "http/1.1":
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            else:  # a PING, which the destination would answer, were it not held up
                writer.write(b"\0\0\x08\6\0\0\0\0\0" + b"12345678")
            (one,) = it.distortion.all
            if not early and alpn == "http/1.1":
                await until(lambda: one.relay is not None and one.relay.down.held)
            it.remove("late")
            if alpn == "http/1.1":
                assert b"X-Mark: 1" in await reader.readuntil(b"X-Mark: 1")
            writer.close()
            await until(lambda: it.over)
            assert it.over[0].intercepted is not None

    run(main)


def test_sessions_that_are_not_looked_into_after_all(run: Run, trusted: str) -> None:
    """TLS that is passed, in a server that looks into other sessions: through the pair to the plain relay."""

    async def main() -> None:
        async with (
            https_origin() as port,
            distorting(
                entry_of({"slice": 100}, name="slices"),
                intercept=[InterceptConfig(hosts=["other.test"], trust=trusted)],
            ) as it,
        ):
            hello = client_context()
            reader, writer = await Proxy(f"socks5://{it.address}").open_connection(
                "127.0.0.1", port, ssl=hello, server_hostname="localhost"
            )
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"Host" in await reader.readuntil(b"Host: localhost")
            assert it.entry("slices").active == 1
            writer.close()
            await until(lambda: it.over)
            assert (it.over[0].intercepted, it.over[0].distorted[0].entry) == (None, it.entry("slices"))

    run(main)


# --- ends ---


@every_hosting
@carriers
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_is_a_reset_on_the_other_side(run: Run, carrier: str, side: str) -> None:
    """Whoever carries the session behind the faults."""

    async def main() -> None:
        resets = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                assert await reader.readexactly(5) == b"hello"
                if side == "server":
                    reset_on_close(writer.get_extra_info("socket"))
                    writer.close()
                    return
                await reader.read()
            except ConnectionResetError:
                resets.set()

        options = CARRIERS[carrier]
        async with target(serve) as port, distorting(entry_of({"slice": 2}, name="slices"), **options) as it:
            with contextlib.suppress(ConnectionError):
                async with tunnel(it.address, port) as (reader, writer):
                    writer.write(b"hello")
                    if side == "server":
                        with pytest.raises(ConnectionResetError):
                            await reader.read()
                    else:
                        await until(lambda: next(iter(it.server.parts.sessions.infos())).up == 5)
                        reset_on_close(writer.get_extra_info("socket"))
                        writer.close()
                        await resets.wait()
            await until(lambda: it.over)
            assert it.over[0].close == "reset"

    run(main)


@carriers
@pytest.mark.parametrize("then", ["close", "reset"])
def test_an_end_that_a_fault_makes(run: Run, carrier: str, then: str) -> None:
    """The session's line says so, with the name of the entry."""

    async def main() -> None:
        fault = {"down": {"limit": 5}, "then": then}
        async with target(echo) as port, distorting(entry_of(fault, name="short"), **CARRIERS[carrier]) as it:
            async with tunnel(it.address, port) as (reader, writer):
                writer.write(b"hello and more")
                assert await reader.readexactly(5) == b"hello"
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            await until(lambda: it.over)
            session = it.over[0]
            assert session.close == "fault"
            assert session.error is not None
            assert "short" in session.error
            assert str(session.address) == f"127.0.0.1:{port}"
            assert session.client.host == it.address.host

    run(main)


@carriers
def test_what_is_held_arrives_after_the_session_is_over(run: Run, carrier: str) -> None:
    """A server that drains waits for it: the destination's last words come, although they are late."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(2)
            writer.write(b"last words")

        async with (
            target(serve) as port,
            distorting(**CARRIERS[carrier]) as it,
            tunnel(it.address, port) as (reader, writer),
        ):
            it.set("late", {"latency": LATE, "direction": "down"})
            writer.write(b"hi")
            (one,) = it.distortion.all
            await until(lambda: one.relay is not None and one.relay.down.held == 10)
            if carrier == "program":
                writer.write_eof()
                await until(lambda: it.over)
            draining = asyncio.get_running_loop().create_task(it.server.drain(10))
            await asyncio.sleep(0)
            it.remove("late")
            assert await reader.read() == b"last words"
            if carrier != "program":
                writer.write_eof()
            assert await draining == 0
            await until(lambda: not it.distortion.all)

    run(main)


@every_hosting
@carriers
def test_a_server_that_stops_leaves_nothing(run: Run, carrier: str) -> None:
    """With octets held both ways, and sessions in every state; descriptors and tasks are looked for afterwards."""

    async def main() -> None:
        async with target(echo) as port, contextlib.AsyncExitStack() as stack:
            async with distorting(**CARRIERS[carrier]) as it:
                for count in range(6):
                    if count == 3:
                        it.set("late", {"latency": LATE})
                    _, writer = await stack.enter_async_context(tunnel(it.address, port))
                    writer.write(b"hello")
                await until(lambda: sum(one.relay.up.held for one in it.distortion.all if one.relay) >= 15)
            assert [session.close for session in it.over] == ["shutdown"] * 6

    run(main)


@carriers
def test_a_session_that_is_ended_from_outside(run: Run, carrier: str) -> None:
    """Also with faults, and octets held: the client sees an end."""

    async def main() -> None:
        async with target(echo) as port, distorting(entry_of({"up": {"latency": LATE}}), **CARRIERS[carrier]) as it:
            async with tunnel(it.address, port) as (reader, writer):
                writer.write(b"hello")
                await until(lambda: [one for one in it.distortion.all if one.relay and one.relay.up.held])
                it.server.sessions()[0].end()
                assert await reader.read() == b""
            await until(lambda: it.over)
            assert it.over[0].close == "kicked"

    run(main)


def test_idle_sessions_end_as_idle(run: Run) -> None:
    """The carrier behind the faults has the deadline."""

    async def main() -> None:
        timeouts = Timeouts(idle=Seconds(0.1))
        fault = entry_of({"slice": 10})
        async with target(silent) as port, distorting(fault, carrier=passing, timeouts=timeouts) as it:
            async with tunnel(it.address, port) as (reader, _):
                assert await reader.read() == b""
            await until(lambda: it.over)
            assert it.over[0].close == "idle"

    run(main)


def test_limits_and_faults(run: Run) -> None:
    """A session that limits count has both: its quota ends it after as many octets, and its time."""

    async def main() -> None:
        limits = LimitsConfig(max_session=Seconds(0.05), bandwidth=Bandwidth(1e9))
        async with target(silent) as port, distorting(entry_of({"latency": LATE}), limits=limits) as it:
            async with tunnel(it.address, port) as (reader, writer):
                writer.write(b"hello")
                (session,) = it.server.parts.sessions.running
                assert len(it.relay_of(session).up.stages) == 2  # type: ignore[attr-defined]
                assert await reader.read() == b""
            await until(lambda: it.over)
            assert it.over[0].close == "limit"

    run(main)


# --- descriptors, and what is around ---


def test_without_descriptors_there_are_no_faults(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Sessions go on as they would, and a line of the log says so: new ones, and those that run."""

    async def main() -> None:
        def fails() -> Any:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        async with target(echo) as port, distorting(carrier=passing) as it:
            async with tunnel(it.address, port) as (reader, writer):
                monkeypatch.setattr(distorted, "open_pair", fails)
                it.set("late", {"latency": LATE})
                await exchange(reader, writer, b"hello")
            async with tunnel(it.address, port) as (reader, writer):
                await exchange(reader, writer, b"hello")
            assert it.entry("late").active == 0

    run(main)
    assert sum("no faults, since there is no pair of sockets" in line for line in caplog.messages) == 2


def test_buffers_are_as_large_as_before_when_bandwidth_is_not_limited_any_more(run: Run) -> None:
    """By a change, by a schedule, and when the fault is taken away: another one that limits it keeps them small."""

    async def main() -> None:
        async with (
            target(echo) as port,
            distorting(carrier=passing) as it,
            tunnel(it.address, port) as (reader, writer),
        ):
            await exchange(reader, writer, b"hello")
            it.set("late", {"latency": "1ms"})
            (one,) = it.distortion.all

            def size() -> int:
                assert one.relay is not None
                return one.relay.up.sink.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

            large = size()
            slow = {"bandwidth": "100 kB/s"}
            it.set("slow", slow)
            small = size()
            assert small < large
            it.set("slow", {"slice": 100})
            assert size() == large
            it.set("slow", slow)
            it.set("other", slow)
            it.remove("slow")
            assert size() == small
            it.remove("other")
            assert size() == large
            await exchange(reader, writer, b"hello")

    run(main)


def test_bandwidth_does_not_vanish_in_buffers(run: Run) -> None:
    """In front of a carrier that takes all it gets, a session that has hardly any bandwidth has not sent megabytes."""

    async def main() -> None:
        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()

        fault = entry_of({"down": {"bandwidth": "1 kB/s"}})
        async with (
            target(pour) as port,
            distorting(fault, carrier=passing) as it,
            tunnel(it.address, port) as (reader, _),
        ):
            assert await reader.readexactly(1)
            (session,) = it.server.parts.sessions.running
            before = -1
            while before != session.down:
                before = session.down
                await asyncio.sleep(0.05)
            assert session.down < 1 << 19

    run(main)
