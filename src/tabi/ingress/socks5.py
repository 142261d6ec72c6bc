"""The SOCKS5 ingress: method negotiation, the method itself, and the request; then the command takes over."""

from __future__ import annotations

from tabi.errors import RemoteProtocolError
from tabi.ingress.auth_methods import AuthMethod, MethodChoice, Refused
from tabi.ingress.conversation import Commands, MachineConversation
from tabi.ingress.refusal import refusal_of
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.socks5 import Greeting, MethodSelection, Request, ServerMachine

SELECTIONS = tuple(MethodSelection(method) for method in range(256))


class Socks5Ingress:
    """Speaks SOCKS5 with clients.

    Args:
        commands: carry out what is asked for.
        methods: how a client may prove who it is, in the order of preference.
        required: whether a client without a user is refused. A certificate that names a user makes one.
        protocol: its name in the access log.
    """

    def __init__(
        self, commands: Commands, methods: tuple[AuthMethod, ...], required: bool, protocol: str = "socks5"
    ) -> None:
        self.protocol = protocol
        self.commands = commands
        self.handshake = commands.handshake
        self.methods = MethodChoice(methods, required)

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        session.protocol = self.protocol
        conversation = MachineConversation(client, session, ServerMachine())
        try:
            if not await self.greet(conversation):
                return
            request = await conversation.next_message()
            assert isinstance(request, Request)
        except RemoteProtocolError as exc:
            if exc.reply_code is None:
                raise
            await self.commands.refuse_request(conversation, refusal_of(exc))
            return
        finally:
            self.handshake.stop(client)
        session.destination = request.destination
        await self.commands.carry_out(request.command, conversation)

    async def greet(self, conversation: MachineConversation) -> bool:
        """Choose a method, and have it find out who the client is. False when the client was refused."""
        greeting = await conversation.next_message()
        assert isinstance(greeting, Greeting)
        session = conversation.session
        found = self.methods.choose(session, greeting.methods)
        if not isinstance(found, Refused):
            conversation.send(SELECTIONS[found.method])
            refused = await found.authenticate(conversation)
            if refused is None:
                return True
            found = refused
        answer = found.answer
        await self.commands.refuse(conversation.client, session, found.refusal, lambda: conversation.send(answer))
        return False
