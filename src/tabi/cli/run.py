"""`tabi run`."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from tabi.cli.help import Command
from tabi.cli.interception import Interception, add_interception, interception_options
from tabi.cli.main import fail
from tabi.cli.serve import merge, option_fault
from tabi.config import Ca, Config, Listen, load_config
from tabi.launch import command
from tabi.launch.command import CannotStart, hold_signals
from tabi.launch.environment import inherited_proxy, make_environment
from tabi.launch.folder import run_folder
from tabi.launch.messages import messages
from tabi.launch.proxy import ProxyThread
from tabi.launch.summary import Summary
from tabi.net.kernel import check_calls, descriptor_limits, raise_descriptor_limit, try_all, try_timed_wait
from tabi.server.intercept_files import authority_paths, load_authority
from tabi.server.server import Server
from tabi.signals import restore

LISTEN = Listen("mixed://127.0.0.1:0", users="none")
"""The one listener of a run. It needs no user: not every program can log in at a proxy."""

PATIENCE = 15.0
"""Seconds from the end of the command to that of tabi, even if a hook holds up the proxy."""


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
@interception_options
@option_fault
@click.option("-q", "--quiet", is_flag=True, help="No summary at the end, and no warnings.")
def run(
    arguments: tuple[str, ...],
    config: Path | None,
    via: tuple[str, ...],
    quiet: bool,
    intercept: tuple[str, ...],
    script: tuple[str, ...],
    har: str | None,
    prints: bool,
    trust: str | None,
    faults: tuple[str, ...],
) -> None:
    """Run a command behind a proxy of its own, and say where it went.

    The proxy listens on a free port of 127.0.0.1 as long as the command runs. The command finds it by HTTP_PROXY,
    HTTPS_PROXY, ALL_PROXY and what else programs read. Its input, its output, its signals and its exit code are its
    own.

    --intercept looks into the TLS of hosts. The command trusts the authority for that by SSL_CERT_FILE and the like;
    nothing else on this machine does. It is that of `tabi ca init`, or else one for this run alone.

    Examples:

    \b
    tabi run -- npm install
    tabi run --intercept '*' --print -- curl https://example.com/
    tabi run --intercept '*.example.com' --har out.har -- python3 client.py
    tabi run --via socks5://127.0.0.1:9050 -- git clone https://example.com/x.git
    tabi run --fault 3g -- curl -s http://example.com/
    """
    looks = Interception(intercept, script, har, prints, trust)
    restore()
    end_in_order()
    check_calls(itertools.chain(try_all(), try_timed_wait()))
    summary = Summary(faults)
    with contextlib.ExitStack() as closing:
        merged = configure(config, looks)
        folder = closing.enter_context(run_folder()) if opens_tls(merged) else None
        if folder is not None:
            merged = with_authority(merged, folder)
        compiled = merge(merged, None, None, None, None, list(via), config, faults=faults)
        hooks = [summary] if compiled.intercepts is not None else []
        records = None
        if compiled.intercepts is not None and any(rule.har or rule.print for rule in compiled.intercepts):
            records = closing.enter_context(record_writer())
        server = Server(compiled=compiled, observers=[summary], hooks=hooks)
        server.given = server.given._replace(records=records)
        held = hold_signals()  # before any thread begins: it would take them
        try:
            with messages("ERROR" if quiet else compiled.config.log.level.upper()):
                code = follow(server, arguments, held, folder)
        except CannotStart as exc:
            fail(exc, exc.code)
    if not quiet:
        unused = None if via or config is not None else inherited_proxy(os.environ)
        with contextlib.suppress(OSError):  # nobody reads it: the exit code is the command's all the same
            sys.stderr.write("".join(f"tabi: {line}\n" for line in summary.lines(Path(arguments[0]).name, unused)))
    sys.exit(code)


@contextlib.contextmanager
def record_writer() -> Iterator[socket.socket]:
    """A process that writes records, so that what kills this one tears no write: the way to it. It prints to standard
    error, since standard output is the command's."""
    from tabi.server.record_writer import RecordWriter

    writer = RecordWriter(fd=2)
    try:
        writer.child.start()
        yield writer.sink
    finally:
        writer.close()


def end_in_order() -> None:
    """Have signals that come before the command runs end this process as Ctrl-C does, so that it removes its files."""

    def end(number: int, frame: object) -> NoReturn:
        sys.exit(command.SIGNALLED + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def configure(path: Path | None, looks: Interception) -> Config:
    """The configuration of a run: that of the file, with the listener of the run in place of its own, and what options
    say of interception. A host whose certificate the command has pinned is passed on then, as without tabi.

    Raises:
        ConfigError: as `add_interception`, or the file is wrong.
    """
    config = Config() if path is None else load_config(path, values=False)
    log = config.log
    if log.access in ("stdout", "stderr"):  # which are the command's
        log = msgspec.structs.replace(log, access="none")
    config = add_interception(msgspec.structs.replace(config, listen=[LISTEN], workers=1, log=log), looks)
    if looks.hosts:
        *entries, last = config.intercept
        config = msgspec.structs.replace(config, intercept=[*entries, msgspec.structs.replace(last, on_pinning="pass")])
    return config


def opens_tls(config: Config) -> bool:
    """Whether there is TLS to be opened, for which it takes an authority."""
    return any(entry.action == "intercept" and entry.tls for entry in config.intercept)


def with_authority(config: Config, folder: Path) -> Config:
    """A configuration with an authority: its own, or that of the user, or else one that is made in a folder.

    Raises:
        ConfigError: the extra is not installed.
    """
    from tabi.intercept.packages import need_packages

    need_packages("--intercept")
    if config.ca.certificate is not None or any(map(os.path.lexists, authority_paths(config))):
        return config
    from tabi.intercept.authority import Authority

    Authority.make(str(folder))
    return msgspec.structs.replace(config, ca=Ca(*(str(folder / name) for name in ("ca.crt", "ca.key"))))


def follow(server: Server, arguments: tuple[str, ...], held: set[signal.Signals], folder: Path | None) -> int:
    """Run a command behind a proxy, and return its exit code.

    Args:
        server: not started yet.
        held: the signals that are held back in the command.
        folder: for the files with authorities, if TLS is opened.

    Raises:
        CannotStart: as `command.Command.start`.
    """
    proxy = ProxyThread(server)
    try:
        with descriptors():
            host, port = proxy.start()
        trust = None
        if folder is not None:
            from tabi.launch.trust import write_trust

            ours = load_authority(server.config).certificate_pem
            trust = write_trust(folder, ours, os.environ, f"http://{host}:{port}")
        started = command.Command.start(arguments, make_environment(os.environ, str(host), port, trust), held)
        raise_descriptor_limit()
        return started.wait()
    finally:
        proxy.stop()
        command.drain(proxy.runs, lambda: proxy.stop(at_once=True), PATIENCE)


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
