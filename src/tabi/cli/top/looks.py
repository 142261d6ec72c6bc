"""What `tabi top` knows of a server: what it answered last, and rates between that and what it answered before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tabi.admin.history import COUNTED, totals
from tabi.observe.exposition import Labels, Value

ROWS = 200
"""Rows that are shown; further ones are found by searching, or in another order."""

Row = dict[str, Any]

Ask = Callable[..., Mapping[str, Any]]
"""Asks the server: a command with its arguments. Raises TabiError."""

Samples = dict[str, dict[Labels, Value]]

SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
ESCAPED = re.compile(r"\\(.)")
WANTED = frozenset(
    (
        "tabi_sessions_open",
        "tabi_sessions_total",
        "tabi_octets_total",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "tabi_loop_lag_seconds",
    )
)
"""The metrics that are looked at."""

ORDERS: Final[Mapping[str, Sequence[str]]] = {
    "sessions": ("octets", "down", "up", "seconds"),
    "users": ("sessions", "octets", "used", "name"),
    "egress": ("pool", "sessions", "failures"),
    "refusals": ("time",),
}
"""The views, and by what the rows of each can be sorted: numbers with the most first."""


class Query(NamedTuple):
    """What to look at."""

    view: str = "sessions"
    order: str = "octets"
    search: str = ""
    """Only rows that have this in one of their names."""


class Look(NamedTuple):
    """What the server has answered."""

    query: Query
    rows: list[Row]
    matching: int
    """How many rows there are; some may be left out."""
    totals: Mapping[str, float]
    """See `tabi.admin.history.totals`."""
    rates: Mapping[str, float] | None
    """The same per second; None if there was no look before."""
    silent: Sequence[int]
    """The pids of workers that have not answered."""


class Looks:
    """Looks at a server, again and again.

    Args:
        ask: the server.
        clock: seconds.
    """

    def __init__(self, ask: Ask, clock: Callable[[], float]) -> None:
        self.ask = ask
        self.clock = clock
        self.before: tuple[float, Mapping[str, float]] | None = None
        self.moved: dict[str, tuple[float, float, float]] = {}
        """Seconds, octets up and down of the sessions and ways out of the last look, by their ids and names."""

    def take(self, query: Query) -> Look:
        """Look. Raises TabiError."""
        now = self.clock()
        metrics = self.ask("metrics", format="text")
        samples = samples_of(metrics["text"])
        found = totals(samples)
        rates = None
        if self.before is not None and now > self.before[0]:
            then, last = self.before
            rates = {name: max(0.0, found[name] - last[name]) / (now - then) for name in COUNTED}
        self.before = now, found
        if query.view == "sessions":
            wanted = {"search": query.search} if query.search else {}
            answer = self.ask("sessions", filter=wanted, sort=query.order, limit=ROWS)
            rows, matching = answer["sessions"], answer["matching"]
            self.add_rates(rows, lambda row: row["id"])
        else:
            answer = self.ask(query.view)
            rows = sorted_by(query.order, chosen(self.rows_of(query.view, answer, samples, now), query))
            rows, matching = rows[:ROWS], len(rows)
        return Look(query, rows, matching, found, rates, sorted({*metrics["silent"], *answer["silent"]}))

    def rows_of(self, view: str, answer: Mapping[str, Any], samples: Samples, now: float) -> list[Row]:
        """All rows of a view other than the sessions."""
        if view == "users":
            return users_of(answer)
        if view == "refusals":
            return list(answer["refusals"])
        ways = ways_of(samples, now)
        self.add_rates(ways, lambda row: row["pool"])
        return [*ways, *answer["members"]]

    def add_rates(self, rows: Iterable[Row], name_of: Callable[[Row], str]) -> None:
        """Add octets per second to rows that were in the last look too, and remember them for the next one."""
        last, self.moved = self.moved, {}
        for row in rows:
            name, moved = name_of(row), (row["seconds"], row["up"], row["down"])
            self.moved[name] = moved
            seconds, up, down = last.get(name, moved)
            if moved[0] > seconds:
                row["up_rate"] = max(0.0, moved[1] - up) / (moved[0] - seconds)
                row["down_rate"] = max(0.0, moved[2] - down) / (moved[0] - seconds)


def users_of(answer: Mapping[str, Any]) -> list[Row]:
    """The users, each with its limits."""
    accounts = {account["name"]: account for account in answer["accounts"]}
    unlimited = {"connections": None, "bandwidth": None, "quota": None, "quota_octets": None, "used": None}
    rows = []
    for user in answer["users"]:
        account = accounts.get(f"user {user['name']}", unlimited)
        rows.append({**user, **{key: account[key] for key in unlimited}})
    return rows


def ways_of(samples: Samples, now: float) -> list[Row]:
    """Every way out that has sessions or had some: what it has moved so far."""
    ways: dict[str, Row] = {}
    for name in ("tabi_sessions_open", "tabi_octets_total"):
        for labels, value in samples.get(name, {}).items():
            found = dict(labels)
            if found.get("egress") and not isinstance(value, tuple):
                way = found["egress"]
                new = {"pool": way, "member": None, "seconds": now, "sessions": 0, "up": 0.0, "down": 0.0}
                row = ways.setdefault(way, new)
                row[found.get("direction", "sessions")] += int(value)
    return list(ways.values())


SEARCHED = ("name", "pool", "member", "user", "client", "host", "rule", "error", "id")
"""In what a text is looked for. The server itself searches sessions."""


def chosen(rows: Iterable[Row], query: Query) -> list[Row]:
    """The rows that have the text that is looked for."""
    return [row for row in rows if any(query.search in str(row.get(key) or "") for key in SEARCHED)]


def sorted_by(order: str, rows: list[Row]) -> list[Row]:
    """The rows in an order: by names from A, by numbers from the largest."""
    if order == "name":
        return sorted(rows, key=lambda row: str(row["name"]))
    if order == "pool":
        return sorted(rows, key=lambda row: (row["pool"], row["member"] or ""))
    if order == "octets":
        return sorted(rows, key=lambda row: -(row["up"] + row["down"]))
    return sorted(rows, key=lambda row: -(row.get(order) or 0))


def samples_of(text: str) -> Samples:
    """The metrics that are wanted, out of the text that Prometheus reads."""
    found: Samples = {}
    for line in text.splitlines():
        sample = SAMPLE.fullmatch(line)
        if sample is not None and sample[1] in WANTED:
            labels = tuple((name, unescaped(value)) for name, value in LABEL.findall(sample[2] or ""))
            found.setdefault(sample[1], {})[labels] = float(sample[3])
    return found


def unescaped(value: str) -> str:
    """A label's value; see `tabi.observe.exposition.escape`."""
    return ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], value) if "\\" in value else value
