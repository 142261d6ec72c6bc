"""Destinations that the server itself answers, in front of the gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tabi.egress.base import Egress
from tabi.ingress.gate import Route
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address
from tabi.session import Session
from tabi.wire.address import Address


class Entrance(Protocol):
    """What a session with one destination passes: a `Gate`, or one with something in front."""

    def enter(self, session: Session) -> Route | None:
        """See `Gate`."""

    async def enter_slowly(self, session: Session, client: Stream) -> Route:
        """See `Gate`."""


class OwnDestinations:
    """A gate with destinations in front of it that no rule, limit or name server is asked about.

    Args:
        gate: decides on all others.
        egresses: by destination, with the name in lower case.
    """

    def __init__(self, gate: Entrance, egresses: Mapping[Address, Egress]) -> None:
        self.gate = gate
        self.egresses = egresses

    def enter(self, session: Session) -> Route | None:
        """See `Gate`."""
        assert session.destination is not None
        host, port = session.destination
        if isinstance(host, str):
            egress = self.egresses.get(Address(host.lower().removesuffix("."), port))
            if egress is not None:
                session.via = egress.name
                return Route(egress, allow_any_address)
        return self.gate.enter(session)

    async def enter_slowly(self, session: Session, client: Stream) -> Route:
        """See `Gate`."""
        return await self.gate.enter_slowly(session, client)
