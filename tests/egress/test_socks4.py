"""The client's side of SOCKS4 on a stream: what is sent, and what each answer becomes."""

from __future__ import annotations

import asyncio

import pytest

from conftest import Run
from support import Handler, closed_port, target
from tabi import Proxy, Server, Session
from tabi.egress.direct import Direct
from tabi.egress.socks4 import Socks4
from tabi.errors import AuthError, DialError, ProxyError, RemoteProtocolError, TabiError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address, parse_address
from tabi.wire.socks4 import ClientMachine4, Request4

NAME = parse_address("example.com:443")
IPV4 = parse_address("192.0.2.1:80")
GRANTED = b"\x00\x5a" + bytes(6)


def octets_of(destination: Address, userid: bytes = b"") -> bytes:
    """A request as it is on the wire."""
    return ClientMachine4().send(Request4(1, destination, userid))


def answering(expected: bytes, answer: bytes, stays: bool = True) -> Handler:
    """A proxy that knows one request and its answer, and then stays until the client ends, or not."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(expected)) == expected
        writer.write(answer)
        if stays:
            await reader.read()

    return handle


async def open_through(port: int, destination: Address = NAME, userid: bytes = b"", seconds: float = 10) -> Stream:
    """Open through the proxy on a port."""
    dialer = Dialer(get_reactor(), ThreadResolver(), seconds)
    try:
        egress = Socks4(Direct(dialer), parse_address(f"127.0.0.1:{port}"), userid, dialer.deadlines)
        return await egress.open(destination, allow_any_address)
    finally:
        await dialer.close()


def fails(run: Run, handler: Handler, error: type[TabiError], words: str, seconds: float = 10) -> TabiError:
    """Open with such a proxy, and fail."""

    async def main() -> TabiError:
        async with target(handler) as port:
            with pytest.raises(error, match=words) as caught:
                await open_through(port, seconds=seconds)
            return caught.value

    return run(main)


@pytest.mark.parametrize("destination", [NAME, IPV4])
@pytest.mark.parametrize("userid", [b"", b"alice"])
def test_a_request_and_the_octets_behind_its_reply(run: Run, destination: Address, userid: bytes) -> None:
    """A name goes as it is, an address as DSTIP; what the destination says with the reply is all there."""
    payload = b"payload " * 1000

    async def main() -> None:
        handler = answering(octets_of(destination, userid), GRANTED + payload)
        async with target(handler) as port, await open_through(port, destination, userid) as stream:
            received = b""
            while len(received) < len(payload):
                received += await stream.receive()
            assert received == payload

    run(main)


def test_an_ipv6_address_cannot_be_asked_for(run_once: Run) -> None:
    """It is said so before the proxy is reached, with the code that says it to a client of ours."""

    async def main() -> None:
        with closed_port() as port, pytest.raises(DialError, match="SOCKS4 carries no IPv6 address") as caught:
            await open_through(port, parse_address("[2001:db8::1]:80"))
        assert caught.value.reply_code == 8

    run_once(main)


def test_what_cannot_be_written_is_a_dial_error(run_once: Run) -> None:
    """A name with a NUL would end the request in its middle."""

    async def main() -> None:
        with closed_port() as port, pytest.raises(DialError, match="no NUL") as caught:
            await open_through(port, Address("a\0b", 80))
        assert caught.value.reply_code == 4

    run_once(main)


@pytest.mark.parametrize(
    ("code", "error", "words", "reply_code"),
    [
        (91, ProxyError, r"example.com:443: the proxy says rejected or failed \(reply 91\)", 1),
        (92, AuthError, "it cannot reach an identd here", None),
        (93, AuthError, "identd here names another user", None),
        (0, ProxyError, r"not a code of SOCKS4 \(reply 0\)", 1),
        (255, ProxyError, r"not a code of SOCKS4 \(reply 255\)", 1),
    ],
)
def test_what_a_refusal_becomes(
    run: Run, code: int, error: type[TabiError], words: str, reply_code: int | None
) -> None:
    """SOCKS4 has one code for every failure, and two about who we are."""
    handler = answering(octets_of(NAME), bytes((0, code)) + bytes(6))
    assert fails(run, handler, error, words).reply_code == reply_code


@pytest.mark.parametrize("answer", [b"\x05\xff", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x04\x5a" + bytes(6)])
def test_rubbish_is_a_remote_protocol_error(run_once: Run, answer: bytes) -> None:
    """What does not speak SOCKS4 is called so; a reply begins with 0, not with 4."""
    fails(run_once, answering(octets_of(NAME), answer), RemoteProtocolError, "reply: version .*, expected 0x00")


@pytest.mark.parametrize("answer", [b"", GRANTED[:1], GRANTED[:7]])
def test_an_end_in_the_middle_is_a_remote_protocol_error(run: Run, answer: bytes) -> None:
    """A proxy that hangs up has answered nothing."""
    fails(run, answering(octets_of(NAME), answer, stays=False), RemoteProtocolError, "ended in the middle")


def test_a_proxy_that_does_not_answer_is_given_up(run: Run) -> None:
    """The deadline is over its whole part."""
    words = r"127\.0\.0\.1:\d+: the proxy did not answer within 0\.05 s"
    assert fails(run, answering(octets_of(NAME), GRANTED[:3]), ProxyError, words, 0.05).reply_code is None


def test_through_our_own_server(run: Run) -> None:
    """Its session tells what was asked for and by which protocol; a destination that is not there is a refusal."""

    sessions: list[Session] = []

    async def main() -> None:
        async with target() as port, Server("socks4://127.0.0.1:0", on_close=sessions.append) as server:
            for host in ("127.0.0.1", "localhost"):
                async with await open_through(server.addresses[0].port, parse_address(f"{host}:{port}")) as stream:
                    await stream.send_all(b"ping")
                    assert await stream.receive() == b"ping"
            with closed_port() as nobody, pytest.raises(ProxyError, match="rejected or failed"):
                await open_through(server.addresses[0].port, parse_address(f"127.0.0.1:{nobody}"))
            await server.drain()

    run(main)
    hosts = {str(session.destination.host) for session in sessions if session.destination is not None}
    assert hosts == {"127.0.0.1", "localhost"}
    assert {session.protocol for session in sessions} == {"socks4"}


@pytest.mark.parametrize("code", [0x5A, 0x5B, 0x63])
def test_a_ping_takes_any_reply_for_an_answer(run: Run, code: int) -> None:
    """The request is for 127.0.0.1:9: no name is looked up, and nothing leaves the proxy's machine."""

    async def main() -> str:
        asked = octets_of(parse_address("127.0.0.1:9"), b"alice")
        async with target(answering(asked, bytes((0, code)) + bytes(6))) as port:
            return await Proxy(f"socks4://alice@127.0.0.1:{port}").ping()

    assert run(main) == f"reply {code}"


@pytest.mark.parametrize("code", [0x5C, 0x5D])
def test_a_ping_that_is_not_let_in_fails(run: Run, code: int) -> None:
    """Replies about the user ID say that requests of this user will not do."""

    async def main() -> None:
        asked = octets_of(parse_address("127.0.0.1:9"))
        async with target(answering(asked, bytes((0, code)) + bytes(6))) as port:
            with pytest.raises(AuthError, match=f"reply {code}"):
                await Proxy(f"socks4://127.0.0.1:{port}").ping()

    run(main)
