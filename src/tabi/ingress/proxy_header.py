"""The PROXY header in front of a connection: who the client of a load balancer is (wire/proxy_protocol.py)."""

from __future__ import annotations

from collections.abc import Callable

from tabi.errors import RemoteProtocolError
from tabi.ingress.conversation import Ingress
from tabi.net.stream import Stream
from tabi.policy.guard import is_inner_client
from tabi.policy.networks import Network, contains
from tabi.session import Session
from tabi.wire.address import Host
from tabi.wire.proxy_protocol import HEADER_LIMIT, decode_header, missing_octets


class ProxyHeaderIngress:
    """Takes the header from a trusted proxy, and hands the connection on.

    A proxy that is trusted must send it: without it, its clients would all be the proxy itself. From any other client
    it is an error, since no protocol begins with it.

    Args:
        proxies: the networks of the trusted proxies; None means clients of a unix socket.
        inner: speaks with the client behind the header.
        arrived: called when the header has named a client. Raises LimitExceeded if that may not connect.
    """

    protocol = "proxy"

    def __init__(
        self,
        proxies: tuple[Network | None, ...],
        inner: Ingress,
        arrived: Callable[[Stream, Session], object] = lambda client, session: None,
    ) -> None:
        self.proxies = proxies
        self.inner = inner
        self.arrived = arrived

    def trusts(self, host: Host) -> bool:
        """Whether a client's address is that of a proxy."""
        return contains(self.proxies, host)

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        if self.trusts(session.client.host):
            await self.take_header(client, session)
        await self.inner.serve(client, session)

    async def take_header(self, client: Stream, session: Session) -> None:
        """Read the header and no octet more; the address in it is the client from then on."""
        taken = b""
        while True:
            try:
                data = await client.peek(HEADER_LIMIT - len(taken))
            except ConnectionError:
                if not taken:
                    session.silent = session.silent or None
                raise
            if not data:
                if not taken:
                    session.silent = session.silent or None
                raise RemoteProtocolError(f"PROXY header: the proxy at {session.client} ended after {taken!r}")
            found = decode_header(taken + data)
            # A complete header is taken to its end; of an incomplete one, only what certainly belongs to it.
            size = found[1] - len(taken) if found else min(len(data), missing_octets(taken + data))
            taken += client.sock.recv(size)
            if found:
                break
        header = found[0]
        source = header.source
        # Loopback over there is not loopback here: a client on the balancer's own machine has the balancer's address.
        if source is not None and (not is_inner_client(source.host) or is_inner_client(session.client.host)):
            session.client = source
            self.arrived(client, session)
        if header.local:
            session.silent = True  # a health check asks for nothing, and often ends with a reset
            session.silent = not await client.peek(1)
