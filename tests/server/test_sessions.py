"""Sessions from outside: who runs, what observers hear, and how one is ended."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from conftest import Run
from doubles import until
from support import target
from tabi import Proxy, ProxyError, Server, Session, SessionInfo, SessionObserver
from tabi.config import Config, Listen, Log, RuleConfig
from tabi.errors import ConfigError

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
            assert (sessions.watch, sessions.began, sessions.ended) == (None, (), ())

    run_once(main)


@pytest.mark.parametrize(
    ("hook", "wrong"),
    [("on_open", "name"), ("on_open", "two"), ("on_close", "name"), ("on_close", "two"), ("decide", "name")],
)
def test_what_cannot_be_called_is_refused(hook: str, wrong: str) -> None:
    """At once, not with the first session."""

    def takes_two(session: Session, more: object) -> None:
        """Nobody would give it the second."""

    given: dict[str, Any] = {hook: "print" if wrong == "name" else takes_two}
    with pytest.raises(ConfigError, match=f"^{hook}: .*expected a function"):
        Server(LISTEN, **given)


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
