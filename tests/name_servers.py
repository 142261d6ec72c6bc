"""Name servers of tests, on loopback: by UDP, TCP, TLS and HTTPS; honest, lying, refusing and silent ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Literal, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.reversename
import dns.rrset
import h2.config
import h2.connection
import h2.events
from dns.message import QueryMessage
from dns.rdatatype import RdataType

from authorities import server_context
from support import target

Lie = Literal["", "id", "question", "record", "nonsense", "no response"]


class Zone:
    """What a server knows, and how it behaves.

    Args:
        table: addresses by name; a name in place of addresses is what it is an alias of.
        ttl: of all records, and of the SOA that comes with what does not exist.
        names: by address, as zone files have them.
    """

    def __init__(
        self,
        table: Mapping[str, Sequence[str] | str] | None = None,
        ttl: int = 60,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.table = dict(table or {})
        self.pointers = {
            dns.reversename.from_address(address).to_text(omit_final_dot=True): found
            for address, found in (names or {}).items()
        }
        self.ttl = ttl
        self.rcode = dns.rcode.NOERROR
        self.lie: Lie = ""
        self.fails: set[RdataType] = set()
        """Types of records that it fails to find."""
        self.denies: set[RdataType] = set()
        """Types for which it says that the name does not exist."""
        self.drops: set[RdataType] = set()
        """Types that it does not answer as long as ``dropping`` is not set."""
        self.dropping = asyncio.Event()
        self.dislikes_edns: dns.rcode.Rcode | None = None
        """What it answers to a question with EDNS."""
        self.answering = asyncio.Event()
        """Cleared, it is silent."""
        self.answering.set()
        self.asked: list[tuple[str, RdataType]] = []
        self.sizes: list[int] = []

    async def reply(self, octets: bytes) -> bytes:
        """The answer to a question."""
        query = dns.message.from_wire(octets)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append((name, RdataType(question.rdtype)))
        self.sizes.append(len(octets))
        await self.answering.wait()
        if question.rdtype in self.drops:
            await self.dropping.wait()
        response = cast("QueryMessage", dns.message.make_response(query))
        if query.edns >= 0 and self.dislikes_edns is not None:
            response.use_edns(False)
            response.set_rcode(self.dislikes_edns)
            return response.to_wire()
        if question.rdtype in self.denies:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return response.to_wire()
        response.flags |= dns.flags.RA
        if self.rcode or question.rdtype in self.fails:
            response.set_rcode(self.rcode or dns.rcode.SERVFAIL)
            return response.to_wire()
        owner = name
        while isinstance(found := self.table.get(owner), str):
            response.answer.append(dns.rrset.from_text(f"{owner}.", self.ttl, "IN", "CNAME", f"{found}."))
            owner = found
        if question.rdtype == RdataType.PTR:
            found = addresses = [f"{text}." for text in self.pointers.get(owner, ())]
        else:
            kind = 4 if question.rdtype == RdataType.A else 6
            addresses = [text for text in found or () if ip_address(text).version == kind]
        if addresses:
            shown = "other.test" if self.lie == "record" else owner
            rdtype = RdataType.to_text(RdataType(question.rdtype))
            response.answer.append(dns.rrset.from_text(f"{shown}.", self.ttl, "IN", rdtype, *addresses))
        else:
            top = "arpa." if question.rdtype == RdataType.PTR else "test."
            soa = dns.rrset.from_text(top, self.ttl, "IN", "SOA", f"a.test. b.test. 1 1 1 1 {self.ttl}")
            response.authority.append(soa)
        if not found and (found is None or question.rdtype == RdataType.PTR):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.lie == "id":
            response.id ^= 1
        elif self.lie == "question":
            response.question[0].name = dns.name.from_text("other.test")
        elif self.lie == "no response":
            response.flags &= ~dns.flags.QR
        octets = response.to_wire(max_size=65535)
        return octets[:2] + b"\xff" * 9 if self.lie == "nonsense" else octets


@contextlib.asynccontextmanager
async def udp_server(zone: Zone, port: int = 0, truncate: bool = False) -> AsyncIterator[int]:
    """A server by UDP; gives its port. With ``truncate`` answers are empty and say that there is more."""
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    async def answer(octets: bytes, client: object) -> None:
        answer = await zone.reply(octets)
        if truncate:
            whole = dns.message.from_wire(answer)
            whole.answer.clear()
            whole.flags |= dns.flags.TC
            answer = whole.to_wire()
        sock.sendto(answer, client)  # type: ignore[call-overload]

    def serve() -> None:
        octets, client = sock.recvfrom(65536)
        task = loop.create_task(answer(octets, client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        loop.add_reader(sock, serve)
        try:
            yield sock.getsockname()[1]
        finally:
            loop.remove_reader(sock)
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class StreamServer:
    """What a server by TCP or TLS does with connections: answers in any order; it can be told to end them."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.connections = 0
        self.questions_each = 1 << 30
        """After so many questions it closes a connection, the last one unanswered."""
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)

        async def answer(octets: bytes) -> None:
            octets = await self.zone.reply(octets)
            writer.write(len(octets).to_bytes(2, "big") + octets)

        count = 0
        async with asyncio.TaskGroup() as group:
            with contextlib.suppress(EOFError):
                while True:
                    octets = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                    count += 1
                    if count > self.questions_each:
                        break
                    group.create_task(answer(octets))


class HttpServer:
    """The same by HTTPS, with HTTP/1.1, or HTTP/2 where ALPN has chosen that."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.connections = 0
        self.status = 200
        self.heads: list[dict[str, str]] = []
        """The fields of each request, names in lower case; of HTTP/1.1 the request line as ``:request``."""
        self.padding = 0
        """Octets behind each answer."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        with contextlib.suppress(EOFError):
            await (self.serve_two if tls.selected_alpn_protocol() == "h2" else self.serve_one)(reader, writer)

    async def answer(self, octets: bytes) -> bytes:
        return await self.zone.reply(octets) + bytes(self.padding)

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """HTTP/1.1, one request after the other."""
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            fields = {":request": head[0]}
            for line in filter(None, head[1:]):
                name, _, value = line.partition(": ")
                fields[name.lower()] = value
            self.heads.append(fields)
            octets = await self.answer(await reader.readexactly(int(fields["content-length"])))
            writer.write(f"HTTP/1.1 {self.status} Status\r\nContent-Length: {len(octets)}\r\n\r\n".encode() + octets)

    async def serve_two(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """HTTP/2, requests side by side."""
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        bodies: dict[int, bytes] = {}

        async def answer(stream: int) -> None:
            octets = await self.answer(bodies[stream])
            connection.send_headers(stream, [(":status", str(self.status))])
            connection.send_data(stream, octets, end_stream=True)
            writer.write(connection.data_to_send())

        async with asyncio.TaskGroup() as group:
            writer.write(connection.data_to_send())
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.heads.append(dict(cast("list[tuple[str, str]]", event.headers)))
                        bodies[event.stream_id] = b""
                    elif isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id] += event.data
                    elif isinstance(event, h2.events.StreamEnded):
                        group.create_task(answer(event.stream_id))
                writer.write(connection.data_to_send())


@contextlib.asynccontextmanager
async def stream_server(
    serve: StreamServer | HttpServer, context: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[int]:
    """Run one of these two; gives its port."""
    async with target(serve, port=port, context=context) as found:
        yield found


def tls_context(*protocols: str) -> ssl.SSLContext:
    """A server's context, for localhost and 127.0.0.1; with ALPN where protocols are given."""
    context = server_context.__wrapped__()
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context
