"""Rewrites: plain values, which go from process to process and are compared."""

from __future__ import annotations

import pickle

from rich.pretty import pretty_repr

from tabi.config import make_config
from tabi.config.compile import make_rewrite
from tabi.policy.rewrites import NO_CHANGES, FieldChanges, Rewrite


def test_a_rewrite_is_a_value() -> None:
    """One that changes nothing is equal to another one, and so are two with the same changes."""
    assert Rewrite() == Rewrite(NO_CHANGES, FieldChanges())
    changes = FieldChanges(("Via",), (("User-Agent", "x"),), (("X-A", "1"), ("X-A", "2")), ("Host",))
    assert Rewrite(changes) == pickle.loads(pickle.dumps(Rewrite(changes)))
    assert Rewrite(changes) != Rewrite(response=changes)
    assert hash(Rewrite(changes)) == hash(Rewrite(changes))


def test_a_rewrite_is_made_of_an_entry() -> None:
    """Names keep their case, values their order; an entry that changes nothing of HTTP has none."""
    entry = {
        "headers": {"remove": ["via"], "set": {"uSER-aGENT": "x"}, "append": {"X-A": ["1", "2"], "X-B": "3"}},
        "response_headers": {"order": ["Server"]},
        "strip_cookies": True,
    }
    config = make_config({"distort": [entry, {"fault": "3g"}]})
    changes = FieldChanges(("via",), (("uSER-aGENT", "x"),), (("X-A", "1"), ("X-A", "2"), ("X-B", "3")))
    rewrite = Rewrite(changes, FieldChanges(order=("Server",)), strip_cookies=True)
    assert [make_rewrite(distort) for distort in config.distort] == [rewrite, None]


def test_no_value_is_in_a_repr() -> None:
    """A field or a URL may be secret, and a repr is in tracebacks and logs."""
    changes = FieldChanges(set=(("Authorization", "hunter2"),))
    for part in (changes, Rewrite(changes, map_remote="http://user:hunter2@a.example/")):
        assert "hunter2" not in f"{part!r} {pretty_repr(part)}"
