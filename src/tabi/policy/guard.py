"""The guard: a client from outside may not reach what only this machine and its neighbours should reach.

A proxy dials from where it stands, so that without a guard it lends its clients the loopback interface, the private
network and the metadata service of the cloud it runs in. It sees the very address that is dialled, after resolving, and
looks for an inner IPv4 address in every form that IPv6 has for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_network

from tabi.errors import ConfigError, PolicyDenied
from tabi.policy.networks import IP, Network, NetworkSet, NetworkTable, parse_network, unmapped
from tabi.session import UNIX
from tabi.wire.address import Address, Host, embedded_ipv4

INNER: tuple[Network, ...] = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network: Linux takes 0.0.0.0 for loopback
        "10.0.0.0/8",  # RFC 1918
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598; with a metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's metadata and health service, an address that looks like any other
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",  # RFC 1918
        "192.0.0.0/24",  # protocols between neighbours, RFC 6890
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.88.99.0/24",  # relays of 6to4, RFC 7526
        "192.168.0.0/16",  # RFC 1918
        "198.18.0.0/15",  # laboratories, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, RFC 1112; some networks use it as a private one. With broadcast
        "::/128",  # unspecified: Linux takes it for loopback
        "::1/128",  # loopback
        "64:ff9b:1::/48",  # the network's own translators, RFC 8215: only they know where the IPv4 address is in it
        "100::/64",  # discard, RFC 6666
        "2001::/32",  # Teredo, RFC 4380: an IPv4 server and an IPv4 client
        "2001:2::/48",  # laboratories, RFC 5180
        "2001:10::/28",  # ORCHID, RFC 4843
        "2001:db8::/32",  # documentation, RFC 3849
        "3fff::/20",  # documentation, RFC 9637
        "5f00::/16",  # segment routing within a network, RFC 9602
        "fc00::/7",  # unique local, RFC 4193
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, RFC 3879
        "ff00::/8",  # multicast
    )
)
"""What ``private`` stands for, in addition to the addresses of the proxy itself."""

PRIVATE = "private"
EXEMPT = ("127.0.0.0/8", "::1", UNIX)
"""Clients on this machine: they could go there anyway."""

HERE = NetworkSet([parse_network(text) for text in EXEMPT if text != UNIX], unix=True)

MEMORY = 4096
"""Addresses whose verdict is remembered."""

AddressFilter = Callable[[IP], None]
"""Raises PolicyDenied for an address that must not be dialled."""


def allow_any_address(address: IP) -> None:
    """The guard's answer for an exempt client: everything may be dialled."""


def is_inner_client(client: Host) -> bool:
    """Whether a client is on loopback or came through a unix socket, so that the guard would protect nothing."""
    return HERE.has_client(client)


class LocalAddresses:
    """What is known of this machine and of our own program."""

    def __init__(self) -> None:
        self.addresses: frozenset[IP] = frozenset()
        self.ports: frozenset[int] = frozenset()
        """TCP ports of the listeners."""
        self.private: frozenset[int] = frozenset()
        """TCP ports that are for operators: nothing is ever dialled there."""

    def is_here(self, host: IP) -> bool:
        """Whether an address leads to this machine."""
        forms = [form for form in (unmapped(host), embedded_ipv4(host)) if form is not None]
        return any(form in self.addresses or form.is_loopback or form.is_unspecified for form in forms)


class Guard:
    """Keeps clients out of inner networks.

    Args:
        deny: networks and addresses, and the word ``private``; if empty, there is no guard.
        allow: networks and addresses that are allowed nevertheless.
        exempt: clients that the guard ignores: networks, addresses, ``unix``.
        own: the addresses and ports of this process.

    Raises:
        ConfigError: something of this cannot be read.
    """

    def __init__(
        self,
        deny: Sequence[str] = (PRIVATE,),
        allow: Sequence[str] = (),
        exempt: Sequence[str] = EXEMPT,
        own: LocalAddresses | None = None,
    ) -> None:
        self.own = LocalAddresses() if own is None else own
        self.private = PRIVATE in deny
        self.denied = (*(INNER if self.private else ()), *parse_all([text for text in deny if text != PRIVATE], "deny"))
        self.table = NetworkTable((network, number) for number, network in enumerate(self.denied))
        self.allowed = NetworkSet(parse_all(allow, "allow"))
        self.exempt = NetworkSet(parse_all([text for text in exempt if text != UNIX], "exempt"), UNIX in exempt)
        self.verdicts: dict[IP, str | None] = {}
        self.judged_for = self.own.addresses

    def is_for(self, client: Host) -> bool:
        """Whether a client is kept out of anything."""
        return bool(self.denied) and not self.exempt.has_client(client)

    def catches(self, host: IP, port: int) -> str | None:
        """Why an address is not reached, in words, or None. A port is looked at only to find this proxy's own."""
        own = self.own
        if own.addresses is not self.judged_for or len(self.verdicts) >= MEMORY:
            self.verdicts.clear()
            self.judged_for = own.addresses
        try:
            verdict = self.verdicts[host]
        except KeyError:
            verdict = self.verdicts[host] = self.verdict(host)
        if port in own.ports and verdict is None and own.is_here(host):
            return f"{host} port {port} is a listener of this proxy"
        return verdict

    def verdict(self, host: IP) -> str | None:
        """Why an address is not reached, whatever the port, or None."""
        address = unmapped(host)
        if address in self.allowed:
            return None
        inside = embedded_ipv4(address)
        if inside is not None and inside in self.allowed:
            inside = None  # not a reason then; the address that contains it may still be denied
        for one in (address, inside):
            found = [] if one is None else self.table.find(one)
            if found:
                network = self.denied[min(found)]
                return f"{host} is in {network}" if one is address else f"{host} holds {one}, which is in {network}"
        if self.private and (address in self.own.addresses or inside in self.own.addresses):
            return f"{host} is an address of this proxy"
        return None

    def check(self, port: int, address: IP) -> None:
        """Raise PolicyDenied for an address that must not be dialled."""
        reason = self.catches(address, port)
        if reason is not None:
            raise PolicyDenied(f"guard: {reason}, which a client from outside may not reach")

    def address_filter_for(self, client: Host, port: int) -> AddressFilter:
        """The check of each address before it is dialled for a client."""
        return partial(self.check, port) if self.is_for(client) else allow_any_address

    def check_destination(self, destination: Address, addresses: Sequence[IP] | None) -> None:
        """Check all addresses of a destination at once, if they are known. Raises PolicyDenied."""
        for address in addresses or ():
            self.check(destination.port, address)


def parse_all(words: Sequence[str], key: str) -> list[Network]:
    """Read networks. Raises ConfigError, which names the invalid one."""
    found = []
    for index, word in enumerate(words):
        try:
            found.append(parse_network(word))
        except ValueError as exc:
            raise ConfigError(str(exc), f"{key}[{index}]") from None
    return found
