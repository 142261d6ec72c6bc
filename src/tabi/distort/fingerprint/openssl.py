"""Hellos of OpenSSL, by `ssl`: the same library as of curl, PHP, Python and Node, with the settings that a hello shows.

Groups, signature algorithms, the ciphers of TLS 1.3 and the order of extensions are the library's own: they are the
client's too, if that has a like version. Nothing is offered that this machine's OpenSSL would not use itself.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from functools import cache

from tabi.distort.fingerprint.difference import PADDING, TICKET, Hello

ENCRYPT_THEN_MAC, POST_HANDSHAKE_AUTH = 22, 49
OP_NO_ENCRYPT_THEN_MAC, OP_TLSEXT_PADDING = 1 << 19, 1 << 4
"""Options that `ssl` has no name for."""
TLS12, TLS13 = 0x0303, 0x0304

GOOD = "ALL:!aNULL:!eNULL:!EXPORT:!LOW:!DES:!3DES:!RC4:!MD5:!PSK:!SRP:!IDEA:!SEED"
"""What may be offered: never without encryption or proof of who answers, and nothing that is broken."""


@cache
def cipher_names() -> dict[int, str]:
    """OpenSSL's names of the ciphers of TLS 1.2 that may be offered, by their numbers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers(GOOD)
    ciphers = context.get_ciphers()
    return {one["id"] & 0xFFFF: one["name"] for one in ciphers if one["protocol"] != "TLSv1.3"}


def openssl_context(wanted: Hello, protocols: Sequence[str]) -> ssl.SSLContext:
    """A context of a client with a hello as near to this one as OpenSSL can.

    Args:
        wanted: the hello.
        protocols: to be offered by ALPN; none: no ALPN.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    versions, extensions = wanted.versions, wanted.extensions
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if TLS13 not in versions:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    elif TLS12 not in versions:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    names = cipher_names()
    ciphers = [names[number] for number in wanted.hello.ciphers if number in names]
    if ciphers:
        context.set_ciphers(":".join(ciphers))
    if TICKET not in extensions:
        context.options |= ssl.OP_NO_TICKET
    if ENCRYPT_THEN_MAC not in extensions:
        context.options |= OP_NO_ENCRYPT_THEN_MAC
    if PADDING not in extensions:
        context.options &= ~OP_TLSEXT_PADDING
    context.post_handshake_auth = POST_HANDSHAKE_AUTH in extensions
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context
