"""The schema of tabi.toml: frozen structs, one for each part. A key that is not here is an error, never ignored.

Durations are float seconds; the file may also say text such as "200ms" or "5 min".
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import msgspec

from tabi.config.admin import Admin
from tabi.config.distort import DistortConfig, FaultConfig
from tabi.policy.guard import EXEMPT, PRIVATE
from tabi.policy.networks import Network, contains, parse_network
from tabi.policy.pool import Balance, By
from tabi.policy.quantities import Quota, Rate, Share
from tabi.policy.users import Secret, parse_hash, plain_secret
from tabi.url import DEFAULT_PORT, ListenURL, ServerURL, parse_listen_url, parse_server_url
from tabi.wire.address import Host, parse_ip, read_number

if TYPE_CHECKING:  # a program may give plain numbers: they are checked and converted where the configuration is used
    Bandwidth: TypeAlias = float
    Moment: TypeAlias = float
    Seconds: TypeAlias = float
    Drain: TypeAlias = float
    Idle: TypeAlias = float
    Size: TypeAlias = int
else:
    from tabi.policy.quantities import Bandwidth, Drain, Idle, Moment, Seconds, Size

PORT_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})", re.ASCII)
NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})+\.?")
"""A name with a dot, as DNS has it."""

BROADCAST = "255.255.255.255"


class Udp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``udp`` of a listener: where the sockets of its associations are, and of its BINDs."""

    advertise: str | None = None
    """The IP address that clients get instead of this machine's own, or a name with a dot that has it: for a proxy
    behind NAT or in a container. A name is resolved at the start and at each reload, within 5 seconds."""
    ports: str | None = None
    """``"40000-40999"``: ports to take, for a firewall. ``"shared"``: one UDP port, the listener's own, for all
    associations. Default: any free port, one for each association."""
    fragments: Literal["reassemble", "drop"] = "reassemble"
    """What becomes of datagrams in fragments (RFC 1928 section 7). Default: reassemble."""
    senders: Literal["contacted", "any"] = "contacted"
    """The hosts whose datagrams reach the client: those that it has sent to, or any. Default: contacted."""

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """``advertise`` as an address, None for a name. Raises ValueError."""
        if self.advertise is None or self.name is not None:
            return None
        return public_address(self.advertise)

    @property
    def name(self) -> str | None:
        """``advertise`` if it is a name."""
        if self.advertise is None or not NAME.fullmatch(self.advertise):
            return None
        try:
            return self.advertise if read_number(self.advertise) is None else None
        except ValueError:
            return None

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


def public_address(text: str) -> IPv4Address | IPv6Address:
    """An address that clients can send to. Raises ValueError."""
    expected = f"{text!r}, expected an IP address that clients can send to, or a name with a dot that has one"
    try:
        address = parse_ip(text)
    except ValueError:
        raise ValueError(expected) from None
    if address.is_unspecified or address.is_multicast or "%" in str(address) or str(address) == BROADCAST:
        raise ValueError(expected)
    return address


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tls`` of a listener: files in PEM, looked at again when they change."""

    certificate: str
    """The server's certificate, followed by the intermediate certificates."""
    key: str
    """Its private key, without a passphrase."""
    client_ca: str | None = None
    """Authorities of client certificates: a client with one is a user. Default: no certificate is asked for."""
    client_name: Literal["cn", "dns", "email", "uri"] = "cn"
    """The field of a client's certificate with the user's name: the subject's CN, or a kind of SAN. Default: cn."""
    ciphers: str | None = None
    """Ciphers of TLS 1.2 in OpenSSL's words, best first. Default: those with forward secrecy and AEAD (RFC 9325)."""


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
    """Networks whose connections begin with a PROXY header, such as ``"10.0.0.0/8"``; ``"unix"`` means clients
    of a unix socket. From others it is refused. Default: none."""
    no_user: list[str] = []
    """Networks whose clients need no user, such as ``"10.1.0.0/16"``, ``"unix"`` for unix sockets; all others do. If it
    is not private, start with ``--open``. Default: none."""
    keepalive: Seconds | None = None
    """Seconds without an octet until a TCP keep-alive probe goes to the client. Default: no probes."""
    resolve_commands: bool = False
    """Whether clients of SOCKS5 may ask for the address of a name and for the name of an address, by Tor's commands
    RESOLVE and RESOLVE_PTR. Default: false."""
    sniff: bool = False
    """Whether the first octets of connections are looked at: the access log has their protocol, and of TLS its name and
    fingerprints, and rules are asked again with the name. Default: false."""

    @property
    def parsed(self) -> ListenURL:
        """The URL in its parts, checked when the configuration was loaded."""
        return parse_listen_url(self.url)

    @property
    def by_certificate(self) -> bool:
        """Whether clients may be users by a certificate of their own."""
        return self.tls is not None and self.tls.client_ca is not None

    def wants_user(self, has_users: bool) -> bool:
        """Whether clients must be users; ``has_users`` says that there are some who prove it by a password."""
        return self.users == "required" or (self.users is None and (has_users or self.by_certificate))

    @property
    def proxies(self) -> tuple[Network | None, ...]:
        """``proxy_protocol`` as networks, None for ``"unix"``. Raises ValueError."""
        return tuple(None if text == "unix" else ip_network(text) for text in self.proxy_protocol)

    @property
    def without_user(self) -> tuple[Network | None, ...]:
        """``no_user`` as networks, None for ``"unix"``. Raises ValueError."""
        return tuple(None if text == "unix" else parse_network(text) for text in self.no_user)

    def needs_user(self, host: Host, has_users: bool) -> bool:
        """Whether a client at this address must be a user; see `wants_user`."""
        return self.wants_user(has_users) and not contains(self.without_user, host)


class PerClient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``per_client`` of ``[limits]``: what each client's address may have, of IPv6 each /64."""

    connections: int | None = None
    """Connections at once. Default: no limit."""
    unauthenticated: Share = Share(0, 25)
    """Those of them that have not come to their request: a number, or a share of the sessions that there is room for.
    Default: "25%"."""
    connect_rate: Rate | None = None
    """How often one may begin, such as ``"50/s"``; so many may begin at once. Default: no limit."""


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``limits`` of a user, a group, a network of clients, and ``[limits]`` of the whole server. Default: none."""

    connections: int | None = None
    """Sessions at once; an association is one, and so is an HTTP request."""
    connect_rate: Rate | None = None
    """How often one may begin, such as ``"20/s"``; so many may begin at once."""
    bandwidth: Bandwidth | None = None
    """Octets of payload per second, for each direction alone, such as ``"10 MB/s"``."""
    burst: Size | None = None
    """Octets that may flow at once after a pause, never less than a tenth of a second of ``bandwidth``. Default: that
    much, at least 4 KiB."""
    quota: Quota | None = None
    """Octets of payload, both ways together, in a day or a month, such as ``"50 GB/month"``."""
    max_session: Seconds | None = None
    """Seconds after which a session ends."""
    over: Literal["refuse", "wait"] = "refuse"
    """What becomes of a request beyond ``connections`` or ``connect_rate``: it is refused, or waits for its turn as
    long as a handshake may take. Default: refuse."""
    per_client: PerClient | None = None
    """Only in ``[limits]``: what each client's address may have. Default: a quarter of the room, as long as it has not
    come to its request."""


class UserConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[users.NAME]``: who may use the proxy."""

    password: str | None = None
    """A hash as ``tabi passwd`` prints it; the password itself only with ``plain = true``. Without one the user cannot
    log in by password: for users by certificate, and those of a program."""
    plain: bool = False
    """Whether ``password`` is the password itself. Default: false."""
    groups: list[str] = []
    """Groups that the user belongs to, for rules and for limits that its members share."""
    expires: Moment | None = None
    """When the user's time is over, such as ``2027-01-01``: sessions end then. A date is its first second, in UTC."""
    limits: LimitsConfig = LimitsConfig()
    """What the user may use, in all sessions together."""

    def __repr__(self) -> str:
        return "User()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []

    @property
    def secret(self) -> Secret | None:
        """What passwords are compared with, None if there is no password. Raises ValueError if the hash is invalid."""
        if self.password is None:
            return None
        return plain_secret(self.password) if self.plain else parse_hash(self.password)


class Auth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[auth]``: how clients prove who they are."""

    users_file: str | None = None
    """A file with more users, an object of JSON a line: ``{"name": "alice", "password": "$scrypt$…"}``, with the keys
    of ``[users.NAME]``. Default: no file."""


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[groups.NAME]``: users together."""

    limits: LimitsConfig = LimitsConfig()
    """What all members together may use."""


class Clients(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[clients]]``: clients by their addresses; the first part that has an address counts."""

    networks: list[str]
    """Networks and addresses, such as ``"10.0.0.0/8"``."""
    limits: LimitsConfig = LimitsConfig()
    """What all clients of these networks together may use."""


class RuleConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[rule]]``: the first that matches decides; after the last everything is allowed, subject to the guard.

    A rule matches if all of its matchers do; one that is left out matches everything.
    """

    action: Literal["allow", "deny", "reset", "drop"] | None = None
    """What becomes of the request. A rule with ``via`` allows by default; any other rule must have an action.

    ``deny`` answers (reply 02), ``reset`` resets the client's connection, ``drop`` leaves it without an answer until
    the handshake's time is over. For datagrams, all three drop what is not allowed."""
    name: str | None = None
    """What the access log calls it. Default: its place, ``rule[3]``."""
    hosts: list[str] | None = None
    """Destinations: ``"example.com"``, ``"*.example.com"`` for names below it, ``"re:…"`` for a regular expression,
    ``"198.51.100.0/24"``, or ``"*"``."""
    ports: list[int | str] | None = None
    """Ports of the destination: ``25``, ``"465-587"``."""
    users: list[str] | None = None
    """Users, and groups with a @ in front."""
    clients: list[str] | None = None
    """Networks that the client comes from; ``"unix"`` for unix sockets."""
    commands: list[str] | None = None
    """``connect`` (HTTP requests are one too), ``forward`` (HTTP requests only), ``bind``, ``associate``, ``resolve``,
    ``resolve_ptr``."""
    listeners: list[str] | None = None
    """URLs of listeners, as they stand in ``[[listen]]``."""
    protocols: list[str] | None = None
    """As in the access log: socks5, socks4, http, socks5+tls, socks4+tls, https."""
    hours: str | None = None
    """Times of the week, such as ``"Mon-Fri 08:00-18:00 Europe/Berlin"``; UTC without a zone."""
    via: str | None = None
    """The egress that an allowed request takes. Default: ``direct``."""
    idle: Idle | None = None
    """Time without an octet in either direction, for TCP that this rule allows; 0 or ``"never"`` for any time. Default:
    ``timeouts.idle``."""
    sniff: bool = False
    """Whether the first octets of connections that this rule allows are looked at, as ``sniff`` of a listener says it
    for all of its clients. Default: false."""
    hosts_file: str | list[str] | None = None
    """Files with more destinations, one in each line: names, ``*.example.com``, addresses and networks. Default: no
    file."""
    networks_file: str | list[str] | None = None
    """Files with more networks that the client comes from, one in each line. Default: no file."""


class Ca(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[ca]``: the authority of interception, which signs the certificates that clients see."""

    certificate: str | None = None
    """Its certificate, a file in PEM. Default: what ``tabi ca init`` made, ``tabi/ca.crt`` in the user's data
    directory (XDG_DATA_HOME, ``~/.local/share``)."""
    key: str | None = None
    """Its private key, a file in PEM that others cannot read. Default: ``tabi/ca.key`` there."""


class InterceptConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[intercept]]``: sessions that are looked into; the first entry that matches decides, and without one a session
    is passed on as it is.

    The matchers are those of ``[[rule]]``.
    """

    action: Literal["intercept", "pass"] = "intercept"
    """``intercept`` looks into what matches, ``pass`` leaves it alone. Default: intercept."""
    name: str | None = None
    """What the access log calls it. Default: its place, ``intercept[3]``."""
    hosts: list[str] | None = None
    """Destinations, as in a rule. The name of CONNECT or the one in the client's hello (SNI) must match, or the address
    that was dialled a network."""
    ports: list[int | str] | None = None
    """Ports of the destination: ``443``, ``"8000-8999"``."""
    users: list[str] | None = None
    """Users, and groups with a @ in front."""
    clients: list[str] | None = None
    """Networks that the client comes from; ``"unix"`` for unix sockets."""
    commands: list[str] | None = None
    """``connect`` (HTTP requests are one too), ``forward`` (HTTP requests only), ``associate``."""
    listeners: list[str] | None = None
    """URLs of listeners, as they stand in ``[[listen]]``."""
    protocols: list[str] | None = None
    """As in the access log: socks5, socks4, http, socks5+tls, socks4+tls, https."""
    hours: str | None = None
    """Times of the week, such as ``"Mon-Fri 08:00-18:00 Europe/Berlin"``; UTC without a zone."""
    tls: bool = True
    """Whether TLS is opened; ``false`` looks into HTTP without TLS only, and needs no authority. Default: true."""
    verify: bool = True
    """Whether the destination's certificate must be good. Default: true."""
    trust: str | None = None
    """Authorities that destinations are trusted by beside the system's, a file in PEM. Default: the system's alone."""
    certificate: str | None = None
    """What a destination gets that asks for a certificate of the client, a file in PEM. Default: none."""
    key: str | None = None
    """The private key of ``certificate``, a file in PEM. Default: none."""
    on_pinning: Literal["pass", "refuse"] = "refuse"
    """What becomes of a client that has refused our certificate, when it comes to this host again within an hour:
    ``pass`` leaves it alone. Default: refuse, so that an alert is no way around inspection."""
    on_invalid: Literal["mirror", "alert"] = "mirror"
    """What a client sees of a destination's bad certificate: one that is as bad, or a TLS alert. Default: mirror."""
    on_error: Literal["pass", "close"] = "pass"
    """What becomes of a flow whose hook raises: it goes on untouched, or is closed. Default: pass."""
    mismatch: Literal["log", "deny"] = "log"
    """What becomes of a request for another host than that of the client's hello. Default: log."""
    quic: Literal["pass", "refuse"] = "pass"
    """What becomes of QUIC in associations; without it browsers fall back to TCP. Default: pass."""
    strip_alt_svc: bool = False
    """Whether the field ``Alt-Svc`` is taken out of answers, so that browsers do not try QUIC. Default: false."""
    har: str | None = None
    """A file that gets a record of each exchange (HAR 1.2). Default: none."""
    body_limit: Size = Size(1_000_000)
    """Octets of each body that are recorded. Default: 1 MB."""
    secrets: bool = False
    """Whether records show Authorization, Cookie and other secrets. Default: false."""
    mask: list[str] = []
    """Names of further fields, query keys and form keys whose values are secrets. Default: none."""
    scripts: list[str] = []
    """Files of Python with hooks. Default: none."""
    hook_timeout: Seconds = Seconds(10)
    """Seconds that an async hook has for its answer. Default: 10."""
    print: bool = False
    """Whether a line is printed for each exchange. Default: false."""
    hosts_file: str | list[str] | None = None
    """Files with more destinations, one in each line: names, ``*.example.com``, addresses and networks. Default: no
    file."""
    networks_file: str | list[str] | None = None
    """Files with more networks that the client comes from, one in each line. Default: no file."""


class GuardConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[guard]``: networks that no client from outside this machine reaches, whatever rules say."""

    deny: list[str] = msgspec.field(default_factory=lambda: [PRIVATE])
    """Networks, and ``"private"`` for all that are not public, the proxy's own addresses with them; ``[]`` for none."""
    allow: list[str] = []
    """Networks that clients may reach nevertheless."""
    exempt: list[str] = msgspec.field(default_factory=lambda: list(EXEMPT))
    """Clients that the guard ignores: networks, ``"unix"``. Default: those on this machine, which need no proxy."""


class Quotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[quotas]``: where used quotas are stored."""

    path: str | None = None
    """A file of SQLite, made if it does not exist. Default: ``quotas.sqlite`` in the state directory that systemd gives
    or else in ``~/.local/state/tabi``."""


class MemberConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of ``members``, with settings of its own."""

    to: str
    """The URL of a proxy, or the name of an egress."""
    weight: float = 1
    """Its share, relative to the weights of the others. Default: 1."""
    labels: list[str] = []
    """Groups that it can be chosen from. Default: none."""

    def __repr__(self) -> str:
        return "Member()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class StickyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``sticky`` of a pool: what ``balance = "sticky"`` and ``"hash"`` go by."""

    by: str = "client"
    """One or several of client, user, host, session (of the user name's parameters), with + between them. Default:
    client."""
    ttl: Seconds = Seconds(600)
    """Seconds without a request after which a key may go to another member. Default: 600."""

    @property
    def words(self) -> list[By]:
        """``by`` in its parts."""
        return cast("list[By]", self.by.split("+"))


class CheckConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``check`` of a pool: how its members are checked."""

    connect: str | None = None
    """``host:port`` that is connected to through each of them."""
    http: str | None = None
    """``http://host:port/path`` that is asked for; a status of 500 or more is a failure."""
    every: Seconds = Seconds(10)
    """Seconds between two rounds. Default: 10."""
    timeout: Seconds = Seconds(5)
    """Seconds for one member. Default: 5."""


class SshConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``ssh`` of an egress: the keys of SSH servers, and ours."""

    known_hosts: str | None = None
    """A file with the host keys that servers must have. Default: ``~/.ssh/known_hosts``."""
    key: str | None = None
    """A file with our private key, not encrypted. Default: the keys of ``~/.ssh``, if the URL has no password."""
    agent: bool = True
    """Whether the agent at ``SSH_AUTH_SOCK`` is asked for keys, if there is neither a password nor ``key``. Default:
    true."""


class EgressConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[egress.NAME]``: how connections leave: directly, through one or more proxies, or by a member of a pool.

    An egress ``direct`` always exists, and an egress ``block``, which leads nowhere.
    """

    send_proxy_protocol: Literal[0, 1, 2] = 0
    """The version of the PROXY header that every destination of a CONNECT or of a forwarded request
    is sent first, or the first proxy; 0 means no header. Default: 0."""
    source: list[str] = []
    """Addresses of this machine, and prefixes that are routed to it, to come from. Default: as the system chooses."""
    source_by: Literal["session", "user", "client"] = "session"
    """What keeps the same source address: ``user``, ``client`` (its address), or ``session``: each session gets
    another one. Default: session."""
    interface: str | None = None
    """The interface that connections and datagrams leave by. Default: as the system chooses."""
    mark: int | None = None
    """SO_MARK, for routing and firewalls, 1 to 4294967295; needs CAP_NET_ADMIN. Default: none."""
    keepalive: Seconds | None = None
    """Seconds without an octet until a keepalive probe goes to the destination. Default: no probes."""
    user_timeout: Seconds | None = None
    """Seconds that octets may be unacknowledged until the connection is given up (tcp(7)). Default: the system's."""
    fast_open: bool = False
    """Whether the first octets go with the first packet, where the destination knows us (RFC 7413): a connection then
    counts as open before it is. Default: false."""
    url: str | None = None
    """The proxy to go through, such as ``socks5://user:password@host:port``. Default: none."""
    chain: list[str] | None = None
    """Several proxies, the nearest first; the first may be the name of an egress. Default: none."""
    ca: str | None = None
    """A file with the authorities of proxies inside TLS, in PEM. Default: the system's."""
    ssh: SshConfig = SshConfig()
    """Keys, for SSH servers among the proxies."""
    resolve: Literal["here", "there"] = "there"
    """Where names are resolved: ``there`` is at the proxy, ``here`` on this machine. Default: there."""
    isolate: list[Literal["user", "session", "client"]] = []
    """What gets its own user name at a SOCKS5 proxy, so that Tor keeps the traffic apart. Default: nothing."""
    members: list[str | MemberConfig] | None = None
    """The pool: URLs of proxies, names of egresses. Default: none."""
    balance: Balance = "round-robin"
    """Which member takes a request. Default: round-robin."""
    sticky: StickyConfig = StickyConfig()
    """What ``sticky`` and ``hash`` go by."""
    check: CheckConfig | None = None
    """How members are checked, in addition to the requests that they get. Default: no checks."""

    def __repr__(self) -> str:
        return "Egress()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []  # URLs may hold passwords

    @property
    def hops(self) -> list[str]:
        """The proxies on the way, the nearest first."""
        return self.chain or [] if self.url is None else [self.url]


class UsersGrammar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[users_grammar]``: parameters in user names, such as ``alice-country-de-session-7f3a``."""

    keys: dict[str, Literal["label", "session", "ttl"]] = {}
    """By key, what its value selects: members of a pool by a label, a session that keeps its member, for how long.
    Default: no keys."""
    separator: str = "-"
    """Stands between name, keys and values; one character. Default: -."""


Prefer = Literal["any", "ipv4", "ipv6", "ipv4-only", "ipv6-only"]

SYSTEM = "system"


class ResolverConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[resolver]``: what turns names into addresses."""

    servers: list[str] = msgspec.field(default_factory=lambda: [SYSTEM])
    """The servers: ``"system"`` (resolv.conf and the hosts file), an IP address, ``udp://``, ``tcp://``, ``tls://``,
    ``https://host/dns-query``; if one fails, the next is asked. Default: the system."""
    ca: str | None = None
    """Certificates of the authorities that servers with tls and https are trusted by, a file in PEM. Default: the
    system's."""
    timeout: Seconds = Seconds(2)
    """How long one server has for an answer, if ``servers`` is not the system alone. Default: 2."""
    tries: int = 2
    """How often all servers are asked. Default: 2."""
    prefer: Prefer = "any"
    """Which kind of a name's addresses is tried first, or is the only one. Default: any, the order of the answer."""
    hosts: dict[str, list[str]] = {}
    """Names that are answered without a server, and their addresses."""
    cache: int = 10_000
    """Names that are kept, 0 for none. Default: 10000."""
    min_ttl: Seconds = Seconds(1)
    """How long an answer is kept at least, whatever its own time to live. Default: 1."""
    max_ttl: Seconds = Seconds(3600)
    """How long an answer is kept at most. Default: 3600."""
    negative_ttl: Seconds = Seconds(5)
    """How long it is kept at most that a name has no address, does not exist, or that its lookup failed. Default: 5."""

    @property
    def parsed(self) -> tuple[ServerURL | None, ...]:
        """``servers`` in their parts, None for the system. Raises ValueError."""
        return tuple(None if text == SYSTEM else parse_server_url(text) for text in self.servers)


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[timeouts]``, in seconds."""

    handshake: Seconds = Seconds(10)
    """From accept to the whole request. Default: 10."""
    connect: Seconds = Seconds(10)
    """Resolving and connecting together. Default: 10."""
    idle: Idle = Idle(300)
    """Time without an octet in either direction; 0 or ``"never"`` for any time. Default: 300."""
    half_closed: Seconds = Seconds(60)
    """Time without an octet in either direction, once one side has ended. Default: 60."""
    bind: Seconds = Seconds(120)
    """From the first reply to BIND until the peer has connected. Default: 120."""
    udp_idle: Seconds = Seconds(120)
    """Time without a datagram in either direction. Default: 120."""
    drain: Drain = Drain(30)
    """For running sessions after SIGTERM, Ctrl-C or an upgrade; ``"never"`` for as long as they take. Default: 30."""


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[log]``."""

    access: str = "stdout"
    """Where the access log goes: stdout, stderr, syslog, ``syslog://host:port``, journald, none, or a path. Default:
    stdout."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important message that is shown on stderr. Default: info."""
    format: Literal["auto", "json", "text", "logfmt"] = "auto"
    """Of a line; auto is text on a terminal and in the journal, else json. Default: auto."""
    begin: bool = False
    """Whether there is also a line when a session begins: its destination is connected. Default: false."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """tabi.toml."""

    workers: int = 1
    """Processes; 0 is one for each CPU. Default: 1."""
    user: str | None = None
    """Who root becomes when it has bound its sockets, ``NAME`` or ``NAME:GROUP``. Default: nobody else."""
    listen: list[Listen] = msgspec.field(default_factory=lambda: [Listen()])
    """Places to listen at. Default: mixed://127.0.0.1:1080."""
    users: dict[str, UserConfig] = {}
    """The users. Default: no users: then any client on loopback may use the proxy."""
    auth: Auth = Auth()
    """More users."""
    groups: dict[str, Group] = {}
    """Groups of users, by name. Default: none has limits."""
    clients: list[Clients] = []
    """Clients by their addresses. Default: none has limits."""
    limits: LimitsConfig = LimitsConfig()
    """What all sessions together may use."""
    rule: list[RuleConfig] = []
    """The rules, in this order. Default: everything is allowed, subject to the guard."""
    decide: str | None = None
    """``python:module:function``: asked for each session after the rules, it has the last word. Default: none."""
    guard: GuardConfig = GuardConfig()
    """What clients from outside do not reach."""
    quotas: Quotas = Quotas()
    """Where used quotas are kept."""
    egress: dict[str, EgressConfig] = {}
    """Egresses, by name. Default: ``direct``."""
    users_grammar: UsersGrammar = UsersGrammar()
    """Parameters in user names."""
    resolver: ResolverConfig = ResolverConfig()
    """How names are resolved."""
    timeouts: Timeouts = Timeouts()
    """Deadlines."""
    log: Log = Log()
    """What is written down, and where."""
    ca: Ca = Ca()
    """The authority of interception."""
    intercept: list[InterceptConfig] = []
    """Sessions that are looked into, in this order. Default: none is."""
    admin: Admin = Admin()
    """Where the running server can be asked and steered."""
    distort: list[DistortConfig] = []
    """Sessions that are molded; all entries that match apply, in this order. Default: none is."""
    profile: dict[str, FaultConfig] = {}
    """Faults that entries name, by name. Default: only those that tabi has."""
    include: list[str] = []
    """Patterns of files that are read as a part of this one, such as ``"conf.d/*.toml"``; empty once they are. Default:
    none."""

    @property
    def has_users(self) -> bool:
        """Whether there are users, or a file for them: an empty file shuts every client out."""
        return bool(self.users) or self.auth.users_file is not None

    @property
    def by_certificate(self) -> bool:
        """Whether clients of a listener may be users by a certificate."""
        return any(listen.by_certificate for listen in self.listen)
