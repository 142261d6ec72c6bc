"""What a listener speaks, composed once when it opens: each layer wraps the next, a session pays for those it meets.

PROXY header -> mixed, where there is TLS and the same without -> TLS -> mixed -> socks5, socks4
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from tabi.config import Config, Listen
from tabi.config.compile import make_guard, make_limits, make_rule_set
from tabi.config.users import UserTable
from tabi.errors import ConfigError
from tabi.ingress.auth_methods import AuthMethod, UsernamePassword
from tabi.ingress.authenticate import Ask
from tabi.ingress.conversation import Commands, Ingress
from tabi.ingress.http import Forwarding, HttpIngress
from tabi.ingress.mixed import MixedIngress
from tabi.ingress.proxy_header import ProxyHeaderIngress
from tabi.ingress.socks4 import Socks4Ingress
from tabi.ingress.socks5 import Socks5Ingress
from tabi.ingress.tls import Certificates, TlsIngress
from tabi.net.tls import TlsShared
from tabi.policy.guard import LocalAddresses
from tabi.policy.hook import DecideHook
from tabi.policy.ledger import Ledger
from tabi.policy.policy import Policy
from tabi.wire.sniff import Protocol


def make_ingress(
    listen: Listen,
    commands: Commands,
    forwarding: Forwarding,
    authenticate: Ask | None,
    required: bool,
    certificates: Certificates | None,
    shared: TlsShared,
) -> Ingress:
    """Compose the ways in of one listener.

    Args:
        listen: what it takes.
        commands: carry out what clients ask for.
        forwarding: what HTTP requests need beside that.
        authenticate: asked for every user name and password; None where there are none.
        required: whether clients must be users.
        certificates: those of the listener; None where there is no TLS.
        shared: see `TlsShared`.
    """
    url = listen.parsed
    methods: tuple[AuthMethod, ...] = ()
    if authenticate is not None:
        methods = (UsernamePassword(authenticate, commands.handshake),)

    def make_protocols(inside_tls: bool) -> dict[Protocol, Ingress]:
        """What speaks each protocol."""
        suffix = "+tls" if inside_tls else ""
        http = HttpIngress(commands, forwarding, authenticate, required, "https" if inside_tls else "http")
        return {
            Protocol.SOCKS5: Socks5Ingress(commands, methods, required, "socks5" + suffix),
            Protocol.SOCKS4: Socks4Ingress(commands, required, "socks4" + suffix),
            Protocol.HTTP: http,
            Protocol.HTTP2: http,  # which says that it does not speak that version
        }

    outside: dict[Protocol, Ingress] = {}
    if certificates is not None:
        inside = choose(url.protocol, make_protocols(inside_tls=True))
        outside[Protocol.TLS] = TlsIngress(inside, certificates, commands, shared)
    if not url.tls:
        outside |= make_protocols(inside_tls=False)
    ingress = outside[Protocol.TLS] if url.tls else choose(url.protocol, outside)
    return ProxyHeaderIngress(listen.proxies, ingress) if listen.proxy_protocol else ingress


def choose(protocol: str, protocols: dict[Protocol, Ingress]) -> Ingress:
    """What speaks one protocol, or any of them."""
    return MixedIngress(protocols) if protocol == "mixed" else protocols[Protocol(protocol)]


def make_policy(
    config: Config, ledger: Ledger, own: LocalAddresses, decide_hook: DecideHook | None, users: UserTable
) -> Policy:
    """Compose what decides. Raises ConfigError."""
    if decide_hook is None and config.decide is not None:
        decide_hook = load_callable(config.decide, "decide")
    limits = make_limits(config, ledger, users)
    return Policy(make_rule_set(config, users), make_guard(config, own), limits, decide_hook)


def load_callable(text: str, path: str) -> Any:
    """What ``python:module:function`` names. Raises ConfigError."""
    _, module, name = text.split(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as exc:  # of the module, which may do anything
        raise ConfigError(f"{text}: {type(exc).__name__}: {exc}", path) from exc
    check_decide_hook(found, path, f"{text}: ")
    return found


def check_callback(found: object, path: str) -> None:
    """Raise ConfigError where something cannot be told of sessions."""
    if not callable(found):
        raise ConfigError(f"{found!r}, expected a function of one argument, a tabi.Session", path)
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        raise ConfigError("expected a function of one argument, a tabi.Session", path) from None
    except ValueError:  # no signature is known, as of some functions of extension modules
        pass


def check_decide_hook(found: object, path: str, text: str = "") -> None:
    """Raise ConfigError where something cannot be asked, or told."""
    if not callable(found):
        raise ConfigError(f"{text}{found!r}, expected a function, with async or without", path)
