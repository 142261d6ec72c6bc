"""The structs of tabi.toml: what is secret, and that nothing unknown is taken."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import msgspec
import pytest
from rich.pretty import pretty_repr

from tabi.config import schema
from tabi.config.schema import Config, EgressConfig, MemberConfig, UserConfig

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
