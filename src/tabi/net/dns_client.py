"""Name servers that are asked by TCP (RFC 7766), TLS (RFC 7858) and HTTPS (RFC 8484); messages are dnspython's.

Imported only where such a server is in the configuration: dnspython, with what it needs for HTTPS, is tabi's extra
``dns``.

    DnsServer      a name -> two questions, A and AAAA -> an Answer; an address -> PTR -> a Named; the deadline; every
                   failure becomes a DialError
    StreamCarrier  carries them over one connection, many under way at a time, told apart by their ids
    HttpsCarrier   carries them by HTTP/2
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Protocol

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import httpx2
from dns.message import ChainingResult, QueryMessage
from dns.rdatatype import RdataType

from tabi.errors import DialError
from tabi.net.kinds import first_answer
from tabi.net.resolve import IP, Answer, Named, Resolver, make_named, without_zone
from tabi.url import ServerURL
from tabi.wire.dns import AAAA, A
from tabi.wire.socks5 import ReplyCode

IDLE = 10.0
"""Seconds after which an idle connection is closed (RFC 7766 section 6.2.3)."""

DISLIKE = (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.SERVFAIL)
"""What servers answer that do not know EDNS (RFC 6891 section 7)."""

PADDING = 128
"""Encrypted questions are padded to a multiple of this, in octets (RFC 8467 section 4.1)."""

MAX_MESSAGE = 65535
TYPE = "application/dns-message"


class Carrier(Protocol):
    """Brings a question to a name server and its answer back."""

    answered: int
    """Answers that have come."""

    async def exchange(self, query: QueryMessage) -> dns.message.Message:
        """Ask. The caller sets the deadline.

        Raises:
            OSError, EOFError, ssl.SSLError, httpx2.HTTPError, DNSException, DialError: there is no answer.
        """

    def silent(self, before: int) -> None:
        """A question had no answer in its time: if nothing has come since ``answered`` was ``before``, the connection
        counts as dead."""

    async def close(self) -> None:
        """End the connection."""


class DnsServer:
    """One name server, as a source of answers.

    Args:
        name: of the server, for messages.
        carrier: closed with it.
        seconds: for an answer, connecting included.
        padding: see PADDING; 0 for none, and then without EDNS (RFC 6891), which some servers answer wrongly.
        kinds: the types of addresses to ask for.
    """

    def __init__(
        self, name: str, carrier: Carrier, seconds: float, padding: int = 0, kinds: Sequence[int] = (A, AAAA)
    ) -> None:
        self.name = name
        self.kinds = [RdataType(kind) for kind in kinds]
        self.carrier = carrier
        self.seconds = seconds
        self.padding = padding

    async def answer(self, name: str) -> Answer:
        """See `Source`."""
        try:
            question = dns.name.from_text(name)
        except dns.exception.DNSException as exc:
            return Answer([], None, f"misformatted name: {str(exc).lower()}")
        loop = asyncio.get_running_loop()
        return await first_answer([loop.create_task(self.ask(name, question, kind)) for kind in self.kinds])

    async def reverse(self, address: IP) -> Named:
        """See `Source`."""
        question = dns.reversename.from_address(without_zone(address))
        return read_named(*await self.exchange(str(address), question, RdataType.PTR))

    async def ask(self, name: str, question: dns.name.Name, kind: RdataType) -> Answer:
        """One question for addresses. Raises DialError."""
        return read_answer(*await self.exchange(name, question, kind))

    async def exchange(self, what: str, name: dns.name.Name, kind: RdataType) -> tuple[ChainingResult, str]:
        """One question about ``what``, and what `read_chain` makes of its answer. Raises DialError."""
        query = self.make_query(name, kind, self.padding)
        before = self.carrier.answered
        try:
            async with asyncio.timeout(self.seconds):
                message = await self.carrier.exchange(query)
                if query.edns >= 0 and message.rcode() in DISLIKE:
                    message = await self.carrier.exchange(self.make_query(name, kind, 0))
                return read_chain(message)
        except TimeoutError:
            self.carrier.silent(before)
            raise self.failure(what, f"no answer within {self.seconds:g} s") from None
        except Exception as exc:
            raise self.failure(what, str(exc).lower() or type(exc).__name__) from exc

    def make_query(self, name: dns.name.Name, kind: RdataType, padding: int) -> QueryMessage:
        """A message that asks; with EDNS only if it is to be padded."""
        query = dns.message.make_query(name, kind, use_edns=0 if padding else None, pad=padding)
        assert isinstance(query, QueryMessage)
        return query

    def failure(self, name: str, text: str) -> DialError:
        """The error for a question that this server does not answer."""
        return DialError(f"{name}: {self.name}: {text}", ReplyCode.HOST_UNREACHABLE)

    async def close(self) -> None:
        """See `Source`."""
        await self.carrier.close()


class Refused(Exception):
    """The server has answered that it cannot answer."""


def read_answer(chain: ChainingResult, text: str) -> Answer:
    """The addresses of the name that was asked for, or of what it is an alias of; the arguments are `read_chain`'s."""
    addresses: list[IP] = [ip_address(record.address) for record in chain.answer or ()]
    return Answer(addresses, chain.minimum_ttl, text or "no address")


def read_named(chain: ChainingResult, text: str) -> Named:
    """The name of the address that was asked for; the arguments are `read_chain`'s."""
    named = make_named([record.target.to_text() for record in chain.answer or ()], chain.minimum_ttl)
    return named._replace(text=text) if text else named


def read_chain(message: dns.message.Message) -> tuple[ChainingResult, str]:
    """The records of the name that was asked for, or of what it is an alias of; other records say nothing.

    Returns:
        The records, and why there are none, if that is known.

    Raises:
        Refused: the server failed.
        DNSException: the message contradicts itself.
    """
    code = message.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise Refused(dns.rcode.to_text(code))
    if not isinstance(message, QueryMessage) or message.flags & dns.flags.TC:
        raise Refused("half an answer")
    return message.resolve_chaining(), "domain name not found" if code == dns.rcode.NXDOMAIN else ""


class Place:
    """Where a name server is: the addresses of its host, one after the other if one does not answer."""

    def __init__(self, url: ServerURL, bootstrap: Resolver | None) -> None:
        self.host, self.port = url.address
        self.bootstrap = bootstrap
        self.turn = 0

    async def find(self) -> tuple[list[str], int]:
        """The addresses, in the order to try them, and whose turn it is. Raises DialError if there are none."""
        addresses: Sequence[object] = [self.host]
        if isinstance(self.host, str):
            assert self.bootstrap is not None
            addresses = await self.bootstrap.resolve(self.host)
        first = self.turn % len(addresses)
        return [str(address) for address in (*addresses[first:], *addresses[:first])], self.turn

    def failed(self, turn: int) -> None:
        """Move on to the next address. Questions that fail at the same time count once."""
        if turn == self.turn:
            self.turn += 1


class StreamCarrier:
    """DNS over TCP or TLS: a connection is opened when there is a question, and serves all until it is idle or ends.

    Args:
        url: of the server.
        bootstrap: asked for the server's name; may be None where it is an address.
        context: for TLS; None is TCP.
    """

    def __init__(self, url: ServerURL, bootstrap: Resolver | None, context: ssl.SSLContext | None = None) -> None:
        self.place = Place(url, bootstrap)
        self.context = context
        self.connection: Connection | None = None
        self.answered = 0
        self.opening = asyncio.Lock()
        self.connections: set[Connection] = set()

    async def exchange(self, query: QueryMessage) -> dns.message.Message:
        """See `Carrier`. If the server closes the connection during a question, it is asked once more: the connection
        may have been idle."""
        connection, fresh = await self.connect()
        try:
            return await connection.ask(query)
        except (EOFError, OSError):
            if fresh:
                raise
        connection, _ = await self.connect()
        return await connection.ask(query)

    def silent(self, before: int) -> None:
        """See `Carrier`."""
        if self.connection is not None and self.answered == before:
            self.place.failed(self.connection.turn)
            self.connection.task.cancel()

    async def connect(self) -> tuple[Connection, bool]:
        """The connection, and whether it is new."""
        async with self.opening:
            if self.connection is not None and not self.connection.ended:
                return self.connection, False
            addresses, turn = await self.place.find()
            try:
                streams = await self.open(addresses)
            except BaseException:
                self.place.failed(turn)
                raise
            connection = self.connection = Connection(self, *streams, turn)
            self.connections.add(connection)
            connection.task.add_done_callback(lambda _: self.connections.discard(connection))
            return connection, True

    async def open(self, addresses: list[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that takes it. Raises OSError, of the last one."""
        name = str(self.place.host) if self.context is not None else None
        while True:
            address = addresses.pop(0)
            try:
                return await asyncio.open_connection(address, self.place.port, ssl=self.context, server_hostname=name)
            except OSError:
                if not addresses:
                    raise

    async def close(self) -> None:
        """See `Carrier`."""
        tasks = [connection.task for connection in self.connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Connection:
    """A connection to a name server: messages with their length in front (RFC 1035 section 4.2.2)."""

    def __init__(
        self, carrier: StreamCarrier, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: int
    ) -> None:
        self.carrier = carrier
        self.reader = reader
        self.writer = writer
        self.turn = turn
        """See `Place.find`."""
        self.waiting: dict[int, tuple[QueryMessage, asyncio.Future[dns.message.Message]]] = {}
        self.ended = False
        self.task = asyncio.get_running_loop().create_task(self.read())

    async def ask(self, query: QueryMessage) -> dns.message.Message:
        """Send a question and wait for its answer. Raises EOFError where the connection ends before it."""
        if self.ended:
            raise EOFError("the connection was closed")
        while query.id in self.waiting:
            query.id = dns.message.make_query(".", RdataType.A).id
        octets = query.to_wire()
        future: asyncio.Future[dns.message.Message] = asyncio.get_running_loop().create_future()
        self.waiting[query.id] = query, future
        try:
            self.writer.write(len(octets).to_bytes(2, "big") + octets)
            return await future
        finally:
            del self.waiting[query.id]

    async def read(self) -> None:
        """Give each answer to the task that waits for it, until the connection ends or is idle."""
        try:
            while True:
                try:
                    async with asyncio.timeout(IDLE):
                        head = await self.reader.readexactly(2)
                except TimeoutError:
                    if self.waiting:
                        continue
                    return
                self.receive(await self.reader.readexactly(int.from_bytes(head, "big")))
        except (OSError, EOFError):
            return
        finally:
            self.ended = True
            for _, future in self.waiting.values():
                if not future.done():
                    future.set_exception(EOFError("the connection was closed"))
            self.writer.transport.abort()  # TLS would wait for the server's close_notify
            with contextlib.suppress(OSError):
                await self.writer.wait_closed()

    def receive(self, octets: bytes) -> None:
        """Take an answer, and ignore one that no task has asked for."""
        self.carrier.answered += 1
        query, future = self.waiting.get(int.from_bytes(octets[:2], "big"), (None, None))
        if query is None or future is None or future.done():
            return
        try:
            message = dns.message.from_wire(octets)
        except Exception as exc:  # for a broken message dnspython raises more than it documents
            future.set_exception(Refused(f"no message: {exc}"))
            return
        if query.is_response(message):
            future.set_result(message)


class HttpsCarrier:
    """DNS over HTTPS, by HTTP/2 or 1.1 as the server has it; connections are kept by the client of HTTP.

    Args:
        url: of the server.
        bootstrap: asked for the server's name; may be None where it is an address.
        context: for TLS.
    """

    def __init__(self, url: ServerURL, bootstrap: Resolver | None, context: ssl.SSLContext) -> None:
        self.place = Place(url, bootstrap)
        self.url = url
        self.context = context
        self.client = self.make_client()
        self.answered = 0
        """Answers that have come."""
        self.closing: set[asyncio.Task[None]] = set()

    def make_client(self) -> httpx2.AsyncClient:
        """A client without a proxy and without a deadline of its own."""
        headers = {"accept": TYPE, "content-type": TYPE, "accept-encoding": "identity", "user-agent": "tabi"}
        return httpx2.AsyncClient(http2=True, verify=self.context, trust_env=False, timeout=None, headers=headers)

    async def exchange(self, query: QueryMessage) -> dns.message.Message:
        """See `Carrier`. The request goes to an address, so that the name is not looked up again; it is in SNI and in
        Host."""
        query.id = 0  # RFC 8484 section 4.1
        addresses, turn = await self.place.find()
        try:
            octets = await self.post_somewhere(self.client, addresses, query.to_wire())
        except httpx2.HTTPError:
            self.place.failed(turn)
            raise
        self.answered += 1
        try:
            message = dns.message.from_wire(octets)
        except Exception as exc:  # for a broken message dnspython raises more than it documents
            raise Refused(f"no message: {exc}") from exc
        if not query.is_response(message):
            raise Refused("an answer to another question")
        return message

    async def post_somewhere(self, client: httpx2.AsyncClient, addresses: list[str], octets: bytes) -> bytes:
        """`post`, to the first address that can be connected to."""
        while True:
            try:
                return await self.post(client, addresses.pop(0), octets)
            except httpx2.ConnectError:
                if not addresses:
                    raise

    async def post(self, client: httpx2.AsyncClient, address: str, octets: bytes) -> bytes:
        """Send a question, and read what comes back. Raises httpx2.HTTPError and Refused."""
        target = f"[{address}]" if ":" in address else address
        host = str(self.place.host)
        name = f"[{host}]" if ":" in host else host
        request = client.stream(
            "POST",
            f"https://{target}:{self.place.port}{self.url.path}",
            content=octets,
            headers={"host": name if self.place.port == 443 else f"{name}:{self.place.port}"},
            extensions={"sni_hostname": host},
        )
        answer = b""
        async with request as response:
            if response.status_code != 200:
                raise Refused(f"HTTP status {response.status_code}")
            async for chunk in response.aiter_raw():
                answer += chunk
                if len(answer) > MAX_MESSAGE:
                    raise Refused(f"more than {MAX_MESSAGE} octets")
        return answer

    def silent(self, before: int) -> None:
        """See `Carrier`; then begin anew, with other connections."""
        if self.answered != before:
            return
        self.place.failed(self.place.turn)
        self.answered += 1  # once for all questions of that connection
        client, self.client = self.client, self.make_client()
        task = asyncio.get_running_loop().create_task(client.aclose())
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)

    async def close(self) -> None:
        """See `Carrier`."""
        try:
            await asyncio.gather(*self.closing, return_exceptions=True)
        finally:
            await self.client.aclose()
