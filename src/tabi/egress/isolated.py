"""An egress through a SOCKS5 proxy that uses another user name for each client, session or user to isolate."""

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
"""Egresses that are kept; beyond that the one that was idle longest is dropped, and made again if it is needed."""

Apart = Literal["user", "session", "client"]


class Isolated(Around):
    """Goes through a SOCKS5 proxy with another user name for each client, session or user to isolate.

    Tor does not let two streams with different user names share a circuit (IsolateSOCKSAuth, torrc(5)); it accepts any
    user name.

    Args:
        make: makes the egress with a user's credentials.
        apart: what gets a user name of its own: user, session (of the user name's parameters), client.
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
        """The egress for the group that a session belongs to."""
        name = blake2b(self.key_of(session).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest().encode()
        egress = self.egresses.get(name)
        if egress is None:
            egress = self.egresses[name] = self.make(Credentials(name, b"tabi"))
            if len(self.egresses) > KEPT:
                self.egresses.popitem(last=False)
        self.egresses.move_to_end(name)
        return egress

    def key_of(self, session: Session | None) -> str:
        """The key of the group: what its sessions, and no others, have in common."""
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
        """An egress for inspection only: all are the same but for the user name."""
        return self.make(Credentials(b"", b""))

    def describe(self) -> str:
        """See `Egress`."""
        return Egress.describe(self)

    def explain_choice(self, parameters: Parameters) -> list[str]:
        """See `Egress`."""
        if parameters.session is not None and "session" in self.apart:
            return [f"session {parameters.session}: a user name of its own at the last proxy"]
        return super().explain_choice(parameters)
