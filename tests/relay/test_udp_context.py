"""What associations share: the memory of what waits, and questions that the end waits for."""

from __future__ import annotations

import asyncio

import pytest

from conftest import Run
from datagrams import Place
from tabi.relay import udp_context
from tabi.relay.udp_context import HeldMemory


def test_memory_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the octet; what waits no more makes room again."""
    monkeypatch.setattr(udp_context, "MEMORY", 10)
    memory = HeldMemory()
    assert memory.has_room(10)
    assert not memory.has_room(11)
    memory.held = 4
    assert memory.has_room(6)
    assert not memory.has_room(7)


def test_the_end_waits_for_questions(run: Run) -> None:
    """A server that stops waits until each task of its associations has ended, and forgets those that have."""

    async def main() -> None:
        ended: list[str] = []
        answered = asyncio.Event()

        async def ask() -> str:
            await answered.wait()
            ended.append("asked")
            return "answer"

        async with Place() as place:
            context = place.server.parts.associations.context
            first, second = context.look_up(ask()), context.look_up(ask())
            assert context.lookups == {first, second}
            asyncio.get_running_loop().call_soon(answered.set)
        assert (ended, first.result(), context.lookups) == (["asked"] * 2, "answer", set())

    run(main)
