"""Methods of SOCKS5: which is chosen, several messages before the request, and a layer below it afterwards."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest

from authentication import METHOD, Answers, Questions
from conftest import Run
from tabi.egress.client_methods import ClientMethod, NoAuthentication
from tabi.egress.socks5 import request
from tabi.errors import AuthError
from tabi.ingress.auth_methods import AuthMethod, MethodChoice, Refused
from tabi.ingress.conversation import Commands, Conversation
from tabi.ingress.socks5 import Socks5Ingress
from tabi.net.handshakes import Handshakes
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import Command, Reply

CLIENT = Address(ip_address("127.0.0.1"), 40000)
BOUND = Address(ip_address("192.0.2.7"), 1234)


class Named:
    """A method that is only chosen, never asked."""

    def __init__(self, method: int) -> None:
        self.method = method

    async def authenticate(self, conversation: object) -> None:
        raise AssertionError("this is not asked here")


@pytest.mark.parametrize(
    ("known", "required", "offered", "expected"),
    [
        (False, True, b"\x00\x02", 2),
        (False, True, b"\x01\x02", 2),
        (False, True, b"\x02\x80", 0x80),
        (False, True, b"\x00", None),
        (False, True, b"", None),
        (False, False, b"\x00\x02", 2),
        (False, False, b"\x00", 0),
        (True, True, b"\x00\x02", 0),
        (True, True, b"\x02", 2),
        (True, False, b"\x03", None),
    ],
)
def test_the_method_that_the_server_prefers(known: bool, required: bool, offered: bytes, expected: int | None) -> None:
    """The first of the server's methods that the client offers. A client with a certificate need not prove more."""
    choice = MethodChoice((Named(0x80), Named(2)), required)
    session = Session(1, "", CLIENT, 0.0)
    session.user = "alice" if known else None
    found = choice.choose(session, offered)
    assert (None if isinstance(found, Refused) else found.method) == expected


def test_why_no_method_is_acceptable() -> None:
    """The log says what the client offered and what would have been accepted."""
    session = Session(1, "", CLIENT, 0.0)
    for choice, offered, text in (
        (MethodChoice((Named(0x80), Named(2)), required=True), b"\x00\x01", "offered 00 01, expected 0x80 or 0x02"),
        (MethodChoice((), required=False), b"", "offered none, expected 0x00"),
        (MethodChoice((), required=True), b"\x00", "offered 00, expected 0x02"),
    ):
        refused = choice.choose(session, offered)
        assert isinstance(refused, Refused)
        assert refused.answer.method == 0xFF
        assert refused.refusal.text == f"no acceptable method: {text}"


class Scene:
    """A client and an ingress at the two ends of a connection."""

    def __init__(self, methods: tuple[AuthMethod, ...]) -> None:
        reactor = get_reactor()
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        self.client, self.server = Stream(reactor, ours), Stream(reactor, theirs)
        self.handshake = Handshakes(reactor.loop, 10)
        self.session = Session(1, "socks5://127.0.0.1:1080", CLIENT, 0.0)
        self.commands = Commands({Command.CONNECT: Answering()}, self.handshake)
        self.ingress = Socks5Ingress(self.commands, methods, required=True)

    async def serve(self) -> None:
        """Serve the one client, and close its connection."""
        self.handshake.start(self.server)
        try:
            await self.ingress.serve(self.server, self.session)
        finally:
            self.server.close()
            self.handshake.close()
            self.commands.linger.close()


class Answering:
    """A CONNECT that succeeds without going anywhere: it sends back what follows, and ends."""

    name = "connect"

    async def __call__(self, conversation: Conversation) -> None:
        conversation.answer(Reply(0, BOUND))
        stream = conversation.client
        await stream.send_all(conversation.trailing_data or await stream.receive())


def test_a_method_with_several_messages_and_a_layer_of_its_own(run: Run) -> None:
    """Several messages go both ways before the request; request, reply and payload go through the method's layer."""

    async def main() -> None:
        scene = Scene((Questions(),))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(scene.serve())
            async with scene.client as stream:
                offered: tuple[ClientMethod, ...] = (NoAuthentication(), Answers())
                _, reply = await request(stream, Command.CONNECT, Address("example.com", 443), offered)
                assert reply.bound == BOUND
                await stream.send_all(b"payload")
                assert await stream.receive() == b"payload"
        assert (scene.session.user, scene.session.destination) == ("riddler", Address("example.com", 443))

    run(main)


def test_a_method_that_refuses(run: Run) -> None:
    """The method's own message says no, the client can read it, and the log has the method's reason."""

    async def main() -> None:
        scene = Scene((Questions(),))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(scene.serve())
            async with scene.client as stream:
                with pytest.raises(AuthError, match="did not like the answers"):
                    await request(stream, Command.CONNECT, Address("example.com", 443), (Answers(right=False),))
        session = scene.session
        assert (session.close, session.error, session.user, session.command) == ("denied", "a wrong answer", None, None)

    run(main)


@pytest.mark.parametrize("octets", [b"\xff", b"\x05ab"])
def test_a_broken_negotiation_ends_the_connection(run: Run, octets: bytes) -> None:
    """What is not a message of the method, or ends in the middle of one, ends this connection without an answer."""

    async def main() -> None:
        scene = Scene((Questions(),))

        async def serve() -> None:
            with pytest.raises(Exception, match=r"expected 100 at most|ended in the middle of the negotiation"):
                await scene.serve()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve())
            async with scene.client as stream:
                await stream.send_all(b"\x05\x01" + bytes((METHOD,)) + octets)
                stream.send_eof()
                answer = b""
                while data := await stream.receive():
                    answer += data
        assert answer == b"\x05\x80\x0aquestion 0"

    run(main)
