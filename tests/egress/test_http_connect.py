"""The client's side of CONNECT on a stream: what is sent, what is left, and what each answer becomes."""

from __future__ import annotations

import asyncio

import pytest

from conftest import Run
from doubles import reset
from support import Handler, closed_port, target
from tabi import Proxy, Server, Session
from tabi.egress.direct import Direct
from tabi.egress.http_connect import HttpConnect
from tabi.errors import AuthError, DialError, ProxyError, RemoteProtocolError, TabiError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address, parse_address
from tabi.wire.socks5 import Credentials

NAME = parse_address("example.com:443")
ALICE = Credentials(b"alice", b"hunter2")
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def answering(*pieces: bytes, stays: bool = True) -> Handler:
    """A proxy that reads one head, answers in pieces, and then stays until the client ends, or not."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if stays:
            await reader.read()

    return handle


async def open_through(
    port: int, destination: Address = NAME, login: Credentials | None = None, seconds: float = 10
) -> Stream:
    """Open through the proxy on a port."""
    dialer = Dialer(get_reactor(), ThreadResolver(), seconds)
    try:
        egress = HttpConnect(Direct(dialer), parse_address(f"127.0.0.1:{port}"), login, dialer.deadlines)
        return await egress.open(destination, allow_any_address)
    finally:
        await dialer.close()


def fails(
    run: Run,
    handler: Handler,
    error: type[TabiError],
    words: str,
    login: Credentials | None = None,
    seconds: float = 10,
) -> TabiError:
    """Open with such a proxy, and fail."""

    async def main() -> TabiError:
        async with target(handler) as port:
            with pytest.raises(error, match=words) as caught:
                await open_through(port, login=login, seconds=seconds)
            return caught.value

    return run(main)


PAYLOAD = b"HTTP/1.1 100 payload\r\n\r\n" * 500


@pytest.mark.parametrize(
    "pieces",
    [
        (ESTABLISHED + PAYLOAD,),
        (ESTABLISHED, PAYLOAD),
        (ESTABLISHED[:-2], ESTABLISHED[-2:] + PAYLOAD),
        (b"HTTP/1.1 103 Early\r\n\r\n" + ESTABLISHED[:9], ESTABLISHED[9:] + PAYLOAD),
        (*(bytes((octet,)) for octet in ESTABLISHED), PAYLOAD),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n" + b"A: b\r\n" * 150 + b"\r\n" + PAYLOAD,),
    ],
    ids=["together", "apart", "within the end", "interim", "octet by octet", "long"],
)
def test_no_octet_behind_the_answer_is_taken(run: Run, pieces: tuple[bytes, ...]) -> None:
    """However it arrives, what the destination says is left in the socket, for whoever carries it on."""

    async def main() -> None:
        async with target(answering(*pieces)) as port, await open_through(port) as stream:
            received = b""
            while len(received) < len(PAYLOAD):
                received += await stream.receive()
            assert received == PAYLOAD

    run(main)


@pytest.mark.parametrize("login", [None, ALICE])
def test_what_is_asked(run: Run, login: Credentials | None) -> None:
    """The name goes as it is; credentials go with the first request, as Basic."""
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ESTABLISHED)
        await reader.read()

    async def main() -> None:
        async with target(handle) as port:
            (await open_through(port, login=login)).close()

    run(main)
    basic = b"" if login is None else b"Proxy-Authorization: Basic YWxpY2U6aHVudGVyMg==\r\n"
    assert seen == [b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n" + basic + b"\r\n"]


@pytest.mark.parametrize(
    ("answer", "words", "reply_code"),
    [
        ("403 Go away, alice", r"example.com:443: the proxy says 403 Forbidden$", 2),
        ("405 x", "405 Method Not Allowed", 7),
        ("400 x", "400 Bad Request", 1),
        ("500 x", "500 Internal Server Error", 1),
        ("502 x", "502 Bad Gateway", 4),
        ("503 x", "503 Service Unavailable", 4),
        ("504 x", "504 Gateway Timeout", 4),
        ("999 x", "the proxy says 999$", 1),
        ("302 Found\r\nLocation: http://portal.example/", "the proxy answers with 302 Found, expected 200", 1),
        ("101 x\r\nUpgrade: y", "the proxy answers with 101 Switching Protocols, expected 200", 1),
        ("502 x\r\nProxy-Status: a; error=connection_refused", r"502 Bad Gateway \(connection refused\)$", 5),
        ("500 x\r\nProxy-Status: a; error=destination_ip_unroutable", "destination ip unroutable", 3),
        ("502 x\r\nProxy-Status: a; error=any_words_at_all", "502 Bad Gateway$", 4),
    ],
)
def test_what_a_refusal_becomes(run_once: Run, answer: str, words: str, reply_code: int) -> None:
    """The words are those of the registered status; Proxy-Status knows more than it. Nothing else of it is shown."""
    handler = answering(f"HTTP/1.1 {answer}\r\nContent-Length: 3\r\n\r\nabc".encode())
    assert fails(run_once, handler, ProxyError, words).reply_code == reply_code


@pytest.mark.parametrize("status", [407, 401])
@pytest.mark.parametrize(
    ("login", "words"), [(None, "it wants a user name and a password"), (ALICE, "did not accept the user name")]
)
def test_who_we_are_is_an_auth_error(run: Run, login: Credentials | None, words: str, status: int) -> None:
    """The message holds neither name nor password."""
    handler = answering(b'HTTP/1.1 %d alice hunter2\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n' % status)
    text = str(fails(run, handler, AuthError, words, login))
    assert "alice" not in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "answer", [b"\x05\xff", b"SSH-2.0-x\r\n", b"<html>\r\n\r\n", b"HTTP/1.1 200 OK\nA: b\n\n", b"x" * 9000]
)
def test_rubbish_is_a_remote_protocol_error(run_once: Run, answer: bytes) -> None:
    """What does not speak HTTP is called so at once, without waiting for more of it."""
    fails(run_once, answering(answer), RemoteProtocolError, "expected|more than")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2", ESTABLISHED[:-1], b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_end_in_the_middle_is_a_remote_protocol_error(run: Run, answer: bytes) -> None:
    """A proxy that hangs up has answered nothing."""
    fails(run, answering(answer, stays=False), RemoteProtocolError, "ended in the middle")


@pytest.mark.parametrize("answer", [b"", ESTABLISHED[:-1]])
def test_a_proxy_that_does_not_answer_is_given_up(run: Run, answer: bytes) -> None:
    """One deadline over its whole part, and not one for each octet."""
    words = r"127\.0\.0\.1:\d+: the proxy did not answer within 0\.05 s"
    assert fails(run, answering(answer), ProxyError, words, seconds=0.05).reply_code is None


def test_a_connection_that_breaks_is_a_proxy_error(run: Run) -> None:
    """A server of ours has to tell its client something: every error of the way out is one of tabi's."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    fails(run, handle, ProxyError, "the connection to the proxy broke: connection reset by peer")


def test_a_host_that_would_break_the_request_is_a_dial_error(run_once: Run) -> None:
    """Nothing is sent for it."""

    async def main() -> None:
        with closed_port() as port, pytest.raises(DialError, match="not a host that can be written") as caught:
            await open_through(port, Address("a b", 80))
        assert caught.value.reply_code == 4

    run_once(main)


def test_through_our_own_server(run: Run) -> None:
    """With users and without; what went wrong behind it keeps its reply code, by Proxy-Status."""
    sessions: list[Session] = []

    async def main() -> None:
        async with (
            target() as port,
            Server("http://127.0.0.1:0", users={"alice": "hunter2"}, on_close=sessions.append) as server,
        ):
            proxy = server.addresses[0].port
            async with await open_through(proxy, Address("localhost", port), ALICE) as stream:
                await stream.send_all(b"ping")
                assert await stream.receive() == b"ping"
            with closed_port() as nobody, pytest.raises(ProxyError, match="connection refused") as caught:
                await open_through(proxy, Address("localhost", nobody), ALICE)
            assert caught.value.reply_code == 5
            for login in (None, Credentials(b"alice", b"wrong")):
                with pytest.raises(AuthError):
                    await open_through(proxy, Address("localhost", port), login)
            await server.drain()

    run(main)
    assert sessions[0].destination is not None
    assert (sessions[0].user, sessions[0].destination.host) == ("alice", "localhost")


OPTIONS = b"OPTIONS http://tabi.invalid/ HTTP/1.1\r\nHost: tabi.invalid\r\nMax-Forwards: 0\r\nConnection: close\r\n\r\n"


def by_method(**answers: bytes) -> Handler:
    """A proxy that answers by the method of a request."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head == OPTIONS or not head.startswith(b"OPTIONS")
        writer.write(answers[head.split()[0].decode()] + b"\r\n\r\n")

    return handle


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"503 Service Unavailable"])
def test_a_ping_takes_any_status_for_an_answer(run: Run, status: bytes) -> None:
    """OPTIONS with Max-Forwards 0 is for the proxy itself; one that passes it on finds no such host."""

    async def main() -> str:
        async with target(by_method(OPTIONS=b"HTTP/1.1 " + status)) as port:
            return await Proxy(f"http://127.0.0.1:{port}").ping()

    assert run(main) == status.decode()


@pytest.mark.parametrize(
    ("connect", "error"), [(b"HTTP/1.1 503 No", None), (b"HTTP/1.1 407 No", AuthError)], ids=["503", "407"]
)
@pytest.mark.parametrize("options", [b"HTTP/1.1 405 No", b"HTTP/1.1 501 No"], ids=["405", "501"])
def test_a_proxy_without_options_is_asked_for_a_tunnel(
    run_once: Run, options: bytes, connect: bytes, error: type[TabiError] | None
) -> None:
    """Such a proxy may not have looked at the credentials: CONNECT finds out."""

    async def main() -> str:
        async with target(by_method(OPTIONS=options, CONNECT=connect)) as port:
            return await Proxy(f"http://127.0.0.1:{port}").ping()

    if error is None:
        assert run_once(main) == "503 Service Unavailable"
    else:
        with pytest.raises(error, match="it wants a user name"):
            run_once(main)
