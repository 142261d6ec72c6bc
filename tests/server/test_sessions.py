"""Sessions from outside: who runs, what observers hear, and how one is ended."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable
from typing import Any

import pytest

from conftest import Run
from doubles import Doorman, FakeResolver, reset, unanswering, until
from sockets import turns
from support import client, closed_port, credentials, request, silent, target
from tabi import Decision, Proxy, ProxyError, Server, Session, SessionInfo, SessionObserver
from tabi.config import Config, EgressConfig, Listen, Log, RuleConfig, Seconds, Timeouts

LISTEN = "mixed://127.0.0.1:0"


class Told(SessionObserver):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def began(self, session: Session) -> None:
        self.events.append(("began", session.number))

    def authenticated(self, session: Session) -> None:
        self.events.append(("authenticated", session.user))

    def decided(self, session: Session) -> None:
        self.events.append(("decided", session.rule))

    def connected(self, session: Session) -> None:
        self.events.append(("connected", str(session.address)))

    def ended(self, session: Session) -> None:
        self.events.append(("ended", session.close))


async def ended(events: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The events of a session that has ended."""
    await until(lambda: any(event == "ended" for event, _ in events))
    return events


def test_an_observer_hears_all_of_a_session_in_its_order(run: Run) -> None:
    """From accept to end; `on_open` when the destination is connected, `on_close` when all is over."""

    async def main() -> None:
        told = Told()
        calls: list[str] = []
        async with (
            target() as port,
            Server(
                LISTEN,
                users={"alice": "secret"},
                config=Config(rule=[RuleConfig("allow", "all")], log=Log("none")),
                observers=[told],
                on_open=lambda session: calls.append(f"open {session.user}"),
                on_close=lambda session: calls.append(f"close {session.up}"),
            ) as server,
        ):
            async with Proxy(server.url).connect("127.0.0.1", port) as stream:
                await stream.send_all(b"four")
                assert await stream.receive() == b"four"
                assert calls == ["open alice"]
            assert await ended(told.events) == [
                ("began", 1),
                ("authenticated", "alice"),
                ("decided", "all"),
                ("connected", f"127.0.0.1:{port}"),
                ("ended", "client"),
            ]
            assert calls == ["open alice", "close 4"]

    run(main)


def test_a_refused_session_is_never_open(run_once: Run) -> None:
    """It ends, and `on_open` has not heard of it; nor has it of an observer that has only what it wants."""

    class Ends(SessionObserver):
        def ended(self, session: Session) -> None:
            calls.append(f"ended {session.close}")

    calls: list[str] = []

    async def main() -> None:
        config = Config(listen=[Listen(LISTEN)], rule=[RuleConfig("deny", "none")], log=Log("none"))
        async with Server(config=config, observers=[Ends()], on_open=lambda _: calls.append("open")) as server:
            with pytest.raises(ProxyError):
                await Proxy(server.url).connect("127.0.0.1", 1)
            await until(lambda: calls)
            assert server.parts.sessions.began == ()

    run_once(main)
    assert calls == ["ended denied"]


def test_without_observers_a_session_tells_nobody(run_once: Run) -> None:
    """What nobody listens to costs nothing: there is nothing to call."""

    async def main() -> None:
        async with Server(LISTEN) as server:
            sessions = server.parts.sessions
            assert (sessions.watch, sessions.began) == (None, ())
            assert sessions.ended == (server.metrics.ended,)  # which counts it
            assert not sessions.copies

    run_once(main)


def test_those_that_run_are_listed_with_live_counts(run: Run) -> None:
    """A snapshot for each: it does not change, a later one has what has flowed since."""

    async def main() -> None:
        async with target() as port, Server(LISTEN) as server:
            assert server.sessions() == []
            async with Proxy(server.url).connect("127.0.0.1", port) as stream:
                (before,) = server.sessions()
                await stream.send_all(b"seven77")
                assert await stream.receive() == b"seven77"
                (after,) = server.sessions()
                assert (before.up, before.down, after.up, after.down) == (0, 0, 7, 7)
                assert (after.id, after.protocol, after.command, after.via) == (1, "socks5", "connect", "direct")
                assert str(after.destination) == str(after.address) == f"127.0.0.1:{port}"
                assert 0 <= before.seconds <= after.seconds
                assert repr(after).startswith("<SessionInfo 1 127.0.0.1:")
                with pytest.raises(AttributeError):
                    after.up = 0  # type: ignore[misc]
            await until(lambda: not server.sessions())

    run(main)


async def kicked(server: Server, events: list[tuple[str, Any]], info: SessionInfo) -> None:
    """End one twice, and once more from a thread when it is over."""
    info.end()
    info.end()
    assert await ended(events)
    await asyncio.to_thread(info.end)
    await asyncio.sleep(0)
    assert events == [("ended", "kicked")]
    assert server.sessions() == []


class Ends(Told):
    """Notes the ends alone."""

    began = authenticated = decided = connected = SessionObserver.began  # type: ignore[assignment]


def test_a_tunnel_is_ended_from_outside(run: Run) -> None:
    """Both sides are closed, whatever was under way; twice, late and from another thread is harmless."""

    async def main() -> None:
        told = Ends()
        async with (
            target() as port,
            Server(LISTEN, observers=[told]) as server,
            Proxy(server.url).connect("127.0.0.1", port) as stream,
        ):
            (info,) = server.sessions()
            threading.Thread(target=info.end).start()
            assert await stream.receive() == b""
            await kicked(server, told.events, info)

    run(main)


def test_a_handshake_is_ended_from_outside(run: Run) -> None:
    """Somebody who has connected and said nothing yet."""

    async def main() -> None:
        told = Ends()
        async with Server(LISTEN, observers=[told]) as server:
            reader, writer = await asyncio.open_connection(*server.parts.acceptors[0].sock.getsockname())
            await until(lambda: server.sessions())
            (info,) = server.sessions()
            await kicked(server, told.events, info)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(main)


def test_an_association_is_ended_from_outside(run: Run) -> None:
    """Its control connection is closed."""

    async def main() -> None:
        told = Ends()
        async with Server(LISTEN, observers=[told]) as server, Proxy(server.url).associate():
            (info,) = server.sessions()
            assert info.command == "associate"
            await kicked(server, told.events, info)

    run(main)


def test_a_session_that_outlives_the_loop_is_over(run_once: Run) -> None:
    """A snapshot of a server that has been closed, with its loop."""
    kept: list[SessionInfo] = []

    async def main() -> None:
        async with Server(LISTEN) as server, Proxy(server.url).associate():
            kept.extend(server.sessions())

    run_once(main)
    kept[0].end()


# --- clients that go before anything is open ---

NAME = b"waits.test"
SOCKS5 = b"\x05\x01\x00"
NAMED = b"\x00\x03%c%b\x00\x50" % (len(NAME), NAME)
HOURS = Timeouts(*[Seconds(1e6)] * 7)

GONE = {
    "socks5": lambda port: SOCKS5 + request("127.0.0.1", port),
    "socks5, more behind it": lambda port: SOCKS5 + request("127.0.0.1", port) + b"GET /",
    "socks4": lambda port: b"\x04\x01%b\x7f\x00\x00\x01\x00" % port.to_bytes(2, "big"),
    "http connect": lambda port: b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port,
    "http": lambda port: b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port,
    "http with content": lambda port: (
        b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nfour" % port
    ),
    "a name": lambda _: SOCKS5 + b"\x05\x01" + NAMED,
    "a name, by http": lambda _: b"GET http://waits.test/ HTTP/1.1\r\nHost: waits.test\r\n\r\n",
    "bind, a name": lambda _: SOCKS5 + b"\x05\x02" + NAMED,
    "resolve": lambda _: SOCKS5 + b"\x05\xf0" + NAMED,
}


async def gone_after(server: Server, octets: bytes, asleep: Awaitable[object] | None = None) -> list[str | None]:
    """The error of a session whose client sends octets, and resets while it is waited for something else."""
    sessions = server.parts.sessions
    errors: list[str | None] = []
    sessions.ended = (*sessions.ended, lambda session: errors.append(session.error))
    async with client(server.addresses[0]) as (_, writer):
        writer.write(octets)
        await until(lambda: any(info.protocol for info in server.sessions()))
        await (turns() if asleep is None else asleep)
        assert not errors
        reset(writer)
        await until(lambda: not sessions.running)
    return errors


@pytest.mark.parametrize("octets", GONE.values(), ids=list(GONE))
@pytest.mark.parametrize("way", ["direct", "upstream", "pool"])
def test_a_client_that_resets_while_its_destination_is_opened(run_once: Run, octets: Any, way: str) -> None:
    """All that it had is free at once, whatever it was waiting for, not when a deadline is over."""

    async def main() -> None:
        resolver = FakeResolver()
        resolver.answering.clear()
        async with target(silent) as proxy:
            upstream = f"socks5://127.0.0.1:{proxy}"
            ways = {"upstream": EgressConfig(url=upstream), "pool": EgressConfig(members=[upstream])}
            config = Config(
                listen=[Listen(LISTEN, resolve_commands=True)],
                timeouts=HOURS,
                log=Log("none"),
                egress={"away": ways[way]} if way in ways else {},
                rule=[RuleConfig(via="away")] if way in ways else [],
            )
            with unanswering() as port:
                async with Server(config=config, resolver=resolver) as server:
                    assert await gone_after(server, octets(port)) == ["the client has gone"]

    run_once(main)


@pytest.mark.parametrize("octets", [GONE["socks5"], GONE["http connect"], GONE["http"]])
@pytest.mark.parametrize("how", ["waits", "delays"])
def test_a_client_that_resets_while_a_program_decides(run_once: Run, octets: Any, how: str) -> None:
    """Nobody waits for the answer any more."""

    async def main() -> None:
        asked = asyncio.Event()

        async def decide(session: Session) -> Decision:
            asked.set()
            if how == "waits":
                await asyncio.sleep(1e6)
            return Decision(delay=60)

        config = Config(listen=[Listen(LISTEN)], timeouts=HOURS, log=Log("none"))
        async with Server(config=config, decide=decide) as server:
            assert await gone_after(server, octets(1), asked.wait()) == ["the client has gone"]

    run_once(main)


@pytest.mark.parametrize(
    "octets",
    [
        b"\x05\x01\x02" + credentials(b"alice", b"alice"),
        b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic YTph\r\n\r\n",
    ],
)
def test_a_client_that_resets_while_a_program_is_asked_who_it_is(run_once: Run, octets: bytes) -> None:
    """It leaves no session behind."""

    async def main() -> None:
        doorman = Doorman()
        doorman.answering.clear()
        config = Config(listen=[Listen(LISTEN)], timeouts=HOURS, log=Log("none"))
        async with Server(config=config, authenticate=doorman) as server:
            found = await gone_after(server, octets, until(lambda: doorman.asked))
            assert found == ["the client has gone"]

    run_once(main)


def test_a_client_that_ends_its_side_early_is_served(run: Run) -> None:
    """An end is no reset: some clients say at once that they send no more, and wait for the answer."""

    async def main() -> None:
        resolver = FakeResolver({"waits.test": ["127.0.0.1"]})
        resolver.answering.clear()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == b"all of it"
            writer.write(b"an answer")

        async with target(answer) as port, Server(LISTEN, resolver=resolver) as server:
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(SOCKS5 + b"\x05\x01" + NAMED[:-2] + port.to_bytes(2, "big") + b"all of it")
                writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
                await until(lambda: resolver.asked)
                await turns()
                resolver.answering.set()
                assert (await reader.read())[12:] == b"an answer"
            await until(lambda: not server.sessions())

    run(main)


def test_a_refused_client_that_sends_on_and_ends_has_its_refusal(run: Run) -> None:
    """Both sides have ended then, in good order: that is no reset, and what comes before it is still taken."""

    async def main() -> None:
        ended: list[str] = []
        with closed_port() as port:
            async with Server(LISTEN, on_close=lambda session: ended.append(session.close)) as server:
                await refused(server, port, ended)

    async def refused(server: Server, port: int, ended: list[str]) -> None:
        async with client(server.addresses[0]) as (reader, writer):
            writer.write(SOCKS5 + request("127.0.0.1", port))
            assert (await reader.read())[:4] == b"\x05\x00\x05\x05"
            writer.write(b"more")  # both at once, before the server's next turn
            writer.write_eof()
            await until(lambda: ended)
        assert ended == ["error"]

    run(main)
