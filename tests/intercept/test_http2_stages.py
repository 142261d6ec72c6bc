"""A frame relay on a relay: octets, ends, what is held, and what comes from outside of a turn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import Run
from h2_ends import GET, OK, POST, End, Pass, block
from sockets import Bench, Ends, tcp_pair, turns, until
from tabi.intercept import http2_stages
from tabi.intercept.http2 import HELD_LIMIT, FrameRelay
from tabi.intercept.http2_stages import FrameStages
from tabi.intercept.http2_stream import HOLD, Stream
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import DATA, END_STREAM, PREFACE, encode_frame, encode_rst, encode_settings

BEGIN = PREFACE + encode_settings([])


class Holds(Pass):
    """Holds all requests."""

    def request(self, stream: Stream, request: Any, end: bool) -> Any:
        super().request(stream, request, end)
        return HOLD


class Far(End):
    """One end with a socket."""

    def __init__(self, sock: socket.socket, client: bool) -> None:
        super().__init__(client)
        self.sock = sock
        self.closed = False
        self.lock = asyncio.Lock()
        self.connection.initiate_connection()

    async def run(self) -> None:
        """Receive until the end."""
        loop = asyncio.get_running_loop()
        while True:
            await self.go()
            try:
                data = await loop.sock_recv(self.sock, 65536)
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
                return
            self.receive(data)

    async def go(self) -> None:
        """Send what there is to send."""
        async with self.lock:
            self.send_what_fits()
            if data := self.connection.data_to_send():
                with contextlib.suppress(ConnectionError):
                    await asyncio.get_running_loop().sock_sendall(self.sock, data)


@contextlib.asynccontextmanager
async def joined(bench: Bench, inspector: Any) -> AsyncIterator[tuple[Ends, FrameStages, Far, Far]]:
    """Two ends with a relay between them."""
    ends = bench.ends()
    stages = FrameStages(FrameRelay(inspector))
    near = (ends.near_client, ends.near_server, ends.session)
    bench.relays.start(*near, b"", b"", ((UP, stages.up), (DOWN, stages.down)))
    client, server = Far(ends.client, True), Far(ends.server, False)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(end.run()) for end in (client, server)]
        try:
            yield ends, stages, client, server
        finally:
            for task in tasks:
                task.cancel()


def test_requests_and_answers_pass(run: Run) -> None:
    """What an inspector does later is sent at once; the end of one side is the end of all streams."""

    async def main() -> None:
        inspector = Holds()
        with Bench() as bench:
            async with joined(bench, inspector) as (ends, _, client, server):
                client.head(1, POST)
                client.body(1, b"x" * 300_000)
                client.head(3, GET, True)
                client.head(5, GET, True)
                await client.go()
                await until(lambda: len(inspector.streams) == 3)
                inspector.streams[3].answer(200, [], b"ours" * 20_000)
                await until(lambda: 3 in client.ended)
                assert client.bodies[3] == b"ours" * 20_000
                inspector.streams[1].send_request()
                await until(lambda: 1 in server.ended)
                assert server.bodies[1] == b"x" * 300_000
                server.head(1, OK)
                server.body(1, b"y" * 500_000)
                await server.go()
                await until(lambda: 1 in client.ended)
                assert client.bodies[1] == b"y" * 500_000
                client.sock.shutdown(socket.SHUT_WR)
                await until(lambda: server.closed)
                server.sock.shutdown(socket.SHUT_WR)
                await ends.ended.wait()
                assert inspector.errors == {1: None, 3: None, 5: "the connection has ended"}
                assert ends.session.close == "client"
                assert ends.session.up > 300_000

    run(main)


def test_many_requests_are_taken_in_turns(run: Run) -> None:
    """All of them arrive, and those behind them, though each turn takes some."""

    async def main() -> None:
        with Bench() as bench:
            async with joined(bench, None) as (_, _, client, server):
                await until(lambda: client.events)
                for number in range(95):
                    client.head(2 * number + 1, GET, True)
                await client.go()
                await until(lambda: len(server.ended) == 95)
                client.connection.ping(b"12345678")
                await client.go()
                await until(lambda: any(type(event).__name__ == "PingAckReceived" for event in client.events))

    run(main)


def test_both_sides_are_told_what_is_wrong(run: Run) -> None:
    """GOAWAY, then the end, to both; octets behind the fault go nowhere."""

    async def main() -> None:
        with Bench() as bench:
            async with joined(bench, None) as (ends, _, client, server):
                await until(lambda: client.connection.remote_settings.max_frame_size and server.events)
                await asyncio.get_running_loop().sock_sendall(
                    client.sock, encode_frame(6, 0, 0, b"wrong") + encode_frame(6, 0, 0, b"12345678")
                )
                await ends.ended.wait()
                await until(lambda: client.closed and server.closed)
                assert client.goaway.error_code == 6
                assert server.goaway.error_code == 0

    run(main)


def test_nothing_is_read_while_too_much_is_held(run: Run) -> None:
    """Where a receiver's windows are so large that they are no bound; it goes on when that has room."""

    async def main() -> None:
        inspector = Holds()
        with Bench() as bench:
            async with joined(bench, inspector) as (ends, stages, client, _):
                client.head(1, GET, True)
                await client.go()
                await until(lambda: inspector.streams)
                await until(lambda: stages.relay.down.begun)
                stages.relay.down.queued = HELD_LIMIT
                stages.flush()
                assert stages.down.held == HELD_LIMIT
                assert ends.relay.down.held >= HELD_LIMIT
                stages.relay.down.queued = 0
                inspector.streams[1].reset("enough")
                assert stages.down.held == 0
                await until(lambda: client.resets == {1: 8})

    run(main)


def test_a_large_answer_before_the_server_has_begun(run: Run) -> None:
    """It waits for the SETTINGS of the server, which have to be read for that, however much it is."""

    async def main() -> None:
        inspector = Holds()
        with Bench() as bench:
            ends = bench.ends()
            stages = FrameStages(FrameRelay(inspector))
            near = (ends.near_client, ends.near_server, ends.session)
            bench.relays.start(*near, b"", b"", ((UP, stages.up), (DOWN, stages.down)))
            client, server = Far(ends.client, True), Far(ends.server, False)
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(client.run())]
                client.head(1, GET, True)
                await client.go()
                await until(lambda: inspector.streams)
                inspector.streams[1].answer(200, [], bytes(HELD_LIMIT + 100_000))
                await turns()
                running.append(group.create_task(server.run()))
                await until(lambda: 1 in client.ended)
                assert len(client.bodies[1]) == HELD_LIMIT + 100_000
                for task in running:
                    task.cancel()

    run(main)


def test_nothing_is_read_of_a_side_that_does_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends content for a stream that is over, and reads none of our window updates."""
    monkeypatch.setattr(http2_stages, "UNREAD_LIMIT", 4096)
    flood = encode_frame(DATA, 0, 1, b"x" * 300) * 4000

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with Bench() as bench:
            ends = bench.ends(server=tcp_pair(4096))
            stages = FrameStages(FrameRelay())
            near = (ends.near_client, ends.near_server, ends.session)
            bench.relays.start(*near, b"", b"", ((UP, stages.up), (DOWN, stages.down)))
            await loop.sock_sendall(ends.client, BEGIN + block(1, GET, END_STREAM) + encode_rst(1, 8))
            await until(lambda: stages.relay.last_opened and not stages.relay.up.halves)
            flow = stages.up.flow
            assert flow is not None
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(loop.sock_sendall(ends.server, encode_settings([]) + flood))
                await until(lambda: len(flow.kept) > 4096)
                await turns(1000)
                assert len(flow.kept) < 16384
                assert not stages.down.holds(0)  # so that it may end as idle
                while not sending.done():
                    await loop.sock_recv(ends.server, 65536)

    run(main)


def test_nothing_happens_when_it_is_over(run: Run) -> None:
    """An inspector that comes too late, and octets that do."""

    async def main() -> None:
        inspector = Holds()
        with Bench() as bench:
            async with joined(bench, inspector) as (ends, stages, client, _):
                client.head(1, GET, True)
                await client.go()
                await until(lambda: inspector.streams)
                stream = inspector.streams[1]
                ends.relay.cut("enough")
                await ends.ended.wait()
                assert inspector.errors == {1: "the connection has ended"}
                stream.answer(200, [])
                stages.up.receive(b"late")
                stages.flush()
                stages.close()

    run(main)


def test_a_client_that_goes_while_it_is_answered(run: Run) -> None:
    """The relay ends in the middle of what an inspector does."""

    async def main() -> None:
        inspector = Holds()
        with Bench() as bench:
            async with joined(bench, inspector) as (ends, _, client, server):
                client.head(1, GET, True)
                await client.go()
                await until(lambda: inspector.streams and server.events)
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sock.close()
                inspector.streams[1].answer(200, [], b"x" * 60_000, end=False)
                inspector.streams[1].send(DOWN, b"x" * 60_000, True)
                await ends.ended.wait()
                assert list(inspector.errors) == [1]

    run(main)


class HoldsAnswers(Pass):
    """Holds all responses."""

    def response(self, stream: Stream, status: int, fields: Any, end: bool) -> Any:
        super().response(stream, status, fields, end)
        return HOLD


def test_a_server_that_goes_while_its_answer_is_held(run: Run) -> None:
    """What it has sent whole reaches the client, which may say more meanwhile, and then the end; the rest does not."""

    async def main() -> None:
        inspector = HoldsAnswers()
        with Bench() as bench:
            async with joined(bench, inspector) as (ends, stages, client, server):
                for id in (1, 3):
                    client.head(id, GET, True)
                await client.go()
                await until(lambda: len(server.ended) == 2)
                server.head(1, OK)
                server.body(1, b"x" * 50_000)
                server.head(3, OK)
                await server.go()
                await until(lambda: len(inspector.seen) == 4)
                server.sock.shutdown(socket.SHUT_WR)
                await until(lambda: stages.down.ended)
                for _ in range(10):
                    await asyncio.sleep(0)
                count = len(server.events)
                for _ in range(10):
                    client.connection.ping(b"12345678")
                    await client.go()
                    await asyncio.sleep(0)
                assert not client.closed
                assert len(server.events) == count  # which may have closed its socket, and would answer with a reset
                inspector.streams[1].send_response()
                await until(lambda: client.closed)
                assert client.bodies == {1: b"x" * 50_000}
                assert client.ended == {1}
                client.sock.shutdown(socket.SHUT_WR)
                await ends.ended.wait()
                assert inspector.errors == {1: None, 3: "the connection has ended"}

    run(main)
