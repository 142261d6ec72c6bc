"""Places that no client can have all of."""

from __future__ import annotations

import asyncio

import pytest

from conftest import Run
from tabi.net.places import Places


async def settle() -> None:
    """Let all tasks run that can."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_client_has_as_many_as_are_free() -> None:
    """One alone half of them, the next ones half of what is left, and there is always one for another client."""
    places = Places(16)
    for client, count in (("a", 8), ("b", 4), ("c", 2), ("d", 1)):
        assert [places.take(client) for _ in range(count + 2)] == [True] * count + [False] * 2
    assert (places.free, places.held) == (1, {"a": 8, "b": 4, "c": 2, "d": 1})
    for _ in range(8):
        places.give_back("a")
    assert places.held == {"b": 4, "c": 2, "d": 1}
    assert places.take("d")


def test_who_wants_more_waits_in_its_own_line(run_once: Run) -> None:
    """In the order of coming, and nobody of that client overtakes; others do not wait for it."""

    async def main() -> None:
        places, order = Places(4), list[str]()

        async def want(name: str) -> None:
            if not places.take(name[0]):
                await places.wait(name[0])
            order.append(name)

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(want(f"a{number}")) for number in range(4)]
        await settle()
        assert order == ["a0", "a1"]
        await want("b0")
        assert not places.take("a")
        places.give_back("b")
        await settle()
        assert order == ["a0", "a1", "b0"]
        for _ in range(2):
            places.give_back("a")
            await settle()
        assert order == ["a0", "a1", "b0", "a2", "a3"]
        await asyncio.gather(*tasks)
        for _ in range(2):
            places.give_back("a")
        assert (places.free, places.held, places.waiting) == (4, {}, {})

    run_once(main)


def test_lines_have_their_turn_one_after_the_other(run_once: Run) -> None:
    """A long line delays a short one by one place."""

    async def main() -> None:
        places, order = Places(2), list[str]()

        async def want(client: str) -> None:
            await places.wait(client)
            order.append(client)

        assert places.take("x")
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(want(client)) for client in "aaab"]
        await settle()
        places.free = 0  # as if others had all the rest
        for client in ("x", "a", "b", "a"):
            places.give_back(client)
            await settle()
        assert order == ["a", "b", "a", "a"]
        await asyncio.gather(*tasks)

    run_once(main)


@pytest.mark.parametrize("late", [False, True])
def test_who_leaves_takes_no_place_along(run_once: Run, late: bool) -> None:
    """Also where it leaves in the very turn in which its place comes, before or after that."""

    async def main() -> None:
        places = Places(2)
        assert places.take("a")
        loop = asyncio.get_running_loop()
        gone, stays = (loop.create_task(places.wait("a")) for _ in range(2))
        await settle()
        if late:
            places.give_back("a")
            gone.cancel()
        else:
            gone.cancel()
            places.give_back("a")
        await asyncio.wait((gone, stays))
        assert gone.cancelled()
        assert not stays.cancelled()
        assert places.held == {"a": 1}
        places.give_back("a")
        waits = loop.create_task(places.wait("b"))
        await settle()
        waits.cancel()
        await asyncio.wait((waits,))
        assert (places.free, places.held, places.waiting) == (2, {}, {})

    run_once(main)


def test_one_place_goes_round_the_clients(run_once: Run) -> None:
    """A client with many tasks has one turn, then the others have theirs; an error gives the turn back."""

    async def main() -> None:
        turn, order, within = Places(1), list[str](), 0

        async def work(name: str) -> None:
            nonlocal within
            async with turn.held_by(name[0]):
                within += 1
                assert within == 1
                order.append(name)
                await asyncio.sleep(0)
                within -= 1

        async with asyncio.TaskGroup() as group:
            for name in ("a0", "a1", "a2", "a3", "b0", "b1", "c0"):
                group.create_task(work(name))
        assert order == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]
        with pytest.raises(ValueError, match="within"):
            async with turn.held_by("a"):
                raise ValueError("within")
        assert (turn.free, turn.held, turn.waiting) == (1, {}, {})

    run_once(main)
