"""Networks: reading them, and finding those that an address lies in, in a step for each length of prefixes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from tabi.session import UNIX
from tabi.wire.address import Address, Host

Network = IPv4Network | IPv6Network
IP = IPv4Address | IPv6Address


def parse_network(text: str) -> Network:
    """Read ``10.0.0.0/8``, or an address, which is a network of one. Raises ValueError."""
    plain = text.strip().replace("[", "").replace("]", "")
    if "%" not in plain:
        try:
            return ip_network(plain)
        except ValueError:
            pass
        try:
            wider = ip_network(plain, strict=False)
        except ValueError:
            pass
        else:
            raise ValueError(f"{text!r} has host bits set, expected {wider}")
    raise ValueError(f"{text!r} is not a network, expected such as 10.0.0.0/8 or 2001:db8::1")


def contains(networks: Iterable[Network | None], host: Host) -> bool:
    """Whether a client's address is in one of these networks; None stands for clients of a unix socket."""
    if isinstance(host, str):
        return None in networks
    return any(network is not None and host in network for network in networks)


def unmapped(address: IP) -> IP:
    """Turn IPv4 inside IPv6, as a dual-stack socket has it, into plain IPv4."""
    return address if isinstance(address, IPv4Address) else address.ipv4_mapped or address


def network_of(client: Address) -> Hashable:
    """What clients are told apart by: the address of IPv4, the /64 of IPv6, the user of a unix socket."""
    host = client.host
    if isinstance(host, str):
        return client
    host = unmapped(host)
    return host if isinstance(host, IPv4Address) else int(host) >> 64


class NetworkTable:
    """Networks, and the numbers of the rules or parts that name them.

    Args:
        pairs: networks with numbers; a network may come with several.
    """

    __slots__ = ("tables",)

    def __init__(self, pairs: Iterable[tuple[Network, int]]) -> None:
        tables: dict[tuple[int, int], dict[int, list[int]]] = {}
        for network, number in pairs:
            shift = network.max_prefixlen - network.prefixlen
            table = tables.setdefault((network.version, shift), {})
            table.setdefault(int(network.network_address) >> shift, []).append(number)
        self.tables = {
            version: [(shift, table) for (other, shift), table in sorted(tables.items()) if other == version]
            for version in (4, 6)
        }

    def __bool__(self) -> bool:
        return bool(self.tables[4] or self.tables[6])

    def find(self, address: IP) -> list[int]:
        """The numbers of all networks that an address lies in, in no order."""
        found: list[int] = []
        value = int(address)
        for shift, table in self.tables[address.version]:
            numbers = table.get(value >> shift)
            if numbers is not None:
                found += numbers
        return found


class NetworkSet:
    """Networks, and perhaps unix sockets, to ask whether an address is in one of them.

    Args:
        networks: equal sets have the same ones, in the same order.
        unix: whether clients of unix sockets belong to it.
    """

    __slots__ = ("found", "networks", "unix")

    def __init__(self, networks: Iterable[Network], unix: bool = False) -> None:
        self.networks = tuple(networks)
        self.unix = unix
        self.found: NetworkTable | None = None

    @property
    def table(self) -> NetworkTable:
        """The places of the networks, in a table that is made when it is first asked for: most sets never are."""
        if self.found is None:
            self.found = NetworkTable((network, place) for place, network in enumerate(self.networks))
        return self.found

    def __contains__(self, address: IP) -> bool:
        return bool(self.networks) and bool(self.table.find(address))

    def __bool__(self) -> bool:
        return bool(self.networks) or self.unix

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSet) and (self.networks, self.unix) == (other.networks, other.unix)

    def __hash__(self) -> int:
        return hash((self.networks, self.unix))

    def has_client(self, client: Host) -> bool:
        """Whether a client belongs to it, by its address or because it uses a unix socket."""
        if isinstance(client, str):
            return self.unix and client == UNIX
        return unmapped(client) in self
