"""Datagrams for tests: destinations that echo, and associations spoken octet by octet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any, Self

import msgspec
import pytest

from depth import PORTABLE
from doubles import LOOPBACK, Clock, FakeResolver, Serving, config, greet, read_reply
from sockets import family_of, turns
from support import client, credentials, request
from tabi import Login, Server, Session, User
from tabi.config import LimitsConfig, Listen, RuleConfig, Udp, UsersGrammar, make_config
from tabi.config.compile import make_distort
from tabi.distort.faulty_association import FaultyAssociation
from tabi.net import datagram as datagrams
from tabi.net.datagram import PLAIN, SINGLE, DatagramIo, Features, probe
from tabi.policy.distorts import Distort, Distorts
from tabi.policy.ledger import USED
from tabi.relay.datagram import Association
from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Direction, Emit
from tabi.relay.inspection import Inspection
from tabi.server.distortion import Molding
from tabi.session import Drop
from tabi.wire.address import Address, decode_address, from_sockaddr, parse_host
from tabi.wire.datagram import decode_header, encode_header

FEATURES: dict[str, Features] = {"batches": probe(None), "single": SINGLE, "plain": PLAIN}
if PORTABLE:
    FEATURES = dict.fromkeys(FEATURES, PLAIN)
"""What the kernel may have: the same behaviour with each."""

Answer = Callable[[bytes, Any], Sequence[tuple[bytes, Any]]]
"""What a destination sends, and where to, for each datagram and its sender."""


def use_features(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code under test have some of what the kernel offers."""
    monkeypatch.setattr(datagrams.threads, "io", DatagramIo(FEATURES[name]), raising=False)


@contextlib.contextmanager
def udp_socket(host: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    """A bound, non-blocking UDP socket."""
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((host, port))
        yield sock


def send_back(data: bytes, sender: Any) -> Sequence[tuple[bytes, Any]]:
    """Echo."""
    return [(data, sender)]


class Destination:
    """A UDP socket that answers whatever it gets; ``received`` has what that was, and from whom."""

    def __init__(self, sock: socket.socket, answer: Answer) -> None:
        self.sock = sock
        self.answer = answer
        self.received: list[tuple[bytes, Any]] = []
        self.address = Address(parse_host(sock.getsockname()[0]), sock.getsockname()[1])
        self.header = encode_header(self.address)

    def on_ready(self) -> None:
        while True:
            try:
                data, sender = self.sock.recvfrom(65535)
            except BlockingIOError:
                return
            self.received.append((data, sender))
            for octets, address in self.answer(data, sender):
                self.sock.sendto(octets, address)


@contextlib.contextmanager
def destination(host: str = "127.0.0.1", answer: Answer = send_back, port: int = 0) -> Iterator[Destination]:
    """A destination on this machine, on the running loop."""
    loop = asyncio.get_running_loop()
    with udp_socket(host, port) as sock:
        found = Destination(sock, answer)
        loop.add_reader(sock, found.on_ready)
        try:
            yield found
        finally:
            loop.remove_reader(sock)


class Client:
    """The client's two ends of an association: the control connection and a UDP socket.

    ``relay`` is BND as the reply had it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sock: socket.socket) -> None:
        self.reader = reader
        self.writer = writer
        self.sock = sock
        self.relay = Address(IPv4Address("0.0.0.0"), 0)

    async def associate(self, declared: Address | None = None) -> Self:
        """Ask for the association."""
        assert await self.greet() == 0
        host, port = declared or Address(IPv4Address("0.0.0.0"), 0)
        self.writer.write(request(str(host), port, 3))
        reply_code, bound = await read_reply(self.reader)
        assert reply_code == 0, f"reply {reply_code}"
        found = decode_address(bound, 0)
        assert found is not None
        self.relay = found[0]
        return self

    async def greet(self) -> int:
        """Say who the client is: nobody. Returns 0 if it may go on."""
        return await greet((self.reader, self.writer))

    def send(self, data: bytes) -> None:
        """Send octets to the relay, header and all."""
        self.sock.sendto(data, (str(self.relay.host), self.relay.port))

    async def receive(self) -> bytes:
        """The next datagram from the relay, header and all."""
        return await receive(self.sock)

    async def ask(self, data: bytes) -> bytes:
        """Send, and wait for what comes."""
        self.send(data)
        return await self.receive()

    def leave(self) -> None:
        """End the control connection."""
        self.writer.close()


async def receive(sock: socket.socket) -> bytes:
    """The next datagram of a socket; the patience of the `run` fixture limits it."""
    return await asyncio.get_running_loop().sock_recv(sock, 65535)


@contextlib.asynccontextmanager
async def association(
    proxy: Address, declared: Address | None = None, host: str = "127.0.0.1", buffer: int = 4 << 20
) -> AsyncIterator[Client]:
    """An association through a proxy without users; both its connection and its UDP socket are on ``host``."""
    async with client(proxy, host) as (reader, writer):
        with udp_socket(host) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            if declared is not None and declared.port == 0:
                declared = Address(declared.host, sock.getsockname()[1])
            yield await Client(reader, writer, sock).associate(declared)


def unwrap(data: bytes) -> tuple[Address, bytes]:
    """The sender and the payload of a datagram from the relay, which must be whole."""
    frag, address, start = decode_header(data)
    assert (data[:2], frag) == (b"\0\0", 0)
    return address, data[start:]


class Place(Serving):
    """A server and the sessions that ended at it: ``async with Place() as place``."""

    def __init__(
        self,
        udp: Udp | None = None,
        url: str = LOOPBACK,
        names: dict[str, list[str]] | None = None,
        limits: LimitsConfig | None = None,
        **seconds: float,
    ) -> None:
        self.resolver = FakeResolver(names)
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        settings = config(Listen(url, udp=udp or Udp()), **seconds)
        self.server = Server(
            config=msgspec.structs.replace(settings, limits=limits or LimitsConfig()),
            resolver=self.resolver,
            on_close=self.ended.put_nowait,
        )

    @property
    def one(self) -> Association:
        """The association that there is."""
        (found,) = self.server.parts.associations.active
        return found

    @property
    def drops(self) -> dict[Drop, int]:
        """What it has dropped so far."""
        assert self.one.session.drops is not None
        return self.one.session.drops

    async def end(self, client: Client) -> Session:
        """End an association and return its session."""
        client.leave()
        return await self.ended.get()


Look = Callable[[Datagram, Emit], object]


class Inspector(DatagramInspector):
    """Looks with a function, and remembers what it was shown."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self.seen: list[Datagram] = []

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        self.seen.append(datagram)
        self.look(datagram, emit)

    @property
    def payloads(self) -> list[tuple[str, bytes]]:
        """What it has seen."""
        return [(datagram.direction, datagram.payload) for datagram in self.seen]


class Watcher:
    """Hears of the destinations and senders of an association, and has an inspector look into it from one on."""

    def __init__(self, association: Association, wanted: tuple[str, Address] | None = None) -> None:
        self.association = association
        self.wanted = wanted
        self.heard: list[tuple[Any, ...]] = []
        self.inspector = Inspector(pass_on)
        association.watch = self

    def __call__(self, direction: Direction, destination: Address, address: Address | None = None) -> None:
        self.heard.append((direction, destination) if address is None else (direction, destination, address))
        if self.heard[-1] == self.wanted:
            self.association.watch = None
            self.association.look_into(self.inspector.inspect)


def pass_on(datagram: Datagram, emit: Emit) -> None:
    """Change nothing."""
    emit(datagram.payload)


OUT = {"rule": [{"action": "allow", "via": "out"}]}


class Front(Place):
    """A server whose datagrams leave by the egress ``out``, if the rules do not say something else."""

    def __init__(self, egress: dict[str, Any], names: dict[str, list[str]] | None = None, **parts: Any) -> None:
        settings = {"log": {"access": "none"}, "listen": [{"url": "socks5://127.0.0.1:0"}], **OUT, **parts}
        self.resolver = FakeResolver(names)
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        config = make_config({**settings, "egress": {"out": egress}})
        self.server = Server(config=config, resolver=self.resolver, on_close=self.ended.put_nowait)


class FakeProxy:
    """A proxy whose relay is in the test's hands: what arrives there is whatever was sent to ``relay``."""

    def __init__(self, relay: socket.socket) -> None:
        self.relay = relay
        self.bound = from_sockaddr(relay.getsockname())
        self.reply_code = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked = 0
        self.controls: list[asyncio.StreamWriter] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Agree to an association, and keep it."""
        self.controls.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(3)
            writer.write(b"\x05\x00")
            assert (await reader.readexactly(10))[1] == 3
            self.asked += 1
            await self.answering.wait()
            writer.write(bytes((5, self.reply_code, 0)) + encode_header(self.bound)[3:])
            await reader.read()
        writer.close()

    async def arrived(self) -> tuple[bytes, Any]:
        """The next datagram at the relay, and who sent it."""
        return await asyncio.get_running_loop().sock_recvfrom(self.relay, 65535)

    def end(self) -> None:
        """End all associations."""
        for writer in self.controls:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def fake_proxy() -> AsyncIterator[FakeProxy]:
    """Run one."""
    with udp_socket() as relay:
        proxy = FakeProxy(relay)
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.url = f"socks5://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield proxy
            proxy.answering.set()
            proxy.end()
        await turns()


async def refusal(front: Place) -> tuple[int, str | None]:
    """The reply to an association that is refused, and the error of its line."""
    async with client(front.address) as (reader, writer):
        writer.write(b"\x05\x01\x00" + request("0.0.0.0", 0, 3))
        reply_code = (await reader.readexactly(12))[3]
    return reply_code, (await front.ended.get()).error


def limited(limits: dict[str, object]) -> Place:
    """A server on which everybody together has limits."""
    found: LimitsConfig = make_config({"limits": limits}).limits
    return Place(limits=found)


def used(place: Place) -> int:
    """Octets that everybody has used."""
    ledger = place.server.ledger
    return ledger.cells[ledger.rows["server"] + USED]


SHARED = Listen(LOOPBACK, udp=Udp(ports="shared"))


def let_in(login: Login) -> User:
    """Anybody is a user, with the limits that the password names."""
    limits = {"connections": int(login.password)} if login.password.isdecimal() else None
    return User(login.username, limits=limits)


class Office(Serving):
    """A server whose clients all come from one address, and prove who they are."""

    def __init__(self, listen: Listen = SHARED, decide: object = None, rules: list[RuleConfig] | None = None) -> None:
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        settings = msgspec.structs.replace(
            config(listen), rule=rules or [], users_grammar=UsersGrammar({"country": "label"})
        )
        self.server = Server(
            config=settings,
            authenticate=let_in,
            decide=decide,  # type: ignore[arg-type]
            on_close=self.ended.put_nowait,
        )

    @contextlib.asynccontextmanager
    async def user(self, name: str, declared: Address | None = None, password: str = "pw") -> AsyncIterator[Client]:
        """An association of a user."""
        async with client(self.address) as (reader, writer):
            with udp_socket() as sock:

                class Known(Client):
                    async def greet(self) -> int:
                        assert await greet((reader, writer), b"\x02") == 2
                        writer.write(credentials(name.encode(), password.encode()))
                        return (await reader.readexactly(2))[1]

                if declared is not None and declared.port == 0:
                    declared = Address(declared.host, sock.getsockname()[1])
                yield await Known(reader, writer, sock).associate(declared)

    def shares(self, client: Client) -> bool:
        """Whether an association has the port of all."""
        return client.relay == self.address

    async def end(self, client: Client) -> Session:
        """End an association and return its session."""
        client.leave()
        return await self.ended.get()


def entries(*said: dict[str, Any]) -> list[Distort]:
    """``[[distort]]`` entries, as a program sets them."""
    config = make_config({"distort": list(said)})
    return [make_distort(one, number) for number, one in enumerate(config.distort)]


class Faulty(Place):
    """A server with faults: ``async with Faulty({"fault": {"loss": 0.1}}) as place``.

    ``clock`` is that of associations and their faults, and goes on only when it is told, by `Faulty.later`.
    """

    def __init__(self, *said: dict[str, Any], names: dict[str, list[str]] | None = None, **parts: Any) -> None:
        self.resolver = FakeResolver(names)
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        settings = {"log": {"access": "none"}, "listen": [{"url": "socks5://127.0.0.1:0"}], "distort": said, **parts}
        self.server = Server(config=make_config(settings), resolver=self.resolver, on_close=self.ended.put_nowait)
        self.clock = Clock()

    def stop_the_clock(self) -> None:
        """Have time pass only when it is told."""
        self.server.parts.associations.context.time = self.clock

    @property
    def molding(self) -> Molding:
        """What acts by the entries."""
        assert self.server.parts.molding is not None
        return self.server.parts.molding

    @property
    def faults(self) -> FaultyAssociation:
        """Those of the association that there is."""
        return self.molding.datagrams.faulty[self.one.session]

    def take(self, *found: Distort) -> None:
        """Act by these entries from now on."""
        self.server.parts.take_distorts(Distorts(found))

    def carry(self, direction: Any, address: Address, payload: bytes) -> None:
        """Have a datagram pass the faults, as if the client or a destination had sent it."""
        one = self.one
        if one.watch is not None:
            one.watch(direction, address)
        if one.inspection is not None:
            self.faults.carry(direction, address, payload)
        else:
            Inspection(one, {}).send(direction, address, payload)

    def later(self, seconds: float) -> None:
        """Time passes, and the timer of the association's faults runs."""
        self.clock.now += seconds
        self.faults.go()
