"""The `tabi` program: its commands, and what becomes of an error.

Exit codes: 0 done, 1 failed while running, 2 the command line or the configuration is wrong; `explain` has 3 for a
request that would be refused.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer
from typer.exceptions import TyperException

import tabi
from tabi.cli.check import check
from tabi.cli.connect import connect
from tabi.cli.explain import explain_command
from tabi.cli.listen import listen
from tabi.cli.passwd import passwd
from tabi.cli.serve import serve
from tabi.cli.udp import udp
from tabi.errors import ConfigError, TabiError

app = typer.Typer(
    name="tabi",
    help="A proxy for SOCKS5, SOCKS4 and HTTP: Python decides, the kernel carries.",
    epilog="Start one: tabi serve      Use it: curl -x socks5h://127.0.0.1:1080 https://example.com/",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(check)
app.command("explain")(explain_command)
app.command()(passwd)
app.command()(connect)
app.command()(listen)
app.command()(udp)


def print_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        print(f"tabi {tabi.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """What stands in front of every command."""


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
        code = app(standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except TyperException as exc:
        message = exc.format_message()
        if message:  # none where the help was shown
            print(f"tabi: {message}", file=sys.stderr)
        sys.exit(2)
    except (TabiError, OSError, ValueError) as exc:
        if "--debug" in sys.argv:
            traceback.print_exc()
        text = exc.strerror if isinstance(exc, OSError) and exc.strerror and not exc.filename else exc
        print(f"tabi: {text}", file=sys.stderr)
        sys.exit(2 if isinstance(exc, ConfigError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)
