"""Refuses QUIC where an ``[[intercept]]`` says so: clients then fall back to TCP, which can be looked into.

A datagram that is dropped is counted as ``denied``, and the client hears nothing, as from a firewall. The name in the
ClientHello counts as in TLS: an entry that exempts a name exempts its QUIC too.
"""

from __future__ import annotations

from tabi.errors import RemoteProtocolError
from tabi.intercept.quic import LONG, Packet, QuicHello, begins_quic, split_packets
from tabi.policy.intercepts import InterceptRule, Intercepts
from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Emit, Inspect
from tabi.session import Session
from tabi.wire.address import Address

MAX_DESTINATIONS, MAX_CONNECTIONS = 64, 4
"""Of an association, whose QUIC is remembered; and connections to each of them. The oldest ones are forgotten."""


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
        if not self.may_refuse(session):
            return then
        return FilteredAssociation(self, session, then or pass_on).inspect

    def may_refuse(self, session: Session) -> bool:
        """Whether an entry refuses QUIC of this client, to some destination at some hour."""
        rules = self.intercepts.rules
        return any(
            refuses(intercept) and rules.holds(rule.conditions._replace(hours=None), session, None, 0.0)
            for intercept, rule in zip(self.intercepts, rules, strict=True)
        )


def pass_on(datagram: Datagram, emit: Emit) -> None:
    """Send a datagram as it is."""
    emit(datagram.payload)


class Known:
    """A connection of QUIC. ``refused`` is None until its hello is whole."""

    __slots__ = ("hello", "refused")

    def __init__(self, packet: Packet) -> None:
        self.hello = QuicHello(packet)
        self.refused: bool | None = None


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
        self.known: dict[Address, list[Known]] = {}

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
        try:
            found = [self.find(address, packet) for packet in split_packets(payload)]
        except RemoteProtocolError:  # no server would take it as the beginning of a connection
            found = []
        verdicts = [known.refused for known in found if known is not None]
        if verdicts:
            return True in verdicts
        # Another version, or keys that are not known: later ones of a connection that was seen, or one that was not.
        verdicts = [known.refused for known in self.known.get(address, ())]
        if True in verdicts:
            return True
        return not verdicts and begins_quic(payload) and self.judge(None, address)

    def find(self, address: Address, packet: Packet) -> Known | None:
        """The connection that a packet belongs to, with what it now is; a new one if it begins one. None: it cannot be
        read. Raises RemoteProtocolError."""
        connections = self.known.get(address, [])
        found = next((known for known in connections if known.hello.receive(packet)), None)
        if found is None:
            found = Known(packet)
            if not found.hello.receive(packet):
                return None
            self.known[address] = [*connections[1 - MAX_CONNECTIONS :], found]
            if len(self.known) > MAX_DESTINATIONS:
                del self.known[next(iter(self.known))]
        hello = found.hello.found
        if hello is not None and found.refused is None:
            found.refused = self.judge(hello.sni, address)
        return found

    def judge(self, name: str | None, address: Address) -> bool:
        """Whether the first entry that matches refuses QUIC."""
        return refuses(self.owner.intercepts.find(self.session, name, address))
