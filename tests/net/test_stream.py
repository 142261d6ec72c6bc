"""Stream: waiting for a socket in a task, and everything that can end the wait."""

from __future__ import annotations

import asyncio
import socket
import ssl
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from authorities import client_context, server_context
from conftest import Run, run_in_loop
from sockets import Pair, fill, read, read_all, reset, send, tcp_pair, turns, unix_pair, until
from tabi.errors import RemoteProtocolError
from tabi.net.reactor import IN, get_reactor
from tabi.net.stream import Sock, Stream
from tabi.net.timeouts import FixedTimeouts

MIB = 1 << 20


@asynccontextmanager
async def stream_to_peer(pair: Callable[[], Pair] = tcp_pair) -> AsyncIterator[tuple[Stream, socket.socket]]:
    """A stream, and the plain socket at its other end."""
    near, far = pair()
    with far:
        async with Stream(get_reactor(), near) as stream:
            yield stream, far


async def waiting(stream: Stream, wait: Callable[[], Awaitable[object]]) -> asyncio.Task[object]:
    """A task that waits on a stream by now."""

    async def main() -> object:
        return await wait()

    task = asyncio.get_running_loop().create_task(main())
    await turns()
    assert not task.done()
    return task


def full(stream: Stream) -> int:
    """Fill a stream's send buffer; returns how much it took."""
    assert isinstance(stream.sock, socket.socket)
    return fill(stream.sock)


# --- octets ---


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_receive_gives_what_is_there(run: Run, pair: Callable[[], Pair]) -> None:
    """What has arrived comes at once, what has not is waited for, the end is empty, again and again."""

    async def main() -> None:
        async with stream_to_peer(pair) as (stream, peer):
            peer.send(b"early")
            await turns()
            assert await stream.receive() == b"early"
            task = await waiting(stream, stream.receive)
            peer.send(b"late")
            assert await task == b"late"
            peer.shutdown(socket.SHUT_WR)
            assert await stream.receive() == b""
            assert await stream.receive() == b""

    run(main)


def test_receive_takes_no_more_than_asked_for(run: Run) -> None:
    """What was left is still there, though no new edge comes for it."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            peer.send(b"abcdef")
            assert await stream.receive(4) == b"abcd"
            assert await stream.receive(4) == b"ef"
            peer.send(b"ghij")
            assert await stream.receive(4) == b"ghij"
            assert stream.receive_nowait(4) is None
            peer.send(b"k")
            assert await stream.receive(4) == b"k"

    run(main)


def test_the_last_octets_and_the_end_may_come_together(run: Run) -> None:
    """Data with FIN behind it, read in short reads: nothing is lost and the end is seen."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            peer.send(b"last")
            peer.shutdown(socket.SHUT_WR)
            await stream.readable()
            assert await stream.receive(100) == b"last"
            assert await stream.receive(100) == b""

    run(main)


def test_receive_nowait_tells_nothing_from_the_end(run: Run) -> None:
    """None is nothing yet, empty is the end."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            assert stream.receive_nowait(10) is None
            peer.send(b"x")
            await stream.readable()
            assert stream.receive_nowait(10) == b"x"
            assert stream.receive_nowait(10) is None
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: stream.receive_nowait(10) == b"" if get_reactor().edge_triggered else True)
            assert await stream.receive() == b""

    run(main)


def test_send_all_waits_for_a_slow_reader(run: Run) -> None:
    """2 MiB each way arrive unchanged through small buffers, two tasks reading and two writing at once."""

    async def main() -> None:
        near, far = tcp_pair(65536)
        data = bytes(range(256)) * (2 * MIB // 256)
        async with Stream(get_reactor(), near) as here, Stream(get_reactor(), far) as there:

            async def receive_all(stream: Stream) -> bytes:
                received = bytearray()
                while chunk := await stream.receive():
                    received += chunk
                return bytes(received)

            async def send_all(stream: Stream, data: bytes) -> None:
                await stream.send_all(data)
                stream.send_eof()

            async with asyncio.TaskGroup() as group:
                group.create_task(send_all(here, data))
                group.create_task(send_all(there, data[::-1]))
                at_there = group.create_task(receive_all(there))
                at_here = group.create_task(receive_all(here))
            assert at_there.result() == data
            assert at_here.result() == data[::-1]

    run(main)


@pytest.mark.parametrize("size", [1, 100, MIB])
def test_sending_without_end_lets_others_run(run: Run, size: int) -> None:
    """However much fits, and in however small pieces, the loop has its turn: a system call counts as much as 4 KiB."""

    class Bottomless:
        """A socket that takes everything at once."""

        def __init__(self, sock: Sock) -> None:
            self.sock = sock

        def send(self, data: bytes | memoryview) -> int:
            return len(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    async def main() -> None:
        async with stream_to_peer() as (stream, _):
            stream.sock = Bottomless(stream.sock)
            asyncio.get_running_loop().call_soon(stream.close)
            try:
                for _ in range(3 * MIB // max(size, 4096)):
                    await stream.send_all(bytes(size))
            except ConnectionAbortedError:
                return
            pytest.fail("nothing else has run")

    run(main)


def test_a_view_of_larger_items_is_sent_whole(run: Run) -> None:
    """send(2) counts octets, a memoryview its items."""

    async def main() -> None:
        near, far = tcp_pair(65536)
        data = array("I", range(MIB))
        with far:
            async with Stream(get_reactor(), near) as stream, asyncio.TaskGroup() as group:
                sending = group.create_task(stream.send_all(memoryview(data)))
                assert await read(far, 4 * MIB) == data.tobytes()
                await sending

    run(main)


def test_one_task_may_read_while_another_writes(run: Run) -> None:
    """Both wait at once on one stream; each is woken by its own event."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            before = full(stream)
            writer = await waiting(stream, lambda: stream.send_all(b"tail"))
            reader = await waiting(stream, stream.receive)
            peer.send(b"x")
            assert await reader == b"x"
            assert not writer.done()
            reader = await waiting(stream, stream.receive)
            assert (await read(peer, before + 4))[before:] == b"tail"
            await writer
            assert not reader.done()
            peer.send(b"y")
            assert await reader == b"y"

    run(main)


def test_send_eof_ends_one_direction(run: Run) -> None:
    """The peer reads to the end; what it sends afterwards still arrives. What was put off goes before the end."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            peer.send(b"x")
            await stream.receive()  # from here on in the reactor's turn
            stream.send_soon(b"put off")
            stream.send_eof()
            assert await read_all(peer) == b"put off"
            await send(peer, b"answer")
            assert await stream.receive() == b"answer"

    run(main)


# --- looking ahead ---


class Counting:
    """A socket that counts the reads."""

    def __init__(self, sock: Sock) -> None:
        self.sock = sock
        self.reads = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.reads += 1
        return self.sock.recv(size, flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_peek_takes_nothing(run: Run, pair: Callable[[], Pair]) -> None:
    """What is there is seen as often as somebody looks, up to the size, and is received afterwards all the same."""

    async def main() -> None:
        async with stream_to_peer(pair) as (stream, peer):
            task = await waiting(stream, lambda: stream.peek(10))
            peer.send(b"hello")
            assert await task == b"hello"
            assert await stream.peek(10) == b"hello"
            assert await stream.peek(2) == b"he"
            assert await stream.receive() == b"hello"
            peer.send(b"more")
            assert await stream.peek(10) == b"more"
            assert await stream.receive(2) == b"mo"
            assert await stream.peek(10) == b"re"

    run(main)


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_peek_waits_for_more_than_is_known(run: Run, pair: Callable[[], Pair]) -> None:
    """Octets that were seen already do not count, however often they are looked at."""

    async def main() -> None:
        async with stream_to_peer(pair) as (stream, peer):
            for known in range(5):
                task = await waiting(stream, lambda known=known: stream.peek(10, known))  # type: ignore[misc]
                peer.send(b"x")
                assert await task == b"x" * (known + 1)
            assert await stream.peek(10, 4) == b"xxxxx"
            assert await stream.receive() == b"xxxxx"

    run(main)


def test_peek_does_not_spin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """While octets lie there that are not enough, edges cost no look, and levels one for each pause."""
    monkeypatch.setattr("tabi.net.stream.PEEK_PAUSE", 0.05)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with stream_to_peer() as (stream, peer):
            peer.send(b"G")
            assert await stream.peek(10) == b"G"
            stream.sock = counting = Counting(stream.sock)
            began = loop.time()
            task = await waiting(stream, lambda: stream.peek(10, 1))
            await turns(2000)
            await asyncio.sleep(0.12)
            pauses = 0 if stream.reactor.edge_triggered else int((loop.time() - began) / 0.05) + 1
            assert counting.reads <= 1 + pauses
            assert not task.done()
            peer.send(b"ET")
            assert await task == b"GET"

    run(main)


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_peek_sees_the_end(run: Run, pair: Callable[[], Pair]) -> None:
    """The end is empty, before and after the wait, and stays to be received."""

    async def main() -> None:
        async with stream_to_peer(pair) as (stream, peer):
            task = await waiting(stream, lambda: stream.peek(10))
            peer.shutdown(socket.SHUT_WR)
            assert await task == b""
            assert await stream.peek(10, 3) == b""
            assert await stream.receive() == b""

    run(main)


@pytest.mark.parametrize("hosting", ["selector", "nested"])
def test_peek_sees_an_end_behind_known_octets(monkeypatch: pytest.MonkeyPatch, hosting: str) -> None:
    """With edges, who waits for more gets what there is as soon as no more will come."""
    monkeypatch.setenv("TABI_REACTOR", hosting)

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            peer.send(b"GE")
            assert await stream.peek(10) == b"GE"
            task = await waiting(stream, lambda: stream.peek(10, 2))
            peer.shutdown(socket.SHUT_WR)
            assert await task == b"GE"
            assert await stream.receive() == b"GE"
            assert await stream.receive() == b""

    run_in_loop(main)


@pytest.mark.parametrize("known", [0, 2])
def test_a_look_ahead_ends_with_the_stream(run: Run, known: int) -> None:
    """Expiry is TimeoutError, closing ConnectionAbortedError, also for octets that are known and lie there."""

    async def main() -> None:
        for end, error in ((Stream.expire, TimeoutError), (Stream.close, ConnectionAbortedError)):
            async with stream_to_peer() as (stream, peer):
                if known:
                    peer.send(b"GE")
                    assert await stream.peek(10) == b"GE"
                task = await waiting(stream, lambda stream=stream: stream.peek(10, known))  # type: ignore[misc]
                end(stream)
                with pytest.raises(error):
                    await task

    run(main)


def test_a_look_ahead_hears_of_a_reset(run: Run) -> None:
    """A peer that is reset while nothing is there ends the look with ConnectionResetError."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            task = await waiting(stream, lambda: stream.peek(10))
            reset(peer)
            with pytest.raises(ConnectionResetError):
                await task

    run(main)


@pytest.mark.parametrize("known", [0, 2])
def test_a_cancelled_look_ahead_can_be_repeated(run: Run, known: int) -> None:
    """Cancellation takes nothing, and another task may look afterwards."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            if known:
                peer.send(b"GE")
                assert await stream.peek(10) == b"GE"
            task = await waiting(stream, lambda: stream.peek(10, known))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            peer.send(b"T /")
            assert await stream.peek(10, known) == b"GET /"[2 - known :]

    run(main)


# --- sending at the end of a turn ---


def test_what_is_sent_later_arrives_in_order(run: Run) -> None:
    """Messages that were put off come in front of what is sent behind them, also through a full buffer."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            peer.send(b"x")
            await stream.receive()  # from here on in the reactor's turn
            stream.send_later(b"one ")
            stream.send_later(b"two ")
            await stream.send_all(b"three")
            stream.send_eof()
            assert await read_all(peer) == b"one two three"

    run(main)


def test_what_finds_no_room_goes_when_there_is_some(run: Run) -> None:
    """The rest of a message waits for room without any task, and nothing overtakes it."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            before = full(stream)
            stream.send_later(b"a" * 1000)
            stream.send_later(b"b" * 1000)
            assert stream.unsent == b"a" * 1000 + b"b" * 1000
            sender = await waiting(stream, lambda: stream.send_all(b"c" * 1000))
            octets = await read(peer, before + 3000)
            assert octets[before:] == b"a" * 1000 + b"b" * 1000 + b"c" * 1000
            await sender
            assert stream.unsent == b""

    run(main)


def test_the_rest_of_a_message_needs_no_task(run: Run) -> None:
    """Nobody waits on the stream, and what was left goes all the same."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            before = full(stream)
            stream.send_later(b"rest")
            assert (await read(peer, before + 4))[before:] == b"rest"

    run(main)


def test_a_reset_drops_what_was_put_off(run: Run) -> None:
    """A peer that is gone is found by the next receive, whatever waited for it."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            full(stream)
            stream.send_later(b"never")
            reset(peer)
            with pytest.raises(ConnectionResetError):
                await stream.receive()

    run(main)


# --- errors and ends ---


def test_a_reset_is_an_error_and_not_an_end(run: Run) -> None:
    """Who waits gets ConnectionResetError, and so does who sends."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            task = await waiting(stream, stream.receive)
            reset(peer)
            with pytest.raises(ConnectionResetError):
                await task
            with pytest.raises(BrokenPipeError):
                await stream.send_all(b"x")

    run(main)


def test_a_blocked_writer_hears_of_a_reset(run: Run) -> None:
    """A peer that does not read and then goes ends the wait."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            full(stream)
            task = await waiting(stream, lambda: stream.send_all(b"x"))
            reset(peer)
            with pytest.raises(ConnectionError):
                await task

    run(main)


def test_reset_sends_a_reset(run: Run) -> None:
    """The peer of a stream that is reset sees ECONNRESET; doing it twice is harmless."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            stream.reset()
            stream.reset()
            with pytest.raises(ConnectionResetError):
                await read(peer, 1)

    run(main)


def test_reset_closes_even_where_the_option_is_refused(run: Run) -> None:
    """A socket that cannot be reset is closed."""

    class NoOptions(socket.socket):
        def setsockopt(self, *arguments: object) -> None:
            raise OSError(22, "Invalid argument")

    async def main() -> None:
        near, far = tcp_pair()
        with far:
            Stream(get_reactor(), NoOptions(fileno=near.detach())).reset()
            assert await read_all(far) == b""

    run(main)


def test_close_is_an_orderly_end_for_the_peer(run: Run) -> None:
    """The peer reads the end; closing twice is harmless."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            stream.close()
            stream.close()
            assert await read_all(peer) == b""

    run(main)


def test_close_ends_the_waits_of_other_tasks(run: Run) -> None:
    """A reader and a writer that wait when the stream is closed get ConnectionAbortedError, later waits too."""

    async def main() -> None:
        async with stream_to_peer() as (stream, _peer):
            full(stream)
            reader = await waiting(stream, stream.receive)
            writer = await waiting(stream, lambda: stream.send_all(b"x"))
            stream.close()
            for task in (reader, writer):
                with pytest.raises(ConnectionAbortedError):
                    await task
            for wait in (stream.readable, stream.writable):
                with pytest.raises(ConnectionAbortedError):
                    wait()
            with pytest.raises(OSError, match=r"closed|descriptor"):
                await stream.receive()

    run(main)


def test_the_end_of_async_with_closes(run: Run) -> None:
    """A stream is closed however its block ends."""

    async def main() -> None:
        near, far = tcp_pair()
        with far:
            with pytest.raises(ValueError, match="inside"):
                async with Stream(get_reactor(), near):
                    raise ValueError("inside")
            assert await read_all(far) == b""

    run(main)


def test_detach_gives_the_socket_away(run: Run) -> None:
    """The socket lives on, non-blocking, outside of the reactor; who waited is told, and the stream is closed."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            task = await waiting(stream, stream.receive)
            sock = stream.detach()
            with sock:
                with pytest.raises(ConnectionAbortedError):
                    await task
                with pytest.raises(ConnectionAbortedError):
                    stream.detach()
                assert not sock.getblocking()
                await send(peer, b"to the socket")
                assert await read(sock, 13) == b"to the socket"
                stream.close()
                await send(sock, b"from the socket")
                assert await read(peer, 15) == b"from the socket"

    run(main)


def test_the_repr_names_the_descriptor(run_once: Run) -> None:
    """In a debugger a stream can be told from others."""

    async def main() -> None:
        async with stream_to_peer() as (stream, _peer):
            assert repr(stream) == f"<Stream fd={stream.fd}>"

    run_once(main)


# --- time and cancellation ---


@pytest.mark.parametrize("message", [None, "enough"])
def test_a_wait_can_be_cancelled(run: Run, message: str | None) -> None:
    """The task ends at once with the message it was cancelled with; the stream is as before."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            task = await waiting(stream, stream.receive)
            task.cancel(message) if message else task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            peer.send(b"x")
            assert await stream.receive() == b"x"

    run(main)


def test_a_writer_can_be_cancelled(run: Run) -> None:
    """The same for a task that waits for room."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            before = full(stream)
            task = await waiting(stream, lambda: stream.send_all(b"never"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stream.close()
            assert len(await read_all(peer)) == before

    run(main)


def test_cancelling_twice_is_once(run: Run) -> None:
    """A second cancel before the task ran neither gets lost nor hits the next wait."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            task = await waiting(stream, stream.receive)
            task.cancel()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            peer.send(b"x")
            assert await stream.receive() == b"x"

    run(main)


def test_data_that_comes_with_a_cancel_is_not_lost(run: Run) -> None:
    """The octets that woke nobody are there for the next receive."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            task = await waiting(stream, stream.receive)
            peer.send(b"x")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await stream.receive() == b"x"

    run(main)


def test_asyncio_timeout_ends_a_wait(run: Run) -> None:
    """The usual way to limit a wait works, and the stream can be used afterwards."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await stream.receive()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.receive(), 0.01)
            peer.send(b"x")
            async with asyncio.timeout(20):
                assert await stream.receive() == b"x"

    run(main)


def test_a_second_reader_is_refused(run: Run) -> None:
    """Two tasks that receive on one stream would tear the octets apart: the second gets RuntimeError."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            first = await waiting(stream, stream.receive)
            with pytest.raises(RuntimeError, match="another task already waits"):
                await stream.receive()
            peer.send(b"x")
            assert await first == b"x"

    run(main)


def test_a_cancelled_reader_is_not_mistaken_for_the_next(run: Run) -> None:
    """Until a cancelled task has run, its wait is not over: the next one never gets its CancelledError."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            first = await waiting(stream, stream.receive)
            first.cancel()
            peer.send(b"x")
            try:
                data = await stream.receive()
            except RuntimeError:
                await turns()
                data = await stream.receive()
            assert data == b"x"
            await turns()
            assert first.cancelled()

    run(main)


def test_an_expired_stream_ends_every_wait(run: Run) -> None:
    """A deadline ends the reader and the writer with TimeoutError, and whoever would wait later."""

    async def main() -> None:
        async with stream_to_peer() as (stream, _peer):
            full(stream)
            reader = await waiting(stream, stream.receive)
            writer = await waiting(stream, lambda: stream.send_all(b"x"))
            stream.expire()
            for task in (reader, writer):
                with pytest.raises(TimeoutError):
                    await task
            with pytest.raises(TimeoutError):
                await stream.receive()
            with pytest.raises(TimeoutError):
                await stream.send_all(b"x")

    run(main)


def test_a_deadline_expires_a_stream(run: Run) -> None:
    """One timer for many streams: who is stopped in time goes on, who is not is ended."""

    async def main() -> None:
        deadlines = FixedTimeouts(asyncio.get_running_loop(), 0.05)
        async with stream_to_peer() as (late, _), stream_to_peer() as (done, peer):
            deadlines.start(late)
            deadlines.start(done)
            deadlines.stop(done)
            with pytest.raises(TimeoutError):
                await late.receive()
            peer.send(b"x")
            assert await done.receive() == b"x"
        deadlines.close()

    run(main)


def test_a_wait_works_as_a_future_does(run: Run) -> None:
    """asyncio knows what a task awaits here: it is a future of this loop."""

    async def main() -> None:
        async with stream_to_peer() as (stream, _peer):
            readiness = stream.readable()
            assert asyncio.isfuture(readiness)
            assert readiness.get_loop() is asyncio.get_running_loop()
            assert not readiness.cancel()
            stream.close()

    run(main)


def test_a_task_may_close_its_stream_and_open_another_in_one_go(run: Run) -> None:
    """A task that is resumed in a turn, closes its stream and goes on with a new one is not confused by old events."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            peer.send(b"x")
            assert await stream.receive() == b"x"
            peer.send(b"more")
            stream.close()
            async with stream_to_peer() as (fresh, fresh_peer):
                assert fresh.receive_nowait(10) is None
                fresh_peer.send(b"y")
                assert await fresh.receive() == b"y"

    run(main)


# --- what asyncio's streams have, too ---


def test_exactly_as_many_octets(run: Run) -> None:
    """`receive_exactly` waits for all of them; an early end is an error that has what came."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            task = await waiting(stream, lambda: stream.receive_exactly(6))
            peer.send(b"abc")
            await turns()
            peer.send(b"defgh")
            assert await task == b"abcdef"
            assert await stream.receive_exactly(0) == b""
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await stream.receive_exactly(3)
            assert (caught.value.partial, caught.value.expected) == (b"gh", 3)

    run(main)


def test_a_stream_can_be_iterated(run: Run) -> None:
    """`async for` gives what comes until the peer ends; a break leaves the rest to be read."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            peer.send(b"first")
            async for data in stream:
                assert data == b"first"
                break
            peer.send(b"second")
            peer.shutdown(socket.SHUT_WR)
            assert b"".join([data async for data in stream]) == b"second"

    run(main)


def test_aclose_closes(run: Run) -> None:
    """Once or twice; `contextlib.aclosing` takes a stream."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            async with aclosing(stream):
                await stream.send_all(b"last words")
            await stream.aclose()
            peer.setblocking(True)
            assert peer.recv(100, socket.MSG_WAITALL) == b"last words"

    run(main)


def test_tls_begins_in_the_middle(run: Run) -> None:
    """STARTTLS: after a word in the clear both sides speak TLS on the same connection; the certificate is checked."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"go\n")
            try:
                await writer.start_tls(server_context())
                writer.write(await reader.readexactly(5))
                await writer.drain()
            except (ssl.SSLError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()
            for name, right in (("localhost", True), ("elsewhere.example", False)):
                sock = socket.create_connection(address)
                sock.setblocking(False)
                async with Stream(get_reactor(), sock) as stream:
                    assert await stream.receive_exactly(3) == b"go\n"
                    assert stream.get_extra_info("ssl_object") is None
                    if not right:
                        with pytest.raises(RemoteProtocolError, match="certificate"):
                            await stream.start_tls(client_context(), name)
                        continue
                    await stream.start_tls(client_context(), name)
                    await stream.send_all(b"hello")
                    assert await stream.receive_exactly(5) == b"hello"
                    assert stream.get_extra_info("cipher")[1] == "TLSv1.3"
                    assert stream.get_extra_info("peercert")["subjectAltName"]
                    assert stream.get_extra_info("sslcontext").verify_mode == ssl.CERT_REQUIRED
                    assert stream.get_extra_info("compression", "none") == "none"
            while len(asyncio.all_tasks()) > 1:  # asyncio's server is not at the end of the refused one yet
                await asyncio.sleep(0)

    run(main)


def test_what_is_known_of_a_connection(run: Run) -> None:
    """The names are those of asyncio's transports; what is not known is the default."""

    async def main() -> None:
        async with stream_to_peer() as (stream, peer):
            assert stream.get_extra_info("sockname") == peer.getpeername()
            assert stream.get_extra_info("peername") == peer.getsockname()
            assert stream.get_extra_info("socket") is stream.sock
            assert stream.get_extra_info("peercert", "no TLS") == "no TLS"
            assert stream.get_extra_info("weather") is None
            stream.close()
            assert stream.get_extra_info("peername", "gone") == "gone"

    run(main)


# --- sockets of others ---


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_a_stream_can_be_made_of_a_connected_socket(run: Run, pair: Callable[[], Pair]) -> None:
    """It sends and receives, whether or not the socket blocked, and closes the socket; unix sockets have no address."""

    async def main() -> None:
        near, far = pair()
        near.setblocking(True)
        with far:
            async with Stream.from_socket(near) as stream:
                far.send(b"in")
                assert await stream.receive() == b"in"
                await stream.send_all(b"out")
                assert await read(far, 3) == b"out"
                named = stream.get_extra_info("peername")
                assert named == (far.getsockname() if far.family == socket.AF_INET else ("0.0.0.0", 0))
                assert stream.get_extra_info("sockname")[0] in ("127.0.0.1", "0.0.0.0")
            assert await read_all(far) == b""

    run(main)


def test_a_socket_that_cannot_be_a_stream_stays_what_it_was(run_once: Run) -> None:
    """One that is not connected, carries datagrams or has TLS is refused, and is still open."""

    async def main() -> None:
        with socket.socket() as lone, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            with pytest.raises(OSError, match="not connected"):
                Stream.from_socket(lone)
            with pytest.raises(ValueError, match="expected a socket of SOCK_STREAM"):
                Stream.from_socket(datagrams)
            with pytest.raises(TypeError, match="int, expected a socket"):
                Stream.from_socket(7)  # type: ignore[arg-type]
            with (
                client_context().wrap_socket(socket.socket(), server_hostname="localhost") as inside,
                pytest.raises(TypeError, match="SSLSocket, expected a socket"),
            ):
                Stream.from_socket(inside)
            assert min(lone.fileno(), datagrams.fileno()) >= 0

    run_once(main)
    near, far = tcp_pair()
    with near, far, pytest.raises(RuntimeError, match="no running event loop"):
        Stream.from_socket(near)


# --- a peer that goes while nobody waits for it ---


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_a_peer_that_is_gone_is_told_of_while_no_task_waits_for_it(run_once: Run, pair: Callable[[], Pair]) -> None:
    """Once, whatever is unread before it: who holds the stream may be waiting for something else."""

    async def main() -> None:
        async with stream_to_peer(pair) as (stream, far):
            gone: list[str] = []
            stream.on_gone = lambda: gone.append("gone")
            far.send(b"early")
            await turns()
            assert not gone
            reset(far) if pair is tcp_pair else far.close()
            await until(lambda: gone)
            await turns()
            assert gone == ["gone"]

    run_once(main)


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_an_end_alone_does_not_count_as_gone(run_once: Run, pair: Callable[[], Pair]) -> None:
    """Some clients end their side early, and read on."""

    async def main() -> None:
        async with stream_to_peer(pair) as (stream, far):
            gone: list[str] = []
            stream.on_gone = lambda: gone.append("gone")
            far.shutdown(socket.SHUT_WR)
            assert await stream.receive() == b""
            assert not gone

    run_once(main)


def test_a_task_that_waits_for_the_peer_hears_of_its_reset_first(run_once: Run) -> None:
    """It gets the error, as always."""

    async def main() -> None:
        async with stream_to_peer() as (stream, far):
            told: list[str] = []

            async def hold() -> None:
                with pytest.raises(ConnectionResetError):
                    await stream.receive()
                told.append("error")

            stream.on_gone = lambda: told.append("gone")
            task = await waiting(stream, hold)
            reset(far)
            await task
            assert told == ["error", "gone"]

    run_once(main)


def test_a_stream_that_was_moved(run: Run) -> None:
    """The other one has what is known of the socket, and what has found no room; the old one has nothing."""

    async def main() -> None:
        near, far = tcp_pair()
        with far:
            old = Stream(get_reactor(), near)
            await send(far, b"early")
            await old.readable()
            old.unsent = b"kept"
            new = old.moved()
            old.close()
            assert (new.events & IN, new.peer, new.unsent, old.unsent) == (IN, old.peer, b"kept", b"")
            assert await new.receive() == b"early"
            await send(far, b"later")
            assert await new.receive() == b"later"
            with pytest.raises(ConnectionAbortedError):
                await old.receive()
            new.close()

    run(main)
