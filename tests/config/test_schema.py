"""The structs of tabi.toml: durations, what is secret, and that nothing unknown is taken."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import msgspec
import pytest
from rich.pretty import pretty_repr

from tabi.config import schema
from tabi.config.schema import Config, EgressConfig, MemberConfig, Seconds, UserConfig

STRUCTS = [
    kind
    for kind in vars(schema).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == schema.__name__
]


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_part_refuses_what_it_does_not_know_and_never_changes(kind: type[msgspec.Struct]) -> None:
    """A typing error in a key is an error, and what was checked stays as it was."""
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.forbid_unknown_fields


def test_every_key_says_what_it_is() -> None:
    """Each field has a text behind it, with its unit where it has one."""
    source = inspect.getsource(schema).splitlines()
    for kind in STRUCTS:
        for field in kind.__struct_fields__:
            at = next(n for n, line in enumerate(source) if line.startswith(f"class {kind.__name__}("))
            at = next(n for n in range(at, len(source)) if source[n].startswith(f"    {field}: "))
            while not source[at + 1].startswith("    ") or source[at].endswith(("(", "[", ",")):
                at += 1
            assert source[at + 1].startswith('    """'), f"{kind.__name__}.{field}"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (10, 10),
        (0.25, 0.25),
        ("200ms", 0.2),
        ("5", 5),
        (" 5 s ", 5),
        ("1.5min", 90),
        ("2 h", 7200),
        ("1d", 86400),
        (999_999_999, 999_999_999),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    """A number of seconds, or text with a unit."""
    assert Seconds.parse(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", [0, -1, 1e9, "0", "1e3", "5 m", "5 s 3", "", "-5", "five", True, None, [1], float("nan")]
)
def test_what_is_no_duration_is_a_value_error(value: object) -> None:
    """Nothing that would never end or be over at once, nor a unit that could be two."""
    with pytest.raises(ValueError, match="duration"):
        Seconds.parse(value)


@pytest.mark.parametrize(
    "part",
    [
        UserConfig("hunter2", plain=True),
        MemberConfig("socks5://alice:hunter2@192.0.2.1:1080"),
        EgressConfig(url="socks5://alice:hunter2@192.0.2.1:1080"),
        EgressConfig(chain=["socks5://192.0.2.1:1", "http://alice:hunter2@192.0.2.1:1080"]),
        EgressConfig(
            members=["socks5://alice:hunter2@192.0.2.1:1080", MemberConfig("http://alice:hunter2@192.0.2.2:1")]
        ),
        Config(
            users={"alice": UserConfig("hunter2", plain=True)},
            egress={"a": EgressConfig(url="ssh://a:hunter2@192.0.2.1:1")},
        ),
    ],
)
def test_no_password_is_in_a_repr(part: object) -> None:
    """They are in tracebacks, in logs, and in what `tabi check` prints with rich."""
    assert "hunter2" not in repr(part)
    assert "hunter2" not in str(part)
    assert "hunter2" not in pretty_repr(part)
    assert "hunter2" not in repr(SimpleNamespace(part=[part]))
