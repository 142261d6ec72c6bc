"""The table on the screen of `tabi top`: lines are as wide as the screen, whatever letters names have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult

from tabi.cli.top.looks import Row
from tabi.cli.top.table import Table
from tabi.cli.top.tables import VIEWS
from watched import HOSTILE, session


class Shows(App[None]):
    """Shows a table and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()

    def compose(self) -> ComposeResult:
        """The table."""
        yield self.table


def on_screen(act: Callable[[Table], None], size: tuple[int, int] = (80, 10)) -> list[str]:
    """The lines that are there after something was done to a table."""
    app = Shows()

    async def main() -> list[str]:
        async with app.run_test(size=size) as pilot:
            act(app.table)
            await pilot.pause()
            return [app.table.render_line(y).text for y in range(app.table.size.height)]

    return asyncio.run(main())


@pytest.mark.parametrize("name", ["\u65c5" * 50, "e\u0301" * 50, "\U0001f600" * 50, HOSTILE, "x" * 300, ""], ids=ascii)
def test_columns_stand_below_their_titles(name: str) -> None:
    """Wide letters count as two, those without a width as none; a cut text ends with an ellipsis."""
    rows: list[Row] = [session(1, user=name, host=name, client="CLIENT"), session(2, client="CLIENT")]
    for width in (80, 120):
        title, *lines = on_screen(lambda table: table.show(VIEWS["sessions"], rows), (width, 3))
        at = title.index("client")
        for line in lines:
            assert cell_len(line) == width
            assert cell_len(line[: line.index("CLIENT")]) == at
    assert ("…" in lines[0]) == bool(name)
    assert "…" not in lines[1]


def test_titles_stay_while_rows_move() -> None:
    """The first line has them, the others the rows from where one has moved to."""
    rows: list[Row] = [session(number, user=f"user-{number}") for number in range(1000)]

    def act(table: Table) -> None:
        table.show(VIEWS["sessions"], rows)
        table.action_move(500)

    lines = on_screen(act)
    assert "destination" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == [f"user-{number}" for number in range(492, 501)]


def test_another_view_begins_at_its_first_row() -> None:
    """Not where the one before was."""
    rows: list[Row] = [session(number) for number in range(100)]
    users: list[Row] = [
        {"name": f"u{number}", "sessions": 1, "up": 0, "down": 0, "connections": None, "bandwidth": None,
         "quota": None, "quota_octets": None, "used": None}
        for number in range(100)
    ]  # fmt: skip

    def act(table: Table) -> None:
        table.show(VIEWS["sessions"], rows)
        table.action_move(70)
        table.show(VIEWS["users"], users)
        assert table.chosen is users[0]

    assert on_screen(act)[1].split()[0] == "u0"


def test_no_rows_are_said() -> None:
    """An empty screen could be a fault."""
    assert on_screen(lambda table: table.show(VIEWS["refusals"], []))[1].strip() == "nothing was refused"
