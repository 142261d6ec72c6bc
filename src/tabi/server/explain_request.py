"""What somebody asks `explain` about, out of texts. Errors name the options of ``tabi explain``."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from tabi.config import Config, Listen
from tabi.errors import ConfigError
from tabi.policy.rules import COMMANDS, PROTOCOLS
from tabi.server.explain import Request, check_user, explain
from tabi.server.explanation import Explanation
from tabi.server.names import prepare_resolver
from tabi.server.quota_store import default_path
from tabi.session import UNIX
from tabi.wire.address import Host, parse_address, parse_host, parse_ip


async def explain_request(config: Config, request: Request) -> Explanation:
    """What would become of a request. Raises ConfigError."""
    resolver = prepare_resolver(config)(asyncio.get_running_loop())
    path = config.quotas.path
    try:
        return await explain(config, request, resolver, default_path(os.environ) if path is None else Path(path))
    finally:
        await resolver.close()


def make_request(
    config: Config,
    command: str,
    destination: str,
    client: str,
    user: str | None,
    listener: str | None,
    protocol: str | None,
    at: str | None,
    sni: str | None = None,
) -> Request:
    """The checked options. Raises ConfigError, which names the option."""
    listen = choose_listener(config, listener)
    url = listen.parsed
    usual = {"mixed": "socks5", "http": "https" if url.tls else "http"}.get(url.protocol, url.protocol)
    if command == "forward" and url.protocol == "mixed":
        usual = "http"
    if url.tls:
        usual = "https" if usual.startswith("http") else f"{usual}+tls"
    for given, known, name in ((command, COMMANDS, "COMMAND"), (protocol or usual, PROTOCOLS, "--protocol")):
        if given not in known:
            raise ConfigError(f"{given!r}, expected one of: {', '.join(known)}", name)
    if command == "forward" and not (protocol or usual).startswith("http"):
        raise ConfigError(f"{protocol or usual}, but only HTTP has requests that are forwarded", "--protocol")
    if command.startswith("resolve") and not (protocol or usual).startswith("socks5"):
        raise ConfigError(f"{protocol or usual}, but only SOCKS5 has questions for names", "--protocol")
    try:
        address = parse_address(destination)
    except ValueError as exc:
        raise ConfigError(str(exc), "HOST:PORT") from None
    when, hello = parse_time(at), parse_sni(sni, command)
    request = Request(command, address, parse_client(client), user, listen, protocol or usual, when, hello)
    check_user(config, request)
    return request


def choose_listener(config: Config, url: str | None) -> Listen:
    """The listener that a client comes to. Raises ConfigError."""
    if url is None:
        return config.listen[0]
    for listen in config.listen:
        if listen.url == url:
            return listen
    raise ConfigError(f"{url!r}, expected one of: {', '.join(one.url for one in config.listen)}", "--listener")


def parse_client(text: str) -> Host:
    """A client's address. Raises ConfigError."""
    if text == UNIX:
        return UNIX
    try:
        return parse_ip(text)
    except ValueError:
        raise ConfigError(f"{text!r}, expected an IP address or {UNIX}", "--from") from None


def parse_time(text: str | None) -> float:
    """A time as seconds since 1970; UTC unless it says otherwise. Raises ConfigError."""
    if text is None:
        return time.time()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r}, expected a time such as 2027-01-31T08:00", "--at") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_sni(text: str | None, command: str) -> str | None:
    """The name in a client's hello. Raises ConfigError."""
    if text is None:
        return None
    if command not in ("connect", "associate"):
        raise ConfigError(f"{command} has no TLS hello of a client", "--sni")
    try:
        name = parse_host(text)
    except ValueError as exc:
        raise ConfigError(str(exc), "--sni") from None
    if not isinstance(name, str):
        raise ConfigError(f"{text!r}, expected a name: a hello has no addresses", "--sni")
    return name
