"""Other servers that hooks have asked in place of the destination: each is a request that passes the gate again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import monotonic

from tabi.ingress.gate import Gate
from tabi.intercept.contexts import ClientContexts, TlsSettings
from tabi.intercept.flow import Reroute
from tabi.intercept.inspection import Inspection
from tabi.intercept.reroute import Fetched, fetch
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared, connect_tls
from tabi.policy.limits import Lease
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.http_fields import Field


class Rerouting:
    """Asks other servers, by the rules, the guard and the limits of the session's client.

    Args:
        gate: decides on each.
        contexts: of TLS with them.
        shared: see `TlsShared`.
        connect: seconds until one is connected, with TLS.
        idle: seconds that may pass without an octet.
    """

    def __init__(self, gate: Gate, contexts: ClientContexts, shared: TlsShared, connect: float, idle: float) -> None:
        self.gate = gate
        self.contexts = contexts
        self.shared = shared
        self.connect = connect
        self.idle = idle

    async def fetch(
        self,
        inspection: Inspection,
        client: Stream,
        reroute: Reroute,
        method: str,
        fields: list[Field],
        content: bytes,
    ) -> Rerouted:
        """Ask for a URL; returns when the head of the answer is there. See `intercept.reroute.fetch`.

        Raises:
            PolicyDenied, LimitExceeded: the client may not go there.
            As `intercept.reroute.fetch`.
        """
        session = other_session(inspection.session)
        try:

            async def open_stream(destination: Address, tls: bool, via: str | None) -> Stream:
                return await self.open(inspection, session, client, destination, tls, via)

            found = await fetch(open_stream, reroute, method, fields, content, connect=self.connect, idle=self.idle)
        except BaseException:
            self.leave(session)
            raise
        return Rerouted(self, session, found)

    async def open(
        self,
        inspection: Inspection,
        session: Session,
        client: Stream,
        destination: Address,
        tls: bool,
        via: str | None,
    ) -> Stream:
        """Connect to another server, by the egress that was chosen, else as the rules say. Errors as `fetch`."""
        session.destination = destination
        egress, address_filter = self.gate.enter(session) or await self.gate.enter_slowly(session, client)
        if via is not None:
            egress = self.gate.made.find(via) if "://" in via else self.gate.egress(via)
        stream = await egress.open(destination, address_filter, session)
        try:
            if tls:
                rule = inspection.rule
                settings = TlsSettings(rule.verify, rule.trust, rule.certificate, rule.key)
                context = await self.contexts.get(settings, ("http/1.1",))
                await connect_tls(stream, context, destination.host, self.shared)
        except BaseException:
            stream.close()
            raise
        return stream

    def leave(self, session: Session) -> None:
        """A request is over."""
        lease, session.lease = session.lease, None
        if isinstance(lease, Lease):
            self.gate.leave(lease)


class Rerouted:
    """An answer of another server; see `intercept.reroute.Fetched`."""

    def __init__(self, rerouting: Rerouting, session: Session, found: Fetched) -> None:
        self.rerouting = rerouting
        self.session = session
        self.found = found
        self.status = found.status
        self.reason = found.reason
        self.fields = found.fields

    def content(self) -> AsyncIterator[bytes]:
        """What it carries, in pieces; see `Fetched.content`."""
        return self.found.content()

    async def aclose(self) -> None:
        """Close its connection."""
        try:
            await self.found.aclose()
        finally:
            self.rerouting.leave(self.session)


def other_session(session: Session) -> Session:
    """A session of the same client, for another request."""
    other = session.copy()
    other.begin(session.number, monotonic())
    other.command = "forward"
    other.watch = None
    return other
