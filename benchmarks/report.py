"""From single measurements to medians, tables, and whether tabi meets the project's bars."""

from __future__ import annotations

import os
import platform
import ssl
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scenarios import FIGURES, GROUPS, LINES_OF_FAULTS, SCENARIOS, UNCHOSEN, Figure, Figures, Group, Scenario

Results = dict[str, dict[str, list[Figures | str]]]
"""By scenario and peer: what each round gave; a text is the reason why it gave nothing."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What the project asks of tabi in one scenario, compared with peers of the same run."""

    scenario: str
    figure: Figure
    least: bool
    """Whether it must be at least ``factor`` times that of the best of ``peers``; else at most."""
    factor: float
    peers: tuple[str, ...] = ()
    """None: ``factor`` is the bar itself."""
    again: str | None = None
    """A peer that is the same as that of ``peers``. What tabi has in place of ``factor`` is what these two have by
    chance: the middle halves of the ratios to that peer, round by round, overlap."""


MICROSOCKS = ("microsocks",)
DANTE = ("dante",)
BETTER = MICROSOCKS + DANTE

BARS = [
    Bar("conn", "rate", True, 1.0, MICROSOCKS),
    Bar("conn", "cost", False, 0.95, MICROSOCKS),
    *(Bar(name, "rate", True, 1.3, BETTER) for name in ("bulk-1", "bulk-down", "bulk-up")),
    *(Bar(name, "cost", False, 0.5, BETTER) for name in ("bulk-1", "bulk-down", "bulk-up")),
    Bar("ping-1", "p50", False, 1.15, MICROSOCKS),
    Bar("ping-128", "rate", True, 1.3, MICROSOCKS),
    Bar("udp", "rate", True, 2.2, DANTE),
    Bar("udp", "lost", False, 0.0),
    Bar("voices", "lost", False, 0.0),
    Bar("idle", "cost", False, 2.0),
    Bar("associations", "cost", False, 4.0),
    Bar("start", "cost", False, 0.5),
    Bar("mixed", "cost", False, 1.06, ("tabi-socks5",)),
    Bar("tls-down", "rate", True, 0.6, ("nginx",)),
    Bar("tls-up", "rate", True, 0.6, ("nginx",)),
    Bar("rules-10", "cost", False, 1.15, ("tabi-no-rules",)),
    Bar("rules-20000", "cost", False, 1.1, ("tabi-10-rules",)),
    Bar("rules-start", "cost", False, 1.0),
    *(Bar(name, "rate", True, 0.98 * 0.08) for name in ("bandwidth-1", "bandwidth-50")),
    *(Bar(name, "rate", False, 1.02 * 0.08) for name in ("bandwidth-1", "bandwidth-50")),
    *(Bar(name, "cost", False, 1.5, ("tabi-unlimited",)) for name in ("bandwidth-1", "bandwidth-50")),
    Bar("upstream", "cost", False, 1.35, ("tabi-direct",)),
    Bar("upstream-tabi", "cost", False, 1.35, ("tabi-direct",)),
    Bar("upstream-bulk", "rate", True, 1.3, BETTER),
    Bar("upstream-bulk", "cost", False, 0.5, BETTER),
    *(Bar(name, "cost", False, 1.05, ("tabi-address",)) for name in ("name", "name-2")),
    Bar("pool", "cost", False, 10.0),
    Bar("http", "merit", True, 3.0, ("tinyproxy",)),
    Bar("https", "cost", False, 0.6, ("squid",)),
    Bar("https", "cost", False, 0.05, ("mitmdump",)),
    Bar("https-h2", "cost", False, 0.05, ("mitmdump",)),
    Bar("https-10m", "cost", False, 1.0, ("sslsplit",)),
    Bar("https-new", "cost", False, 0.7, ("sslsplit",)),
    Bar("https-hosts", "cost", False, 0.7, ("squid",)),
    Bar("https-memory", "cost", False, 5.0),
    *(
        Bar(name, "cost", False, 1.0, ("tabi-looks-into-nothing",), again="tabi-the-same-again")
        for name in ("others-conn", "others-bulk")
    ),
    Bar("fault-latency", "p50", True, 98_000),
    Bar("fault-latency", "p50", False, 102_000),
    Bar("fault-latency", "p99", False, 105_000),
    Bar("fault-latency", "cost", False, 2.0, ("tabi-no-fault",)),
    *(Bar(name, "rate", True, 0.97) for name, _ in LINES_OF_FAULTS),
    *(Bar(name, "rate", False, 1.03) for name, _ in LINES_OF_FAULTS),
    Bar("fault-chain", "rate", True, 4.0),
    *(Bar(name, "lost", False, 0.0) for name in ("fault-many", "fault-full")),
    Bar("fault-many", "cost", False, 20.0),
    Bar("fault-full", "cost", False, 400.0),
    *(
        Bar(f"unchosen-{name}", "cost", False, 1.0, ("tabi-no-fault",), again="tabi-no-fault-again")
        for name, *_ in UNCHOSEN
    ),
]


def values(rounds: list[Figures | str], figure: Figure) -> list[float]:
    """One figure of all rounds that gave it."""
    return [figures[figure] for figures in rounds if not isinstance(figures, str)]


def middle(found: list[float], figure: Figure) -> float:
    """What stands for all rounds: their median, but for ``lost`` the most, since a median would hide a rare loss."""
    return max(found) if figure == "lost" else statistics.median(found)


def median(results: Results, scenario: str, peer: str, figure: Figure) -> float | None:
    """The figure that the tables show; None where no round gave it."""
    found = values(results.get(scenario, {}).get(peer, []), figure)
    return middle(found, figure) if found else None


def write_number(value: float) -> str:
    """With three digits that count, and no fraction from a hundred on or where there is none."""
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def table(heading: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A table in Markdown: the first column is text, the others are numbers."""
    lines = [heading, [":--", *["--:"] * (len(heading) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]


def peer_row(peer: str, rounds: list[Figures | str], columns: Iterable[Figure]) -> list[str]:
    """One line of a scenario's table; failures have their reason beside the name, and dashes where nothing came."""
    reasons = [reason for reason in rounds if isinstance(reason, str)]
    if reasons and len(reasons) < len(rounds):
        peer += f" ({len(reasons)} of {len(rounds)} rounds failed: {reasons[0]})"
    elif reasons:
        peer += f": {reasons[0]}"
    cells = [peer.replace("|", "\\|")]
    for figure in columns:
        found = values(rounds, figure)
        cells.append(write_number(middle(found, figure)) if found else "-")
        if figure == next(iter(columns)):
            cells.append(f"{write_number(min(found))} to {write_number(max(found))}" if found else "-")
    return cells


def group_section(group: Group, results: Results) -> list[str]:
    """The tables of one group: a heading, and for each scenario its peers."""
    columns = [figure for figure in FIGURES if figure in group.columns]
    headings = [group.columns[figure] for figure in columns]
    lines = [f"## {group.title}", ""]
    for scenario in SCENARIOS:
        if scenario.group is group and scenario.name in results:
            lines += [f"`{scenario.name}`: {scenario.what}", ""]
            rows = [peer_row(peer, rounds, columns) for peer, rounds in results[scenario.name].items()]
            lines += table(["server", headings[0], "lowest to highest", *headings[1:]], rows)
    return lines


def ratios(results: Results, scenario: str, peer: str, base: str, figure: Figure) -> list[float]:
    """One figure of a peer, divided by that of another, of each round that gave both."""
    rounds = zip(results[scenario].get(peer, []), results[scenario].get(base, []), strict=False)
    return [one[figure] / two[figure] for one, two in rounds if not isinstance(one, str) and not isinstance(two, str)]


def bar_limit(bar: Bar, results: Results) -> float | None:
    """The number that tabi has to reach in this run; None where it cannot be known."""
    if not bar.peers:
        return bar.factor
    if bar.again is not None:
        return by_chance(bar, results)
    found = [median(results, bar.scenario, peer, bar.figure) for peer in bar.peers]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        return None
    return bar.factor * (max(known) if bar.least else min(known))


def by_chance(bar: Bar, results: Results) -> float | None:
    """What tabi may have at most so that it cannot be told from another run of the same peer: see `Bar.again`."""
    (base,) = bar.peers
    assert bar.again is not None
    ours = ratios(results, bar.scenario, "tabi", base, bar.figure)
    chance = ratios(results, bar.scenario, bar.again, base, bar.figure)
    tabi = median(results, bar.scenario, "tabi", bar.figure)
    if len(ours) < 2 or len(chance) < 2 or tabi is None:
        return None
    most, least = statistics.quantiles(chance, n=4)[2], statistics.quantiles(ours, n=4)[0]
    return tabi * most / least


def bar_rows(results: Results) -> list[dict[str, Any]]:
    """Every bar whose scenario was run, with the numbers of this run. ``met`` is None where one of them is missing."""
    rows = []
    groups = {scenario.name: scenario.group for scenario in SCENARIOS}
    for bar in BARS:
        if bar.scenario not in results:
            continue
        tabi, limit = median(results, bar.scenario, "tabi", bar.figure), bar_limit(bar, results)
        met = None if tabi is None or limit is None else (tabi >= limit if bar.least else tabi <= limit)
        than = f"{bar.factor:g} x {'the better of ' if len(bar.peers) > 1 else ''}{' and '.join(bar.peers)}"
        than += ", but for chance" if bar.again else ""
        rows.append(
            {
                "scenario": bar.scenario,
                "figure": groups[bar.scenario].columns[bar.figure],
                "bar": f"{'at least' if bar.least else 'at most'} {than if bar.peers else f'{bar.factor:g}'}",
                "limit": limit,
                "tabi": tabi,
                "met": met,
            }
        )
    return rows


VERDICTS = {True: "met", False: "NOT MET", None: "not measured"}


def bars_section(results: Results) -> list[str]:
    """The bars beside tabi's figures."""
    rows = []
    for row in bar_rows(results):
        limit, tabi = ("-" if row[key] is None else write_number(row[key]) for key in ("limit", "tabi"))
        rows.append([f"`{row['scenario']}` {row['figure']}", row["bar"], limit, tabi, VERDICTS[row["met"]]])
    return ["## The project's bars", "", *table(["figure", "bar", "in this run", "tabi", "verdict"], rows)]


def describe_machine() -> dict[str, str]:
    """What the figures depend on, taken before anything runs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "CPU": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "OpenSSL of Python": ssl.OPENSSL_VERSION,
        "load before the run": f"{os.getloadavg()[0]:.2f}",
    }


def write_report(facts: dict[str, str], versions: dict[str, str], results: Results) -> str:
    """The whole of results.md."""
    lines = ["# Results", "", "Written by `make bench`; benchmarks/README.md says how to read it.", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += [f"- {name}: {version}" for name, version in versions.items()] + [""]
    lines += bars_section(results)
    for group in GROUPS:
        if any(scenario.group is group for scenario in SCENARIOS if scenario.name in results):
            lines += group_section(group, results)
    return "\n".join(lines).rstrip() + "\n"


BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
"""Between these the README has the table."""


def summary_row(scenario: Scenario, results: Results) -> list[str]:
    """What it is, and for each of its peers the first figure and what that cost in CPU."""
    first, *others = [figure for figure in FIGURES if figure in scenario.group.columns]
    what = f"{scenario.what}: **{scenario.group.columns[first]}**"
    row = [f"{what} ({scenario.group.columns['cost']})" if "cost" in others else what]
    for peer in results[scenario.name]:
        figure, cost = median(results, scenario.name, peer, first), median(results, scenario.name, peer, "cost")
        text = "failed" if figure is None else f"**{write_number(figure)}**"
        row.append(f"{text} ({write_number(cost)})" if "cost" in others and cost is not None else text)
    return row


def write_summary(facts: dict[str, str], versions: dict[str, str], results: Results) -> str:
    """The tables of the README, a line for each scenario: SOCKS5, then what is compared with one other server each.

    ``results`` are those of a whole run.
    """
    lines: list[str] = []
    for pair in (False, True):
        chosen = [scenario for scenario in SCENARIOS if (scenario.listener != "socks5") is pair]
        rows = [summary_row(scenario, results) for scenario in chosen]
        names = [f"{name} {versions[name].split()[0]}" for name in results[chosen[0].name]]
        if pair:
            for row, scenario in zip(rows, chosen, strict=True):
                others = list(results[scenario.name])[1:]
                row[2:] = ["; ".join(f"{cell} {name}" for cell, name in zip(row[2:], others, strict=True))]
            names[1:] = ["beside it"]
        lines += table(["", *names], rows)
    date = facts["date"].split()[0]
    machine = (
        f"{date}, {facts['CPU']}, {facts['cores']} cores, {facts['kernel']}, Python {facts['Python']}; by `make bench`;"
    )
    return "\n".join([*lines, f"{machine} [all figures](benchmarks/results.md)"]) + "\n"


def put_into_readme(text: str, summary: str) -> str:
    """The README with a new table."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no {BEGIN.strip()} and {END} any more")
    return f"{head}{begin}{summary}{end}{tail}"
