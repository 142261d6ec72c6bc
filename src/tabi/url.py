"""URLs of proxies and of listeners: their syntax and what they mean. No I/O.

    PROTOCOL://[user:password@]host[:port]        a proxy that a client or a chain goes through: socks5 (socks5h is the
                                                  same), socks5+tls, socks4 (socks4a is the same), socks4+tls, http,
                                                  https, ssh (a server that forwards connections)
    PROTOCOL://host[:port]                        a listener, of one of the protocols below
    unix:///path?protocol=mixed&mode=0660         a listener at a unix socket; owner= and group= are names or numbers
    fd://NAME?protocol=mixed                      a listener that systemd has opened (sd_listen_fds(3))
    tls://host[:port], https://host[:port]/path   a name server, or udp:// and tcp:// with an address
    syslog://host[:port]                          a syslog daemon

The port is 1080 where none is given; of an HTTP proxy it is 3128, as squid's, and inside TLS 443; of an SSH server
22; of name servers and syslog that of their protocol.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import msgspec

from tabi.wire.address import Address, parse_host, parse_ip
from tabi.wire.connect import encode_basic
from tabi.wire.socks5 import Credentials

DEFAULT_PORT = 1080
DEFAULT_MODE = 0o600


PROXY_PROTOCOLS = {
    "socks5": ("socks5", False, DEFAULT_PORT),
    "socks5h": ("socks5", False, DEFAULT_PORT),
    "socks5+tls": ("socks5", True, DEFAULT_PORT),
    "socks4": ("socks4", False, DEFAULT_PORT),
    "socks4a": ("socks4", False, DEFAULT_PORT),
    "socks4+tls": ("socks4", True, DEFAULT_PORT),
    "http": ("http", False, 3128),
    "https": ("http", True, 443),
    "ssh": ("ssh", False, 22),
}
"""By scheme: what a proxy speaks, whether inside TLS, and its usual port. The proxy always resolves names, so that
socks5h and socks4a, which mean that in other programs, are the same as socks5 and socks4."""

EXPECTED = "expected socks5://[user:password@]host:port, or as protocol " + ", ".join(
    scheme for scheme in PROXY_PROTOCOLS if scheme != "socks5"
)


class ProxyURL(msgspec.Struct, frozen=True):
    """A proxy: socks5, socks4, http or ssh, where, with which user (never in the repr), and whether inside TLS."""

    protocol: str
    address: Address
    username: str | None = None
    password: str | None = None
    tls: bool = False

    @property
    def credentials(self) -> Credentials | None:
        """User name and password as octets; None if there is no user."""
        if self.username is None:
            return None
        return Credentials(self.username.encode(), (self.password or "").encode())

    def __str__(self) -> str:
        scheme = self.protocol
        if self.tls:
            scheme = "https" if scheme == "http" else f"{scheme}+tls"
        return f"{scheme}://{self.address}"

    __repr__ = __str__

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("protocol", self.protocol), ("address", self.address), ("tls", self.tls)]


def parse_url(text: str) -> ProxyURL:
    """Read the URL of a proxy, ``socks5://[user:password@]host[:port]`` or another of PROXY_PROTOCOLS.

    Raises:
        ValueError: it is something else. The text is not in the message: it may hold a password.
    """
    parts = split(text, EXPECTED)
    if parts.scheme not in PROXY_PROTOCOLS:
        raise ValueError(f"{scheme_of(text)}, {EXPECTED}")
    protocol, tls, port = PROXY_PROTOCOLS[parts.scheme]
    address = network_place(parts, EXPECTED, port)
    if not address.port:
        raise ValueError(f"port 0, {EXPECTED}")
    username, password = credentials_of(parts, EXPECTED)
    url = ProxyURL(protocol, address, username, password, tls)
    if url.protocol == "ssh" and not url.username:
        raise ValueError("an SSH server wants a user, expected ssh://user[:password]@host:port")
    if url.credentials is not None:
        check_credentials(url, url.credentials)
    return url


def check_credentials(url: ProxyURL, credentials: Credentials) -> None:
    """Raise ValueError if the proxy's protocol cannot carry them."""
    if url.protocol == "socks4":
        if url.password:
            raise ValueError("a password, which SOCKS4 cannot carry, expected socks4://user@host:port")
        if not 0 < len(credentials.username) <= 255 or 0 in credentials.username:
            raise ValueError("a user name of SOCKS4 has 1 to 255 octets and no NUL")
        return
    if url.protocol == "ssh":
        if max(map(len, (credentials.username, credentials.password))) > 1024:
            raise ValueError("a user name and a password of SSH have at most 1024 octets each")
        return
    if not url.username or url.password is None:
        raise ValueError(f"a user name without a password, {EXPECTED}")
    if url.protocol == "http":
        encode_basic(credentials)
    elif max(map(len, (credentials.username, credentials.password))) > 255:
        raise ValueError("a user name and a password have at most 255 octets each (RFC 1929)")


class UnixSocket(msgspec.Struct, frozen=True):
    """A place in the file system. ``owner`` and ``group`` are names or numbers; None keeps those of the process."""

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
        """Whether clients must speak it inside TLS."""
        return LISTENER_PROTOCOLS[self.scheme][1]

    def at(self, address: Address) -> str:
        """This URL with the address that is now known."""
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
            raise ValueError("* is not a host, expected 0.0.0.0, or [::] for IPv6 and IPv4")
        return ListenURL(parts.scheme, place)
    query = query_of(parts, LISTENER_KEYS[parts.scheme])
    protocol = query.get("protocol", "mixed")
    if protocol not in LISTENER_PROTOCOLS:
        raise ValueError(f"protocol={protocol}, expected one of {schemes}")
    if parts.scheme == "fd":
        if parts.path or parts.fragment:
            raise ValueError("something after the name, expected fd://NAME?protocol=mixed")
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


SERVER_PORTS = {"udp": 53, "tcp": 53, "tls": 853, "https": 443}
"""What name servers speak, and its port (RFC 1035, 7858, 8484)."""

DEFAULT_PATH = "/dns-query"


class ServerURL(msgspec.Struct, frozen=True):
    """The URL of a name server."""

    scheme: str
    """A key of SERVER_PORTS."""
    address: Address
    path: str = ""
    """With https."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"


def parse_server_url(text: str) -> ServerURL:
    """Read the URL of a name server; an address alone, or with a port, is one by UDP. Raises ValueError."""
    expected = "expected system, an IP address, udp://IP, tcp://IP, tls://HOST or https://HOST/dns-query"
    if "://" not in text:
        try:
            return ServerURL("udp", Address(parse_ip(text), SERVER_PORTS["udp"]))
        except ValueError:
            text = f"udp://{text}"
    parts = split(text, expected)
    if parts.scheme not in SERVER_PORTS:
        raise ValueError(f"{scheme_of(text)}, {expected}")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(f"a user, a query or a fragment, {expected}")
    if (parts.path not in ("", "/") and parts.scheme != "https") or not parts.hostname:
        raise ValueError(f"{'something after the port' if parts.hostname else 'no host'}, {expected}")
    if parts.port == 0:
        raise ValueError(f"port 0, {expected}")
    host = parse_host(parts.hostname)
    if isinstance(host, str) and parts.scheme in ("udp", "tcp"):
        raise ValueError(f"{host!r} is not an IP address, {expected}")
    path = "" if parts.scheme != "https" else DEFAULT_PATH if parts.path in ("", "/") else parts.path
    return ServerURL(parts.scheme, Address(host, parts.port or SERVER_PORTS[parts.scheme]), path)


SYSLOG_PORT = 514
"""RFC 5426."""


def parse_syslog_url(text: str) -> Address:
    """Read ``syslog://host[:port]``, a syslog daemon that reads UDP. Raises ValueError."""
    expected = "expected syslog://host:port"
    parts = split(text, expected)
    if parts.scheme != "syslog":
        raise ValueError(f"{scheme_of(text)}, {expected}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"a user, {expected}")
    address = network_place(parts, expected, SYSLOG_PORT)
    if not address.port:
        raise ValueError(f"port 0, {expected}")
    return address


# --- parts of URLs ---


def split(text: str, expected: str) -> SplitResult:
    """Split a URL; this also finds an invalid port. Raises ValueError without the text."""
    if text.startswith("://") or ("://" not in text and not text.startswith("unix:")):
        raise ValueError(f"the protocol is missing, {expected}")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError(f"white space or control characters in a URL, {expected}")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(f"this is not a URL, {expected}") from None
    if parts.scheme not in LISTENER_KEYS:
        try:
            _ = parts.port
        except ValueError:
            raise ValueError(f"{port_of(text)} from 0 to 65535, {expected}") from None
    return parts


def port_of(text: str) -> str:
    """An invalid port, for a message. A colon in a password may be taken for the port's: only digits are shown."""
    found = re.fullmatch(r"[^@:]+://[^@]*:(-?\d{1,20})/?|[^@:]+://[^@/]*@[^@/]*:(-?\d{1,20})/?", text, re.ASCII)
    return f"port {found[1] or found[2]} is not" if found else "the port is not a number"


def scheme_of(text: str) -> str:
    """The scheme, for a message: nothing else of a URL may be in one."""
    return f"protocol {urlsplit(text).scheme!r}"


def network_place(parts: SplitResult, expected: str, default_port: int = DEFAULT_PORT) -> Address:
    """Host and port. Raises ValueError."""
    host, port = parts.hostname, parts.port
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{'no host' if not host else 'something after the port'}, {expected}")
    address = Address(parse_host(host), default_port if port is None else port)
    if isinstance(address.host, str):
        try:
            address.host.encode("idna")  # as the system's resolver is asked
        except UnicodeError:
            raise ValueError(f"a label of the host name must have 1 to 63 characters, {expected}") from None
    return address


def credentials_of(parts: SplitResult, expected: str) -> tuple[str | None, str | None]:
    """User name and password, decoded. Raises ValueError."""
    try:
        username = None if parts.username is None else unquote(parts.username, errors="strict")
        password = None if parts.password is None else unquote(parts.password, errors="strict")
    except ValueError:
        raise ValueError(f"this is not a URL, {expected}") from None
    return username, password


def query_of(parts: SplitResult, keys: tuple[str, ...]) -> dict[str, str]:
    """The query's keys and values, each once; a + stays a +, as in mixed+tls. Raises ValueError for others."""
    try:
        pairs = parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError("this is not a query, expected ?key=value&key=value") from None
    query = dict(pairs)
    unknown = next((key for key in query if key not in keys), None)
    if unknown is not None:
        raise ValueError(f"unknown key {unknown} in the query, expected one of {', '.join(keys)}")
    if len(query) < len(pairs) or not all(query.values()):
        raise ValueError(f"a key of the query twice or without a value, expected one of {', '.join(keys)}")
    return query
