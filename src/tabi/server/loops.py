"""Egresses that lead back to a listener of the same server: each session would begin another one, without end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType

from tabi.config import Config, EgressConfig
from tabi.config.compile import make_hosts
from tabi.errors import ConfigError
from tabi.net.listen import AF_UNIX
from tabi.net.local_addresses import ask
from tabi.policy.networks import unmapped
from tabi.url import parse_url
from tabi.wire.address import Address, Host, from_sockaddr, read_number

IP = IPv4Address | IPv6Address

LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


def refuse_loops(config: Config, sockets: Sequence[Sequence[socket.socket]] = ()) -> None:
    """Raise ConfigError for an egress whose nearest proxy is one of the listeners: by its URL, or by its sockets."""
    known = make_hosts(config)
    for name, egress in config.egress.items():
        for key, text in nearest(egress):
            url = parse_url(text)
            for listen, place in places(config, sockets):
                if any(leads_to(host, url.address.port, place) for host in addresses_of(url.address.host, known)):
                    raise ConfigError(f"{url} leads to {listen}, a listener of this server", f"egress.{name}.{key}")


def nearest(egress: EgressConfig) -> Iterator[tuple[str, str]]:
    """The key and the URL of each proxy that is connected to first."""
    found = [("url", egress.url or "")]
    found += [(f"chain[{index}]", text) for index, text in enumerate((egress.chain or ())[:1])]
    for index, member in enumerate(egress.members or ()):
        found.append((f"members[{index}]", member if isinstance(member, str) else member.to))
    return ((key, text) for key, text in found if "://" in text)  # others are names of egresses


def places(config: Config, sockets: Sequence[Sequence[socket.socket]]) -> Iterator[tuple[str, Address]]:
    """Where the server listens, or will listen, and the URL of each listener."""
    for index, listen in enumerate(config.listen):
        place = listen.parsed.place
        if isinstance(place, Address):
            for host in addresses_of(place.host):
                yield listen.url, Address(host, place.port)
        for group in sockets[index : index + 1]:
            for sock in group:
                if sock.family != AF_UNIX:
                    bound = from_sockaddr(sock.getsockname())
                    yield from ((listen.url, Address(host, bound.port)) for host in addresses_of(bound.host))


def addresses_of(host: Host, hosts: Mapping[str, Sequence[IP]] = MappingProxyType({})) -> tuple[IP, ...]:
    """The addresses of a host; of names only those that are known without asking (RFC 6761 section 6.3)."""
    if not isinstance(host, str):
        return (unmapped(host),)
    name = host.lower().removesuffix(".")
    with contextlib.suppress(ValueError):  # it will not be dialled then
        if (number := read_number(name)) is not None:
            return (number,)
    if name in hosts:
        return tuple(map(unmapped, hosts[name]))
    return LOOPBACK if name == "localhost" or name.endswith(".localhost") else ()


def leads_to(host: IP, port: int, place: Address) -> bool:
    """Whether a connection to an address and a port reaches a listener."""
    listening = place.host
    if port != place.port or not port or isinstance(listening, str):
        return False
    if host.is_unspecified:  # to connect there is to connect to loopback
        host = LOOPBACK[host.version == 6]
    if not listening.is_unspecified:
        return host == listening
    # The wildcard of IPv6 may take IPv4 too.
    return (listening.version == 6 or host.version == 4) and (host.is_loopback or host in local_addresses())


def local_addresses() -> list[IP]:
    """The addresses of this machine, as far as they can be found out."""
    found: list[IP] = []
    with contextlib.suppress(AttributeError, OSError):
        found += ask()
    return found
