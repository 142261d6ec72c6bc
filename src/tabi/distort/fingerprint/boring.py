"""Hellos of Chrome, by BoringSSL: contexts and connections of `utls` that are used as those of `ssl`.

What is not the same in both is made the same here: where trusted authorities are read from, how octets wait in memory,
and what errors say. utls takes an alert for a certificate that is not accepted, if it verifies; here only what has a
code of its own is one, all else ends the handshake.

Imports utls, and is imported only where that is wanted.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from typing import Any

import utls

from tabi.wire.client_hello import RECORD_HEAD
from tabi.wire.tls_alert import NAMES

REASON = re.compile("OPENSSL_internal:([A-Z0-9_]+)")
"""Why BoringSSL has failed, in its messages."""

NOTHING_VERIFIED = (None, 0, 65)
"""Codes of BoringSSL's that say nothing of a certificate: 65 (X509_V_ERR_INVALID_CALL) is what there is before one has
come."""

ALERT_RECORD = b"\x15\x03"
H2, ALPS = "h2", (17513, 17613)
"""Extensions with settings of the protocols of ALPN, the old and the new number."""
ALPN = 16
SHA1 = (0x0201, 0x0203)
"""Signature algorithms that BoringSSL still has, and the OpenSSL of most systems has not: of RSA and of ECDSA."""


class BoringObject:
    """A connection, with the part of `ssl.SSLObject` that `net.tls` uses.

    Args:
        tls: works on memory of its own: utls would take all that has come and not say that it waits.
        below, above: that memory, for what has come and for what is to be sent.
        incoming, outgoing: of `net.tls`.
    """

    __slots__ = ("above", "ahead", "alert", "below", "incoming", "outgoing", "tls")

    def __init__(
        self,
        tls: utls.SSLObject,
        below: utls.MemoryBIO,
        above: utls.MemoryBIO,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self.tls = tls
        self.below = below
        self.above = above
        self.incoming = incoming
        self.outgoing = outgoing
        self.alert: int | None = None  # that the peer has sent in the clear
        self.ahead: bytes | ssl.SSLError | None = None  # what the next read finds: an end is empty

    def pull(self) -> None:
        """Take what has come."""
        if self.incoming.pending:
            self.below.write(self.incoming.read())

    def push(self) -> None:
        """Give what is to be sent."""
        if self.above.pending:
            self.outgoing.write(self.above.read())

    def do_handshake(self) -> None:
        """As that of `ssl.SSLObject`, and so are all the others."""
        data = self.incoming.read()
        if data.startswith(ALERT_RECORD) and len(data) == RECORD_HEAD + 2:
            self.alert = data[-1]
        if data:
            self.below.write(data)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLCertVerificationError as exc:
            if exc.verify_code in NOTHING_VERIFIED:
                raise self.failure(exc) from exc
            raise
        except ssl.SSLError as exc:
            raise self.failure(exc) from exc
        finally:
            self.push()

    def failure(self, exc: ssl.SSLError) -> ssl.SSLError:
        """An error in the words of OpenSSL."""
        name = NAMES.get(self.alert) if self.alert is not None else None
        if name is not None:
            return error_of(f"TLSV1_ALERT_{name.upper()}")
        return error_of(reason_of(exc) or "HANDSHAKE_FAILED")

    def read(self, size: int, buffer: Any = None) -> Any:
        if self.ahead is not None:
            return self.read_ahead(buffer)
        self.pull()
        try:
            found = self.tls.read(size, buffer)
            if found and not self.pending():
                self.look_ahead()
            return found
        finally:
            self.push()

    def look_ahead(self) -> None:
        """utls reads until nothing is left, and keeps an end or an error to itself that is behind octets."""
        try:
            self.ahead = self.tls.read(1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            self.ahead = exc

    def read_ahead(self, buffer: Any) -> Any:
        """What `look_ahead` has found."""
        ahead, self.ahead = self.ahead, None
        if isinstance(ahead, ssl.SSLError):
            raise ahead
        if buffer is None:
            return ahead
        assert ahead is not None
        memoryview(buffer)[: len(ahead)] = ahead
        return len(ahead)

    def write(self, data: bytes | memoryview) -> int:
        try:
            return self.tls.write(bytes(data))
        finally:
            self.push()

    def unwrap(self) -> None:
        self.pull()
        try:
            if not self.tls.unwrap():
                raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the peer has not ended")
        finally:
            self.push()

    def pending(self) -> int:
        return self.tls.pending() or self.below.pending or (self.ahead is not None)

    def selected_alpn_protocol(self) -> str | None:
        return self.tls.selected_alpn_protocol()

    def cipher(self) -> tuple[str, str, int] | None:
        return self.tls.cipher()

    def version(self) -> str | None:
        return self.tls.version()

    def getpeercert(self, binary_form: bool = False) -> Any:
        return self.tls.getpeercert(binary_form)


class BoringContext(utls.SSLContext):
    """A context of a client. It verifies certificates and their names, as one of `ssl` does."""

    def __init__(self, protocol: int = utls.PROTOCOL_TLS_CLIENT) -> None:
        super().__init__(protocol)
        self.minimum_version = utls.TLSVersion.TLSv1_2
        self.verify_mode = utls.CERT_REQUIRED
        self.check_hostname = True

    def load_default_certs(self, purpose: object = None) -> None:
        """Trust those whom `ssl` trusts: utls itself has authorities of its own where the system has none."""
        paths = ssl.get_default_verify_paths()
        for key, path in (("cafile", paths.cafile), ("capath", paths.capath)):
            if path is not None and os.path.exists(path):
                try:
                    self.load_verify_locations(**{key: path})
                except ssl.SSLError:
                    pass  # as `ssl`: nobody in there is trusted then

    def load_verify_locations(self, cafile: Any = None, capath: Any = None, cadata: Any = None) -> None:
        """Errors are those of `ssl`."""
        if cafile is not None:
            with open(cafile, "rb"):
                pass
        super().load_verify_locations(cafile, capath, cadata)

    def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: object = None) -> None:
        """Errors are those of `ssl`. It never asks for a passphrase."""
        try:
            super().load_cert_chain(certfile, keyfile)
        except ssl.SSLError as exc:
            raise error_of(reason_of(exc)) from exc

    def wrap_bio(  # type: ignore[override]  # its part that `net.tls` uses
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *, server_hostname: str | None = None
    ) -> BoringObject:
        """As that of `ssl.SSLContext`. Raises ValueError: the name cannot be one of a certificate."""
        if server_hostname is not None:
            server_hostname.encode("idna")  # as `ssl` does
        below, above = utls.MemoryBIO(), utls.MemoryBIO()
        try:
            tls = super().wrap_bio(below, above, server_hostname=server_hostname)
        except ssl.SSLError as exc:
            raise ValueError(str(exc)) from exc
        return BoringObject(tls, below, above, incoming, outgoing)


def reason_of(exc: ssl.SSLError) -> str | None:
    """Why BoringSSL has failed, the first of its reasons."""
    found = REASON.search(str(exc))
    return None if found is None else found[1]


def error_of(reason: str | None) -> ssl.SSLError:
    """An error as OpenSSL gives it."""
    error = ssl.SSLError(ssl.SSL_ERROR_SSL, f"[SSL] {(reason or 'failed').replace('_', ' ').lower()} (_ssl.c:0)")
    error.reason = reason  # type: ignore[assignment]
    return error


def preset_context(name: str, protocols: Sequence[str] | None = None) -> BoringContext:
    """A context with the hello of a preset.

    Args:
        name: of the preset.
        protocols: to be offered by ALPN; none: no ALPN. Default: the preset's own.
    """
    fingerprint = utls.Fingerprint.from_preset(name)
    data = fingerprint.to_dict()
    if protocols is not None and tuple(protocols) != tuple(data["alpn"]):
        fingerprint = utls.Fingerprint.from_dict(data | with_protocols(data, protocols))
    return with_fingerprint(fingerprint)


def with_protocols(data: dict[str, Any], protocols: Sequence[str]) -> dict[str, Any]:
    """What of a fingerprint is another with other protocols: Chrome has settings of h2 only where it offers that."""
    absent = {ALPN} if not protocols else set()
    if H2 not in protocols:
        absent |= set(ALPS)
    return {
        "alpn": list(protocols),
        "alps": [name for name in data["alps"] if name in protocols],
        "extensions_order": [kind for kind in data["extensions_order"] if kind not in absent],
    }


def captured_context(records: bytes) -> BoringContext:
    """A context with the hello that records carry, as near as BoringSSL can; without signatures that are broken.

    Raises:
        ssl.SSLError, ValueError: it cannot at all; the connection may say so, too.
    """
    fingerprint = utls.Fingerprint.from_capture(records)
    data = fingerprint.to_dict()
    algorithms = [number for number in data["signature_algorithms"] if number not in SHA1]
    if algorithms != data["signature_algorithms"]:
        fingerprint = utls.Fingerprint.from_dict(data | {"signature_algorithms": algorithms})
    return with_fingerprint(fingerprint)


def with_fingerprint(fingerprint: utls.Fingerprint) -> BoringContext:
    """A context with a fingerprint."""
    context = BoringContext()
    context.set_fingerprint(fingerprint)
    return context


def probe(context: Any, host: str | None) -> bytes:
    """The hello that a context would send to a host. Raises ssl.SSLError and ValueError: it cannot."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    checks, context.check_hostname = context.check_hostname, False
    try:
        context.wrap_bio(incoming, outgoing, server_hostname=host).do_handshake()
    except ssl.SSLWantReadError:
        pass
    finally:
        context.check_hostname = checks
    return outgoing.read()
