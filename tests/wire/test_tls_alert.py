"""Alerts: what a client or a server of TLS makes of ours, and what we read in theirs."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hellos import client_hello
from tabi.errors import RemoteProtocolError
from tabi.wire.tls_alert import DESCRIPTIONS, Alert, decode_alert, encode_alert


@pytest.mark.parametrize("version", [0x0301, 0x0303, 0x0304])
def test_an_alert_as_it_is_sent(version: int) -> None:
    """Seven octets, fatal; TLS 1.3 calls itself 1.2 in records."""
    octets = encode_alert("access_denied", version)
    assert octets == b"\x15\3%c\0\2\2\x31" % min(version & 0xFF, 3)
    assert decode_alert(octets) == Alert(True, "access_denied")


@pytest.mark.parametrize("description", ["access_denied", "unrecognized_name", "handshake_failure", "internal_error"])
def test_openssl_understands_it(description: str) -> None:
    """A client that gets one in place of a ServerHello names it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="name.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    incoming.write(encode_alert(description))
    with pytest.raises(ssl.SSLError, match=description.replace("_", "[_ ]")):
        tls.do_handshake()


def test_an_alert_of_openssl() -> None:
    """What a server says to a client without a common version, octet by octet."""
    old = ssl.create_default_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(client_hello(context=old))
    with pytest.raises(ssl.SSLError):
        tls.do_handshake()
    octets = outgoing.read()
    assert [decode_alert(octets[:end]) for end in range(7)] == [None] * 7
    assert decode_alert(octets) == Alert(True, "protocol_version")


def test_other_alerts() -> None:
    """A warning, and a number without a name."""
    assert decode_alert(b"\x15\3\3\0\2\1\0and more") == Alert(False, "close_notify")
    assert decode_alert(b"\x15\3\3\0\2\2\xf0") == Alert(True, "240")


@pytest.mark.parametrize("octets", [b"\x16", b"\x15\2", b"\x15\3\3\0\3", b"\x15\3\3\0\2\3", b"\x15\3\3\0\x1a\0\0"])
def test_what_is_no_alert(octets: bytes) -> None:
    """Another record, another version, an encrypted alert, a level that does not exist."""
    with pytest.raises(RemoteProtocolError):
        decode_alert(octets)


def test_an_alert_that_does_not_exist() -> None:
    """A name is from the registry."""
    with pytest.raises(ValueError, match="'denied' is not an alert"):
        encode_alert("denied")


@given(st.sampled_from(sorted(DESCRIPTIONS)), st.integers(0, 6))
def test_what_was_written_is_read(description: str, end: int) -> None:
    """Every alert there and back; None while octets are missing."""
    octets = encode_alert(description)
    assert decode_alert(octets) == Alert(True, description)
    assert decode_alert(octets[:end]) is None


@given(st.binary(max_size=12))
def test_any_octets_give_an_alert_none_or_an_error(octets: bytes) -> None:
    """Nothing else comes out."""
    try:
        decode_alert(octets)
    except RemoteProtocolError:
        pass
