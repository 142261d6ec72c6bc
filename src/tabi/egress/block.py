"""The egress that leads nowhere."""

from __future__ import annotations

from tabi.egress.base import Asked, Egress
from tabi.errors import PolicyDenied
from tabi.net.dial import AddressFilter
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.session import Session
from tabi.wire.address import Address


class Block(Egress):
    """Refuses everything."""

    resolves_locally = True
    leads_nowhere = True

    def __init__(self, name: str) -> None:
        self.name = name

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`. Raises PolicyDenied."""
        raise PolicyDenied(f"egress {self.name}: {destination}")

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """See `Egress`. Raises PolicyDenied."""
        raise PolicyDenied(f"egress {self.name}: {destination}")

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`. Raises PolicyDenied."""
        raise PolicyDenied(f"egress {self.name}: datagrams")

    def cannot(self, command: str) -> str | None:
        """See `Egress`: it refuses every command in the same way, so there is none that it cannot carry."""
        return None
