"""The commands as data, for what describes all of them: shell completion and manual pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import click

from tabi.config.distort import LineConfig
from tabi.config.faults import PROFILES
from tabi.policy.rules import COMMANDS, PROTOCOLS
from tabi.url import LISTENER_KEYS, LISTENER_PROTOCOLS, PROXY_PROTOCOLS


class Value(NamedTuple):
    """What stands in a place: some words, or the name of something."""

    words: tuple[str, ...] = ()
    kind: str = ""
    """``file``, ``folder`` or ``command``; empty if there are only words, or nobody knows."""
    goes_on: bool = False
    """Whether more follows a word, as the host does behind ``socks5://``."""


class Option(NamedTuple):
    """An option of a command."""

    names: tuple[str, ...]
    text: str
    metavar: str
    value: Value | None
    """None if it takes no value."""
    repeated: bool


class Argument(NamedTuple):
    """An argument of a command."""

    metavar: str
    text: str
    value: Value
    required: bool
    repeated: bool


class Node(NamedTuple):
    """A command, or a group of commands."""

    path: tuple[str, ...]
    """Its name, with those of the groups that it is in; empty for `tabi` itself."""
    command: click.Command
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    children: tuple[Node, ...]

    @property
    def summary(self) -> str:
        """Its first sentence, without the full stop."""
        return self.command.get_short_help_str(200).removesuffix(".")


FILE = Value(kind="file")

VALUES = {
    "FILE": FILE,
    "FILE.har": FILE,
    "PATH": FILE,
    "TABI.TOML": FILE,
    "DIR": Value(kind="folder"),
    "WHERE": Value(("stdout", "stderr", "syslog", "none"), "file"),
    "PROFILE": Value(tuple(PROFILES)),
    "COMMAND": Value(COMMANDS),
    "PROTOCOL": Value(PROTOCOLS),
    "COMMAND ARGUMENT": Value(kind="command"),
    "KEY=VALUE": Value(tuple(f"{key}=" for key in LineConfig.__struct_fields__), goes_on=True),
    "URL": Value(tuple(f"{scheme}://" for scheme in PROXY_PROTOCOLS), goes_on=True),
}
"""By metavar, without brackets and dots."""

LISTEN_URL = Value(tuple(f"{scheme}://" for scheme in (*LISTENER_PROTOCOLS, *LISTENER_KEYS)), goes_on=True)


def make_tree(app: click.Group) -> Node:
    """All commands, below `tabi` itself."""
    return make_node(app, (), click.Context(app, info_name="tabi", **app.context_settings))


def make_node(command: click.Command, path: tuple[str, ...], context: click.Context) -> Node:
    """A command with those below it."""
    children: list[Node] = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            below = click.Context(child, parent=context, info_name=name)
            children.append(make_node(child, (*path, name), below))
    options, arguments = [], []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            options.append(make_option(parameter))
        elif isinstance(parameter, click.Argument):
            arguments.append(make_argument(parameter))
    return Node(path, command, tuple(options), tuple(arguments), tuple(children))


def make_option(option: click.Option) -> Option:
    """An option; one that switches something off has both names."""
    names = tuple(sorted((*option.opts, *option.secondary_opts), key=len))
    metavar = "|".join(option.type.choices) if isinstance(option.type, click.Choice) else option.metavar or ""
    value = None if option.is_flag or option.count else value_of(option, metavar)
    return Option(names, option.help or "", "" if value is None else metavar, value, option.multiple)


def make_argument(argument: click.Argument) -> Argument:
    """An argument."""
    metavar = argument.metavar or argument.human_readable_name
    text = str(getattr(argument, "help", None) or "")
    return Argument(metavar, text, value_of(argument, metavar), argument.required, argument.nargs != 1)


def value_of(parameter: click.Parameter, metavar: str) -> Value:
    """What stands in the place of a parameter."""
    if re.fullmatch(r"\w+(\|\w+)+", metavar):
        return Value(tuple(metavar.split("|")))
    if parameter.name == "listen":
        return LISTEN_URL
    return VALUES.get(re.sub(r"[\[\]]|\.\.\.", "", metavar), Value())


def walk(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for child in node.children:
        yield from walk(child)
