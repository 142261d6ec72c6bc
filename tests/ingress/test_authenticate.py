"""Checking passwords: hashes hold nobody up, proven pairs are remembered, and foreign code may fail."""

from __future__ import annotations

import asyncio
import logging
import threading

import msgspec
import pytest

from conftest import Run
from doubles import LOOPBACK, Scene, ask_for, config, end_of, greet
from support import client, credentials, target
from tabi import Server, Session
from tabi.config import Listen, User
from tabi.ingress.authenticate import PasswordAuthenticator
from tabi.policy.users import Users, make_hash, parse_hash, plain_secret

HASH = make_hash(b"secret")


class Counted(Users):
    """Users that count how often a password is really checked, and where, and can be held up there."""

    def __init__(self) -> None:
        super().__init__({"alice": parse_hash(HASH), "bob": plain_secret("plain")})
        self.checks: list[str] = []
        self.going_on = threading.Event()
        self.going_on.set()

    def verify(self, username: bytes, password: bytes) -> str | None:
        self.checks.append(threading.current_thread().name)
        if self.is_slow(username):
            self.going_on.wait(10)
        return super().verify(username, password)


def test_a_hash_is_computed_in_a_thread_of_its_own_pool(run: Run) -> None:
    """A hash takes tens of milliseconds: never in the loop's thread. A plain password is compared at once."""

    async def main() -> None:
        users = Counted()
        check = PasswordAuthenticator(users)
        assert await check(b"alice", b"secret", "127.0.0.1") == "alice"
        assert await check(b"bob", b"plain", "127.0.0.1") == "bob"
        assert await check(b"bob", b"wrong", "127.0.0.1") is None
        await check.close()
        assert [name.startswith("tabi-hash") for name in users.checks] == [True, False, False]

    run(main)


def test_a_proven_pair_is_not_hashed_again(run: Run) -> None:
    """Each connection of a browser brings the same pair: it is hashed once. A wrong one is hashed every time."""

    async def main() -> None:
        users = Counted()
        check = PasswordAuthenticator(users)
        for _ in range(3):
            assert await check(b"alice", b"secret", "127.0.0.1") == "alice"
        assert len(users.checks) == 1
        for _ in range(2):
            assert await check(b"alice", b"Secret", "127.0.0.1") is None
        assert len(users.checks) == 3
        await check.close()

    run(main)


def test_a_hash_under_way_holds_nobody_up(run: Run) -> None:
    """While a hash is computed, other sessions come and go, with plain passwords and proven pairs too."""

    async def main() -> None:
        users = Counted()
        check = PasswordAuthenticator(users)
        assert await check(b"alice", b"secret", "127.0.0.1") == "alice"
        users.going_on.clear()
        async with asyncio.TaskGroup() as tasks:
            slow = [tasks.create_task(check(b"alice", b"%d" % number, "127.0.0.1")) for number in range(100)]
            await asyncio.sleep(0)
            assert await check(b"bob", b"plain", "127.0.0.1") == "bob"
            assert await check(b"alice", b"secret", "127.0.0.1") == "alice"
            assert not any(task.done() for task in slow)
            for task in slow[2:]:
                task.cancel()
            users.going_on.set()
            assert [await task for task in slow[:2]] == [None, None]
        await check.close()

    run(main)


def test_a_hash_that_nobody_waits_for_is_not_begun(run: Run) -> None:
    """Who gives up while waiting for a thread costs no hash."""

    async def main() -> None:
        users = Counted()
        check = PasswordAuthenticator(users)
        users.going_on.clear()
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(check(b"alice", b"%d" % number, "127.0.0.1")) for number in range(20)]
            await asyncio.sleep(0)
            for task in waiting:
                task.cancel()
        users.going_on.set()
        await check.close()
        assert len(users.checks) <= 2

    run(main)


def test_a_server_with_hashed_users_serves_others_meanwhile(run: Run) -> None:
    """From outside: a session goes through while many hashes are under way; the right password is let in after all."""

    async def main() -> None:
        listen = Listen(LOOPBACK, users="optional")
        users = {"alice": User(HASH)}
        async with Server(config=msgspec.structs.replace(config(listen), users=users)) as server, target() as port:
            async with asyncio.TaskGroup() as tasks:

                async def log_in(password: bytes) -> bytes:
                    async with client(server.addresses[0]) as (reader, writer):
                        assert await greet((reader, writer), b"\x02") == 2
                        writer.write(credentials(b"alice", password))
                        return await reader.readexactly(2)

                logins = [tasks.create_task(log_in(password)) for password in [b"wrong"] * 8 + [b"secret"]]
                while server.parts.authenticator is None or server.parts.authenticator.hashers is None:
                    await asyncio.sleep(0)
                assert await ask_for(server, "127.0.0.1", port) == 0
                assert not all(task.done() for task in logins)
            assert [await task for task in logins] == [b"\x01\x01"] * 8 + [b"\x01\x00"]

    run(main)


def test_a_slow_authenticate_holds_up_only_its_own_session(run: Run) -> None:
    """While the embedding program thinks about one client, another is served; the first is answered in the end."""

    async def main() -> None:
        async with Scene() as scene:
            reader, _ = await scene.bring_to("authenticating")
            await scene.bring_to("relay")
            scene.doorman.answering.set()
            assert await reader.readexactly(2) == b"\x01\x00"

    run(main)


@pytest.mark.parametrize("fault", [ZeroDivisionError, ConnectionResetError, TimeoutError, OSError])
def test_an_authenticate_that_raises_lets_nobody_in(
    run: Run, caplog: pytest.LogCaptureFixture, fault: type[Exception]
) -> None:
    """A fault of the embedding program refuses the client as a wrong password does, and is in the log as a fault."""

    async def fail(username: str, password: str, client: str) -> str | None:
        raise fault

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, authenticate=fail, on_close=ended.put_nowait) as server:
            async with client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer), b"\x02") == 2
                writer.write(credentials(b"alice", b"hunter2"))
                assert await reader.read() == b"\x01\x01"
            session = await ended.get()
            assert (session.close, session.user) == ("denied", None)
            assert session.error == f"authenticate failed: {fault.__name__}"

    run(main)
    assert [(record.levelno, bool(record.exc_info)) for record in caplog.records] == [(logging.ERROR, True)]
    assert "hunter2" not in caplog.text


def test_an_authenticate_that_is_too_slow_is_cancelled(run: Run) -> None:
    """At the handshake's deadline the question is withdrawn, and the client gets no answer that could be a yes."""

    async def main() -> None:
        withdrawn = asyncio.Event()

        async def think(username: str, password: str, client: str) -> str | None:
            try:
                await asyncio.Event().wait()
            finally:
                withdrawn.set()
            return username

        async with (
            Server(config=config(handshake=0.2), authenticate=think) as server,
            client(server.addresses[0]) as (reader, writer),
        ):
            assert await greet((reader, writer), b"\x02") == 2
            writer.write(credentials(b"alice", b"alice"))
            await withdrawn.wait()
            assert await end_of(reader) == "end"

    run(main)


def test_authenticate_names_the_user(run: Run) -> None:
    """The name that it returns is the session's user, also where it is another one than the client gave."""

    async def rename(username: str, password: str, client: str) -> str | None:
        return f"{username}@{client}"

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, authenticate=rename, on_close=ended.put_nowait) as server:
            async with client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer), b"\x02") == 2
                writer.write(credentials(b"alice", b""))
                assert await reader.readexactly(2) == b"\x01\x00"
            assert (await ended.get()).user == "alice@127.0.0.1"

    run(main)
