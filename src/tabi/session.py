"""Session: what is known of one request, from accept to its line in the access log.

The packages pass it along in the direction of the data, and each fills in its part. It holds facts, not sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal, Protocol

import msgspec

from tabi.wire.address import Address
from tabi.wire.client_hello import ClientHello

UNIX = "unix"
"""The host of a client that came through a unix socket; its port is the number of the user that its process runs as."""

Close = Literal["client", "server", "idle", "reset", "denied", "limit", "kicked", "fault", "shutdown", "error"]
Drop = Literal[
    "wrong_source",
    "malformed",
    "fragment",
    "denied",
    "unresolved",
    "waiting",
    "unsolicited",
    "too_large",
    "unsent",
    "overflow",
    "limited",
    "inspector",
    "fault",
]
"""Why a datagram was dropped; docs/access-log.md explains each reason."""

NO_GROUPS: frozenset[str] = frozenset()

Action = Literal["allow", "deny", "reset", "drop"]


class Decision(msgspec.Struct, frozen=True):
    """The decision on a request: made by the rules of tabi.toml, or returned by ``decide`` of a program."""

    action: Action = "allow"
    """``deny`` refuses with an answer, ``reset`` resets the client's connection, ``drop`` leaves it without an answer
    until the handshake's time is over."""
    rule: str | None = None
    """The name of the rule in the access log."""
    via: Any = None
    """The egress: its name, a proxy's URL, or an object with the protocol ``tabi.Egress``. Default: ``direct``."""
    reason: str | None = None
    """The error in the access log for a request that is not allowed."""
    reply_code: int | None = None
    """The reply of RFC 1928, 1 to 8, that ``deny`` sends. Default: 2."""
    delay: float = 0
    """Seconds that the client waits before its destination is opened or the refusal is sent, 60 at most."""
    limits: Any = None
    """Limits for this session alone, such as ``{"bandwidth": "1 MB/s"}``: what ``limits`` of a user may have, as a
    mapping or as `tabi.config.LimitsConfig`. The other limits hold as well. Default: none."""

    def __repr__(self) -> str:
        via = self.via.rpartition("@")[2] if isinstance(self.via, str) else self.via  # a URL may hold a password
        return f"Decision(action={self.action!r}, rule={self.rule!r}, via={via!r}, reason={self.reason!r})"


MAX_NAME, MAX_PROTOCOLS = 32, 16
"""Octets of a protocol that ALPN names, and such protocols, that are noted."""


class Sniffed:
    """What the first octets of a session's client and destination have said, where somebody looks at them.

    Args:
        protocol: ``tls``, ``http/1``, ``h2`` without TLS, ``ssh``; ``raw`` is everything else.
        hello: of TLS. What it says is read when it is asked for.
    """

    __slots__ = ("hello", "protocol")

    def __init__(self, protocol: str, hello: ClientHello | None = None) -> None:
        self.protocol = protocol
        self.hello = hello

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sniffed) and (self.protocol, self.hello) == (other.protocol, other.hello)

    def __hash__(self) -> int:
        return hash((self.protocol, self.hello))

    def __repr__(self) -> str:
        return f"Sniffed({self.protocol!r}, sni={self.sni!r}, alpn={self.alpn!r}, ja4={self.ja4!r})"

    @property
    def sni(self) -> str | None:
        """The name that the client's TLS asks for, in small letters; None without TLS, or without a name."""
        return None if self.hello is None else self.hello.sni

    @property
    def alpn(self) -> tuple[str, ...]:
        """The protocols that its TLS offers, such as ``h2``: the first 16."""
        protocols = () if self.hello is None else self.hello.alpn[:MAX_PROTOCOLS]
        return tuple([protocol[:MAX_NAME].decode("ascii", "backslashreplace") for protocol in protocols])

    @property
    def ja3(self) -> str | None:
        """The JA3 fingerprint of its TLS; None without."""
        return None if self.hello is None else self.hello.ja3

    @property
    def ja4(self) -> str | None:
        """The JA4 fingerprint of its TLS; None without."""
        return None if self.hello is None else self.hello.ja4


class DatagramProtection(Protocol):
    """How the datagrams of a client are wrapped, as its authentication method has agreed."""

    def unwrap(self, data: bytes) -> bytes:
        """Unwrap a datagram of the client. Raises ValueError if it was not wrapped as agreed."""

    def wrap(self, data: bytes) -> bytes:
        """Wrap a datagram for the client."""


class Session:
    """One client connection and the one request in it.

    ``started`` is of `time.monotonic`, in seconds, as is ``asked``: when a CONNECT was decided on, None for other
    requests. ``up`` and ``down`` are octets of payload that were delivered. Of an
    association ``datagrams_up`` and ``datagrams_down`` count the datagrams, and ``drops`` those that were dropped, by
    reason; ``drops`` is None for any other command. A ``silent`` session gets no line: it had no request.
    That is None if not even an octet came from the client, as from a health check: then only the line is left out.
    ``rule`` names the one that decided; ``decision`` is what the rules decided, for a program that makes the final
    decision. ``addresses`` are those of a name that had to be resolved for a decision. ``lease`` is what limits leave
    of it. ``parameters`` are those of the user name. ``groups`` and ``limits`` are what ``authenticate`` of a program
    said of the user, besides the configuration. ``protection`` wraps the datagrams of the client. ``member`` is the
    upstream that a pool chose. ``route`` is how its destination is opened once more. ``intercepted`` names the
    ``[[intercept]]`` that looks into it; ``sniffed`` is what its first octets have said, where that is asked for;
    ``pinned`` says that the client has refused our certificate. ``distorted`` are the ``[[distort]]`` entries that it
    was drawn for; None if that was not asked. ``ended`` are the functions to call at the end
    (`when_over`). ``watch`` gets the events in between, if an observer wants them.
    """

    __slots__ = (
        "address",
        "addresses",
        "asked",
        "client",
        "close",
        "command",
        "connect_seconds",
        "datagrams_down",
        "datagrams_up",
        "decision",
        "destination",
        "distorted",
        "down",
        "drops",
        "ended",
        "error",
        "groups",
        "intercepted",
        "lease",
        "limits",
        "listener",
        "member",
        "number",
        "parameters",
        "pinned",
        "protection",
        "protocol",
        "reply_code",
        "route",
        "rule",
        "silent",
        "sniffed",
        "started",
        "up",
        "user",
        "via",
        "watch",
    )

    def __init__(self, number: int, listener: str, client: Address, started: float) -> None:
        self.listener = listener
        self.client = client
        self.protocol: str | None = None
        self.user: str | None = None
        self.groups: frozenset[str] = NO_GROUPS
        self.limits: Any = None  # of config, which stands above
        self.parameters: Any = None  # of policy.grammar, which stands above
        self.protection: DatagramProtection | None = None
        self.watch: Any = None  # of observe.observers
        self.begin(number, started)

    def identify(self, user: str | None, groups: frozenset[str] = NO_GROUPS, limits: Any = None) -> None:
        """Note who the client is; the other user, if there was one, is forgotten."""
        self.user = user
        self.groups = groups
        self.limits = limits
        self.parameters = None

    def begin(self, number: int, started: float) -> None:
        """Forget the request, keep the client: another comes on the same connection."""
        self.number = number
        self.started = started
        self.silent: bool | None = False
        self.command: str | None = None
        self.destination: Address | None = None
        self.address: Address | None = None
        self.addresses: Sequence[IPv4Address | IPv6Address] | None = None
        self.asked: float | None = None
        self.decision: Decision | None = None
        self.rule: str | None = None
        self.lease: Any = None  # of policy.limits, which stands above
        self.via: str | None = None
        self.member: str | None = None
        self.route: Any = None  # of ingress.gate, which stands above
        self.intercepted: str | None = None
        self.pinned = False
        self.distorted: Any = None  # of distort.draws, which stands above
        self.sniffed: Sniffed | None = None
        self.ended: list[Callable[[], object]] | None = None
        self.reply_code: int | None = None
        self.error: str | None = None
        self.up = 0
        self.down = 0
        self.datagrams_up = 0
        self.datagrams_down = 0
        self.drops: dict[Drop, int] | None = None
        self.connect_seconds: float | None = None
        self.close: Close = "error"

    def known(self, destination: Address) -> Sequence[IPv4Address | IPv6Address] | None:
        """The addresses of its own destination that were decided on; None for any other destination, such as a
        proxy."""
        return self.addresses if destination == self.destination else None

    def when_over(self, callback: Callable[[], object]) -> None:
        """Register a function to call once, when the request is over and before its line. It must not raise."""
        if self.ended is None:
            self.ended = []
        self.ended.append(callback)

    def not_when_over(self, callback: Callable[[], object]) -> None:
        """Undo `when_over`."""
        if self.ended is not None and callback in self.ended:
            self.ended.remove(callback)

    def over(self) -> None:
        """Call the functions of `when_over`: the request is over. Called by the server."""
        ended, self.ended = self.ended, None
        for callback in ended or ():
            callback()

    def copy(self) -> Session:
        """A copy of these facts, for code that keeps them."""
        other = Session.__new__(Session)
        for name in Session.__slots__:
            setattr(other, name, getattr(self, name))
        return other
