"""What commands share that ask the running server."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from tabi.errors import ConfigError, printable
from tabi.server.control import ask_server, find_socket

if TYPE_CHECKING:
    from tabi.cli.admin_client import AdminClient

Place: TypeAlias = "Path | AdminClient | None"
"""Where the running server is asked: at its control socket, None: at the one that is found; or by its admin API."""

at_socket: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--socket",
    "path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The control socket of the server. Default: the one in $XDG_RUNTIME_DIR/tabi or /run/tabi.",
)


def at_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which server is asked; the command gets ``path``, a `Place`."""

    @wraps(command)
    def asking(path: Path | None, admin: str | None, token_file: str | None, **options: Any) -> Any:
        return command(path=place_of(path, admin, token_file), **options)

    asking = click.option("--token-file", metavar="FILE", help="Its token. Default: $TABI_ADMIN_TOKEN.")(asking)
    asking = click.option(
        "--admin", metavar="URL", help="Ask by the admin API at http://HOST:PORT or https://, in place of the socket."
    )(asking)
    return at_socket(asking)


def place_of(path: Path | None, admin: str | None, token_file: str | None) -> Place:
    """Where options say that the server is asked. Raises ConfigError."""
    if admin is None:
        if token_file is not None:
            raise ConfigError("it is for --admin URL", "--token-file")
        return path
    if path is not None:
        raise ConfigError("it contradicts --socket: expected one of both", "--admin")
    from tabi.cli.admin_client import AdminClient
    from tabi.config.admin import read_token

    token = os.environ.get("TABI_ADMIN_TOKEN", "") if token_file is None else read_token(token_file, "--token-file")
    return AdminClient(admin, token)


def ask(place: Place, command: str, **arguments: Any) -> dict[str, Any]:
    """What the running server answers. Raises TabiError, and ConfigError that names the key."""
    if isinstance(place, Path) or place is None:
        return ask_server(find_socket(os.environ) if place is None else place, command, **arguments)
    return place.ask(command, **arguments)


def code_of(found: Mapping[str, Any], later: str = "") -> int:
    """The exit code: 1 if not all workers have answered, which is said. ``later`` is what they do nevertheless."""
    for pid in found["silent"]:
        print(f"tabi: worker {pid} has not answered in time{later}", file=sys.stderr)
    return 1 if found["silent"] else 0


def columns(rows: Sequence[Sequence[str]], right: Collection[int], width: int | None) -> Iterator[str]:
    """Lines with their columns one below the other.

    Args:
        rows: the head first. What controls a terminal is escaped.
        right: the columns that are flushed right.
        width: of the terminal, at which lines are cut; None: they are not.
    """
    lines = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(
            f"{part:>{size}}" if number in right else f"{part:{size}}"
            for number, (part, size) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        yield text if width is None or len(text) <= width else f"{text[: width - 1]}…"


def show(lines: Iterator[str]) -> None:
    """Print lines, whatever the terminal's encoding is."""
    for line in lines:
        print(line.encode("utf-8", "backslashreplace").decode())


def terminal_width() -> int | None:
    """How wide the terminal is; None where the output goes somewhere else."""
    return shutil.get_terminal_size().columns if os.isatty(1) else None


def octets(number: float) -> str:
    """A number of octets for people: ``200 B``, ``18 kB``, ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def seconds(number: float) -> str:
    """A time for people: ``3.2 s``, ``12 min``, ``5 h``, ``3 d``."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if number >= 2 * size:
            return f"{number / size:.0f} {unit}"
    return f"{number:.1f} s" if number < 10 else f"{number:.0f} s"
