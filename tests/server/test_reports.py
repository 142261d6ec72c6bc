"""What a worker answers when it is asked about itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from conftest import Run
from doubles import until
from support import target
from tabi import Proxy, Server
from tabi.config import make_config
from tabi.server import reports as module
from tabi.server.channel import Channel, make_channel
from tabi.server.reports import AT_A_TIME, Reports, as_text, encode
from tabi.wire.address import Address

LISTEN = "mixed://127.0.0.1:0"


@asynccontextmanager
async def reporting(server: Server) -> AsyncIterator[tuple[Reports, Channel]]:
    """The reports of a server, and the supervisor's end."""
    ours, theirs = make_channel()
    reports = Reports(server, theirs)
    try:
        yield reports, ours
    finally:
        await reports.close()
        assert not reports.tasks
        ours.close()
        theirs.close()


async def answer(channel: Channel) -> dict[str, Any]:
    """The next one, with its number."""
    async with asyncio.timeout(10):
        while (message := channel.next_message()) is None:
            await asyncio.sleep(0)
    (file,) = message.fds
    body = msgspec.json.decode(os.pread(file, 1 << 24, 0))
    os.close(file)
    return {"id": message.body["told"], **body}


async def ask(reports: Reports, channel: Channel, about: str, **question: Any) -> Any:
    """What is answered."""
    reports.ask({"id": 3, "about": about, **question})
    found = await answer(channel)
    assert found["id"] == 3
    return found["ok"]


def test_sessions_are_listed(run_once: Run) -> None:
    """With what the access log would have; chosen by what they are, sorted, and no more than asked for."""

    async def main() -> None:
        users = {"alice": "secret", "bob": "secret"}
        async with (
            target() as port,
            Server(LISTEN, users=users) as server,
            reporting(server) as (reports, channel),
            Proxy(f"socks5://alice:secret@{server.addresses[0]}").connect("127.0.0.1", port) as one,
            Proxy(f"socks5://bob:secret@{server.addresses[0]}").connect("localhost", port),
        ):
            await one.send_all(b"12345")
            assert await one.receive() == b"12345"

            async def users_of(**question: Any) -> list[str]:
                return [row["user"] for row in (await ask(reports, channel, "sessions", **question))["sessions"]]

            found = await ask(reports, channel, "sessions", filter={"user": "alice"})
            (row,) = found["sessions"]
            assert found["matching"] == 1
            assert row["id"].startswith(server.parts.prefix)
            assert (row["up"], row["down"], row["host"], row["port"]) == (5, 5, "127.0.0.1", port)
            assert (row["protocol"], row["command"], row["via"]) == ("socks5", "connect", "direct")
            assert sorted(await users_of()) == ["alice", "bob"]
            assert await users_of(sort="octets", limit=1) == ["alice"]
            assert await users_of(sort="seconds") == ["alice", "bob"]
            assert await users_of(filter={"host": "localhost"}) == ["bob"]
            assert await users_of(filter={"id": row["id"]}) == ["alice"]
            assert sorted(await users_of(filter={"client": "127.0.0.1", "command": "connect"})) == ["alice", "bob"]
            assert await users_of(filter={"user": "alice", "host": "localhost"}) == []
            assert await users_of(filter={"rule": "none"}) == []
            assert await users_of(filter={"search": "ali"}) == ["alice"]
            assert await users_of(filter={"search": "localh", "user": "bob"}) == ["bob"]
            assert await users_of(filter={"search": "nothing"}) == []
            assert (await ask(reports, channel, "sessions", limit=0)) == {"sessions": [], "matching": 2}

    run_once(main)


def test_sessions_are_ended(run_once: Run) -> None:
    """Those that match, and their clients notice."""

    async def main() -> None:
        async with (
            target() as port,
            Server(LISTEN) as server,
            reporting(server) as (reports, channel),
            Proxy(server.url).connect("127.0.0.1", port) as one,
            Proxy(server.url).connect("localhost", port) as other,
        ):
            assert await ask(reports, channel, "kick", filter={"host": "localhost"}) == {"ended": 1}
            with contextlib.suppress(OSError):
                assert not await other.receive()
            await one.send_all(b"x")
            assert await one.receive() == b"x"
            assert await ask(reports, channel, "kick", all=True) == {"ended": 1}
            await until(lambda: not server.sessions())

    run_once(main)


def test_users_with_limits(run_once: Run) -> None:
    """What they have in use, and what they may: figures that JSON has, whatever the limits are written as."""

    async def main() -> None:
        limits = {"quota": "1 GB/day", "connections": 100, "bandwidth": "80 Mbit/s", "max_session": "1 h"}
        config = make_config(
            {
                "users": {"alice": {"password": "secret", "plain": True, "limits": limits}},
                "limits": {"connections": 1000},
                "log": {"access": "none"},
            }
        )
        async with (
            target() as port,
            Server(LISTEN, config=config) as server,
            reporting(server) as (reports, channel),
            Proxy(f"socks5://alice:secret@{server.addresses[0]}").connect("127.0.0.1", port) as stream,
        ):
            await stream.send_all(b"12345")
            assert await stream.receive() == b"12345"
            found = await ask(reports, channel, "users")
            assert found["users"] == {"alice": {"sessions": 1, "up": 5, "down": 5}}
            accounts = {row.pop("name"): row for row in found["accounts"]}
            alice = accounts["user alice"]
            assert alice == {
                "sessions": 1,
                "connections": 100,
                "bandwidth": 10_000_000,
                "quota": "1 GB/day",
                "quota_octets": 1_000_000_000,
                "used": alice["used"],
            }
            assert alice["used"] >= 10
            assert accounts["server"]["connections"] == 1000
            assert accounts["server"]["quota"] is None

    run_once(main)


def test_users_are_bounded(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may know any number of them: so many are shown, whatever they have."""
    monkeypatch.setattr(module, "MOST", 3)

    async def main() -> None:
        users = {f"u{number}": "x" for number in range(6)}
        limits = {name: {"password": "x", "plain": True, "limits": {"connections": 9}} for name in users}
        config = make_config({"users": limits, "log": {"access": "none"}})
        async with (
            target() as port,
            Server(LISTEN, config=config) as server,
            reporting(server) as (reports, channel),
            contextlib.AsyncExitStack() as tunnels,
        ):
            for name in [*users, "u0"]:
                proxy = Proxy(f"socks5://{name}:x@{server.addresses[0]}")
                await tunnels.enter_async_context(proxy.connect("127.0.0.1", port))
            found = await ask(reports, channel, "users")
            assert len(found["users"]) == len(found["accounts"]) == 3

    run_once(main)


def test_members_of_pools(run_once: Run) -> None:
    """How each is; one that is taken out gets no requests until it is brought back."""

    async def main() -> None:
        members = ["direct", "socks5://127.0.0.1:1"]
        config = make_config(
            {
                "egress": {"p": {"members": members}},
                "rule": [{"action": "allow", "via": "p"}],
                "log": {"access": "none"},
            }
        )
        async with target() as port, Server(LISTEN, config=config) as server, reporting(server) as (reports, channel):
            (direct, other) = await ask(reports, channel, "egress")
            assert (direct["pool"], direct["up"], direct["drained"], direct["trial_in"]) == ("p", True, False, None)
            where = {"pool": "p", "member": other["member"]}
            assert await ask(reports, channel, "steer", action="drain", **where) is True
            async with Proxy(server.url).connect("127.0.0.1", port):
                (direct, other) = await ask(reports, channel, "egress")
            assert (direct["up"], direct["sessions"]) == (True, 1)
            assert (other["up"], other["drained"], other["trial_in"]) == (False, True, None)
            assert await ask(reports, channel, "steer", action="undrain", **where) is True
            assert (await ask(reports, channel, "egress"))[1]["up"] is True
            assert await ask(reports, channel, "steer", action="drain", pool="p", member="none") is False
            for member in server.parts.egresses.pools[0].pool.members[1:]:
                for _ in range(3):
                    server.parts.egresses.pools[0].note_failure(member, "no answer")
            (_, other) = await ask(reports, channel, "egress")
            assert (other["up"], other["failures"], other["reason"]) == (False, 3, "no answer")
            assert 0 < other["trial_in"] <= 1

    run_once(main)


def test_metrics_and_refusals(run_once: Run) -> None:
    """As JSON has them; a refused session has the id of its line."""

    async def main() -> None:
        config = make_config({"rule": [{"action": "deny", "name": "no"}], "log": {"access": "none"}})
        async with Server(LISTEN, config=config) as server, reporting(server) as (reports, channel):
            with pytest.raises(Exception, match="not allowed"):
                async with Proxy(server.url).connect("c.test", 5):
                    pass
            await until(lambda: not server.parts.sessions.running)
            (refused,) = await ask(reports, channel, "refusals")
            assert (refused["host"], refused["rule"], refused["close"]) == ("c.test", "no", "denied")
            assert refused["id"] == f"{server.parts.prefix}{refused['number']:x}"
            found = await ask(reports, channel, "metrics")
            assert [[["action", "deny"], ["rule", "no"]], 1] in found["tabi_denied_total"]

    run_once(main)


def test_hostile_names_are_text(run_once: Run) -> None:
    """A name that is no text, or has what controls a terminal, is in the answer as JSON can have it."""

    async def main() -> None:
        async with (
            target() as port,
            Server(LISTEN) as server,
            reporting(server) as (reports, channel),
            Proxy(server.url).connect("127.0.0.1", port),
        ):
            (session,) = server.parts.sessions.running
            session.user = "\udcff\x1b]0;x\x07"
            session.destination = Address('\udc80"<b>', 5)
            (row,) = (await ask(reports, channel, "sessions"))["sessions"]
            assert (row["user"], row["host"]) == ("\\udcff\x1b]0;x\x07", '\\udc80"<b>')
            assert list((await ask(reports, channel, "users"))["users"]) == ["\\udcff\x1b]0;x\x07"]

    run_once(main)


def test_what_fails_is_said(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """An error of ours is an answer too, whether it comes while looking or while it is written down."""

    async def main() -> None:
        async with Server(LISTEN) as server, reporting(server) as (reports, channel):

            async def fails(_: Any) -> Any:
                raise ZeroDivisionError

            async def unknown(_: Any) -> Any:
                return object()

            for about, error in ((fails, "ZeroDivisionError"), (unknown, "TypeError")):
                reports.about["sessions"] = about
                reports.ask({"id": 5, "about": "sessions"})
                assert await answer(channel) == {"id": 5, "error": f"internal error: {error}"}

    run_once(main)
    assert caplog.text.count("a question about sessions was not answered") == 2


def test_questions_are_bounded(run_once: Run) -> None:
    """Further ones are refused at once; those that wait end with the server."""

    async def main() -> None:
        async with Server(LISTEN) as server, reporting(server) as (reports, channel):

            async def waits(_: Any) -> Any:
                await asyncio.Event().wait()

            reports.about["sessions"] = waits
            for number in range(AT_A_TIME + 2):
                reports.ask({"id": number, "about": "sessions"})
            assert len(reports.tasks) == AT_A_TIME
            for number in (AT_A_TIME, AT_A_TIME + 1):
                found = await answer(channel)
                assert found == {"id": number, "error": "too many questions at once, try again later"}

    run_once(main)


def test_names_that_are_no_text_are_escaped() -> None:
    """Wherever they stand; what is text is encoded as it is."""
    assert encode({"a": "é"}) == b'{"a":"\xc3\xa9"}'
    assert encode({"a\udcff": ["\udc80", 1, None]}) == b'{"a\\\\udcff":["\\\\udc80",1,null]}'
    assert as_text(("\udc80",)) == ["\\udc80"]
    assert module.MOST == 10_000
