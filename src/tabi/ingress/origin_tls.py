"""TLS with the destinations of requests for https:// and wss://, which some clients leave to the proxy.

The certificate has to be of an authority that the system trusts and to name the host: the client cannot see it.
"""

from __future__ import annotations

import asyncio
import ssl
from time import monotonic

from tabi.egress.chain import HTTP_PROTOCOLS, trusting_system
from tabi.errors import RemoteProtocolError, TabiError
from tabi.net.failures import is_deadline, timeout_error
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared, connect_tls
from tabi.relay.exchange import ExchangeFailed
from tabi.wire.address import Address


class OriginTls:
    """Puts TLS on connections to destinations.

    Args:
        shared: see `TlsShared`.
        seconds: of a connection with its handshake (``timeouts.connect``).
    """

    def __init__(self, shared: TlsShared, seconds: float) -> None:
        self.shared = shared
        self.seconds = seconds
        self.context: ssl.SSLContext | None = None
        self.loading = asyncio.Lock()

    async def put_on(self, stream: Stream, destination: Address, began: float) -> None:
        """Shake hands with a destination. After an error the stream is closed.

        Args:
            stream: leads there.
            destination: whose host the certificate must name.
            began: when the deadline began, of `time.monotonic`.

        Raises:
            ExchangeFailed: the handshake has failed, or the certificate is not accepted.
            ConnectTimeout: it took too long.
        """
        try:
            async with asyncio.timeout(began + self.seconds - monotonic()):
                context = self.context or await self.load()
                await connect_tls(stream, context, destination.host, self.shared)
        except BaseException as exc:
            stream.close()
            if is_deadline(exc):
                raise timeout_error(self.seconds, destination) from None
            if isinstance(exc, RemoteProtocolError):
                raise ExchangeFailed(502, error_type(exc.__cause__), f"{destination}: {exc}") from exc
            if isinstance(exc, OSError) and not isinstance(exc, TabiError):
                text = (exc.strerror or str(exc)).lower()
                raise ExchangeFailed(502, "connection_terminated", f"{destination}: {text}") from exc
            raise

    async def load(self) -> ssl.SSLContext:
        """The context, made at its first use, in a thread: to read the system's authorities takes 30 ms."""
        async with self.loading:
            if self.context is None:
                self.context = await asyncio.to_thread(trusting_system, None, HTTP_PROTOCOLS)
        return self.context


def error_type(cause: BaseException | None) -> str:
    """The error type of RFC 9209 section 2.3 for what OpenSSL says."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "tls_certificate_error"
    alert = isinstance(cause, ssl.SSLError) and "_ALERT_" in (cause.reason or "")
    return "tls_alert_received" if alert else "tls_protocol_error"
