"""Refuses QUIC where an ``[[intercept]]`` says so: clients then fall back to TCP, which can be looked into.

A datagram that is dropped is counted as ``denied``, and the client hears nothing, as from a firewall. The name in the
ClientHello counts as in TLS: an entry that exempts a name exempts its QUIC too.
"""

from __future__ import annotations

from tabi.intercept.quic import LONG, QuicConnections, begins_quic
from tabi.policy.intercepts import InterceptRule, Intercepts
from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Emit, Inspect, pass_on
from tabi.session import Session
from tabi.wire.address import Address


def refuses(intercept: InterceptRule | None) -> bool:
    """Whether an entry refuses QUIC."""
    return intercept is not None and intercept.action == "intercept" and intercept.quic == "refuse"


class QuicFilter(DatagramInspector):
    """Drops what begins a connection of QUIC that an entry refuses.

    Args:
        intercepts: the entries; replaced by a reload.
        inner: sees all other datagrams.
    """

    def __init__(self, intercepts: Intercepts, inner: DatagramInspector | None = None) -> None:
        self.intercepts = intercepts
        self.inner = inner

    def begin(self, session: Session) -> Inspect | None:
        """See `DatagramInspector`: an association that no entry can refuse QUIC in is left to the inner inspector."""
        then = None if self.inner is None else self.inner.begin(session)
        if not self.intercepts.may_match(session, refuses):
            return then
        return FilteredAssociation(self, session, then or pass_on).inspect


class FilteredAssociation:
    """The datagrams of one association.

    Args:
        owner: has the entries.
        session: of the association.
        then: what sees the datagrams that are not dropped.
    """

    def __init__(self, owner: QuicFilter, session: Session, then: Inspect) -> None:
        self.owner = owner
        self.session = session
        self.then = then
        self.connections = QuicConnections()

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        """See `DatagramInspector`."""
        payload = datagram.payload
        if datagram.direction == "up" and payload and payload[0] & LONG == LONG and self.is_refused(datagram):
            drops = self.session.drops
            if drops is not None:
                drops["denied"] = drops.get("denied", 0) + 1
        else:
            self.then(datagram, emit)

    def is_refused(self, datagram: Datagram) -> bool:
        """Whether a datagram belongs to a connection that is refused, or may."""
        address, payload = datagram.address, datagram.payload
        found = self.connections.read(address, payload)
        for hello in found:
            if hello.found is not None and hello.refused is None:
                hello.refused = self.judge(hello.found.sni, address)
        if found:
            return any(hello.refused for hello in found)
        # Another version, or keys that are not known: later ones of a connection that was seen, or one that was not.
        known = self.connections.of(address)
        if any(hello.refused for hello in known):
            return True
        return not known and begins_quic(payload) and self.judge(None, address)

    def judge(self, name: str | None, address: Address) -> bool:
        """Whether the first entry that matches refuses QUIC."""
        return refuses(self.owner.intercepts.find(self.session, name, address))
