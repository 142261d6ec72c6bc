"""URLs of proxies and of listeners: what they may say, and where that is. No I/O.

    socks5://[user:password@]host[:port]          a proxy that a client or a chain goes through
    PROTOCOL://host[:port]                        a listener, of one of the protocols below
    unix:///path?protocol=mixed&mode=0660         a listener at a unix socket; owner= and group= are names or numbers
    fd://NAME?protocol=mixed                      a listener that systemd has opened (sd_listen_fds(3))

The port is 1080 where none is given.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import msgspec

from tabi.wire.address import Address, parse_host

DEFAULT_PORT = 1080
DEFAULT_MODE = 0o600


class ProxyURL(msgspec.Struct, frozen=True):
    """A URL of interface: protocol, address and, where the URL has them, credentials (never in the repr)."""

    protocol: str
    address: Address
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        return f"{self.protocol}://{self.address}"

    __repr__ = __str__

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("protocol", self.protocol), ("address", self.address)]


PROTOCOLS = ("socks5",)


def parse_url(text: str) -> ProxyURL:
    """Read ``socks5://[user:password@]host[:port]``; the port is 1080 where none is given.

    Raises:
        ValueError: it is something else. The text is not in the message: it may hold a password.
    """
    expected = "expected socks5://[user:password@]host:port"
    parts = split(text, expected)
    if parts.scheme not in PROTOCOLS:
        raise ValueError(f"{scheme_of(text)}, {expected}")
    address = network_place(parts, expected)
    username, password = credentials_of(parts, expected)
    if username is not None and (not username or password is None):
        raise ValueError(f"a user name without a password, {expected}")
    if any(len(part.encode()) > 255 for part in (username, password) if part):
        raise ValueError("a user name and a password have at most 255 octets each (RFC 1929)")
    return ProxyURL(parts.scheme, address, username, password)


class UnixSocket(msgspec.Struct, frozen=True):
    """A place in the file system. ``owner`` and ``group`` are names or numbers; None leaves what the process has."""

    path: str
    mode: int = DEFAULT_MODE
    owner: str | None = None
    group: str | None = None


class PassedSocket(msgspec.Struct, frozen=True):
    """The sockets of one name that the service manager has opened; "" is all those that no other listener names."""

    name: str


Place = Address | UnixSocket | PassedSocket

LISTENER_PROTOCOLS = {
    "mixed": ("mixed", False),
    "mixed+tls": ("mixed", True),
    "socks5": ("socks5", False),
    "socks5+tls": ("socks5", True),
    "socks4": ("socks4", False),
    "socks4a": ("socks4", False),
    "socks4+tls": ("socks4", True),
    "http": ("http", False),
    "https": ("http", True),
}
"""By scheme, or by ``protocol`` in a query: what clients speak, and whether inside TLS."""

LISTENER_KEYS = {"unix": ("protocol", "mode", "owner", "group"), "fd": ("protocol",)}
MAX_PATH = 107
"""Octets of a unix socket's path (unix(7))."""


class ListenURL(msgspec.Struct, frozen=True):
    """What clients speak and where: ``scheme`` is a key of LISTENER_PROTOCOLS."""

    scheme: str
    place: Place

    @property
    def protocol(self) -> str:
        """mixed, socks5, socks4 or http."""
        return LISTENER_PROTOCOLS[self.scheme][0]

    @property
    def tls(self) -> bool:
        """Whether clients speak it inside TLS, and nothing without."""
        return LISTENER_PROTOCOLS[self.scheme][1]

    def at(self, address: Address) -> str:
        """The same at an address that has become known."""
        return f"{self.scheme}://{address}"

    def __str__(self) -> str:
        place = self.place
        if isinstance(place, Address):
            return self.at(place)
        if isinstance(place, PassedSocket):
            return f"fd://{quote(place.name, safe='')}?protocol={self.scheme}"
        return f"unix://{quote(place.path)}?protocol={self.scheme}"


def parse_listen_url(text: str) -> ListenURL:
    """Read the URL of a listener. Raises ValueError."""
    schemes = ", ".join(LISTENER_PROTOCOLS)
    expected = f"expected PROTOCOL://host:port, unix:///path or fd://NAME, and as protocol one of {schemes}"
    parts = split(text, expected)
    if parts.scheme not in LISTENER_PROTOCOLS and parts.scheme not in LISTENER_KEYS:
        raise ValueError(f"{scheme_of(text)}, {expected}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a listener has no user of its own, expected [users.NAME]")
    if parts.scheme in LISTENER_PROTOCOLS:
        place = network_place(parts, expected)
        if place.host == "*":
            raise ValueError("* is no host, expected 0.0.0.0, or [::] for IPv6 and IPv4")
        return ListenURL(parts.scheme, place)
    query = query_of(parts, LISTENER_KEYS[parts.scheme])
    protocol = query.get("protocol", "mixed")
    if protocol not in LISTENER_PROTOCOLS:
        raise ValueError(f"protocol={protocol}, expected one of {schemes}")
    if parts.scheme == "fd":
        if parts.path or parts.fragment:
            raise ValueError("something behind the name, expected fd://NAME?protocol=mixed")
        return ListenURL(protocol, PassedSocket(unquote(parts.netloc)))
    return ListenURL(protocol, unix_place(parts, query))


def unix_place(parts: SplitResult, query: dict[str, str]) -> UnixSocket:
    """Read the place of ``unix:///path?mode=0660&owner=NAME&group=NAME``. Raises ValueError."""
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/") or path.endswith("/") or parts.fragment:
        raise ValueError("a unix socket has an absolute path, expected unix:///run/tabi.sock")
    if len(path.encode()) > MAX_PATH or "\0" in path:
        raise ValueError(f"a path of {len(path.encode())} octets, expected at most {MAX_PATH} and no NUL (unix(7))")
    mode = query.get("mode", f"{DEFAULT_MODE:04o}")
    if not re.fullmatch(r"0?[0-7]{3}", mode, re.ASCII):
        raise ValueError(f"mode={mode}, expected octal digits such as 0660")
    return UnixSocket(path, int(mode, 8), query.get("owner"), query.get("group"))


# --- parts of URLs ---


def split(text: str, expected: str) -> SplitResult:
    """Take a URL apart; a port that is none is found here. Raises ValueError without the text."""
    if text.startswith("://") or ("://" not in text and not text.startswith("unix:")):
        raise ValueError(f"the protocol is missing, {expected}")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError(f"white space or control characters in a URL, {expected}")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(f"this is no URL, {expected}") from None
    if parts.scheme not in LISTENER_KEYS:
        try:
            _ = parts.port
        except ValueError:
            raise ValueError(f"{port_of(text)} from 0 to 65535, {expected}") from None
    return parts


def port_of(text: str) -> str:
    """A port that is none, for a message. A colon in a password may be taken for the port's: only digits are shown."""
    found = re.fullmatch(r"[^@:]+://[^@]*:(-?\d{1,20})/?|[^@:]+://[^@/]*@[^@/]*:(-?\d{1,20})/?", text, re.ASCII)
    return f"port {found[1] or found[2]} is not" if found else "the port is no number"


def scheme_of(text: str) -> str:
    """The scheme, for a message: nothing else of a URL may be in one."""
    return f"protocol {urlsplit(text).scheme!r}"


def network_place(parts: SplitResult, expected: str) -> Address:
    """Host and port. Raises ValueError."""
    host, port = parts.hostname, parts.port
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{'no host' if not host else 'something behind the port'}, {expected}")
    address = Address(parse_host(host), DEFAULT_PORT if port is None else port)
    if isinstance(address.host, str):
        try:
            address.host.encode("idna")  # as the system's resolver is asked
        except UnicodeError:
            raise ValueError(f"a label of the host name has not 1 to 63 characters, {expected}") from None
    return address


def credentials_of(parts: SplitResult, expected: str) -> tuple[str | None, str | None]:
    """User name and password, decoded. Raises ValueError."""
    try:
        username = None if parts.username is None else unquote(parts.username, errors="strict")
        password = None if parts.password is None else unquote(parts.password, errors="strict")
    except ValueError:
        raise ValueError(f"this is no URL, {expected}") from None
    return username, password


def query_of(parts: SplitResult, keys: tuple[str, ...]) -> dict[str, str]:
    """The query's keys and values, each once; a + is one, as in mixed+tls. Raises ValueError for others."""
    try:
        pairs = parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError("this is no query, expected ?key=value&key=value") from None
    query = dict(pairs)
    unknown = next((key for key in query if key not in keys), None)
    if unknown is not None:
        raise ValueError(f"unknown key {unknown} in the query, expected one of {', '.join(keys)}")
    if len(query) < len(pairs) or not all(query.values()):
        raise ValueError(f"a key of the query twice or without a value, expected one of {', '.join(keys)}")
    return query
