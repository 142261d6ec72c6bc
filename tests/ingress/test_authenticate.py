"""Checking passwords: hashes hold nobody up, proven pairs are remembered, and foreign code may fail."""

from __future__ import annotations

import asyncio
import logging
import threading
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

from conftest import Run
from doubles import LOOPBACK, Scene, ask_for, config, end_of, greet, read_reply
from support import client, credentials, request, target
from tabi import ConfigError, Login, Proxy, ProxyError, Server, Session, User
from tabi.config import LimitsConfig, Listen, RuleConfig
from tabi.config import UserConfig as config_user
from tabi.ingress.authenticate import PasswordAuthenticator
from tabi.policy.users import Users, make_hash, parse_hash, plain_secret
from tabi.wire.address import Address

HASH = make_hash(b"secret")


def login(username: str, password: str) -> Login:
    """A login from this machine."""
    return Login(username, password, Address(ip_address("127.0.0.1"), 40000))


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
        assert await check(login("alice", "secret")) == "alice"
        assert await check(login("bob", "plain")) == "bob"
        assert await check(login("bob", "wrong")) is None
        await check.close()
        assert [name.startswith("tabi-hash") for name in users.checks] == [True, False, False]

    run(main)


def test_a_proven_pair_is_not_hashed_again(run: Run) -> None:
    """Each connection of a browser brings the same pair: it is hashed once. A wrong one is hashed every time."""

    async def main() -> None:
        users = Counted()
        check = PasswordAuthenticator(users)
        for _ in range(3):
            assert await check(login("alice", "secret")) == "alice"
        assert len(users.checks) == 1
        for _ in range(2):
            assert await check(login("alice", "Secret")) is None
        assert len(users.checks) == 3
        await check.close()

    run(main)


def test_a_hash_under_way_holds_nobody_up(run: Run) -> None:
    """While a hash is computed, other sessions come and go, with plain passwords and proven pairs too."""

    async def main() -> None:
        users = Counted()
        check = PasswordAuthenticator(users)
        assert await check(login("alice", "secret")) == "alice"
        users.going_on.clear()
        async with asyncio.TaskGroup() as tasks:
            slow = [tasks.create_task(check(login("alice", str(number)))) for number in range(100)]
            await asyncio.sleep(0)
            assert await check(login("bob", "plain")) == "bob"
            assert await check(login("alice", "secret")) == "alice"
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
            waiting = [tasks.create_task(check(login("alice", str(number)))) for number in range(20)]
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
        users = {"alice": config_user(HASH)}
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
    """A failure of the embedding program is not a wrong password: status 02, and the traceback is in the log."""

    async def fail(login: Login) -> str | None:
        raise fault

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, authenticate=fail, on_close=ended.put_nowait) as server:
            async with client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer), b"\x02") == 2
                writer.write(credentials(b"alice", b"hunter2"))
                assert await reader.read() == b"\x01\x02"
            session = await ended.get()
            assert (session.close, session.user) == ("error", None)
            assert session.error == f"authentication failed: {fault.__name__}"

    run(main)
    assert [(record.levelno, bool(record.exc_info)) for record in caplog.records] == [(logging.ERROR, True)]
    assert "hunter2" not in caplog.text


def test_an_authenticate_that_is_too_slow_is_cancelled(run: Run) -> None:
    """At the handshake's deadline the question is withdrawn, and the client gets no answer that could be a yes."""

    async def main() -> None:
        withdrawn = asyncio.Event()

        async def think(login: Login) -> str | None:
            try:
                await asyncio.Event().wait()
            finally:
                withdrawn.set()
            return login.username

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

    async def rename(login: Login) -> str | None:
        return f"{login.username}@{login.client.host}"

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, authenticate=rename, on_close=ended.put_nowait) as server:
            async with client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer), b"\x02") == 2
                writer.write(credentials(b"alice", b""))
                assert await reader.readexactly(2) == b"\x01\x00"
            assert (await ended.get()).user == "alice@127.0.0.1"

    run(main)


def test_a_user_with_groups(run: Run) -> None:
    """A `tabi.User` may belong to groups: rules for a group hold for this session, besides the groups of the file."""
    rules = [RuleConfig(action="allow", users=["@dev", "@ops"]), RuleConfig(action="deny")]

    async def answer(login: Login) -> User | str:
        return User(login.username, groups=["ops"]) if login.username != "carol" else "carol"

    async def main() -> None:
        users = {"bob": config_user(groups=["dev"]), "carol": config_user()}
        settings = msgspec.structs.replace(config(Listen(LOOPBACK)), rule=rules, users=users)
        async with Server(config=settings, authenticate=answer) as server, target() as port:
            replies = []
            for name in ("alice", "bob", "carol"):
                async with client(server.addresses[0]) as (reader, writer):
                    assert await greet((reader, writer), b"\x02") == 2
                    writer.write(credentials(name.encode(), b"x"))
                    assert await reader.readexactly(2) == b"\x01\x00"
                    writer.write(request("127.0.0.1", port))
                    replies.append((await read_reply(reader))[0])
            assert replies == [0, 0, 2]

    run(main)


def test_a_login_tells_how_it_came(run: Run) -> None:
    """The function gets the client, the protocol and the listener; the repr hides the password. It need not await."""
    seen: list[Login] = []

    def answer(login: Login) -> None:
        seen.append(login)

    async def main() -> None:
        async with Server("mixed://127.0.0.1:0", authenticate=answer) as server:
            async with client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer), b"\x02") == 2
                writer.write(credentials(b"\xff", b"hunter2"))
                assert await reader.readexactly(2) == b"\x01\x01"
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(
                    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nProxy-Authorization: Basic YWxpY2U6aHVudGVyMg==\r\n\r\n"
                )
                assert (await reader.readline()).startswith(b"HTTP/1.1 407 ")
            first, second = seen
            assert (first.username, first.password, first.protocol) == ("\udcff", "hunter2", "socks5")
            assert (second.username, second.password, second.protocol) == ("alice", "hunter2", "http")
            assert (str(first.client.host), first.tls_identity) == ("127.0.0.1", None)
            assert first.listener == "mixed://127.0.0.1:0"
            assert "hunter2" not in repr(first) + pretty_repr(first)

    run(main)


def test_a_failure_of_authenticate_in_http(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets 503, not 407: its password may be right. The answer does not tell what failed."""

    def fail(login: Login) -> str:
        raise ValueError("the table of users is broken")

    async def main() -> None:
        server = Server("http://127.0.0.1:0", authenticate=fail)
        async with server, client(server.addresses[0]) as (reader, writer):
            writer.write(b"GET http://a/ HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic YTpi\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Proxy-Authenticate" not in head
            writer.write_eof()
            assert b"table of users" not in await reader.read()

    run(main)
    assert "the table of users is broken" in caplog.text


@pytest.mark.parametrize("answer", [7, b"alice", ("alice",)])
def test_an_answer_of_the_wrong_type(run: Run, caplog: pytest.LogCaptureFixture, answer: object) -> None:
    """What is not a name, a user or None is a failure of the program: nobody is let in, and the log says which type."""

    def wrong(login: Login) -> Any:
        return answer

    async def main() -> None:
        async with Server(LOOPBACK, authenticate=wrong) as server, client(server.addresses[0]) as (reader, writer):
            assert await greet((reader, writer), b"\x02") == 2
            writer.write(credentials(b"alice", b"x"))
            assert await reader.read() == b"\x01\x02"

    run(main)
    assert f"authenticate returned {type(answer).__name__}, expected str, tabi.User or None" in caplog.text


@pytest.mark.parametrize("function", [7, "alice", lambda: "alice", lambda username, password, client: username])
def test_an_authenticate_that_cannot_be_asked(function: Any) -> None:
    """What is not a function of one argument is refused when the server is made, also the form of earlier versions."""
    with pytest.raises(ConfigError, match=r"^authenticate: .*expected a function of one argument, a tabi.Login"):
        Server(LOOPBACK, authenticate=function)


@pytest.mark.parametrize("limits", [{"connections": 1}, LimitsConfig(connections=1)])
def test_a_user_with_limits(run: Run, limits: Any) -> None:
    """A `tabi.User` may have limits: all sessions of that user share them, and rules need not know the user."""

    async def main() -> None:
        answer = User("eve", limits=limits)
        async with Server(LOOPBACK, authenticate=lambda login: answer) as server, target() as port:
            proxy = Proxy(server.url_for("socks5").replace("://", "://eve:x@"))
            async with proxy.connect("127.0.0.1", port):
                with pytest.raises(ProxyError, match="not allowed"):
                    await proxy.connect("127.0.0.1", port)
            while server.sessions():
                await asyncio.sleep(0)
            async with proxy.connect("127.0.0.1", port):
                pass
            while server.sessions():
                await asyncio.sleep(0)

    run(main)


def test_limits_that_cannot_be_read(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """They are a failure of the program: nobody is let in without the limits that were meant."""

    async def main() -> None:
        answer = User("eve", limits={"conections": 1})
        server = Server(LOOPBACK, authenticate=lambda login: answer)
        async with server, client(server.addresses[0]) as (reader, writer):
            assert await greet((reader, writer), b"\x02") == 2
            writer.write(credentials(b"eve", b"x"))
            assert await reader.read() == b"\x01\x02"

    run(main)
    assert "limits.conections: unknown key, expected one of: connections" in caplog.text
