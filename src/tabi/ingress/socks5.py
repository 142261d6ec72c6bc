"""The SOCKS5 ingress: method negotiation, user and password, and the request; then the command takes over."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from tabi.errors import RemoteProtocolError
from tabi.ingress.authenticate import Authenticate
from tabi.ingress.conversation import Commands
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.machine import NEED_DATA
from tabi.wire.socks5 import (
    Credentials,
    CredentialsReply,
    Greeting,
    Method,
    MethodSelection,
    Reply,
    Request,
    ServerMachine,
)

log = logging.getLogger("tabi")

READ_SIZE = 500
"""Octets of one read. With a message under way, at most 513, a client has less than 1 KiB here before it is known."""

NO_AUTHENTICATION = MethodSelection(Method.NO_AUTHENTICATION)
USERNAME_PASSWORD = MethodSelection(Method.USERNAME_PASSWORD)
NO_ACCEPTABLE_METHODS = MethodSelection(Method.NO_ACCEPTABLE_METHODS)
ACCEPTED, REJECTED = CredentialsReply(0), CredentialsReply(1)


class Socks5Conversation:
    """A `Conversation` in SOCKS5."""

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

    def send(self, message: MethodSelection | CredentialsReply | Reply) -> None:
        """Send a message. All of them together are smaller than any send buffer, so that this does not wait."""
        self.client.send_soon(self.machine.send(message))

    @property
    def trailing_data(self) -> bytes:
        """See `Conversation`; so for the others."""
        return self.machine.trailing_data

    def keep(self, data: bytes) -> None:
        self.machine.receive_data(data)

    def answer(self, reply: Reply) -> None:
        self.client.send_soon(self.last_answer(reply))

    def last_answer(self, reply: Reply) -> bytes:
        self.session.reply_code = reply.reply_code
        return self.machine.send(reply)


class Socks5Ingress:
    """Speaks SOCKS5 with clients.

    Args:
        commands: carry out what is asked for.
        authenticate: asked for every user name and password; None where there are no users.
        required: whether a client without a user is refused.
    """

    protocol = "socks5"

    def __init__(self, commands: Commands, authenticate: Authenticate | None, required: bool) -> None:
        self.commands = commands
        self.handshake = commands.handshake
        self.authenticate = authenticate
        self.required = required

    async def serve(self, client: Stream, session: Session) -> None:
        """Carry one connection from its first octet to the relay, or to its refusal. Closes nothing on an error."""
        session.protocol = self.protocol
        conversation = Socks5Conversation(client, session)
        try:
            if not await self.greet(conversation):
                return
            request = await conversation.next_message()
            assert isinstance(request, Request)
        except RemoteProtocolError as exc:
            session.error = str(exc)
            if exc.reply_code is not None:
                await self.commands.refuse_request(conversation, exc.reply_code)
            return
        except TimeoutError:
            session.error = f"handshake: not done within {self.handshake.seconds:g} s"
            return
        finally:
            self.handshake.stop(client)
        session.destination = request.destination
        await self.commands.carry_out(request.command, conversation)

    async def greet(self, conversation: Socks5Conversation) -> bool:
        """Choose a method, and ask who it is where that is the method. False when the client was refused."""
        greeting = await conversation.next_message()
        assert isinstance(greeting, Greeting)
        session = conversation.session
        if self.authenticate is not None and Method.USERNAME_PASSWORD in greeting.methods:
            conversation.send(USERNAME_PASSWORD)
            return await self.check_user(conversation, self.authenticate)
        if not self.required and Method.NO_AUTHENTICATION in greeting.methods:
            conversation.send(NO_AUTHENTICATION)
            return True
        wanted = Method.USERNAME_PASSWORD if self.required else Method.NO_AUTHENTICATION
        session.error = f"no acceptable method: offered {greeting.methods.hex(' ') or 'none'}, expected {wanted:#04x}"
        await self.commands.refuse(conversation, True, lambda: conversation.send(NO_ACCEPTABLE_METHODS))
        return False

    async def check_user(self, conversation: Socks5Conversation, authenticate: Authenticate) -> bool:
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
            await self.commands.refuse(conversation, True, lambda: conversation.send(REJECTED))
            return False
        conversation.send(ACCEPTED)
        return True
