"""The mixed ingress: the first octets decide what a client speaks. They are looked at, not taken (MSG_PEEK)."""

from __future__ import annotations

from collections.abc import Mapping

from tabi.errors import RemoteProtocolError
from tabi.ingress.conversation import Ingress
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.machine import NeedData
from tabi.wire.sniff import SNIFF_SIZE, Protocol, sniff

NOT_TRUSTED = "a PROXY header from a client that is not in proxy_protocol, or a second one"
WHY_NOT = {
    Protocol.TLS: "TLS, but this listener has no certificate, or TLS is inside TLS",
    Protocol.PROXY_V1: NOT_TRUSTED,
    Protocol.PROXY_V2: NOT_TRUSTED,
}


class MixedIngress:
    """Hands a connection to the ingress that speaks its protocol.

    Args:
        protocols: what speaks each; any other is refused.
    """

    protocol = "mixed"

    def __init__(self, protocols: Mapping[Protocol, Ingress]) -> None:
        self.protocols = protocols

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        try:
            data = await client.peek(SNIFF_SIZE)
        except ConnectionError:
            session.silent = session.silent or None
            raise
        while isinstance(protocol := sniff(data), NeedData):
            known = len(data)
            data = await client.peek(SNIFF_SIZE, known)
            if len(data) <= known:
                if not data:
                    session.silent = session.silent or None
                raise RemoteProtocolError(f"the client ended after {data!r}" if data else "the client sent nothing")
        ingress = self.protocols.get(protocol)
        if ingress is None:
            expected = ", ".join(name for name in self.protocols if name is not Protocol.HTTP2)
            raise RemoteProtocolError(WHY_NOT.get(protocol) or f"begins with {data[:16]!r}, expected one of {expected}")
        await ingress.serve(client, session)
