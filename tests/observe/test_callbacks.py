"""``on_open`` and ``on_close`` that are async: each call is awaited, by the server's end at the latest."""

from __future__ import annotations

import asyncio
import logging

import pytest

from conftest import Run
from support import target
from tabi import Proxy, Server, Session
from tabi.observe import callbacks
from tabi.observe.callbacks import Callbacks, is_async
from tabi.wire.address import parse_address

LISTEN = "socks5://127.0.0.1:0"


def session(number: int = 1) -> Session:
    """A session."""
    return Session(number, LISTEN, parse_address("127.0.0.1:1"), 0.0)


def test_async_functions_hear_of_sessions(run: Run) -> None:
    """They may wait; the server's end waits for them, and what they got stays as it was."""
    heard: list[tuple[str, int, str | None]] = []

    async def opened(session: Session) -> None:
        await asyncio.sleep(0)
        heard.append(("open", session.number, session.command))

    async def closed(session: Session) -> None:
        await asyncio.sleep(0.01)
        heard.append(("close", session.up, session.close))

    async def main() -> None:
        server = Server(LISTEN, on_open=opened, on_close=closed)
        async with target() as port, server:
            proxy = Proxy(server.url)
            async with proxy.connect("127.0.0.1", port) as stream:
                await stream.send_all(b"seven77")
                assert await stream.receive_exactly(7) == b"seven77"
            await server.drain()
        assert heard == [("open", 1, "connect"), ("close", 7, "client")]

    run(main)


def test_what_they_raise_is_logged(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The traceback is in the log, and the next call is made."""

    async def fail(session: Session) -> None:
        raise ZeroDivisionError("of the program")

    async def main() -> None:
        made = Callbacks()
        tell = made.plain(fail, "on_close")
        tell(session())
        tell(session())
        await made.close()
        assert not made.tasks

    run_once(main)
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.ERROR, "on_close failed")] * 2
    assert "of the program" in caplog.text


def test_calls_that_never_end(run_once: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """So many are under way at once, so long each; the server's end does not wait for ever."""
    monkeypatch.setattr(callbacks, "MAX_RUNNING", 2)
    monkeypatch.setattr(callbacks, "PATIENCE", 0.02)
    started: list[int] = []

    async def hang(session: Session) -> None:
        started.append(session.number)
        await asyncio.Event().wait()

    async def main() -> None:
        made = Callbacks()
        tell = made.plain(hang, "on_open")
        for number in range(5):
            tell(session(number))
        await asyncio.sleep(0)
        assert started == [0, 1]
        assert made.dropped == 3
        await made.close()
        await asyncio.sleep(0)
        assert not made.tasks
        monkeypatch.setattr(callbacks, "LONGEST", 0.01)
        monkeypatch.setattr(callbacks, "PATIENCE", 10)
        tell(session(9))
        await made.close()

    run_once(main)
    assert caplog.text.count("on_open: 2 calls are under way, further ones are dropped") == 1
    assert "TimeoutError" in caplog.text


def test_which_functions_are_async() -> None:
    """Also an object with an async ``__call__``; what is not is called as it is."""

    class Caller:
        async def __call__(self, session: Session) -> None:
            """Hear of it."""

    assert is_async(Caller())
    assert not is_async(print)
    assert Callbacks().plain(print, "on_open") is print
