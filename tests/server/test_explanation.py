"""What is told of limits, of ways out and of a program's answer, in the words of `tabi explain`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tabi.config import make_config
from tabi.config.compile import make_limits
from tabi.policy.ledger import USED, Ledger
from tabi.server.explanation import shown_via, terms_of


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"connections": 3}, ["3 connections at once"]),
        ({"connect_rate": "20/s"}, ["new ones 20/s"]),
        ({"bandwidth": "1 MB/s", "burst": "10 kB"}, ["1 MB/s each way", "10 kB at once"]),
        ({"quota": "4 kB/day"}, ["4 kB/day (25% used)"]),
        ({"max_session": "1 min"}, ["60 s for a session"]),
        ({"connections": 3, "over": "wait"}, ["3 connections at once", "requests beyond these wait"]),
    ],
)
def test_limits_are_told_with_their_units(limits: dict[str, object], told: list[str]) -> None:
    """And of a quota how much of it was used, where that is known."""
    ledger = Ledger()
    (account,) = make_limits(make_config({"limits": limits}), ledger).accounts_of(None, "unix")
    ledger.cells[account.at + USED] = 1000
    assert terms_of(account, True) == told
    assert terms_of(account, False) == [text.partition(" (")[0] for text in told]


def test_a_way_out_is_told_without_its_password() -> None:
    """A URL as a program gives it, a name, an object."""
    assert shown_via("socks5://alice:secret@127.0.0.1:1") == "127.0.0.1:1"
    assert shown_via("pool") == "pool"
    assert shown_via(SimpleNamespace(name="mine")) == "mine"
