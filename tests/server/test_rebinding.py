"""DNS rebinding: a name whose answers change from one question to the next leads only where was checked.

The destination listens on every address of loopback and answers with the one that was dialled. The guard exempts nobody
and allows 127.0.0.2 only, so that 127.0.0.1 stands for what is secret.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from conftest import Run
from datagrams import Client, association, destination
from doubles import FakeResolver, Streams, caller, expect_reset, greet, open_bind, read_reply, until
from support import client, request, target
from tabi import Config, Decision, Server, Session
from tabi.config import GuardConfig, Listen, Log, RuleConfig
from tabi.wire.address import Address
from tabi.wire.datagram import encode_header

NAME = "rebinding.test"
OUTER, SECRET = "127.0.0.2", "127.0.0.1"

Ask = Callable[[Streams, int], Awaitable[int | str]]


class Rebinding(FakeResolver):
    """Another answer to each question, each of one address or of several; the last one for good."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers = list(answers)

    async def resolve(self, name: str) -> list[IPv4Address | IPv6Address]:
        self.asked.append(name)
        await asyncio.sleep(0)  # as a question does
        words = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [ip_address(word) for word in words.split()]


class Place:
    """A server with a resolver that rebinds, and the sessions that ended."""

    def __init__(
        self, server: Server, resolver: Rebinding, ended: asyncio.Queue[Session], config: Config, port: int
    ) -> None:
        self.server = server
        self.resolver = resolver
        self.ended = ended
        self.config = config
        self.port = port

    async def ask(self, command: str) -> int | str:
        """A request on a connection of its own: the address that answered, or the code of the refusal."""
        async with client(self.server.addresses[0]) as streams:
            return await COMMANDS[command][0](streams, self.port)


async def say_where(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests of HTTP with the address that was dialled."""
    here = writer.get_extra_info("sockname")[0].encode()
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(here), here))


@contextlib.asynccontextmanager
async def rebinding(
    *answers: str,
    rules: tuple[RuleConfig, ...] = (),
    guard: GuardConfig | None = None,
    decide: Callable[[Session], Decision | None] | None = None,
) -> AsyncIterator[Place]:
    """All of it, running."""
    resolver, ended = Rebinding(*answers), asyncio.Queue[Session]()
    config = Config(
        listen=[Listen("mixed://127.0.0.1:0")],
        log=Log("none"),
        guard=GuardConfig(allow=[OUTER], exempt=[]) if guard is None else guard,
        rule=list(rules),
    )
    server = Server(config=config, resolver=resolver, decide=decide, on_close=ended.put_nowait)
    async with target(say_where, "0.0.0.0") as port, server:
        yield Place(server, resolver, ended, config, port)


async def read_where(streams: Streams) -> str:
    """Ask, through a tunnel or as it is, who is there."""
    streams[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return str(await read_answer(streams))


async def read_answer(streams: Streams) -> int | str:
    """An answer: its content, which is an address, or the status that refuses."""
    reader = streams[0]
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    status = int(head.split()[1])
    length = int(head.partition("content-length: ")[2].split()[0])
    content = await reader.readexactly(length)
    return content.decode() if status == 200 else status


async def ask_socks5(streams: Streams, port: int) -> int | str:
    """CONNECT of SOCKS5."""
    assert await greet(streams) == 0
    streams[1].write(request(NAME, port))
    code = (await read_reply(streams[0]))[0]
    return code or await read_where(streams)


async def ask_socks4(streams: Streams, port: int) -> int | str:
    """CONNECT of SOCKS4a."""
    streams[1].write(b"\x04\x01" + port.to_bytes(2) + b"\0\0\0\x01\0" + NAME.encode() + b"\0")
    code = (await streams[0].readexactly(8))[1]
    return await read_where(streams) if code == 90 else code


async def ask_connect(streams: Streams, port: int) -> int | str:
    """CONNECT of HTTP."""
    streams[1].write(f"CONNECT {NAME}:{port} HTTP/1.1\r\nHost: {NAME}:{port}\r\n\r\n".encode())
    head = await streams[0].readuntil(b"\r\n\r\n")
    return await read_where(streams) if b" 200 " in head else int(head.split()[1])


async def ask_forward(streams: Streams, port: int) -> int | str:
    """A request of HTTP that is forwarded."""
    streams[1].write(f"GET http://{NAME}:{port}/ HTTP/1.1\r\nHost: {NAME}:{port}\r\n\r\n".encode())
    return await read_answer(streams)


COMMANDS: dict[str, tuple[Ask, int]] = {
    "socks5": (ask_socks5, 2),
    "socks4": (ask_socks4, 91),
    "http-connect": (ask_connect, 403),
    "http-forward": (ask_forward, 403),
}
"""What is asked, and the answer to who may not."""

RULES: dict[str, tuple[RuleConfig, ...]] = {
    "none": (),
    "deny": (RuleConfig("deny", "secret", [f"{SECRET}/32"]),),
    "allow": (RuleConfig("allow", "outer", [f"{OUTER}/32"]), RuleConfig("deny", "rest")),
    "name": (RuleConfig("allow", "by-name", [NAME]), RuleConfig("deny", "rest")),
}
"""Rules that want addresses, and some that do not."""


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_checked_is_what_is_dialled(run_once: Run, command: str, rules: str) -> None:
    """One question for each request: rules, guard and connection go by its answer, whatever the next one would be."""

    async def main() -> None:
        async with rebinding(OUTER, SECRET, rules=RULES[rules]) as place:
            assert await place.ask(command) == OUTER
            assert place.resolver.asked == [NAME]
            session = await place.ended.get()
            assert session.address == Address(ip_address(OUTER), place.port)
            assert await place.ask(command) == COMMANDS[command][1]
            assert place.resolver.asked == [NAME] * 2
            assert (await place.ended.get()).address is None

    run_once(main)


@pytest.mark.parametrize("rules", ["none", "deny"])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "answer", [f"{OUTER} {SECRET}", f"{SECRET} {OUTER}", f"{OUTER} ::1", f"::ffff:{SECRET} {OUTER}"]
)
def test_an_answer_is_refused_as_a_whole(run_once: Run, answer: str, command: str, rules: str) -> None:
    """Otherwise a client could wait until the outer address fails, and be led to the other one (multiple A records)."""

    async def main() -> None:
        async with rebinding(answer, OUTER, rules=RULES[rules]) as place:
            assert await place.ask(command) == COMMANDS[command][1]
            assert place.resolver.asked == [NAME]
            assert (await place.ended.get()).close == "denied"

    run_once(main)


@pytest.mark.parametrize("command", COMMANDS)
def test_all_of_an_answer_that_is_permitted_may_be_dialled(run_once: Run, command: str) -> None:
    """Happy Eyeballs works on the addresses that were decided on, and asks nobody again."""

    async def main() -> None:
        guard = GuardConfig(allow=["127.0.0.2/31"], exempt=[])
        async with rebinding("127.0.0.3 127.0.0.2", SECRET, rules=RULES["deny"], guard=guard) as place:
            assert await place.ask(command) == "127.0.0.3"
            assert place.resolver.asked == [NAME]

    run_once(main)


def test_a_program_is_asked_about_what_is_dialled(run_once: Run) -> None:
    """With a rule about networks it finds the addresses in the session; they are those of the connection."""
    seen: list[list[str]] = []

    def decide(session: Session) -> Decision | None:
        seen.append([str(address) for address in session.addresses or ()])
        return None

    async def main() -> None:
        async with rebinding(OUTER, SECRET, rules=RULES["deny"], decide=decide) as place:
            assert await place.ask("socks5") == OUTER
            assert place.resolver.asked == [NAME]

    run_once(main)
    assert seen == [[OUTER]]


# --- a connection that is kept for the next request ---


def test_a_kept_connection_needs_no_answer(run_once: Run) -> None:
    """Without rules about networks the next request to the name goes where the first one went, and nobody is asked."""

    async def main() -> None:
        async with rebinding(OUTER, SECRET) as place, client(place.server.addresses[0]) as streams:
            for _ in range(3):
                assert await ask_forward(streams, place.port) == OUTER
            assert place.resolver.asked == [NAME]

    run_once(main)


def test_a_kept_connection_is_used_only_where_it_was_decided_on(run_once: Run) -> None:
    """A rule about networks is asked for each request: its answer is for the address that it saw, and no other."""

    async def main() -> None:
        guard = GuardConfig(allow=["127.0.0.0/8"], exempt=[])
        rules = (RuleConfig("deny", "secret", ["127.0.0.9/32"]),)
        async with rebinding(OUTER, SECRET, SECRET, "127.0.0.9", rules=rules, guard=guard) as place:
            async with client(place.server.addresses[0]) as streams:
                assert await ask_forward(streams, place.port) == OUTER
                assert await ask_forward(streams, place.port) == SECRET
                assert await ask_forward(streams, place.port) == SECRET
                assert await ask_forward(streams, place.port) == 403
            assert len(place.resolver.asked) == 4
            sessions = [await place.ended.get() for _ in range(4)]
            # The third request found the connection of the second.
            assert [session.connect_seconds is None for session in sessions] == [False, False, True, True]

    run_once(main)


def test_a_kept_connection_is_judged_by_the_guard_of_its_request(run_once: Run) -> None:
    """A reload that closes a network closes it for the next request, also on a connection that leads there already."""

    async def main() -> None:
        async with rebinding(OUTER) as place, client(place.server.addresses[0]) as streams:
            assert await ask_forward(streams, place.port) == OUTER
            closed = Config(listen=place.config.listen, log=place.config.log, guard=GuardConfig(exempt=[]))
            place.server.reload(closed)
            assert await ask_forward(streams, place.port) == 403
            place.server.reload(place.config)
            assert await ask_forward(streams, place.port) == OUTER

    run_once(main)


# --- BIND ---


@pytest.mark.parametrize("rules", ["none", "deny", "name"])
def test_bind_waits_for_whom_was_checked(run_once: Run, rules: str) -> None:
    """The peer of a name is who the name stood for when it was asked for: nobody else may call, then or later."""

    async def main() -> None:
        async with rebinding(OUTER, SECRET, rules=RULES[rules]) as place:
            async with client(place.server.addresses[0]) as streams:
                address = await open_bind(streams, NAME)
                await expect_reset(address, SECRET)
                async with caller(address, OUTER) as (_, writer):
                    code, octets = await read_reply(streams[0])
                    assert (code, octets[1:5]) == (0, ip_address(OUTER).packed)
                    writer.write(b"x")
                    assert await streams[0].readexactly(1) == b"x"
            assert place.resolver.asked == [NAME]
            async with client(place.server.addresses[0]) as streams:
                assert await greet(streams) == 0
                streams[1].write(request(NAME, 0, 2))
                assert (await read_reply(streams[0]))[0] == 2
            assert place.resolver.asked == [NAME] * 2

    run_once(main)


# --- datagrams ---


@pytest.mark.parametrize("rules", RULES)
def test_datagrams_go_where_was_checked(run_once: Run, rules: str) -> None:
    """A name is asked for once in an association, and judged; another association asks again, and is judged again."""

    async def main() -> None:
        async with rebinding(OUTER, SECRET, rules=RULES[rules]) as place:
            with destination(OUTER) as outer, destination(SECRET, port=outer.address.port) as secret:
                header = encode_header(Address(NAME, outer.address.port))
                async with association(place.server.addresses[0]) as first:
                    for number in range(3):
                        assert (await first.ask(header + b"%d" % number))[-1:] == b"%d" % number
                    assert place.resolver.asked == [NAME]
                await place.ended.get()
                async with association(place.server.addresses[0]) as second:
                    await expect_drop(place, second, header)
                assert place.resolver.asked == [NAME] * 2
                assert (await place.ended.get()).drops == {"denied": 1}
                assert [data for data, _ in outer.received] == [b"0", b"1", b"2"]
                assert secret.received == []

    run_once(main)


def test_a_name_that_an_association_has_forgotten_is_judged_anew(
    run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,024 ways the oldest goes: when its name comes again, the new answer is checked as the first one was."""
    monkeypatch.setattr("tabi.relay.udp_routes.MAX_ROUTES", 1)

    async def main() -> None:
        async with rebinding(OUTER, SECRET) as place:
            with destination(OUTER) as outer, destination(SECRET, port=outer.address.port) as secret:
                async with association(place.server.addresses[0]) as found:
                    header = encode_header(Address(NAME, outer.address.port))
                    assert (await found.ask(header + b"1"))[-1:] == b"1"
                    assert (await found.ask(outer.header + b"2"))[-1:] == b"2"
                    await expect_drop(place, found, header)
                    assert place.resolver.asked == [NAME] * 2
                assert len(outer.received) == 2
                assert secret.received == []

    run_once(main)


async def expect_drop(place: Place, found: Client, header: bytes) -> None:
    """Send a datagram that goes nowhere, and wait until that was counted."""
    (running,) = place.server.parts.associations.active
    found.send(header + b"x")
    await until(lambda: running.session.drops)
    assert running.session.drops == {"denied": 1}
