"""A name server that is asked by UDP, and by TCP for what does not fit (RFC 1035 section 4.2, RFC 7766)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from secrets import randbelow
from typing import Any, cast

from tabi.errors import DialError
from tabi.net.kinds import first_answer
from tabi.net.resolve import IP, Answer, Named, make_named, pointer_of
from tabi.wire.address import Address
from tabi.wire.dns import (
    AAAA,
    NOERROR,
    NXDOMAIN,
    PTR,
    RCODES,
    A,
    DnsAnswer,
    decode_answer,
    encode_message,
    encode_question,
)
from tabi.wire.socks5 import ReplyCode

SHARED, SOCKETS = 64, 8
"""Questions that share a socket, while there are fewer sockets than that: a port of its own for each lookup makes it
hard to forge an answer, but a descriptor for each would be too many."""

STREAMS = 8
"""Questions that are asked by TCP at a time."""

RESENT = 0.5
"""The part of a question's time after which it is sent once more: one datagram may be lost."""

BATCH = 32
"""Answers that a socket takes in a turn of the loop."""


class UdpServer:
    """One name server, as a source of answers. Names are asked for as they are given.

    Args:
        loop: on which the answers arrive.
        address: of the server.
        seconds: for an answer; as many again if it has to come by TCP.
        kinds: the types of addresses to ask for.
        only_tcp: do not ask by UDP.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        seconds: float,
        kinds: Sequence[int] = (A, AAAA),
        only_tcp: bool = False,
    ) -> None:
        self.loop = loop
        self.address = address
        self.seconds = seconds
        self.kinds = kinds
        self.only_tcp = only_tcp
        self.sockets: list[QuestionSocket] = []
        """The last one is for new questions."""
        self.tasks: set[asyncio.Task[DnsAnswer]] = set()
        self.streams = asyncio.Semaphore(STREAMS)

    async def answer(self, name: str) -> Answer:
        """See `Source`."""
        try:
            questions = [encode_question(name, kind) for kind in self.kinds]
        except ValueError as exc:
            return Answer([], None, f"misformatted name: {exc}")
        asked = [Question(self, question, name, self.loop.create_future()) for question in questions]
        for one in asked:
            one.begin()
        return await first_answer([one.future for one in asked])

    async def reverse(self, address: IP) -> Named:
        """See `Source`."""
        name = pointer_of(address)
        one: Question = Question(self, encode_question(name, PTR), str(address), self.loop.create_future())
        one.begin()
        try:
            return cast("Named", await one.future)
        finally:
            one.future.cancel()

    def socket_for_one(self) -> QuestionSocket:
        """The socket for one more question. Raises OSError."""
        if not self.sockets or (self.sockets[-1].count >= SHARED and len(self.sockets) < SOCKETS):
            self.sockets.append(QuestionSocket(self))
        return self.sockets[-1]

    async def ask_by_tcp(self, question: bytes) -> DnsAnswer:
        """Ask over a connection of its own. Raises OSError, EOFError, TimeoutError and ValueError."""
        async with asyncio.timeout(self.seconds), self.streams:
            reader, writer = await asyncio.open_connection(str(self.address.host), self.address.port)
            try:
                octets = encode_message(randbelow(65536), question)
                writer.write(len(octets).to_bytes(2, "big") + octets)
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            finally:
                writer.transport.abort()
        answer = decode_answer(data, question) if data[:2] == octets[:2] else None
        if answer is None:
            raise ValueError("an answer to another question")
        return answer

    async def close(self) -> None:
        """See `Source`; questions under way end with an error."""
        for task in tuple(self.tasks):
            task.cancel()
        for sock in tuple(self.sockets):
            sock.fail("the resolver was closed")
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Question:
    """A question under way: it is answered, fails, or its future is cancelled."""

    __slots__ = ("future", "name", "number", "question", "server", "sock", "timer")

    def __init__(self, server: UdpServer, question: bytes, name: str, future: asyncio.Future[Any]) -> None:
        self.server = server
        self.question = question
        self.name = name
        self.future = future
        self.sock: QuestionSocket | None = None
        self.timer: asyncio.TimerHandle | None = None
        future.add_done_callback(self.end)

    def begin(self) -> None:
        """Send it."""
        if self.server.only_tcp:
            self.go_on_by_tcp(None)
            return
        try:
            self.sock = self.server.socket_for_one()
        except OSError as exc:
            self.fail(str(exc.strerror).lower(), ReplyCode.GENERAL_FAILURE)
            return
        seconds = self.server.seconds
        self.number = self.sock.add(self)
        self.timer = self.server.loop.call_later(seconds * RESENT, self.send_again, seconds * (1 - RESENT))
        self.sock.send(encode_message(self.number, self.question))

    def send_again(self, seconds: float) -> None:
        """The first datagram, or the answer, may be lost."""
        assert self.sock is not None
        self.timer = self.server.loop.call_later(seconds, self.fail, f"no answer within {self.server.seconds:g} s")
        self.sock.send(encode_message(self.number, self.question))

    def take(self, answer: DnsAnswer) -> None:
        """An answer has come by UDP."""
        if answer.truncated:
            self.leave()
            self.go_on_by_tcp(answer)
        else:
            self.finish(answer)

    def go_on_by_tcp(self, part: DnsAnswer | None) -> None:
        """Ask by TCP; if that is not possible, ``part`` is better than nothing."""

        def asked(task: asyncio.Task[DnsAnswer]) -> None:
            server.tasks.discard(task)
            if self.future.done():
                return
            if task.cancelled():
                self.fail("the resolver was closed")
            elif (exc := task.exception()) is None:
                self.finish(task.result())
            elif part is not None and part.values:
                self.finish(part)
            elif isinstance(exc, TimeoutError) and not exc.args:
                self.fail(f"no answer within {server.seconds:g} s")
            else:
                self.fail(str(getattr(exc, "strerror", None) or exc).lower())

        server = self.server
        task = server.loop.create_task(server.ask_by_tcp(self.question))
        server.tasks.add(task)
        task.add_done_callback(asked)
        self.future.add_done_callback(lambda _: task.cancel())

    def finish(self, answer: DnsAnswer) -> None:
        """Say what the server has said."""
        if self.future.done():
            return
        if answer.rcode not in (NOERROR, NXDOMAIN):
            self.fail(RCODES.get(answer.rcode, f"RCODE {answer.rcode}").lower())
            return
        reason = "domain name not found" if answer.rcode == NXDOMAIN else ""
        found: Answer | Named
        if self.question[-4:-2] == PTR.to_bytes(2, "big"):
            found = make_named(map(str, answer.values), answer.ttl)
            found = found._replace(text=reason) if reason else found
        else:
            found = Answer(cast("list[IP]", answer.values), answer.ttl, reason or "no address")
        self.future.set_result(found)

    def fail(self, text: str, reply_code: int = ReplyCode.HOST_UNREACHABLE) -> None:
        """There is no answer; 01 if the server could not even be asked."""
        if not self.future.done():
            error = DialError(f"{self.name}: {self.server.address}: {text}", reply_code)
            self.future.set_exception(error)
            self.future.exception()  # perhaps no task waits for it any more
            self.leave()

    def end(self, future: asyncio.Future[Any]) -> None:
        """It is answered or cancelled."""
        self.leave()

    def leave(self) -> None:
        """Give back the place at the socket."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.sock is not None:
            self.sock.remove(self)
            self.sock = None


class QuestionSocket:
    """A socket connected to a server, with a port that the system chooses; it closes when no question waits for it."""

    __slots__ = ("count", "server", "sock", "waiting")

    def __init__(self, server: UdpServer) -> None:
        self.server = server
        self.count = 0
        """Questions that it was used for."""
        self.waiting: dict[int, Question] = {}
        host, port = server.address
        family = socket.AF_INET if host.version == 4 else socket.AF_INET6  # type: ignore[union-attr]
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self.sock.connect((str(host), port))
            server.loop.add_reader(self.sock.fileno(), self.receive)
        except BaseException:
            self.sock.close()
            raise

    def add(self, question: Question) -> int:
        """Have a question wait; returns its ID."""
        number = randbelow(65536)
        while number in self.waiting:
            number = randbelow(65536)
        self.waiting[number] = question
        self.count += 1
        return number

    def remove(self, question: Question) -> None:
        """It does not wait any more."""
        del self.waiting[question.number]
        if not self.waiting:
            self.server.loop.remove_reader(self.sock.fileno())
            self.sock.close()
            self.server.sockets.remove(self)

    def send(self, octets: bytes) -> None:
        """Send a question. What cannot be sent now is as good as lost."""
        try:
            self.sock.send(octets)
        except BlockingIOError:
            pass
        except OSError as exc:
            self.server.loop.call_soon(self.fail, str(exc.strerror).lower())

    def receive(self) -> None:
        """Take answers; ignore what is not one to a question that waits: it may be forged."""
        for _ in range(BATCH):
            if self.sock.fileno() < 0:
                return
            try:
                data = self.sock.recv(65535)
            except BlockingIOError:
                return
            except OSError as exc:
                self.fail(str(exc.strerror).lower())
                return
            question = self.waiting.get(int.from_bytes(data[:2], "big"))
            if question is None:
                continue
            try:
                answer = decode_answer(data, question.question)
            except ValueError:
                continue
            if answer is not None:
                question.take(answer)

    def fail(self, text: str) -> None:
        """No question that waits will be answered."""
        for question in tuple(self.waiting.values()):
            question.fail(text, ReplyCode.GENERAL_FAILURE)
