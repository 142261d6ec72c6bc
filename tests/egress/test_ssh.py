"""The way out through an SSH server: one connection for all, what each failure becomes, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from conftest import Run
from sshd import SshServer, ssh_server
from support import closed_port, echo, permit_outer, target
from tabi import Server
from tabi.egress.direct import Direct
from tabi.egress.pool import Pooled
from tabi.egress.ssh import Ssh
from tabi.egress.ssh_keys import SshKeys
from tabi.egress.ssh_link import Link
from tabi.errors import AuthError, DialError, PolicyDenied, ProxyError, ProxyTimeout, RemoteProtocolError, TabiError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address
from tabi.policy.pool import Member, Pool
from tabi.wire.address import Address, parse_address


def make(server: SshServer, password: str | None = "hunter2", seconds: float = 10, port: int | None = None) -> Ssh:
    """The way through a server of the test's own."""
    below = Direct(Dialer(get_reactor(), ThreadResolver(), seconds))
    deadlines = below.dialer.deadlines
    return Ssh(below, Address("127.0.0.1", port or server.port), "alice", password, server.keys, deadlines)


@contextlib.asynccontextmanager
async def way(
    folder: Path, accept: Any = lambda server, host, port: True, **options: Any
) -> AsyncIterator[tuple[SshServer, Ssh]]:
    """A server and a way through it, which are gone at the end."""
    async with ssh_server(folder, accept) as server:
        egress = make(server, **options)
        try:
            yield server, egress
        finally:
            await egress.close()
            await egress.below.dialer.close()  # type: ignore[attr-defined]


def link_of(egress: Ssh) -> Link:
    """The connection that it has."""
    assert egress.link is not None
    return egress.link


async def until(condition: Any) -> None:
    """Wait in this loop's turns for what other callbacks of it do."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def exchange(stream: Stream, data: bytes = b"hello") -> None:
    """Send, end, and get the same back and the end."""
    async with asyncio.TaskGroup() as group:
        group.create_task(send(stream, data))
        received = bytearray()
        while some := await stream.receive():
            received += some
    assert received == data


async def send(stream: Stream, data: bytes) -> None:
    """Send everything, and the end."""
    await stream.send_all(data)
    stream.send_eof()


# --- what comes through ---


@pytest.mark.every_hosting
def test_ten_megabytes_both_ways(run: Run, tmp_path: Path) -> None:
    """Octet for octet, on each hosting; afterwards nothing of the channel is left."""

    async def main() -> None:
        async with target() as port, way(tmp_path) as (_, egress):
            async with await egress.open(Address("localhost", port), allow_any_address) as stream:
                await exchange(stream, bytes(range(256)) * 40_960)
            await until(lambda: not link_of(egress).channels)
            assert link_of(egress).running == 0

    run(main)


def test_it_is_a_socket_with_the_servers_address(run_once: Run, tmp_path: Path) -> None:
    """A relay can splice it, and what is logged and told is what other ways through proxies have."""

    async def main() -> None:
        async with (
            target() as port,
            way(tmp_path) as (server, egress),
            await egress.open(Address("localhost", port), allow_any_address) as stream,
        ):
            assert isinstance(stream.sock, socket.socket)
            assert stream.sock.getpeername() == ("127.0.0.1", server.port)
            assert stream.sock.getsockname() == server.connections[0].get_extra_info("peername")

    run_once(main)


def test_one_connection_for_all(run_once: Run, tmp_path: Path) -> None:
    """Those who come at once wait for the same one, and who comes later has it at once."""

    async def main() -> None:
        async with target() as port, way(tmp_path) as (server, egress):
            there = Address("localhost", port)
            for _ in range(2):
                streams = await asyncio.gather(*(egress.open(there, allow_any_address) for _ in range(50)))
                for stream in streams:
                    await exchange(stream)
                    stream.close()
            assert len(server.connections) == 1
            await until(lambda: not link_of(egress).channels)

    run_once(main)


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
            way(tmp_path) as (_, egress),
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
        async with target(pour if direction == "down" else drink) as port, way(tmp_path) as (_, egress):
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


def test_what_the_connection_does_not_take_is_not_read(run_once: Run, tmp_path: Path) -> None:
    """A server that stops reading stops all channels, before their windows are used up: those could be many."""

    async def main() -> None:
        async with target() as port, way(tmp_path) as (server, egress):
            streams = [await egress.open(Address("localhost", port), allow_any_address) for _ in range(20)]
            transport = server.connections[0].get_extra_info("socket")
            assert transport is not None
            link = egress.link
            assert link is not None
            link.pause_writing()
            for stream in streams:
                await stream.send_all(b"hello")
            await asyncio.sleep(0.05)
            assert all(channel.chan.get_write_buffer_size() == 0 for channel in link.channels if channel.chan)
            assert all(not stream.receive_nowait(5) for stream in streams)
            link.resume_writing()
            for stream in streams:
                assert await stream.receive() == b"hello"
                stream.close()

    run_once(main)


# --- how a channel breaks ---


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
        async with target(pour) as port, target() as other, way(tmp_path) as (server, egress):
            stream = await egress.open(Address("localhost", port), allow_any_address)
            await stream.receive()
            stream.reset()
            await ended.wait()
            await until(lambda: not link_of(egress).channels)
            async with await egress.open(Address("localhost", other), allow_any_address) as stream:
                await exchange(stream)
            assert len(server.connections) == 1

    run_once(main)


def test_a_lost_connection_resets_its_channels_and_the_next_request_opens_another(run: Run, tmp_path: Path) -> None:
    """Nobody takes it for an orderly end."""

    async def main() -> None:
        async with target() as port, way(tmp_path) as (server, egress):
            there = Address("localhost", port)
            streams = [await egress.open(there, allow_any_address) for _ in range(3)]
            server.connections[0].abort()
            for stream in streams:
                with pytest.raises(ConnectionResetError):
                    await stream.receive()
                stream.close()
            async with await egress.open(there, allow_any_address) as stream:
                await exchange(stream)
            assert len(server.connections) == 2

    run(main)


def test_a_server_that_says_goodbye_resets_channels_too(run_once: Run, tmp_path: Path) -> None:
    """It ends the connection in order, but not what goes through it."""

    async def main() -> None:
        async with (
            target() as port,
            way(tmp_path) as (server, egress),
            await egress.open(Address("localhost", port), allow_any_address) as stream,
        ):
            server.connections[0].close()
            with pytest.raises(ConnectionResetError):
                await stream.receive()

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
        async with way(tmp_path, lambda server, host, port: Closes()) as (_, egress):
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
            way(tmp_path, lambda server, host, port: Pours()) as (server, egress),
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


def test_no_descriptor_is_left(run_once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the server then."""

    def fail() -> None:
        raise OSError(24, "Too many open files")

    async def main() -> None:
        async with way(tmp_path) as (_, egress):
            await egress.find_link()
            monkeypatch.setattr("tabi.egress.ssh_link.open_pair", fail)
            with pytest.raises(DialError, match=r"^a\.example:80: too many open files$") as caught:
                await egress.open(Address("a.example", 80), allow_any_address)
            assert caught.value.reply_code == 1
            assert not link_of(egress).channels

    run_once(main)


def test_a_dead_server_is_noticed(run_once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers nothing any more is given up, and its channels are reset."""
    monkeypatch.setattr("tabi.egress.ssh_link.KEEPALIVE", 0.02)

    async def main() -> None:
        async with (
            target() as port,
            way(tmp_path) as (server, egress),
            await egress.open(Address("localhost", port), allow_any_address) as stream,
        ):
            server.connections[0].data_received = lambda data, datatype=None: None  # type: ignore[method-assign]
            with pytest.raises(ConnectionResetError):
                await stream.receive()

    run_once(main)


# --- what a refusal becomes ---

P, C, U, R = (
    asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED,
    asyncssh.OPEN_CONNECT_FAILED,
    asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE,
    asyncssh.OPEN_RESOURCE_SHORTAGE,
)


@pytest.mark.parametrize(
    ("code", "reason", "words", "reply_code"),
    [
        (P, "open failed", "the SSH server does not allow it", 2),
        (C, "Connection refused", "the SSH server says connection refused", 5),
        (C, "[Errno 111] Connect call failed ('127.0.0.1', 80)", "the SSH server says connection refused", 5),
        (C, "No route to host", "the SSH server says no route to host", 4),
        (C, "Network is unreachable", "the SSH server says network is unreachable", 3),
        (C, "Connection timed out", "the SSH server says timed out", 4),
        (C, "Name or service not known", "the SSH server says no such name", 4),
        (C, "dial tcp: lookup a.example: no such host", "the SSH server says no such name", 4),
        (C, "hunter2\nhunter2", "the SSH server could not connect$", 1),
        (U, "x", "the SSH server does not forward connections", 7),
        (R, "x", "the SSH server opens no more channels", 1),
        (77, "hunter2", "the SSH server could not connect$", 1),
    ],
)
def test_what_a_refused_channel_becomes(
    run_once: Run, tmp_path: Path, code: int, reason: str, words: str, reply_code: int
) -> None:
    """The words are ours; the connection is as good as before."""

    def accept(server: Any, host: str, port: int) -> bool:
        if host == "no.example":
            raise asyncssh.ChannelOpenError(code, reason)
        return True

    async def main() -> None:
        async with target() as port, way(tmp_path, accept) as (server, egress):
            with pytest.raises(ProxyError, match=f"^no.example:80: {words}") as caught:
                await egress.open(Address("no.example", 80), allow_any_address)
            assert caught.value.reply_code == reply_code
            assert "hunter2" not in str(caught.value)
            assert not link_of(egress).running
            async with await egress.open(Address("localhost", port), allow_any_address) as stream:
                await exchange(stream)
            assert len(server.connections) == 1

    run_once(main)


def test_more_channels_than_a_connection_may_have(
    run_once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that closes none, or answers to none, does not make us remember them without end."""
    monkeypatch.setattr("tabi.egress.ssh_link.MAX_CHANNELS", 2)

    async def main() -> None:
        async with target() as port, way(tmp_path) as (_, egress):
            there = Address("localhost", port)
            async with await egress.open(there, allow_any_address), await egress.open(there, allow_any_address):
                with pytest.raises(ProxyError, match="2 channels to the SSH server are open") as caught:
                    await egress.open(there, allow_any_address)
                assert caught.value.reply_code == 1

    run_once(main)


def test_a_channel_that_is_not_answered_is_given_up(run_once: Run, tmp_path: Path) -> None:
    """In time; and where the server opens it after all, it is closed at once."""
    asked: list[asyncio.Future[bool]] = []

    async def accept_later(future: asyncio.Future[bool]) -> Any:
        await future
        return asyncssh.SSHTCPSession()

    def accept(server: Any, host: str, port: int) -> Any:
        asked.append(asyncio.get_running_loop().create_future())
        return accept_later(asked[-1])

    async def main() -> None:
        async with way(tmp_path, accept) as (_, egress):
            await egress.find_link()
            egress.seconds = 0.05
            with pytest.raises(
                ProxyError, match=r"a.example:80: the SSH server did not answer within 0\.05 s"
            ) as caught:
                await egress.open(Address("a.example", 80), allow_any_address)
            assert caught.value.reply_code is None
            egress.seconds = 10
            waiting = asyncio.create_task(egress.open(Address("a.example", 80), allow_any_address))  # noqa: TID251
            await until(lambda: len(asked) == 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (len(link_of(egress).channels), link_of(egress).running) == (2, 0)
            for future in asked:
                future.set_result(True)
            await until(lambda: not link_of(egress).channels)
            assert not link_of(egress).openings

    run_once(main)


def test_the_guard_is_asked_and_names_are_the_servers(run_once: Run, tmp_path: Path) -> None:
    """Addresses of inner networks are refused here; a name goes as it is."""
    asked: list[tuple[str, int]] = []

    def accept(server: Any, host: str, port: int) -> bool:
        asked.append((host, port))
        raise asyncssh.ChannelOpenError(C, "x")

    async def main() -> None:
        async with way(tmp_path, accept) as (_, egress):
            with pytest.raises(PolicyDenied):
                await egress.open(Address(parse_address("10.0.0.1:1").host, 80), permit_outer)
            with pytest.raises(ProxyError):
                await egress.open(Address("inner.example", 80), permit_outer)
            with pytest.raises(DialError) as caught:
                await egress.open(Address("\udc80", 80), allow_any_address)
            assert caught.value.reply_code == 4

    run_once(main)
    assert asked == [("inner.example", 80)]


# --- logging in ---


async def refused(egress: Ssh, error: type[TabiError], words: str) -> TabiError:
    """Open anything, and fail."""
    with pytest.raises(error, match=words) as caught:
        await egress.open(Address("a.example", 80), allow_any_address)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    await egress.close()
    await egress.below.dialer.close()  # type: ignore[attr-defined]
    return caught.value


def test_a_wrong_password(run_once: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told what was offered, and what was not: not the password."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            words = f"^127.0.0.1:{server.port}: the SSH server does not accept the user by the password$"
            await refused(make(server, "hunter2!"), AuthError, words)

    run_once(main)
    assert "hunter2" not in caplog.text


def test_a_server_that_refuses_is_not_asked_again_at_once(run_once: Run, tmp_path: Path) -> None:
    """It might shut us out for good; who comes meanwhile is told the same, and a while later it is tried again."""

    async def main() -> None:
        async with target() as port, way(tmp_path, password="hunter2!") as (server, egress):
            there = Address("localhost", port)
            for _ in range(3):
                with pytest.raises(AuthError, match=r"does not accept the user by the password$"):
                    await egress.open(there, allow_any_address)
            assert len(server.connections) == 1
            egress.password, egress.refused_until = "hunter2", 0
            async with await egress.open(there, allow_any_address) as stream:
                await exchange(stream)
            assert len(server.connections) == 2

    run_once(main)


def test_a_host_key_that_is_not_known(run_once: Run, tmp_path: Path) -> None:
    """The message says which it is, and what to do if it is right."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            (tmp_path / "known_hosts").write_text("")
            words = (
                rf"^127\.0\.0\.1:{server.port}: the host key SHA256:\S+ is not known: if it is the right one, "
                rf"add it to {tmp_path}/known_hosts, as ssh-keyscan -p {server.port} 127\.0\.0\.1 prints it$"
            )
            await refused(make(server), RemoteProtocolError, words)

    run_once(main)


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_host_key_that_is_another_one(run_once: Run, tmp_path: Path, algorithm: str) -> None:
    """Nothing is sent to it, the password least of all."""
    other = asyncssh.generate_private_key(algorithm).export_public_key().decode()

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other}")
            words = rf"the host key.* is none of those in {tmp_path}/known_hosts: somebody may be in between"
            await refused(make(server), RemoteProtocolError, words)
            assert server.connections[0].get_extra_info("username") is None

    run_once(main)


def test_a_host_key_that_is_revoked(run_once: Run, tmp_path: Path) -> None:
    """Whatever else the file says."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            path = tmp_path / "known_hosts"
            path.write_text(f"{path.read_text()}@revoked {path.read_text()}")
            await refused(make(server), RemoteProtocolError, f"the host key is revoked in {path}$")

    run_once(main)


def test_the_key_of_a_proxy_on_the_way_is_not_enough(run_once: Run, tmp_path: Path) -> None:
    """Where somebody in between has an address whose host key is known, the server's name still has to have it."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            egress = make(server)
            egress.proxy = Address("server.example", server.port)
            here = Address("127.0.0.1", server.port)
            open_below = egress.below.open
            egress.below.open = lambda *asked: open_below(here, allow_any_address)  # type: ignore[method-assign]
            await refused(egress, RemoteProtocolError, "server.example:[0-9]+: the host key SHA256:.* is not known")

    run_once(main)


@pytest.mark.parametrize(
    ("says", "error", "words"),
    [
        (b"SSH-1.5-old\r\n", RemoteProtocolError, "this is no SSH server that can be spoken with"),
        (b"SSH-2.0-x\r\n" + bytes(64), RemoteProtocolError, "this is no SSH server that can be spoken with"),
        (b"\xff" * 100_000, RemoteProtocolError, "this is no SSH server that can be spoken with"),
        (None, ProxyError, "the connection to the SSH server broke before it let us in"),
    ],
    ids=["old", "zeros", "rubbish", "hangs up"],
)
def test_what_is_no_ssh_server(
    run_once: Run, tmp_path: Path, says: bytes | None, error: type[TabiError], words: str
) -> None:
    """Whatever it says becomes one of tabi's errors."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if says is not None:
            writer.write(says)
            await reader.read()

    async def main() -> None:
        async with ssh_server(tmp_path) as server, target(handle) as port:
            await refused(make(server, port=port), error, f"^127.0.0.1:{port}: {words}")

    run_once(main)


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-slow\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_silent_server_is_given_up(run_once: Run, tmp_path: Path, says: bytes) -> None:
    """One deadline over all of it, for all who wait. Lines of other text may come first (RFC 4253 section 4.2)."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        while await reader.read(1 << 16):
            pass

    async def main() -> None:
        async with ssh_server(tmp_path) as server, target(handle) as port:
            egress = make(server, port=port, seconds=0.1)
            found = await asyncio.gather(
                *(egress.open(Address("a.example", 80), allow_any_address) for _ in range(3)), return_exceptions=True
            )
            assert [type(one) for one in found] == [ProxyTimeout] * 3
            await refused(egress, ProxyError, r"the SSH server did not answer within 0\.1 s")

    run_once(main)


def test_a_server_that_is_not_there(run_once: Run, tmp_path: Path) -> None:
    """What the egress below says."""

    async def main() -> None:
        with closed_port() as port:
            async with ssh_server(tmp_path) as server:
                exc = await refused(make(server, port=port), DialError, "connection refused")
                assert exc.reply_code == 5

    run_once(main)


def test_files_that_cannot_be_read_any_more(run_once: Run, tmp_path: Path) -> None:
    """They are looked at when the server starts, and again for each connection."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            for keys in (SshKeys(str(tmp_path / "none")), SshKeys(server.keys.known_hosts, str(tmp_path / "none"))):
                server.keys = keys
                await refused(make(server, None), DialError, "no such file or directory")

    run_once(main)


def test_who_leaves_does_not_take_the_attempt_along(run_once: Run, tmp_path: Path) -> None:
    """The others get their connection, and it is one."""

    async def main() -> None:
        async with target() as port, way(tmp_path) as (server, egress):
            there = Address("localhost", port)
            async with asyncio.TaskGroup() as group:
                first = group.create_task(egress.open(there, allow_any_address))
                second = group.create_task(egress.open(there, allow_any_address))
                await until(lambda: egress.attempt is not None)
                first.cancel()
            async with second.result() as stream:
                await exchange(stream)
            assert first.cancelled()
            assert len(server.connections) == 1

    run_once(main)


# --- the end ---


def test_a_retired_one_ends_with_its_last_channel(run_once: Run, tmp_path: Path) -> None:
    """As after a reload: what runs goes on."""

    async def main() -> None:
        async with target() as port, way(tmp_path) as (_, egress):
            there = Address("localhost", port)
            first, second = await egress.open(there, allow_any_address), await egress.open(there, allow_any_address)
            egress.retire()
            await exchange(first)
            first.close()
            assert egress.is_alive
            await exchange(second)
            second.close()
            await until(lambda: not egress.is_alive)

    run_once(main)


def test_a_retired_one_does_not_wait_for_a_server_that_closes_nothing(
    run_once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its time to close the last channel, and not more."""
    monkeypatch.setattr("tabi.egress.ssh_link.LINGER", 0.05)

    class Stays(asyncssh.SSHTCPSession[bytes]):
        def eof_received(self) -> bool:
            return True

    async def main() -> None:
        async with way(tmp_path, lambda server, host, port: Stays()) as (server, egress):
            stream = await egress.open(Address("a.example", 80), allow_any_address)
            server.connections[0].data_received = lambda data, datatype=None: None  # type: ignore[method-assign]
            egress.retire()
            stream.reset()
            await until(lambda: not egress.is_alive)

    run_once(main)


def test_closing_ends_everything_at_once(run_once: Run, tmp_path: Path) -> None:
    """Channels are reset, and who waits for a connection that is still being opened is told."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass

    async def main() -> None:
        async with target() as port, target(silent) as nobody, way(tmp_path) as (server, egress):
            stream = await egress.open(Address("localhost", port), allow_any_address)
            await egress.close()
            with pytest.raises(ConnectionResetError):
                await stream.receive()
            stream.close()
            other = make(server, port=nobody)
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(refused(other, ProxyError, "the way out was closed"))
                await until(lambda: other.attempt is not None)
                await asyncio.sleep(0.05)
                await other.close()
            assert waiting.result().reply_code is None

    run_once(main)


# --- with others ---


def test_in_a_pool_a_dead_one_is_passed_over(run_once: Run, tmp_path: Path) -> None:
    """Another member opens it; a destination that refuses is nobody's fault."""

    async def main() -> None:
        with closed_port() as nothing:
            async with target() as port, way(tmp_path) as (server, good):
                dead = make(server, port=nothing)
                pool = Pool([Member("dead"), Member("good")], "least-connections", failures=1)
                egress = Pooled("de", pool, {"dead": dead, "good": good}, 10)
                async with await egress.open(Address("localhost", port), allow_any_address) as stream:
                    await exchange(stream)
                with pytest.raises(ProxyError) as caught:
                    await egress.open(Address("127.0.0.1", nothing), allow_any_address)
                assert caught.value.reply_code == 5
                await dead.close()
                await dead.below.dialer.close()  # type: ignore[attr-defined]

    run_once(main)


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_in_a_chain(run: Run, tmp_path: Path, scheme: str) -> None:
    """Through a proxy to the server, and through the server to a proxy."""
    from tabi.egress.http_connect import HttpConnect
    from tabi.egress.socks5 import Socks5

    kind: Any = Socks5 if scheme == "socks5" else HttpConnect

    async def main() -> None:
        async with target(echo) as port, Server(f"{scheme}://127.0.0.1:0") as proxy, way(tmp_path) as (_, egress):
            there, at = Address("localhost", port), proxy.addresses[0]
            behind = kind(egress, at, None, egress.deadlines)
            async with await behind.open(there, allow_any_address) as stream:
                await exchange(stream, bytes(300_000))
            first = kind(egress.below, at, None, egress.deadlines)
            through = Ssh(first, egress.proxy, "alice", "hunter2", egress.keys, egress.deadlines)
            async with await through.open(there, allow_any_address) as stream:
                await exchange(stream, bytes(300_000))
            await through.close()

    run(main)


def test_one_server_through_another(run_once: Run, tmp_path: Path) -> None:
    """A connection inside a channel of another one; when the outer one breaks the inner one does too."""
    (tmp_path / "other").mkdir()

    async def main() -> None:
        async with target() as port, way(tmp_path) as (outer, first), ssh_server(tmp_path / "other") as server:
            second = Ssh(first, Address("127.0.0.1", server.port), "alice", "hunter2", server.keys, first.deadlines)
            async with await second.open(Address("localhost", port), allow_any_address) as stream:
                await exchange(stream, bytes(300_000))
            async with await second.open(Address("localhost", port), allow_any_address) as stream:
                outer.connections[0].abort()
                with pytest.raises(ConnectionResetError):
                    await stream.receive()
            await second.close()

    run_once(main)
