"""The widgets of `tabi top`. They draw the lines that are seen and no others, and no name is read as markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tabi.cli.top.looks import Row
from tabi.cli.top.tables import VIEWS, View, cells, widths

PLAIN, HEAD, CHOSEN, PALE = Style(), Style(bold=True, underline=True), Style(reverse=True), Style(dim=True)


class Table(ScrollView, can_focus=True):
    """Rows, one of which is chosen. A look that comes later keeps it chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000)", "First", show=False),
        Binding("end", "move(1000000)", "Last", show=False),
        Binding("tab", "app.next_view(1)", "Next view", show=False),
        Binding("shift+tab", "app.next_view(-1)", "View before", show=False),
        Binding("enter", "app.open", "Sessions", show=False),
    ]
    DEFAULT_CSS = """
    Table { overflow-x: hidden; overflow-y: auto; scrollbar-size: 0 0; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.view: View = VIEWS["sessions"]
        self.rows: Sequence[Row] = ()
        self.texts: list[list[str]] = []
        self.sizes = widths(self.view, (), 80)
        self.at = 0
        """The number of the row that is chosen."""
        self.old = False
        """Whether the server does not answer any more."""

    @property
    def chosen(self) -> Row | None:
        """The row that is chosen."""
        return self.rows[self.at] if self.rows else None

    def show(self, view: View, rows: Sequence[Row]) -> None:
        """Show rows."""
        before = None if view is not self.view or self.chosen is None else view.key(self.chosen)
        if view is not self.view:
            self.at = 0
            self.scroll_to(y=0, animate=False, force=True, immediate=True)
        self.view, self.rows, self.old = view, rows, False
        self.texts = [cells(view, row) for row in rows]
        self.at = next((at for at, row in enumerate(rows) if view.key(row) == before), min(self.at, len(rows) - 1))
        self.at = max(0, self.at)
        self.fit()
        self.virtual_size = Size(self.size.width, len(rows) + 1)
        self.follow()
        self.refresh()

    def fit(self) -> None:
        """Find out how wide columns are."""
        self.sizes = widths(self.view, self.texts, max(1, self.size.width), cell_len)

    def follow(self) -> None:
        """Scroll to the row that is chosen. The first line of the screen has the titles, wherever the rows are."""
        room = max(1, self.size.height - 1)
        y = round(self.scroll_y)
        if not y <= self.at < y + room:
            self.scroll_to(y=self.at if self.at < y else self.at - room + 1, animate=False, force=True, immediate=True)

    def on_resize(self, _: events.Resize) -> None:
        """The terminal has another size."""
        self.fit()
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        self.follow()

    def on_click(self, event: events.Click) -> None:
        """Choose a row by the mouse."""
        at = event.y - 1 + round(self.scroll_y)
        if event.y > 0 and at < len(self.rows):
            self.at = at
            self.refresh()

    def action_move(self, by: int) -> None:
        """Choose another row."""
        self.at = max(0, min(len(self.rows) - 1, self.at + by))
        self.follow()
        self.refresh()

    def action_page(self, by: int) -> None:
        """The same, a screen further."""
        self.action_move(by * max(1, self.size.height - 2))

    def render_line(self, y: int) -> Strip:
        """A line of the screen: the titles, then rows."""
        at = y - 1 + round(self.scroll_y)
        width = self.size.width
        if y == 0:
            text, style = self.line([column.title for column in self.view.columns]), HEAD
        elif not self.rows and y == 1:
            text, style = self.view.nothing, PALE
        elif at < len(self.rows):
            text, style = self.line(self.texts[at]), CHOSEN if at == self.at else PALE if self.old else PLAIN
        else:
            text, style = "", PLAIN
        return Strip([Segment(set_cell_size(text, width), style)], width)

    def line(self, texts: Sequence[str]) -> str:
        """Texts in their columns."""
        parts = []
        for column, text, size in zip(self.view.columns, texts, self.sizes, strict=True):
            if size:
                long = cell_len(text)
                if long > size:
                    parts.append(f"{set_cell_size(text, size - 1)}…")
                else:
                    parts.append(f"{' ' * (size - long)}{text}" if column.right else f"{text}{' ' * (size - long)}")
        return "  ".join(parts)
