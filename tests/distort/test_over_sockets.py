"""Each fault as the ends of a connection or an association meet it: with real sockets, through a whole server.

Those that make octets late or cut them into pieces are in test_streams.py, those of dialling in test_dialling.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from authorities import client_context, server_context
from conftest import Run
from datagrams import Client, Destination, Faulty, association, destination, unwrap
from distorting import Served, config_of, distorting, entry_of, until
from sockets import octets, turns
from support import echo, target, tunnel
from tabi import Proxy
from tabi.relay.flow import PAUSED
from tabi.relay.relay import Relay

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
MIB = 1 << 20


class Ends:
    """Both ends of a connection through a server that has one fault, ``it``."""

    def __init__(self, served: Served, client: Streams, server: Streams) -> None:
        self.served = served
        self.client = client
        self.server = server

    @property
    def relay(self) -> Relay:
        """What is between them."""
        (session,) = self.served.server.parts.sessions.running
        return self.served.relay_of(session)


@contextlib.asynccontextmanager
async def ends(fault: dict[str, Any], **keys: Any) -> AsyncIterator[Ends]:
    """A connection that has it from the beginning."""
    accepted: asyncio.Queue[Streams] = asyncio.Queue()
    over = asyncio.Event()

    async def serve(*streams: Any) -> None:
        accepted.put_nowait(streams)
        await over.wait()

    async with target(serve) as port, distorting() as served:
        served.set("it", fault, **keys)
        async with tunnel(served.address, port) as client:
            try:
                yield Ends(served, client, await accepted.get())
            finally:
                over.set()


async def exchange(sender: Streams, receiver: Streams, data: bytes) -> bytes:
    """What comes out at the other end, of as many octets."""
    sender[1].write(data)
    return await receiver[0].readexactly(len(data))


async def line_of(served: Served) -> tuple[str, str | None]:
    """How the session has ended."""
    await until(lambda: served.over)
    return served.over[0].close, served.over[0].error


# --- connections ---


def test_corruption(run_once: Run) -> None:
    """One octet of a hundred, by one bit; the other direction is left alone. The same seed changes the same."""

    async def main() -> None:
        data, found = octets(200_000), []
        for _ in range(2):
            async with ends({"corrupt": 0.01, "direction": "down"}, seed=7) as both:
                assert await exchange(both.client, both.server, data) == data
                found.append(await exchange(both.server, both.client, data))
        changed = [(one ^ other).bit_count() for one, other in zip(data, found[0], strict=True) if one != other]
        assert set(changed) == {1}
        assert len(changed) == pytest.approx(2000, abs=200)
        assert found[0] == found[1]

    run_once(main)


def test_blackhole(run_once: Run) -> None:
    """What goes in is gone for ever, its sender notices nothing, and the other direction goes on."""

    async def main() -> None:
        async with ends({"blackhole": True, "direction": "up"}) as both:
            both.client[1].write(octets(MIB))
            await both.client[1].drain()
            assert await exchange(both.server, both.client, octets(MIB, 2)) == octets(MIB, 2)
            assert both.served.server.sessions()[0].up == 0
            await until(lambda: select.select([both.relay.up.source_fd], [], [], 0)[0] == [])
            both.served.remove("it")
            assert await exchange(both.client, both.server, b"after") == b"after"

    run_once(main)


def test_stall(run_once: Run) -> None:
    """What goes in stays on the way, however much it is: its sender has to wait. All of it comes in the end."""

    async def main() -> None:
        data = octets(24 * MIB)
        async with ends({"stall": True, "direction": "down"}) as both:
            both.server[1].write(data)
            await until(lambda: both.relay.down.state == PAUSED)
            assert await exchange(both.client, both.server, b"hello") == b"hello"
            assert both.server[1].transport.get_write_buffer_size() > 0
            assert not both.client[0]._buffer  # type: ignore[attr-defined]
            both.served.remove("it")
            assert await both.client[0].readexactly(len(data)) == data

    run_once(main)


def test_slow_close(run_once: Run) -> None:
    """Octets come at once, the end does not."""

    async def main() -> None:
        async with ends({"slow_close": "1h", "direction": "down"}) as both:
            assert await exchange(both.server, both.client, b"hello") == b"hello"
            both.server[1].write_eof()
            await until(lambda: both.relay.down.source_ended)  # type: ignore[attr-defined]
            assert await exchange(both.client, both.server, b"hello") == b"hello"
            assert not both.client[0].at_eof()
            both.served.remove("it")
            assert await both.client[0].read() == b""

    run_once(main)


@pytest.mark.every_hosting
@pytest.mark.parametrize(
    "fault", [{"reset_after": "20ms"}, {"down": {"limit": 5}, "then": "reset"}], ids=["time", "limit"]
)
def test_a_reset_is_a_reset_on_both_sides(run: Run, fault: dict[str, Any]) -> None:
    """ECONNRESET, while nobody ends anything; what had passed before it has come."""

    async def main() -> None:
        async with ends(fault) as both:
            both.server[1].write(b"hello")
            with contextlib.suppress(ConnectionResetError):
                assert await both.client[0].readexactly(5) == b"hello"
                both.server[1].write(b"more")
            for reader, _ in (both.client, both.server):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            close, error = await line_of(both.served)
            assert (close, (error or "").partition(":")[0]) == ("fault", "it")

    run(main)


@pytest.mark.every_hosting
@pytest.mark.parametrize("fault", [{"close_after": "20ms"}, {"down": {"limit": 5}}], ids=["time", "limit"])
def test_an_end_is_an_end_on_both_sides(run: Run, fault: dict[str, Any]) -> None:
    """And no reset; what had passed before it has come."""

    async def main() -> None:
        async with ends({"slice": 100}) as both:
            if "down" in fault:
                both.served.set("it", fault)
            assert await exchange(both.server, both.client, b"hello") == b"hello"
            both.served.set("it", fault)
            for reader, _ in (both.client, both.server):
                assert await reader.read() == b""
            close, error = await line_of(both.served)
            assert (close, (error or "").partition(":")[0]) == ("fault", "it")

    run(main)


@pytest.mark.parametrize("then", ["close", "reset"])
def test_a_handshake_of_tls_that_is_cut(run_once: Run, then: str) -> None:
    """A real one: the destination has had the hello, and the client gets nothing of the answer. Without TLS octets
    pass, and with TLS too when the fault is gone."""

    async def main() -> None:
        async with (
            target(echo, context=server_context()) as secure,
            target(echo) as plain,
            distorting(entry_of({"tls_cut": then}, name="cut")) as served,
        ):

            async def connect(port: int, **tls: Any) -> None:
                reader, writer = await Proxy(f"socks5://{served.address}").open_connection("127.0.0.1", port, **tls)
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
                writer.close()

            tls = {"ssl": client_context(), "server_hostname": "localhost"}
            with pytest.raises(ConnectionResetError if then == "reset" else (ssl.SSLError, ConnectionError, EOFError)):
                await connect(secure, **tls)
            assert await line_of(served) == ("fault", "cut: TLS is cut")
            assert served.over[0].up > 100
            assert served.over[0].down == 0
            await connect(plain)
            served.server.reload(config_of())
            await connect(secure, **tls)

    run_once(main)


# --- datagrams ---


async def sent_through(client: Client, there: Destination, count: int, place: Faulty) -> None:
    """Send so many datagrams with a number each, no more than the sockets hold at a time."""
    session = place.one.session
    done = session.datagrams_up + place.drops.get("fault", 0)
    for number in range(count):
        client.send(there.header + number.to_bytes(3))
        if number % 100 == 99 or number == count - 1:
            expected = done + number + 1
            await until(lambda expected=expected: session.datagrams_up + place.drops.get("fault", 0) == expected)
    await until(lambda: len(there.received) == session.datagrams_up)


async def lost(fault: dict[str, Any], counts: Sequence[int]) -> list[list[bool]]:
    """Which of so many datagrams are lost, for each of several associations of a new server."""
    found = []
    async with Faulty({"seed": 7, "fault": {**fault, "direction": "up"}}) as place:
        for count in counts:
            async with association(place.address) as client:
                with destination(answer=lambda data, sender: ()) as there:
                    await sent_through(client, there, count, place)
                    came = {int.from_bytes(data) for data, _ in there.received}
                    found.append([number not in came for number in range(count)])
                await place.end(client)
    return found


def test_ten_percent_of_twenty_thousand(run_once: Run) -> None:
    """Within 1 point; the same ones in another run, of each association by its number."""

    async def main() -> None:
        first, second = await lost({"loss": 0.1}, [20_000, 1000])
        assert sum(first) == pytest.approx(2000, abs=200)
        assert await lost({"loss": 0.1}, [2000, 1000]) == [first[:2000], second]
        assert first[:1000] != second

    run_once(main)


def test_bursts_of_three(run_once: Run) -> None:
    """As long as the model's on average, within a tenth; the share stays."""

    async def main() -> None:
        (row,) = await lost({"loss": 0.1, "burst": 3}, [20_000])
        bursts = sum(is_lost and not before for before, is_lost in zip([False, *row], row, strict=False))
        assert sum(row) / bursts == pytest.approx(3, rel=0.1)
        assert sum(row) == pytest.approx(2000, abs=300)

    run_once(main)


def test_bandwidth_of_datagrams(run_once: Run) -> None:
    """They come no faster than the line brings them, and what finds no room in the queue is lost."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        fault = {"bandwidth": 100_000, "queue": 10_000, "direction": "down"}
        async with Faulty({"fault": fault}) as place, association(place.address) as client:
            with destination(answer=lambda data, sender: [(bytes(1000), sender)] * 30) as there:
                began = loop.time()
                client.send(there.header + b"x")
                await until(lambda: place.one.session.datagrams_down + place.drops.get("fault", 0) == 30)
                took = loop.time() - began
                down = place.one.session.datagrams_down
                assert 10 <= down < 30
                assert took >= down * 0.01 - 0.001

    run_once(main)


def test_mtu(run_once: Run) -> None:
    """One octet more is lost."""

    async def main() -> None:
        async with Faulty({"fault": {"mtu": 1200}}) as place, association(place.address) as client:
            with destination() as there:
                client.send(there.header + bytes(1201))
                assert unwrap(await client.ask(there.header + bytes(1200))) == (there.address, bytes(1200))
                assert place.drops == {"fault": 1}

    run_once(main)


def test_limit_of_datagrams(run_once: Run) -> None:
    """So many octets come, and the association ends."""

    async def main() -> None:
        said = {"name": "it", "fault": {"limit": 1200, "direction": "up"}}
        async with Faulty(said) as place, association(place.address) as client:
            with destination() as there:
                client.send(there.header + bytes(1000))
                await until(lambda: there.received)
                client.send(there.header + bytes(200))
                assert await client.reader.read() == b""
                session = await place.ended.get()
                assert (session.close, session.error, session.up) == ("fault", "it: the limit of 1200 octets", 1200)

    run_once(main)


def test_stall_of_datagrams(run_once: Run) -> None:
    """Nothing comes any more, and nothing of it later: datagrams are not kept."""

    async def main() -> None:
        async with Faulty({"fault": {"stall": True}}) as place, association(place.address) as client:
            with destination() as there:
                client.send(there.header + b"lost")
                await until(lambda: place.drops == {"fault": 1})
                place.take()
                await turns()
                assert unwrap(await client.ask(there.header + b"after")) == (there.address, b"after")

    run_once(main)
