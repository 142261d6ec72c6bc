"""The options of `tabi serve` for interception: what they add to the ``[[intercept]]`` of the file."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from tabi.config import Config, InterceptConfig
from tabi.config.compile import paths_of
from tabi.errors import ConfigError
from tabi.policy.rules import SHOWN, Texts, make_rule
from tabi.server.compiled import Compiled
from tabi.server.intercept_files import authority_paths, check_authorities, check_har, check_script


class Interception(NamedTuple):
    """What the options say."""

    hosts: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    har: str | None = None
    prints: bool = False
    trust: str | None = None

    def __bool__(self) -> bool:
        return self != Interception()


def interception_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command: ``intercept``, ``script``, ``har``, ``prints``, ``trust``."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


OPTIONS = (
    click.option(
        "--intercept",
        metavar="HOST",
        multiple=True,
        help="Look into the traffic of this host, '*.example.com' or '*' for more. May be repeated.",
    ),
    click.option("--script", metavar="FILE", multiple=True, help="Python with hooks, for it. May be repeated."),
    click.option("--har", metavar="FILE", help="Record it in this file (HAR)."),
    click.option("--print", "prints", is_flag=True, help="Print a line for each of its exchanges."),
    click.option("--trust", metavar="FILE", help="Trust these authorities, too, for its destinations (PEM)."),
)


def add_interception(config: Config, options: Interception) -> Config:
    """A configuration with what the options say: with hosts one more ``[[intercept]]``, which is behind those of the
    file. Without, those of the file get it; where there is none, one for HTTP without TLS.

    Raises:
        ConfigError: it names the option.
    """
    if not options:
        return config
    said = checked(options)
    if options.hosts:
        entry = InterceptConfig(name="--intercept", hosts=list(options.hosts))
        return msgspec.structs.replace(config, intercept=[*config.intercept, with_options(entry, said)])
    if any(entry.action == "intercept" for entry in config.intercept):
        entries = [with_options(one, said) if one.action == "intercept" else one for one in config.intercept]
        return msgspec.structs.replace(config, intercept=entries)
    if options.trust is not None:
        raise ConfigError("there is nothing to look into: expected --intercept HOST", "--trust")
    name = "--har" if options.har is not None else "--script" if options.scripts else "--print"
    return msgspec.structs.replace(
        config, intercept=[*config.intercept, with_options(InterceptConfig(name=name, tls=False), said)]
    )


def checked(options: Interception) -> Interception:
    """The options with absolute paths. Raises ConfigError, which names the option."""
    for host in options.hosts:
        if host.startswith("-"):  # an option, or the end of them, behind one whose host was forgotten
            raise ConfigError(f"{host!r}, expected a host", "--intercept")
    if options.hosts:
        try:
            make_rule(0, "deny", Texts(hosts=options.hosts))
        except ConfigError as exc:
            raise ConfigError(exc.message, "--intercept") from None
    scripts = tuple(str(Path(name).absolute()) for name in options.scripts)
    for script in scripts:
        check_script(script, "--script")
    har = None if options.har is None else str(Path(options.har).absolute())
    if har is not None:
        check_har(har, "--har")
    trust = None if options.trust is None else str(Path(options.trust).absolute())
    if trust is not None:
        check_authorities(trust, "--trust")
    return options._replace(scripts=scripts, har=har, trust=trust)


def with_options(entry: InterceptConfig, options: Interception) -> InterceptConfig:
    """An entry with what the options say, apart from their hosts."""
    return msgspec.structs.replace(
        entry,
        scripts=list(dict.fromkeys((*entry.scripts, *options.scripts))),
        har=options.har or entry.har,
        print=options.prints or entry.print,
        trust=options.trust or entry.trust,
    )


def summary(compiled: Compiled) -> str | None:
    """What is looked into, in a line; None if nothing is."""
    if compiled.intercepts is None:
        return None
    hosts: list[str] = []
    for entry in compiled.config.intercept:
        if entry.action == "intercept":
            files = [f"those of {path}" for path in paths_of(entry.hosts_file) or ()]
            hosts += [*(entry.hosts or ()), *files] or ["*"]
    if not hosts:
        return None
    more = f", … ({len(hosts):,})" if len(hosts) > SHOWN else ""
    plain = "" if compiled.intercepts.need_authority else " (without TLS)"
    return f"looking into {', '.join(hosts[:SHOWN])}{more}{plain}"


def authority_option(compiled: Compiled) -> str:
    """What curl needs to trust our certificates, with a space behind it; empty if it sees none."""
    if compiled.intercepts is None or not compiled.intercepts.need_authority:
        return ""
    return f"--cacert {shlex.quote(authority_paths(compiled.config)[0])} "
