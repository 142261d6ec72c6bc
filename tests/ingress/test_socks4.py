"""SOCKS4 and 4a from the wire: CONNECT, BIND, who is let in, and bad days."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from conftest import Run
from doubles import (
    FakeResolver,
    Serving,
    Streams,
    caller,
    client_from,
    config,
    end_of,
    expect_reset,
    no_descriptors_left,
    queued,
    reset,
    until,
)
from sockets import tcp_pair
from support import client, closed_port, target
from tabi import Config, Server, Session
from tabi.config import Listen, Log
from tabi.ingress.conversation import Commands, Conversation
from tabi.ingress.socks4 import Socks4Ingress
from tabi.net import handshakes
from tabi.net.handshakes import Handshakes
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.wire.address import Address, parse_address

SOCKS4 = "socks4://127.0.0.1:0"
CONNECT, BIND = 1, 2
REFUSED = b"\x00\x5b" + bytes(6)
NAMES = {"here.test": ["127.0.0.1"], "here6.test": ["::1"], "both.test": ["::1", "127.0.0.1"]}


def ask4(host: str, port: int, command: int = CONNECT, userid: bytes = b"") -> bytes:
    """A request as octets: SOCKS4 for an IPv4 address, SOCKS4a for anything else."""
    head = b"\x04%c%b" % (command, port.to_bytes(2, "big"))
    try:
        return head + IPv4Address(host).packed + userid + b"\0"
    except ValueError:
        return head + b"\0\0\0\x01" + userid + b"\0" + host.encode() + b"\0"


async def answer(streams: Streams) -> tuple[int, Address]:
    """A reply: CD and the address. VN is checked."""
    octets = await streams[0].readexactly(8)
    assert octets[0] == 0
    return octets[1], Address(IPv4Address(octets[4:]), int.from_bytes(octets[2:4], "big"))


class Place(Serving):
    """A server that speaks SOCKS4, and the sessions that have ended: ``async with Place() as place``."""

    def __init__(self, url: str = SOCKS4, users: dict[str, str] | None = None, **seconds: float) -> None:
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        settings = config(Listen(url), **seconds)
        resolver = FakeResolver(NAMES)
        self.server = Server(config=settings, users=users, resolver=resolver, on_close=self.ended.put_nowait)

    @contextlib.asynccontextmanager
    async def ask(self, octets: bytes) -> AsyncIterator[Streams]:
        """A client that has sent these octets."""
        async with client(self.address) as streams:
            streams[1].write(octets)
            yield streams


async def check(near: asyncio.StreamWriter, far: asyncio.StreamReader, data: bytes = b"ping") -> None:
    """What goes in on one side comes out on the other."""
    near.write(data)
    assert await far.readexactly(len(data)) == data


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused client that stays is closed soon."""
    monkeypatch.setattr(handshakes, "LINGER", 0.1)


# --- CONNECT ---


@pytest.mark.parametrize("userid", [b"", b"alice", b"\xff\x01", b"u" * 255])
@pytest.mark.parametrize("host", ["127.0.0.1", "here.test", "both.test", "127.0.0.1 as text"])
def test_connect(run: Run, host: str, userid: bytes) -> None:
    """An address or a name, whatever USERID claims: 5A, the address of the proxy's socket, and a tunnel."""

    async def main() -> None:
        async with Place() as place, target() as port:
            octets = ask4(host, port, userid=userid)
            if host.endswith("as text"):
                octets = b"\x04\x01" + port.to_bytes(2, "big") + b"\0\0\0\x09" + userid + b"\x00127.0.0.1\x00"
            async with place.ask(octets) as streams:
                code, bound = await answer(streams)
                assert (code, str(bound.host)) == (0x5A, "127.0.0.1")
                assert bound.port not in (0, port, place.address.port)
                await check(streams[1], streams[0])
            session = await place.ended.get()
            assert (session.protocol, session.command, session.user, session.reply_code) == (
                "socks4",
                "connect",
                None,
                90,
            )
            assert str(session.address) == f"127.0.0.1:{port}"
            assert (session.error, session.close, session.up, session.down) == (None, "client", 4, 4)

    run(main)


@pytest.mark.parametrize("host", ["::1", "here6.test"])
def test_the_address_of_an_ipv6_connection_cannot_be_said(run: Run, host: str) -> None:
    """SOCKS4a reaches IPv6, by a name or by an address as text; DSTIP of the reply is 0.0.0.0 then."""

    async def main() -> None:
        async with Place() as place, target(host="::1") as port, place.ask(ask4(host, port)) as streams:
            code, bound = await answer(streams)
            assert (code, str(bound.host)) == (0x5A, "0.0.0.0")
            assert bound.port != 0
            await check(streams[1], streams[0])

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "here.test"])
def test_octet_by_octet(run: Run, host: str) -> None:
    """Nothing is answered before the last octet of the request, and then as ever."""

    async def main() -> None:
        async with Place() as place, target() as port, client(place.address) as streams:
            server_port, own_port = place.address.port, streams[1].get_extra_info("sockname")[1]
            for octet in ask4(host, port, userid=b"bob"):
                assert queued(own_port, server_port)[1] == 0
                streams[1].write(bytes([octet]))
                await until(lambda: queued(server_port, own_port)[1] == 0)
            assert (await answer(streams))[0] == 0x5A
            await check(streams[1], streams[0])

    run(main)


@pytest.mark.parametrize("size", [1, 480, 500, 501, 100_000])
def test_early_data_goes_to_the_destination(run: Run, size: int) -> None:
    """Payload right behind the request, and the end behind that, arrive whole and once."""
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]

    async def main() -> None:
        async with Place() as place, target() as port:
            for host in ("127.0.0.1", "here.test"):
                async with place.ask(ask4(host, port, userid=b"u" * 200) + payload) as (reader, writer):
                    writer.write_eof()
                    assert (await answer((reader, writer)))[0] == 0x5A
                    assert await reader.read() == payload

    run(main)


def test_failures_are_5b(run: Run) -> None:
    """Whatever went wrong, SOCKS4 has one code for it; the log says what it was."""

    async def main() -> None:
        with closed_port() as port:
            async with Place() as place:
                for octets, error in (
                    (ask4("127.0.0.1", port), f"127.0.0.1:{port}: connection refused"),
                    (ask4("nowhere.test", 80), "nowhere.test: domain name not found"),
                    (ask4("", 80), "NAME: "),
                    (ask4("a b", 80), "NAME: "),
                    (ask4("127.0.0.1", 80, userid=b"u" * 256), "USERID: more than 255 octets"),
                    (ask4("n" * 256, 80), "NAME: more than 255 octets"),
                ):
                    async with place.ask(octets) as (reader, _):
                        assert await reader.read() == REFUSED
                    session = await place.ended.get()
                    assert (session.reply_code, session.close) == (91, "error")
                    assert session.error is not None
                    assert session.error.startswith(error), session.error

    run(main)


@pytest.mark.parametrize("command", [0, 3, 4, 0x5A, 255])
def test_other_commands_are_5b(run: Run, command: int) -> None:
    """SOCKS4 has CONNECT and BIND. 3, UDP ASSOCIATE in SOCKS5, is refused as any other."""

    async def main() -> None:
        async with Place() as place, place.ask(ask4("127.0.0.1", 80, command)) as (reader, _):
            assert await reader.read() == REFUSED
            session = await place.ended.get()
            assert (session.command, session.reply_code, session.close) == (str(command), 91, "error")
            assert session.error == f"command {command:#04x} is not supported"

    run(main)


def test_the_guard_forbids_inner_addresses_to_a_client_from_outside(run: Run) -> None:
    """By address, by name and by an address as text: 5B, and denied."""

    async def main() -> None:
        async with Place() as place:
            for octets in (ask4("127.0.0.1", 80), ask4("here.test", 80), ask4("::1", 80), ask4("0.0.0.0", 80)):
                async with client_from(place.server, "203.0.113.9") as (reader, writer):
                    writer.write(octets)
                    assert await reader.read() == REFUSED
                session = await place.ended.get()
                assert (session.reply_code, session.close) == (91, "denied")
                assert (session.error or "").startswith("guard: ")

    run(main)


def test_a_fault_of_our_own_is_5b(run_once: Run) -> None:
    """Without a descriptor for the way out."""

    async def main() -> None:
        async with Place() as place, client(place.address) as (reader, writer):
            await until(lambda: place.server.parts.sessions.running)
            with no_descriptors_left():
                writer.write(ask4("127.0.0.1", 80))
                assert await reader.read() == REFUSED
            assert "too many open files" in ((await place.ended.get()).error or "")

    run_once(main)


# --- who is let in ---


@pytest.mark.parametrize("url", ["mixed://127.0.0.1:0"])
def test_where_users_are_required_socks4_is_refused(run: Run, url: str) -> None:
    """A USERID, even of a user, is a claim and no proof: 5B, nothing is dialled, and the log says why."""

    async def main() -> None:
        called: list[int] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            called.append(1)

        async with Place(url, users={"alice": "secret"}) as place, target(note) as port:
            for command in (CONNECT, BIND):
                async with place.ask(ask4("127.0.0.1", port, command, b"alice") + b"payload") as (reader, _):
                    assert await reader.read() == REFUSED
                session = await place.ended.get()
                assert (session.protocol, session.user, session.reply_code) == ("socks4", None, 91)
                assert str(session.destination) == f"127.0.0.1:{port}"
                why = "this listener wants a user, and SOCKS4 has no way to prove one"
                assert (session.close, session.error) == ("denied", why)
            assert called == []

    run(main)


@pytest.mark.parametrize("users", ["optional", "none"])
def test_where_users_are_not_required_socks4_is_served(run: Run, users: str) -> None:
    """Without a user, as a SOCKS5 client that says no name."""

    async def main() -> None:
        settings = config(Listen(SOCKS4, users=users))  # type: ignore[arg-type]
        async with (
            Server(config=settings, users={"alice": "secret"}) as server,
            target() as port,
            client(server.addresses[0]) as streams,
        ):
            streams[1].write(ask4("127.0.0.1", port, userid=b"alice"))
            assert (await answer(streams))[0] == 0x5A

    run(main)


def test_a_user_whom_something_else_has_proved_is_served(run: Run) -> None:
    """Where a layer in front has said who it is (a certificate, say), required users are no obstacle."""

    class Served:
        name = "served"
        users: list[str | None] = []  # noqa: RUF012 - of this one test

        async def __call__(self, conversation: Conversation) -> None:
            self.users.append(conversation.session.user)

    async def main() -> None:
        near, far = tcp_pair()
        handshake = Handshakes(asyncio.get_running_loop(), 10)
        with far:
            async with Stream(get_reactor(), near) as stream:
                handshake.start(stream)
                session = Session(1, SOCKS4, parse_address("192.0.2.1:1"), 0.0)
                session.user = "alice"
                far.send(ask4("127.0.0.1", 80))
                served = Served()
                await Socks4Ingress(Commands({CONNECT: served}, handshake), required=True).serve(stream, session)
                assert served.users == ["alice"]
        handshake.close()

    run(main)


def test_the_access_log_has_the_code_that_was_sent(run_once: Run, tmp_path: Path) -> None:
    """``reply`` is CD, 90 or 91, and ``protocol`` socks4, of 4a as well."""
    path = tmp_path / "access.log"

    async def main() -> None:
        settings = Config(listen=[Listen(SOCKS4)], log=Log(access=str(path)))
        async with Server(config=settings, resolver=FakeResolver(NAMES)) as server, target() as port:
            for octets in (ask4("127.0.0.1", port), ask4("here.test", port), ask4("nowhere.test", port)):
                async with client(server.addresses[0]) as (reader, writer):
                    writer.write(octets)
                    writer.write_eof()
                    await reader.read()
                await until(lambda: not server.parts.sessions.running)

    run_once(main)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["protocol"], line["host"], line["reply"], line["user"]) for line in lines] == [
        ("socks4", "127.0.0.1", 90, None),
        ("socks4", "here.test", 90, None),
        ("socks4", "nowhere.test", 91, None),
    ]


# --- BIND ---


@pytest.mark.parametrize("host", ["127.0.0.1", "here.test", "both.test", "0.0.0.0"])
def test_bind(run: Run, host: str) -> None:
    """Two replies, the first with where to call, the second with who called; 0.0.0.0 expects anybody."""

    async def main() -> None:
        async with Place() as place, place.ask(ask4(host, 0, BIND, b"bob")) as streams:
            code, bound = await answer(streams)
            assert (code, str(bound.host)) == (0x5A, "127.0.0.1")
            async with caller(bound) as far:
                code, peer = await answer(streams)
                assert (code, (str(peer.host), peer.port)) == (0x5A, far[1].get_extra_info("sockname"))
                await check(streams[1], far[0], b"to the peer")
                await check(far[1], streams[0], b"to the client")
                streams[1].write_eof()
                assert await far[0].read() == b""
            session = await place.ended.get()
            assert (session.command, session.reply_code, session.error) == ("bind", 90, None)
            assert (session.address, session.up, session.down) == (peer, 11, 13)

    run(main)


def test_an_ipv6_peer_cannot_be_said(run: Run) -> None:
    """Its BIND works all the same: both replies have 0.0.0.0, which in the first means the proxy's own address."""

    async def main() -> None:
        for host in ("::1", "here6.test"):
            async with Place() as place, place.ask(ask4(host, 0, BIND)) as streams:
                code, bound = await answer(streams)
                assert (code, str(bound.host)) == (0x5A, "0.0.0.0")
                async with caller(Address(IPv6Address("::1"), bound.port), "::1") as far:
                    code, peer = await answer(streams)
                    assert (code, str(peer.host)) == (0x5A, "0.0.0.0")
                    assert peer.port == far[1].get_extra_info("sockname")[1]
                    await check(far[1], streams[0])

    run(main)


def test_a_peer_from_another_address_is_refused(run: Run) -> None:
    """DSTIP is whom the client expects: anybody else is reset, and the wait goes on."""

    async def main() -> None:
        async with Place() as place, place.ask(ask4("127.0.0.1", 21, BIND)) as streams:
            _, bound = await answer(streams)
            await expect_reset(bound, "127.0.0.2")
            async with caller(bound) as far:
                assert (await answer(streams))[0] == 0x5A
                await check(far[1], streams[0])

    run(main)


def test_nobody_calls(run: Run) -> None:
    """The second reply is 5B when the time is over."""

    async def main() -> None:
        async with Place(bind=0.1) as place, place.ask(ask4("127.0.0.1", 0, BIND)) as streams:
            assert (await answer(streams))[0] == 0x5A
            assert await streams[0].read() == REFUSED
            session = await place.ended.get()
            assert (session.reply_code, session.error) == (91, "127.0.0.1:0: no call within 0.1 s")

    run(main)


def test_what_a_client_sends_behind_a_bind_waits_for_the_peer(run: Run) -> None:
    """Early payload, with and behind the request, reaches whoever calls."""

    async def main() -> None:
        async with Place() as place, place.ask(ask4("127.0.0.1", 0, BIND) + b"early ") as streams:
            _, bound = await answer(streams)
            streams[1].write(b"and later")
            async with caller(bound) as far:
                assert (await answer(streams))[0] == 0x5A
                assert await far[0].readexactly(15) == b"early and later"

    run(main)


def test_a_bind_from_outside_is_guarded(run: Run) -> None:
    """Whom a client may not reach it may not let call either."""

    async def main() -> None:
        async with Place() as place:
            for host in ("127.0.0.1", "here.test"):
                async with client_from(place.server, "203.0.113.9") as (reader, writer):
                    writer.write(ask4(host, 0, BIND))
                    assert await reader.read() == REFUSED
                assert (await place.ended.get()).close == "denied"

    run(main)


# --- bad days ---


@pytest.mark.parametrize(
    "octets", [b"\x05\x01\x00", b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"]
)
def test_what_is_no_socks4(run: Run, octets: bytes) -> None:
    """Another version ends the connection without a reply."""

    async def main() -> None:
        async with Place() as place, place.ask(octets) as (reader, _):
            assert await end_of(reader) in ("end", "reset")
            session = await place.ended.get()
            assert (session.close, session.reply_code) == ("error", None)
            assert session.error == f"request: version {octets[0]:#04x}, expected 0x04"

    run(main)


@pytest.mark.parametrize("octets", [b"", b"\x04", b"\x04\x01\x00\x50\x7f\x00\x00\x01user", ask4("name", 80)[:-1]])
def test_a_request_that_does_not_come(run: Run, octets: bytes) -> None:
    """The deadline of the handshake holds for all of the request, and an end in its middle is noted."""

    async def main() -> None:
        async with Place(handshake=0.1) as place:
            async with place.ask(octets) as (reader, _):
                assert await end_of(reader) == "end"
                assert (await place.ended.get()).error == "handshake: not done within 0.1 s"
            async with place.ask(octets) as (reader, writer):
                writer.write_eof()
                assert await end_of(reader) == "end"
                assert (await place.ended.get()).error == "the peer ended in the middle of the request"

    run(main)


def test_a_refused_client_reads_the_refusal(run: Run) -> None:
    """Octets without end and without a NUL are not collected, and do not cost the refusal."""

    async def main() -> None:
        async with (
            Place() as place,
            place.ask(b"\x04\x01\x00\x50\x7f\x00\x00\x01" + b"x" * 300_000) as (reader, writer),
        ):
            writer.write_eof()
            assert await reader.read() == REFUSED
            assert (await place.ended.get()).error == "USERID: more than 255 octets"

    run(main)


def test_a_client_that_vanishes_with_a_reset(run: Run) -> None:
    """It ends as any reset during the handshake."""

    async def main() -> None:
        async with Place() as place, place.ask(b"\x04\x01") as (_, writer):
            await until(lambda: any(session.protocol for session in place.server.parts.sessions.running))
            reset(writer)
            assert (await place.ended.get()).close == "reset"

    run(main)
