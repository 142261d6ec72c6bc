"""The commands as data."""

from __future__ import annotations

import click
import pytest

from tabi.cli.main import COMMANDS, app
from tabi.cli.tree import FILE, Node, Value, make_tree, walk

TREE = make_tree(app)
NODES = {node.path: node for node in walk(TREE)}


def test_all_commands_are_there() -> None:
    """In their order, those of groups below them."""
    assert [node.path for node in TREE.children] == [(name,) for name in COMMANDS]
    assert [node.path[-1] for node in NODES["fault",].children] == ["list", "add", "change", "remove"]
    assert TREE.path == ()


def option(node: Node, name: str) -> Value | None:
    """What an option takes."""
    (found,) = (one for one in node.options if name in one.names)
    return found.value


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (("serve",), "-c", FILE),
        (("serve",), "--open", None),
        (("serve",), "--workers", Value()),
        (("ca", "init"), "--dir", Value(kind="folder")),
        (("ca", "export"), "--format", Value(("pem", "der", "p12"))),
        (("fault", "add"), "--then", Value(("close", "reset"))),
        (("fault", "add"), "--no-blackhole", None),
        ((), "--version", None),
    ],
)
def test_what_options_take(path: tuple[str, ...], name: str, value: Value | None) -> None:
    """Files, folders, words, or what nobody knows; nothing if it is a flag."""
    assert option(NODES[path], name) == value


def test_urls_go_on() -> None:
    """With a host. Those of listeners are others than those of proxies."""
    proxies, listeners = option(NODES["serve",], "--via"), option(NODES["serve",], "--listen")
    assert proxies is not None
    assert listeners is not None
    assert proxies.goes_on
    assert "ssh://" in proxies.words
    assert listeners.goes_on
    assert "unix://" in listeners.words
    assert NODES["ping",].arguments[0].value == proxies


def test_what_arguments_are() -> None:
    """Whether they must be there, and may be repeated."""
    (one,) = NODES["check",].arguments
    assert (one.metavar, one.value, one.required, one.repeated) == ("TABI.TOML", FILE, True, False)
    (one,) = NODES["run",].arguments
    assert (one.value.kind, one.required, one.repeated) == ("command", True, True)


def test_each_command_says_in_a_sentence_what_it_does() -> None:
    """Without its full stop, whole."""
    assert NODES["serve",].summary == "Run the proxy"
    for node in walk(TREE):
        assert node.summary
        assert "..." not in node.summary


def test_help_is_among_the_options() -> None:
    """With both of its names."""
    for node in walk(make_tree(click.Group("x", context_settings={"help_option_names": ["-h", "--help"]}))):
        assert option(node, "-h") is None
