"""The client's side of SOCKS5 on a stream: what is sent, what is read, and what each answer becomes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from conftest import Run
from doubles import reset
from support import Handler, closed_port, credentials, request, target
from tabi.egress import socks5
from tabi.egress.direct import Direct
from tabi.egress.socks5 import REPLY_TEXTS, Socks5, read_reply
from tabi.errors import AuthError, DialError, ProxyError, RemoteProtocolError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address, parse_address
from tabi.wire.socks5 import ClientMachine, Command, Credentials, Reply, ReplyCode

DESTINATION = parse_address("example.com:443")
REQUEST = request("example.com", 443)
SUCCESS = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"
ALICE = Credentials(b"alice", b"secret")


def scripted(*steps: tuple[bytes, bytes]) -> Handler:
    """A proxy that knows one conversation: what it expects octet by octet, and what it answers to that."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for expected, answer in steps:
            if await reader.readexactly(len(expected)) != expected:
                writer.transport.abort()
                return
            writer.write(answer)
        await reader.read()

    return handle


async def open_through(port: int, login: Credentials | None = None, seconds: float = 10) -> Stream:
    """Open DESTINATION through the proxy on a port."""
    dialer = Dialer(get_reactor(), ThreadResolver(), seconds)
    try:
        egress = Socks5(Direct(dialer), parse_address(f"127.0.0.1:{port}"), login, dialer.deadlines)
        return await egress.open(DESTINATION, allow_any_address)
    finally:
        await dialer.close()


def converse(run: Run, handler: Handler, login: Credentials | None = None, seconds: float = 10) -> None:
    """Open and close once with such a proxy."""

    async def main() -> None:
        async with target(handler) as port:
            (await open_through(port, login, seconds)).close()

    run(main)


def test_without_credentials_one_method_is_offered(run: Run) -> None:
    """05 01 00, then the request with the name as it is: the proxy resolves it."""
    converse(run, scripted((b"\x05\x01\x00", b"\x05\x00"), (REQUEST, SUCCESS)))


GREETING = (b"\x05\x01\x00", b"\x05\x00")
SECOND = b"\x05\x00\x00\x01\x7f\x00\x00\x02\xc3\x50"


async def ask_through(port: int, command: int, seconds: float = 10) -> tuple[Stream, ClientMachine, Reply]:
    """Ask the proxy on a port for a command."""
    dialer = Dialer(get_reactor(), ThreadResolver(), seconds)
    try:
        egress = Socks5(Direct(dialer), parse_address(f"127.0.0.1:{port}"), None, dialer.deadlines)
        return await egress.ask(command, DESTINATION, allow_any_address)
    finally:
        await dialer.close()


@pytest.mark.parametrize("command", Command)
def test_each_command_is_asked_for_with_its_first_reply(run: Run, command: Command) -> None:
    """CMD is what was asked for; BND, which BIND and UDP ASSOCIATE need, comes back."""

    async def main() -> None:
        steps = (GREETING, (request("example.com", 443, command), SUCCESS))
        async with target(scripted(*steps)) as port:
            stream, _, reply = await ask_through(port, command)
            stream.close()
            assert (reply.reply_code, reply.bound) == (0, parse_address("127.0.0.1:1080"))

    run(main)


@pytest.mark.parametrize("pause", [False, True])
def test_the_second_reply_of_bind_and_no_octet_behind_it(run: Run, pause: bool) -> None:
    """It may come with the first in one segment or much later, and the peer's first octets with it: they stay."""
    go = asyncio.Event()

    async def bind(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for expected, answer in (GREETING, (request("example.com", 443, Command.BIND), b"")):
            assert await reader.readexactly(len(expected)) == expected
            writer.write(answer)
        if pause:
            writer.write(SUCCESS)
            await go.wait()
            writer.write(SECOND + b"payload")
        else:
            writer.write(SUCCESS + SECOND + b"payload")
        await reader.read()

    async def main() -> None:
        async with target(bind) as port:
            stream, machine, first = await ask_through(port, Command.BIND)
            async with stream:
                assert first.bound == parse_address("127.0.0.1:1080")
                go.set()
                second = await read_reply(stream, machine, DESTINATION)
                assert second.bound == parse_address("127.0.0.2:50000")
                payload = b""
                while len(payload) < 7:
                    payload += await stream.receive()
                assert payload == b"payload"

    run(main)


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (b"\x05\x04\x00\x01" + bytes(6), ProxyError("example.com:443: the proxy says host unreachable (reply 04)", 4)),
        (b"\x05\x00\x00\x02" + bytes(6), RemoteProtocolError("ATYP 0x02, expected 0x01, 0x03 or 0x04", 8)),
        (SECOND[:6], RemoteProtocolError("the peer ended in the middle of the second reply")),
        (b"", RemoteProtocolError("the peer ended in the middle of the second reply")),
    ],
)
def test_a_second_reply_that_is_none(run: Run, second: bytes, error: ProxyError | RemoteProtocolError) -> None:
    """A failure keeps its code and names the destination; rubbish and an end are called so."""

    async def bind(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"\x05\x00")
        await reader.readexactly(len(REQUEST))
        writer.write(SUCCESS + second)

    async def main() -> None:
        async with target(bind) as port:
            stream, machine, _ = await ask_through(port, Command.BIND)
            async with stream:
                with pytest.raises(type(error)) as caught:
                    await read_reply(stream, machine, DESTINATION)
                assert (str(caught.value), caught.value.reply_code) == (str(error), error.reply_code)

    run(main)


def test_a_command_that_is_refused_closes_its_connection(run: Run) -> None:
    """The proxy sees the end; the code is kept."""
    ended = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"\x05\x00")
        await reader.readexactly(len(REQUEST))
        writer.write(b"\x05\x07\x00\x01" + bytes(6))
        assert await reader.read() == b""
        ended.set()

    async def main() -> None:
        async with target(refuse) as port:
            with pytest.raises(ProxyError, match="command not supported") as caught:
                await ask_through(port, Command.UDP_ASSOCIATE)
            assert caught.value.reply_code == ReplyCode.COMMAND_NOT_SUPPORTED
            await ended.wait()

    run(main)


def test_with_credentials_the_proxy_chooses(run: Run) -> None:
    """Both methods are offered; user name and password are sent only where the proxy wants them."""
    greeting = b"\x05\x02\x00\x02"
    converse(run, scripted((greeting, b"\x05\x00"), (REQUEST, SUCCESS)), ALICE)
    login = (credentials(b"alice", b"secret"), b"\x01\x00")
    converse(run, scripted((greeting, b"\x05\x02"), login, (REQUEST, SUCCESS)), ALICE)


@pytest.mark.parametrize(
    "bound",
    [b"\x01\x00\x00\x00\x00\x00\x00", b"\x04" + bytes(18), b"\x03\x0bexample.com\x01\xbb"],
    ids=["IPv4", "IPv6", "name"],
)
def test_no_octet_behind_the_reply_is_read(run: Run, bound: bytes) -> None:
    """The destination's first octets may come in the same segment: all of them stay in the socket."""
    payload = b"payload " * 1000

    async def main() -> None:
        steps = ((b"\x05\x01\x00", b"\x05\x00"), (REQUEST, b"\x05\x00\x00" + bound + payload))
        async with target(scripted(*steps)) as port, await open_through(port) as stream:
            received = b""
            while len(received) < len(payload):
                received += await stream.receive()
            assert received == payload

    run(main)


def test_answers_octet_by_octet(run: Run) -> None:
    """It is a byte stream: each octet may come alone."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for expected, answer in ((b"\x05\x01\x00", b"\x05\x00"), (REQUEST, SUCCESS)):
            await reader.readexactly(len(expected))
            for octet in answer:
                writer.write(bytes((octet,)))
                await writer.drain()
                await asyncio.sleep(0)
        await reader.read()

    converse(run, slowly)


@pytest.mark.parametrize("code", [*range(1, 9), 9, 0x5B, 255])
def test_every_failure_keeps_its_code(run_once: Run, code: int) -> None:
    """ProxyError.reply_code is what was sent, known to RFC 1928 or not; the message names the destination."""
    failed = bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))
    with pytest.raises(ProxyError, match=r"example.com:443: the proxy says") as caught:
        converse(run_once, scripted((b"\x05\x01\x00", b"\x05\x00"), (REQUEST, failed)))
    assert caught.value.reply_code == code


def test_every_code_of_the_rfc_has_a_text() -> None:
    """What a user reads is the RFC's wording, not a number alone."""
    assert set(REPLY_TEXTS) == set(ReplyCode) - {ReplyCode.SUCCEEDED}


@pytest.mark.parametrize("login", [None, ALICE])
def test_a_refused_method_is_an_auth_error(run_once: Run, login: Credentials | None) -> None:
    """05 FF: none of what was offered."""
    greeting = b"\x05\x01\x00" if login is None else b"\x05\x02\x00\x02"
    with pytest.raises(AuthError, match="wants a user name" if login is None else "none of the offered methods"):
        converse(run_once, scripted((greeting, b"\x05\xff")), login)


@pytest.mark.parametrize("status", [1, 255])
def test_refused_credentials_are_an_auth_error(run_once: Run, status: int) -> None:
    """RFC 1929: any status but 0; the message holds neither name nor password."""
    steps = ((b"\x05\x02\x00\x02", b"\x05\x02"), (credentials(b"alice", b"secret"), bytes((1, status))))
    with pytest.raises(AuthError) as caught:
        converse(run_once, scripted(*steps), ALICE)
    assert "alice" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "steps",
    [
        [(b"\x05\x01\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n")],
        [(b"\x05\x01\x00", b"\x04\x00")],
        [(b"\x05\x01\x00", b"\x05\x02")],
        [(b"\x05\x01\x00", b"\x05\x80")],
        [(b"\x05\x01\x00", b"\x05\x00"), (REQUEST, b"\x04" + SUCCESS[1:])],
        [(b"\x05\x01\x00", b"\x05\x00"), (REQUEST, b"\x05\x00\x00\x02" + bytes(6))],
    ],
    ids=["HTTP", "version", "method not offered", "private method", "version of the reply", "ATYP"],
)
def test_rubbish_is_a_remote_protocol_error(run_once: Run, steps: Sequence[tuple[bytes, bytes]]) -> None:
    """What does not speak SOCKS5 is called so."""
    with pytest.raises(RemoteProtocolError):
        converse(run_once, scripted(*steps))


@pytest.mark.parametrize("answer", [b"", b"\x05", b"\x05\x00", b"\x05\x00" + SUCCESS[:5]])
def test_an_end_in_the_middle_is_a_remote_protocol_error(run: Run, answer: bytes) -> None:
    """A proxy that hangs up has answered nothing."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(answer)
        if len(answer) > 1:
            await reader.readexactly(len(REQUEST))

    with pytest.raises(RemoteProtocolError, match="ended in the middle"):
        converse(run, hang_up)


@pytest.mark.parametrize("steps", [[], [(b"\x05\x01\x00", b"\x05\x00")]], ids=["greeting", "request"])
def test_a_proxy_that_does_not_answer_is_given_up(run: Run, steps: list[tuple[bytes, bytes]]) -> None:
    """The deadline covers its whole part; the proxy is named."""
    with pytest.raises(ProxyError, match=r"127\.0\.0\.1:\d+: the proxy did not answer within 0\.05 s") as caught:
        converse(run, scripted(*steps), seconds=0.05)
    assert caught.value.reply_code is None


def test_a_proxy_that_is_not_there_is_a_dial_error(run: Run) -> None:
    """The errors of the way to the proxy come through as they are."""

    async def main() -> None:
        with closed_port() as port:
            await open_through(port)

    with pytest.raises(DialError, match="connection refused"):
        run(main)


def test_cancelled_at_any_point_it_closes_its_connection(run: Run) -> None:
    """The proxy sees the end, whether it was to answer the greeting, the user name or the request."""
    steps = [(b"\x05\x02\x00\x02", b"\x05\x02"), (credentials(b"alice", b"secret"), b"\x01\x00"), (REQUEST, b"")]

    async def main() -> None:
        for answered in range(3):
            reached, ended = asyncio.Event(), asyncio.Event()

            async def stall(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                answered: int = answered,
                reached: asyncio.Event = reached,
                ended: asyncio.Event = ended,
            ) -> None:
                for expected, answer in steps[:answered]:
                    assert await reader.readexactly(len(expected)) == expected
                    writer.write(answer)
                await reader.readexactly(len(steps[answered][0]))
                reached.set()
                assert await reader.read() == b""
                ended.set()

            async with target(stall) as port, asyncio.TaskGroup() as group:
                opening = group.create_task(open_through(port, ALICE))
                await reached.wait()
                opening.cancel()
                await ended.wait()

    run(main)


# --- greeting and request at once ---

AT_ONCE = b"\x05\x01\x00" + REQUEST


class Proxy:
    """A scripted proxy that counts its connections, and an egress that asks it optimistically."""

    def __init__(self, *handlers: Handler, seconds: float = 10) -> None:
        self.handlers = list(handlers)
        self.seconds = seconds
        self.count = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The next connection, by the next handler; the last one takes all that follow."""
        self.count += 1
        await self.handlers[min(self.count, len(self.handlers)) - 1](reader, writer)

    @contextlib.asynccontextmanager
    async def egress(self, login: Credentials | None = None) -> AsyncIterator[Socks5]:
        """The way out through it."""
        async with target(self.handle) as port:
            dialer = Dialer(get_reactor(), ThreadResolver(), self.seconds)
            place = parse_address(f"127.0.0.1:{port}")
            yield Socks5(Direct(dialer), place, login, dialer.deadlines, optimistic=True)
            await dialer.close()


async def drops_the_rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a read for a message, as microsocks does: what comes behind the greeting is thrown away."""
    assert (await reader.read(1024))[:3] == b"\x05\x01\x00"
    writer.write(b"\x05\x00")
    if await reader.read(1024) == REQUEST:
        writer.write(SUCCESS)
        await reader.read()


async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End as soon as there is more than a greeting."""
    await reader.readexactly(len(AT_ONCE))


async def ends_behind_the_method(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Choose, and end."""
    await reader.readexactly(len(AT_ONCE))
    writer.write(b"\x05\x00")


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close with the request unread."""
    await reader.readexactly(3)
    reset(writer)


textbook = scripted((b"\x05\x01\x00", b"\x05\x00"), (REQUEST, SUCCESS))


def test_greeting_and_request_in_one_go(run: Run) -> None:
    """The proxy answers both; what follows its reply stays. A second connection is asked in the same way."""

    async def main() -> None:
        proxy = Proxy(scripted((AT_ONCE, b"\x05\x00" + SUCCESS + b"payload")))
        async with proxy.egress() as egress:
            for count in (1, 2):
                async with await egress.open(DESTINATION, allow_any_address) as stream:
                    assert await stream.receive() == b"payload"
                assert proxy.count == count

    run(main)


def test_a_refusal_is_one_and_proves_that_the_proxy_takes_it(run: Run) -> None:
    """It is not asked again; the method's answer and the reply may come octet by octet."""

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(AT_ONCE)) == AT_ONCE
        for octet in b"\x05\x00\x05\x05\x00\x01" + bytes(6):
            writer.write(bytes((octet,)))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async def main() -> None:
        proxy = Proxy(refuses)
        async with proxy.egress() as egress:
            with pytest.raises(ProxyError, match="connection refused") as caught:
                await egress.open(DESTINATION, allow_any_address)
            assert (caught.value.reply_code, proxy.count, egress.proven) == (5, 1, True)

    run(main)


@pytest.mark.parametrize("first", [ends, ends_behind_the_method, resets])
def test_a_proxy_that_ends_is_asked_again_in_the_rfcs_order(run: Run, first: Handler) -> None:
    """Once, on a connection of its own; from then on it is asked so at once."""

    async def main() -> None:
        proxy = Proxy(first, textbook)
        async with proxy.egress() as egress:
            for count in (2, 3):
                (await egress.open(DESTINATION, allow_any_address)).close()
                assert proxy.count == count

    run(main)


def test_a_proxy_that_throws_the_request_away_is_asked_again(run_once: Run) -> None:
    """It would never reply: a silent one is not waited for until the deadline the first time."""

    async def main() -> None:
        proxy = Proxy(drops_the_rest, seconds=0.4)
        async with proxy.egress() as egress:
            for count in (2, 3):
                (await egress.open(DESTINATION, allow_any_address)).close()
                assert proxy.count == count

    run_once(main)


def test_a_long_deadline_is_no_reason_to_wait_for_a_silent_proxy(
    run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fourth of it would be minutes: PATIENCE is the most that a proxy which is asked for the first time may take."""
    monkeypatch.setattr(socks5, "PATIENCE", 0.05)

    async def main() -> None:
        proxy = Proxy(drops_the_rest, seconds=600)
        async with proxy.egress() as egress:
            (await egress.open(DESTINATION, allow_any_address)).close()
            assert proxy.count == 2

    run_once(main)


def test_a_proxy_that_has_replied_before_is_waited_for(run_once: Run) -> None:
    """Then it is the destination that is slow: the whole deadline is its. But the next time nothing is known again."""

    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(AT_ONCE))
        writer.write(b"\x05\x00")
        await reader.read()

    async def main() -> None:
        proxy = Proxy(scripted((AT_ONCE, b"\x05\x00" + SUCCESS)), stalls, textbook, seconds=0.2)
        async with proxy.egress() as egress:
            (await egress.open(DESTINATION, allow_any_address)).close()
            with pytest.raises(ProxyError, match=r"did not answer within 0\.2 s"):
                await egress.open(DESTINATION, allow_any_address)
            assert (proxy.count, egress.optimistic, egress.proven) == (2, True, False)

    run_once(main)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"\x05", RemoteProtocolError),
        (b"\x05\xff", AuthError),
        (b"\x05\x02", RemoteProtocolError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RemoteProtocolError),
        (b"\x05\x00\x05", RemoteProtocolError),
        (b"\x05\x00" + SUCCESS[:-1], RemoteProtocolError),
        (b"\x05\x00\x05\x00\x00\x02" + bytes(6), RemoteProtocolError),
    ],
)
def test_an_answer_that_has_begun_is_not_asked_for_again(
    run_once: Run, answer: bytes, error: type[AuthError | RemoteProtocolError]
) -> None:
    """What it says would be the same in any order."""

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(AT_ONCE))
        writer.write(answer)

    async def main() -> None:
        proxy = Proxy(answers)
        async with proxy.egress() as egress:
            with pytest.raises(error):
                await egress.open(DESTINATION, allow_any_address)
            assert proxy.count == 1

    run_once(main)


def test_with_credentials_the_method_is_waited_for(run: Run) -> None:
    """Which it will be is not known: nothing is sent at once."""
    steps = ((b"\x05\x02\x00\x02", b"\x05\x02"), (credentials(b"alice", b"secret"), b"\x01\x00"), (REQUEST, SUCCESS))

    async def main() -> None:
        proxy = Proxy(scripted(*steps))
        async with proxy.egress(ALICE) as egress:
            (await egress.open(DESTINATION, allow_any_address)).close()
            assert proxy.count == 1

    run(main)


def test_cancelled_while_it_asks_at_once_it_closes_its_connection(run: Run) -> None:
    """And it does not ask again."""
    reached, ended = asyncio.Event(), asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(AT_ONCE))
        reached.set()
        assert await reader.read() == b""
        ended.set()

    async def main() -> None:
        reached.clear()
        ended.clear()
        proxy = Proxy(stall)
        async with proxy.egress() as egress, asyncio.TaskGroup() as group:

            async def opening() -> None:
                await egress.open(DESTINATION, allow_any_address)

            task = group.create_task(opening())
            await reached.wait()
            task.cancel()
            await ended.wait()
        assert proxy.count == 1

    run(main)


@pytest.mark.parametrize("optimistic", [False, True])
def test_a_name_that_cannot_be_written_is_a_dial_error(run_once: Run, optimistic: bool) -> None:
    """Its length is an octet."""

    async def main() -> None:
        proxy = Proxy(textbook)
        async with proxy.egress() as egress:
            egress.optimistic = optimistic
            with pytest.raises(DialError, match="a host name has 1 to 255 octets"):
                await egress.open(Address("a" * 256, 1), allow_any_address)

    run_once(main)
