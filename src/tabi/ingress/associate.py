"""UDP ASSOCIATE (RFC 1928 sections 4, 6, 7): a port for the client's datagrams, as long as its connection stands."""

from __future__ import annotations

from collections.abc import Hashable

from tabi.config import Udp
from tabi.ingress.conversation import Conversation
from tabi.ingress.gate import Gate
from tabi.net.failures import local_error
from tabi.net.listen import client_ip, own_address
from tabi.policy.policy import Policy
from tabi.relay.associations import Associations
from tabi.relay.datagram_inspector import DatagramInspector, Inspect
from tabi.relay.shared_port import Newcomer
from tabi.session import UNIX, Session
from tabi.wire.address import Address
from tabi.wire.socks5 import Reply, ReplyCode


class Associate:
    """Opens a port and hands it over, with the control connection, to an association.

    Args:
        gate: says whether a session may go on, and decides again for each destination.
        associations: carry the datagrams from then on.
        udp: the ports of the listener.
        inspector: looks at the datagrams, in place of that of all associations.
    """

    name = "associate"

    def __init__(
        self, gate: Gate, associations: Associations, udp: Udp, inspector: DatagramInspector | None = None
    ) -> None:
        self.gate = gate
        self.open_path = gate.associate  # bound once for all associations
        self.associations = associations
        self.udp = udp
        self.inspector = inspector

    async def __call__(self, conversation: Conversation) -> None:
        """See `ingress.conversation.Serve`. Raises DialError, PolicyDenied and LimitExceeded: the reply."""
        session, client = conversation.session, conversation.client
        policy = self.gate.policy
        egress, destination_policy = await self.gate.enter_open(session, client)
        associations = self.associations
        inspect = associations.inspect(session, self.inspector or associations.inspector)
        # If all datagrams go through a proxy that cannot carry them, the client is told at once.
        path = None if egress is None else await egress.associate(session)
        if path is not None:
            path.connect(headed=True)
        declared = declared_port(session)
        try:
            local = own_address(client.sock, session.client)
            newcomer = None
            if self.udp.shared:
                identity = self.identity(session, policy, inspect)
                newcomer = Newcomer(client_ip(session.client.host), declared, identity)
            port = associations.open_port(local, self.udp, newcomer)
        except OSError as exc:
            if path is not None:
                path.close()
            raise local_error(exc, "no UDP port") from exc
        # Section 6: BND is where the client sends to, so it is an address that the client can reach.
        bound = Address(self.udp.public(local.host), port.number)
        answer = conversation.last_answer(Reply(ReplyCode.SUCCEEDED, bound))
        if session.watch is not None:
            session.watch.connected(session)
        opened = None if path is None else (str(session.via), path)
        carrying = self.udp, self.open_path, opened, inspect, newcomer and newcomer.identity
        associations.start(client, port, session, answer, destination_policy, declared, *carrying)

    def identity(self, session: Session, policy: Policy, inspect: Inspect | None) -> Hashable:
        """What must be equal in associations that may be taken for each other on a shared port: whatever decides on
        their datagrams, and the name that these go under."""
        if policy is not self.gate.policy or policy.decide_hook is not None or session.protection is not None:
            return object()  # a program may decide on each of them differently; keys are for one alone
        host, uid = session.client.host, session.client.port if session.client.host == UNIX else None
        who = host, uid, session.user, session.groups, session.limits, session.parameters
        return (self, policy, session.listener, session.protocol, session.rule, session.via, inspect, *who)


def declared_port(session: Session) -> int:
    """The port that the client says it will send from (DST.PORT, section 4), or 0.

    A client that declares an address which is not that of its connection is behind NAT: the port that it knows is not
    the one that we see. One that declares a name has written where its first datagram will go.
    """
    assert session.destination is not None
    host, port = session.destination
    if isinstance(host, str):
        return 0
    return port if host.is_unspecified or host.packed == client_ip(session.client.host).packed else 0
