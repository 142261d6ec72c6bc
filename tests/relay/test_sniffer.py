"""Sniffer: what is noted of a session, and what each refusal by the name in its TLS does to the two sides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Run
from hellos import client_hello, extension, hello, server_name, vector
from sockets import Bench, Ends, fill, read, read_all, reset, send, turns, unix_pair, until, waiting
from tabi.net.stream import Stream
from tabi.relay import sniffer as module
from tabi.relay.first_octets import READ_SIZE, FirstOctets, Seen
from tabi.relay.sniffer import Sniffer, Sniffing
from tabi.session import Decision, Session, Sniffed

LISTENER = "test"  # of the sessions of a bench
HELLO = client_hello("name.test", ("h2", "http/1.1"))
ALERT = b"\x15\x03\x03\x00\x02\x02\x31"


@contextmanager
def sniffer(refusal: Decision | None = None, seconds: float = 60) -> Iterator[tuple[Bench, Sniffer, list[Any]]]:
    """A sniffer before the relays of a bench, and what it has asked."""
    with Bench() as bench:
        asked: list[Any] = []

        def ask(session: Session, name: str) -> Decision | None:
            asked.append(name)
            return refusal

        def then(client: Stream, server: Stream, session: Session, seen: Seen) -> None:
            bench.relays.start(client, server, session, b"", seen.octets)

        made = Sniffer(FirstOctets(bench.relays.reactor, bench.relays, seconds), bench.relays, then, ask)
        made.sniffing = Sniffing(frozenset((LISTENER,)))
        try:
            yield bench, made, asked
        finally:
            made.close("shutdown")


class Reopening:
    """A carrier that may open destinations once more, and carries nothing."""

    reopens = True

    def start(self, *args: object) -> None:
        raise NotImplementedError

    def get(self, session: Session) -> None:
        raise NotImplementedError


def start(made: Sniffer, ends: Ends, head: bytes = b"", command: str = "connect") -> None:
    """Have a session carried."""
    ends.session.command = command
    made.start(ends.near_client, ends.near_server, ends.session, b"", head)


@pytest.mark.parametrize(
    ("octets", "protocol"),
    [(b"GET / HTTP/1.1\r\n\r\n", "http/1"), (b"\0", "raw"), (b"SSH-2.0-x\r\n", "ssh"), (HELLO, "tls")],
)
def test_what_is_noted(run: Run, octets: bytes, protocol: str) -> None:
    """The protocol; of TLS what the hello says; the session goes on, and the rules are asked where there is a name."""

    async def main() -> None:
        with sniffer() as (bench, made, asked):
            ends = bench.ends()
            start(made, ends)
            await send(ends.client, octets)
            assert await read(ends.server, len(octets)) == octets
            sniffed = ends.session.sniffed
            assert sniffed is not None
            if protocol == "tls":
                assert (sniffed.sni, sniffed.alpn) == ("name.test", ("h2", "http/1.1"))
                assert sniffed.ja3 is not None
                assert sniffed.ja4 is not None
                assert sniffed.ja4.startswith("t13d")
                assert asked == ["name.test"]
            else:
                assert sniffed == Sniffed(protocol)
                assert not asked

    run(main)


def test_tls_without_a_name_asks_no_rule(run: Run) -> None:
    """And an offer that is not text is shown as it can be."""

    async def main() -> None:
        with sniffer(Decision("deny")) as (bench, made, asked):
            ends = bench.ends()
            start(made, ends, hello(extension(16, vector(2, vector(1, b"\xff\n")))))
            await until(lambda: ends.session.sniffed)
            sniffed = ends.session.sniffed
            assert sniffed is not None
            assert (sniffed.sni, sniffed.alpn) == (None, ("\\xff\n",))
            assert not asked
            assert bench.relays.get(ends.session) is not None

    run(main)


def test_what_is_noted_of_an_offer_is_bounded(run: Run) -> None:
    """A client may offer 64 KiB of protocols; the log does not have them all."""

    async def main() -> None:
        with sniffer() as (bench, made, _):
            ends = bench.ends()
            start(made, ends, hello(extension(16, vector(2, vector(1, b"x" * 200) * 300))))
            sniffed = ends.session.sniffed
            assert sniffed is not None
            assert sniffed.alpn == ("x" * 32,) * 16

    run(main)


def test_which_sessions_are_sniffed(run: Run) -> None:
    """Connections of a listener or of a rule; all others go to the inner carrier by themselves."""

    async def main() -> None:
        with sniffer() as (bench, made, _):
            for sniffing, command, found in (
                (Sniffing(), "connect", False),
                (Sniffing(frozenset((LISTENER,))), "connect", True),
                (Sniffing(frozenset((LISTENER,))), "bind", False),
                (Sniffing(frozenset(("other",))), "connect", False),
                (Sniffing(frozenset(), frozenset(("here",))), "connect", True),
                (Sniffing(frozenset(), frozenset(("there",))), "connect", False),
            ):
                made.sniffing = sniffing
                ends = bench.ends()
                ends.session.rule = "here"
                start(made, ends, command=command)
                assert (made.get(ends.session) is not None) == found
                assert (bench.relays.get(ends.session) is None) == found
                assert sniffing.needed == bool(sniffing.listeners or sniffing.rules)

    run(main)


def test_it_reopens_destinations_if_the_inner_carrier_does(run: Run) -> None:
    """Who opens sessions then keeps the way out, whichever carrier is in front."""

    async def main() -> None:
        with sniffer() as (_, made, _asked):
            assert not made.reopens
            made.inner = Reopening()
            assert made.reopens

    run(main)


def test_a_denied_name_gets_an_alert(run: Run) -> None:
    """Access denied, then an end, also if more came behind the hello; the destination sees an end and not an octet."""

    async def main() -> None:
        for more in (b"", bytes(100_000)):
            with sniffer(Decision("deny", "no-names")) as (bench, made, _):
                ends = bench.ends()
                start(made, ends)
                await send(ends.client, HELLO + more)
                assert await read_all(ends.client) == ALERT
                assert await read_all(ends.server) == b""
                await ends.ended.wait()
                session = ends.session
                assert (session.close, session.rule, session.up, session.down) == ("denied", "no-names", 0, 0)
                assert session.error == "rule no-names: deny name.test, which its TLS asks for"
                assert session.sniffed is not None

    run(main)


def test_a_denied_client_that_sends_without_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read to its end."""
    monkeypatch.setattr(module, "MAX_UNREAD", 2)

    async def main() -> None:
        with sniffer(Decision("deny", "no-names")) as (bench, made, _):
            ends = bench.ends()
            await send(ends.client, HELLO + bytes(5 * READ_SIZE))
            await until(lambda: waiting(ends.near_client.sock) > 4 * READ_SIZE)  # type: ignore[arg-type]
            await ends.near_client.readable()
            start(made, ends)
            await ends.ended.wait()
            assert ends.session.close == "denied"

    run(main)


def test_an_alert_says_the_version_of_the_hello(run: Run) -> None:
    """A client of TLS 1.0 understands it too."""

    async def main() -> None:
        with sniffer(Decision("deny", "no-names")) as (bench, made, _):
            ends = bench.ends()
            octets = hello(server_name(b"name.test"))
            start(made, ends, octets[:10] + b"\x01" + octets[11:])
            assert await read_all(ends.client) == ALERT[:2] + b"\x01" + ALERT[3:]

    run(main)


def test_a_reset_by_a_rule(run: Run) -> None:
    """The client's connection is reset."""

    async def main() -> None:
        with sniffer(Decision("reset", "no-names")) as (bench, made, _):
            ends = bench.ends()
            start(made, ends, HELLO)
            with pytest.raises(ConnectionResetError):
                await read(ends.client, 1)
            assert (ends.session.close, ends.session.rule) == ("denied", "no-names")

    run(main)


@pytest.mark.parametrize("how", ["time", "cut", "close"])
def test_a_drop_by_a_rule(run: Run, how: str) -> None:
    """The client hears nothing until the time is over; the destination is closed at once."""

    async def main() -> None:
        with sniffer(Decision("drop", "no-names"), 0.05 if how == "time" else 60) as (bench, made, _):
            ends = bench.ends()
            if how == "cut":
                ends.session.lease = SimpleNamespace(meters=(), cut=None)
            start(made, ends, HELLO)
            assert await read_all(ends.server) == b""
            carried = made.get(ends.session)
            assert carried is not None
            assert carried.counts == (0, 0)
            assert not ends.ended.is_set()
            if how == "cut":
                ends.session.lease.cut("ended from outside", "kicked")
                carried.cut("again")
            elif how == "close":
                made.close("shutdown")
            assert await read_all(ends.client) == b""
            await ends.ended.wait()
            assert (ends.session.close, ends.session.rule) == ("denied", "no-names")
            assert made.get(ends.session) is None

    run(main)


def test_a_client_that_has_gone_gets_no_alert(run: Run) -> None:
    """It does not matter: the session is denied."""

    async def main() -> None:
        with sniffer(Decision("deny", "no-names")) as (bench, made, _):
            gone, full = bench.ends(), bench.ends(unix_pair(4096))
            reset(gone.client)
            await turns()
            gone.near_client.events = 0
            start(made, gone, HELLO)
            near: Any = full.near_client.sock
            fill(near)
            start(made, full, HELLO)
            for ends in (gone, full):
                await ends.ended.wait()
                assert ends.session.close == "denied"

    run(main)


def test_many_at_a_time(run: Run) -> None:
    """Each has its own answer."""

    async def main() -> None:
        with sniffer(Decision("deny", "no-names")) as (bench, made, asked):
            all_of_them = [bench.ends() for _ in range(20)]
            for ends in all_of_them:
                start(made, ends)
            await asyncio.gather(*(send(ends.client, HELLO) for ends in all_of_them))
            for ends in all_of_them:
                assert await read_all(ends.client) == ALERT
            assert len(asked) == 20

    run(main)


def test_which_relays_have_a_session(run: Run) -> None:
    """Those of the inner carrier, if that says so and the session is not sniffed."""

    async def main() -> None:
        with sniffer() as (bench, made, _):
            ends = bench.ends()
            ends.session.command = "connect"
            assert made.relays_for(ends.session) is None
            ends.session.command = "bind"
            assert made.relays_for(ends.session) is bench.relays
            made.inner = Reopening()
            assert made.relays_for(ends.session) is None

    run(main)


def test_a_dropped_client_has_no_descriptor_to_change(run: Run) -> None:
    """It hears nothing until its time is over."""

    async def main() -> None:
        with sniffer(Decision("drop", "no")) as (bench, made, _):
            ends = bench.ends()
            start(made, ends, HELLO)
            silent = made.get(ends.session)
            assert silent is not None
            assert silent.client_fd < 0

    run(main)
