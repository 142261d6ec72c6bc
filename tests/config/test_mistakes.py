"""All mistakes of a tabi.toml at once, in its own words and in its order; one does not bring others with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.config import Config, Log, Timeouts, parse_config
from tabi.config.load import check_types, decode_special
from tabi.config.mistakes import find_mistakes, in_words, position
from tabi.errors import ConfigError


def keys_of(text: str) -> list[str]:
    """The keys of all errors of a file."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return [str(error.path) for error in caught.value.errors]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("b = 1\na = 2\nworkers = 'x'", ["b", "a", "workers"]),
        ("[log]\nlevel = 'x'\n[timeouts]\nidle = -1\nbind = 'x'", ["log.level", "timeouts.idle", "timeouts.bind"]),
        ("listen = [1, { url = 2 }, {}]", ["listen[0]", "listen[1].url"]),
        ("[[rule]]\nports = [true, 1, 1.5]\naction = 'allow'", ["rule[0].ports[0]", "rule[0].ports[2]"]),
        ("[[clients]]\n[[clients]]\nnetworks = ['x']", ["clients[0].networks", "clients[1].networks[0]"]),
        (
            "[[distort]]\nfault = { refuse = {}, resolve = { a = 1 } }",
            ["distort[0].fault.refuse", "distort[0].fault.resolve"],
        ),
        ("[[rule]]\naction = 'allow'\nports = [{ a = 1 }]", ["rule[0].ports[0]"]),
        ("[[clients]]\nnetworks = 7\n[limits]\nover = 'x'", ["clients[0].networks", "limits.over"]),
        ("[users_grammar]\nkeys = { a = 'b', c = 'label', d = 1 }", ["users_grammar.keys.a", "users_grammar.keys.d"]),
        ("[egress.a]\nmembers = [1, { to = 2 }, 'block']", ["egress.a.members[0]", "egress.a.members[1].to"]),
        ("[users.'b.c']\npassword = 1\n[users.b]\nplain = 1", ["users.b.c.password", "users.b.plain"]),
        # names and values of types that are right, with those that are not
        ("[resolver]\ntries = 0\ncache = 'x'", ["resolver.tries", "resolver.cache"]),
        ("[[rule]]\nvia = 'a'\n[egress.b]\nmark = 'x'", ["rule[0].via", "egress.b.mark"]),
        ("[[rule]]\nvia = 'a'\n[egress.a]\nmark = 'x'", ["egress.a.mark"]),
        # what is only wrong because of a mistake
        ("[[listen]]\nurl = 1\n[[listen]]", ["listen[0].url"]),
        (
            "[[listen]]\nurl = 'https://127.0.0.1:1'\ntls = { key = 1 }",
            ["listen[0].tls.key", "listen[0].tls.certificate"],
        ),
        ("[users.a]\npassword = 'x'\nplian = true", ["users.a.plian"]),
        ("[users.a]\npasword = 'x'", ["users.a.pasword"]),
        ("[[rule]]\nacton = 'deny'", ["rule[0].acton"]),
        ("[egress.a]\nmember = ['block']\nbalance = 'random'", ["egress.a.member"]),
        ("[resolver]\nserver = ['tls://1.1.1.1']\nca = 'x'", ["resolver.server"]),
        (
            "[[distort]]\nfault = { latencyy = 1, loss = 'x' }\nfoo = 1",
            ["distort[0].fault.latencyy", "distort[0].fault.loss", "distort[0].foo"],
        ),
        (
            "[profile.x]\nlatency = 'x'\n[[distort]]\nfault = 'x'\nprobability = 2",
            ["profile.x.latency", "distort[0].probability"],
        ),
        (
            "[[distort]]\nfault = { up = { latency = -1, x = 1 }, status = 'x' }\n[[distort]]\nseed = 1.5",
            ["distort[0].fault.up.latency", "distort[0].fault.up.x", "distort[0].fault.status", "distort[1].seed"],
        ),
        # what is not
        (
            "[users.a]\npassword = 'x'\nlimits = { bandwidth = 'x' }",
            ["users.a.password", "users.a.limits.bandwidth"],
        ),
    ],
)
def test_each_mistake_is_told_once(text: str, keys: list[str]) -> None:
    """In the order of the file; what is missing comes behind what is there."""
    assert keys_of(text) == keys


def test_the_first_of_them_is_the_error() -> None:
    """A wrong name or type before a wrong value, which it may be the reason of; one alone is its own list."""
    with pytest.raises(ConfigError) as caught:
        parse_config("[resolver]\ntries = 0\ncache = 'x'")
    assert str(caught.value) == "resolver.cache: expected integer, got string"
    alone = ConfigError("wrong", "key")
    assert alone.errors == (alone,)


def test_what_is_right_is_left() -> None:
    """So that it is looked at further, with something that stands in where a part cannot be without."""
    data = {"workers": "x", "listen": [{"url": 1, "udp": {"ports": "1-2"}}, 7], "clients": [{}], "log": {"a": 1}}
    mistakes, left = find_mistakes(data, Config, "", decode_special)
    assert len(mistakes) == 5
    assert left == {
        "listen": [{"url": "mixed://127.0.0.1:0", "udp": {"ports": "1-2"}}, {"url": "mixed://127.0.0.1:0"}],
        "clients": [{"networks": ["192.0.2.0/24"]}],
        "log": {},
    }


def test_none_is_what_is_not_there() -> None:
    """A configuration that was made in Python has it, where TOML has nothing."""
    given = Config(timeouts=Timeouts(idle=-1.0), log=Log(level="loud"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        check_types(given)
    assert [error.path for error in caught.value.errors] == ["timeouts.idle", "log.level"]


def test_messages_are_in_the_words_of_the_file() -> None:
    """Tables, strings and integers; what may be chosen is said."""
    assert str(in_words("Expected `str | null`, got `int`", "a.b")) == "a.b: expected string, got integer"
    assert str(in_words("Expected `str | object | null`, got `int`", "a")) == "a: expected string or table, got integer"
    assert str(in_words("Expected `str`, got `int` - at `$[1]`", "a")) == "a[1]: expected string, got integer"
    text = "rule[0].action: invalid enum value 'x', expected allow, deny, reset or drop"
    assert str(in_words("Invalid enum value 'x'", "rule[0].action")) == text
    assert str(in_words("Something else", "")) == "something else"
    assert str(in_words("Decimal('0.1') is not a duration", "a")) == "a: Decimal('0.1') is not a duration"


def test_positions_are_those_of_the_file() -> None:
    """Of names that have dots in them too; what is not there comes last."""
    data = {"a": {"b": 1, "b.c": {"d": [1, {"e": 2}]}}, "f": 3}
    assert position("a.b.c.d[1].e", data) == (0, 1, 0, 1, 0)
    assert position("a.b", data) == (0, 0)
    assert position("f", data) == (1,)
    assert position("a.x", data) > position("a.b.c.d[1].e", data)
    assert position("a.b.c.d[7]", data) > position("a.b.c.d[1]", data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**33) | st.floats() | st.text(max_size=3),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(Config.__struct_fields__) | st.text(max_size=4),
        VALUES | st.dictionaries(st.text(max_size=3), VALUES, max_size=2),
        max_size=4,
    )
)
def test_whatever_is_in_a_file_its_mistakes_are_told(data: dict[str, object]) -> None:
    """Each of them is a line that can be printed, and what is left can be used."""
    import msgspec

    mistakes, left = find_mistakes(data, Config, "", decode_special)
    assert all(str(error).isprintable() for error in mistakes)
    msgspec.convert(left, Config, dec_hook=decode_special)
