"""The SOCKS5 ingress: method negotiation, user and password, and the request; then the command takes over."""

from __future__ import annotations

from tabi.errors import RemoteProtocolError
from tabi.ingress.authenticate import Authenticate, identify
from tabi.ingress.conversation import Commands, MachineConversation
from tabi.ingress.refusal import login_refused, refusal_of
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.socks5 import (
    Credentials,
    CredentialsReply,
    Greeting,
    Method,
    MethodSelection,
    Request,
    ServerMachine,
)

NO_AUTHENTICATION = MethodSelection(Method.NO_AUTHENTICATION)
USERNAME_PASSWORD = MethodSelection(Method.USERNAME_PASSWORD)
NO_ACCEPTABLE_METHODS = MethodSelection(Method.NO_ACCEPTABLE_METHODS)
ACCEPTED = CredentialsReply(0)


class Socks5Ingress:
    """Speaks SOCKS5 with clients.

    Args:
        commands: carry out what is asked for.
        authenticate: asked for every user name and password; None where there are no users.
        required: whether a client without a user is refused. One whose certificate has said who it is has a user.
        protocol: its name in the access log.
    """

    def __init__(
        self, commands: Commands, authenticate: Authenticate | None, required: bool, protocol: str = "socks5"
    ) -> None:
        self.protocol = protocol
        self.commands = commands
        self.handshake = commands.handshake
        self.authenticate = authenticate
        self.required = required

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
        """Choose a method, and ask who it is where that is the method. False when the client was refused."""
        greeting = await conversation.next_message()
        assert isinstance(greeting, Greeting)
        session = conversation.session
        without = Method.NO_AUTHENTICATION in greeting.methods
        known = session.user is not None
        if self.authenticate is not None and Method.USERNAME_PASSWORD in greeting.methods and not (known and without):
            conversation.send(USERNAME_PASSWORD)
            return await self.check_user(conversation, self.authenticate)
        if without and (known or not self.required):
            conversation.send(NO_AUTHENTICATION)
            return True
        wanted = Method.NO_AUTHENTICATION if known or not self.required else Method.USERNAME_PASSWORD
        offered = greeting.methods.hex(" ") or "none"
        refusal = login_refused(f"no acceptable method: offered {offered}, expected {wanted:#04x}")
        await self.commands.refuse(
            conversation.client, session, refusal, lambda: conversation.send(NO_ACCEPTABLE_METHODS)
        )
        return False

    async def check_user(self, conversation: MachineConversation, authenticate: Authenticate) -> bool:
        """RFC 1929. False when the client was refused."""
        credentials = await conversation.next_message()
        assert isinstance(credentials, Credentials)
        client, session = conversation.client, conversation.session
        left = self.handshake.left(client)
        if not await identify(authenticate, session, credentials.username, credentials.password, left):
            refusal = login_refused(session.error or "")
            rejected = CredentialsReply(refusal.login_status)
            await self.commands.refuse(client, session, refusal, lambda: conversation.send(rejected))
            return False
        conversation.send(ACCEPTED)
        return True
