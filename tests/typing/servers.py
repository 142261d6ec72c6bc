"""A program that embeds a server, with everything of its own that a server takes."""

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import tabi
from tabi.wire import Address, ReplyCode

IP = IPv4Address | IPv6Address


def check_password(login: tabi.Login) -> str | None:
    """A plain function."""
    print(login.client.host, login.protocol, login.listener, login.tls_identity)
    return login.username if login.password == "secret" else None


async def ask_directory(login: tabi.Login) -> tabi.User | None:
    """One that waits, and knows more of its users."""
    await asyncio.sleep(0)
    limits = tabi.config.LimitsConfig(connections=10, bandwidth=1e6)
    return tabi.User(login.username, groups=["dev"], limits=limits) if login.username else None


def fingerprint(session: tabi.Session) -> str | None:
    sniffed: tabi.Sniffed | None = session.sniffed
    return None if sniffed is None else sniffed.ja4


def decide(session: tabi.Session) -> tabi.Decision | None:
    """A plain function."""
    if session.destination is not None and session.destination.port == 25:
        return tabi.Decision("deny", reason="no mail", reply_code=ReplyCode.NOT_ALLOWED)
    return None


async def decide_later(session: tabi.Session) -> tabi.Decision:
    """One that waits, and sends some elsewhere."""
    await asyncio.sleep(0)
    if session.user == "guest":
        return tabi.Decision(via="socks5://192.0.2.1:1080", delay=0.5, limits={"bandwidth": "1 MB/s"}, rule="guests")
    return tabi.Decision(via=Rotating("socks5://192.0.2.2:1080"))


class Rotating(tabi.Egress):
    """An egress with the base class."""

    def __init__(self, *urls: str) -> None:
        self.proxies = [tabi.Proxy(url) for url in urls]

    async def open(
        self, destination: Address, address_filter: tabi.AddressFilter, session: tabi.Session | None = None
    ) -> tabi.Stream:
        if isinstance(destination.host, IPv4Address | IPv6Address):
            address_filter(destination.host)
        return await self.proxies[0].connect(*destination)


class Plain:
    """One without it."""

    async def open(
        self, destination: Address, address_filter: Callable[[IP], None], session: tabi.Session | None = None
    ) -> tabi.Stream:
        raise tabi.DialError(f"{destination}: not today", ReplyCode.HOST_UNREACHABLE)


class Capitals(tabi.Stage):
    """A stage."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[bytes] = []

    def receive(self, data: bytes) -> None:
        self.waiting.append(data.upper())
        self.held += len(data)
        self.call_later(0.1, self.release)

    def release(self) -> None:
        data = self.waiting.pop(0)
        self.held -= len(data)
        self.emit(data)
        if self.ended and not self.waiting:
            self.emit_end()

    def receive_end(self) -> None:
        if not self.waiting:
            self.emit_end()

    def flush(self) -> None:
        while self.waiting:
            self.release()


class Counting(tabi.Stage):
    """A stage that only counts."""

    copies = False

    def note(self, count: int) -> None:
        print(count)


async def carry(tunnel: tabi.Tunnel) -> None:
    """A carrier."""
    greeting: bytes = await tunnel.server.receive()
    await tunnel.client.send_all(greeting)
    print(tunnel.session.user, tunnel.client.get_extra_info("peername"))
    await tunnel.relay(up=[Capitals(), Counting()], down=[Counting()])


class Carrier:
    """The same as an object."""

    async def carry(self, tunnel: tabi.Tunnel) -> None:
        tunnel.hand_over()


class Shout(tabi.DatagramInspector):
    """An inspector of datagrams."""

    def inspect(self, datagram: tabi.Datagram, emit: tabi.Emit) -> None:
        if datagram.direction == "up":
            emit(datagram.payload.upper())
            emit(datagram.payload, ("192.0.2.1", 53), delay=0.5)
        else:
            emit(datagram.payload, datagram.address)


class ForEach(tabi.DatagramInspector):
    """One that keeps something for each association."""

    def begin(self, session: tabi.Session) -> Callable[[tabi.Datagram, tabi.Emit], None] | None:
        return Shout().inspect if session.user else None


class Dials(tabi.DialInspector):
    """An inspector of dials."""

    async def dial(self, session: tabi.Session | None, destination: Address) -> Address | None:
        if destination.port == 23:
            raise tabi.PolicyDenied("telnet is over")
        return Address(destination.host, 8080) if destination.port == 80 else None


class Names(tabi.DialInspector):
    """One that has one method only."""

    async def resolve(self, session: tabi.Session | None, name: str) -> None:
        if name.endswith(".invalid"):
            raise tabi.DialError(f"{name}: does not exist", ReplyCode.HOST_UNREACHABLE)


class Hearing(tabi.SessionObserver):
    """An observer."""

    def connected(self, session: tabi.Session) -> None:
        print(session.address, session.connect_seconds)

    def ended(self, session: tabi.Session) -> None:
        print(session.copy().close, session.up, session.down, session.drops)


class Pinned:
    """A resolver."""

    async def resolve(self, name: str) -> list[IP]:
        return [ip_address("192.0.2.9")]

    async def close(self) -> None:
        pass


def on_close(session: tabi.Session) -> None:
    """A call-back."""
    print(session.number, session.started, session.reply_code, session.error)


def servers(given: socket.socket) -> list[tabi.Server]:
    """All that a server takes."""
    config = tabi.Config(
        timeouts=tabi.config.Timeouts(idle=30.0, connect=5),
        log=tabi.config.Log(access="none"),
        rule=[tabi.config.RuleConfig("deny", ports=[25, "465-587"])],
    )
    compiled: tabi.Compiled = tabi.compile_config(config)
    return [
        tabi.Server("socks5://127.0.0.1:0", "http://127.0.0.1:0", users={"alice": "secret"}, open=False),
        tabi.Server(
            "mixed://127.0.0.1:0",
            authenticate=check_password,
            decide=decide,
            egresses={"rotating": Rotating("socks5://192.0.2.1:1080"), "plain": Plain()},
            carrier=carry,
            datagrams=Shout(),
            dials=Dials(),
            config=config,
            on_open=print,
            on_close=on_close,
            observers=[Hearing()],
            resolver=Pinned(),
            sockets=[given],
        ),
        tabi.Server(
            authenticate=ask_directory,
            decide=decide_later,
            carrier=Carrier(),
            datagrams=ForEach(),
            dials=Names(),
            compiled=compiled,
        ),
        tabi.Server(
            intercept=["*.example.com", {"tls": False}, tabi.config.InterceptConfig()], hooks=[Plain(), Hearing()]
        ),
        tabi.Server(carrier=tabi.Intercept("*.example.com", hooks=[Plain()], authority=("ca.crt", "ca.key"))),
    ]


async def bad_network(server: tabi.Server) -> None:
    """Faults while it runs."""
    fault: tabi.LiveFault = server.set_fault("3g", hosts=["*.example.com"], jitter="20ms")
    fault.change("edge", latency=0.5)
    sessions: int = fault.sessions + fault.chosen
    print(sessions, fault.name, fault.acts)
    fault.remove()
    async with server.fault(latency="200ms", up={"bandwidth": "1 MB/s"}) as other:
        other.change(latency=None)


async def serve(server: tabi.Server) -> None:
    """Its life."""
    async with server as running:
        url: str = running.url
        urls: list[str] = [*running.urls, running.url_for("http")]
        ports: list[int] = [address.port for address in running.addresses]
        print(url, urls, ports)
        sessions: list[tabi.SessionInfo] = running.sessions()
        for session in sessions:
            if session.up + session.down > 1_000_000 and session.user != "alice":
                session.end()
        try:
            later: list[str] = running.reload(tabi.config.load_config("tabi.toml"))
        except tabi.ConfigError as exc:
            print(exc.path, [error.message for error in exc.errors])
        else:
            print(later, running.config.timeouts.idle + 1.0)
        left: int = await running.drain(5)
        print(left)
        await running.serve_forever()
    await server.close()
