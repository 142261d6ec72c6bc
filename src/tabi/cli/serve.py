"""`tabi serve`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

import tabi
from tabi.admin.access import Access, tls_context
from tabi.cli.help import Command
from tabi.cli.interception import (
    Interception,
    add_interception,
    authority_option,
    interception_options,
    summary,
)
from tabi.config import Config, DistortConfig, EgressConfig, Listen, RuleConfig, UserConfig, load_config
from tabi.config.admin import need_packages, tokens_of
from tabi.config.faults import PROFILES
from tabi.config.load import in_file
from tabi.errors import ConfigError
from tabi.net.kernel import check_calls, try_all
from tabi.net.listen import bind_place
from tabi.server.channel import Channel
from tabi.server.child import Child
from tabi.server.compiled import Compiled, compile_config
from tabi.server.control import Control, folders, give_folder
from tabi.server.log_writer import LogWriter
from tabi.server.predecessor import Predecessor, take_predecessor
from tabi.server.supervisor import Supervisor
from tabi.server.trust import check_code, check_file, user_of
from tabi.server.watch import Watch
from tabi.wire.address import from_sockaddr

option_fault = click.option(
    "--fault",
    "faults",
    metavar="PROFILE",
    multiple=True,
    help="Have a bad network for all sessions: 3g, edge, offline …, or a [profile.NAME] of the file. May be repeated.",
)


@click.command(cls=Command)
@click.option(
    "-c", "--config", metavar="FILE", type=click.Path(path_type=Path), help="A tabi.toml; `tabi check` tries it."
)
@click.option(
    "-l",
    "--listen",
    metavar="URL",
    multiple=True,
    help="Listen here; may be repeated. Default: mixed://127.0.0.1:1080.",
)
@click.option(
    "-u", "--user", metavar="NAME:PASSWORD", multiple=True, help="Let in this user, and no others. May be repeated."
)
@click.option("--run-as", metavar="USER", help="As root, become this user, or USER:GROUP, once the sockets are bound.")
@click.option("--workers", metavar="N", type=int, help="Processes; 0 is one for each CPU. Default: 1.")
@click.option("--open", "open_proxy", is_flag=True, help="Listen beyond loopback although anyone could use it.")
@click.option("--access-log", metavar="WHERE", help="stdout, stderr, syslog, journald, none or a path: see log.access.")
@click.option(
    "--via", metavar="URL", multiple=True, help="Go out through this proxy. May be repeated: a chain, in order."
)
@click.option("--watch", is_flag=True, help="Reload when the file changes, or one that it includes or names.")
@interception_options
@option_fault
def serve(
    config: Path | None,
    listen: tuple[str, ...],
    user: tuple[str, ...],
    run_as: str | None,
    workers: int | None,
    open_proxy: bool,
    access_log: str | None,
    via: tuple[str, ...],
    watch: bool,
    intercept: tuple[str, ...],
    script: tuple[str, ...],
    har: str | None,
    prints: bool,
    trust: str | None,
    faults: tuple[str, ...],
) -> None:
    """Run the proxy.

    Without options it listens on mixed://127.0.0.1:1080, for programs on this machine only.

    Options replace the values of the file; users are added to those of the file, and requests that no rule of the file
    decides go through --via.

    --intercept looks into the traffic of hosts, with the authority of `tabi ca init`, behind all [[intercept]] of the
    file. Without it --script, --har, --print and --trust are for those of the file; where there is none, for HTTP
    without TLS.

    --fault has a bad network for all sessions, in addition to each [[distort]] of the file. `tabi fault` sets and
    removes more while it runs.

    Ctrl-C or SIGTERM ends it: running connections may finish within the drain time (30 s). A second signal ends it at
    once. SIGHUP reloads the file for new connections, and so does --watch when it has changed; a warning names what
    needs a restart. SIGUSR2, or `tabi upgrade`, starts the program anew on the same sockets.

    Examples:

    \b
    tabi serve -l mixed://127.0.0.1:8080
    tabi serve -l socks5://0.0.0.0:1080 -u alice:secret
    tabi serve -c tabi.toml --workers 0
    tabi serve --intercept '*.example.com' --print
    tabi serve --fault 3g
    """
    looks = Interception(intercept, script, har, prints, trust)

    def read() -> Compiled:
        file = Config()
        if config is not None:
            file = load_config(config, values=False, check=check_file)
        if run_as is not None:
            file = msgspec.structs.replace(file, user=run_as)
        return merge(file, list(listen), list(user), workers, access_log, list(via), config, open_proxy, looks, faults)

    if watch and config is None:
        raise ConfigError("there is nothing to watch: expected -c FILE", "--watch")
    check_calls(try_all())
    logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it logs every channel
    before = take_predecessor(os.environ)
    with (
        contextlib.nullcontext() if before is None else before.told_of_failure(),
        contextlib.closing(LogWriter()) as writer,
    ):
        logging.basicConfig(level="INFO", handlers=[writer])
        watched = Watch(config) if watch and config is not None else None  # before it is read
        compiled = read()
        logging.getLogger().setLevel(compiled.config.log.level.upper())
        identity, folder = user_of(compiled.config), folders(os.environ)[0]
        if identity is not None:
            writer.give_up_root(identity)
            give_folder(folder, identity)
        answer = Control(folder, tabi.__version__, None if before is None else before.pid).run
        control = Child("tabi-control", answer, lambda: (writer.sink.fileno(),), says_ready=True)
        reread = None if config is None else read
        with contextlib.closing(control), contextlib.ExitStack() as closing:
            children, records = [writer.child, control], None
            admin = open_admin(compiled.config, closing, writer.sink.fileno(), before)
            if admin is not None:
                children.append(admin.child)
            if compiled.intercepts is not None:
                from tabi.server.record_writer import RecordWriter

                records = RecordWriter(lambda: (writer.sink.fileno(),))
                closing.callback(records.close)
                children.append(records.child)
            place = None if admin is None else (admin.name, admin.sock)
            sink = None if records is None else records.sink
            supervisor = Supervisor(compiled, reread, children, sink, watched, before, place)
            with_users = compiled.config.has_users
            code = supervisor.run(
                lambda: print_ready(supervisor.urls, with_users, writer.say, compiled, faults, admin and admin.url)
            )
    sys.exit(code)


class AdminChild(NamedTuple):
    """The process of the admin API, and where that is."""

    child: Child
    name: str
    """What its place is called for a process that takes over from this one."""
    sock: socket.socket
    url: str


def open_admin(
    config: Config, closing: contextlib.ExitStack, log_sink: int, before: Predecessor | None = None
) -> AdminChild | None:
    """Open the place of ``[admin]``, if there is one, or take it over. Raises ConfigError."""
    address = config.admin.address
    if address is None:
        return None
    need_packages()
    access, tls = Access(*tokens_of(config.admin), config.admin.hosts), tls_context(config.admin)
    name = f"admin {address}"
    found = None if before is None else before.inherited.take(name)
    try:
        (sock, *others) = bind_place(address) if found is None else found[0]
        closing.callback(sock.close)
        sock.listen()  # clients wait while the process starts, or starts again
    except OSError as exc:
        raise ConfigError(f"{address}: {(exc.strerror or str(exc)).lower()}", "admin.listen") from exc
    for other in others:
        other.close()

    def run(channel: Channel) -> None:
        from tabi.admin.process import AdminProcess  # here, so that no worker has what it imports

        AdminProcess(config, sock, tabi.__version__, access, tls).run(channel)

    child = Child("tabi-admin", run, lambda: (log_sink, sock.fileno()), says_ready=True, hears_reloads=True)
    closing.callback(child.close)
    place = from_sockaddr(sock.getsockname())
    return AdminChild(child, name, sock, f"http{'' if config.admin.tls is None else 's'}://{place}/")


def merge(
    config: Config,
    listen: list[str] | None,
    users: list[str] | None,
    workers: int | None,
    access_log: str | None,
    via: list[str] | None = None,
    path: Path | None = None,
    open_proxy: bool = False,
    looks: Interception | None = None,
    faults: Sequence[str] = (),
) -> Compiled:
    """The compiled configuration: the file at ``path`` with the options of the command line.

    Raises:
        ConfigError: it names the option or its key, or the file and the key.
    """
    said: list[str] = []
    if listen:
        said.append("listen")
        config = msgspec.structs.replace(config, listen=[Listen(url) for url in listen])
    if users:
        given: dict[str, UserConfig] = {}
        for text in users:
            name, colon, password = text.partition(":")
            if not colon or not name or not password:
                raise ConfigError("expected NAME:PASSWORD", "-u")
            if name in given:
                raise ConfigError(f"the user {name} is given twice", "-u")
            given[name] = UserConfig(password, plain=True)
            said.append(f"users.{name}")
        config = msgspec.structs.replace(config, users=config.users | given)
    if workers is not None:
        said.append("workers")
        config = msgspec.structs.replace(config, workers=workers)
    if access_log is not None:
        said.append("log.access")
        config = msgspec.structs.replace(config, log=msgspec.structs.replace(config.log, access=access_log))
    if via:
        if "via" in config.egress:
            raise ConfigError("the file has an [egress.via] already, expected another name there", "--via")
        egress = config.egress | {"via": EgressConfig(chain=via)}
        config = msgspec.structs.replace(
            config, egress=egress, rule=[*config.rule, RuleConfig("allow", "--via", via="via")]
        )
    if looks:
        config = add_interception(config, looks)
    config = add_faults(config, faults)
    try:
        check_code(config)
        return compile_config(config, open_proxy)
    except ConfigError as exc:
        if via and is_of(exc.path, "egress.via"):
            raise ConfigError(exc.message, "--via") from None
        if path is not None and not any(is_of(exc.path, key) for key in said):
            raise in_file(exc, path) from None
        raise


def add_faults(config: Config, names: Sequence[str]) -> Config:
    """A configuration with faults for all sessions, behind those of the file. Raises ConfigError."""
    for name in names:
        if name not in config.profile and name not in PROFILES:
            text = f"{name!r}, expected a profile: {', '.join(sorted({*PROFILES, *config.profile}))}"
            raise ConfigError(text, "--fault")
    entries = [DistortConfig(name=f"--fault {name}", fault=name) for name in names]
    return msgspec.structs.replace(config, distort=[*config.distort, *entries]) if entries else config


def is_of(path: str | None, key: str) -> bool:
    """Whether the place of an error is this key, or below it."""
    return path is not None and (path == key or path.startswith((f"{key}.", f"{key}[")))


CURL = {
    "mixed": "socks5h",
    "socks5": "socks5h",
    "socks4": "socks4a",
    "socks4a": "socks4a",
    "http": "http",
    "https": "https",
    "mixed+tls": "https",
}
"""The scheme with which curl speaks to a listener; there is none for SOCKS inside TLS."""


def curl_line(url: str, users: bool, trust: str = "") -> str | None:
    """A command that goes through a listener, or None if curl cannot use it: SOCKS inside TLS, HTTP at a path.
    ``trust`` is what it needs to trust destinations."""
    scheme, _, place = url.partition("://")
    path, _, query = place.partition("?")
    at_path = scheme == "unix"
    proxy = CURL.get(query.removeprefix("protocol=") if at_path else scheme)
    if proxy is None or (at_path and not proxy.startswith("socks")) or (users and proxy == "socks4a"):
        return None
    place = f"localhost{path}" if at_path else re.sub(r"^0\.0\.0\.0:", "127.0.0.1:", place).replace("[::]", "[::1]")
    authority = "--proxy-cacert CA.pem " if proxy == "https" else ""
    return f"curl {authority}{trust}-x {proxy}://{'USER:PASSWORD@' if users else ''}{place} https://example.com/"


def print_ready(
    urls: list[str],
    users: bool,
    say: Callable[[str], object],
    compiled: Compiled | None = None,
    faults: Sequence[str] = (),
    admin: str | None = None,
) -> None:
    """Print where it listens, what is looked into, and how to try it. On stderr, since stdout is for the access log."""
    lines = [f"listening on {url}\n" for url in urls]
    trust, looks = ("", None) if compiled is None else (authority_option(compiled), summary(compiled))
    if looks is not None:
        lines.append(f"{looks}\n")
    if admin:
        lines.append(f"for operators: {admin}\n")
    if faults:
        lines.append(f"with the fault{'s' * (len(faults) > 1)} {', '.join(faults)}\n")
    lines += [f"try: {line}\n" for line in filter(None, (curl_line(url, users, trust) for url in urls))][:1]
    say("".join(lines))
