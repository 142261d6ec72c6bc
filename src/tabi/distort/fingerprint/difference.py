"""What is not the same in two hellos, in words. Keys, tickets and names do not count. Of GREASE only
that there is some does.

Extensions of resumption (pre_shared_key, early_data) are left out: a client that comes back has them toward us alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tabi.wire.client_hello import (
    ALPN,
    GREASE,
    GROUPS,
    POINT_FORMATS,
    SERVER_NAME,
    SIGNATURE_ALGORITHMS,
    VERSIONS,
    ClientHello,
    decode_hello,
    extensions_of,
    hello_body,
    take,
    without_grease,
)

TICKET, PRE_SHARED_KEY, EARLY_DATA, COOKIE, KEY_SHARE, ENCRYPTED_HELLO = 35, 41, 42, 44, 51, 65037
PADDING, TRUST_ANCHORS = 21, 51764
RESUMPTION = frozenset((PRE_SHARED_KEY, EARLY_DATA))
LOWEST = 0x0303
"""TLS 1.2: what is older is never offered."""
LOOKED_AT = frozenset((ALPN, GROUPS, POINT_FORMATS, SIGNATURE_ALGORITHMS, VERSIONS, KEY_SHARE))
CHANGES = frozenset((SERVER_NAME, TICKET, COOKIE, ENCRYPTED_HELLO, PADDING, TRUST_ANCHORS))
"""Extensions whose content is another one for each hello."""


class Hello(NamedTuple):
    """A hello, as far as two are compared."""

    hello: ClientHello
    contents: dict[int, bytes]
    """Of its extensions."""

    @property
    def extensions(self) -> list[int]:
        """Those that mean something, but for resumption's."""
        return [kind for kind in without_grease(self.hello.extensions) if kind not in RESUMPTION]

    @property
    def versions(self) -> list[int]:
        """Those that we may offer too."""
        found = without_grease(self.hello.versions) or [self.hello.version]
        return [version for version in found if version >= LOWEST]

    @property
    def greases(self) -> bool:
        """Whether there is GREASE among the ciphers, as of Chrome, Safari, and what is made like them."""
        return not GREASE.isdisjoint(self.hello.ciphers)

    @property
    def key_shares(self) -> list[int]:
        """The groups that it has keys of."""
        data, at, found = self.contents.get(KEY_SHARE, b"\0\0")[2:], 0, []
        while at + 4 <= len(data):
            found.append(int.from_bytes(data[at : at + 2]))
            _, at = take(data, at + 2, 2)
        return [group for group in found if group not in GREASE]

    @property
    def fixed(self) -> dict[int, bytes]:
        """Contents that are the same in each hello of one client."""
        passed = LOOKED_AT | CHANGES | RESUMPTION | GREASE
        return {kind: content for kind, content in self.contents.items() if kind not in passed}

    @property
    def kind(self) -> tuple[object, ...]:
        """What all hellos of one client have in common. Those with GREASE have an order of their own each time."""
        hello, extensions = self.hello, self.extensions
        return (
            hello.version,
            tuple(without_grease(hello.ciphers)),
            tuple(sorted(extensions) if self.greases else extensions),
            hello.alpn,
            tuple(without_grease(hello.versions)),
            tuple(without_grease(hello.groups)),
            hello.point_formats,
            tuple(without_grease(hello.signature_algorithms)),
            tuple(self.key_shares),
            self.greases,
            tuple(sorted(self.fixed.items())),
        )


def read_hello(octets: bytes) -> Hello:
    """The hello that records carry. Raises RemoteProtocolError."""
    return read_body(hello_body(octets))


def read_body(body: bytes) -> Hello:
    """The same without the head of the message. Raises RemoteProtocolError."""
    return Hello(decode_hello(body), extensions_of(body))


def differences(wanted: Hello, sent: Hello) -> Iterator[str]:
    """What is not in ``sent`` as it is in ``wanted``."""
    one, other = wanted.hello, sent.hello
    if wanted.versions != sent.versions or bool(one.versions) != bool(other.versions):
        yield "versions"
    elif any(version < LOWEST for version in without_grease(one.versions)):
        yield "versions below TLS 1.2"
    yield from listed("ciphers", without_grease(one.ciphers), without_grease(other.ciphers))
    if wanted.greases != sent.greases:
        yield "GREASE"
    before, after = wanted.extensions, sent.extensions
    missing, added = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    if missing:
        yield f"without the extensions {', '.join(map(str, missing))}"
    if added:
        yield f"with the extensions {', '.join(map(str, added))}"
    if not missing and not added and before != after and not wanted.greases:
        yield "order of extensions"
    yield from listed("groups", without_grease(one.groups), without_grease(other.groups))
    yield from listed("key shares", wanted.key_shares, sent.key_shares)
    yield from listed(
        "signature algorithms",
        without_grease(one.signature_algorithms),
        without_grease(other.signature_algorithms),
    )
    if one.alpn != other.alpn:
        yield "ALPN"
    both = set(before) & set(after)
    contents = [k for k in sorted(both & wanted.fixed.keys()) if wanted.contents[k] != sent.contents[k]]
    if one.point_formats != other.point_formats and POINT_FORMATS in both:
        contents.append(POINT_FORMATS)
    if contents:
        yield f"contents of the extensions {', '.join(map(str, contents))}"


def listed(what: str, wanted: list[int], sent: list[int]) -> Iterator[str]:
    """Whether two lists differ, or only their order does."""
    if wanted != sent:
        yield what if sorted(wanted) != sorted(sent) else f"order of {what}"


def distance(wanted: Hello, sent: Hello) -> tuple[bool, int, int]:
    """How far a hello is from another one: another JA4, how many differences, how many ciphers and extensions."""
    ciphers = set(without_grease(wanted.hello.ciphers)) ^ set(without_grease(sent.hello.ciphers))
    extensions = set(wanted.extensions) ^ set(sent.extensions)
    count = sum(1 for _ in differences(wanted, sent))
    return wanted.hello.ja4 != sent.hello.ja4, count, len(ciphers) + len(extensions)
