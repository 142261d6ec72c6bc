"""Who asks the supervisor on behalf of clients, with a supervisor that the test plays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from conftest import Run
from sockets import turns
from tabi.server import asker as module
from tabi.server.asker import Asker
from tabi.server.channel import MAX_MESSAGE, Channel, make_channel


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Asker, Channel]]:
    """An asker that listens, and the supervisor's end."""
    ours, theirs = make_channel()
    asker = Asker(theirs, "1.2.3")
    theirs.watch(asyncio.get_running_loop(), asker.heard, lambda: None)
    try:
        yield asker, ours
    finally:
        ours.close()
        theirs.close()
    assert not asker.asked


def part(channel: Channel, number: int, pid: int, found: Any) -> None:
    """What a worker has said comes."""
    file = os.memfd_create("test")
    os.write(file, msgspec.json.encode({"ok": found}))
    channel.send({"id": number, "part": pid}, [file])
    os.close(file)


async def next_request(channel: Channel) -> dict[str, Any]:
    """What the supervisor is asked."""
    while (body := channel.next_body()) is None:
        await asyncio.sleep(0)
    return body


def descriptors() -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))


def test_parts_become_one_answer(run_once: Run) -> None:
    """Of workers, in any order between those of other questions; no file stays open."""

    async def main() -> None:
        async with asking() as (asker, channel):
            before = descriptors()
            first = asyncio.Task(asker.ask({"command": "kick", "all": True}))
            second = asyncio.Task(asker.ask({"command": "kick", "filter": {"id": "x"}}))
            one, other = await next_request(channel), await next_request(channel)
            assert one["request"] == {"command": "kick", "all": True}
            part(channel, other["id"], 1, {"ended": 5})
            part(channel, one["id"], 1, {"ended": 1})
            part(channel, one["id"], 2, {"ended": 2})
            channel.send({"id": other["id"], "silent": [8]})
            channel.send({"id": one["id"], "silent": []})
            assert await first == {"ok": {"ended": 3, "silent": []}}
            assert await second == {"ok": {"ended": 5, "silent": [8]}}
            assert descriptors() == before

    run_once(main)


def test_what_the_supervisor_answers_itself(run_once: Run) -> None:
    """As it is; a status has the version."""

    async def main() -> None:
        async with asking() as (asker, channel):
            for command, expected in (("reload", {"ok": {"x": 1}}), ("status", {"ok": {"x": 1, "version": "1.2.3"}})):
                task = asyncio.Task(asker.ask({"command": command}))
                channel.send({"id": (await next_request(channel))["id"], "ok": {"x": 1}})
                assert await task == expected

    run_once(main)


def test_what_is_wrong_is_not_asked(run_once: Run) -> None:
    """A request that is wrong, or too large; what the answers say is wrong has its key, too."""

    async def main() -> None:
        async with asking() as (asker, channel):
            assert await asker.ask({"command": "sessions", "sort": "x"}) == {
                "error": "'x', expected one of: seconds, up, down, octets",
                "path": "sort",
            }
            assert await asker.ask({"command": "x", "y": "z" * MAX_MESSAGE}) == {"error": "the request is too large"}
            assert channel.next_body() is None
            task = asyncio.Task(asker.ask({"command": "steer", "action": "drain", "pool": "p", "member": "m"}))
            number = (await next_request(channel))["id"]
            part(channel, number, 1, False)
            channel.send({"id": number, "silent": []})
            assert await task == {"error": "there is no member 'm' of a pool 'p'", "path": "member"}

    run_once(main)


def test_an_answer_that_comes_too_late(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks hears that there was none, and its files are closed."""
    monkeypatch.setattr(module, "PATIENCE", 0.05)

    async def main() -> None:
        async with asking() as (asker, channel):
            before = descriptors()
            task = asyncio.Task(asker.ask({"command": "kick", "all": True}))
            number = (await next_request(channel))["id"]
            part(channel, number, 1, {"ended": 1})
            assert await task == {"error": "the server has not answered within 0.05 s"}
            part(channel, number, 2, {"ended": 1})
            channel.send({"id": number, "silent": []})
            channel.send({"ready": True})
            await turns()
            assert descriptors() == before

    run_once(main)


def test_a_supervisor_that_is_gone(run_once: Run) -> None:
    """That is an answer, too."""

    async def main() -> None:
        async with asking() as (asker, channel):
            channel.close()
            assert await asker.ask({"command": "status"}) == {"error": "the server does not listen, try again later"}

    run_once(main)
