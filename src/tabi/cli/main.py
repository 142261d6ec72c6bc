"""The `tabi` program: its commands, and what becomes of an error.

Exit codes: 0 done, 1 failed while running, 2 the command line or the configuration is wrong; `explain` has 3 for a
request that would be refused.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import NoReturn

import click

import tabi
from tabi.cli.help import Command, Context
from tabi.errors import ConfigError, TabiError, printable

COMMANDS = {
    "serve": "serve",
    "check": "check",
    "run": "run",
    "explain": "explain_command",
    "passwd": "passwd",
    "schema": "schema",
    "connect": "connect",
    "listen": "listen",
    "udp": "udp",
    "ping": "ping",
    "ca": "ca",
    "ua": "ua",
    "flows": "flows",
    "replay": "replay",
    "fault": "fault",
    "sessions": "sessions",
    "kick": "kick",
    "metrics": "metrics",
    "top": "top",
    "completion": "completion",
    "man": "man",
    "upgrade": "upgrade",
}
"""Each command, and its name in the module that is called as it is. A module is imported when its command is used."""


class Commands(click.Group):
    """The commands, in the order in which a user learns them."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        if cmd_name not in COMMANDS:
            return None
        command: Command = getattr(importlib.import_module(f"tabi.cli.{cmd_name}"), COMMANDS[cmd_name])
        return command


def print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        click.echo(f"tabi {tabi.__version__}")
        ctx.exit()


@click.group(
    cls=Commands,
    epilog="""\b
    Start one:               tabi serve
    Use it:                  curl -x socks5h://127.0.0.1:1080 https://example.com/
    What a command can do:   tabi COMMAND -h""",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Print the version."
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def app() -> None:
    """A proxy for SOCKS5, SOCKS4 and HTTP: Python decides, the kernel carries."""


def fill_standard_streams() -> None:
    """Put /dev/null where a standard stream was closed: its descriptor must not become that of a socket."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for the life of the program
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - the same


def main() -> None:
    """Run a command; errors are one line."""
    fill_standard_streams()
    try:
        with app.make_context("tabi", sys.argv[1:]) as context:
            sys.exit(app.invoke(context))
    except click.exceptions.Exit as exc:  # the help or the version was shown
        sys.exit(exc.exit_code)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(2)
    except click.ClickException as exc:
        fail(exc.format_message(), 2)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (TabiError, OSError, ValueError) as exc:
        if "--debug" in sys.argv:
            traceback.print_exc()
        text = exc.strerror if isinstance(exc, OSError) and exc.strerror and not exc.filename else exc
        fail(text, 2 if isinstance(exc, ConfigError) else 1)
    except (KeyboardInterrupt, EOFError):
        sys.exit(130)


def fail(text: object, code: int) -> NoReturn:
    """Say in one line what went wrong, and end."""
    print(printable(f"tabi: {text}"), file=sys.stderr)
    sys.exit(code)
