"""One connection to an SSH server: logging in, what each refusal becomes, how many channels it has, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from conftest import Run
from doubles import until
from sshd import exchange, link_of, make_egress, refused, ssh_egress, ssh_server
from support import closed_port, target
from tabi.egress.ssh_keys import SshKeys
from tabi.errors import AuthError, DialError, ProxyError, ProxyTimeout, RemoteProtocolError, TabiError
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address


def test_it_is_a_socket_with_the_servers_address(run_once: Run, tmp_path: Path) -> None:
    """A relay can splice it, and what is logged and told is what other ways through proxies have."""

    async def main() -> None:
        async with (
            target() as port,
            ssh_egress(tmp_path) as (server, egress),
            await egress.open(Address("localhost", port), allow_any_address) as stream,
        ):
            assert isinstance(stream.sock, socket.socket)
            assert stream.sock.getpeername() == ("127.0.0.1", server.port)
            assert stream.sock.getsockname() == server.connections[0].get_extra_info("peername")

    run_once(main)


def test_what_the_connection_does_not_take_is_not_read(run_once: Run, tmp_path: Path) -> None:
    """A server that stops reading stops all channels, before their windows are used up: those could be many."""

    async def main() -> None:
        async with target() as port, ssh_egress(tmp_path) as (server, egress):
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


def test_a_server_that_says_goodbye_resets_channels_too(run_once: Run, tmp_path: Path) -> None:
    """It ends the connection in order, but not what goes through it."""

    async def main() -> None:
        async with (
            target() as port,
            ssh_egress(tmp_path) as (server, egress),
            await egress.open(Address("localhost", port), allow_any_address) as stream,
        ):
            server.connections[0].close()
            with pytest.raises(ConnectionResetError):
                await stream.receive()

    run_once(main)


def test_no_descriptor_is_left(run_once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the server then."""

    def fail() -> None:
        raise OSError(24, "Too many open files")

    async def main() -> None:
        async with ssh_egress(tmp_path) as (_, egress):
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
            ssh_egress(tmp_path) as (server, egress),
            await egress.open(Address("localhost", port), allow_any_address) as stream,
        ):
            server.connections[0].data_received = lambda data, datatype=None: None  # type: ignore[method-assign]
            with pytest.raises(ConnectionResetError):
                await stream.receive()

    run_once(main)


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
        async with target() as port, ssh_egress(tmp_path, accept) as (server, egress):
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
        async with target() as port, ssh_egress(tmp_path) as (_, egress):
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
        async with ssh_egress(tmp_path, accept) as (_, egress):
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


def test_a_wrong_password(run_once: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told what was offered, and what was not: not the password."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            words = f"^127.0.0.1:{server.port}: the SSH server does not accept the user by the password$"
            await refused(make_egress(server, "hunter2!"), AuthError, words)

    run_once(main)
    assert "hunter2" not in caplog.text


def test_a_host_key_that_is_not_known(run_once: Run, tmp_path: Path) -> None:
    """The message says which it is, and what to do if it is right."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            (tmp_path / "known_hosts").write_text("")
            words = (
                rf"^127\.0\.0\.1:{server.port}: the host key SHA256:\S+ is not known: if it is the right one, "
                rf"add it to {tmp_path}/known_hosts, as ssh-keyscan -p {server.port} 127\.0\.0\.1 prints it$"
            )
            await refused(make_egress(server), RemoteProtocolError, words)

    run_once(main)


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_host_key_that_is_another_one(run_once: Run, tmp_path: Path, algorithm: str) -> None:
    """Nothing is sent to it, the password least of all."""
    other = asyncssh.generate_private_key(algorithm).export_public_key().decode()

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other}")
            words = rf"the host key.* is not one of those in {tmp_path}/known_hosts: another machine may be in between"
            await refused(make_egress(server), RemoteProtocolError, words)
            assert server.connections[0].get_extra_info("username") is None

    run_once(main)


def test_a_host_key_that_is_revoked(run_once: Run, tmp_path: Path) -> None:
    """Whatever else the file says."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            path = tmp_path / "known_hosts"
            path.write_text(f"{path.read_text()}@revoked {path.read_text()}")
            await refused(make_egress(server), RemoteProtocolError, f"the host key is revoked in {path}$")

    run_once(main)


def test_the_key_of_a_proxy_on_the_way_is_not_enough(run_once: Run, tmp_path: Path) -> None:
    """Where somebody in between has an address whose host key is known, the server's name still has to have it."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            egress = make_egress(server)
            egress.proxy = Address("server.example", server.port)
            here = Address("127.0.0.1", server.port)
            open_below = egress.below.open
            egress.below.open = lambda *asked: open_below(here, allow_any_address)  # type: ignore[method-assign]
            await refused(egress, RemoteProtocolError, "server.example:[0-9]+: the host key SHA256:.* is not known")

    run_once(main)


@pytest.mark.parametrize(
    ("says", "error", "words"),
    [
        (b"SSH-1.5-old\r\n", RemoteProtocolError, "this is not an SSH server that tabi can talk to"),
        (b"SSH-2.0-x\r\n" + bytes(64), RemoteProtocolError, "this is not an SSH server that tabi can talk to"),
        (b"\xff" * 100_000, RemoteProtocolError, "this is not an SSH server that tabi can talk to"),
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
            await refused(make_egress(server, port=port), error, f"^127.0.0.1:{port}: {words}")

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
            egress = make_egress(server, port=port, seconds=0.1)
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
                exc = await refused(make_egress(server, port=port), DialError, "connection refused")
                assert exc.reply_code == 5

    run_once(main)


def test_files_that_cannot_be_read_any_more(run_once: Run, tmp_path: Path) -> None:
    """They are looked at when the server starts, and again for each connection."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server:
            for keys in (SshKeys(str(tmp_path / "none")), SshKeys(server.keys.known_hosts, str(tmp_path / "none"))):
                server.keys = keys
                await refused(make_egress(server, None), DialError, "no such file or directory")

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
        async with ssh_egress(tmp_path, lambda server, host, port: Stays()) as (server, egress):
            stream = await egress.open(Address("a.example", 80), allow_any_address)
            server.connections[0].data_received = lambda data, datatype=None: None  # type: ignore[method-assign]
            egress.retire()
            stream.reset()
            await until(lambda: not egress.is_alive)

    run_once(main)
