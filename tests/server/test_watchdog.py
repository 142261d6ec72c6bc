"""The watchdog: a slow turn is told with the session that it was for, and not more often than once a minute."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

import tabi
from conftest import Run
from sockets import tcp_pair
from tabi.net.reactor import SLOW, get_reactor
from tabi.net.stream import Stream
from tabi.server.watchdog import REPORT_EVERY, Watchdog
from tabi.session import Session
from tabi.wire.address import from_sockaddr


def make_session(number: int, port: int = 1000) -> Session:
    """A session of a client at a port."""
    return Session(number, "socks5://127.0.0.1:0", from_sockaddr(("127.0.0.9", port)), 0.0)


class Part:
    """Whatever has a session, or belongs to what has one."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


def test_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """All are counted; the line says how many there were."""
    watchdog = Watchdog({})
    with caplog.at_level(logging.WARNING, "tabi"):
        watchdog(0.25, [], 100.0)
        watchdog(0.3, [], 100.0 + REPORT_EVERY - 1)
        watchdog(0.5, [Part(session=make_session(0x1F)), Part(), Part()], 100.0 + REPORT_EVERY)
    assert [record.getMessage() for record in caplog.records] == [
        "a turn of the loop took 250 ms, most of it for a callback of the program; slow turns so far: 1",
        "a turn of the loop took 500 ms, most of it for session 1f of 127.0.0.9:1000 or Part; slow turns so far: 3",
    ]


def test_a_suspect_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that was slow within the turn, beside the session; one that was slow before it is not."""
    watchdog = Watchdog({})
    asked = []

    def suspect(when: float) -> str | None:
        asked.append(when)
        return "hook Slow.request (240 ms)" if when < 300.0 else None

    watchdog.suspects += [lambda when: None, suspect]
    with caplog.at_level(logging.WARNING, "tabi"):
        watchdog(0.25, [], 100.0)
        watchdog(0.25, [Part(session=make_session(0x1F))], 200.0)
        watchdog(0.25, [], 400.0)
    assert [record.getMessage().split("most of it for ")[1] for record in caplog.records] == [
        "hook Slow.request (240 ms); slow turns so far: 1",
        "hook Slow.request (240 ms) of session 1f of 127.0.0.9:1000; slow turns so far: 2",
        "a callback of the program; slow turns so far: 3",
    ]
    assert asked == [99.75, 199.75, 399.75]


def test_whose_it_was() -> None:
    """A part that has a session, what belongs to it, or a task of a session; anything else is nobody's."""
    session = make_session(1)
    watchdog = Watchdog({make_session(2): None, session: None})
    for culprit in (Part(session=session), Part(relay=Part(session=session)), Part(association=Part(session=session))):
        assert watchdog.session_of(culprit) is session
        assert watchdog.session_of(Part(owner=culprit)) is session
    assert watchdog.session_of(Part(session="no session")) is None


def test_a_task_or_its_stream(run_once: Run) -> None:
    """The session whose task it is, or whose task waits on the stream, or whose client or destination it leads to."""

    async def main() -> None:
        near, far = tcp_pair()
        stream = Stream(get_reactor(), near)
        session, other, third = make_session(1), make_session(2), make_session(3)

        async def wait() -> None:
            await stream.receive()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(wait())
            await asyncio.sleep(0)
            watchdog = Watchdog({other: None, session: task})
            assert watchdog.session_of(task) is session
            assert watchdog.session_of(stream) is session
            third.address = from_sockaddr(near.getpeername())
            assert Watchdog({other: None, third: None}).session_of(stream) is third
            assert Watchdog({other: None}).session_of(stream) is None
            far.close()
        stream.close()
        near.close()
        assert Watchdog({third: None}).session_of(stream) is None

    run_once(main)


def test_a_program_that_blocks_is_told_with_its_session(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A hook that does not come back for long is what operators look for."""

    def decide(session: tabi.Session) -> tabi.Decision:
        time.sleep(1.5 * SLOW)  # it is the fault that is looked for
        return tabi.Decision(action="deny")

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0", decide=decide) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.addresses[0].port)
            port = writer.get_extra_info("sockname")[1]
            writer.write(b"\5\1\0")
            assert await reader.readexactly(2) == b"\5\0"
            writer.write(b"\5\1\0\1\xc0\0\2\1\0\1")
            assert (await reader.readexactly(10))[1] == 2
            writer.close()
            found = [record.getMessage() for record in caplog.records if "a turn of the loop" in record.getMessage()]
            assert len(found) == 1
            assert f"most of it for session 1 of 127.0.0.1:{port}" in found[0]

    with caplog.at_level(logging.WARNING, "tabi"):
        run_once(main)
