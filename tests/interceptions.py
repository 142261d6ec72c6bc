"""A server that intercepts, clients and destinations inside TLS, and what hooks and recorders were told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

import authorities
from destinations import trusting, write_authority
from doubles import FakeResolver, Streams, until
from http_proxy import read_chunks
from support import GREETING, request, target
from tabi import Config, Server, Session
from tabi.config import Listen, Log, Seconds, Timeouts
from tabi.config.schema import Ca, InterceptConfig
from tabi.intercept.authority import Authority
from tabi.intercept.flow import Flow
from tabi.intercept.hooks import Hooks
from tabi.intercept.record import Record
from tabi.policy.intercepts import InterceptRule
from tabi.wire.address import Address

NAMES = {"localhost": ["127.0.0.1"], "other.test": ["127.0.0.1"], "third.test": ["127.0.0.1"]}
LISTEN = "mixed://127.0.0.1:0"


class RuleDoubles:
    """The same hooks and recorder for every ``[[intercept]]``."""

    def __init__(self, hooks: Hooks, records: list[Record] | None) -> None:
        self.of_all = hooks
        self.records = records

    def hooks(self, rule: InterceptRule) -> Hooks:
        return self.of_all

    def see_octets(self) -> bool:
        """See `Rules`."""
        return bool(self.of_all.tcp_data)

    def recorder(self, rule: InterceptRule) -> RuleDoubles | None:
        return None if self.records is None else self

    def record(self, record: Record, rule: InterceptRule) -> None:
        """See `Recorder`."""
        assert self.records is not None
        self.records.append(record)


class Intercepting:
    """A running server that intercepts.

    Attributes:
        ended: its sessions that have ended.
        records: what a recorder got; None without one.
    """

    def __init__(self, server: Server, authority: Authority, records: list[Record] | None) -> None:
        self.server = server
        self.authority = authority
        self.records = records
        self.ended: asyncio.Queue[Session] = asyncio.Queue()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.server.addresses[0]

    def context(self, **options: object) -> ssl.SSLContext:
        """The context of a client that trusts our authority only."""
        context = trusting(self.authority, **options)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        return context

    async def socket(self, port: int, host: str = "localhost") -> socket.socket:
        """A connection through the proxy, by SOCKS5."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, (str(self.address.host), self.address.port))
            await loop.sock_sendall(sock, GREETING)
            assert await exactly(sock, 2) == b"\x05\x00"
            await loop.sock_sendall(sock, request(host, port))
            reply = await exactly(sock, 10)
            assert reply[:2] == b"\x05\x00", f"reply {reply.hex()}"
        except BaseException:
            sock.close()
            raise
        return sock

    @contextlib.asynccontextmanager
    async def plain(self, port: int, host: str = "localhost") -> AsyncIterator[Streams]:
        """A client of SOCKS5 without TLS."""
        async with streams_of(await self.socket(port, host)) as streams:
            yield streams

    @contextlib.asynccontextmanager
    async def tls(
        self,
        port: int,
        host: str = "localhost",
        context: ssl.SSLContext | None = None,
        alpn: tuple[str, ...] = (),
        sni: str | None = None,
    ) -> AsyncIterator[Streams]:
        """A client of SOCKS5 with TLS inside."""
        context = context or self.context()
        if alpn:
            context.set_alpn_protocols(list(alpn))
        sock = await self.socket(port, host)
        async with streams_of(sock, ssl=context, server_hostname=sni or host) as streams:
            yield streams

    @contextlib.asynccontextmanager
    async def peer(self, port: int, host: str = "localhost") -> AsyncIterator[authorities.TlsPeer]:
        """A client of SOCKS5 with TLS inside, in steps that a test chooses."""
        sock = await self.socket(port, host)
        try:
            peer = authorities.TlsPeer(sock, self.context())
            await peer.handshake()
            yield peer
        finally:
            sock.close()


@contextlib.asynccontextmanager
async def streams_of(sock: socket.socket, **options: Any) -> AsyncIterator[Streams]:
    """asyncio's streams on a socket."""
    try:
        reader, writer = await asyncio.open_connection(sock=sock, **options)
    except BaseException:
        sock.close()
        raise
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()


async def exactly(sock: socket.socket, count: int) -> bytes:
    """Receive exactly so much."""
    data = b""
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        assert part, f"the end behind {data!r}"
        data += part
    return data


@contextlib.asynccontextmanager
async def intercepting(
    folder: Path,
    *hooks: object,
    entries: list[InterceptConfig] | None = None,
    records: bool = False,
    names: Mapping[str, list[str]] = NAMES,
    options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    hook_seconds: float = 10.0,
    **more: Any,
) -> AsyncIterator[Intercepting]:
    """A server that intercepts everything, whose destinations the authority of the tests vouches for.

    Floats are timeouts, all other keywords those of one ``[[intercept]]``. At the end of the test every session must
    have ended.
    """
    seconds = {name: Seconds(more.pop(name)) for name in list(more) if isinstance(more[name], float)}
    authority = write_authority(folder / "ca")
    trust = folder / "trust.pem"
    trust.write_bytes(authorities.authority().cert_pem.bytes())
    more.setdefault("trust", str(trust))
    whole = Config(
        listen=[Listen(LISTEN)],
        timeouts=Timeouts(**seconds),
        log=Log(access="none"),
        ca=Ca(str(folder / "ca" / "ca.crt"), str(folder / "ca" / "ca.key")),
        intercept=[InterceptConfig(**more)] if entries is None else entries,
    )
    if config:
        whole = msgspec.structs.replace(whole, **config)
    found: list[Record] | None = [] if records else None
    holder: list[Intercepting] = []
    server = Server(
        on_close=lambda session: holder[0].ended.put_nowait(session),
        resolver=FakeResolver(names),
        config=whole,
        **(options or {}),
    )
    holder.append(Intercepting(server, authority, found))
    async with server:
        interception = server.parts.interception
        assert interception is not None
        rules = RuleDoubles(Hooks(hooks, hook_seconds, bool(more.get("on_error") == "close")), found)
        interception.rules.hooks = rules.hooks  # type: ignore[method-assign]
        interception.rules.recorder = rules.recorder  # type: ignore[method-assign]
        interception.rules.see_octets = rules.see_octets  # type: ignore[method-assign]
        try:
            yield holder[0]
            await until(lambda: not server.parts.sessions.running)
            assert not interception.chosen
            assert not interception.tunnels.active
            assert not interception.first.active
        finally:
            rules.of_all.close()


@contextlib.asynccontextmanager
async def origin(
    *answers: bytes, context: ssl.SSLContext | None = None, plain: bool = False, stays: bool = True
) -> AsyncIterator[Script]:
    """A destination inside TLS that says the answers to the heads that come, one after another; see `Script`."""
    script = Script(answers, stays)
    async with target(script.serve, context=None if plain else context or authorities.server_context()) as port:
        script.port = port
        yield script


class Script:
    """What a destination says and has got. Behind its answers it waits for the client's end if it ``stays``.

    Attributes:
        heads: those that came.
        bodies: the content that came behind each, where it has a Content-Length.
        connections: how many there were.
    """

    def __init__(self, answers: tuple[bytes, ...], stays: bool) -> None:
        self.answers = list(answers)
        self.stays = stays
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the client ends, or no answer is left."""
        self.connections += 1
        while self.answers:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            self.heads.append(head)
            self.bodies.append(await body_of(head, reader))
            writer.write(self.answers.pop(0))
            await writer.drain()
        if self.stays:
            await reader.read()


async def body_of(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The content behind a head."""
    lower = head.lower()
    if b"\r\ntransfer-encoding:" in lower:
        return await read_chunks(reader)
    if b"\r\ncontent-length:" in lower:
        count = int(lower.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        return await reader.readexactly(count)
    return b""


async def talk(streams: Streams, octets: bytes, *expected: bytes) -> None:
    """Send octets, and have others come back, exactly."""
    reader, writer = streams
    writer.write(octets)
    for one in expected:
        assert await reader.readexactly(len(one)) == one


class Slow:
    """A hook that waits: then nothing is left to the relay."""

    async def request(self, flow: Flow) -> None:
        await asyncio.sleep(0)


def hooks_of(engine: str) -> tuple[object, ...]:
    """Hooks that have sessions carried by the relay ("passing") or by their task ("task")."""
    return (Slow(),) if engine == "task" else ()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def refused(proxy: Intercepting, port: int, host: str, context: ssl.SSLContext) -> bool:
    """Whether a client refuses the certificate."""
    with await proxy.socket(port, host) as sock:
        peer = authorities.TlsPeer(sock, context)
        peer.tls = context.wrap_bio(peer.incoming, peer.outgoing, server_hostname=host)
        try:
            await peer.handshake()
        except ssl.SSLCertVerificationError:
            await peer.push()  # the alert
            return True
    return False
