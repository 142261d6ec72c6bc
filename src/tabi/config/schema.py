"""The schema of tabi.toml: frozen structs, one for each part. What is not here is an error, never ignored.

Durations are float seconds; the file may also say text such as "200ms" or "5 min".
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Literal

import msgspec

from tabi.policy.users import Secret, parse_hash, plain_secret
from tabi.url import DEFAULT_PORT, ListenURL, parse_listen_url
from tabi.wire.address import Host, parse_ip

UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)?", re.ASCII)

Network = IPv4Network | IPv6Network


class Seconds(float):
    """A duration in seconds, more than 0."""

    @classmethod
    def parse(cls, value: object) -> Seconds:
        """Read a number, or a number with ms, s, min, h or d behind it. Raises ValueError."""
        if isinstance(value, str) and (found := DURATION.fullmatch(value.strip())):
            value = float(found[1]) * UNITS[found[2] or "s"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f'{value!r} is no duration, expected seconds such as 10 or text such as "200ms"')
        if not 0 < value < 1e9:
            raise ValueError(f"a duration is more than 0 and less than 1e9 seconds, this one is {value!r}")
        return cls(value)


PORT_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})", re.ASCII)
BROADCAST = "255.255.255.255"


class Udp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``udp`` of a listener: where the sockets of its associations are, and of its BINDs."""

    advertise: str | None = None
    """The IP address that clients are told in place of this machine's own: for a proxy behind NAT or in a container."""
    ports: str | None = None
    """``"40000-40999"``: ports to take, for a firewall. ``"shared"``: one UDP port, the listener's own, for all
    associations. Default: any free port, one for each association."""
    fragments: Literal["reassemble", "drop"] = "reassemble"
    """What becomes of datagrams in fragments (RFC 1928 section 7). Default: reassemble."""
    senders: Literal["contacted", "any"] = "contacted"
    """Whose datagrams reach the client: hosts that it has sent to, or anybody. Default: contacted."""

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """``advertise`` as an address. Raises ValueError."""
        if self.advertise is None:
            return None
        expected = f"{self.advertise!r}, expected an IP address that clients can send to"
        try:
            address = parse_ip(self.advertise)
        except ValueError:
            raise ValueError(expected) from None
        if address.is_unspecified or address.is_multicast or "%" in str(address) or str(address) == BROADCAST:
            raise ValueError(expected)
        return address

    def public(self, local: Host) -> Host:
        """What clients are told in place of ``local``, an address of this machine."""
        address = self.address
        return address if address is not None and address.version == getattr(local, "version", 0) else local

    @property
    def shared(self) -> bool:
        """Whether all associations share one port."""
        return self.ports == "shared"

    @property
    def port_range(self) -> range | None:
        """The ports to choose from, or None for any. Raises ValueError."""
        if self.ports is None or self.shared:
            return None
        found = PORT_RANGE.fullmatch(self.ports)
        if found is None:
            raise ValueError(f'{self.ports!r}, expected a range such as "40000-40999", or "shared"')
        first, last = int(found[1]), int(found[2])
        if not 0 < first <= last <= 65535:
            raise ValueError(f"{self.ports!r}, expected the lower port first, 1 to 65535")
        return range(first, last + 1)


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tls`` of a listener: files in PEM, looked at again when they change."""

    certificate: str
    """The server's certificate, and behind it those between it and the authority."""
    key: str
    """Its private key, without a passphrase."""
    client_ca: str | None = None
    """Certificates of the authorities whose clients are users by their own certificate. Default: none is asked for."""
    client_name: Literal["cn", "dns", "email", "uri"] = "cn"
    """What of a client's certificate is the user's name: the subject's CN, or the SAN of a kind. Default: cn."""


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[listen]]``: one place to listen at."""

    url: str = f"mixed://127.0.0.1:{DEFAULT_PORT}"
    """Protocol and place: ``mixed://host:port``, ``unix:///path?protocol=mixed``, ``fd://NAME``; port 0 takes a free
    one. Protocols: mixed, socks5, socks4, http; inside TLS mixed+tls, socks5+tls,
    socks4+tls, https."""
    users: Literal["required", "optional", "none"] | None = None
    """Whether clients must be users. Default: required as soon as there is a user, or a client_ca; else none."""
    udp: Udp = Udp()
    """Addresses and ports of UDP associations and of BIND."""
    tls: Tls | None = None
    """Certificate and key; ``mixed`` takes clients with TLS and without then. Default: no TLS."""
    proxy_protocol: list[str] = []
    """Networks whose connections begin with a PROXY header, such as ``"10.0.0.0/8"``; ``"unix"`` is whoever comes
    through a unix socket. From others it is refused. Default: none."""

    @property
    def parsed(self) -> ListenURL:
        """The URL in its parts, checked when the configuration was loaded."""
        return parse_listen_url(self.url)

    @property
    def proxies(self) -> tuple[Network | None, ...]:
        """``proxy_protocol`` as networks, None for ``"unix"``. Raises ValueError."""
        return tuple(None if text == "unix" else ip_network(text) for text in self.proxy_protocol)


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[users.NAME]``: who may use the proxy."""

    password: str
    """A hash as ``tabi passwd`` prints it; the password itself only with ``plain = true``."""
    plain: bool = False
    """Whether ``password`` is the password itself. Default: false."""

    def __repr__(self) -> str:
        return "User()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []

    @property
    def secret(self) -> Secret:
        """What is compared with. Raises ValueError where the hash is none."""
        return plain_secret(self.password) if self.plain else parse_hash(self.password)


class Egress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[egress.NAME]``: a way out. There is one, ``direct``, whether it is in the file or not."""

    send_proxy_protocol: Literal[0, 1, 2] = 0
    """The version of the PROXY header that every destination of a CONNECT or of a forwarded request
    is sent first; 0 is none. Default: 0."""


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[timeouts]``, in seconds."""

    handshake: Seconds = Seconds(10)
    """From accept to the whole request. Default: 10."""
    connect: Seconds = Seconds(10)
    """Resolving and connecting together. Default: 10."""
    idle: Seconds = Seconds(300)
    """Without an octet in either direction. Default: 300."""
    half_closed: Seconds = Seconds(60)
    """The same, once one side has ended. Default: 60."""
    bind: Seconds = Seconds(120)
    """From the first reply to BIND until the peer has connected. Default: 120."""
    udp_idle: Seconds = Seconds(120)
    """Without a datagram in either direction. Default: 120."""
    drain: Seconds = Seconds(30)
    """For running sessions after SIGTERM or Ctrl-C. Default: 30."""


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[log]``."""

    access: str = "stdout"
    """Where the access log goes: stdout, stderr, syslog, none, or a path. Default: stdout."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important message that is shown on stderr. Default: info."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """tabi.toml."""

    workers: int = 1
    """Processes; 0 is one for each CPU. Default: 1."""
    listen: list[Listen] = msgspec.field(default_factory=lambda: [Listen()])
    """Places to listen at. Default: mixed://127.0.0.1:1080."""
    users: dict[str, User] = {}
    """Who may use the proxy. Default: nobody, which means anybody on loopback."""
    egress: dict[str, Egress] = {}
    """Ways out, by name. Default: ``direct``."""
    timeouts: Timeouts = Timeouts()
    """Deadlines."""
    log: Log = Log()
    """What is written down, and where."""
