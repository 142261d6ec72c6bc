"""Alerts of TLS as they are sent before anything is encrypted (RFC 8446 section 6). No I/O.

+------+---------+--------+-------+-------------+
| TYPE | VERSION | LENGTH | LEVEL | DESCRIPTION |    TYPE: 21, LENGTH: 2, LEVEL: 1 warning, 2 fatal
+------+---------+--------+-------+-------------+
|  1   |    2    |   2    |   1   |      1      |
+------+---------+--------+-------+-------------+
"""

from __future__ import annotations

from typing import NamedTuple

from tabi.errors import RemoteProtocolError

ALERT, WARNING, FATAL = 21, 1, 2
SIZE = 7
"""Octets of a record with an alert."""
LENGTH = b"\0\2"
TLS12 = 0x0303

DESCRIPTIONS = {
    "close_notify": 0,
    "unexpected_message": 10,
    "bad_record_mac": 20,
    "record_overflow": 22,
    "handshake_failure": 40,
    "no_certificate": 41,
    "bad_certificate": 42,
    "unsupported_certificate": 43,
    "certificate_revoked": 44,
    "certificate_expired": 45,
    "certificate_unknown": 46,
    "illegal_parameter": 47,
    "unknown_ca": 48,
    "access_denied": 49,
    "decode_error": 50,
    "decrypt_error": 51,
    "protocol_version": 70,
    "insufficient_security": 71,
    "internal_error": 80,
    "inappropriate_fallback": 86,
    "user_canceled": 90,
    "no_renegotiation": 100,
    "missing_extension": 109,
    "unsupported_extension": 110,
    "unrecognized_name": 112,
    "bad_certificate_status_response": 113,
    "unknown_psk_identity": 115,
    "certificate_required": 116,
    "no_application_protocol": 120,
    "ech_required": 121,
}
"""The registry of the IANA, without what is for TLS 1.0 and before only."""

NAMES = {number: name for name, number in DESCRIPTIONS.items()}


class Alert(NamedTuple):
    """What a peer says."""

    fatal: bool
    description: str
    """Its name in the registry; the number as text where it has none."""


def encode_alert(description: str, version: int = TLS12) -> bytes:
    """A record with a fatal alert. ``version`` is that of the hello that it answers; TLS 1.3 calls itself 1.2 here.

    Raises:
        ValueError: no alert has this name.
    """
    if description not in DESCRIPTIONS:
        raise ValueError(f"{description!r} is not an alert of TLS")
    return b"%c%b%b%c%c" % (ALERT, min(version, TLS12).to_bytes(2), LENGTH, FATAL, DESCRIPTIONS[description])


def decode_alert(data: bytes) -> Alert | None:
    """Read the record that ``data`` begins with; None while octets of it are missing.

    Raises:
        RemoteProtocolError: it is not an alert, or an encrypted one.
    """
    if not (bytes((ALERT, 3)).startswith(data[:2]) and LENGTH.startswith(data[3:5]) and data[5:6] in b"\1\2"):
        raise RemoteProtocolError("TLS: this is not an alert that can be read")
    if len(data) < SIZE:
        return None
    return Alert(data[5] == FATAL, NAMES.get(data[6], str(data[6])))
