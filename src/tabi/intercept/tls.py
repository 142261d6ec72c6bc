"""TLS of an intercepted session: first with the destination, then with the client, with what the destination chose."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from time import time
from typing import NamedTuple

from tabi.errors import ConfigError, RemoteProtocolError, TabiError
from tabi.intercept.authority import Verdict, verdict_of
from tabi.intercept.contexts import ClientContexts, ServerContexts, TlsSettings, Versions
from tabi.intercept.events import TlsInfo
from tabi.intercept.fingerprints import TlsFingerprint
from tabi.intercept.pinning import REFUSALS
from tabi.intercept.sent import WatchedContext
from tabi.net.failures import is_deadline
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared, accept_tls, connect_tls, reason_of
from tabi.policy.intercepts import InterceptRule
from tabi.policy.networks import network_of
from tabi.session import Session
from tabi.wire.address import Host, make_host
from tabi.wire.client_hello import ClientHello
from tabi.wire.tls_alert import DESCRIPTIONS

KNOWN = ("h2", "http/1.1")
"""The ALPN protocols that are looked into."""

TLS13 = 0x0304

FINGERPRINT_BOUND = 32
"""Contexts with a fingerprint that are kept. One that trusts the system's authorities has 1 MB of them."""

OF_CERTIFICATE = {
    Verdict.EXPIRED: "certificate_expired",
    Verdict.NOT_YET_VALID: "certificate_expired",
    Verdict.UNKNOWN_ISSUER: "unknown_ca",
    Verdict.SELF_SIGNED: "unknown_ca",
}

OF_VERSION = ("unsupported protocol", "wrong ssl version")
"""What OpenSSL says of a peer with no version of TLS that is good enough."""

Reopen = Callable[[], Awaitable[Stream]]
"""Opens the destination once more, by the same egress. Raises TabiError and OSError."""


class HandshakeFailed(TabiError):
    """TLS with one side has failed.

    Attributes:
        side: ``client`` or ``server``.
        kind: ``transport``: the connection broke, or took too long; ``tls``; ``trust``: a certificate was refused.
        alert: what the other side is to be told (RFC 8446 section 6).
    """

    def __init__(self, side: str, kind: str, message: str, alert: str = "internal_error") -> None:
        super().__init__(message)
        self.side = side
        self.kind = kind
        self.alert = alert


class Opened(NamedTuple):
    """TLS with a destination.

    Attributes:
        sent: our hello, if it was to be kept; else empty.
        fingerprint: that it was to have.
    """

    server: Stream
    tls: ssl.SSLObject
    verdict: Verdict
    sent: bytes = b""
    fingerprint: TlsFingerprint | None = None


class Handshakes:
    """Shakes hands with both sides.

    Their TLS is ``silent``: a limit, a deadline or our own end cuts what is inside, and must not look like its end.

    Args:
        server_contexts: toward clients.
        client_contexts: toward destinations.
        shared: see `TlsShared`.
        connect: seconds for the handshake with a destination.
        handshake: seconds for the handshake with a client.
    """

    def __init__(
        self,
        server_contexts: ServerContexts,
        client_contexts: ClientContexts,
        shared: TlsShared,
        connect: float,
        handshake: float,
    ) -> None:
        self.server_contexts = server_contexts
        self.client_contexts = client_contexts
        self.fingerprint_contexts = ClientContexts(FINGERPRINT_BOUND)  # apart: clients choose how many there are to be
        self.shared = shared
        self.connect = connect
        self.handshake = handshake

    async def open(
        self,
        server: Stream,
        rule: InterceptRule,
        hello: ClientHello,
        host: Host,
        reopen: Reopen,
        fingerprint: TlsFingerprint | None = None,
        keep: bool = False,
    ) -> Opened:
        """Shake hands with the destination. After an error its stream is closed.

        A certificate that is not accepted ends a handshake; to see it, so that the client gets one that is as bad, the
        destination is opened again.

        Args:
            server: leads there.
            rule: has chosen the session.
            hello: of the client: what it offers is offered.
            host: that the certificate must name.
            reopen: see `Reopen`.
            fingerprint: what our hello is to look like. Default: as OpenSSL has it, with what the client offers.
            keep: whether it is kept for `Opened.sent`, as it is with a fingerprint.

        Raises:
            HandshakeFailed: it has failed.
        """
        settings = TlsSettings(rule.verify, rule.trust, rule.certificate, rule.key)
        protocols, versions = protocols_of(hello), versions_of(hello)
        contexts = self.client_contexts if fingerprint is None else self.fingerprint_contexts
        verdict, sent = Verdict.GOOD if rule.verify else Verdict.UNVERIFIED, None
        try:
            async with asyncio.timeout(self.connect):
                while True:
                    context = contexts.get_nowait(settings, protocols, versions, fingerprint)
                    if context is None:
                        context = await contexts.get(settings, protocols, versions, fingerprint)
                    if keep or fingerprint is not None:
                        sent = WatchedContext(context)
                    try:
                        sock = await connect_tls(server, sent or context, host, self.shared)
                    except RemoteProtocolError as exc:
                        if not isinstance(exc.__cause__, ssl.SSLCertVerificationError) or not settings.verify:
                            raise
                        verdict = verdict_of(exc.__cause__)
                        if rule.on_invalid == "alert":
                            alert = OF_CERTIFICATE.get(verdict, "bad_certificate")
                            raise HandshakeFailed("server", "trust", str(exc), alert) from exc
                        settings = settings.after(verdict)
                    else:
                        sock.silent = True
                        return Opened(server, sock.tls, verdict, sent.sent if sent else b"", fingerprint)
                    server.close()
                    server = await reopen()
        except BaseException as exc:
            server.close()
            raise explained(exc, "server", self.connect) from exc

    async def accept(self, client: Stream, session: Session, opened: Opened, host: Host) -> ssl.SSLObject:
        """Shake hands with the client, as the destination did with us; its hello is read from the stream again.

        Raises:
            HandshakeFailed: it has failed; the client was told.
        """
        der = opened.tls.getpeercert(True)
        alpn = opened.tls.selected_alpn_protocol()
        try:
            context = self.server_contexts.get(der, opened.verdict, str(host), alpn, time())
            async with asyncio.timeout(self.handshake):
                sock = await accept_tls(client, context, self.shared, network_of(session.client))
                sock.silent = True
        except BaseException as exc:
            raise explained(exc, "client", self.handshake) from exc
        return sock.tls


def explained(exc: BaseException, side: str, seconds: float) -> BaseException:
    """What a handshake with one side failed with, as HandshakeFailed; a cancellation stays one."""
    if isinstance(exc, HandshakeFailed):
        return exc
    if is_deadline(exc):
        return HandshakeFailed(side, "transport", f"TLS with the {side}: not done within {seconds:g} s")
    if isinstance(exc, RemoteProtocolError):
        alert = alert_of(exc.__cause__)
        trust = isinstance(exc.__cause__, ssl.SSLCertVerificationError) or alert in REFUSALS
        return HandshakeFailed(side, "trust" if trust else "tls", str(exc), alert or "handshake_failure")
    if isinstance(exc, ConfigError):
        return HandshakeFailed(side, "tls", f"{exc.path}: {exc.message}" if exc.path else exc.message)
    if isinstance(exc, TabiError):
        return HandshakeFailed(side, "transport", str(exc))
    if isinstance(exc, OSError):
        return HandshakeFailed(side, "transport", f"TLS with the {side}: {(exc.strerror or str(exc)).lower()}")
    return exc


def alert_of(cause: BaseException | None) -> str | None:
    """The alert that the peer has sent, or that its version is due, by what OpenSSL says; None if it is neither."""
    if not isinstance(cause, ssl.SSLError):
        return None
    words = reason_of(cause)
    if words in OF_VERSION:
        return "protocol_version"
    protocol, found, name = words.partition(" alert ")
    if not found:
        protocol, _, name = words.partition(" ")
    name = name.replace(" ", "_")
    return name if name in DESCRIPTIONS and protocol.startswith(("tls", "ssl")) else None


def protocols_of(hello: ClientHello) -> tuple[str, ...]:
    """What to offer a destination: of the client's protocols those that are known, or all if none is."""
    offered = tuple(name.decode("latin-1") for name in hello.alpn)
    known = tuple(name for name in KNOWN if name in offered)
    return known or offered[:4]


def versions_of(hello: ClientHello) -> Versions:
    """The versions of TLS to offer a destination."""
    if TLS13 not in hello.versions:
        return "1.2"
    return "both" if 0x0303 in hello.versions else "1.3"


def info_of(opened: Opened, hello: ClientHello) -> TlsInfo:
    """What hooks see of TLS."""
    return TlsInfo(opened.tls, hello, opened.verdict.name.lower(), opened.sent, opened.fingerprint)


def host_of(hello: ClientHello, session: Session) -> Host:
    """The name that the destination's certificate must have: what the client asks for inside TLS, else outside."""
    assert session.destination is not None
    return session.destination.host if hello.sni is None else make_host(hello.sni)
