"""What a run says at its end."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tabi.launch.summary import MOST_HOSTS, OTHERS, SHOWN, Summary, count, octets
from tabi.session import Session
from tabi.wire.address import Address, parse_address


def session(
    destination: str | None,
    up: int = 0,
    down: int = 0,
    error: str | None = None,
    silent: bool = False,
    intercepted: str | None = None,
    pinned: bool = False,
) -> Session:
    """A session that has ended."""
    made = Session(1, "mixed://127.0.0.1:0", Address("127.0.0.1", 1), 0.0)
    made.destination = None if destination is None else parse_address(destination)
    made.up, made.down, made.error, made.silent = up, down, error, silent
    made.intercepted, made.pinned = intercepted, pinned
    return made


def said(*sessions: Session, program: str = "curl") -> list[str]:
    """The lines after these sessions."""
    summary = Summary()
    for one in sessions:
        summary.ended(one)
    return list(summary.lines(program))


def test_hosts() -> None:
    """A line for all and one for each, failures first, then by octets."""
    assert said(
        session("a.test:443", 1000, 2_345_678),
        session("a.test:443", 1, 2),
        session("c.test:80", 5, 5),
        session("b.test:443", error="refused"),
        session("b.test:443", error="no such name"),
        session(None, silent=True),
    ) == [
        "5 sessions, 1.01 kB up, 2.35 MB down, 2 failed, 3 hosts",
        "  b.test:443: 2 sessions, 0 B up, 0 B down, 2 failed: no such name",
        "  a.test:443: 2 sessions, 1 kB up, 2.35 MB down",
        "  c.test:80: 1 session, 5 B up, 5 B down",
    ]


def test_faults() -> None:
    """What all sessions had is said, if there were any."""
    summary = Summary(["3g", "edge"])
    assert "fault" not in "".join(summary.lines("curl"))
    summary.ended(session("a.example:80", 1, 2))
    assert next(summary.lines("curl")) == "1 session, 1 B up, 2 B down, 1 host, with the faults 3g, edge"


def test_a_proxy_that_was_not_used() -> None:
    """If something failed, that may be why. The variable's value, which may have a password, is not shown."""
    summary = Summary()
    summary.ended(session("a.test:443"))
    assert "--via" not in " ".join(summary.lines("curl", "https_proxy"))
    summary.ended(session("a.test:443", error="refused"))
    assert list(summary.lines("curl", "https_proxy"))[-1] == (
        'the proxy of https_proxy was not used: --via "$https_proxy" goes through it'
    )


def test_interception() -> None:
    """How many sessions were looked into, and in how many the client refused our certificate."""
    first = session("a.test:443", 1, 2, error="unknown ca", intercepted="--intercept", pinned=True)
    assert said(first, session("a.test:443", 1, 2, intercepted="--intercept"), session("a.test:443"))[1] == (
        "  a.test:443: 3 sessions, 2 B up, 4 B down, 2 intercepted, "
        "1 pinned (the client refuses our certificate), 1 failed: unknown ca"
    )


def test_flows() -> None:
    """Requests within intercepted sessions, where there are any."""
    summary = Summary()
    summary.ended(session("a.test:443", intercepted="--intercept"))
    for _ in range(3):
        summary.flow_end(cast("Any", None))
    assert next(summary.lines("curl")) == "1 session, 0 B up, 0 B down, 1 intercepted, 1 host, 3 flows"


def test_nothing_came() -> None:
    """It is said, and why that may be."""
    assert said(session(None, silent=True)) == [
        "nothing came through the proxy: a program may read no such variables, or have a proxy of its own set"
    ]
    assert "22.21" in said(program="node")[0]


def test_only_some_hosts_are_shown() -> None:
    """And the others counted."""
    lines = said(*(session(f"h{number}.test:1", number) for number in range(SHOWN + 5)))
    assert len(lines) == SHOWN + 2
    assert lines[-1] == "  and 5 more"


def test_the_number_of_hosts_that_are_kept_has_a_bound() -> None:
    """What comes then is counted together."""
    summary = Summary()
    for number in range(MOST_HOSTS + 10):
        summary.ended(session(f"h{number}.test:1", 1))
    assert len(summary.hosts) == MOST_HOSTS + 1
    assert summary.hosts[OTHERS].sessions == 10


def test_no_line_controls_a_terminal() -> None:
    """Whatever a name or an error has in it."""
    (_, line) = said(session("a.test:1", error="bad\x1b[2J\nname"))
    assert line.isprintable()


def test_a_request_without_a_destination() -> None:
    """Such as one of HTTP whose target is wrong."""
    assert said(session(None, error="bad request"))[1].startswith("  no destination: 1 session")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (1_234_567_890, "1.23 GB"),
        (5 * 10**12, "5 TB"),
    ],
)
def test_octets(number: int, text: str) -> None:
    """Three digits, in a unit of thousands."""
    assert octets(number) == text


def test_counts() -> None:
    """One, and several."""
    assert (count(1, "host"), count(0, "host"), count(1234, "host")) == ("1 host", "0 hosts", "1,234 hosts")
