"""How the help of the commands looks."""

from __future__ import annotations

import os
from typing import Any

import click


class HelpFormatter(click.HelpFormatter):
    """The usual formatter, with headings in bold; click removes that if the help does not go to a terminal."""

    def write_heading(self, heading: str) -> None:
        """Write the heading of a section."""
        super().write_heading(click.style(heading, bold=True))


class Context(click.Context):
    """The context of a command. NO_COLOR in the environment switches colours off on a terminal too."""

    formatter_class = HelpFormatter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if os.environ.get("NO_COLOR"):
            self.color = False


class Command(click.Command):
    """A command with such help."""

    context_class = Context

    def get_short_help_str(self, limit: int = 45) -> str:
        """The whole first sentence of the help, for the list of commands."""
        return super().get_short_help_str(200)


class Group(click.Group):
    """A command that has commands, in the order in which they are used."""

    context_class = Context
    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self.commands)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The whole first sentence of the help."""
        return super().get_short_help_str(200)
