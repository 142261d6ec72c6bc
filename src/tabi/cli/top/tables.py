"""How `tabi top` shows what it knows: columns of texts, and the line above them. For screens and for pipes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tabi.cli.running import columns, octets, seconds
from tabi.cli.sessions import destination
from tabi.cli.top.looks import Look, Row
from tabi.errors import printable


class Column(NamedTuple):
    """A column."""

    title: str
    text: Callable[[Row], str]
    right: bool = False
    """Numbers are flushed right, and never cut."""
    spare: int = 0
    """Where there is no room the column with the largest one goes first; 0: it stays."""
    least: int = 8
    """Letters that remain of a column of names, where there is no room for more."""


class View(NamedTuple):
    """How the rows of one kind look."""

    title: str
    columns: Sequence[Column]
    key: Callable[[Row], str]
    """What a row is known by in the next look."""
    nothing: str
    """What is said if there are no rows."""


def rate(number: float | None) -> str:
    """Octets per second, under a heading that says so; nothing if it is not known."""
    return "" if number is None else "0" if number < 0.5 else octets(number)


def amount(number: float | None) -> str:
    """Octets; nothing if there are none to speak of."""
    return "" if number is None else octets(number)


def count(number: float | None) -> str:
    """A whole number."""
    return "" if number is None else f"{number:,.0f}"


def way(row: Mapping[str, Any]) -> str:
    """By what a session goes."""
    via = row["via"] or ""
    return f"{via}/{row['member']}" if row["member"] else via


def used(row: Row) -> str:
    """What is used of a quota."""
    if row["used"] is None or row["quota_octets"] is None:
        return ""
    return f"{100 * row['used'] / row['quota_octets']:.0f} %" if row["quota_octets"] else "all"


def condition(row: Row) -> str:
    """How a member of a pool is."""
    if row["member"] is None:
        return ""
    if row["drained"]:
        return "drained"
    if row["up"]:
        return "up"
    return "out" if row["trial_in"] is None else f"out, trial in {seconds(row['trial_in'])}"


def moment(row: Row) -> str:
    """When it was, by the clock of this machine."""
    return time.strftime("%H:%M:%S", time.localtime(row["time"]))


VIEWS: Final[Mapping[str, View]] = {
    "sessions": View(
        "Sessions",
        (
            Column("id", lambda row: row["id"], spare=6),
            Column("user", lambda row: row["user"] or "-"),
            Column("client", lambda row: row["client"], spare=1, least=13),
            Column("protocol", lambda row: row["protocol"] or "-", spare=5),
            Column("destination", destination, least=20),
            Column("egress", way, spare=2),
            Column("up/s", lambda row: rate(row.get("up_rate")), True),
            Column("down/s", lambda row: rate(row.get("down_rate")), True),
            Column("up", lambda row: octets(row["up"]), True, spare=4),
            Column("down", lambda row: octets(row["down"]), True),
            Column("time", lambda row: seconds(row["seconds"]), True, spare=3),
        ),
        lambda row: str(row["id"]),
        "no sessions",
    ),
    "users": View(
        "Users",
        (
            Column("user", lambda row: row["name"]),
            Column("sessions", lambda row: count(row["sessions"]), True),
            Column("at most", lambda row: count(row["connections"]), True, spare=2),
            Column("up", lambda row: octets(row["up"]), True),
            Column("down", lambda row: octets(row["down"]), True),
            Column("at most/s", lambda row: amount(row["bandwidth"]), True, spare=1),
            Column("used", lambda row: amount(row["used"]) if row["quota"] else "", True),
            Column("of quota", lambda row: row["quota"] or "", True),
            Column("is", used, True),
        ),
        lambda row: str(row["name"]),
        "no users",
    ),
    "egress": View(
        "Egress",
        (
            Column("egress", lambda row: row["pool"]),
            Column("member", lambda row: row["member"] or ""),
            Column("is", condition),
            Column("sessions", lambda row: count(row["sessions"]), True),
            Column("up/s", lambda row: rate(row.get("up_rate")), True),
            Column("down/s", lambda row: rate(row.get("down_rate")), True),
            Column("failures", lambda row: count(row.get("failures")), True, spare=2),
            Column("reason", lambda row: row.get("reason") or "", spare=1),
        ),
        lambda row: f"{row['pool']}\n{row['member'] or ''}",
        "no egress has had a session yet",
    ),
    "refusals": View(
        "Refusals",
        (
            Column("at", moment),
            Column("user", lambda row: row["user"] or "-"),
            Column("client", lambda row: row["client"]),
            Column("destination", destination),
            Column("rule", lambda row: row["rule"] or "", spare=1),
            Column("why", lambda row: row["error"] or row["close"] or ""),
        ),
        lambda row: str(row["id"]),
        "nothing was refused",
    ),
}


def cells(view: View, row: Row) -> list[str]:
    """The texts of a row; what controls a terminal is escaped."""
    return [printable(column.text(row)) for column in view.columns]


def widths(view: View, rows: Sequence[Sequence[str]], room: int, size: Callable[[str], int] = len) -> list[int]:
    """How wide each column is; 0: it is left out.

    Args:
        view: what is shown.
        rows: the texts.
        room: letters in a line; two are between columns.
        size: how many letters wide a text is on the screen.
    """
    titles = [column.title for column in view.columns]
    found = [max(map(size, column)) for column in zip(titles, *rows, strict=True)]
    spare = sorted((column.spare, at) for at, column in enumerate(view.columns) if column.spare)

    def cut_to(most: int) -> list[int]:
        return [
            width if column.right else min(width, max(most, column.least))
            for width, column in zip(found, view.columns, strict=True)
        ]

    def fits(sizes: Sequence[int]) -> bool:
        shown = [width for width in sizes if width]
        return sum(shown) + 2 * (len(shown) - 1) <= room

    while spare and not fits(cut_to(0)):
        found[spare.pop()[1]] = 0
    return next((sizes for most in range(max(found), 0, -1) if fits(sizes := cut_to(most))), cut_to(0))


def plain(look: Look, version: str, width: int | None) -> Iterator[str]:
    """A look as lines of text.

    Args:
        look: what to show.
        version: of the server.
        width: of the terminal, at which lines are cut; None: they are not.
    """
    view = VIEWS[look.query.view]
    yield printable(headline(look, version))
    yield ""
    if not look.rows:
        yield view.nothing
        return
    shown = [column for column in view.columns if column.title not in ("up/s", "down/s")]
    right = [at for at, column in enumerate(shown) if column.right]
    rows = [[column.text(row) for column in shown] for row in look.rows]
    yield from columns([[column.title for column in shown], *rows], right, width)
    if look.matching > len(look.rows):
        yield f"and {look.matching - len(look.rows):,} more"


def headline(look: Look, version: str) -> str:
    """The totals in a line."""
    found, rates = look.totals, look.rates
    parts = [f"tabi {version}", f"{found['open']:,.0f} open"]
    if rates is None:
        parts += [f"{found['sessions']:,.0f} so far", f"{octets(found['up'])} up, {octets(found['down'])} down"]
    else:
        parts += [
            f"{rates['sessions']:,.0f} new/s",
            f"{octets(rates['up'])}/s up, {octets(rates['down'])}/s down",
            f"{rates['refused']:,.0f} refused/s",
            f"CPU {100 * rates['cpu']:.0f} %",
        ]
    parts.append(octets(found["memory"]))
    if look.silent:
        parts.append(f"workers that do not answer: {len(look.silent)}")
    return "  ".join(parts)
