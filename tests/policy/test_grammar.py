"""User names with parameters: what they say, and what is none of it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.grammar import NONE, Grammar, Parameters

GRAMMAR = Grammar({"country": "label", "city": "label", "session": "session", "ttl": "ttl"})


@pytest.mark.parametrize(
    ("name", "user", "parameters"),
    [
        ("alice", "alice", NONE),
        ("alice-b", "alice-b", NONE),
        ("country-de", "country-de", NONE),  # no user's name would be left
        ("alice-country-de", "alice", Parameters(("de",))),
        ("alice-b-country-de", "alice-b", Parameters(("de",))),
        ("alice-country-de-city-berlin", "alice", Parameters(("de", "berlin"))),
        ("alice-session-7f3a", "alice", Parameters((), "7f3a")),
        ("alice-session-7f3a-ttl-10m-country-de", "alice", Parameters(("de",), "7f3a", 600)),
        ("alice-ttl-90", "alice", Parameters((), None, 90)),
        ("alice-ttl-2h", "alice", Parameters((), None, 7200)),
        ("alice-ttl-30d", "alice", Parameters((), None, 2592000)),
        ("-country-de", "", Parameters(("de",))),
    ],
)
def test_names_are_parted(name: str, user: str, parameters: Parameters) -> None:
    """The user is what stands in front of the first key; keys come in any order."""
    assert GRAMMAR.read(name) == (user, parameters)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alice-country-de-color-red", "unknown key 'color', expected one of: country, city, session, ttl"),
        ("alice-country", "country: expected a value of 1 to 64 characters"),
        ("alice-country-", "country: expected a value of 1 to 64 characters"),
        (f"alice-session-{'x' * 65}", "session: expected a value of 1 to 64 characters"),
        ("alice-country-de-country-fr", "country twice"),
        ("alice-country-de-", "unknown key ''"),
        ("alice-ttl-soon", "'soon' is not a time to live"),
        ("alice-ttl-0", "'0' is not a time to live"),
        ("alice-ttl-31d", "'31d' is not a time to live, expected such as 600 or 10m, at most 30d"),
    ],
)
def test_what_is_no_parameter_is_refused(name: str, message: str) -> None:
    """Nothing is passed over in silence: who asks for a country shall not get another for a slip of the pen."""
    with pytest.raises(ValueError, match=f"^user name: {message}"):
        GRAMMAR.read(name)


@pytest.mark.parametrize(
    ("keys", "separator"), [({"": "label"}, "-"), ({"a-b": "label"}, "-"), ({}, ""), ({}, "ab"), ({}, "x")]
)
def test_a_grammar_that_cannot_be_read_is_an_error(keys: dict[str, str], separator: str) -> None:
    """Keys and separators must be told from values."""
    with pytest.raises(ValueError, match="expected"):
        Grammar(keys, separator)  # type: ignore[arg-type]


def test_without_keys_every_name_is_a_name() -> None:
    """A grammar that says nothing changes nothing."""
    assert not Grammar({})
    assert Grammar({}).read("alice-country-de") == ("alice-country-de", NONE)
    assert Grammar({"c": "label"}, "+").read("alice-c+c+de") == ("alice-c", Parameters(("de",)))


@given(st.text(alphabet="ab-", max_size=30), st.text(alphabet="xyz019", min_size=1, max_size=10))
def test_what_was_put_together_comes_apart(user: str, token: str) -> None:
    """Any name without a key in it, with a token behind it."""
    assert GRAMMAR.read(f"{user}-session-{token}") == (user, Parameters((), token))


@given(st.text(max_size=100))
def test_any_name_is_read_or_refused(name: str) -> None:
    """Nothing else is raised, and a name that is read begins as it was."""
    with contextlib.suppress(ValueError):
        user, _ = GRAMMAR.read(name)
        assert name.startswith(user)
