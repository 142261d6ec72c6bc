"""`tabi run`."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from tabi.cli.help import Command
from tabi.cli.main import fail
from tabi.cli.serve import merge
from tabi.config import Config, Listen, load_config
from tabi.launch import command
from tabi.launch.command import CannotStart, hold_signals
from tabi.launch.environment import make_environment
from tabi.launch.messages import messages
from tabi.launch.proxy import ProxyThread
from tabi.launch.summary import Summary
from tabi.net.kernel import check_calls, descriptor_limits, raise_descriptor_limit, try_all
from tabi.server.compiled import Compiled
from tabi.server.server import Server
from tabi.signals import restore

LISTEN = Listen("mixed://127.0.0.1:0", users="none")
"""The one listener of a run. It needs no user: not every program can log in at a proxy."""


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.argument("arguments", metavar="COMMAND [ARGUMENT]...", nargs=-1, required=True, help="The program to run.")
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A tabi.toml: its rules, egresses and limits hold; its listeners and its access log on stdout do not.",
)
@click.option(
    "--via", metavar="URL", multiple=True, help="Go out through this proxy. May be repeated: a chain, in order."
)
@click.option("-q", "--quiet", is_flag=True, help="No summary at the end, and no warnings.")
def run(arguments: tuple[str, ...], config: Path | None, via: tuple[str, ...], quiet: bool) -> None:
    """Run a command behind a proxy of its own, and say where it went.

    The proxy listens on a free port of 127.0.0.1 as long as the command runs. The command finds it by HTTP_PROXY,
    HTTPS_PROXY, ALL_PROXY and what else programs read. Its input, its output, its signals and its exit code are its
    own.

    Examples:

    \b
    tabi run -- curl https://example.com/
    tabi run -- npm install
    tabi run --via socks5://127.0.0.1:9050 -- git clone https://example.com/x.git
    """
    restore()
    end_in_order()
    check_calls(try_all())
    summary = Summary()
    server = Server(compiled=compile_run(config, via), observers=[summary])
    held = hold_signals()  # before any thread begins: it would take them
    try:
        with messages("ERROR" if quiet else "WARNING"):
            code = follow(server, arguments, held)
    except CannotStart as exc:
        fail(exc, exc.code)
    if not quiet:
        sys.stderr.write("".join(f"tabi: {line}\n" for line in summary.lines(Path(arguments[0]).name)))
    sys.exit(code)


def end_in_order() -> None:
    """Have signals that come before the command runs end this process as Ctrl-C does, so that it removes its files."""

    def end(number: int, frame: object) -> NoReturn:
        sys.exit(command.SIGNALLED + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def compile_run(path: Path | None, via: tuple[str, ...]) -> Compiled:
    """The configuration of a run: that of the file, with the listener of the run in place of its own.

    Raises:
        ConfigError: as `merge`.
    """
    config = Config() if path is None else load_config(path, values=False)
    log = config.log
    if log.access in ("stdout", "stderr"):  # which are the command's
        log = msgspec.structs.replace(log, access="none")
    config = msgspec.structs.replace(config, listen=[LISTEN], workers=1, log=log)
    return merge(config, None, None, None, None, list(via), path)


def follow(server: Server, arguments: tuple[str, ...], held: set[signal.Signals]) -> int:
    """Run a command behind a proxy, and return its exit code.

    Raises:
        CannotStart: as `command.Command.start`.
    """
    proxy = ProxyThread(server)
    try:
        with descriptors():
            address = proxy.start()
        environ = make_environment(os.environ, str(address.host), address.port)
        started = command.Command.start(arguments, environ, held)
        raise_descriptor_limit()
        return started.wait()
    finally:
        proxy.stop()
        command.drain(proxy.runs, lambda: proxy.stop(at_once=True))


@contextlib.contextmanager
def descriptors() -> Iterator[None]:
    """Have the proxy count on all descriptors that this process may have, while the command inherits the usual limit:
    some programs close each descriptor up to it, and select(2) cannot have more than 1,024."""
    limits = descriptor_limits()
    raise_descriptor_limit()
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
