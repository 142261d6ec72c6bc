"""TlsSocket: the contract of a non-blocking socket, with TLS under it; and the server's handshake, on bad days too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from authorities import VERSIONS, TlsPeer, accept, authority, client_certificate, client_context, server_context
from conftest import Run
from sockets import Pair, fill, octets, reset, tcp_pair, turns, unix_pair, until, waiting
from tabi.errors import LimitExceeded, RemoteProtocolError
from tabi.net import handshakes
from tabi.net import tls as tls_module
from tabi.net.handshakes import Handshakes
from tabi.net.reactor import get_reactor
from tabi.net.stream import END_PAUSE, MSG_PEEK, Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.net.tls import (
    CHUNK,
    MAX_ANSWERS,
    MAX_HANDSHAKE,
    READ_SIZE,
    USUAL_READ,
    TlsShared,
    TlsSocket,
    accept_tls,
    connect_tls,
    get_tls_shared,
    make_client_context,
)

MIB = 1 << 20
SMALL = 4096

both_versions = pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])


@contextlib.asynccontextmanager
async def pair_of(
    pair: Callable[[], Pair] = tcp_pair, version: ssl.TLSVersion | None = None
) -> AsyncIterator[tuple[Stream, TlsPeer]]:
    """A stream whose handshake is not done, and the client at its other end."""
    near, far = pair()
    with far:
        async with Stream(get_reactor(), near) as stream:
            yield stream, TlsPeer(far, client_context(version))


@contextlib.asynccontextmanager
async def connected(
    pair: Callable[[], Pair] = tcp_pair, version: ssl.TLSVersion | None = None
) -> AsyncIterator[tuple[Stream, TlsSocket, TlsPeer]]:
    """A stream with TLS, its socket, and the client at its other end."""
    async with pair_of(pair, version) as (stream, peer):
        sock = await accept(stream, peer)
        yield stream, sock, peer


def small_pair() -> Pair:
    """Sockets that take little, so that most sends are short."""
    return tcp_pair(SMALL)


async def fail(stream: Stream, context: ssl.SSLContext | None = None) -> str:
    """Take a handshake that fails; gives the error."""
    with pytest.raises(RemoteProtocolError) as caught:
        await accept_tls(stream, context or server_context(), TlsShared())
    return str(caught.value)


# --- octets ---


@both_versions
@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_receive_gives_what_is_there(run: Run, pair: Callable[[], Pair], version: ssl.TLSVersion) -> None:
    """What has arrived comes at once, what has not is waited for, the end is empty, again and again."""

    async def main() -> None:
        async with connected(pair, version) as (stream, _, peer):
            await peer.send(b"early")
            await turns()
            assert await stream.receive() == b"early"
            assert stream.receive_nowait(100) is None
            async with asyncio.TaskGroup() as group:
                task = group.create_task(stream.receive())
                await turns()
                assert not task.done()
                await peer.send(b"late")
            assert task.result() == b"late"
            await peer.end()
            assert await stream.receive() == b""
            assert await stream.receive() == b""

    run(main)


def test_receive_takes_no_more_than_asked_for(run: Run) -> None:
    """What is left of a record is inside TLS, where no edge tells of it; it is still received."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            await peer.send(b"abcdef")
            assert await stream.receive(4) == b"abcd"
            assert await stream.receive(4) == b"ef"
            await peer.send(b"ghij")
            assert await stream.receive(4) == b"ghij"
            assert stream.receive_nowait(4) is None

    run(main)


def test_a_full_result_means_that_there_may_be_more(run: Run) -> None:
    """Many records in one read from below, into buffers of any size: nothing is lost and nothing comes twice."""

    async def main() -> None:
        data = octets(3 * READ_SIZE)
        async with connected() as (stream, _, peer):
            async with asyncio.TaskGroup() as group:
                group.create_task(peer.send(data))
                received = bytearray()
                for size in (1, 100, 16384, 16385, 65536, 1000) * 20:
                    if len(received) < len(data):
                        received += await stream.receive(size)
                while len(received) < len(data):
                    received += await stream.receive()
            assert received == data

    run(main)


def test_a_short_result_leaves_nothing_behind(run: Run) -> None:
    """A flow stops at a short read: what is there must be in it, up to the last whole record."""

    async def main() -> None:
        async with connected() as (stream, sock, peer):
            await peer.send(b"a" * 100)
            await peer.send(b"b" * 50_000)
            wire = peer.encrypt(b"c" * 100)
            peer.sock.send(wire[:50])
            await until(lambda: waiting_at_least(sock, 50_150))
            buffer = bytearray(65536)
            assert sock.recv_into(buffer) == 50_100
            with pytest.raises(BlockingIOError):
                sock.recv_into(buffer)
            peer.sock.send(wire[50:])
            assert await stream.receive() == b"c" * 100

    run(main)


def waiting_at_least(sock: TlsSocket, count: int) -> bool:
    """Whether so much ciphertext has arrived."""
    assert isinstance(sock.below, socket.socket)
    return waiting(sock.below) >= count


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
def test_peek_looks_and_takes_nothing(run: Run, together: bool) -> None:
    """Sniffing works inside TLS: what is peeked at is received afterwards, and more comes behind it."""

    async def main() -> None:
        async with connected() as (stream, sock, peer):
            await peer.send(b"abcdef" if together else b"abc")
            assert await stream.peek(3) == b"abc"
            assert await stream.peek(2) == b"ab"
            if not together:
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(stream.peek(10, 3))
                    await turns()
                    assert not task.done()
                    await peer.send(b"def")
                assert task.result() == b"abcdef"
            assert sock.recv(10, MSG_PEEK) == b"abcdef"
            assert await stream.receive(2) == b"ab"
            assert await stream.receive(10) == b"cdef"
            await peer.end()
            assert await stream.peek(3) == b""

    run(main)


def test_peek_sees_an_end_behind_too_little(run: Run) -> None:
    """Less than what is waited for, and close_notify behind it, without an end of the connection."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            peer.sock.send(peer.encrypt(b"ab") + peer.close_notify())
            assert await stream.peek(10) == b"ab"
            assert await stream.peek(10, 2) == b"ab"
            assert await stream.receive(10) == b"ab"
            assert await stream.receive(10) == b""

    run(main)


# --- ends ---


@both_versions
@pytest.mark.parametrize("notify", [True, False], ids=["close_notify", "without"])
def test_an_end_behind_octets(run: Run, version: ssl.TLSVersion, notify: bool) -> None:
    """The last octets and the end in one segment; without close_notify it is an end too, and is known for that."""

    async def main() -> None:
        async with connected(version=version) as (stream, sock, peer):
            peer.sock.send(peer.encrypt(b"last") + (peer.close_notify() if notify else b""))
            peer.sock.shutdown(socket.SHUT_WR)
            assert await stream.receive() == b"last"
            assert await stream.receive() == b""
            assert sock.cut is not notify

    run(main)


def test_close_notify_behind_octets_is_seen_without_an_end_below(run: Run) -> None:
    """No edge comes for a close_notify that was read with what is before it: whoever reads is told nevertheless."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            peer.sock.send(peer.encrypt(b"last") + peer.close_notify())
            assert await stream.receive() == b"last"
            assert await stream.receive() == b""

    run(main)


def test_the_end_of_a_stream_that_is_gone_is_told_to_nobody(run: Run) -> None:
    """Who closes between the last octets and the end hears of nothing."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            peer.sock.send(peer.encrypt(b"last") + peer.close_notify())
            assert await stream.receive() == b"last"
            stream.close()
            await turns()

    run(main)


def test_an_end_behind_half_a_record(run: Run) -> None:
    """The edge of an end comes once, and may come with octets that are not yet a record."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            peer.sock.send(peer.encrypt(b"never whole")[:20])
            peer.sock.shutdown(socket.SHUT_WR)
            assert await stream.receive() == b""

    run(main)


@both_versions
def test_a_broken_record_is_an_error_and_the_client_is_told(run: Run, version: ssl.TLSVersion) -> None:
    """What was changed on its way is no end: it raises, and the alert is sent."""

    async def main() -> None:
        async with connected(version=version) as (stream, _, peer):
            wire = bytearray(peer.encrypt(b"payload"))
            wire[-1] ^= 1
            peer.sock.send(peer.encrypt(b"before") + wire)
            with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
                assert await stream.receive(6) + await stream.receive() == b"before"
            stream.close()
            with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
                await peer.read(1)

    run(main)


def test_a_reset_below_is_a_reset(run: Run) -> None:
    """As of a plain socket."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            reset(peer.sock)
            with pytest.raises(ConnectionResetError):
                await stream.receive()

    run(main)


@both_versions
def test_half_close_by_the_server(run: Run, version: ssl.TLSVersion) -> None:
    """After send_eof the client reads the end, and what it sends is still received."""

    async def main() -> None:
        async with connected(version=version) as (stream, _, peer):
            await stream.send_all(b"all of it")
            stream.send_eof()
            assert await peer.read_all() == b"all of it"
            assert peer.notified
            data = octets(MIB)
            async with asyncio.TaskGroup() as group:
                group.create_task(peer.send(data))
                received = bytearray()
                while len(received) < len(data):
                    received += await stream.receive()
            assert received == data
            await peer.end()
            assert await stream.receive() == b""

    run(main)


@both_versions
def test_half_close_with_octets_that_nobody_has_taken(run: Run, version: ssl.TLSVersion) -> None:
    """OpenSSL refuses payload in front of the peer's close_notify while it ends: none may be lost or be an error."""

    async def main() -> None:
        async with connected(version=version) as (stream, _, peer):
            data = octets(60_000)
            async with asyncio.TaskGroup() as group:
                group.create_task(peer.send(data))
                received = await stream.receive(5)
                await turns()
                received += await stream.receive(5)  # the rest of the records is inside TLS now
                stream.send_eof()
                while len(received) < len(data):
                    received += await stream.receive(999)
            assert received == data
            await peer.end()
            assert await stream.receive() == b""
            assert await peer.read_all() == b""
            assert peer.notified

    run(main)


@pytest.mark.parametrize("after", [b"", bytes(100)], ids=["nothing", "rubbish"])
def test_half_close_with_an_end_that_nobody_has_read(run: Run, after: bytes) -> None:
    """Octets, and behind them close_notify, are inside TLS when we end: both are read afterwards, and no more."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            peer.sock.send(peer.encrypt(b"abcdef") + peer.close_notify() + after)
            assert await stream.receive(2) == b"ab"
            stream.send_eof()
            assert await stream.receive(2) == b"cd"
            assert await stream.receive(3) == b"ef"
            assert await stream.receive(3) == b""

    run(main)


def test_half_close_by_the_client(run: Run) -> None:
    """After close_notify of the client everything is still sent to it."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            await peer.end()
            assert await stream.receive() == b""
            data = octets(MIB)
            async with asyncio.TaskGroup() as group:
                group.create_task(stream.send_all(data))
                assert await peer.read(len(data)) == data
            stream.send_eof()
            stream.close()
            assert await peer.read_all() == b""
            assert peer.notified

    run(main)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_close_says_so_and_a_reset_does_not(run: Run, how: str) -> None:
    """A reset must not look like an orderly end: there is no close_notify before it."""

    async def main() -> None:
        async with connected() as (stream, _, peer):
            getattr(stream, how)()
            if how == "close":
                assert await peer.read_all() == b""
            else:
                with pytest.raises(ConnectionResetError):
                    await peer.read_all()
            assert peer.notified == (how == "close")

    run(main)


def test_close_does_not_wait_for_room(run: Run) -> None:
    """Where close_notify does not fit the connection is closed without."""

    async def main() -> None:
        async with connected(small_pair) as (stream, sock, peer):
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sock.send(octets(CHUNK))
            stream.close()
            assert sock.fileno() < 0
            received = await peer.read_all()
            assert len(received) <= sent + CHUNK
            assert not peer.notified

    run(main)


# --- sending ---


@both_versions
def test_a_slow_reader_gets_everything_and_little_is_held_for_it(run: Run, version: ssl.TLSVersion) -> None:
    """Back-pressure is that of the socket below: what is encrypted and not sent is bounded."""

    async def main() -> None:
        data = octets(MIB)
        async with connected(small_pair, version) as (stream, sock, peer):
            held = []

            async def read() -> bytes:
                received = b""
                while len(received) < len(data):
                    await turns(3)
                    held.append(len(sock.unsent) + sock.outgoing.pending)
                    received += await peer.read(min(30_000, len(data) - len(received)))
                return received

            async with asyncio.TaskGroup() as group:
                group.create_task(stream.send_all(data))
                task = group.create_task(read())
            assert task.result() == data
            assert 0 < max(held) < CHUNK + 2000

    run(main)


def test_send_reports_what_was_held_when_it_is_gone(run_once: Run) -> None:
    """The contract of SSL_write: BlockingIOError, the same octets again, then their number; in the end all is there."""

    async def main() -> None:
        data = octets(10 * CHUNK + 12_345)
        async with connected(small_pair) as (_, sock, peer):
            at, blocked = 0, 0
            while at < len(data):
                try:
                    sent = sock.send(data[at : at + CHUNK])
                except BlockingIOError:
                    blocked += 1
                    await peer.pull()
                else:
                    assert sent > 0
                    at += sent
            assert await peer.read(len(data)) == data
            assert blocked
            assert sock.send(b"") == 0

    run_once(main)


def test_a_short_send_means_that_the_socket_below_is_full(run_once: Run) -> None:
    """Of more than one chunk what went is counted, and whoever waits for room waits for something that comes."""

    async def main() -> None:
        data = octets(20 * MIB)
        async with connected(unix_pair) as (stream, sock, peer):  # TCP may find more room a moment later
            sent = sock.send(data)
            assert 0 < sent < len(data)
            assert sock.waiting == CHUNK
            with pytest.raises(BlockingIOError):
                sock.send(data[sent:])
            async with asyncio.TaskGroup() as group:
                group.create_task(stream.send_all(data[sent:]))
                assert await peer.read(len(data)) == data

    run_once(main)


def test_close_notify_that_does_not_fit_is_sent_later(run_once: Run) -> None:
    """shutdown raises BlockingIOError and is called again."""

    async def main() -> None:
        async with connected(small_pair) as (stream, sock, peer):
            sock.below = below = Narrow(sock.below)
            assert sock.send(b"all of it") == 9
            below.room = False
            for _ in range(2):
                with pytest.raises(BlockingIOError):
                    sock.shutdown(socket.SHUT_WR)
            below.room = True
            sock.shutdown(socket.SHUT_WR)
            assert await peer.read_all() == b"all of it"
            assert peer.notified
            stream.close()

    run_once(main)


@pytest.mark.parametrize("how", ["room", "closed", "reset"])
def test_the_end_of_a_stream_waits_for_room(run: Run, how: str) -> None:
    """Whoever has sent everything says so without an error; a stream that was closed meanwhile says nothing more."""

    async def main() -> None:
        async with connected(small_pair) as (stream, sock, peer):
            sock.below = below = Narrow(sock.below)
            await stream.send_all(b"all of it")
            below.room = False
            stream.send_eof()
            await until(lambda: below.refusals > 2)
            if how == "closed":
                stream.close()
                await turns()  # which tries it once more
                refusals = below.refusals
                await asyncio.sleep(2 * END_PAUSE)
                assert below.refusals == refusals
                return
            if how == "reset":
                reset(peer.sock)
                with pytest.raises(ConnectionResetError):
                    await stream.receive()
            below.room = True
            if how == "room":
                assert await peer.read_all() == b"all of it"
                assert peer.notified
            else:
                await asyncio.sleep(2 * END_PAUSE)  # what is raised in a callback fails the test

    run(main)


class Narrow:
    """A socket that has room when a test says so."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.room = True
        self.refusals = 0

    def send(self, data: bytes | memoryview, /) -> int:
        """As send(2)."""
        if not self.room:
            self.refusals += 1
            raise BlockingIOError
        return int(self.sock.send(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def test_a_peer_cannot_make_us_hold_answers_without_end(run_once: Run) -> None:
    """What OpenSSL answers by itself waits for room, up to a limit; then the connection has failed."""

    async def main() -> None:
        async with connected(small_pair) as (_, sock, peer):
            await peer.send(b"abc")
            assert isinstance(sock.below, socket.socket)
            fill(sock.below)
            sock.outgoing.write(b"an answer")
            await until(lambda: waiting_at_least(sock, 3))
            assert sock.recv(1) == b"a"  # it waits
            assert bytes(sock.unsent) == b"an answer"
            sock.outgoing.write(bytes(MAX_ANSWERS + 1))
            with pytest.raises(OSError, match="does not read what it makes us answer"):
                sock.recv(1)

    run_once(main)


def test_a_peer_cannot_keep_us_reading_without_payload(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Octets in which there is no payload are read up to a limit in one call; with payload there is none."""
    monkeypatch.setattr(tls_module, "MAX_FRUITLESS", 50)

    async def main() -> None:
        async with connected() as (stream, _, peer):
            data = octets(1000)
            await peer.send(data)
            assert await stream.receive(1000) == data
            peer.sock.send(peer.encrypt(data)[:51])
            with pytest.raises(OSError, match="no payload"):
                await stream.receive()

    run_once(main)


@both_versions
@pytest.mark.parametrize("size", [1, 20_000], ids=["small", "large"])
def test_records_that_take_long_leave_turns_to_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion, size: int
) -> None:
    """One read is decrypted in a turn where that takes long; the rest comes without another edge, and so does an end.

    Small records have much to decrypt for little payload; of a large one a small read has no payload at all.
    """
    monkeypatch.setattr(tls_module, "LONG", -1.0)

    async def main() -> None:
        async with connected(version=version) as (stream, sock, peer):
            data = octets(20_000)
            await peer.send(b"first")
            assert await stream.receive() == b"first"
            wire = b"".join(peer.encrypt(data[at : at + size]) for at in range(0, len(data), size))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.get_running_loop().sock_sendall(peer.sock, wire))
                await until(lambda: waiting_at_least(sock, 10_000))
                try:
                    first = sock.recv(65536)
                except BlockingIOError:
                    first = b""
                assert len(first) <= USUAL_READ
                got = bytearray(first)
                while len(got) < len(data):
                    got += await stream.receive()
                peer.sock.shutdown(socket.SHUT_WR)
            assert await stream.receive() == b""
            assert got == data

    run(main)


def test_what_was_put_off_is_put_off_once(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a socket is read in a turn, its handler is called once in another one, and never when closed."""
    monkeypatch.setattr(tls_module, "LONG", -1.0)

    async def main() -> None:
        async with connected() as (stream, sock, peer):
            await peer.send(octets(50_000))
            await until(lambda: waiting_at_least(sock, 50_000))
            before = len(stream.reactor.postponed)
            for _ in range(10):
                with contextlib.suppress(BlockingIOError):
                    sock.recv(65536)
            assert len(stream.reactor.postponed) == before + 1
            stream.close()
            await turns()

    run_once(main)


def test_quick_reads_grow(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer is read in large pieces, what comes now and then in small ones."""
    monkeypatch.setattr(tls_module, "LONG", 1000.0)

    async def main() -> None:
        async with connected() as (_, sock, peer):
            await peer.send(octets(60_000))
            await until(lambda: waiting_at_least(sock, 60_000))
            assert len(sock.recv(16_000)) == 16_000
            assert sock.appetite == 8 * USUAL_READ
            assert len(sock.recv(60_000)) == 44_000
            assert sock.appetite == USUAL_READ

    run_once(main)


def test_the_rest_is_that_of_the_socket_below(run_once: Run) -> None:
    """Addresses and options are those of the connection; the socket itself cannot be taken away."""

    async def main() -> None:
        async with connected() as (stream, sock, peer):
            assert sock.fileno() == stream.fd
            assert sock.getsockname() == peer.sock.getpeername()
            assert sock.getpeername() == peer.sock.getsockname()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            with pytest.raises(OSError, match="no socket can be taken away"):
                sock.detach()

    run_once(main)


@both_versions
def test_tls_inside_tls(run: Run, version: ssl.TLSVersion) -> None:
    """A second handshake inside the first; octets both ways, half-close and end come through both."""

    async def main() -> None:
        async with connected(version=version) as (stream, outer, peer):
            inner = TlsPeer(peer.sock, client_context(version))

            async def pump_push() -> None:
                if inner.outgoing.pending:
                    await peer.send(inner.outgoing.read())

            async def pump_pull() -> bool:
                data = b""
                while not data:
                    try:
                        data = peer.tls.read(65536)
                        break
                    except ssl.SSLWantReadError:
                        if not await peer.pull():
                            break
                inner.incoming.write(data)
                return bool(data)

            inner.push, inner.pull = pump_push, pump_pull  # type: ignore[method-assign]
            sock = await accept(stream, inner)
            assert sock.below is outer
            assert sock.buffer is not outer.buffer
            data = octets(MIB)

            async def talk() -> bytes:
                await peer.send(inner.encrypt(data))
                await peer.send(inner.close_notify())
                return await inner.read_all()

            async with asyncio.TaskGroup() as group:
                task = group.create_task(talk())
                received = bytearray()
                while chunk := await stream.receive():
                    received += chunk
                assert received == data
                await stream.send_all(data)
                stream.send_eof()
            assert task.result() == data
            assert inner.notified
            stream.close()

    run(main)


# --- the handshake ---


@both_versions
def test_octets_behind_the_handshake_are_received(run: Run, version: ssl.TLSVersion) -> None:
    """What comes in one segment with the end of the handshake is not lost, though no edge tells of it."""

    async def main() -> None:
        async with pair_of(version=version) as (stream, peer):
            held = []
            push = peer.push

            async def hold() -> None:
                held.append(peer.outgoing.read())

            async def handshake() -> None:
                await push()
                with contextlib.suppress(ssl.SSLWantReadError):
                    peer.tls.do_handshake()
                await push()
                await peer.pull()
                if version == ssl.TLSVersion.TLSv1_2:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        peer.tls.do_handshake()
                    await push()
                    await peer.pull()
                peer.push = hold  # type: ignore[method-assign]
                await peer.handshake()
                held.append(peer.encrypt(b"early"))
                peer.sock.send(b"".join(held))

            async with asyncio.TaskGroup() as group:
                group.create_task(accept_tls(stream, server_context(), TlsShared()))
                group.create_task(handshake())
            assert await stream.receive() == b"early"

    run(main)


@both_versions
def test_a_handshake_octet_by_octet(run: Run, version: ssl.TLSVersion) -> None:
    """A client may be as slow as the deadline lets it."""

    async def main() -> None:
        async with pair_of(version=version) as (stream, peer):

            async def drip() -> None:
                data = peer.outgoing.read()
                for at in range(len(data)):
                    peer.sock.send(data[at : at + 1])
                    await turns(2)

            peer.push = drip  # type: ignore[method-assign]
            await accept(stream, peer)
            await peer.send(b"here")
            assert await stream.receive() == b"here"

    run(main)


@pytest.mark.parametrize("sent", [0, 1, 100], ids=["nothing", "one octet", "some"])
def test_a_handshake_that_stalls_ends_with_its_deadline(run: Run, sent: int) -> None:
    """The deadline on the stream is that of the handshake."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            deadlines = FixedTimeouts(asyncio.get_running_loop(), 0.05)
            deadlines.start(stream)
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            peer.sock.send(peer.outgoing.read()[:sent])
            with pytest.raises(TimeoutError):
                await accept_tls(stream, server_context(), TlsShared())
            deadlines.close()

    run(main)


def test_a_handshake_whose_time_is_over_costs_no_signature(run_once: Run) -> None:
    """Who waits for others' handshakes and expires meanwhile is not computed for any more."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            context: Any = CountingContext(lambda: 0)
            shared = TlsShared()

            async def expire() -> None:
                with pytest.raises(TimeoutError):
                    await accept_tls(stream, context, shared)
                stream.close()

            async def handshake() -> None:
                with pytest.raises(EOFError):
                    await peer.handshake()

            async with asyncio.TaskGroup() as group, shared.turn.held_by(None):
                group.create_task(expire())
                group.create_task(handshake())
                await turns(20)
                stream.expire()
            assert context.steps == []

    run_once(main)


def test_nothing_is_made_for_a_client_before_its_turn(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object of OpenSSL takes 47 KiB: a silent client has none, and one that is too much waits for its turn, or is
    refused."""
    monkeypatch.setattr(handshakes, "MAX_TLS", 2)

    async def main() -> None:
        context: Any = CountingContext(lambda: 0)
        shared = TlsShared(Handshakes(asyncio.get_running_loop(), 10))
        assert shared.handshakes is not None
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:

            async def begin(failure: str = "") -> tuple[Stream, TlsPeer, asyncio.Task[None]]:
                stream, peer = await stack.enter_async_context(pair_of())

                async def accept() -> None:
                    if failure:
                        with pytest.raises(LimitExceeded, match=failure):
                            await accept_tls(stream, context, shared)
                        stream.close()
                    else:
                        await accept_tls(stream, context, shared)

                return stream, peer, group.create_task(accept())

            silent = [await begin("no room"), await begin("no room")]
            await turns()
            assert context.steps == []
            for _, peer, _ in silent:
                peer.sock.send(b"\x16\x03\x01\x02\x00\x01")
            await until(lambda: len(context.steps) == 2)
            stream, peer, task = await begin()
            await peer.handshake()
            await task
            assert list(shared.handshakes.tls) == [stream]
            await asyncio.gather(*(task for _, _, task in silent))

    run_once(main)


def test_who_is_too_much_waits_behind_those_that_wait_for_their_turn(
    run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is much to compute, what is under way comes first: then there is room again."""
    monkeypatch.setattr(handshakes, "MAX_TLS", 1)

    async def main() -> None:
        under_way = Handshakes(asyncio.get_running_loop(), 10)
        shared = TlsShared(under_way)
        async with pair_of() as (busy, _), pair_of() as (stream, peer), asyncio.TaskGroup() as group:

            async def come_to_the_request() -> None:
                async with shared.turn.held_by(None):
                    assert list(under_way.tls) == [busy]
                    under_way.stop(busy)

            under_way.begin_tls(busy, 0, False)
            async with shared.turn.held_by(None):
                accepted = group.create_task(accept_tls(stream, server_context(), shared))
                group.create_task(peer.handshake())
                await turns(20)
                group.create_task(come_to_the_request())
                await turns()
            await accepted
            assert list(under_way.tls) == [stream]

    run_once(main)


def test_many_handshakes_of_one_client_do_not_delay_another(run_once: Run) -> None:
    """Whoever has many that wait for their turn has one of them done, then the others have theirs."""

    async def main() -> None:
        order: list[str] = []
        shared = TlsShared()

        async def accept(stream: Stream, whose: str) -> None:
            await accept_tls(stream, server_context(), shared, whose)
            order.append(whose)

        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group, shared.turn.held_by("first"):
            for whose in ("many", "many", "many", "many", "one"):
                stream, peer = await stack.enter_async_context(pair_of())
                group.create_task(accept(stream, whose))
                group.create_task(peer.handshake())
            await until(lambda: sum(map(len, shared.turn.waiting.values())) == 5)
        assert order.index("one") <= 1

    run_once(main)


class CountingContext:
    """A context that notes in which turn of the loop each step of a handshake is computed."""

    def __init__(self, turn: Callable[[], int]) -> None:
        self.turn = turn
        self.steps: list[int] = []

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_side: bool) -> Any:
        """A TLS object whose handshake is counted."""
        tls = server_context().wrap_bio(incoming, outgoing, server_side=server_side)
        steps, turn = self.steps, self.turn

        class Counting:
            def do_handshake(self) -> None:
                steps.append(turn())
                tls.do_handshake()

            def __getattr__(self, name: str) -> Any:
                return getattr(tls, name)

        return Counting()


def test_many_handshakes_leave_turns_to_the_others(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One expensive step of a handshake in a turn of the loop, however many clients come at once."""
    monkeypatch.setattr(tls_module, "BRIEF", -1.0)
    count = 10

    async def main() -> None:
        now = 0

        async def tick() -> None:
            nonlocal now
            while True:
                now += 1
                await asyncio.sleep(0)

        context: Any = CountingContext(lambda: now)
        shared = TlsShared()
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            ticker = group.create_task(tick())
            tasks = []
            for _ in range(count):
                stream, peer = await stack.enter_async_context(pair_of())
                tasks.append(group.create_task(accept_tls(stream, context, shared)))
                tasks.append(group.create_task(peer.handshake()))  # type: ignore[arg-type]
            await asyncio.gather(*tasks)
            ticker.cancel()
        assert len(context.steps) >= 2 * count
        assert len(set(context.steps)) == len(context.steps)

    run_once(main)


@pytest.mark.parametrize("data", [b"\x05\x01\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x04\x01", b"\x00"])
def test_what_is_no_tls_is_refused_at_its_first_octet(run: Run, data: bytes) -> None:
    """A client that speaks plaintext is not kept waiting for a record to be whole."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            peer.sock.send(data)
            assert await fail(stream) == f"begins with {data[:16]!r}, expected TLS"

    run(main)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00\x05abcde", b"\x16\x09\x09\xff\xff\xff"])
def test_rubbish_that_begins_like_tls(run: Run, data: bytes) -> None:
    """It fails, with one line that says TLS."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            peer.sock.send(data)
            text = await fail(stream)
            assert text.startswith("TLS: ")
            assert "\n" not in text

    run(main)


def test_a_client_that_ends_within_its_handshake(run: Run) -> None:
    """The end of the connection is an error of its own."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            peer.sock.send(b"\x16\x03")
            peer.sock.shutdown(socket.SHUT_WR)
            assert await fail(stream) == "TLS: the client ended within the handshake"

    run(main)


def test_a_handshake_without_end(run: Run) -> None:
    """A ClientHello that announces as much as OpenSSL takes is not waited for beyond our limit."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            message = b"\x01\x01\xff\xff" + bytes(0x1FFFF)
            records = b"".join(
                b"\x16\x03\x01%b%b" % (len(part).to_bytes(2, "big"), part)
                for part in (message[at : at + 16000] for at in range(0, len(message), 16000))
            )
            assert len(records) > MAX_HANDSHAKE
            loop = asyncio.get_running_loop()
            async with asyncio.TaskGroup() as group:
                group.create_task(loop.sock_sendall(peer.sock, records))
                assert await fail(stream) == f"TLS: a handshake of more than {MAX_HANDSHAKE} octets"

    run(main)


@both_versions
def test_an_alert_before_a_reset_is_read(run: Run, version: ssl.TLSVersion) -> None:
    """A client that closes with octets unread resets: why it goes is known all the same."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            context = distrustful()
            context.maximum_version = version
            peer = TlsPeer(peer.sock, context)
            async with asyncio.TaskGroup() as group:
                failing = group.create_task(fail(stream))
                with pytest.raises(ssl.SSLCertVerificationError):
                    await peer.handshake()
                peer.sock.send(peer.outgoing.read())
                reset(peer.sock)
            assert failing.result() == "TLS: the client says: unknown ca"

    run(main)


def distrustful() -> ssl.SSLContext:
    """A client that trusts nobody."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def old() -> ssl.SSLContext:
    """A client that cannot do TLS 1.3."""
    return client_context(ssl.TLSVersion.TLSv1_2)


def other_cipher() -> ssl.SSLContext:
    """A client with a cipher that the server's kind of key does not fit."""
    context = old()
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    return context


def only_new() -> ssl.SSLContext:
    """A server that takes TLS 1.3 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost").configure_cert(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@pytest.mark.parametrize(
    ("client", "server", "text"),
    [
        (distrustful, server_context, "TLS: the client says: unknown ca"),
        (other_cipher, server_context, "TLS: no shared cipher"),
        (old, only_new, "TLS: unsupported protocol"),
    ],
)
def test_a_handshake_that_fails_says_why_on_both_sides(
    run: Run, client: Callable[[], ssl.SSLContext], server: Callable[[], ssl.SSLContext], text: str
) -> None:
    """One line for the log; the client gets an alert, if it was not itself who sent one."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            peer = TlsPeer(peer.sock, client())
            refusals = []

            async def handshake() -> None:
                try:
                    await peer.handshake()
                except ssl.SSLError as exc:
                    refusals.append(exc.reason or "")
                await peer.push()  # its alert

            async with asyncio.TaskGroup() as group:
                group.create_task(handshake())
                assert await fail(stream, server()) == text
            (refusal,) = refusals
            assert "ALERT" in refusal or refusal == "CERTIFICATE_VERIFY_FAILED"

    run(main)


def verification_error(message: str) -> ssl.SSLCertVerificationError:
    """What ssl raises where a certificate is not accepted."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = message
    return error


def unknown_error() -> ssl.SSLError:
    """What ssl raises where OpenSSL gives no reason."""
    error = ssl.SSLError(1, "unknown error")
    error.reason = None  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (verification_error("certificate has expired"), "TLS: the certificate of the client has expired"),
        (verification_error("certificate is not yet valid"), "TLS: the certificate of the client is not yet valid"),
        (verification_error("self-signed certificate"), "TLS: the certificate of the client: self-signed certificate"),
        (unknown_error(), "TLS: failed"),
    ],
)
def test_errors_are_one_line(error: ssl.SSLError, text: str) -> None:
    """In words, not in OpenSSL's names."""
    assert tls_module.explain(error) == text


def test_a_client_that_resumes_its_session(run: Run) -> None:
    """Session tickets are given, and accepted."""

    async def main() -> None:
        context = client_context(ssl.TLSVersion.TLSv1_3)
        session: Any = None
        for resumed in (False, True):
            async with pair_of() as (stream, peer):
                peer = TlsPeer(peer.sock, context)
                if session is not None:
                    peer.tls = context.wrap_bio(
                        peer.incoming, peer.outgoing, server_hostname="localhost", session=session
                    )
                await accept(stream, peer)
                await stream.send_all(b"hello")
                assert await peer.read(5) == b"hello"
                assert peer.tls.session_reused == resumed
                session = peer.tls.session

    run(main)


def test_a_client_certificate_that_nobody_asks_for_is_not_sent(run_once: Run) -> None:
    """Without an authority for clients there is no question, and no name."""

    async def main() -> None:
        async with pair_of() as (stream, peer):
            peer = TlsPeer(peer.sock, client_context(certificate=client_certificate("alice")))
            sock = await accept(stream, peer)
            assert sock.tls.getpeercert() is None

    run_once(main)


# --- the client's part of a handshake ---


@contextlib.asynccontextmanager
async def both_ends() -> AsyncIterator[tuple[Stream, Stream]]:
    """The two ends of a connection: the client's and the server's."""
    near, far = tcp_pair()
    async with Stream(get_reactor(), near) as client, Stream(get_reactor(), far) as server:
        yield client, server


async def connect(client: Stream, server: Stream, host: str = "localhost") -> TlsSocket:
    """Both parts of a handshake, each with buffers of its own; gives the client's socket."""
    async with asyncio.TaskGroup() as group:
        group.create_task(accept_tls(server, server_context(), TlsShared()))
        task = group.create_task(connect_tls(client, client_context(), host, get_tls_shared()))
    return task.result()


async def exchange(client: Stream, server: Stream, data: bytes) -> None:
    """Both ends send the same to each other at once, and then the end."""

    async def receive_all(stream: Stream) -> bytes:
        received = bytearray()
        while chunk := await stream.receive():
            received += chunk
        return bytes(received)

    async def send(stream: Stream) -> None:
        await stream.send_all(data)
        stream.send_eof()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(receive_all(stream)) for stream in (client, server)]
        for stream in (client, server):
            group.create_task(send(stream))
    assert [task.result() for task in tasks] == [data, data]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_client_speaks_tls_inside_tls_too(run: Run, depth: int) -> None:
    """Each inside the one before, both ways at once, to the end: those inside never read into others' buffers."""

    async def main() -> None:
        async with both_ends() as (client, server):
            socks = [await connect(client, server) for _ in range(depth)]
            assert len({id(sock.buffer) for sock in socks}) == depth
            await exchange(client, server, octets(MIB))

    run(main)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_servers_certificate_names_the_host(run: Run, host: str) -> None:
    """A name is sent as SNI, an address is not (RFC 6066 section 3); either is looked for in the certificate."""
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    context.sni_callback = lambda tls, name, context: asked.append(name)

    async def main() -> None:
        async with both_ends() as (client, server), asyncio.TaskGroup() as group:
            group.create_task(accept_tls(server, context, TlsShared()))
            group.create_task(connect_tls(client, client_context(), host, TlsShared()))

    run(main)
    assert asked == ["localhost" if host == "localhost" else None]


@pytest.mark.parametrize(
    ("host", "context", "words"),
    [
        ("elsewhere.test", client_context, "TLS: the certificate of the server: Hostname mismatch"),
        ("127.0.0.2", client_context, "TLS: the certificate of the server: IP address mismatch"),
        ("localhost", make_client_context, "TLS: the certificate of the server: unable to get local issuer"),
        (".localhost", client_context, "TLS: .localhost is not a name that a certificate can have"),
    ],
)
def test_a_certificate_that_is_not_accepted(
    run_once: Run, host: str, context: Callable[[], ssl.SSLContext], words: str
) -> None:
    """Another name, another authority than the system's: the client says what is wrong, and tells the server."""

    async def main() -> None:
        async with both_ends() as (client, server), asyncio.TaskGroup() as group:
            accepting = group.create_task(fail(server))
            with pytest.raises(RemoteProtocolError) as caught:
                await connect_tls(client, context(), host, TlsShared())
            assert str(caught.value).startswith(words)
            client.close()
        assert accepting.result().startswith("TLS: the client ")

    run_once(main)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x05\xff", b""])
def test_a_server_that_speaks_no_tls(run: Run, answer: bytes) -> None:
    """It is told by its first octet, or by its end."""

    async def main() -> None:
        async with both_ends() as (client, server):
            if answer:
                await server.send_all(answer)
            server.send_eof()
            words = "begins with .*, expected TLS" if answer else "TLS: the server ended within the handshake"
            with pytest.raises(RemoteProtocolError, match=words):
                await connect_tls(client, client_context(), "localhost", TlsShared())

    run(main)


def test_a_server_that_wants_another_version_says_so(run_once: Run) -> None:
    """An alert in place of a ServerHello is TLS too."""

    async def main() -> None:
        async with both_ends() as (client, server), asyncio.TaskGroup() as group:
            group.create_task(fail(server, only_new()))
            with pytest.raises(RemoteProtocolError, match="TLS: the server says: protocol version"):
                await connect_tls(client, old(), "localhost", TlsShared())

    run_once(main)


def test_alpn_is_offered_where_asked_for(run_once: Run) -> None:
    """A server of several protocols finds the one that is meant (RFC 7301)."""

    async def main() -> None:
        context = only_new()
        context.set_alpn_protocols(["http/1.1"])
        for protocols, chosen in ((("h2", "http/1.1"), "http/1.1"), ((), None)):
            ours = make_client_context(protocols=protocols)
            authority().configure_trust(ours)
            async with both_ends() as (client, server):
                async with asyncio.TaskGroup() as group:
                    group.create_task(accept_tls(server, context, TlsShared()))
                    task = group.create_task(connect_tls(client, ours, "localhost", TlsShared()))
                assert task.result().tls.selected_alpn_protocol() == chosen

    run_once(main)


def test_authorities_from_a_file(tmp_path: Path) -> None:
    """Only these are trusted; what is no such file is called so, at once."""
    file = tmp_path / "ca.pem"
    file.write_bytes(authority().cert_pem.bytes())
    assert len(make_client_context(str(file)).get_ca_certs()) == 1
    file.write_text("nothing")
    with pytest.raises(ValueError, match=r"ca\.pem: no certificates in PEM"):
        make_client_context(str(file))
    with pytest.raises(ValueError, match=r"none\.pem: No such file"):
        make_client_context(str(tmp_path / "none.pem"))


def test_what_a_loop_shares_is_forgotten_with_it(run_once: Run) -> None:
    """The same within a loop, another in the next one; a closed loop's is not kept."""

    async def main() -> TlsShared:
        assert get_tls_shared() is get_tls_shared()
        assert len(tls_module.shared_by_loop) == 1
        return get_tls_shared()

    assert run_once(main) is not run_once(main)


def test_errors_without_a_name() -> None:
    """Python has no name for some alerts: the words of OpenSSL tell of them."""
    nameless = ssl.SSLError(1, "[SSL] tlsv1 alert no application protocol (_ssl.c:1006)")
    assert tls_module.explain(nameless, "server") == "TLS: the server says: no application protocol"
    assert tls_module.explain(ssl.SSLError(1, "x")) == "TLS: failed"
