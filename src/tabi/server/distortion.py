"""Faults and other molding, composed: the entries of a configuration, and those that are set while it runs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tabi.distort.dialling import Distorting
from tabi.distort.distortion import Distortion, Reachable
from tabi.ingress.own_destinations import Entrance
from tabi.policy.distorts import Distort, Distorts
from tabi.relay.carrier import Carrier
from tabi.session import Session

if TYPE_CHECKING:
    from tabi.server.parts import Parts


class Molding:
    """All that `Parts` has of molding, made when the first entry is there.

    Args:
        parts: of the server.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        sessions, kept = parts.sessions, parts.kept

        def carried(session: Session) -> Reachable | None:
            return sessions.carried(session) or kept.connections.get(session)

        self.distortion = Distortion(parts.relays, parts.carrier, lambda: sessions.running, carried)
        parts.closing.callback(self.distortion.close, "shutdown")
        self.live: dict[str, Distort] = {}
        """Those that were set while it runs, by their names."""

    def take(self, distorts: Distorts) -> None:
        """Act by the entries of a configuration, and by those that are set."""
        mine = (entry for entry in distorts if entry.fault is not None)
        self.distortion.take(distorts.replaced(itertools.chain(mine, self.live.values())))

    def in_front(self, carrier: Carrier, entrance: Entrance) -> tuple[Carrier, Entrance]:
        """The carrier and the entrance of sessions, with faults where there are any."""
        self.distortion.inner = carrier
        if not self.distortion.distorts:
            return carrier, entrance
        return self.distortion, Distorting(entrance, self.distortion)
