"""CONNECT (RFC 1928 section 4), in four steps: decide, open, answer, carry."""

from __future__ import annotations

import errno
from time import monotonic

from tabi.errors import TabiError
from tabi.ingress.conversation import Conversation
from tabi.ingress.own_destinations import Entrance
from tabi.net.failures import connect_error
from tabi.net.race import find_failure
from tabi.relay.carrier import Carrier
from tabi.wire.address import from_sockaddr
from tabi.wire.socks5 import Reply, ReplyCode


class Connect:
    """Connects to the destination that a client asks for, and hands both streams to a carrier.

    Args:
        gate: says whether a session may go on, and by which egress.
        carrier: has both streams from then on.
    """

    name = "connect"

    def __init__(self, gate: Entrance, carrier: Carrier) -> None:
        self.take(gate, carrier)

    def take(self, gate: Entrance, carrier: Carrier) -> None:
        """Have sessions pass this gate, and give them to this carrier, from now on."""
        self.gate = gate
        self.carrier = carrier
        self.keeps_route: bool = getattr(carrier, "reopens", False)

    async def __call__(self, conversation: Conversation) -> None:
        """See `ingress.conversation.Serve`. Raises DialError, PolicyDenied and LimitExceeded: the reply."""
        session = conversation.session
        assert session.destination is not None

        egress, address_filter = self.gate.enter(session) or await self.gate.enter_slowly(session, conversation.client)

        session.asked = began = monotonic()
        server = await egress.open(session.destination, address_filter, session)
        try:
            session.connect_seconds = monotonic() - began
            if number := find_failure(server):  # reset since it was opened
                raise connect_error(number, session.destination)
            session.address = server.peer or from_sockaddr(server.sock.getpeername())

            answer = conversation.last_answer(Reply(ReplyCode.SUCCEEDED, from_sockaddr(server.name)))
        except BaseException as exc:
            server.close()
            if isinstance(exc, OSError) and not isinstance(
                exc, TabiError
            ):  # reset since it was opened: getpeername(2) says ENOTCONN
                raise connect_error(exc.errno or errno.EIO, session.destination) from exc
            raise

        if session.watch is not None:
            session.watch.connected(session)
        if self.keeps_route:
            session.route = egress, address_filter
        self.carrier.start(conversation.client, server, session, answer, conversation.trailing_data)
