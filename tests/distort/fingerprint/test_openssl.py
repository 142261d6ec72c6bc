"""Hellos of OpenSSL: each setting that a hello shows."""

from __future__ import annotations

import ssl

import pytest

from hellos import client_hello, extension, hello, numbers, vector
from tabi.distort.fingerprint.boring import probe
from tabi.distort.fingerprint.difference import Hello, read_hello
from tabi.distort.fingerprint.openssl import OP_NO_ENCRYPT_THEN_MAC, cipher_names, openssl_context


def mirrored(context: ssl.SSLContext, alpn: tuple[str, ...] = ()) -> tuple[Hello, Hello]:
    """The hello of a client, and ours."""
    octets = client_hello("a.example", alpn, context)
    wanted = read_hello(octets)
    return wanted, read_hello(probe(openssl_context(wanted, alpn), "a.example"))


def change(**attributes: object) -> ssl.SSLContext:
    """A client's context with other settings."""
    context = ssl.create_default_context()
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


@pytest.mark.parametrize(
    "context",
    [
        change(),
        change(minimum_version=ssl.TLSVersion.TLSv1_2),
        change(minimum_version=ssl.TLSVersion.TLSv1_3),
        change(minimum_version=ssl.TLSVersion.TLSv1_2, maximum_version=ssl.TLSVersion.TLSv1_2),
        change(options=ssl.OP_ALL | ssl.OP_NO_TICKET),
        change(options=ssl.OP_ALL | OP_NO_ENCRYPT_THEN_MAC),
        change(options=ssl.Options(0)),
        change(post_handshake_auth=True),
    ],
)
@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
def test_settings_of_a_client_are_found_again(context: ssl.SSLContext, alpn: tuple[str, ...]) -> None:
    """The hello is the same, but for versions below TLS 1.2."""
    wanted, sent = mirrored(context, alpn)
    assert (sent.hello.ja3, sent.hello.ja4) == (wanted.hello.ja3, wanted.hello.ja4)


def test_ciphers_keep_their_order() -> None:
    """Those of TLS 1.2; those of 1.3 are the library's."""
    context = ssl.create_default_context()
    context.set_ciphers("AES256-SHA:ECDHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-SHA")
    wanted, sent = mirrored(context)
    assert sent.hello.ciphers == wanted.hello.ciphers


def test_what_is_broken_has_no_name() -> None:
    """So that it cannot be offered."""
    words = " ".join(cipher_names().values())
    for broken in ("NULL", "RC4", "DES", "MD5", "ADH", "AECDH", "EXP", "PSK", "SRP"):
        assert broken not in words
    assert 0xC02F in cipher_names()


def test_without_a_cipher_that_may_be_offered_they_are_our_own() -> None:
    """OpenSSL would offer none."""
    wanted = read_hello(hello(extension(43, vector(1, numbers(0x0303))), ciphers=numbers(5)))
    context = openssl_context(wanted, ())
    assert context.maximum_version is ssl.TLSVersion.TLSv1_2
    assert len(read_hello(probe(context, None)).hello.ciphers) > 10


def test_it_verifies() -> None:
    """As any context for clients."""
    context = openssl_context(read_hello(client_hello()), ())
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
