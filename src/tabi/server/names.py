"""``[resolver]`` composed: the name servers, behind one cache."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tabi.config import Config, Udp
from tabi.config.compile import make_hosts
from tabi.config.schema import public_address
from tabi.errors import ConfigError
from tabi.net.cache import NameCache
from tabi.net.dns_udp import UdpServer
from tabi.net.failover import Failover
from tabi.net.kinds import kinds_of
from tabi.net.resolve import Resolver, Source
from tabi.net.system import SystemResolver
from tabi.policy.networks import IP
from tabi.url import ServerURL
from tabi.wire.address import Host

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
            return SystemResolver(loop, settings.timeout, settings.tries, kinds)
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


class ResolvedUdp(Udp, frozen=True, forbid_unknown_fields=True):
    """``udp`` of a listener that advertises a name, which has these addresses."""

    addresses: Sequence[IP] = ()

    def public(self, local: Host) -> Host:
        """See `Udp`."""
        version = getattr(local, "version", 0)
        return next((address for address in self.addresses if address.version == version), local)


ADVERTISED_SECONDS = 5.0
"""How long the name that a listener advertises may take to be resolved."""


def resolve_advertised(config: Config) -> dict[str, Sequence[IP]]:
    """The addresses of the names that listeners advertise, asked from the system; waits.

    Raises:
        ConfigError: a name has no address that clients can send to, or was not resolved in time. It names the key.
    """
    found: dict[str, Sequence[IP]] = {}
    for index, listen in enumerate(config.listen):
        name, path = listen.udp.name, f"listen[{index}].udp.advertise"
        if name is not None and name not in found:
            found[name] = look_up(name, path)
    return found


def look_up(name: str, path: str) -> list[IP]:
    """The addresses of one name; see `resolve_advertised`."""
    answer: list[IP] = []
    failure: list[str] = []

    def ask() -> None:
        try:
            for *_, sockaddr in socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM):
                address = public_address(str(sockaddr[0]))
                if address not in answer:
                    answer.append(address)
        except (OSError, ValueError) as exc:
            failure.append(getattr(exc, "strerror", None) or str(exc))

    thread = threading.Thread(target=ask, name="tabi-advertise", daemon=True)  # it cannot be interrupted
    thread.start()
    thread.join(ADVERTISED_SECONDS)
    if thread.is_alive():
        raise ConfigError(f"{name}: not resolved within {ADVERTISED_SECONDS:g} s", path)
    if failure or not answer:
        raise ConfigError(f"{name}: {failure[0] if failure else 'no address'}", path)
    return answer
