"""Faults on the datagrams of associations. They stand behind inspectors and hooks, in both directions:

    client -> hooks -> faults -> destination        destination -> hooks -> faults -> client

So hooks see, and records have, what was sent, as on a perfect network; what hooks hold back or drop does not take
bandwidth. An entry acts on each datagram by its destination: the one that the client has named, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable

from tabi.distort.datagram_line import acts_on_datagrams
from tabi.distort.dialling import failure
from tabi.distort.distortion import Distortion
from tabi.distort.faulty_association import ANY, FaultyAssociation
from tabi.distort.memory import MEMORY, Memory
from tabi.policy.distorts import Distorts
from tabi.relay.associations import Associations
from tabi.relay.datagram import Association
from tabi.session import Session


class DatagramFaults:
    """The faults of all associations; see `relay.associations.AssociationFaults`.

    Args:
        distortion: has the entries.
        associations: that they act on.
        memory: what all that waits in this process takes.
    """

    def __init__(self, distortion: Distortion, associations: Associations, memory: Memory = MEMORY) -> None:
        self.distortion = distortion
        self.associations = associations
        self.memory = memory
        self.loop = distortion.loop
        self.distorts = Distorts()
        """Those that act on datagrams."""
        self.faulty: dict[Session, FaultyAssociation] = {}

    @property
    def time(self) -> Callable[[], float]:
        """The clock of associations."""
        return self.associations.context.time

    def begin(self, session: Session) -> None:
        """See `AssociationFaults`: an entry that refuses, whatever the destination, refuses the association."""
        if self.distorts.may_match(session):
            for acting in self.add(session).match(ANY):
                entry = acting.drawn.entry
                if entry.fault.refuse is not None and entry.acts(self.time()):
                    raise failure(entry.fault.refuse, f"refused by {entry.distort.label}")

    def attach(self, association: Association) -> None:
        """See `AssociationFaults`."""
        found = self.faulty.get(association.session)
        if found is not None:
            found.begin(association)

    def add(self, session: Session) -> FaultyAssociation:
        """Have entries act on one more, until its session is over."""
        found = self.faulty[session] = FaultyAssociation(self, session)
        session.when_over(found.over)
        return found

    def take(self) -> None:
        """Act by the entries that `Distortion` has now, on associations that run too."""
        distorts = self.distortion.every.distorts
        self.distorts = distorts.replaced(entry for entry in distorts if acts_on_datagrams(entry.fault))
        self.associations.faults = self if self.distorts else None
        running = sorted(self.associations.active, key=lambda association: association.session.number)
        self.associations.reactor.spread(running, self.renew)  # in an order, for draws with a seed

    def renew(self, association: Association) -> None:
        """Have the entries act on an association that runs, and no others."""
        if association.closed:
            return
        session = association.session
        found, wanted = self.faulty.get(session), self.distorts.may_match(session)
        if found is None:
            if wanted:
                self.add(session).begin(association)
        elif wanted:
            found.renew()
        else:
            found.leave()
            del self.faulty[session]
            session.not_when_over(found.over)
