"""`tabi ua`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from tabi.cli.help import Command, Context
from tabi.observe.terminal import BOLD, painted, wants_colour

COLUMNS = (("name", 14), ("JA4", 37), ("HTTP/2", 58), ("User-Agent", 0))
"""Headings of the table, and how wide each column is."""


OWN = "the client's own"


class Group(click.Group):
    """The commands of fingerprints."""

    context_class = Context
    command_class = Command


@click.group(cls=Group, no_args_is_help=True)
def ua() -> None:
    """Fingerprints that can be shown to destinations.

    They are for tls and profile of [[distort]].

    Example:  tabi ua list
    """


@ua.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: what each sets, with all fields.")
def list_fingerprints(as_json: bool) -> int:
    """List them, with what each sets.

    JA4 and HTTP/2 are what destinations see with tls and with profile. The fields are those of a browser's requests:
    profile takes their order and case, the values stay the client's. tls = "mirror" is the client's own hello.

    Example:  tabi ua list --json
    """
    from tabi.distort.fingerprint.packages import need_utls
    from tabi.distort.fingerprint.presets import MIRROR, describe, names

    need_utls("tabi ua")
    own: dict[str, Any] = {"name": MIRROR, "ja4": None, "http2": None, "fields": []}
    found = [own, *(describe(name) for name in names())]
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    for line in table(found, wants_colour(1)):
        print(line)
    return 0


def table(found: list[dict[str, Any]], colour: bool) -> Iterator[str]:
    """A line for each fingerprint."""
    yield painted(row([title for title, _ in COLUMNS]), BOLD, colour)
    for one in found:
        agent = next((value for name, value in one["fields"] if name == "User-Agent"), "")
        yield row([one["name"], one["ja4"] or OWN, one["http2"] or OWN, agent])


def row(cells: list[str]) -> str:
    """Cells in their columns."""
    return " ".join(cell.ljust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True)).rstrip()
