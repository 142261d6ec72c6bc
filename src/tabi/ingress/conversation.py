"""What all protocols have in common from the request on: carry out a command, or refuse and let the client read why."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tabi.errors import LimitExceeded, RemoteProtocolError, TabiError
from tabi.ingress.refusal import Refusal, refusal_of
from tabi.net.handshakes import Handshakes
from tabi.net.stream import RESET, Stream
from tabi.session import Session
from tabi.wire.machine import NEED_DATA
from tabi.wire.socks4 import ServerMachine4
from tabi.wire.socks5 import Reply, ReplyCode, ServerMachine

READ_SIZE = 500
"""Octets of one read. With a message under way, at most 520, a client has less than 1 KiB here before it is known."""


SWALLOWED = 1 << 20
"""Octets that are read of a client that goes on sending after its refusal; beyond that its connection is reset."""


async def swallow(client: Stream) -> None:
    """Read what a client still sends, to its end. Raises OSError as `Stream.receive`."""
    left = SWALLOWED
    while left:
        data = await client.receive(min(left, 65536))
        if not data:
            return
        left -= len(data)
        # What is there is received without a wait, expired or not: let others have their turn, and end.
        await client.reactor.next_turn()
        client.check()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


class Ingress(Protocol):
    """Speaks with a client, from the first octet that the layer before has left."""

    protocol: str

    async def serve(self, client: Stream, session: Session) -> None:
        """Carry one connection to the relay, or to its refusal. On an error nothing is closed.

        The handshake's deadline runs; it is stopped as soon as the request is there.

        Raises:
            TimeoutError: the handshake took too long.
            RemoteProtocolError: the client broke the protocol, and was told if the protocol allows it.
            OSError: the connection broke.
        """


class Conversation(Protocol):
    """One client's handshake as the commands see it, in whatever protocol it speaks; replies are those of RFC 1928."""

    client: Stream
    session: Session

    @property
    def trailing_data(self) -> bytes:
        """Octets that the client sent after its request: they are payload."""

    def push_back(self, data: bytes) -> None:
        """Add to ``trailing_data``."""

    def answer(self, reply: Reply) -> None:
        """Send a reply, after which the conversation goes on or ends."""

    def last_answer(self, reply: Reply) -> bytes:
        """The reply that a relay sends before everything else."""


class MachineConversation:
    """A conversation that a machine of `wire` holds.

    Args:
        client: the stream.
        session: gets the replies.
        machine: of the protocol that the client speaks.
    """

    __slots__ = ("client", "machine", "session")

    def __init__(self, client: Stream, session: Session, machine: ServerMachine | ServerMachine4) -> None:
        self.client = client
        self.machine: Any = machine
        self.session = session

    async def next_message(self) -> Any:
        """The client's next message. Raises RemoteProtocolError, and as `Stream.receive`."""
        machine, client = self.machine, self.client
        try:
            while (message := machine.next_event()) is NEED_DATA:
                while (data := client.receive_nowait(READ_SIZE)) is None:
                    await client.readable()
                machine.receive_data(data)
        except (RemoteProtocolError, ConnectionError):
            if machine.untouched:
                self.session.silent = self.session.silent or None
            raise
        return message

    def send(self, message: Any) -> None:
        """Send a message. All of them together are smaller than any send buffer, so that this does not wait."""
        self.client.send_soon(self.machine.send(message))

    @property
    def trailing_data(self) -> bytes:
        """See `Conversation`."""
        return bytes(self.machine.trailing_data)

    def push_back(self, data: bytes) -> None:
        self.machine.receive_data(data)

    def answer(self, reply: Reply) -> None:
        self.client.send_soon(self.last_answer(reply))

    def last_answer(self, reply: Reply) -> bytes:
        self.session.reply_code = reply.reply_code
        return bytes(self.machine.send(reply))


class Serve(Protocol):
    """Carries out one command: on return the session is over, a relay has it, or the reply that is returned ends it."""

    name: str

    async def __call__(self, conversation: Conversation) -> Reply | None: ...


class Commands:
    """Carries out what clients ask for.

    Args:
        serves: what carries out each CMD of RFC 1928.
        handshake: the deadline of the whole handshake, already running when a stream is handed in.
    """

    def __init__(self, serves: Mapping[int, Serve], handshake: Handshakes) -> None:
        self.serves = serves
        self.handshake = handshake
        self.linger = handshake.linger

    async def carry_out(self, command: int, conversation: Conversation) -> None:
        """Carry out a request, whose destination is the session's, or refuse it."""
        session, serve = conversation.session, self.serves.get(command)
        session.command = str(command) if serve is None else serve.name
        try:
            if serve is None:
                raise RemoteProtocolError(f"command {command:#04x} is not supported", ReplyCode.COMMAND_NOT_SUPPORTED)
            last = await serve(conversation)
        except TabiError as exc:
            await self.refuse_request(conversation, refusal_of(exc))
            return
        if last is not None:
            session.close = "server"
            await self.linger_close(conversation.client, lambda: conversation.answer(last))

    async def refuse_request(self, conversation: Conversation, refusal: Refusal) -> None:
        """Refuse a request, in the way that the refusal says."""
        reply = Reply(refusal.reply_code)
        await self.refuse(conversation.client, conversation.session, refusal, lambda: conversation.answer(reply))

    async def refuse(self, client: Stream, session: Session, refusal: Refusal, answer: Callable[[], None]) -> None:
        """Refuse a client, in the way that the refusal says; ``answer`` sends its words in the client's protocol."""
        session.error, session.close = refusal.text, refusal.close
        if refusal.action == "deny":
            await self.linger_close(client, answer)
        else:
            await self.refuse_silently(client, refusal.action)

    async def refuse_silently(self, client: Stream, action: str) -> None:
        """Refuse without an answer: with a reset, or by keeping the client waiting as long as a handshake may take."""
        self.handshake.stop(client)
        if action == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        self.handshake.start(client)
        try:
            await swallow(client)
        except (OSError, LimitExceeded):  # TimeoutError is one
            pass
        finally:
            self.handshake.stop(client)

    async def linger_close(self, client: Stream, answer: Callable[[], None] = lambda: None) -> None:
        """End, and stay until the client has read it all: a close with octets unread would be a reset and lose it."""
        self.handshake.stop(client)
        client.on_gone = None  # this task waits for nothing else, and both ends look like a client that is gone
        self.linger.start(client)
        try:
            answer()
            client.send_eof()
            await swallow(client)
        except OSError:  # TimeoutError is one
            pass
        finally:
            self.linger.stop(client)
