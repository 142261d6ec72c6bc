"""`tabi fault`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from tabi.cli.fault_options import fault_options, given_by, in_options
from tabi.cli.help import Group
from tabi.cli.running import Place, ask, at_server, code_of, columns, show, terminal_width
from tabi.errors import ConfigError, printable

LATER = "; it acts on it as soon as it can"


@click.group(
    cls=Group,
    no_args_is_help=True,
    epilog="""\b
    Set one:        tabi fault add 3g
    For some:       tabi fault add --host '*.example.com' --latency 200ms --jitter 50ms
    Look at it:     tabi fault list
    Take it away:   tabi fault remove fault-1""",
)
def fault() -> None:
    """Set faults on the running server: a slow, lossy or broken network.

    They act at once, on running sessions too, and stay until they are removed or the server ends; a reload keeps them.

    Example:  tabi fault add --host '*' --latency 200ms --jitter 50ms
    """


option_for = click.option("--for", "seconds", metavar="TIME", help="Remove it after this time. Default: it stays.")
option_profile = click.option(
    "--profile", metavar="PROFILE", help="Its figures, but for those that are given. Default: none but these."
)


@fault.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list.")
@at_server
def list_faults(as_json: bool, path: Place) -> int:
    """List the faults, those of the configuration too, with how many sessions have them now, and had them so far.

    Example:  tabi fault list
    """
    found = ask_fault(path, "list")
    if as_json:
        print(json.dumps(found["faults"], indent=1))
    else:
        show(table(found["faults"], terminal_width()))
    if found["left_out"]:
        print(f"tabi: {found['left_out']} more of the configuration are left out", file=sys.stderr)
    return code_of(found, LATER)


@fault.command()
@click.argument("figures", metavar="[PROFILE]", required=False, help="3g, edge, offline …, or one of [profile.NAME].")
@click.option("--name", metavar="NAME", help="What it is called. Default: fault-1 and so on.")
@option_profile
@option_for
@fault_options
@at_server
def add(figures: str | None, seconds: str | None, path: Place, **options: Any) -> int:
    """Set a fault, and print its name. Figures beside a profile hold in place of its own.

    Examples:

    \b
    tabi fault add 3g
    tabi fault add --host '*.example.com' --latency 200ms --jitter 50ms --for 5min
    tabi fault add --port 443 --up bandwidth=64kbit/s --up loss=1% --probability 10%
    """
    if figures is not None:
        if options["profile"] is not None:
            raise ConfigError(f"there is one already: {figures}", "--profile")
        options["profile"] = figures
    found = ask_fault(path, "add", fault=given_by(options), **{"for": seconds})
    print(printable(found["name"]))
    return code_of(found, LATER)


@fault.command()
@click.argument("name", metavar="NAME", help="Which one.")
@option_profile
@option_for
@fault_options
@at_server
def change(name: str, seconds: str | None, path: Place, **options: Any) -> int:
    """Change a fault: what is given holds from now on, and all else stays. --profile takes the place of all figures.

    Example:  tabi fault change fault-1 --latency 500ms
    """
    return code_of(ask_fault(path, "change", name=name, fault=given_by(options), **{"for": seconds}), LATER)


@fault.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, help="Which ones.")
@click.option("--all", "every", is_flag=True, help="All that were set while the server runs.")
@at_server
def remove(names: tuple[str, ...], every: bool, path: Place) -> int:
    """Remove faults that were set.

    Example:  tabi fault remove fault-1
    """
    if every == bool(names):
        raise ConfigError("expected names, or --all")
    return code_of(ask_fault(path, "remove", names=None if every else list(names)), LATER)


def ask_fault(path: Place, action: str, **arguments: Any) -> dict[str, Any]:
    """What the running server answers. Raises TabiError, and ConfigError that names the option."""
    try:
        return ask(path, "fault", action=action, **arguments)
    except ConfigError as exc:
        raise in_options(exc) from None


def table(rows: Sequence[Mapping[str, Any]], width: int | None) -> Iterator[str]:
    """The list: a line for each, cut to the width of a terminal."""
    if not rows:
        return iter(("no faults",))
    lines = [("name", "sessions", "chosen", "fault", "which sessions")]
    for row in rows:
        name = row["name"] if row["live"] else f"{row['name']} (file)"
        left = row["seconds_left"]
        what = f"{row['what'] or 'no fault'}{'' if left is None else f' (for {left:g} s)'}"
        lines.append((name, f"{row['sessions']:,}", f"{row['chosen']:,}", what, row["matchers"] or "all"))
    return columns(lines, (1, 2), width)
