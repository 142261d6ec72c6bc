"""Which entries of ``[[distort]]`` act on a request, as `tabi explain` tells it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rule_cases import MONDAY_NOON
from tabi.config import make_config
from tabi.config.compile import make_distorts
from tabi.server.explain_distort import DistortStep, explain_distortion, lines_of, note_inside
from tabi.session import Session
from tabi.wire.address import Address, parse_host

ENTRIES: list[dict[str, Any]] = [
    {"name": "slow", "hosts": ["*.example.com"], "fault": "3g", "probability": "10%"},
    {"ports": [80], "fault": {"refuse": 5}},
    {"fault": {"latency": 1, "from": "22:00", "until": "06:00"}, "headers": {"set": {"User-Agent": "secret"}}},
]


def explained(*entries: dict[str, Any], sni: str | None = None) -> list[DistortStep]:
    """The answer for a session."""
    session = Session(0, "mixed://127.0.0.1:1080", Address(parse_host("192.0.2.9"), 1), 0.0)
    session.command, session.protocol = "connect", "socks5"
    session.destination = Address("www.example.com", 443)
    return explain_distortion(make_distorts(make_config({"distort": entries})), session, MONDAY_NOON, sni)


def test_each_entry_is_told() -> None:
    """What it does, how often and when; or why it does not match."""
    found = explained(*ENTRIES)
    assert list(lines_of(found)) == [
        "slow        yes  hosts *.example.com",
        "                 latency 150 ms; up: bandwidth 96 kB/s; down: bandwidth 200 kB/s; of 10% of these sessions",
        "distort[1]  no   ports: 443 is not 80",
        "distort[2]  yes  matches everything",
        (
            "                 latency 1 s; request fields: set User-Agent; from 22:00 UTC, until 06:00 UTC "
            "(next at 2026-11-23T22:00:00Z); not inside TLS, since no [[intercept]] opens it"
        ),
    ]
    assert msgspec.to_builtins(found)[1:] == [
        {
            "entry": "distort[1]",
            "matched": False,
            "why": "ports: 443 is not 80",
            **dict.fromkeys(("does", "probability", "schedule", "acts", "begins", "inside")),
        },
        {
            "entry": "distort[2]",
            "matched": True,
            "why": "matches everything",
            "does": "latency 1 s; request fields: set User-Agent",
            "probability": 1.0,
            "schedule": "from 22:00 UTC, until 06:00 UTC",
            "acts": False,
            "begins": "2026-11-23T22:00:00Z",
            "inside": False,
        },
    ]


@pytest.mark.parametrize(
    ("times", "when"),
    [
        ({"from": "08:00 Europe/Berlin"}, "from 08:00 Europe/Berlin (acts now)"),
        ({"until": "2026-11-01"}, "until 2026-11-01T00:00:00Z (never again)"),
        ({"from": "2027-01-01"}, "from 2027-01-01T00:00:00Z (next at 2027-01-01T00:00:00Z)"),
        ({"every": "30 s good, 5 s gone"}, "30 s good, 5 s gone, again and again (acts now)"),
    ],
)
def test_when_it_acts(times: dict[str, str], when: str) -> None:
    """At the time that is asked about, and when next; a cycle begins with the server, and is only told."""
    found = explained({"fault": {"latency": 1, **times}})
    assert list(lines_of(found))[1].strip() == f"latency 1 s; {when}"


def test_the_name_in_the_hello_chooses_what_is_looked_into() -> None:
    """Faults begin before it."""
    found = explained(
        {"hosts": ["a.example"], "strip_cookies": True}, {"hosts": ["a.example"], "fault": "3g"}, sni="a.example"
    )
    assert [step.matched for step in found] == [True, False]


@pytest.mark.parametrize(("opened", "said"), [(True, False), (None, False), (False, True)])
def test_what_takes_an_intercept_is_told(opened: bool | None, said: bool) -> None:
    """Of entries that act on HTTP or TLS, and of no others."""
    found = explained({"strip_cookies": True}, {"fault": {"status": 500}}, {"tls": "mirror"}, {"fault": "3g"})
    note_inside(found, opened)
    assert [step.inside for step in found] == [opened] * 3 + [None]
    assert ["not inside TLS" in line for line in lines_of(found) if line[0] == " "] == [said] * 3 + [False]
