"""`tabi replay`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import click
import msgspec

from tabi.cli.help import Command
from tabi.config import Config, GuardConfig, InterceptConfig, Listen, Log, RuleConfig
from tabi.errors import ConfigError
from tabi.intercept.packages import need_packages
from tabi.intercept.replay import PARTS, Replay
from tabi.launch.messages import messages
from tabi.net.kernel import check_calls, raise_descriptor_limit, try_all
from tabi.net.reactor import make_loop
from tabi.server.intercept_files import authority_paths, load_authority
from tabi.server.server import Server

log = logging.getLogger("tabi")

EGRESS = "recorded"
DRAIN = 2.0
"""Seconds that sessions have when it ends."""


@click.command(cls=Command)
@click.argument("file", metavar="FILE.har", type=click.Path(path_type=Path), help="What was recorded.")
@click.option(
    "-l",
    "--listen",
    metavar="URL",
    multiple=True,
    help="Listen here; may be repeated. Default: mixed://127.0.0.1:1080.",
)
@click.option(
    "--miss",
    type=click.Choice(["502", "pass"]),
    default="502",
    help="What was not recorded: status 502, or pass it on to its destination. Default: 502.",
)
@click.option(
    "--match",
    metavar="PARTS",
    default=",".join(PARTS),
    help=f"What of a request must be as recorded. Default: {','.join(PARTS)}.",
)
def replay(file: Path, listen: tuple[str, ...], miss: str, match: str) -> int:
    """Run a proxy that answers what was recorded in a HAR file, by tabi or another tool.

    If a request was recorded several times the answers come in their order, and the last one again and again. A line
    is printed for each request. For https clients must trust the authority of `tabi ca init`.

    Examples:

    \b
    tabi replay flows.har
    tabi replay flows.har -l http://127.0.0.1:8080 --miss pass --match method,url
    """
    need_packages("tabi replay")
    parts = [part.strip() for part in match.split(",")]
    if not set(parts) <= set(PARTS):
        raise ConfigError(f"{match!r}, expected some of: {','.join(PARTS)}", "--match")
    check_calls(try_all())
    raise_descriptor_limit()
    found = Replay(str(file), parts, miss == "pass")
    try:
        with messages("INFO"), asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(serve(found, list(listen)))
    finally:
        found.close()
    return 0


async def serve(found: Replay, listen: list[str]) -> None:
    """Serve until SIGINT or SIGTERM; a second one ends it at once."""
    from tabi.intercept.contexts import ServerContexts  # which need the extra
    from tabi.intercept.replay_origin import ReplayOrigin

    loop, told, at_once = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (at_once if told.is_set() else told).set())
    config = make_config(found, listen)
    tls = config.intercept[0].tls
    origin = ReplayOrigin(ServerContexts(load_authority(config)) if tls else None)
    try:
        async with Server(config=config, hooks=[found], egresses={EGRESS: origin}) as server:
            print_ready(found, server.urls, authority_paths(config)[0] if tls else None)
            await told.wait()
            drain, hurried = loop.create_task(server.drain(DRAIN)), loop.create_task(at_once.wait())
            await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
            drain.cancel()
            hurried.cancel()
    finally:
        origin.close()


def make_config(found: Replay, listen: list[str]) -> Config:
    """The configuration: every session is looked into, and goes nowhere unless what is not recorded is passed on."""
    config = Config(log=Log(access="none"))
    if listen:
        config = msgspec.structs.replace(config, listen=[Listen(url) for url in listen])
    tls = found.has_tls or Path(authority_paths(config)[0]).exists()
    intercept = InterceptConfig(name="replay", tls=tls, verify=found.passes, print=True)
    if not found.passes:  # then no address is dialled that would need a guard
        rule = RuleConfig("allow", "replay", via=EGRESS)
        config = msgspec.structs.replace(config, rule=[rule], guard=GuardConfig(deny=[]))
    return msgspec.structs.replace(config, intercept=[intercept])


def print_ready(found: Replay, urls: list[str], authority: str | None) -> None:
    """Say where it listens, what it has, and how to try it; on stderr, since stdout is for the flows."""
    lines = [f"listening on {url}" for url in urls]
    lines.append(f"answers: {found.count} of {found.path}")
    if found.truncated:
        lines.append(f"of these {found.truncated} were not recorded whole: they are cut")
    if authority is not None:
        lines.append(f"https: clients have to trust {authority}")
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()
