"""The guard: a client from outside may not reach what only this machine and its neighbours should reach.

A proxy dials from where it stands, so that without a guard it lends its clients the loopback interface, the private
network and the metadata service of the cloud it runs in. A client on this machine could go there anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from tabi.errors import PolicyDenied
from tabi.session import UNIX
from tabi.wire.address import Host

IP = IPv4Address | IPv6Address

INNER: tuple[IPv4Network | IPv6Network, ...] = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network: Linux takes 0.0.0.0 for loopback
        "10.0.0.0/8",  # RFC 1918
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",  # RFC 1918
        "192.0.0.0/24",  # protocols between neighbours, RFC 6890
        "192.168.0.0/16",  # RFC 1918
        "198.18.0.0/15",  # laboratories, RFC 2544
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, RFC 1112; some networks use it as a private one. With broadcast
        "::/128",  # unspecified: Linux takes it for loopback
        "::1/128",  # loopback
        "64:ff9b:1::/48",  # translators of the network's own, RFC 8215: where IPv4 is in there only they know
        "2001::/32",  # Teredo, RFC 4380: an IPv4 server and an IPv4 client
        "fc00::/7",  # unique local, RFC 4193
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, RFC 3879
        "ff00::/8",  # multicast
    )
)


NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: a translator on the way sends these to the IPv4 address in the last four octets."""

COMPATIBLE = IPv6Network("::/96")
"""RFC 4291 section 2.5.5.1: a tunnel, deprecated, to the IPv4 address in the last four octets. :: and ::1 are none."""


def inner_network(address: IP) -> IPv4Network | IPv6Network | None:
    """The inner network that an address lies in, or None. An IPv4 address inside an IPv6 one counts as what it is."""
    if isinstance(address, IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if inside is not None:
            address = inside
        elif address in NAT64 or (address in COMPATIBLE and int(address) > 1):
            address = IPv4Address(address.packed[12:])
    return next((network for network in INNER if address.version == network.version and address in network), None)


def is_inner_client(client: Host) -> bool:
    """Whether a client is on loopback or came through a unix socket, so that nothing is gained by keeping it away."""
    if isinstance(client, IPv4Address):
        return int(client) >> 24 == 127
    return client.is_loopback if isinstance(client, IPv6Address) else client == UNIX


def permit_any(address: IP) -> None:
    """The guard's answer to a client on this machine: everything may be dialled."""


def permit_outer(address: IP) -> None:
    """The guard's answer to everyone else. Asked with the very address that is dialled, after resolving.

    Raises:
        PolicyDenied: the address is an inner one.
    """
    network = inner_network(address)
    if network is not None:
        raise PolicyDenied(f"guard: {address} is in {network}, which a client from outside may not reach")


Permit = Callable[[IP], None]


def permit_for(client: Host) -> Permit:
    """What is asked, with each address before it is dialled, on behalf of a client."""
    return permit_any if is_inner_client(client) else permit_outer
