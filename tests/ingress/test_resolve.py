"""RESOLVE and RESOLVE_PTR: who may ask, what is answered, by whom, and that there is nothing of it by default."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from doubles import FakeResolver, client_from, greet, read_reply, reset, until
from name_servers import Zone, udp_server
from support import client, closed_port, request, target
from tabi import Server, Session
from tabi.config import make_config
from tabi.errors import DialError
from tabi.wire.address import Address, decode_address
from tabi.wire.socks5 import Command

RESOLVE, RESOLVE_PTR = Command.RESOLVE, Command.RESOLVE_PTR
OUTSIDE = "203.0.113.9"
ON = [{"url": "mixed://127.0.0.1:0", "resolve_commands": True}]
NAMES = {
    "four.test": ["93.184.216.4"],
    "six.test": ["2606:4700::6"],
    "both.test": ["2606:4700::1", "93.184.216.1"],
    "inner.test": ["93.184.216.5", "10.0.0.5"],
}


class FullResolver(FakeResolver):
    """One that knows names of addresses too."""

    def __init__(self, names: Mapping[str, Sequence[str] | Exception], called: Mapping[str, str]) -> None:
        super().__init__(names)
        self.called = dict(called)

    async def reverse(self, address: IPv4Address | IPv6Address) -> str:
        self.asked.append(str(address))
        await self.answering.wait()
        if str(address) not in self.called:
            raise DialError(f"{address}: no name", 4)
        return self.called[str(address)]


class Place:
    """A server and the sessions that ended at it."""

    def __init__(self, resolver: Any = None, **parts: Any) -> None:
        self.resolver = resolver or FullResolver(
            NAMES, {"93.184.216.4": "four.test", "2606:4700::6": "six.test", "10.0.0.5": "secret.internal"}
        )
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        config = make_config({"log": {"access": "none"}, "listen": ON, **parts})
        self.server = Server(config=config, resolver=self.resolver, on_close=self.ended.put_nowait)

    async def ask(self, command: int, host: str, source: str | None = None) -> tuple[int, Address | None]:
        """What a client is answered: the reply's code, and BND of a success. The end must follow."""
        opened = client(self.server.addresses[0]) if source is None else client_from(self.server, source)
        async with opened as streams:
            return await ask(streams, command, host)


async def ask(streams: Any, command: int, host: str) -> tuple[int, Address | None]:
    """The same on a connection that is there."""
    reader, writer = streams
    assert await greet(streams) == 0
    writer.write(request(host, 0, command))
    reply_code, octets = await read_reply(reader)
    found = decode_address(octets, 0)
    assert found is not None
    assert await reader.read() == b""
    return reply_code, None if reply_code else found[0]


@contextlib.asynccontextmanager
async def running(resolver: Any = None, **parts: Any) -> AsyncIterator[Place]:
    """Run one."""
    place = Place(resolver, **parts)
    async with place.server:
        yield place


@pytest.mark.parametrize(
    ("command", "host", "answer"),
    [
        (RESOLVE, "four.test", "93.184.216.4"),
        (RESOLVE, "six.test", "2606:4700::6"),
        (RESOLVE, "both.test", "93.184.216.1"),
        (RESOLVE, "93.184.216.9", "93.184.216.9"),
        (RESOLVE, "2606:4700::9", "2606:4700::9"),
        (RESOLVE, "0x7f.1", "127.0.0.1"),
        (RESOLVE_PTR, "93.184.216.4", "four.test"),
        (RESOLVE_PTR, "::ffff:93.184.216.4", "four.test"),
        (RESOLVE_PTR, "2606:4700::6", "six.test"),
    ],
)
def test_one_answer_and_the_end(run: Run, command: int, host: str, answer: str) -> None:
    """A success, the answer as BND with port 0, and the server ends; the session has it all."""

    async def main() -> None:
        async with running() as place:
            reply_code, found = await place.ask(command, host)
            assert reply_code == 0
            assert found is not None
            assert (str(found.host), found.port) == (answer, 0)
            session = await place.ended.get()
            assert (session.reply_code, session.close, session.error) == (0, "server", None)
            assert session.command == ("resolve" if command == RESOLVE else "resolve_ptr")
            assert (session.address, session.via) == (found, "direct")
            assert session.connect_seconds is not None

    run(main)


@pytest.mark.parametrize(
    ("command", "host", "reply_code"),
    [
        (RESOLVE, "unknown.test", 4),
        (RESOLVE, "1.2.3.4.5", 4),
        (RESOLVE_PTR, "93.184.216.9", 4),
        (RESOLVE_PTR, "four.test", 8),
    ],
)
def test_what_has_no_answer(run: Run, command: int, host: str, reply_code: int) -> None:
    """Unknown names and addresses are 04, what is no address has no name to ask for: 08."""

    async def main() -> None:
        async with running() as place:
            assert await place.ask(command, host) == (reply_code, None)
            session = await place.ended.get()
            assert (session.reply_code, session.close, session.address) == (reply_code, "error", None)
            assert session.error is not None
            assert session.error.startswith(host)

    run(main)


@pytest.mark.parametrize("command", [RESOLVE, RESOLVE_PTR])
def test_nothing_is_answered_unless_it_is_wanted(run: Run, command: int) -> None:
    """By default they are unknown commands like all others, and nobody is asked anything."""

    async def main() -> None:
        async with running(listen=[{"url": "socks5://127.0.0.1:0"}]) as place:
            assert await place.ask(command, "93.184.216.4") == (7, None)
            session = await place.ended.get()
            assert (session.command, session.error) == (str(int(command)), f"command {command:#04x} is not supported")
            assert place.resolver.asked == []

    run(main)


def test_other_commands_stay_what_they_are(run: Run) -> None:
    """An unknown one is 07, and CONNECT connects; SOCKS4 has none of this."""

    async def main() -> None:
        async with running() as place, target() as port:
            for command in (0, 4, 0xEF, 0xF2, 0xFF):
                assert await place.ask(command, "93.184.216.4") == (7, None)
            async with client(place.server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer)) == 0
                writer.write(request("127.0.0.1", port))
                assert (await read_reply(reader))[0] == 0
            async with client(place.server.addresses[0]) as (reader, writer):
                writer.write(b"\x04\xf0\0\0\0\0\0\x01\0four.test\0")
                assert (await reader.read())[1] == 91
            assert place.resolver.asked == []

    run(main)


@pytest.mark.parametrize(
    ("prefer", "answer"), [("any", "93.184.216.1"), ("ipv4", "93.184.216.1"), ("ipv6", "2606:4700::1")]
)
def test_which_of_several_addresses(run_once: Run, prefer: str, answer: str) -> None:
    """The one that the resolver prefers; where it prefers none, IPv4."""

    async def main() -> None:
        zone = Zone(NAMES)
        async with udp_server(zone) as port:
            config = make_config(
                {
                    "log": {"access": "none"},
                    "listen": ON,
                    "resolver": {"servers": [f"127.0.0.1:{port}"], "prefer": prefer},
                }
            )
            ended: asyncio.Queue[Session] = asyncio.Queue()
            async with Server(config=config, on_close=ended.put_nowait) as server:
                async with client(server.addresses[0]) as streams:
                    found = await ask(streams, RESOLVE, "both.test")
                assert (await ended.get()).error is None
            assert found == (0, Address(ip_address(answer), 0))

    run_once(main)


def test_by_the_resolver_of_the_configuration(run_once: Run) -> None:
    """Its name servers, their names and addresses kept by the cache, and hosts of its own, which answer both ways."""

    async def main() -> None:
        zone = Zone(NAMES, names={"93.184.216.4": ["four.test"], "93.184.216.66": [r"evil\010.test"]})
        async with udp_server(zone) as port:
            resolver = {"servers": [f"127.0.0.1:{port}"], "hosts": {"db.internal": ["93.184.216.77"]}}
            config = make_config({"log": {"access": "none"}, "listen": ON, "resolver": resolver})
            async with Server(config=config) as server:
                for command, host, expected in (
                    (RESOLVE, "four.test", (0, "93.184.216.4")),
                    (RESOLVE_PTR, "93.184.216.4", (0, "four.test")),
                    (RESOLVE_PTR, "93.184.216.4", (0, "four.test")),
                    (RESOLVE_PTR, "93.184.216.66", (4, "")),
                    (RESOLVE_PTR, "93.184.216.99", (4, "")),
                    (RESOLVE_PTR, "93.184.216.99", (4, "")),
                    (RESOLVE_PTR, "93.184.216.77", (0, "db.internal")),
                    (RESOLVE, "db.internal", (0, "93.184.216.77")),
                    (RESOLVE_PTR, "127.0.0.1", (0, "localhost")),
                ):
                    async with client(server.addresses[0]) as streams:
                        reply_code, found = await ask(streams, command, host)
                        assert (reply_code, str(found.host) if found else "") == expected
                assert len(zone.asked) == 2 + 1 + 1 + 1

    run_once(main)


def test_a_resolver_of_a_program_that_has_no_names(run_once: Run) -> None:
    """It need not: 07, for the command is none then."""

    async def main() -> None:
        async with running(FakeResolver(NAMES)) as place:
            assert await place.ask(RESOLVE_PTR, "93.184.216.4") == (7, None)
            assert (await place.ask(RESOLVE, "four.test"))[0] == 0

    run_once(main)


@pytest.mark.parametrize(
    ("command", "host"), [(RESOLVE, "inner.test"), (RESOLVE, "10.0.0.5"), (RESOLVE_PTR, "10.0.0.5")]
)
def test_the_guard_sees_what_is_found(run: Run, command: int, host: str) -> None:
    """Clients from outside learn no inner address, and what no inner address is called: 02. Those within may."""

    async def main() -> None:
        async with running() as place:
            assert await place.ask(command, host, OUTSIDE) == (2, None)
            session = await place.ended.get()
            assert (session.close, session.address) == ("denied", None)
            assert session.error is not None
            assert session.error.startswith("guard: 10.0.0.5 is in 10.0.0.0/8")
            assert "10.0.0.5" not in place.resolver.asked
            assert (await place.ask(command, host))[0] == 0
            assert (await place.ask(RESOLVE, "four.test", OUTSIDE))[0] == 0

    run(main)


def test_rules_speak_of_the_commands(run_once: Run) -> None:
    """Each by its name; hosts as for any other; what is refused is asked of nobody."""
    rules: list[dict[str, Any]] = [
        {"name": "no-names", "action": "deny", "commands": ["resolve_ptr"], "hosts": ["93.184.216.0/24"]},
        {"name": "no-six", "action": "deny", "commands": ["resolve"], "hosts": ["six.test", "10.0.0.0/8"]},
        {"name": "connects", "action": "deny", "commands": ["connect"]},
        {"name": "silent", "action": "reset", "hosts": ["both.test"]},
    ]

    async def main() -> None:
        async with running(rule=rules) as place:
            for command, host, reply_code, rule in (
                (RESOLVE_PTR, "93.184.216.4", 2, "no-names"),
                (RESOLVE_PTR, "2606:4700::6", 0, None),
                (RESOLVE, "six.test", 2, "no-six"),
                (RESOLVE, "inner.test", 2, "no-six"),
                (RESOLVE, "four.test", 0, None),
                (1, "four.test", 2, "connects"),
            ):
                assert (await place.ask(command, host))[0] == reply_code
                assert (await place.ended.get()).rule == rule
            assert "93.184.216.4" not in place.resolver.asked
            assert "six.test" not in place.resolver.asked
            assert place.resolver.asked.count("inner.test") == 1
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await place.ask(RESOLVE, "both.test")

    run_once(main)


def test_limits_count_them(run_once: Run) -> None:
    """A question is a session: two at once are too many where one is the limit, and its lease ends with it."""

    async def main() -> None:
        async with running(limits={"connections": 1}) as place:
            place.resolver.answering.clear()
            async with client(place.server.addresses[0]) as streams:
                asking = asyncio.get_running_loop().create_task(ask(streams, RESOLVE, "four.test"))
                await until(lambda: place.resolver.asked)
                assert await place.ask(RESOLVE, "four.test") == (2, None)
                assert (await place.ended.get()).close == "limit"
                place.resolver.answering.set()
                assert (await asking)[0] == 0
            await place.ended.get()
            assert (await place.ask(RESOLVE_PTR, "93.184.216.4"))[0] == 0

    run_once(main)


def test_a_question_has_as_long_as_connecting_has(run: Run) -> None:
    """Then it is 04; nothing of it is left."""

    async def main() -> None:
        async with running(timeouts={"connect": 0.1}) as place:
            place.resolver.answering.clear()
            for command, host in ((RESOLVE, "four.test"), (RESOLVE_PTR, "93.184.216.4")):
                assert await place.ask(command, host) == (4, None)
                assert (await place.ended.get()).error == f"{host}:0: no answer within 0.1 s"

    run(main)


@pytest.mark.parametrize("gone", ["reset", "end"])
def test_a_client_that_leaves(run: Run, gone: str) -> None:
    """Before its answer, which then goes nowhere; the session is over all the same."""

    async def main() -> None:
        async with running() as place:
            place.resolver.answering.clear()
            async with client(place.server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer)) == 0
                writer.write(request("four.test", 0, RESOLVE))
                await until(lambda: place.resolver.asked)
                if gone == "reset":
                    reset(writer)
                else:
                    writer.write_eof()
                place.resolver.answering.set()
                if gone == "end":
                    assert (await read_reply(reader))[0] == 0
                session = await place.ended.get()
                assert session.command == "resolve"

    run(main)


def test_octets_behind_the_request_do_not_lose_the_answer(run: Run) -> None:
    """They are nobody's; a close with them unread would be a reset."""

    async def main() -> None:
        async with running() as place, client(place.server.addresses[0]) as (reader, writer):
            assert await greet((reader, writer)) == 0
            writer.write(request("four.test", 0, RESOLVE) + bytes(100_000))
            assert (await read_reply(reader))[0] == 0
            assert await reader.read() == b""

    run(main)


def test_users_are_asked_who_they_are(run_once: Run) -> None:
    """A listener for users answers nobody else."""

    async def main() -> None:
        users = {"alice": {"password": "secret", "plain": True}}
        async with running(users=users) as place, client(place.server.addresses[0]) as streams:
            assert await greet(streams) == 0xFF
            assert place.resolver.asked == []

    run_once(main)


# --- ways out ---


@contextlib.asynccontextmanager
async def behind(up: str, front: FullResolver, **parts: Any) -> AsyncIterator[Place]:
    """A server, all of whose ways lead through another proxy."""
    egress = {"out": {"url": up, **parts.pop("out", {})}}
    async with running(front, rule=[{"action": "allow", "via": "out"}], egress=egress, **parts) as place:
        yield place


def test_the_question_goes_where_a_connection_would(run: Run) -> None:
    """Through a proxy that resolves names, here nobody is asked: the name stays between client and proxy."""

    async def main() -> None:
        async with running() as up, behind(up.server.url, FullResolver({}, {})) as place:
            for command, host, answer in (
                (RESOLVE, "both.test", "93.184.216.1"),
                (RESOLVE_PTR, "93.184.216.4", "four.test"),
            ):
                reply_code, found = await place.ask(command, host)
                assert (reply_code, str(found and found.host)) == (0, answer)
                mine, theirs = await place.ended.get(), await up.ended.get()
                assert (mine.via, mine.address, mine.close) == ("out", found, "server")
                assert (theirs.command, theirs.address) == (mine.command, found)
            assert await place.ask(RESOLVE, "unknown.test") == (4, None)
            assert await place.ask(RESOLVE_PTR, "93.184.216.9") == (4, None)
            assert place.resolver.asked == []

    run(main)


def test_what_a_proxy_finds_passes_the_guard_too(run_once: Run) -> None:
    """An inner address is no answer for a client from outside, whoever has found it; nor is a name of one."""

    async def main() -> None:
        async with running() as up, behind(up.server.url, FullResolver({}, {})) as place:
            assert await place.ask(RESOLVE, "inner.test", OUTSIDE) == (0, Address(IPv4Address("93.184.216.5"), 0))
            up.resolver.names["inner.test"] = ["10.0.0.5"]
            assert await place.ask(RESOLVE, "inner.test", OUTSIDE) == (2, None)
            before = len(up.resolver.asked)
            assert await place.ask(RESOLVE_PTR, "10.0.0.5", OUTSIDE) == (2, None)
            assert len(up.resolver.asked) == before
            assert await place.ask(RESOLVE_PTR, "93.184.216.4", OUTSIDE) == (0, Address("four.test", 0))

    run_once(main)


def test_names_that_are_resolved_here_are_found_here(run_once: Run) -> None:
    """With ``resolve = "here"`` the proxy is asked nothing."""

    async def main() -> None:
        with closed_port() as dead:
            names = FullResolver(NAMES, {"93.184.216.4": "four.test"})
            async with behind(f"socks5://127.0.0.1:{dead}", names, out={"resolve": "here"}) as place:
                assert (await place.ask(RESOLVE, "four.test"))[0] == 0
                assert (await place.ask(RESOLVE_PTR, "93.184.216.4"))[0] == 0

    run_once(main)


def test_a_way_that_cannot_ask(run_once: Run) -> None:
    """A proxy that is none of SOCKS5, or does not know the commands: 07; and nobody here is asked in its place."""

    async def main() -> None:
        async with running(listen=[{"url": "mixed://127.0.0.1:0"}]) as up:
            port = up.server.addresses[0].port
            for scheme in ("http", "socks4", "socks5"):
                async with behind(f"{scheme}://127.0.0.1:{port}", FullResolver(NAMES, {})) as place:
                    for command, host in ((RESOLVE, "four.test"), (RESOLVE_PTR, "93.184.216.4")):
                        assert await place.ask(command, host) == (7, None)
                        session = await place.ended.get()
                        assert (session.via, session.close) == ("out", "error")
                    assert place.resolver.asked == []

    run_once(main)


@pytest.mark.parametrize("chain", [None, {"chain": ["block"], "resolve": "here"}])
def test_who_is_sent_nowhere_learns_nothing(run_once: Run, chain: dict[str, Any] | None) -> None:
    """By the egress ``block``: 02, and nobody is asked."""

    async def main() -> None:
        egress = {} if chain is None else {"out": chain}
        rule = [{"action": "allow", "via": "block" if chain is None else "out"}]
        async with running(rule=rule, egress=egress) as place:
            assert await place.ask(RESOLVE, "four.test") == (2, None)
            assert await place.ask(RESOLVE_PTR, "93.184.216.4") == (2, None)
            assert place.resolver.asked == []

    run_once(main)


def test_a_pool_asks_a_member_that_can(run_once: Run) -> None:
    """Members that cannot are passed over, and are not out for it."""

    async def main() -> None:
        async with running() as up, running(listen=[{"url": "mixed://127.0.0.1:0"}]) as other:
            members = [other.server.url, f"http://127.0.0.1:{other.server.addresses[0].port}", up.server.url]
            rule = [{"action": "allow", "via": "pool"}]
            async with running(FullResolver({}, {}), rule=rule, egress={"pool": {"members": members}}) as place:
                for _ in range(4):
                    assert (await place.ask(RESOLVE, "four.test"))[0] == 0
                    session = await place.ended.get()
                    assert session.member == up.server.urls[0].replace("mixed", "socks5")
                assert place.resolver.asked == []

    run_once(main)


async def reply_with(octets: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A proxy that gives one answer to everything."""
    await reader.readexactly(3)
    writer.write(b"\x05\x00")
    await reader.readexactly(4)
    writer.write(octets)
    await reader.read()


@pytest.mark.parametrize(
    ("command", "octets", "reply_code"),
    [
        (RESOLVE, b"\x05\0\0\x03\x09name.test\0\0", 1),
        (RESOLVE, b"\x05\0\0\x01\x0a\0\0\x05\0\0", 2),
        (RESOLVE_PTR, b"\x05\0\0\x01\x5d\xb8\xd8\x01\0\0", 4),
        (RESOLVE_PTR, b"\x05\0\0\x03\x07<a>.com\0\0", 4),
        (RESOLVE_PTR, b"\x05\0\0\x03\x07a b.com\0\0", 1),
        (RESOLVE_PTR, b"\x05\0\0\x03\0\0\0", 1),
        (RESOLVE_PTR, b"\x05\x09\0\x01\0\0\0\0\0\0", 1),
    ],
)
def test_a_proxy_whose_answer_is_none(run_once: Run, command: int, octets: bytes, reply_code: int) -> None:
    """It is passed on to nobody, and the connection to the proxy is closed."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reply_with(octets, reader, writer)
            ended.set()

        ended = asyncio.Event()
        async with target(serve) as port, behind(f"socks5://127.0.0.1:{port}", FullResolver({}, {})) as place:
            host = "four.test" if command == RESOLVE else "93.184.216.4"
            assert await place.ask(command, host, OUTSIDE) == (reply_code, None)
            await ended.wait()

    run_once(main)


def test_the_line_in_the_access_log(run_once: Run, tmp_path: Path) -> None:
    """Command, what was asked, and the answer."""
    path = tmp_path / "access.log"

    async def main() -> None:
        async with running(log={"access": str(path)}) as place:
            await place.ask(RESOLVE, "four.test")
            await place.ask(RESOLVE_PTR, "93.184.216.4")

    run_once(main)
    first, second = map(json.loads, path.read_text().splitlines())
    keys = ("command", "host", "port", "address", "reply", "close")
    assert [first[key] for key in keys] == ["resolve", "four.test", 0, "93.184.216.4:0", 0, "server"]
    assert [second[key] for key in keys] == ["resolve_ptr", "93.184.216.4", 0, "four.test:0", 0, "server"]
    assert first["connect_ms"] is not None
