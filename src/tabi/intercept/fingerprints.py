"""Fingerprints: what destinations see of TLS and HTTP in place of what is ours. This is the seam; `distort` fills it.

A session without one pays nothing: `Interception.fingerprints` is None, or `choose` says None.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple, Protocol

from tabi.intercept.hooks import Hooks
from tabi.intercept.http2_stream import Inspector
from tabi.intercept.sent import WatchedRelay
from tabi.session import Session
from tabi.wire.client_hello import ClientHello


class TlsFingerprint(Protocol):
    """What the hello to a destination looks like. Equal ones share a context, so it is hashable."""

    @property
    def name(self) -> str:
        """As it stands in the configuration."""

    def make(self) -> ssl.SSLContext:
        """A context for clients with that hello; it verifies, and trusts nobody yet. Called in a thread."""

    def differs(self, sent: bytes) -> str:
        """What is not as it was to be in a hello that was sent, in words; empty if all is."""


class HttpFingerprint(Protocol):
    """What a destination sees of HTTP."""

    def around(self, hooks: Hooks) -> Hooks:
        """The same hooks, with one behind them that puts the fields of HTTP/1 in order."""

    def make_relay(self, inspector: Inspector, strip_alt_svc: bool) -> WatchedRelay:
        """What relays HTTP/2."""


class Fingerprint(NamedTuple):
    """What the destination of one session sees. None: what is ours, and of HTTP what is the client's."""

    tls: TlsFingerprint | None = None
    http: HttpFingerprint | None = None


class Fingerprints(Protocol):
    """Chooses."""

    def choose(self, session: Session, hello: ClientHello | None = None, octets: bytes = b"") -> Fingerprint | None:
        """What the destination of a session is to see.

        Args:
            session: is intercepted.
            hello: of its client; None without TLS.
            octets: that carry it.
        """
