"""One channel: octets both ways, ends, and what breaks it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from conftest import Run
from doubles import until
from sshd import exchange, link_of, send, ssh_egress
from support import target
from tabi.egress.ssh import Ssh
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address


@pytest.mark.every_hosting
def test_ten_megabytes_both_ways(run: Run, tmp_path: Path) -> None:
    """Octet for octet, on each hosting; afterwards nothing of the channel is left."""

    async def main() -> None:
        async with target() as port, ssh_egress(tmp_path) as (_, egress):
            async with await egress.open(Address("localhost", port), allow_any_address) as stream:
                await exchange(stream, bytes(range(256)) * 40_960)
            await until(lambda: not link_of(egress).channels)
            assert link_of(egress).running == 0

    run(main)


@pytest.mark.every_hosting
def test_each_direction_ends_for_itself(run: Run, tmp_path: Path) -> None:
    """Whoever has ended can still be told something, on either side."""
    heard: list[bytes] = []

    async def answer_after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.write(b"answer")

    async def listen_after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"greeting")
        writer.write_eof()
        heard.append(await reader.read())

    async def main() -> None:
        async with (
            target(answer_after_the_end) as first,
            target(listen_after_the_end) as second,
            ssh_egress(tmp_path) as (_, egress),
        ):
            async with await egress.open(Address("localhost", first), allow_any_address) as stream:
                await exchange_with(stream, b"question", b"answer")
            async with await egress.open(Address("localhost", second), allow_any_address) as stream:
                assert await stream.receive() == b"greeting"
                assert await stream.receive() == b""
                await send(stream, b"late")
                await until(lambda: len(heard) == 2)
            await until(lambda: not link_of(egress).channels)

    async def exchange_with(stream: Stream, question: bytes, answer: bytes) -> None:
        await send(stream, question)
        received = b""
        while some := await stream.receive():
            received += some
        assert received == answer

    run(main)
    assert heard == [b"question", b"late"]


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.every_hosting
def test_a_reader_that_does_not_read_holds_up_the_sender(run: Run, tmp_path: Path, direction: str) -> None:
    """Nothing grows without a bound meanwhile: of 64 MB most stays where it is, and comes when it is asked for."""
    size, chunk = 64 << 20, bytes(1 << 16)
    sent, received, read = [0], [0], asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)
        for _ in range(size // len(chunk)):
            writer.write(chunk)
            await writer.drain()
            sent[0] += len(chunk)

    async def drink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read.wait()
        while data := await reader.read(1 << 16):
            received[0] += len(data)

    async def upload(stream: Stream) -> None:
        for _ in range(size // len(chunk)):
            await stream.send_all(chunk)
            sent[0] += len(chunk)
        stream.send_eof()

    async def stalls() -> int:
        before = -1
        while before != sent[0]:
            before = sent[0]
            await asyncio.sleep(0.2)
        return before

    async def main() -> None:
        async with target(pour if direction == "down" else drink) as port, ssh_egress(tmp_path) as (_, egress):
            async with (
                await egress.open(Address("localhost", port), allow_any_address) as stream,
                asyncio.TaskGroup() as group,
            ):
                if direction == "up":
                    group.create_task(upload(stream))
                assert await stalls() < size / 2
                link = egress.link
                assert link is not None
                (channel,) = link.channels
                assert len(channel.rest) <= 1 << 16
                assert channel.chan is not None
                assert channel.chan.get_write_buffer_size() <= 1 << 16
                read.set()
                if direction == "down":
                    while data := await stream.receive(1 << 16):
                        received[0] += len(data)
                else:
                    await until(lambda: received[0] == size)
            assert received[0] == size

    run(main)


def test_a_client_that_resets_closes_the_channel(run_once: Run, tmp_path: Path) -> None:
    """The destination does not wait for it, and the connection goes on."""
    ended = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        finally:
            ended.set()

    async def main() -> None:
        async with target(pour) as port, target() as other, ssh_egress(tmp_path) as (server, egress):
            stream = await egress.open(Address("localhost", port), allow_any_address)
            await stream.receive()
            stream.reset()
            await ended.wait()
            await until(lambda: not link_of(egress).channels)
            async with await egress.open(Address("localhost", other), allow_any_address) as stream:
                await exchange(stream)
            assert len(server.connections) == 1

    run_once(main)


def test_a_server_that_closes_a_channel_has_sent_all(run_once: Run, tmp_path: Path) -> None:
    """Many do so without a word of the end before."""

    class Closes(asyncssh.SSHTCPSession[bytes]):
        def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
            self.chan = chan

        def session_started(self) -> None:
            self.chan.write(bytes(16 << 20))
            self.chan.close()

    async def main() -> None:
        async with ssh_egress(tmp_path, lambda server, host, port: Closes()) as (_, egress):
            async with await egress.open(Address("a.example", 80), allow_any_address) as stream:
                await until(lambda: stalled(egress))
                count = 0
                while data := await stream.receive():
                    count += len(data)
                assert count == 16 << 20
            await until(lambda: not link_of(egress).channels)

    run_once(main)


def stalled(egress: Ssh) -> bool:
    """Whether a channel waits for its client to read."""
    return any(channel.rest for channel in link_of(egress).channels)


@pytest.mark.parametrize("who", ["client", "server", "channel"])
@pytest.mark.every_hosting
def test_a_channel_breaks_while_its_client_does_not_read(run: Run, tmp_path: Path, who: str) -> None:
    """What is left is thrown away, and nobody waits for it; but what a server has sent and closed is all of it."""
    sessions: list[Any] = []

    class Pours(asyncssh.SSHTCPSession[bytes]):
        def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
            self.chan = chan
            sessions.append(self)

        def session_started(self) -> None:
            self.chan.write(bytes(64 << 20))

    async def main() -> None:
        async with (
            ssh_egress(tmp_path, lambda server, host, port: Pours()) as (server, egress),
            await egress.open(Address("a.example", 80), allow_any_address) as stream,
        ):
            await until(lambda: stalled(egress))
            if who == "client":
                stream.reset()
                await until(lambda: not link_of(egress).channels)
                return
            if who == "server":
                server.connections[0].abort()
            else:
                sessions[0].chan.abort()
            count = 0
            with contextlib.suppress(ConnectionResetError):
                while data := await stream.receive():
                    count += len(data)
                assert who == "channel"
            assert count < 64 << 20

    run(main)
