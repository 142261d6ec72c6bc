"""``[resolver]`` composed: the name servers, behind one cache."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from tabi.config import Config
from tabi.config.compile import make_hosts
from tabi.errors import ConfigError
from tabi.net.cache import NameCache
from tabi.net.dns_udp import UdpServer
from tabi.net.failover import Failover
from tabi.net.kinds import kinds_of
from tabi.net.resolve import Resolver, Source
from tabi.net.system import SystemResolver
from tabi.url import ServerURL

if TYPE_CHECKING:
    from tabi.net.dns_client import Carrier

MakeResolver = Callable[[asyncio.AbstractEventLoop], NameCache]


def prepare_resolver(config: Config) -> MakeResolver:
    """Check everything that a resolver needs, and return a function that makes it on a loop.

    Raises:
        ConfigError: dnspython is missing, or the file of authorities cannot be used.
    """
    settings, hosts, urls = config.resolver, make_hosts(config), config.resolver.parsed
    kinds = kinds_of(settings.prefer)
    schemes = {url.scheme for url in urls if url is not None}
    if schemes - {"udp"}:
        need_dnspython(settings.servers[next(i for i, url in enumerate(urls) if url and url.scheme != "udp")])
    context = make_context(settings.ca) if schemes & {"tls", "https"} else None

    def make_resolver(loop: asyncio.AbstractEventLoop) -> NameCache:
        return NameCache(
            make_source(loop),
            hosts,
            settings.prefer,
            settings.cache,
            settings.min_ttl,
            settings.max_ttl,
            settings.negative_ttl,
            names_alone=None not in urls,
        )

    def make_source(loop: asyncio.AbstractEventLoop) -> Source:
        if urls == (None,):
            return SystemResolver(loop, kinds=kinds)
        named = any(url is not None and isinstance(url.address.host, str) for url in urls)
        bootstrap = NameCache(SystemResolver(loop)) if named else None
        return Failover([make_server(loop, url, bootstrap) for url in urls], settings.tries, bootstrap)

    def make_server(loop: asyncio.AbstractEventLoop, url: ServerURL | None, bootstrap: Resolver | None) -> Source:
        seconds = settings.timeout
        if url is None:
            return SystemResolver(loop, seconds, 1, kinds)
        if url.scheme == "udp":
            return UdpServer(loop, url.address, seconds, kinds)
        from tabi.net.dns_client import PADDING, DnsServer, HttpsCarrier, StreamCarrier

        carrier: Carrier
        if url.scheme == "https":
            assert context is not None
            carrier = HttpsCarrier(url, bootstrap, context)
        else:
            carrier = StreamCarrier(url, bootstrap, context if url.scheme == "tls" else None)
        return DnsServer(str(url), carrier, seconds, 0 if url.scheme == "tcp" else PADDING, kinds)

    return make_resolver


def need_dnspython(server: str) -> None:
    """Raise ConfigError if the library for a server's protocol is not installed."""
    try:
        import tabi.net.dns_client  # noqa: F401
    except ImportError as exc:
        raise ConfigError(f"{server} needs {exc.name}: pip install 'tabi[dns]'", "resolver.servers") from exc


def make_context(ca: str | None) -> ssl.SSLContext:
    """The TLS context that trusts the servers. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(f"{ca}: {exc.strerror or exc}", "resolver.ca") from exc
