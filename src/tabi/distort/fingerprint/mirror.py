"""Mirror: the destination sees the client's own hello, as near as a library here can send it.

Both libraries are tried, in memory, and the nearer one is taken: OpenSSL for clients that are built on it, BoringSSL
for Chrome and what is like it. Of others (GnuTLS, Java, Go, Firefox) it is the nearest; what is not the same is said.
"""

from __future__ import annotations

import logging
import ssl
from functools import cache
from hashlib import sha256

from tabi.distort.fingerprint.boring import captured_context, preset_context, probe
from tabi.distort.fingerprint.difference import RESUMPTION, Hello, differences, distance, read_body, read_hello
from tabi.distort.fingerprint.openssl import openssl_context
from tabi.distort.fingerprint.presets import MIRROR
from tabi.errors import RemoteProtocolError
from tabi.intercept.contexts import make_context
from tabi.intercept.tls import KNOWN, protocols_of, versions_of
from tabi.wire.client_hello import RANDOM_END, hello_body, take

log = logging.getLogger("tabi")

MOST = 8192
"""Octets of a hello that BoringSSL is asked to send too. Chrome's has 2,000."""


class Mirror:
    """The fingerprint of one kind of client. Two of the same kind are equal.

    Args:
        octets: the records with its hello.

    Raises:
        RemoteProtocolError: they do not carry one.
    """

    __slots__ = ("body", "key", "wanted")

    name = MIRROR

    def __init__(self, octets: bytes) -> None:
        self.body = hello_body(octets)
        self.wanted = read_body(self.body)
        self.key = kind_of(self.wanted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mirror) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def protocols(self) -> list[str]:
        """What is offered by ALPN: what the client offers, as far as `ssl` can take it."""
        names = (name.decode("latin-1") for name in self.wanted.hello.alpn)
        return [name for name in names if name.isascii() and name]

    def make(self) -> ssl.SSLContext:
        """See `TlsFingerprint`."""
        wanted, host = self.wanted, self.wanted.hello.sni
        contexts: list[ssl.SSLContext] = [openssl_context(wanted, self.protocols)]
        if len(self.body) <= MOST:
            try:
                contexts.append(captured_context(without_resumption(self.body)))
            except (ssl.SSLError, ValueError, RemoteProtocolError):
                pass
        hellos = [(seen(context, host), context) for context in contexts]
        found = [(distance(wanted, read_hello(sent)), sent, context) for sent, context in hellos if sent]
        _, sent, nearest = min(found, key=lambda one: one[0])
        text = self.differs(sent)
        if text:
            whose = "" if host is None else f" for {host}"
            log.info("mirror: the hello of the client%s is sent as near as can be, other are: %s", whose, text)
        return nearest

    def differs(self, sent: bytes) -> str:
        """See `TlsFingerprint`."""
        return "; ".join(differences(self.wanted, read_hello(sent)))


class Unmirrored(Mirror):
    """The fingerprint of a client that is not mirrored: tabi's own hello, with what the client offers."""

    __slots__ = ("offered",)

    def __init__(self, octets: bytes) -> None:
        super().__init__(octets)
        protocols = [name for name in protocols_of(self.wanted.hello) if name in KNOWN]
        self.offered = protocols, versions_of(self.wanted.hello)
        self.key = repr(self.offered).encode()

    def make(self) -> ssl.SSLContext:
        """See `TlsFingerprint`."""
        return make_context(*self.offered)


class Preset:
    """The fingerprint of a preset. Two with the same name and protocols are equal.

    Args:
        name: of the preset.
        protocols: to be offered by ALPN: the client must speak them.
    """

    __slots__ = ("name", "protocols")

    def __init__(self, name: str, protocols: tuple[str, ...]) -> None:
        self.name = name
        self.protocols = protocols

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preset) and (self.name, self.protocols) == (other.name, other.protocols)

    def __hash__(self) -> int:
        return hash((self.name, self.protocols))

    def make(self) -> ssl.SSLContext:
        """See `TlsFingerprint`."""
        return preset_context(self.name, self.protocols)

    def differs(self, sent: bytes) -> str:
        """See `TlsFingerprint`."""
        found = read_hello(sent)
        return "; ".join(differences(hello_of_preset(self.name, found.hello.sni is not None), found))


@cache
def hello_of_preset(name: str, named: bool) -> Hello:
    """What a preset sends, to a host with a name or to an address."""
    return read_hello(probe(preset_context(name), "name.test" if named else "127.0.0.1"))


def seen(context: ssl.SSLContext, host: str | None) -> bytes:
    """The hello that a context sends; empty if it cannot send any."""
    try:
        return probe(context, host)
    except (ssl.SSLError, ValueError):
        return b""


def kind_of(hello: Hello) -> bytes:
    """What all hellos of one kind of client have in common, as a hash."""
    return sha256(repr(hello.kind).encode()).digest()


def without_resumption(body: bytes) -> bytes:
    """A hello in one record, without what only makes sense toward whom the client has met before. Raises
    RemoteProtocolError."""
    _, at = take(body, RANDOM_END, 1)
    _, at = take(body, at, 2)
    _, at = take(body, at, 1)
    extensions, _ = take(body, at, 2)
    kept, place = b"", 0
    while place < len(extensions):
        _, end = take(extensions, place + 2, 2)
        if int.from_bytes(extensions[place : place + 2]) not in RESUMPTION:
            kept += extensions[place:end]
        place = end
    message = body[:at] + len(kept).to_bytes(2) + kept
    message = b"\1" + len(message).to_bytes(3) + message
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message
