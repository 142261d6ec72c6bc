"""Faults and other molding, composed: the entries of a configuration, and those that are set while it runs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tabi.distort.datagrams import DatagramFaults
from tabi.distort.dialling import Distorting, Egresses
from tabi.distort.distortion import Distortion, Front
from tabi.ingress.own_destinations import Entrance
from tabi.policy.distorts import Distort, Distorts
from tabi.relay.carrier import Carrier

if TYPE_CHECKING:
    from tabi.server.parts import Parts


class Molding:
    """All that `Parts` has of molding, made when the first entry is there.

    Args:
        parts: of the server.
    """

    def __init__(self, parts: Parts) -> None:
        self.distortion = Distortion(parts.relays, parts.sessions, parts.forwarding.under_way)
        self.egresses = Egresses(self.distortion)
        self.datagrams = DatagramFaults(self.distortion, parts.associations)
        self.live: dict[str, Distort] = {}
        """Those that were set while it runs, by their names."""

    def take(self, distorts: Distorts) -> None:
        """Act by the entries of a configuration, and by those that are set."""
        mine = (entry for entry in distorts if entry.fault is not None)
        self.distortion.take(distorts.replaced(itertools.chain(mine, self.live.values())))
        self.datagrams.take()

    def in_front(self, carrier: Carrier, entrance: Entrance) -> tuple[Carrier, Entrance]:
        """A carrier and an entrance of sessions, with faults where there are any."""
        if not self.distortion.entries:
            return carrier, entrance
        return Front(self.distortion, carrier), Distorting(entrance, self.distortion, self.egresses)

    @property
    def pairs(self) -> int:
        """How many connections have a relay of their own, which takes as many descriptors as a session."""
        return len(self.distortion.outer)

    def close(self) -> None:
        """End what is left."""
        self.distortion.close("shutdown")
