"""The egress through an SSH server: all requests share one connection, which is opened again once it is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from conftest import Run
from doubles import until
from sshd import exchange, link_of, make_egress, refused, ssh_egress, ssh_server
from support import closed_port, echo, permit_outer, target
from tabi import Server
from tabi.egress.pool import Pooled
from tabi.egress.ssh import Ssh
from tabi.errors import AuthError, DialError, PolicyDenied, ProxyError
from tabi.policy.guard import allow_any_address
from tabi.policy.pool import Member, Pool
from tabi.wire.address import Address, parse_address


def test_one_connection_for_all(run_once: Run, tmp_path: Path) -> None:
    """Those who come at once wait for the same one, and who comes later has it at once."""

    async def main() -> None:
        async with target() as port, ssh_egress(tmp_path) as (server, egress):
            there = Address("localhost", port)
            for _ in range(2):
                streams = await asyncio.gather(*(egress.open(there, allow_any_address) for _ in range(50)))
                for stream in streams:
                    await exchange(stream)
                    stream.close()
            assert len(server.connections) == 1
            await until(lambda: not link_of(egress).channels)

    run_once(main)


def test_a_lost_connection_resets_its_channels_and_the_next_request_opens_another(run: Run, tmp_path: Path) -> None:
    """Nobody takes it for an orderly end."""

    async def main() -> None:
        async with target() as port, ssh_egress(tmp_path) as (server, egress):
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


# --- what it is asked for ---


def test_the_guard_is_asked_and_names_are_the_servers(run_once: Run, tmp_path: Path) -> None:
    """Addresses of inner networks are refused here; a name goes as it is."""
    asked: list[tuple[str, int]] = []

    def accept(server: Any, host: str, port: int) -> bool:
        asked.append((host, port))
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "x")

    async def main() -> None:
        async with ssh_egress(tmp_path, accept) as (_, egress):
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


def test_a_server_that_refuses_is_not_asked_again_at_once(run_once: Run, tmp_path: Path) -> None:
    """It might shut us out for good; who comes meanwhile is told the same, and a while later it is tried again."""

    async def main() -> None:
        async with target() as port, ssh_egress(tmp_path, password="hunter2!") as (server, egress):
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


def test_who_leaves_does_not_take_the_attempt_along(run_once: Run, tmp_path: Path) -> None:
    """The others get their connection, and it is one."""

    async def main() -> None:
        async with target() as port, ssh_egress(tmp_path) as (server, egress):
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


def test_a_ping_logs_in_and_leaves(run_once: Run, tmp_path: Path) -> None:
    """The connection that it opened serves the next request; a wrong password is an error."""

    async def main() -> None:
        async with ssh_egress(tmp_path) as (server, egress):
            assert await egress.ping() == "logged in"
            assert await egress.ping() == "logged in"
            assert len(server.connections) == 1
            egress.retire()
            await until(lambda: not egress.is_alive)
        async with ssh_egress(tmp_path, password="herring") as (_, egress):
            with pytest.raises(AuthError):
                await egress.ping()

    run_once(main)


# --- the end ---


def test_a_retired_one_ends_with_its_last_channel(run_once: Run, tmp_path: Path) -> None:
    """As after a reload: what runs goes on."""

    async def main() -> None:
        async with target() as port, ssh_egress(tmp_path) as (_, egress):
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


def test_closing_ends_everything_at_once(run_once: Run, tmp_path: Path) -> None:
    """Channels are reset, and who waits for a connection that is still being opened is told."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass

    async def main() -> None:
        async with target() as port, target(silent) as nobody, ssh_egress(tmp_path) as (server, egress):
            stream = await egress.open(Address("localhost", port), allow_any_address)
            await egress.close()
            with pytest.raises(ConnectionResetError):
                await stream.receive()
            stream.close()
            other = make_egress(server, port=nobody)
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(refused(other, ProxyError, "the egress was closed"))
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
            async with target() as port, ssh_egress(tmp_path) as (server, good):
                dead = make_egress(server, port=nothing)
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
        async with (
            target(echo) as port,
            Server(f"{scheme}://127.0.0.1:0") as proxy,
            ssh_egress(tmp_path) as (_, egress),
        ):
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
        async with target() as port, ssh_egress(tmp_path) as (outer, first), ssh_server(tmp_path / "other") as server:
            second = Ssh(first, Address("127.0.0.1", server.port), "alice", "hunter2", server.keys, first.deadlines)
            async with await second.open(Address("localhost", port), allow_any_address) as stream:
                await exchange(stream, bytes(300_000))
            async with await second.open(Address("localhost", port), allow_any_address) as stream:
                outer.connections[0].abort()
                with pytest.raises(ConnectionResetError):
                    await stream.receive()
            await second.close()

    run_once(main)
