"""The screen of `tabi top`. The server is asked in threads of its own: what is typed never waits for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tabi.cli.sessions import destination
from tabi.cli.top.looks import ORDERS, Look, Looks, Query, Row
from tabi.cli.top.table import Table
from tabi.cli.top.tables import VIEWS, headline
from tabi.errors import TabiError, printable

Found = TypeVar("Found")

NOTED = 6.0
"""Seconds for which it is said what was done."""

KEYS = (
    ("1 2 3 4  Tab", "sessions, users, egress, refusals"),
    ("Enter", "the sessions of the user, or by the egress"),
    ("/", "search: a part of a name or an address; Esc ends it"),
    ("s", "sort by something else"),
    ("k  Delete", "end the session, or all sessions of the user"),
    ("d", "drain the member of a pool, or bring it back"),
    ("Space", "look now"),
    ("q", "quit"),
)


async def in_thread(function: Callable[[], Found]) -> Found:
    """What a function returns or raises, in a thread that the program does not wait for when it ends."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Found] = loop.create_future()

    def tell(how: Callable[[Any], None], what: Any) -> None:
        if not found.done():
            how(what)

    def run() -> None:
        try:
            how, what = found.set_result, function()
        except Exception as exc:
            how, what = found.set_exception, exc  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, how, what)

    threading.Thread(target=run, name="ask", daemon=True).start()
    return await found


class Sure(ModalScreen[bool]):
    """Asks whether something is to be done."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "dismiss(True)", "Yes"),
        Binding("n,escape,q", "dismiss(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        """The question."""
        with Vertical():
            yield Static(Text(printable(self.question)))
            yield Static(Text("y  yes      n  no", style="bold"))


class Help(ModalScreen[None]):
    """Says what the keys do."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter,space", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        """The keys."""
        with Vertical():
            yield Static(Text("\n".join(f"{keys:14}{text}" for keys, text in KEYS)))


class Top(App[None]):
    """Shows looks.

    Args:
        looks: takes them.
        first: what to show at once; further ones are of the same view, until another one is chosen.
        version: of the server.
        every: seconds between two looks.
    """

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(number), f"view({name!r})", VIEWS[name].title) for number, name in enumerate(VIEWS, 1)),
        Binding("slash", "search", "Search"),
        Binding("escape", "search_nothing", "All"),
        Binding("s", "order", "Sort"),
        Binding("k,delete", "end", "End"),
        Binding("d", "drain", "Drain"),
        Binding("space", "look", "Look"),
        Binding("question_mark", "help", "Help"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", priority=True),
    ]
    CSS = """
    Screen, Static, Table { background: ansi_default; color: ansi_default; }
    Static { height: 1; }
    #search { display: none; height: 1; border: none; padding: 0; background: ansi_default; color: ansi_default; }
    ModalScreen { align: center middle; background: transparent; }
    ModalScreen Vertical { width: auto; max-width: 90%; height: auto; border: round ansi_default; padding: 0 1; }
    ModalScreen Static { height: auto; width: auto; max-width: 100%; }
    """

    def __init__(self, looks: Looks, first: Look, version: str, every: float) -> None:
        super().__init__(ansi_color=True)
        self.looks = looks
        self.last = first
        self.version = version
        self.every = every
        self.query_now = first.query
        self.looking = False
        self.again = False
        self.said = ""
        """What is said in the last line, until the next key."""

    def compose(self) -> ComposeResult:
        """The lines of the screen, from above."""
        yield Static(id="head")
        yield Static(id="views")
        yield Table()
        yield Input(id="search", placeholder="search", select_on_focus=False, compact=True)
        yield Static(id="foot")

    def on_mount(self) -> None:
        """Begin."""
        if not self.is_headless:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit)
        self.table = self.query_one(Table)
        self.box = self.query_one("#search", Input)
        self.head, self.views, self.foot = (self.query_one(f"#{name}", Static) for name in ("head", "views", "foot"))
        self.table.focus()
        self.call_after_refresh(self.show)
        self.set_interval(self.every, self.action_look)

    # --- looking ---

    async def action_look(self) -> None:
        """Look, unless a look is under way: then once more behind that if something else is wanted by now. End if the
        terminal is gone and no signal has told."""
        if not (self.is_headless or os.isatty(0)):
            self.exit(return_code=1)
            return
        self.again = True
        if not self.looking:
            self.looking = True
            self.run_worker(self.look())

    async def look(self) -> None:
        """Look, and show what was seen."""
        try:
            while self.again:
                self.again = False
                query = self.query_now
                try:
                    found = await in_thread(lambda query=query: self.looks.take(query))  # type: ignore[misc]
                except TabiError as exc:
                    self.table.old = True
                    self.table.refresh()
                    self.tell(f"no answer, tabi looks again: {exc}")
                    break
                if query == self.query_now:
                    if self.table.old:
                        self.said = ""
                    self.last = found
                    self.show()
        finally:
            self.looking = False

    def show(self) -> None:
        """Show the last look."""
        look = self.last
        self.head.update(Text(printable(headline(look, self.version)), no_wrap=True, overflow="ellipsis"))
        names = Text(no_wrap=True, overflow="ellipsis")
        for number, (name, view) in enumerate(VIEWS.items(), 1):
            names.append(f" {number} {view.title} ", "reverse" if name == look.query.view else "")
        shown = f"{len(look.rows)} of " if look.matching > len(look.rows) else ""
        names.append(f"  {shown}{look.matching:,} by {look.query.order}")
        if look.query.search:
            names.append(f" with {printable(look.query.search)}")
        self.views.update(names)
        self.table.show(VIEWS[look.query.view], look.rows)
        self.tell(self.said)

    def tell(self, text: str) -> None:
        """Say something in the last line; nothing: it shows the keys."""
        self.said = text
        keys = "/ search  s sort  k end  d drain  Tab next  ? help  q quit"
        line = Text(printable(text) or keys, style="bold" if text else "dim", no_wrap=True, overflow="ellipsis")
        self.foot.update(line)

    def forget(self) -> None:
        """Say nothing any more, but that the server does not answer."""
        if not self.table.old:
            self.tell("")

    async def ask(self, done: str, command: str, **arguments: Any) -> None:
        """Have the server do something, say what came of it, and look."""
        try:
            found = await in_thread(lambda: self.looks.ask(command, **arguments))
        except TabiError as exc:
            self.tell(f"not done: {exc}")
            self.set_timer(NOTED, self.forget)
        else:
            self.tell(done.format(found.get("ended", 0)))
            self.set_timer(NOTED, self.forget)
            await self.action_look()

    # --- the keys ---

    async def want(self, query: Query) -> None:
        """Look at something else."""
        if query != self.query_now:
            self.query_now = query
            self.said = ""
            await self.action_look()

    async def action_view(self, name: str) -> None:
        """Show another view."""
        await self.want(Query(name, ORDERS[name][0]))

    async def action_next_view(self, by: int) -> None:
        """Show the view beside this one."""
        names = list(VIEWS)
        await self.action_view(names[(names.index(self.query_now.view) + by) % len(names)])

    async def action_order(self) -> None:
        """Sort by the next thing."""
        orders = ORDERS[self.query_now.view]
        await self.want(self.query_now._replace(order=orders[(orders.index(self.query_now.order) + 1) % len(orders)]))

    def action_search(self) -> None:
        """Have a text typed."""
        self.box.value = self.query_now.search
        self.box.styles.display = "block"
        self.box.focus()

    async def action_search_nothing(self) -> None:
        """Show all rows again."""
        self.close_box()
        await self.want(self.query_now._replace(search=""))

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        """Search."""
        self.close_box()
        await self.want(self.query_now._replace(search=event.value))

    def close_box(self) -> None:
        """No text is typed any more."""
        self.box.styles.display = "none"
        self.table.focus()

    async def action_open(self) -> None:
        """Show the sessions of a user, or by an egress."""
        row = self.table.chosen
        if row is not None and self.last.query.view in ("users", "egress"):
            await self.want(Query(search=str(row.get("name") or row["pool"])))

    def action_end(self) -> None:
        """End the session, or those of a user, once that is sure."""
        view, row = self.last.query.view, self.table.chosen
        if row is None or view not in ("sessions", "users"):
            self.tell("choose a session or a user")
        elif view == "sessions":
            whose = row["user"] or row["client"]
            self.sure(f"End the session of {whose} to {destination(row)}?", "kick", filter={"id": row["id"]})
        else:
            self.sure(f"End all sessions of {row['name']}?", "kick", filter={"user": row["name"]})

    def sure(self, question: str, command: str, **arguments: Any) -> None:
        """Ask, and do it then."""

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(self.ask("{} ended", command, **arguments))

        self.push_screen(Sure(question), answered)

    def action_drain(self) -> None:
        """Take the member of a pool out, or bring it back."""
        row: Row | None = self.table.chosen if self.last.query.view == "egress" else None
        if row is None or row["member"] is None:
            self.tell("choose the member of a pool")
            return
        action = "undrain" if row["drained"] else "drain"
        said = "gets requests again" if row["drained"] else "gets no more requests"
        name = row["member"].replace("{", "{{").replace("}", "}}")
        self.run_worker(self.ask(f"{name} {said}", "steer", action=action, pool=row["pool"], member=row["member"]))

    def action_help(self) -> None:
        """Say what the keys do."""
        self.push_screen(Help())
