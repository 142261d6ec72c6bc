"""The SOCKS5 ingress: method negotiation, user and password, and the request; then the command takes over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from tabi.errors import RemoteProtocolError, TabiError
from tabi.ingress.authenticate import Authenticate
from tabi.net.deadline import Deadlines
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.socks5 import (
    NEED_DATA,
    Credentials,
    CredentialsReply,
    Greeting,
    Method,
    MethodSelection,
    Reply,
    ReplyCode,
    Request,
    ServerMachine,
)

log = logging.getLogger("tabi")

READ_SIZE = 500
"""Octets of one read. With a message under way, at most 513, a client has less than 1 KiB here before it is known."""

LINGER = 2.0
"""Seconds in which a refused client may read the refusal. RFC 1928 section 6 wants the connection closed within 10."""

NO_AUTHENTICATION = MethodSelection(Method.NO_AUTHENTICATION)
USERNAME_PASSWORD = MethodSelection(Method.USERNAME_PASSWORD)
NO_ACCEPTABLE_METHODS = MethodSelection(Method.NO_ACCEPTABLE_METHODS)
ACCEPTED, REJECTED = CredentialsReply(0), CredentialsReply(1)


class Serve(Protocol):
    """Carries out one command: on return the session is over, or a relay has it."""

    name: str

    async def __call__(self, conversation: Conversation) -> None: ...


class Conversation:
    """One client's handshake: its stream, its machine and its session, as the commands get them."""

    __slots__ = ("client", "machine", "session")

    def __init__(self, client: Stream, session: Session) -> None:
        self.client = client
        self.machine = ServerMachine()
        self.session = session

    async def next_message(self) -> Any:
        """The client's next message. Raises RemoteProtocolError, and as `Stream.receive`."""
        machine, client = self.machine, self.client
        while (message := machine.next_event()) is NEED_DATA:
            while (data := client.receive_nowait(READ_SIZE)) is None:
                await client.readable()
            machine.receive_data(data)
        return message

    def answer(self, message: MethodSelection | CredentialsReply | Reply) -> None:
        """Send an answer. All of them together are smaller than any send buffer, so that this does not wait."""
        if isinstance(message, Reply):
            self.session.reply_code = message.reply_code
        self.client.send_soon(self.machine.send(message))

    def last_answer(self, reply: Reply) -> bytes:
        """The reply that a relay sends before everything else."""
        self.session.reply_code = reply.reply_code
        return self.machine.send(reply)


class Socks5Ingress:
    """Speaks SOCKS5 with clients.

    Args:
        commands: what carries out each CMD.
        handshake: the deadline of the whole handshake, already running when a stream is handed in.
        authenticate: asked for every user name and password; None where there are no users.
        required: whether a client without a user is refused.
    """

    protocol = "socks5"

    def __init__(
        self, commands: Mapping[int, Serve], handshake: Deadlines, authenticate: Authenticate | None, required: bool
    ) -> None:
        self.commands = commands
        self.handshake = handshake
        self.authenticate = authenticate
        self.required = required
        self.linger = Deadlines(handshake.loop, LINGER)

    async def serve(self, client: Stream, session: Session) -> None:
        """Carry one connection from its first octet to the relay, or to its refusal. Closes nothing on an error."""
        session.protocol = self.protocol
        conversation = Conversation(client, session)
        try:
            if not await self.greet(conversation):
                return
            request = await conversation.next_message()
            assert isinstance(request, Request)
        except RemoteProtocolError as exc:
            session.error = str(exc)
            if exc.reply_code is not None:
                await self.refuse(conversation, Reply(exc.reply_code))
            return
        except TimeoutError:
            session.error = f"handshake: not done within {self.handshake.seconds:g} s"
            return
        finally:
            self.handshake.stop(client)
        session.destination = request.destination
        command = self.commands.get(request.command)
        if command is None:
            session.command = str(request.command)
            session.error = f"command {request.command:#04x} is not supported"
            await self.refuse(conversation, Reply(ReplyCode.COMMAND_NOT_SUPPORTED))
            return
        session.command = command.name
        try:
            await command(conversation)
        except TabiError as exc:
            session.error = str(exc)
            code = ReplyCode.GENERAL_FAILURE if exc.reply_code is None else exc.reply_code
            await self.refuse(conversation, Reply(code))

    async def greet(self, conversation: Conversation) -> bool:
        """Choose a method, and ask who it is where that is the method. False when the client was refused."""
        greeting = await conversation.next_message()
        assert isinstance(greeting, Greeting)
        session = conversation.session
        if self.authenticate is not None and Method.USERNAME_PASSWORD in greeting.methods:
            conversation.answer(USERNAME_PASSWORD)
            return await self.check_user(conversation, self.authenticate)
        if not self.required and Method.NO_AUTHENTICATION in greeting.methods:
            conversation.answer(NO_AUTHENTICATION)
            return True
        wanted = Method.USERNAME_PASSWORD if self.required else Method.NO_AUTHENTICATION
        session.error = f"no acceptable method: offered {greeting.methods.hex(' ') or 'none'}, expected {wanted:#04x}"
        await self.refuse(conversation, NO_ACCEPTABLE_METHODS)
        return False

    async def check_user(self, conversation: Conversation, authenticate: Authenticate) -> bool:
        """RFC 1929. False when the client was refused."""
        credentials = await conversation.next_message()
        assert isinstance(credentials, Credentials)
        session = conversation.session
        async with asyncio.timeout(self.handshake.left(conversation.client)):
            address = str(session.client.host)
            try:
                session.user = await authenticate(credentials.username, credentials.password, address)
            except Exception as exc:  # the deadline comes as a cancellation: this is a fault of who was asked
                log.exception("authenticate failed")
                session.error = f"authenticate failed: {type(exc).__name__}"
        if session.user is None:
            session.error = session.error or "wrong user name or password"
            await self.refuse(conversation, REJECTED)
            return False
        conversation.answer(ACCEPTED)
        return True

    async def refuse(self, conversation: Conversation, answer: MethodSelection | CredentialsReply | Reply) -> None:
        """Answer no, and stay until the client has read it: a close with octets unread would be a reset and lose it."""
        conversation.session.close = "denied" if getattr(answer, "reply_code", 2) == 2 else "error"
        client = conversation.client
        self.handshake.stop(client)
        self.linger.start(client)
        try:
            conversation.answer(answer)
            client.send_eof()
            while await client.receive():
                # What is there is received without a wait, expired or not: let others have their turn, and end.
                await asyncio.sleep(0)
                client.check()
        except (TimeoutError, OSError):
            pass
        finally:
            self.linger.stop(client)
