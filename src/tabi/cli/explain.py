"""`tabi explain`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from tabi.cli.help import Command
from tabi.config import load_config
from tabi.config.load import in_file
from tabi.errors import ConfigError, printable
from tabi.observe.log_json import escape_json
from tabi.policy.rules import COMMANDS, PROTOCOLS
from tabi.server.explain_distort import lines_of as lines_of_distortion
from tabi.server.explain_intercept import lines_of
from tabi.server.explain_request import explain_request, make_request
from tabi.server.explanation import Explanation

REFUSED = 3
"""The exit code for a request that would be refused."""


@click.command("explain", cls=Command)
@click.argument("command", metavar="COMMAND", help=f"One of {', '.join(COMMANDS)}.")
@click.argument("destination", metavar="HOST:PORT", help="The destination of the request.")
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The tabi.toml whose decisions are explained.",
)
@click.option(
    "--from", "client", metavar="IP", default="127.0.0.1", help="The client's address, or unix. Default: 127.0.0.1."
)
@click.option("--user", metavar="NAME", help="The user, with parameters if any. Default: none.")
@click.option("--listener", metavar="URL", help="A listener of the file. Default: the first.")
@click.option("--protocol", metavar="NAME", help=f"One of {', '.join(PROTOCOLS)}. Default: by URL.")
@click.option(
    "--sni", metavar="NAME", help="The name in the client's TLS hello, for [[intercept]]. Default: not known."
)
@click.option("--at", metavar="TIME", help="Such as 2027-01-31T08:00, UTC. Default: now.")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
def explain_command(
    command: str,
    destination: str,
    config: Path,
    client: str,
    user: str | None,
    listener: str | None,
    protocol: str | None,
    sni: str | None,
    at: str | None,
    as_json: bool,
) -> int:
    """Say what would become of a request, rule by rule, and why. Exits with 0 if it is allowed, 3 if not.

    The destination's name is resolved, nothing is connected to, and no running server is asked.

    Example:

    \b
    tabi explain -c tabi.toml --from 203.0.113.9 --user alice connect example.com:443
    """
    settings = load_config(config)
    request = make_request(settings, command, destination, client, user, listener, protocol, at, sni)
    logging.disable()  # the answer has the error of a `decide` program
    try:
        found = asyncio.run(explain_request(settings, request))
    except ConfigError as exc:
        raise in_file(exc, config) from exc
    if as_json:
        print(escape_json(json.dumps(msgspec.to_builtins(found), indent=1, ensure_ascii=False)))
    else:
        print("\n".join(map(printable, lines(found))))
    return 0 if found.error is None else REFUSED


def lines(found: Explanation) -> Iterator[str]:
    """The answer for people, line by line."""
    yield f"{found.command} {found.destination}, from {found.client} by {found.protocol} to {found.listener}"
    yield ""
    rows = [("client", found.identity)]
    if found.parameters is not None:
        rows.append(("user name", f"{found.login}: {', '.join(parameters_of(found.parameters))}"))
    width = max((len(step.rule) for step in found.rules), default=0)
    rules = [
        f"{step.rule:{width}}  {f'yes, {step.action}' if step.matched else 'no':10}  {step.why}" for step in found.rules
    ]
    if not rules:
        rules = ["there are none: everything is allowed, subject to the guard"]
    elif not found.rules[-1].matched:
        rules.append("none matches: allowed, subject to the guard")
    rows += [("rules" if not index else "", text) for index, text in enumerate(rules)]
    if found.decide is not None:
        rows.append(("decide", found.decide))
    if found.delay is not None:
        rows.append(("delay", f"{found.delay:g} s"))
    rows += [("resolver", found.resolver), ("guard", found.guard)]
    rows += [("limits" if not index else "", text) for index, text in enumerate(found.limits or ["none"])]
    if found.egress is not None:
        rows.append(("egress", found.egress))
    rows += [("selects" if not index else "", text) for index, text in enumerate(found.selects)]
    if found.intercept is not None:
        rows += [("intercept" if not index else "", text) for index, text in enumerate(lines_of(found.intercept))]
    rows += [("distort" if not index else "", text) for index, text in enumerate(lines_of_distortion(found.distort))]
    if found.sniff is not None:
        rows.append(("sniff", found.sniff))
    if found.later is not None:
        rows.append(("datagrams" if found.command == "associate" else "callers", found.later))
    for title, text in rows:
        yield f"{title:10}{text}"
    yield ""
    yield f"{'answer':10}{answer(found)}"


def parameters_of(parameters: Mapping[str, Any]) -> Iterator[str]:
    """The parameters of a user name, for people."""
    yield from (f"label {label}" for label in parameters["labels"])
    if parameters["session"] is not None:
        yield f"session {parameters['session']}"
    if parameters["ttl"] is not None:
        yield f"ttl {parameters['ttl']:g} s"


def answer(found: Explanation) -> str:
    """What the client would get."""
    if found.error is None:
        return "allowed" + (f" by {found.rule}" if found.rule else "")
    how = {"reset": "connection reset", "drop": "no answer"}.get(found.action)
    if how is None:
        what = "status" if found.protocol.startswith("http") else "reply"
        how = "refused without a reply" if found.reply is None else f"refused with {what} {found.reply:02}"
    return f"{how}: {found.error}"
