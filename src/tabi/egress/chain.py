"""From URLs of proxies to egresses: one class for each protocol, and a chain, in which each proxy reaches the next."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from tabi.egress.base import Egress
from tabi.egress.http_connect import HttpConnect
from tabi.egress.socks4 import Socks4
from tabi.egress.socks5 import Socks5
from tabi.egress.ssh_keys import SshKeys
from tabi.egress.upstream import Upstream, UpstreamTls
from tabi.errors import ConfigError
from tabi.net.timeouts import FixedTimeouts
from tabi.net.tls import TlsShared, load_certificate, make_client_context
from tabi.url import ProxyURL

if TYPE_CHECKING:
    from tabi.egress.ssh import Ssh

HTTP_PROTOCOLS = ("http/1.1",)
"""The ALPN protocol for an HTTP proxy inside TLS: many speak HTTP/2 too."""

USER_KEYS = SshKeys()

trusting_system = lru_cache(8)(make_client_context)  # to read the system's authorities takes tens of milliseconds


def make_context(
    url: ProxyURL,
    ca: str | None = None,
    certificate: tuple[str, str] | None = None,
    ready: ssl.SSLContext | None = None,
) -> ssl.SSLContext | None:
    """The context for a proxy inside TLS, or None.

    Args:
        url: the proxy.
        ca: a file with the authorities to trust, in PEM. Default: the system's.
        certificate: files with our certificate, and those that lead to its authority, and with its key, in PEM.
        ready: a context that is used as it is, in place of all this.

    Raises:
        ValueError: a file cannot be used, or the context is not for clients, or it is given beside files.
    """
    if ready is not None:
        if ca is not None or certificate is not None:
            raise ValueError("a context and files beside it, expected one of them")
        if ready.protocol == ssl.PROTOCOL_TLS_SERVER:
            raise ValueError("a context for servers, expected one for clients")
    if not url.tls or ready is not None:
        return ready if url.tls else None
    protocols = HTTP_PROTOCOLS if url.protocol == "http" else ()
    if ca is None and certificate is None:
        return trusting_system(None, protocols)
    context = make_client_context(ca, protocols)
    if certificate is not None:
        try:
            load_certificate(context, *certificate)
        except ConfigError as exc:
            raise ValueError(exc.message) from None
    return context


def make_upstream(
    url: ProxyURL,
    below: Egress,
    deadlines: FixedTimeouts,
    tls: UpstreamTls | None = None,
    optimistic: bool = False,
    keys: SshKeys = USER_KEYS,
) -> Upstream:
    """The egress through a proxy.

    Args:
        url: the proxy.
        below: reaches it.
        deadlines: for its part, from the open connection to its answer.
        tls: for one inside TLS.
        optimistic: as `Socks5`.
        keys: for an SSH server.
    """
    if url.protocol == "ssh":
        from tabi.egress.ssh import Ssh

        assert url.username is not None
        return Ssh(below, url.address, url.username, url.password, keys, deadlines)
    login = url.credentials
    if url.protocol == "socks4":
        return Socks4(below, url.address, b"" if login is None else login.username, deadlines, tls)
    if url.protocol == "http":
        return HttpConnect(below, url.address, login, deadlines, tls)
    return Socks5(below, url.address, login, deadlines, tls, optimistic)


def make_chain(
    urls: Sequence[ProxyURL],
    contexts: Sequence[ssl.SSLContext | None],
    below: Egress,
    deadlines: FixedTimeouts,
    shared: TlsShared,
    optimistic: bool = False,
) -> Egress:
    """The egress through several proxies, the first one reached through ``below``; see `make_upstream`.

    ``contexts`` are those of `make_context`, one for each URL.
    """
    for url, context in zip(urls, contexts, strict=True):
        tls = None if context is None else UpstreamTls(context, shared)
        below = make_upstream(url, below, deadlines, tls, optimistic)
    return below


def find_links(egress: Egress) -> Iterator[Ssh]:
    """The egresses of a chain that keep a connection, the last one first."""
    while isinstance(egress, Upstream):
        if egress.protocol == "ssh":
            yield cast("Ssh", egress)
        egress = egress.below


def retire_links(chain: Egress) -> None:
    """Let kept connections end with the streams that use them now."""
    for link in find_links(chain):
        link.retire()


async def close_links(chain: Egress) -> None:
    """End kept connections at once."""
    async with contextlib.AsyncExitStack() as closing:
        for link in find_links(chain):
            closing.push_async_callback(link.close)
