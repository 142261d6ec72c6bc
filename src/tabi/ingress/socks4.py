"""The SOCKS4 and SOCKS4a ingress: one request, and then the command takes over. Nothing in them proves a user."""

from __future__ import annotations

from tabi.errors import RemoteProtocolError
from tabi.ingress.conversation import Commands, MachineConversation
from tabi.ingress.refusal import login_refused, refusal_of
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.socks4 import Reply4, Request4, ServerMachine4, reply4_code
from tabi.wire.socks5 import Command, Reply

COMMANDS = (Command.CONNECT, Command.BIND)


class Socks4Conversation(MachineConversation):
    """A conversation in SOCKS4: replies have fewer codes, and addresses of IPv4 only."""

    __slots__ = ()

    def __init__(self, client: Stream, session: Session) -> None:
        super().__init__(client, session, ServerMachine4())

    def last_answer(self, reply: Reply) -> bytes:
        """See `Conversation`."""
        self.session.reply_code = code = reply4_code(reply.reply_code)
        return bytes(self.machine.send(Reply4(code, reply.bound)))


class Socks4Ingress:
    """Speaks SOCKS4 and SOCKS4a with clients.

    Args:
        commands: carry out what is asked for.
        required: whether clients must be users. Then only clients whose certificate names their user are served: a
            USERID is a claim, not a proof.
        protocol: its name in the access log.
    """

    def __init__(self, commands: Commands, required: bool, protocol: str = "socks4") -> None:
        self.protocol = protocol
        # CD 3 is not a command here: UDP ASSOCIATE is new in SOCKS5.
        serves = {command: serve for command, serve in commands.serves.items() if command in COMMANDS}
        self.commands = Commands(serves, commands.handshake)
        self.handshake = commands.handshake
        self.required = required

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        session.protocol = self.protocol
        conversation = Socks4Conversation(client, session)
        try:
            request = await conversation.next_message()
            assert isinstance(request, Request4)
        except RemoteProtocolError as exc:
            if exc.reply_code is None:
                raise
            await self.commands.refuse_request(conversation, refusal_of(exc))
            return
        finally:
            self.handshake.stop(client)
        session.destination = request.destination
        if self.required and session.user is None:
            refusal = login_refused("this listener wants a user, and SOCKS4 has no way to prove one")
            await self.commands.refuse_request(conversation, refusal)
            return
        await self.commands.carry_out(request.command, conversation)
