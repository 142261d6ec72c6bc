"""FirstOctets: what is seen of each kind of session, no octet is lost or late, and how those end that never begin."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from authorities import TlsPeer, accept, client_context
from conftest import Run
from hellos import client_hello, hello, server_name
from sockets import (
    Bench,
    Ends,
    Pair,
    read,
    read_all,
    reset,
    send,
    send_and_end,
    tcp_pair,
    turns,
    unix_pair,
    until,
    waiting,
)
from tabi.net.stream import Stream
from tabi.relay import first_octets
from tabi.relay.first_octets import READ_SIZE, FirstOctets, Seen
from tabi.session import Session
from tabi.wire.sniff import Payload

HELLO = hello(server_name(b"name.test"))


class Table:
    """First octets of a bench, whose sessions are relayed once they are known."""

    def __init__(self, bench: Bench, seconds: float = 60) -> None:
        self.bench = bench
        self.first = FirstOctets(bench.relays.reactor, bench.relays, seconds)
        self.seen: list[Seen] = []

    def look(self, ends: Ends, head: bytes = b"", answer: bytes = b"") -> None:
        """Have a session looked at, and relayed then."""
        self.first.look(ends.near_client, ends.near_server, ends.session, answer, head, self.then)
        assert ends.near_client.fd == ends.near_server.fd == -1

    def then(self, client: Stream, server: Stream, session: Session, seen: Seen) -> None:
        """What a carrier does with a session that it has nothing else to do with."""
        assert self.first.get(session) is None
        self.seen.append(seen)
        self.bench.relays.start(client, server, session, b"", seen.octets)


@contextmanager
def table(seconds: float = 60, idle: float = 300) -> Iterator[Table]:
    """A bench with first octets on it."""
    with Bench(idle=idle) as bench:
        made = Table(bench, seconds)
        try:
            yield made
        finally:
            made.first.close("shutdown")
            assert not made.first.begun.pending
            assert not made.first.paused.pending
            assert not made.first.quiet.seen


async def ends_in_order(ends: Ends) -> None:
    """See both directions work, and the session end."""
    await send_and_end(ends.client, b" up")
    assert (await read_all(ends.server)).endswith(b" up")
    await send_and_end(ends.server, b" down")
    assert (await read_all(ends.client)).endswith(b" down")
    await ends.ended.wait()
    assert ends.session.close == "client"


@pytest.mark.parametrize(
    ("octets", "protocol"),
    [
        (b"GET / HTTP/1.1\r\nHost: name.test\r\n\r\n", Payload.HTTP1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Payload.HTTP2),
        (b"SSH-2.0-client\r\n", Payload.SSH),
        (b"\0\1\2\3", Payload.RAW),
        (b"\x16\x03\x01\0\0", Payload.RAW),
        (HELLO, Payload.TLS),
        (HELLO + b"garbage" * 5000, Payload.TLS),
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_what_a_client_begins_with(run: Run, octets: bytes, protocol: Payload, early: bool) -> None:
    """Each is named, sent after the reply or with the request; all of it arrives, in order, and counts."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()
            here.look(ends, octets[:9] if early else b"", b"reply")
            assert await read(ends.client, 5) == b"reply"
            await send(ends.client, octets[9:] if early else octets)
            assert await read(ends.server, len(octets)) == octets
            (seen,) = here.seen
            assert seen.protocol is protocol
            assert octets.startswith(seen.octets)
            assert (seen.hello is not None) == (protocol is Payload.TLS)
            if seen.hello is not None:
                assert seen.hello.sni == "name.test"
            await ends_in_order(ends)
            assert (ends.session.up, ends.session.down) == (len(octets) + 3, 5)

    run(main)


@pytest.mark.parametrize("octets", [HELLO, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", client_hello("name.test", ("h2",))])
def test_octet_by_octet(run: Run, octets: bytes) -> None:
    """Segments of one octet: nothing is sent on before it is known, then everything is."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()
            here.look(ends, answer=b"reply")
            assert await read(ends.client, 5) == b"reply"
            look = here.first.get(ends.session)
            assert look is not None
            for at in range(len(octets)):
                assert not here.seen
                assert look.counts == (0, 0)
                await send(ends.client, octets[at : at + 1])
                await until(lambda at=at: here.seen or len((look.hello or look).octets) > at)  # type: ignore[misc]
            assert await read(ends.server, len(octets)) == octets
            assert here.seen[0].octets == octets
            await ends_in_order(ends)

    run(main)


def test_a_hello_longer_than_a_read(run: Run) -> None:
    """One of 60 KB in records of 100 octets, which comes in one piece."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()
            octets = hello(server_name(b"name.test"), b"\x77\x77\xea\x60" + bytes(60000), size=100)
            assert len(octets) > 3 * READ_SIZE
            here.look(ends)
            async with asyncio.TaskGroup() as group:
                group.create_task(send(ends.client, octets))
                there = group.create_task(read(ends.server, len(octets)))
            assert there.result() == octets
            assert here.seen[0].octets == octets
            assert here.seen[0].hello is not None

    run(main)


def test_a_long_hello_takes_no_more_than_its_turn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In records of an octet it takes long: others have their turns between its reads, and no octet is forgotten."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()
            octets = hello(server_name(b"name.test"), b"\x77\x77\x20\0" + bytes(8192), size=1)
            assert 3 * READ_SIZE < len(octets) < 4 * READ_SIZE
            monkeypatch.setattr(here.bench.relays.reactor, "late", lambda: True)
            await send(ends.client, octets)
            await until(lambda: waiting(ends.near_client.sock) == len(octets))  # type: ignore[arg-type]
            await ends.near_client.readable()
            here.look(ends)
            look = here.first.get(ends.session)
            assert look is not None
            assert look.hello is not None
            assert len(look.hello.octets) == READ_SIZE
            assert await read(ends.server, len(octets)) == octets
            assert here.seen[0].octets == octets

    run(main)


@pytest.mark.parametrize("begun", [b"", b"GE", HELLO[:20]])
@pytest.mark.parametrize(("greeting", "protocol"), [(b"SSH-2.0-server\r\n", "ssh"), (b"220 name.test\r\n", "raw")])
def test_a_server_that_speaks_first_is_heard_at_once(run: Run, begun: bytes, greeting: bytes, protocol: str) -> None:
    """Whatever the client has begun with, and whether the greeting was there before the reply or comes later."""

    async def main() -> None:
        for early in (False, True):
            with table() as here:
                ends = here.bench.ends()
                if early:
                    await send(ends.server, greeting)
                    await ends.near_server.readable()
                here.look(ends, begun, b"reply ")
                if not early:
                    assert await read(ends.client, 6) == b"reply "
                    await send(ends.server, greeting)
                assert await read(ends.client, len(greeting) + 6 * early) == b"reply " * early + greeting
                assert here.seen == [(protocol, None, begun)]
                await send(ends.client, b"up")
                assert await read(ends.server, len(begun) + 2) == begun + b"up"

    run(main)


def test_readiness_that_is_stale_says_nothing(run: Run) -> None:
    """What was read by others before is no greeting, and no octet of the client."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()
            for stream in (ends.near_server, ends.near_client):
                stream.events |= 1
            here.look(ends)
            await turns()
            assert not here.seen
            await send(ends.client, HELLO)
            assert await read(ends.server, len(HELLO)) == HELLO
            assert here.seen[0].protocol is Payload.TLS

    run(main)


@pytest.mark.parametrize("begun", [b"", b"P", HELLO[:-1]])
@pytest.mark.parametrize("side", ["client", "server"])
def test_an_end_of_one_side_is_passed_on(run: Run, begun: bytes, side: str) -> None:
    """C25: what came goes on before it, and the other side may still send."""

    async def main() -> None:
        for early in (False, True):
            with table() as here:
                ends = here.bench.ends()
                one, other = (ends.client, ends.server) if side == "client" else (ends.server, ends.client)
                if early:
                    one.shutdown(socket.SHUT_WR)
                    await turns()
                here.look(ends, begun)
                if not early:
                    await turns()
                    one.shutdown(socket.SHUT_WR)
                if side == "client":
                    assert await read_all(other) == begun
                else:
                    assert await read_all(other) == b""
                    assert await read(one, len(begun)) == begun
                await send_and_end(other, b"more")
                assert await read_all(one) == b"more"
                await ends.ended.wait()
                assert (ends.session.close, ends.session.error) == (side, None)
                assert here.seen == [(Payload.RAW, None, begun)]

    run(main)


@pytest.mark.parametrize("begun", [b"", HELLO[:-1]])
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_of_one_side_is_passed_on(run: Run, begun: bytes, side: str) -> None:
    """C33: the other side gets a reset, whether it came before the look or during it."""

    async def main() -> None:
        for early in (False, True):
            with table() as here:
                ends = here.bench.ends()
                one, other = (ends.client, ends.server) if side == "client" else (ends.server, ends.client)
                if early:
                    reset(one)
                    await ends.near_client.readable() if side == "client" else await ends.near_server.readable()
                here.look(ends, begun)
                if not early:
                    await turns()
                    reset(one)
                with pytest.raises(ConnectionResetError):
                    await read(other, 1)
                await ends.ended.wait()
                assert (ends.session.close, ends.session.up, ends.session.down) == ("reset", 0, 0)
                assert not here.seen

    run(main)


def test_a_client_that_is_gone_before_the_answer(run: Run) -> None:
    """C33: that the answer finds it must not turn its reset into an end, for what it has sent or the server says."""

    async def main() -> None:
        for head, greeting in ((b"", b""), (HELLO, b""), (b"", b"220 \r\n")):
            with table() as here:
                ends = here.bench.ends()
                if greeting:
                    await send(ends.server, greeting)
                    await ends.near_server.readable()
                reset(ends.client)
                here.look(ends, head, b"reply")
                await ends.ended.wait()
                assert ends.session.close == "reset"
                assert not here.seen
                with pytest.raises(ConnectionResetError):
                    await read(ends.server, 1)

    run(main)


@pytest.mark.parametrize("sends", ["client", "server"])
def test_the_answer_of_a_turn_comes_first(run: Run, sends: str) -> None:
    """Within a turn answers wait for its end; what is there already, of either side, does not overtake them."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()

            async def session() -> None:
                await ends.near_client.receive(7)  # resumed in the reactor's turn, as a session is
                here.look(ends, HELLO if sends == "client" else b"", b"reply ")

            if sends == "server":
                await send(ends.server, b"greeting")
                await ends.near_server.readable()
            async with asyncio.TaskGroup() as group:
                group.create_task(session())
                await turns()
                await send(ends.client, b"request")
            if sends == "server":
                assert await read(ends.client, 14) == b"reply greeting"
            else:
                assert await read(ends.server, len(HELLO)) == HELLO
                await send(ends.server, b"down")
                assert await read(ends.client, 10) == b"reply down"

    run(main)


def test_a_client_that_goes_within_the_turn_of_its_answer(run: Run) -> None:
    """The answer that is flushed for the sake of what it has sent finds the reset: nothing is handed over."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()

            async def session() -> None:
                await ends.near_client.receive(7)
                reset(ends.client)
                here.look(ends, HELLO, b"reply ")

            async with asyncio.TaskGroup() as group:
                group.create_task(session())
                await turns()
                await send(ends.client, b"request")
            await ends.ended.wait()
            assert ends.session.close == "reset"
            assert not here.seen

    run(main)


@pytest.mark.parametrize("begun", [b"G", HELLO[:1], HELLO[:-1]])
def test_what_has_begun_has_a_deadline_and_is_raw_then(run: Run, begun: bytes) -> None:
    """A client that stops within its hello, or whose protocol only looks like one, is relayed after a while."""

    async def main() -> None:
        with table(seconds=0.05) as here:
            ends = here.bench.ends()
            here.look(ends)
            await send(ends.client, begun)
            assert await read(ends.server, len(begun)) == begun
            assert here.seen == [(Payload.RAW, None, begun)]
            await ends_in_order(ends)

    run(main)


@pytest.mark.parametrize("begun", [b"S", b"GE", b"PRI"])
def test_a_few_octets_are_not_waited_with_for_long(run: Run, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    """A protocol whose first message begins as another one does not stall: its server has it soon, and answers."""
    monkeypatch.setattr(first_octets, "PAUSE", 0.01)

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()
            here.look(ends)
            await send(ends.client, begun)
            assert await read(ends.server, len(begun)) == begun
            assert here.seen == [(Payload.RAW, None, begun)]
            await ends_in_order(ends)

    run(main)


@pytest.mark.parametrize(
    ("begun", "more", "protocol"),
    [
        (b"S", b"EAR", Payload.HTTP1),
        (b"GE", b"T /", Payload.HTTP1),
        (b"S", b"SH-", Payload.SSH),
        (HELLO[:1], b"", None),
    ],
)
def test_more_octets_are_waited_for_as_long_as_a_hello(
    run: Run, begun: bytes, more: bytes, protocol: Payload | None
) -> None:
    """As soon as they are more than chance; and of TLS from the first."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()
            here.look(ends, begun)
            look = here.first.get(ends.session)
            assert look is not None
            tls = begun == HELLO[:1]
            assert (look in here.first.paused.pending, look in here.first.begun.pending) == (not tls, tls)
            await send(ends.client, more or HELLO[1:2])
            if more == b"EAR":
                await until(lambda: look in here.first.begun.pending)
                assert look not in here.first.paused.pending
                await send(ends.client, b"CH /")
            if protocol is not None:
                await until(lambda: bool(here.seen))
                assert here.seen[0].protocol == protocol

    run(main)


def test_the_deadline_is_one_for_all_octets(run: Run) -> None:
    """An octet more does not begin it anew."""

    async def main() -> None:
        with table() as here:
            ends = here.bench.ends()
            here.look(ends, HELLO[:10])
            when = dict(here.first.begun.pending)
            await send(ends.client, HELLO[10:20])
            look = here.first.get(ends.session)
            assert look is not None
            assert look.hello is not None
            reader = look.hello
            await until(lambda: len(reader.octets) == 20)
            assert dict(here.first.begun.pending) == when

    run(main)


def test_nothing_at_all_ends_as_idle(run: Run) -> None:
    """As in a relay, and with the time that a rule gives. What waits for the rest of a hello is not idle."""

    async def main() -> None:
        with table(idle=0.05) as here:
            here.bench.relays.rules.seconds = {"patient": 3600}
            ends, patient, begun = (here.bench.ends() for _ in range(3))
            patient.session.rule = "patient"
            for one, head in ((ends, b""), (patient, b""), (begun, HELLO[:9])):
                here.look(one, head)
            assert await read_all(ends.client) == await read_all(ends.server) == b""
            assert (ends.session.close, ends.session.error) == ("idle", None)
            assert set(here.first.active) == {patient.session, begun.session}

    run(main)


def test_cut_from_outside_and_closed(run: Run) -> None:
    """A limit, a kick, the end of the server: both sides see an end, and the session says why."""

    async def main() -> None:
        with table() as here:
            kicked, closed, limited = (here.bench.ends() for _ in range(3))
            limited.session.lease = SimpleNamespace(meters=(), cut=None)
            for ends in (kicked, closed, limited):
                here.look(ends, HELLO[:9])
            limited.session.lease.cut("the time is over")
            assert (limited.session.close, limited.session.error) == ("limit", "the time is over")
            look = here.first.get(kicked.session)
            assert look is not None
            look.cut("ended from outside", "kicked")
            look.cut("again")
            look.end("client")
            look.break_off(look.server)
            assert (kicked.session.close, kicked.session.error) == ("kicked", "ended from outside")
            here.first.close("shutdown")
            assert closed.session.close == "shutdown"
            for ends in (kicked, closed, limited):
                assert await read_all(ends.client) == await read_all(ends.server) == b""

    run(main)


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_unix_sockets_too(run: Run, pair: object) -> None:
    """An egress may bring any stream."""

    async def main() -> None:
        with table() as here:
            made: Pair = pair()  # type: ignore[operator]
            ends = here.bench.ends(server=made)
            here.look(ends)
            await send(ends.client, HELLO)
            assert await read(ends.server, len(HELLO)) == HELLO
            assert here.seen[0].protocol is Payload.TLS

    run(main)


def test_inside_tls_with_the_proxy(run: Run) -> None:
    """A client that speaks TLS with the proxy is looked at inside of that; so is a server behind a proxy with TLS."""

    async def main() -> None:
        for greeting in (b"", b"SSH-2.0-server\r\n"):
            with table() as here:
                ends = here.bench.ends()
                client, server = TlsPeer(ends.client, client_context()), TlsPeer(ends.server, client_context())
                ends.near_client.sock = await accept(ends.near_client, client)
                ends.near_server.sock = await accept(ends.near_server, server)
                here.look(ends, answer=b"reply")
                assert await client.read(5) == b"reply"
                if greeting:
                    await server.send(greeting)
                    assert await client.read(len(greeting)) == greeting
                    assert here.seen == [(Payload.SSH, None, b"")]
                else:
                    await client.send(HELLO[:9])
                    await client.send(HELLO[9:])
                    assert await server.read(len(HELLO)) == HELLO
                    assert here.seen[0].protocol is Payload.TLS
                await client.end()
                assert await server.read_all() == b""
                await server.send(b"down")
                await server.end()
                assert await client.read_all() == b"down"
                await ends.ended.wait()
                assert ends.session.close == "client"

    run(main)


def test_the_descriptor_of_the_client(run: Run) -> None:
    """As long as it is looked at."""

    async def main() -> None:
        with table() as it:
            ends = it.bench.ends()
            number = ends.near_client.fd
            it.first.look(ends.near_client, ends.near_server, ends.session, b"", b"", lambda *_: None)
            look = it.first.get(ends.session)
            assert look is not None
            assert look.client_fd == number
            look.cut("over")
            assert look.client_fd < 0

    run(main)
