"""Clients of some networks need no user: a layer in front of two ingresses, of which one wants a user."""

from __future__ import annotations

from tabi.ingress.conversation import Ingress
from tabi.net.stream import Stream
from tabi.policy.networks import Network, contains
from tabi.session import Session


class NoUserIngress:
    """Hands a client on by its address, which is that of the PROXY header if there is one.

    Args:
        networks: whose clients need no user; None means clients of a unix socket.
        exempt: speaks with these clients.
        inner: speaks with all others.
    """

    protocol = "no_user"

    def __init__(self, networks: tuple[Network | None, ...], exempt: Ingress, inner: Ingress) -> None:
        self.networks = networks
        self.exempt = exempt
        self.inner = inner

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        ingress = self.exempt if contains(self.networks, session.client.host) else self.inner
        await ingress.serve(client, session)
