"""An egress through a SOCKS5 proxy that gets another user name for each of those who are to be kept apart."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Literal

from tabi.egress.base import Around, Asked, Egress
from tabi.net.dial import AddressFilter
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.policy.grammar import Parameters
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import Credentials

KEPT = 1024
"""Egresses that are kept; beyond that the one that rested longest is made anew when it is needed."""

Apart = Literal["user", "session", "client"]


class Isolated(Around):
    """Goes through a proxy of SOCKS5 as another user for each of those who are to be kept apart.

    Tor does not let two streams share a circuit whose user names differ (IsolateSOCKSAuth, torrc(5)); it takes any.

    Args:
        make: makes the egress with a user's credentials.
        apart: of what there must be another user for each: user, session (of the user name's parameters), client.
    """

    def __init__(self, make: Callable[[Credentials], Egress], apart: Sequence[Apart]) -> None:
        self.make = make
        self.apart = apart
        self.egresses: OrderedDict[bytes, Egress] = OrderedDict()

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`."""
        return await self.egress_of(session).open(destination, address_filter, session)

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """See `Egress`."""
        return await self.egress_of(session).ask(command, destination, address_filter, session)

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`."""
        return await self.egress_of(session).associate(session)

    def egress_of(self, session: Session | None) -> Egress:
        """The egress of those whom a session belongs to."""
        name = blake2b(self.key_of(session).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest().encode()
        egress = self.egresses.get(name)
        if egress is None:
            egress = self.egresses[name] = self.make(Credentials(name, b"tabi"))
            if len(self.egresses) > KEPT:
                self.egresses.popitem(last=False)
        self.egresses.move_to_end(name)
        return egress

    def key_of(self, session: Session | None) -> str:
        """What they have in common, and no others."""
        if session is None:
            return ""
        parameters = session.parameters
        parts = {
            "user": session.user or "",
            "client": str(session.client.host),
            "session": "" if parameters is None else parameters.session or "",
        }
        return "\0".join(parts[word] for word in self.apart)

    # --- what it says of itself ---

    @cached_property
    def below(self) -> Egress:  # type: ignore[override]
        """One that is only looked at: but for the user name all are the same."""
        return self.make(Credentials(b"", b""))

    def describe(self) -> str:
        """See `Egress`."""
        return Egress.describe(self)

    def explain_choice(self, parameters: Parameters) -> list[str]:
        """See `Egress`."""
        if parameters.session is not None and "session" in self.apart:
            return [f"session {parameters.session}: a user name of its own at the last proxy"]
        return super().explain_choice(parameters)
