"""An authentication method that only tests have, both sides of it: it asks several questions, then hides all octets."""

from __future__ import annotations

from typing import Any

from tabi.egress.upstream import read_exactly
from tabi.errors import AuthError, RemoteProtocolError
from tabi.ingress.auth_methods import Refused
from tabi.ingress.conversation import MachineConversation
from tabi.ingress.refusal import login_refused
from tabi.net.stream import LayeredSock, Sock, Stream
from tabi.wire.socks5 import ClientMachine, MethodMessage

METHOD = 0x80
QUESTIONS = 3


def length(octets: bytearray) -> int:
    """A message is its length in one octet, and a text."""
    if octets[0] > 100:
        raise RemoteProtocolError(f"a message of {octets[0]} octets, expected 100 at most")
    return 1 + octets[0]


def message(text: bytes) -> MethodMessage:
    """A message with a text."""
    return MethodMessage(bytes((len(text),)) + text)


class Hidden(LayeredSock):
    """A socket over another one, on which each octet is another: what a method puts below the request."""

    def __init__(self, below: Sock) -> None:
        self.below = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return hide(self.below.recv(size, flags))

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        count = self.below.recv_into(buffer)
        buffer[:count] = hide(bytes(buffer[:count]))
        return count

    def send(self, data: bytes | memoryview, /) -> int:
        return self.below.send(hide(bytes(data)))


class Turned:
    """Datagrams with every bit turned around, behind a mark."""

    mark = b"turned"

    def wrap(self, data: bytes) -> bytes:
        return self.mark + hide(data)

    def unwrap(self, data: bytes) -> bytes:
        if not data.startswith(self.mark):
            raise ValueError("the mark is missing")
        return hide(data.removeprefix(self.mark))


def hide(octets: bytes) -> bytes:
    """Turn every bit around."""
    return bytes(octet ^ 0xFF for octet in octets)


class Questions:
    """The server's side: a client that returns each question turned around is the user of that name."""

    method = METHOD

    async def authenticate(self, conversation: MachineConversation) -> Refused | None:
        machine = conversation.machine
        machine.negotiate(length)
        for number in range(QUESTIONS):
            question = b"question %d" % number
            conversation.send(message(question))
            if (await conversation.next_message()) != message(question[::-1]):
                return Refused(message(b"no"), login_refused("a wrong answer"))
        conversation.send(message(b"yes"))
        machine.negotiated()
        conversation.session.user = "riddler"
        client = conversation.client
        client.sock = Hidden(client.sock)
        conversation.session.protection = Turned()
        return None


class Answers:
    """The client's side."""

    method = METHOD

    def __init__(self, right: bool = True) -> None:
        self.right = right

    async def authenticate(self, stream: Stream, machine: ClientMachine) -> None:
        machine.negotiate(length)
        while (asked := (await read_exactly(stream, machine)).octets[1:]) not in (b"yes", b"no"):
            await stream.send_all(machine.send(message(asked[::-1] if self.right else asked)))
        if asked == b"no":
            raise AuthError("the proxy did not like the answers")
        machine.negotiated()
        stream.sock = Hidden(stream.sock)
