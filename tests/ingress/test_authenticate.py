"""Checking passwords: hashes hold nobody up, proven pairs are remembered, and foreign code may fail."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from conftest import Run
from doubles import LOOPBACK, Scene, ask_for, config, end_of, greet, highest_descriptor, read_reply, reset, until
from support import client, credentials, request, target
from tabi import Login, Proxy, ProxyError, Server, Session, User
from tabi.config import LimitsConfig, Listen, RuleConfig
from tabi.config import UserConfig as config_user
from tabi.ingress import authenticate as module
from tabi.ingress.authenticate import Answer, PasswordAuthenticator, TooManyLogins
from tabi.policy.users import Secret, Users, derive, make_hash, plain_secret
from tabi.wire.address import Address

HASH = make_hash(b"secret")
CHEAP = Secret(1, 1, 1, b"salt", bytes(32))
CHEAP = CHEAP._replace(key=derive(b"secret", CHEAP))
MIXED = {"alice": CHEAP, "bob": plain_secret("plain")}


def login(username: str, password: str, host: str = "127.0.0.1") -> Login:
    """A login from this machine."""
    return Login(username, password, Address(ip_address(host), 40000))


class Counted(Users):
    """Users that note each password that is really checked, and where, and can be held up there."""

    def __init__(self, secrets: Mapping[str, Secret] = MIXED) -> None:
        super().__init__(secrets)
        self.threads: list[str] = []
        self.checks: list[bytes] = []
        self.going_on = threading.Event()
        self.going_on.set()

    def verify(self, username: bytes, password: bytes) -> str | None:
        self.threads.append(threading.current_thread().name)
        self.checks.append(password)
        if self.is_slow:
            self.going_on.wait(10)
        return super().verify(username, password)


async def answer(check: PasswordAuthenticator, asked: Login) -> Answer:
    """What an authenticator says, awaited if needed."""
    found = check(asked)
    return await found if isinstance(found, Awaitable) else found


@asynccontextmanager
async def checking(users: Users) -> AsyncIterator[PasswordAuthenticator]:
    """An authenticator of these users."""
    check = PasswordAuthenticator(users)
    try:
        yield check
    finally:
        await check.close()


@asynccontextmanager
async def held(
    users: Counted, count: int = 2
) -> AsyncIterator[tuple[PasswordAuthenticator, list[asyncio.Task[Answer]]]]:
    """An authenticator whose threads are held up by as many logins, until ``going_on`` is set."""
    async with checking(users) as check, asyncio.TaskGroup() as tasks:
        users.going_on.clear()
        try:
            begun = [
                tasks.create_task(answer(check, login("nobody", str(number), "127.0.0.9"))) for number in range(count)
            ]
            await until(lambda: len(users.checks) == count)
            yield check, begun
        finally:
            users.going_on.set()


def is_unused(check: PasswordAuthenticator) -> bool:
    """Whether nothing waits, and nothing is kept of what has waited."""
    return not (check.checks or check.queue.lines or check.queue.counts or check.running)


def test_a_hash_is_computed_in_a_thread_of_its_own_pool(run: Run) -> None:
    """A hash takes tens of milliseconds: never in the loop's thread. Other names take as long where there is a hash."""

    async def main() -> None:
        users = Counted()
        async with checking(users) as check:
            assert await answer(check, login("alice", "secret")) == "alice"
            assert await answer(check, login("bob", "plain")) == "bob"
            assert await answer(check, login("bob", "wrong")) is None
            assert await answer(check, login("nobody", "plain")) is None
        assert [name.startswith("tabi-hash") for name in users.threads] == [True] * 4

    run(main)


def test_plain_passwords_are_compared_at_once(run: Run) -> None:
    """Where there is no hash nothing is awaited."""

    async def main() -> None:
        async with checking(Users.plain({"bob": "plain"})) as check:
            assert check(login("bob", "plain")) == "bob"
            assert check(login("bob", "wrong")) is None
            assert check.hashers is None

    run(main)


def test_a_proven_pair_is_not_hashed_again(run: Run) -> None:
    """Each connection of a browser brings the same pair: it is hashed once. A wrong one is hashed every time."""

    async def main() -> None:
        users = Counted()
        async with checking(users) as check:
            for _ in range(3):
                assert await answer(check, login("alice", "secret")) == "alice"
            assert len(users.checks) == 1
            for _ in range(2):
                assert await answer(check, login("alice", "Secret")) is None
            assert len(users.checks) == 3

    run(main)


def test_proofs_outlive_a_reload(run: Run) -> None:
    """A reload does not have all users hashed at once: only who has another password, or is gone, is looked at."""

    async def main() -> None:
        async with checking(Counted()) as check:
            assert await answer(check, login("alice", "secret")) == "alice"
            assert await answer(check, login("bob", "plain")) == "bob"
            check.users = users = Counted(MIXED | {"bob": plain_secret("other")})
            assert await answer(check, login("alice", "secret")) == "alice"
            assert not users.checks
            assert await answer(check, login("bob", "plain")) is None
            check.users = Counted({"carol": plain_secret("x"), "dave": CHEAP})
            assert await answer(check, login("alice", "secret")) is None
            check.users = Users({})
            assert await answer(check, login("alice", "secret")) is None

    run(main)


def test_a_reload_while_a_login_waits(run: Run) -> None:
    """What is stored at the end counts: nobody gets in by a password that a reload has replaced."""

    async def main() -> None:
        users = Counted()
        async with held(users) as (check, _), asyncio.TaskGroup() as tasks:
            names = ("alice", "bob", "carol")
            found = [tasks.create_task(answer(check, login(name, "secret"))) for name in names]
            await until(lambda: len(check.queue) == 3)
            later = {"alice": plain_secret("other"), "bob": plain_secret("secret"), "carol": CHEAP}
            check.users = Users(later)
            users.going_on.set()
            assert [await one for one in found] == [None, "bob", "carol"]
            again = tasks.create_task(answer(check, login("alice", "secret")))
            await asyncio.sleep(0)
            assert check.running == 1
            check.users = Users.plain({"alice": "secret"})
            assert await again == "alice"

    run(main)


def test_a_hash_under_way_holds_nobody_up(run: Run) -> None:
    """While a hash is computed, other sessions come and go, with proven pairs too."""

    async def main() -> None:
        users = Counted()
        async with checking(users) as check:
            assert await answer(check, login("alice", "secret")) == "alice"
            users.going_on.clear()
            async with asyncio.TaskGroup() as tasks:
                slow = [tasks.create_task(answer(check, login("alice", str(number)))) for number in range(100)]
                await asyncio.sleep(0)
                assert await answer(check, login("alice", "secret")) == "alice"
                assert not any(task.done() for task in slow)
                for task in slow[2:]:
                    task.cancel()
                users.going_on.set()
                assert [await task for task in slow[:2]] == [None, None]
            assert is_unused(check)

    run(main)


def test_a_hash_that_nobody_waits_for_is_not_begun(run: Run) -> None:
    """Who gives up while waiting for a thread costs no hash, and leaves nothing behind."""

    async def main() -> None:
        users = Counted()
        async with held(users) as (check, _):
            async with asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(answer(check, login("alice", str(number)))) for number in range(20)]
                waiting += [tasks.create_task(answer(check, login("alice", "19"))) for _ in range(5)]
                await until(lambda: len(check.queue) == 20)
                for task in waiting:
                    task.cancel()
            assert (len(check.checks), len(check.queue)) == (2, 0)
        assert len(users.checks) == 2
        assert is_unused(check)

    run(main)


def test_equal_pairs_are_hashed_once(run: Run) -> None:
    """However many logins of a user come at once, from wherever: one proof serves all that wait for it."""

    async def main() -> None:
        users = Counted()
        async with held(users, 1) as (check, _), asyncio.TaskGroup() as tasks:
            hosts = ["127.0.0.1", "127.0.0.2"]
            found = [tasks.create_task(answer(check, login("alice", "secret", host))) for host in hosts * 200]
            wrong = [tasks.create_task(answer(check, login("alice", "wrong", host))) for host in hosts * 5]
            await until(lambda: len(users.checks) == 2)
            assert len(check.queue) == 1
            users.going_on.set()
            assert [await one for one in found] == ["alice"] * 400
            assert [await one for one in wrong] == [None] * 10
        assert sorted(users.checks) == [b"0", b"secret", b"wrong"]
        assert is_unused(check)

    run(main)


@pytest.mark.parametrize(
    ("guessers", "name"),
    [(["127.0.0.9"], "nobody"), (["127.0.0.9"], "alice"), ([f"2001:db8::{one:x}" for one in range(100)], "alice")],
)
def test_addresses_have_their_turns(run: Run, guessers: list[str], name: str) -> None:
    """Who guesses, be it from all addresses of a /64, delays another address by one hash. The newest is first."""

    async def main() -> None:
        users = Counted()
        async with held(users) as (check, _), asyncio.TaskGroup() as tasks:
            for number in range(100):
                tasks.create_task(answer(check, login(name, f"guess{number}", guessers[number % len(guessers)])))
            right = tasks.create_task(answer(check, login("alice", "secret", "127.0.0.3")))
            await until(lambda: len(check.queue) == 101)
            users.going_on.set()
            assert await right == "alice"
            assert b"secret" in users.checks[2:4]
            await until(lambda: len(users.checks) > 10)
            assert {b"guess99", b"guess98"} < set(users.checks[2:10])

    run(main)


def test_a_thread_stays_free_for_addresses_without_a_wrong_password(run: Run) -> None:
    """Who guesses, and vanishes before the answer, takes one core, and others need not even wait for that hash."""

    async def main() -> None:
        users = Counted()
        async with held(users) as (check, begun), asyncio.TaskGroup() as tasks:
            for one in begun:
                one.cancel()
            users.going_on.set()
            await until(lambda: not check.running)
            users.going_on.clear()
            guesses = [tasks.create_task(answer(check, login("alice", f"{n}", "127.0.0.9"))) for n in range(2, 5)]
            await until(lambda: users.checks[2:] == [b"2"])
            assert (check.running, len(check.queue)) == (1, 2)
            right = tasks.create_task(answer(check, login("alice", "secret", "127.0.0.3")))
            await until(lambda: users.checks[3:] == [b"secret"])
            assert (check.running, len(check.queue)) == (2, 2)
            users.going_on.set()
            assert await right == "alice"
            assert [await one for one in guesses] == [None] * 3

    run(main)


def test_logins_of_an_address_have_a_bound(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the oldest are given up, equal ones together. Others that wait for the same pair wait on."""
    monkeypatch.setattr(module, "WAITING", 3)

    async def main() -> None:
        users = Counted()
        async with held(users) as (check, _):

            async def fail(password: str) -> str:
                with pytest.raises(TooManyLogins) as caught:
                    await answer(check, login("alice", password, "127.0.0.9"))
                return str(caught.value)

            async with asyncio.TaskGroup() as tasks:
                other = tasks.create_task(answer(check, login("alice", "old", "127.0.0.3")))
                await until(lambda: check.queue.counts)
                failing = [tasks.create_task(fail("old")) for _ in range(3)]
                failing += [tasks.create_task(fail(str(number))) for number in range(10, 30)]
                await asyncio.sleep(0)
                stay = [tasks.create_task(answer(check, login("alice", f"n{n}", "127.0.0.9"))) for n in range(3)]
                assert {await one for one in failing} == {"too many logins wait"}
                assert len(check.checks) == 2 + 4
                users.going_on.set()
                assert [await one for one in (other, *stay)] == [None] * 4
            assert set(users.checks) == {b"0", b"1", b"old", b"n0", b"n1", b"n2"}
            assert is_unused(check)

    run(main)


def test_all_logins_have_a_bound(run: Run) -> None:
    """Who guesses the same few passwords over and over gives its place up to others, whoever comes first."""

    async def main() -> None:
        users = Counted()
        async with checking(users) as check:
            check.queue.total = 20
            for _ in range(3):
                assert await answer(check, login("alice", "wrong", "127.0.0.9")) is None
            users.going_on.clear()
            async with asyncio.TaskGroup() as tasks:

                async def guess(password: str) -> None:
                    with suppress(TooManyLogins):
                        await answer(check, login("alice", password, "127.0.0.9"))

                for number in range(100):
                    tasks.create_task(guess(str(number % 3)))
                hosts = [f"127.0.1.{number}" for number in range(20)]
                right = [tasks.create_task(answer(check, login("bob", "plain", host))) for host in hosts]
                await asyncio.sleep(0)
                assert check.queue.taken <= 20
                users.going_on.set()
                assert [await one for one in right] == ["bob"] * 20
            assert is_unused(check)

    run(main)


def test_a_check_that_fails_fails_all_that_wait_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the hash cannot be computed, or no thread be begun: nobody waits for what does not come."""

    async def main() -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("no room")

        async with checking(Counted()) as check:
            for where, what in ((check.users, "verify"), (ThreadPoolExecutor, "submit")):
                asked = (answer(check, login("alice", "secret")) for _ in range(5))
                with monkeypatch.context() as patched:
                    patched.setattr(where, what, fail)
                    found = await asyncio.gather(*asked, return_exceptions=True)
                assert [str(one) for one in found] == ["a check failed: RuntimeError('no room')"] * 5
                assert is_unused(check)

    run(main)


def test_close_ends_what_waits(run: Run) -> None:
    """What is under way is waited for; all else is given up, and no thread is left."""

    async def main() -> None:
        users = Counted()
        async with held(users) as (check, begun), asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(answer(check, login("alice", "secret")))
            await until(lambda: len(check.queue) == 1)
            closing = tasks.create_task(check.close())
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.wait(begun)
            assert not closing.done()
            users.going_on.set()
            await closing
            assert is_unused(check)
        assert len(users.checks) == 2

    run(main)


@asynccontextmanager
async def serving(users: Users) -> AsyncIterator[tuple[Server, PasswordAuthenticator, asyncio.Queue[Session]]]:
    """A server of these users, what checks their passwords, and the sessions that have ended."""
    ended: asyncio.Queue[Session] = asyncio.Queue()
    settings = msgspec.structs.replace(config(Listen("mixed://127.0.0.1:0")), users={"alice": config_user(HASH)})
    async with Server(config=settings, on_close=ended.put_nowait) as server:
        check = server.parts.authenticator
        assert check is not None
        check.users = users
        yield server, check, ended


def login_octets(protocol: str, username: bytes, password: bytes) -> bytes:
    """All that a client sends until it is known."""
    if protocol == "socks5":
        return b"\x05\x01\x02" + credentials(username, password)
    pair = base64.b64encode(username + b":" + password)
    return b"CONNECT a.test:1 HTTP/1.1\r\nHost: a.test:1\r\nProxy-Authorization: Basic " + pair + b"\r\n\r\n"


PROTOCOLS = pytest.mark.parametrize("protocol", ["socks5", "http"])


@PROTOCOLS
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_resets_frees_everything_at_once(run_once: Run, protocol: str, begun: bool) -> None:
    """Its session, its descriptor and its place, while it waits for a thread and while its hash is under way."""

    async def main() -> None:
        users = Counted()
        async with serving(users) as (server, check, ended):
            users.going_on.clear()
            try:
                async with asyncio.TaskGroup() as tasks:
                    for number in range(0 if begun else 2):
                        tasks.create_task(answer(check, login("nobody", str(number), "127.0.0.9")))
                    await until(lambda: check.running == (0 if begun else 2))
                    before = highest_descriptor()
                    async with client(server.addresses[0]) as (_, writer):
                        writer.write(login_octets(protocol, b"alice", b"secret"))
                        await until(lambda: check.running == 1 if begun else len(check.queue) == 1)
                        reset(writer)
                    session = await ended.get()
                    assert (session.close, session.error, session.user) == ("reset", "the client has gone", None)
                    assert not server.parts.sessions.running
                    assert highest_descriptor() == before
                    assert not check.queue.lines
                    assert check.running == (1 if begun else 2)
                    users.going_on.set()
            finally:
                users.going_on.set()
            assert (b"secret" in users.checks) == begun

    run_once(main)


@PROTOCOLS
def test_a_client_that_has_ended_waits_for_no_thread(run_once: Run, protocol: str) -> None:
    """It may have gone, which nobody can tell. It gets its answer if it need not wait, and has its end at once else."""

    async def main() -> None:
        users = Counted()
        async with serving(users) as (server, check, ended):
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(login_octets(protocol, b"alice", b"wrong"))
                writer.write_eof()
                assert (await reader.read()).startswith(
                    b"\x05\x02\x01\x01" if protocol == "socks5" else b"HTTP/1.1 407 "
                )
                assert (await ended.get()).error == "wrong user name or password: 'alice'"
            users.going_on.clear()
            try:
                async with asyncio.TaskGroup() as tasks:
                    for number in range(2):
                        tasks.create_task(answer(check, login("nobody", str(number), "127.0.0.9")))
                    await until(lambda: check.running == 2)
                    async with client(server.addresses[0]) as (reader, writer):
                        writer.write(login_octets(protocol, b"alice", b"secret"))
                        await until(lambda: len(check.queue) == 1)
                        writer.write_eof()
                        session = await ended.get()
                        assert await end_of(reader) == "reset"
                    assert session.error == "too many logins wait, and the client has ended: 'alice'"
                    assert session.close == "limit"
                    assert not check.queue.lines
                    users.going_on.set()
            finally:
                users.going_on.set()
            assert b"secret" not in users.checks

    run_once(main)


@PROTOCOLS
@pytest.mark.parametrize(
    ("username", "shown"),
    [
        (b"alice", "'alice'"),
        ("jürgen".encode(), "'jürgen'"),
        (b"a\xff", r"'a\udcff'"),
        ("\u202eecila".encode(), r"'\u202eecila'"),
        (b"it's", '"it\'s"'),
        (b"x" * 64, repr("x" * 64)),
        (b"x" * 255, repr("x" * 64 + "…")),
    ],
)
def test_a_wrong_name_is_in_the_access_log_alone(run: Run, protocol: str, username: bytes, shown: str) -> None:
    """As part of the error, since it is nobody's name yet, in letters that can be seen, and not all of a long one. The
    answer does not repeat it."""

    async def main() -> None:
        async with serving(Users.plain({"bob": "hunter2"})) as (server, _, ended):
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(login_octets(protocol, username, b"hunter3"))
                writer.write_eof()
                assert username[:5] not in await reader.read()
            session = await ended.get()
            assert (session.user, session.close) == (None, "denied")
            assert session.error == f"wrong user name or password: {shown}"

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
