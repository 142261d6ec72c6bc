"""TlsRelay: both directions arrive whole, and so do their ends, whoever is first, slow or broken."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from authorities import VERSIONS, TlsPeer, accept, client_context
from conftest import Run
from sockets import Bench, Ends, Pair, octets, read, read_all, reset, send, send_and_end, tcp_pair, turns, until
from tabi.net.reactor import OUT
from tabi.net.tls import TlsSocket
from tabi.relay.flow import BLOCKED
from tabi.relay.tls import TlsRelay

MIB = 1 << 20
BULK = 4 * MIB + 12_345
SMALL = 4096

both_versions = pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])


async def tls_ends(
    bench: Bench,
    client: Pair | None = None,
    server: Pair | None = None,
    version: ssl.TLSVersion | None = None,
) -> tuple[Ends, TlsPeer]:
    """A client with TLS, its handshake done, and a server without."""
    ends = bench.ends(client, server)
    peer = TlsPeer(ends.client, client_context(version))
    await accept(ends.near_client, peer)
    return ends, peer


async def read_slowly(read: Callable[[int], Any], count: int) -> bytes:
    """Read so many octets in small pieces, with turns of the loop between them."""
    data = bytearray()
    while len(data) < count and (chunk := await read(min(10_000, count - len(data)))):
        data += chunk
        await turns(3)
    return bytes(data)


@both_versions
def test_octets_and_ends_both_ways(run: Run, version: ssl.TLSVersion) -> None:
    """Answer, head and payload in their order; the octets that are counted are those of the plaintext."""

    async def main() -> None:
        with Bench() as bench:
            ends, peer = await tls_ends(bench, version=version)
            await peer.send(b"behind")
            ends.start(b"head ", b"answer ")
            assert isinstance(ends.relay, TlsRelay)
            assert await read(ends.server, 11) == b"head behind"
            await send(ends.server, b"down")
            assert await peer.read(11) == b"answer down"
            await peer.end()
            assert await read_all(ends.server) == b""
            assert not ends.ended.is_set()
            ends.server.close()
            assert await peer.read_all() == b""
            assert peer.notified
            await ends.ended.wait()
            session = ends.session
            assert (session.up, session.down, session.close) == (11, 4, "client")

    run(main)


def test_tls_at_the_server(run: Run) -> None:
    """Either side, or both, may have TLS."""

    async def main() -> None:
        with Bench() as bench:
            ends, peer = await tls_ends(bench)
            far = TlsPeer(ends.server, client_context())
            await accept(ends.near_server, far)
            ends.start()
            await peer.send(b"up")
            assert await far.read(2) == b"up"
            await far.send(b"down")
            await far.end()
            assert await peer.read_all() == b"down"
            await peer.end()
            assert await far.read_all() == b""
            assert (peer.notified, far.notified) == (True, True)
            await ends.ended.wait()
            assert ends.session.close == "server"

    run(main)


@both_versions
@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close_is_kept(run: Run, version: ssl.TLSVersion, first: str) -> None:
    """C25: after one side has ended, the other still sends 1 MiB; close_notify is an end, and an end one."""

    async def main() -> None:
        data = octets(MIB)
        with Bench() as bench:
            ends, peer = await tls_ends(bench, version=version)
            ends.start()
            async with asyncio.TaskGroup() as group:
                if first == "client":
                    await peer.send(b"request")
                    await peer.end()
                    assert await read_all(ends.server) == b"request"
                    group.create_task(send_and_end(ends.server, data))
                    assert await peer.read_all() == data
                else:
                    await send_and_end(ends.server, b"request")
                    assert await peer.read_all() == b"request"
                    assert peer.notified
                    group.create_task(peer.send(data))
                    assert await read(ends.server, len(data)) == data
                    await peer.end()
                    assert await read_all(ends.server) == b""
            assert peer.notified
            await ends.ended.wait()
            assert ends.session.close == first

    run(main)


def test_an_end_without_close_notify_is_an_end(run: Run) -> None:
    """Most clients end so: what came before is delivered, and the destination sees an end, not a reset."""

    async def main() -> None:
        with Bench() as bench:
            ends, peer = await tls_ends(bench)
            ends.start()
            ends.client.send(peer.encrypt(b"last"))
            ends.client.shutdown(socket.SHUT_WR)
            assert await read_all(ends.server) == b"last"
            ends.server.close()
            await ends.ended.wait()
            assert ends.session.close == "client"

    run(main)


@both_versions
def test_a_broken_record_is_a_reset(run: Run, version: ssl.TLSVersion) -> None:
    """C33: the destination must not take for an end what was changed on its way."""

    async def main() -> None:
        with Bench() as bench:
            ends, peer = await tls_ends(bench, version=version)
            ends.start()
            await peer.send(b"good")
            assert await read(ends.server, 4) == b"good"
            wire = bytearray(peer.encrypt(b"payload"))
            wire[10] ^= 1
            await send(ends.client, bytes(wire))
            with pytest.raises(ConnectionResetError):
                await read(ends.server, 1)
            await ends.ended.wait()
            assert (ends.session.close, ends.session.up) == ("reset", 4)

    run(main)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_becomes_a_reset(run: Run, side: str) -> None:
    """C33: and no close_notify goes in front of it."""

    async def main() -> None:
        with Bench() as bench:
            ends, peer = await tls_ends(bench)
            ends.start()
            await peer.send(b"up")
            assert await read(ends.server, 2) == b"up"
            reset(getattr(ends, side))
            with pytest.raises(ConnectionResetError):
                await (peer.read(1) if side == "server" else read(ends.server, 1))
            assert not peer.notified
            await ends.ended.wait()
            assert ends.session.close == "reset"

    run(main)


@both_versions
@pytest.mark.parametrize("slow", ["client", "server", "both"])
def test_bulk_both_ways_with_a_slow_reader(run: Run, version: ssl.TLSVersion, slow: str) -> None:
    """Everything arrives, once and in order, and what is held for who is slow is bounded."""

    async def main() -> None:
        up, down = octets(BULK, 1), octets(BULK, 2)
        small = tcp_pair(SMALL * 4), tcp_pair(SMALL * 4)
        with Bench() as bench:
            ends, peer = await tls_ends(bench, *small, version=version)
            ends.start()
            flows = ends.relay.up, ends.relay.down
            sock: Any = ends.near_client.sock
            held = []

            async def watch() -> None:
                while not ends.ended.is_set():
                    held.append(len(sock.unsent) + sock.outgoing.pending + sum(len(flow.rest or b"") for flow in flows))
                    await asyncio.sleep(0)

            async def take(read: Callable[[int], Any], data: bytes, slowly: bool) -> None:
                assert await (read_slowly(read, len(data)) if slowly else read(len(data))) == data

            async with asyncio.TaskGroup() as group:
                group.create_task(watch())
                sending = group.create_task(peer.send(up))
                group.create_task(send_and_end(ends.server, down))
                group.create_task(take(lambda count: read(ends.server, count), up, slow != "client"))
                await take(peer.read, down, slow != "server")
                assert await peer.read_all() == b""
                await sending
                await peer.end()
            assert peer.notified
            assert max(held) <= 4 * 65536
            assert (ends.session.up, ends.session.down, ends.session.close) == (BULK, BULK, "server")

    run(main)


def test_a_flow_has_its_share_of_a_turn(run: Run) -> None:
    """More than a share goes on in the next turn; no pipe is used."""

    async def main() -> None:
        data = octets(12 * MIB)
        with Bench() as bench:
            ends, peer = await tls_ends(bench)
            ends.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(peer.send(data))
                assert await read(ends.server, len(data)) == data
            assert bench.relays.pipes.lent == 0
            assert ends.relay.up.pipe is None

    run(main)


class Narrow:
    """A socket that has no room when a test says so."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.room = True
        self.error: OSError | None = None

    def send(self, data: bytes | memoryview, /) -> int:
        """As send(2)."""
        if not self.room:
            raise BlockingIOError
        return int(self.sock.send(data))

    def shutdown(self, how: int, /) -> None:
        """As shutdown(2)."""
        if self.error is not None:
            raise self.error
        self.sock.shutdown(how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


async def narrow_ends(bench: Bench) -> tuple[Ends, TlsPeer, Narrow]:
    """A client to which there is room when a test says so."""
    ends, peer = await tls_ends(bench)
    sock: Any = ends.near_client.sock
    sock.below = below = Narrow(sock.below)
    return ends, peer, below


@pytest.mark.parametrize("client_ends", ["before", "meanwhile", "after"])
def test_a_close_notify_that_does_not_fit_waits(run: Run, client_ends: str) -> None:
    """Neither the last octets nor close_notify are lost, though both sides end at the same time."""

    async def main() -> None:
        with Bench() as bench:
            ends, peer, below = await narrow_ends(bench)
            ends.start()
            relay = ends.relay
            if client_ends == "before":
                await peer.end()
                assert await read_all(ends.server) == b""
            await send(ends.server, b"down")
            assert await peer.read(4) == b"down"
            below.room = False
            ends.server.shutdown(socket.SHUT_WR)
            await until(lambda: relay.down.ended)
            assert relay.down.state == BLOCKED
            if client_ends == "meanwhile":
                await peer.send(b"last")
                await peer.end()
                assert await read_all(ends.server) == b"last"
            assert not ends.ended.is_set()
            below.room = True
            relay.up.on_ready(OUT)  # as the kernel would say it
            assert await peer.read_all() == b""
            assert peer.notified
            if client_ends == "after":
                await peer.end()
            await ends.ended.wait()
            assert ends.session.close == ("client" if client_ends == "before" else "server")

    run(main)


def test_a_client_that_never_makes_room_for_the_end(run: Run) -> None:
    """The limit of relays of which one side has ended holds: it is over as idle."""

    async def main() -> None:
        with Bench(half_closed=60) as bench:
            ends, _, below = await narrow_ends(bench)
            ends.start()
            below.room = False
            ends.server.shutdown(socket.SHUT_WR)
            await until(lambda: ends.relay.down.state == BLOCKED)
            bench.relays.sweep(monotonic() + 59)
            assert not ends.ended.is_set()
            bench.relays.sweep(monotonic() + 61)
            await ends.ended.wait()
            assert ends.session.close == "idle"

    run(main)


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_an_end_that_cannot_be_told(run: Run, both: bool) -> None:
    """A client that is gone is a reset; where both sides have ended anyway, it was an orderly end."""

    async def main() -> None:
        with Bench() as bench:
            ends, peer, below = await narrow_ends(bench)
            ends.start()
            if both:
                await peer.end()
                assert await read_all(ends.server) == b""
            below.error = OSError(errno.ENOTCONN, "not connected")
            ends.server.shutdown(socket.SHUT_WR)
            await ends.ended.wait()
            assert ends.session.close == ("client" if both else "reset")

    run(main)


def test_the_destination_ends_first_behind_a_large_transfer(run: Run) -> None:
    """Everything that the destination has sent arrives at a client that reads late, with its close_notify."""

    async def main() -> None:
        data = octets(BULK)
        with Bench() as bench:
            ends, peer = await tls_ends(bench, tcp_pair(SMALL), tcp_pair(SMALL))
            ends.start()
            await peer.end()
            async with asyncio.TaskGroup() as group:
                group.create_task(send_and_end(ends.server, data))
                assert await read_slowly(peer.read, len(data)) == data
                assert await peer.read_all() == b""
            assert peer.notified
            await ends.ended.wait()
            assert (ends.session.down, ends.session.close) == (BULK, "client")

    run(main)


@pytest.mark.parametrize("late", [b"", b"more"], ids=["nothing", "octets"])
def test_a_client_that_closes_with_our_end_unread(run: Run, late: bytes) -> None:
    """The kernel resets a connection that is closed with close_notify unread. Who has sent nothing since the
    destination's end has ended like any other client; who has, is taken at its word: the destination gets a reset."""

    async def main() -> None:
        with Bench() as bench:
            ends, peer = await tls_ends(bench)
            ends.start()
            await peer.send(b"up")
            assert await read(ends.server, 2) == b"up"
            ends.server.send(b"answer")
            assert await peer.read(6) == b"answer"
            ends.server.shutdown(socket.SHUT_WR)
            await until(lambda: ends.relay.down.ended)
            if late:
                await peer.send(late)
                assert await read(ends.server, len(late)) == late
            if late:
                reset(ends.client)
                with pytest.raises(ConnectionResetError):
                    await read_all(ends.server)
            else:
                ends.client.close()  # close_notify has arrived, and nobody has read it
                assert await read_all(ends.server) == b""
            await ends.ended.wait()
            assert ends.session.close == ("reset" if late else "server")

    run(main)


def test_a_flow_is_prompt_while_little_is_decrypted(run_once: Run) -> None:
    """A turn that has used up its time leaves out those that decrypt much, or what takes long."""

    async def main() -> None:
        with Bench() as bench:
            ends, _ = await tls_ends(bench)
            sock = ends.near_client.sock
            ends.start()
            assert isinstance(sock, TlsSocket)
            assert ends.relay.up.prompt
            assert ends.relay.down.prompt
            for appetite in (sock.appetite * 2, sock.appetite // 4):
                sock.appetite = appetite
                assert not ends.relay.up.prompt

    run_once(main)
