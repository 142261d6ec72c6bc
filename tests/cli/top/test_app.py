"""The screen of `tabi top`: its keys, what it shows of a server that changes, goes and comes, and its looks."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from processes import PATIENCE, serve, tunnels
from tabi.cli.running import ask
from tabi.cli.top.app import KEYS, Sure, Top, in_thread
from tabi.cli.top.looks import Looks, Query
from watched import HOSTILE, Watched, account, member, refusal, session

PAGE = Path(__file__).parents[3] / "docs" / "top.md"

NEVER = 3600.0


def text_of(app: Top) -> str:
    """What is on the screen."""
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in lines)


class User:
    """Who types."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def screen(self) -> str:
        """What there is to see."""
        return text_of(self.app)

    @property
    def chosen(self) -> str:
        """The id or the name of the row that is chosen."""
        row = self.app.table.chosen
        return "" if row is None else str(row.get("id") or row.get("name") or row.get("member"))

    async def press(self, *keys: str) -> None:
        """Press keys, and see what is there at once."""
        await self.pilot.press(*keys)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something, with a deadline."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.pilot.pause(0.005)

    async def sees(self, text: str) -> None:
        """Wait for a text."""
        try:
            await self.until(lambda: text in self.screen)
        except TimeoutError:
            raise AssertionError(f"no {text!r} in\n{self.screen}") from None

    async def look(self) -> None:
        """Have one look more, and see it."""
        asked = len(self.watched.asked)
        await self.press("space")
        await self.until(lambda: len(self.watched.asked) >= asked + 2 and not self.app.looking)

    @property
    def watched(self) -> Watched:
        """The server that the test has made."""
        found = self.app.looks.ask.__self__  # type: ignore[attr-defined]
        assert isinstance(found, Watched)
        return found


@asynccontextmanager
async def using(looks: Looks, size: tuple[int, int] = (80, 24), every: float = NEVER) -> AsyncIterator[User]:
    """Somebody at the screen."""
    app = Top(looks, looks.take(Query()), "1.0", every)
    async with app.run_test(size=size) as pilot:
        user = User(app, pilot)
        await user.sees("q quit")
        yield user


def run(main: Callable[[], Any]) -> None:
    """Run a test."""
    asyncio.run(main())


def some() -> Watched:
    """A server with a few of everything."""
    watched = Watched()
    watched.sessions = [session(number, user=f"user-{number}") for number in range(60)]
    watched.users = [{"name": "alice", "sessions": 2, "up": 1000, "down": 2000}]
    watched.accounts = [account("user alice", quota="5GB/day", quota_octets=5_000_000_000, used=2_500_000_000)]
    watched.members = [member("one"), member("two", up=False, trial_in=8.0, reason="refused")]
    watched.refusals = [refusal(1)]
    return watched


def test_each_view_shows_its_rows() -> None:
    """By its number, and one after the other by Tab; only what is shown is asked for."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            await user.sees("user-19")
            for key, text in (("2", "50 %"), ("3", "out, trial in 8.0 s"), ("4", "192.168.0.1:22"), ("1", "user-0")):
                watched.asked.clear()
                await user.press(key)
                await user.sees(text)
                assert len(watched.asked) == 2, "the totals, and the rows"
            for text in ("50 %", "refused", "192.168.0.1:22", "user-0"):
                await user.press("tab")
                await user.sees(text)
            await user.press("shift+tab")
            await user.sees("192.168.0.1:22")

    run(main)


def test_the_chosen_row_stays_chosen() -> None:
    """Wherever it is in the next look; where it is gone, the one in its place is."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            await user.press("down", "down")
            assert user.chosen == "5f3a1c-2"
            watched.sessions.reverse()
            await user.look()
            assert user.chosen == "5f3a1c-2"
            assert "user-2 " in user.screen, "the screen follows it"
            watched.sessions = watched.sessions[:3]
            await user.look()
            assert user.chosen == watched.sessions[-1]["id"]
            watched.sessions = []
            await user.look()
            assert user.chosen == ""
            assert "no sessions" in user.screen
            await user.press("down", "up", "end", "k")
            assert "choose a session or a user" in user.screen

    run(main)


def test_keys_move_through_all_rows() -> None:
    """Up, down, pages, first and last; the row is always on the screen, and so are the titles."""

    async def main() -> None:
        async with using(some().looks) as user:
            for keys, chosen in (
                (["end"], 59), (["up"], 58), (["home"], 0), (["pagedown"], 19), (["pagedown"], 38), (["pageup"], 19),
                (["up"] * 30, 0),
            ):  # fmt: skip
                await user.press(*keys)
                assert user.chosen == f"5f3a1c-{chosen:x}"
                assert f"user-{chosen} " in user.screen
                assert "destination" in user.screen.splitlines()[2]
            await user.press("pagedown", "pagedown")
            await user.pilot.click("Table", offset=(3, 2))
            assert f"user-{int(user.chosen.removeprefix('5f3a1c-'), 16)} " in user.screen.splitlines()[2 + 2]

    run(main)


def test_end_asks_once_and_ends_that_session() -> None:
    """The one that was chosen when k was pressed, whatever has moved since. No is no."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            await user.press("down", "k")
            await user.sees("End the session of user-1 to example.com:443?")
            await user.press("n")
            await user.until(lambda: not isinstance(user.app.screen, Sure))
            assert len(watched.sessions) == 60
            await user.press("delete")
            await user.sees("End the session of user-1")
            watched.sessions.reverse()
            await user.press("y")
            await user.sees("1 ended")
            await user.until(lambda: not user.app.looking)
            assert ("kick", {"filter": {"id": "5f3a1c-1"}}) in watched.asked
            assert "user-1 " not in user.screen

    run(main)


def test_end_of_a_user_ends_all_that_are_theirs() -> None:
    """From the list of users."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            await user.press("2")
            await user.sees("5GB/day")
            await user.press("k")
            await user.sees("End all sessions of alice?")
            await user.press("enter")
            await user.sees("0 ended")
            assert ("kick", {"filter": {"user": "alice"}}) in watched.asked

    run(main)


def test_drain_takes_a_member_out_and_in() -> None:
    """Without asking, since it can be undone. What is no member is not drained."""

    async def main() -> None:
        watched = some()
        watched.count("tabi_sessions_open", 1, egress="direct")
        async with using(watched.looks) as user:
            await user.press("d")
            assert "choose the member of a pool" in user.screen
            await user.press("3")
            await user.sees("refused")
            await user.press("d")
            assert "choose the member of a pool" in user.screen
            await user.press("down", "d")
            await user.sees("one gets no more requests")
            assert watched.members[0]["drained"]
            await user.sees("drained")
            await user.press("d")
            await user.sees("one gets requests again")
            assert not watched.members[0]["drained"]

    run(main)


def test_search_is_done_by_the_server() -> None:
    """Enter searches, and Escape shows all again; the keys are letters while one types."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            await user.press("slash", *"user-5", "enter")
            await user.sees("11 by octets with user-5")
            assert watched.asked[-1][1]["filter"] == {"search": "user-5"}
            await user.press("slash", *"qkd", "escape")
            await user.sees("60 by octets")
            assert user.app.is_running
            assert user.app.query_one("#search", Input).styles.display == "none"

    run(main)


def test_another_order_is_asked_of_the_server() -> None:
    """One after the other, and around."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            for order in ("down", "up", "seconds", "octets"):
                await user.press("s")
                await user.sees(f"60 by {order}")
                assert watched.asked[-1][1]["sort"] == order

    run(main)


def test_enter_shows_the_sessions_of_a_user() -> None:
    """And those by an egress."""

    async def main() -> None:
        watched = some()
        watched.sessions[7]["user"] = "alice"
        async with using(watched.looks) as user:
            await user.press("2")
            await user.sees("5GB/day")
            await user.press("enter")
            await user.sees("1 by octets with alice")
            await user.press("3")
            await user.sees("refused")
            await user.press("enter")
            await user.sees("with exits")

    run(main)


def test_a_server_that_goes_away_is_said_and_looked_for_again() -> None:
    """What it said last stays, and once it answers again there is nothing to say."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks, every=0.02) as user:
            watched.gone = f"no server runs {HOSTILE}"
            await user.sees(r"no answer, tabi looks again: no server runs a\x1b[2J[red]")
            assert "user-3 " in user.screen
            watched.gone = ""
            await user.sees("q quit")

    run(main)


def test_what_the_server_refuses_is_said() -> None:
    """A member that is gone meanwhile, say."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            await user.press("3")
            await user.sees("refused")
            watched.gone = "there is no such member"
            await user.press("d")
            await user.sees("not done: there is no such member")

    run(main)


def test_keys_do_not_wait_for_a_server_that_does_not_answer() -> None:
    """It is asked in a thread, one look at a time, and the program ends without it."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            watched.open.clear()
            watched.waits.clear()
            await user.press("space")
            await user.until(watched.waits.is_set)
            asked = len(watched.asked)
            await user.press("down", "space", "space", "question_mark")
            await user.sees(KEYS[0][1])
            assert len(watched.asked) == asked
            await user.press("q", "q")
            await user.until(lambda: not user.app.is_running)
        watched.open.set()

    run(main)


def test_a_look_that_is_no_longer_wanted_is_not_shown() -> None:
    """Who has gone on to another view sees that one."""

    async def main() -> None:
        watched = some()
        async with using(watched.looks) as user:
            watched.open.clear()
            await user.press("space", "2")
            watched.open.set()
            await user.sees("5GB/day")
            await user.until(lambda: not user.app.looking)
            assert user.app.last.query.view == "users"

    run(main)


@pytest.mark.parametrize("key", ["1", "2", "3", "4"])
def test_hostile_names_are_letters_on_the_screen(key: str) -> None:
    """They control no terminal, and are not read as markup: in rows, in questions, in what is said."""

    async def main() -> None:
        watched = some()
        watched.sessions = [session(1, user=HOSTILE, host=HOSTILE, via=HOSTILE)]
        watched.users = [{"name": HOSTILE, "sessions": 1, "up": 0, "down": 0}]
        watched.members = [member(HOSTILE, pool=HOSTILE)]
        watched.refusals = [refusal(1, user=HOSTILE, host=HOSTILE, error=HOSTILE)]
        async with using(watched.looks, size=(200, 24)) as user:
            await user.press("slash", *"x", "enter")
            await user.press(key)
            await user.sees(r"a\x1b[2J[red]\r\n\x9b\u202e\ud800")
            await user.press("d" if key == "3" else "k")
            await user.pilot.pause()
            screen = user.screen
            assert all(letter.isprintable() or letter == "\n" for letter in screen)
            if key in "12":
                assert r"of a\x1b[2J[red]" in screen

    run(main)


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (10, 3), (250, 70)], ids=str)
def test_every_size_of_a_terminal_will_do(size: tuple[int, int]) -> None:
    """80x24 has all that matters; others are no error, and the size may change."""

    async def main() -> None:
        watched = some()
        for number, row in enumerate(watched.sessions):
            row |= {"host": "h" * 60, "user": "\u65c5" * 9, "up": number * 10**9, "down": number * 10**12}
        async with using(watched.looks) as user:
            await user.pilot.resize_terminal(*size)
            await user.press("end")
            for line in user.screen.splitlines():
                assert len(line) <= size[0]
            if size == (80, 24):
                assert "\u65c5" in user.screen
                assert user.screen.splitlines()[2].split() == [
                    "user", "client", "destination", "egress", "up/s", "down/s", "down"
                ]  # fmt: skip

    run(main)


def test_what_a_thread_finds_out_comes_back() -> None:
    """Its errors too; and a loop that has ended meanwhile is not missed."""
    go = threading.Event()

    async def main() -> None:
        assert await in_thread(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await in_thread(go.wait)

    asyncio.run(main())
    go.set()
    for thread in threading.enumerate():
        if thread.name == "ask":
            thread.join(PATIENCE)


def test_a_real_server_is_watched_and_steered(tmp_path: Path) -> None:
    """Its sessions with live rates; the one that is ended is gone, and its client notices."""

    async def main() -> None:
        environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
        with serve(tmp_path, environ=environ) as proxy, tunnels(proxy.address, 3) as (first, second, third):
            now = iter(range(100, 10_000, 2))
            looks = Looks(partial(ask, tmp_path / "tabi/control.sock"), lambda: next(now))
            second.client.sendall(bytes(50_000))
            await asyncio.to_thread(receive, second.server, 50_000)
            async with using(looks, size=(140, 24)) as user:
                await user.sees("50 kB")
                assert user.app.last.matching == 3
                second.client.sendall(bytes(50_000))
                await asyncio.to_thread(receive, second.server, 50_000)
                await user.press("space")
                await user.sees("100 kB")
                row = user.app.table.chosen
                assert row is not None
                assert row["client"] == "{}:{}".format(*second.client.getsockname())
                assert row["up_rate"] > 0
                await user.press("k", "y")
                await user.sees("1 ended")
                assert await asyncio.to_thread(second.client.recv, 1) == b""
                await user.until(lambda: user.app.last.matching == 2)
                first.check()
                third.check()
                proxy.stop()
                await user.press("space")
                await user.sees("no answer, tabi looks again: ")

    run(main)


def receive(sock: Any, size: int) -> None:
    """Read so many octets."""
    while size:
        size -= len(sock.recv(size))


def test_the_page_has_the_screen() -> None:
    """The picture in docs/top.md is what is shown of such a server. ``TABI_WRITE=1`` writes it anew."""

    async def main() -> None:
        watched = Watched()
        watched.sessions = json.loads((Path(__file__).parent / "sessions.json").read_text())
        watched.matching = 1_204
        watched.count("tabi_sessions_open", 1_204)
        watched.count("process_resident_memory_bytes", 61e6)
        looks = watched.looks
        looks.take(Query())
        for row in watched.sessions:
            row["seconds"] += 2
            row["up"] += row.pop("more_up")
            row["down"] += row.pop("more_down")
        watched.now += 2
        watched.count("tabi_sessions_total", 86, command="connect", close="done")
        watched.count("tabi_sessions_total", 6, command="connect", close="denied")
        watched.count("tabi_octets_total", 3_100_000, direction="up")
        watched.count("tabi_octets_total", 97_000_000, direction="down")
        watched.count("process_cpu_seconds_total", 0.22)
        async with using(looks, size=(100, 16)) as user:
            picture = f"```text\n{user.screen}\n```"
        page = PAGE.read_text()
        if os.environ.get("TABI_WRITE"):
            PAGE.write_text(re.sub(r"```text\ntabi 1.*?```", lambda _: picture, page, count=1, flags=re.S))
        assert picture in PAGE.read_text()

    run(main)
