"""The HTTP ingress from outside: what clients get, what destinations see, and what the log says."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from base64 import b64encode
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import Any

import pytest

from conftest import Run
from doubles import client_from, end_of, reset, unanswering, until
from http_proxy import (
    CONTINUE,
    HTTP,
    OK,
    Message,
    ask,
    exchange,
    origin,
    proxy,
    read_message,
)
from support import client, closed_port, target
from tabi import Config
from tabi.config import Listen, Log
from tabi.net.dial import Dialer
from tabi.net.stream import Stream
from tabi.wire.http import EMPTY_LINES

# --- forwarding ---


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_a_request_is_forwarded(run: Run, method: str) -> None:
    """Its method and its path go on in origin form with a Host of their own, its content as it came, and back."""

    async def main() -> None:
        content = b"x" * 10 if method in ("POST", "PUT", "PATCH") else b""
        async with origin() as there, proxy() as here, client(here.address) as streams:
            answer = await exchange(streams, ask(there.url + "/a?b=c", method, content=content))
            assert (answer.status, answer.content) == (200, b"" if method == "HEAD" else b"hello")
            assert answer.fields == {"content-length": "5", "via": "1.1 tabi", "date": answer.fields["date"]}
            (request,) = there.requests
            assert request.line == f"{method} /a?b=c HTTP/1.1"
            assert request.fields["host"] == f"127.0.0.1:{there.port}"
            assert request.fields["via"] == "1.1 tabi"
            assert request.content == content
            streams[1].close()
            session = await here.ended.get()
            assert (session.protocol, session.command, session.reply_code) == ("http", "forward", 200)
            assert (session.up, session.down) == (len(content), len(answer.content))
            assert (session.close, session.error, session.via) == ("server", None, "direct")
            assert str(session.destination) == str(session.address) == f"127.0.0.1:{there.port}"

    run(main)


def test_user_information_becomes_credentials(run: Run, tmp_path: Path) -> None:
    """The destination gets them in Authorization, not in the target; no line of the log has them."""
    path = tmp_path / "access.log"

    async def main() -> None:
        listening = Config(listen=[Listen(HTTP)], log=Log(access=str(path)))
        async with origin() as there, proxy(config=listening) as here, client(here.address) as (reader, writer):
            url = there.url.replace("//", "//joe:s3cret%21@")
            for octets in (ask(url + "/x"), ask(f"{url}/x", fields="Authorization: Bearer y\r\n")):
                assert (await exchange((reader, writer), octets)).content == b"hello"
            assert [request.line for request in there.requests] == ["GET /x HTTP/1.1"] * 2
            host = f"127.0.0.1:{there.port}"
            assert {request.fields["host"] for request in there.requests} == {host}
            basic = "Basic " + b64encode(b"joe:s3cret!").decode()
            assert [request.fields["authorization"] for request in there.requests] == [basic, "Bearer y"]
            refused = await exchange((reader, writer), ask("http://joe:s3cret@/"))
            assert (refused.status, b"s3cret" in refused.content) == (400, False)

    run(main)
    assert "s3cret" not in path.read_text()


def test_targets_as_clients_send_them(run: Run) -> None:
    """Octets beyond ASCII, a fragment, a Host that is none; CONNECT without Host."""

    async def main() -> None:
        async with origin() as there, target() as port, proxy() as here, client(here.address) as (reader, writer):
            writer.write(b"GET %b/\xc3\xbc#x HTTP/1.1\r\nHost: ::1:80\r\n\r\n" % there.url.encode())
            assert (await read_message(reader)).content == b"hello"
            assert there.requests[0].line == "GET /%C3%BC HTTP/1.1"
            assert there.requests[0].fields["host"] == f"127.0.0.1:{there.port}"
            writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\nping" % port)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
            assert await reader.readexactly(4) == b"ping"

    run(main)


def test_empty_lines_between_requests(run: Run) -> None:
    """RFC 9112 section 2.2: old clients send one behind the content of a POST. It is no request under way: no deadline
    runs for it, and an end behind it is an end in silence."""

    async def main() -> None:
        async with origin() as there, proxy(handshake=0.1) as here, client(here.address) as (reader, writer):
            for octets in (ask(there.url, "POST", content=b"x") + b"\r\n", b"\r\n" + ask(there.url) + b"\r\n\r\n"):
                writer.write(octets)
                assert (await read_message(reader)).content == b"hello"
                await asyncio.sleep(0.2)  # longer than the deadline of a head
            writer.write(b"\r\n")
            writer.write_eof()
            assert await end_of(reader) == "end"
            assert [(await here.ended.get()).error for _ in range(2)] == [None, None]
            await until(lambda: not here.server.parts.sessions.running)
            assert here.ended.empty()

    run(main)


def test_too_many_empty_lines_between_requests(run: Run) -> None:
    """A bounded number, then 400."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as (reader, writer):
            await exchange((reader, writer), ask(there.url))
            writer.write(b"\r\n" * (EMPTY_LINES + 1))
            assert (await read_message(reader)).status == 400

    run(main)


def test_answers_have_a_date(run: Run) -> None:
    """RFC 9110 section 6.6.1: that of the destination, or else the proxy's own; its own answers have one too."""

    async def main() -> None:
        def answer(message: Message) -> bytes:
            return OK if message.line.startswith("GET / ") else OK.replace(b"\r\n\r\n", b"\r\ndAte: long ago\r\n\r\n")

        async with origin(answer) as there, proxy() as here, client(here.address) as streams:
            dates = [(await exchange(streams, ask(there.url + path))).fields["date"] for path in ("/", "/dated")]
            assert dates[1] == "long ago"
            refused = await exchange(streams, ask("ftp://a.example/"))
            for date in (dates[0], refused.fields["date"]):
                assert abs(parsedate_to_datetime(date).timestamp() - time()) < 60

    run(main)


def test_a_destination_by_name(run: Run) -> None:
    """A name is resolved, port 80 is left out of Host, and whatever Host the client sent is replaced."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            url = f"http://here.test:{there.port}"
            await exchange(streams, ask(url).replace(f"Host: here.test:{there.port}".encode(), b"Host: other.test"))
            (request,) = there.requests
            assert request.fields["host"] == f"here.test:{there.port}"
            assert request.line == "GET / HTTP/1.1"

    run(main)


def test_one_connection_to_the_destination_for_many_requests(run: Run) -> None:
    """The second and later GETs go out on the connection of the first; their lines have no connect_ms."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            for number in range(4):
                assert (await exchange(streams, ask(f"{there.url}/{number}"))).content == b"hello"
            assert [len(asked) for asked in there.connections] == [4]
            streams[1].close()
            sessions = [await here.ended.get() for _ in range(4)]
            assert len({id(session) for session in sessions}) == len({session.number for session in sessions}) == 4
            assert [session.connect_seconds is None for session in sessions] == [False, True, True, True]
            assert {session.reply_code for session in sessions} == {200}
            assert {session.down for session in sessions} == {5}
            await until(lambda: not here.server.parts.sessions.running)
            assert here.ended.empty()

    run(main)


def test_a_request_that_changes_something_gets_a_connection_of_its_own(run: Run) -> None:
    """POST, and a GET with content, never go out on a connection that was used; a GET behind them does."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            for octets in (
                ask(there.url),
                ask(there.url, "POST", content=b"one"),
                ask(there.url),
                ask(there.url, "POST", "Content-Length: 0\r\n"),
                ask(there.url, content=b"two"),
                ask(there.url, "HEAD"),
            ):
                assert (await exchange(streams, octets)).status == 200
            methods = [[request.line.split()[0] for request in asked] for asked in there.connections]
            assert methods == [["GET"], ["POST", "GET"], ["POST"], ["GET", "HEAD"]]

    run(main)


def test_another_destination_closes_the_first(run: Run) -> None:
    """A client has one connection to a destination at a time."""

    async def main() -> None:
        ended = asyncio.Event()

        async def watched(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            assert await reader.read() == b""
            ended.set()

        async with target(watched) as port, origin() as there, proxy() as here, client(here.address) as streams:
            await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
            await exchange(streams, ask(there.url))
            await ended.wait()

    run(main)


@pytest.mark.every_hosting
def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    """Many requests in one segment, with content among them: as many answers, in their order."""

    def answer(message: Message) -> bytes:
        path = message.line.split()[1].encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path)

    async def main() -> None:
        async with origin(answer) as there, proxy() as here, client(here.address) as (reader, writer):
            requests = [ask(f"{there.url}/{n}", *(("POST", "", b"x" * n) if n % 3 == 2 else ())) for n in range(1, 13)]
            writer.write(b"".join(requests))
            for number in range(1, 13):
                assert (await read_message(reader)).content == b"/%d" % number
            assert [request.content for request in there.requests if request.content] == [
                b"xx",
                b"x" * 5,
                b"x" * 8,
                b"x" * 11,
            ]

    run(main)


@pytest.mark.parametrize("asked_for", [False, True])
def test_a_client_of_http_1_0(run: Run, asked_for: bool) -> None:
    """Its connection is kept where it asks for that, and ends behind the answer where it does not."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            fields = "Connection: keep-alive\r\n" if asked_for else ""
            answer = await exchange(streams, ask(there.url, fields=fields, minor=0))
            assert answer.content == b"hello"
            assert answer.fields["connection"] == ("keep-alive" if asked_for else "close")
            assert there.requests[0].fields["via"] == "1.0 tabi"
            if asked_for:
                assert (await exchange(streams, ask(there.url, fields=fields, minor=0))).content == b"hello"
                assert len(there.connections) == 1
            else:
                assert await streams[0].read() == b""

    run(main)


def test_a_destination_that_closes_leaves_the_client_alone(run: Run) -> None:
    """Connection: close of an answer is between the proxy and the destination."""

    async def main() -> None:
        answer = OK.replace(b"\r\n\r\n", b"\r\nConnection: close, x-secret\r\nX-Secret: 1\r\n\r\n")
        async with origin(answer) as there, proxy() as here, client(here.address) as streams:
            for _ in range(3):
                got = await exchange(streams, ask(there.url))
                assert (got.content, set(got.fields)) == (b"hello", {"content-length", "via", "date"})
            assert len(there.connections) == 3

    run(main)


def test_fields_for_one_connection_stay_there(run: Run) -> None:
    """Those of RFC 9110 section 7.6.1, what Connection names, and passwords for the proxy go no further."""

    async def main() -> None:
        fields = (
            "Connection: x-mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\n"
            "TE: gzip\r\nProxy-Authorization: Basic YTpi\r\nAccept: */*\r\nCookie: a=b\r\n"
        )
        async with origin() as there, proxy() as here, client(here.address) as streams:
            await exchange(streams, ask(there.url, fields=fields))
            (request,) = there.requests
            assert set(request.fields) == {"host", "accept", "cookie", "via"}

    run(main)


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", 200), ("TRACE", 501)])
def test_max_forwards(run: Run, method: str, status: int) -> None:
    """It goes down by one; at 0 the proxy answers itself and the connection goes on."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            got = await exchange(streams, ask(there.url, method, "Max-Forwards: 0\r\n"))
            assert got.status == status
            assert not there.requests
            assert (await exchange(streams, ask(there.url, method, "Max-Forwards: 7\r\n"))).content == b"hello"
            assert there.requests[0].fields["max-forwards"] == "6"

    run(main)


def test_destinations_that_cannot_be_reached(run: Run) -> None:
    """Refused and unknown are 502 with different reasons; the connection goes on, each with its line."""

    async def main() -> None:
        async with proxy() as here, client(here.address) as streams:
            with closed_port() as port:
                for url, error in (
                    (f"http://127.0.0.1:{port}/", "connection_refused"),
                    ("http://nowhere.test/", "dns_error"),
                    ("http://silent.test/", "dns_error"),
                    ("http://failing.test/", "dns_error"),
                    ("http://255.255.255.255/", "destination_ip_unroutable"),
                ):
                    for method in ("GET", "HEAD"):
                        got = await exchange(streams, ask(url, method))
                        assert got.status in ((500, 502) if error == "destination_ip_unroutable" else (502,))
                        if error != "destination_ip_unroutable":
                            assert got.fields["proxy-status"].startswith(f"tabi; error={error}; ")
                        assert (got.content == b"") == (method == "HEAD")
            for _ in range(9):
                session = await here.ended.get()
                assert session.error is not None
                assert (session.reply_code in (500, 502), session.close, session.connect_seconds) == (
                    True,
                    "error",
                    None,
                )

    run(main)


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_the_guard(run: Run, method: str) -> None:
    """A client from outside does not reach inner addresses: 403, for the log "denied"."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client_from(here.server, "203.0.113.9") as streams:
            url = there.url if method == "GET" else f"127.0.0.1:{there.port}"
            got = await exchange(streams, ask(url, method))
            assert got.status == 403
            assert "error=destination_ip_prohibited" in got.fields["proxy-status"]
            streams[1].close()
            session = await here.ended.get()
            assert (session.close, session.reply_code, session.address) == ("denied", 403, None)
            assert not there.connections

    run(main)


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_nobody_answers_the_connect(run: Run, method: str) -> None:
    """504 after the connect deadline."""

    async def main() -> None:
        with unanswering() as port:
            async with proxy(connect=0.1) as here, client(here.address) as streams:
                url = f"http://127.0.0.1:{port}/" if method == "GET" else f"127.0.0.1:{port}"
                got = await exchange(streams, ask(url, method))
                assert (got.status, "error=connection_timeout" in got.fields["proxy-status"]) == (504, True)

    run(main)


def test_a_destination_that_vanishes_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset between the connection and the request is 502, not an end without an answer."""
    dial = Dialer.dial_many
    vanished = asyncio.Event()

    async def dial_late(*arguments: Any) -> Stream:
        stream = await dial(*arguments)
        await vanished.wait()
        return stream

    monkeypatch.setattr(Dialer, "dial_many", dial_late)

    async def main() -> None:
        vanished.clear()

        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reset(writer)
            await writer.wait_closed()
            vanished.set()

        async with proxy() as here, target(vanish) as port, client(here.address) as streams:
            got = await exchange(streams, ask(f"http://both.test:{port}/"))
            assert got.status == 502

    run(main)


# --- kept connections that have become stale ---


def stale(second: bytes, ends: bool = True) -> tuple[Callable[..., Any], list[list[str]]]:
    """A destination that answers the first request of a connection, and to the second sends ``second`` and ends."""
    asked: list[list[str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines: list[str] = []
        asked.append(lines)
        for answer in (OK, second):
            lines.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n", 1)[0])
            writer.write(answer)

    return serve, asked


@pytest.mark.every_hosting
@pytest.mark.parametrize("how", ["at once", "later", "with octets"])
def test_a_kept_connection_is_closed_when_the_destination_ends_it(run: Run, how: str) -> None:
    """The proxy does not hold it until the client asks again or leaves; the client's own connection goes on."""

    async def main() -> None:
        ended, go = asyncio.Queue[bytes](), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            if how != "at once":
                await go.wait()
            if how == "with octets":
                writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            writer.write_eof()
            try:
                ended.put_nowait(await reader.read())
            except ConnectionResetError:  # it has octets that nobody read
                ended.put_nowait(b"")

        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            for _ in range(2):
                assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/"))).content == b"hello"
                go.set()
                assert await ended.get() == b""

    run(main)


def challenge(scheme: str) -> Callable[[Message], bytes]:
    """A destination that wants a scheme: 401 to everybody that has not sent the last message of it."""

    def answer(message: Message) -> bytes:
        said = message.fields.get("authorization", "last" if message.line.endswith("/in HTTP/1.1") else "")
        if "last" in said:
            return OK
        return b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: %b\r\nContent-Length: 0\r\n\r\n" % scheme.encode()

    return answer


@pytest.mark.parametrize(
    ("scheme", "first", "connections"),
    [
        ("NTLM", "", [5]),
        ("Negotiate", "", [5]),
        ("NTLM", "Authorization: NTLM first\r\n", [5]),
        ("Basic", "", [1, 1, 1, 1, 1]),
        ("Digest", "", [1, 1, 1, 1, 1]),
    ],
)
def test_a_connection_that_is_authenticated(run: Run, scheme: str, first: str, connections: list[int]) -> None:
    """NTLM and Negotiate log a connection in (RFC 4559): a POST goes out on it, too, and all that come later."""

    async def main() -> None:
        async with origin(challenge(scheme)) as there, proxy() as here, client(here.address) as streams:
            last = f"Authorization: {scheme} last\r\n"
            for path, fields, content, status in (
                ("/", first, b"", 401),
                ("/", f"Authorization: {scheme} second\r\n", b"", 401),
                ("/", last, b"content", 200),
                ("/in", "", b"more", 200),
                ("/in", "", b"", 200),
            ):
                got = await exchange(streams, ask(there.url + path, "POST", fields, content))
                assert got.status == status
            assert [len(asked) for asked in there.connections] == connections
            assert [request.content for request in there.requests] == [b"", b"", b"content", b"more", b""]

    run(main)


def test_a_request_that_logs_in_by_itself(run: Run) -> None:
    """Negotiate may succeed at the first request, without a 401: what follows goes out on its connection."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            await exchange(streams, ask(there.url, fields="Authorization: Negotiate YII=\r\n"))
            await exchange(streams, ask(there.url, "POST", content=b"x"))
            assert [len(asked) for asked in there.connections] == [2]
            async with client(here.address) as others:  # it is the first client's own
                await exchange(others, ask(there.url, "POST", content=b"x"))
            assert [len(asked) for asked in there.connections] == [2, 1]

    run(main)


def test_an_authenticated_connection_is_of_one_user(run: Run) -> None:
    """Who is another user for the proxy does not get it, nor does another destination."""

    async def main() -> None:
        users = {"alice": "secret", "bob": "secret"}
        async with origin() as there, origin() as other, proxy(users=users) as here, client(here.address) as streams:
            await exchange(streams, ask(there.url, fields=ALICE + "Authorization: NTLM x\r\n"))
            await exchange(streams, ask(there.url, "POST", basic("bob", "secret"), b"x"))
            await exchange(streams, ask(other.url, "POST", basic("bob", "secret"), b"x"))
            assert [len(asked) for asked in (*there.connections, *other.connections)] == [1, 1, 1]

    run(main)


@pytest.mark.parametrize("when", ["before", "while"])
def test_an_authenticated_connection_that_ends(run: Run, when: str) -> None:
    """Before a POST is sent another one is opened; while it is under way nobody knows what it did, so that it is not
    sent again: 502."""

    async def main() -> None:
        ended, asked = asyncio.Event(), []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await read_message(reader))
            writer.write(OK)
            if when == "while":
                asked.append(await read_message(reader))
            else:
                writer.write_eof()
                await reader.read()
            ended.set()

        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            url = f"http://127.0.0.1:{port}/"
            assert (await exchange(streams, ask(url, fields="Authorization: NTLM x\r\n"))).status == 200
            if when == "before":
                await ended.wait()
            got = await exchange(streams, ask(url, "POST", content=b"x"))
            assert got.status == (200 if when == "before" else 502)
            assert [message.content for message in asked] == [b"", b"x"]

    run(main)


def test_a_stale_connection_is_replaced_once(run: Run) -> None:
    """The destination ends instead of answering the second GET: it is asked again on a new connection."""

    async def main() -> None:
        serve, asked = stale(b"")
        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            for number in range(3):
                assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/{number}"))).content == b"hello"
            lines = [[f"GET /{n} HTTP/1.1" for n in numbers] for numbers in ((0, 1), (1, 2), (2,))]
            assert asked == lines

    run(main)


@pytest.mark.parametrize("second", [b"HTTP/1.1 200", CONTINUE])
def test_what_has_begun_to_answer_is_not_asked_again(run: Run, second: bytes) -> None:
    """Part of an answer shows that the request was seen: 502, on the connection that goes on."""

    async def main() -> None:
        serve, asked = stale(second)
        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
            got = await exchange(streams, ask(f"http://127.0.0.1:{port}/"))
            if got.status == 100:
                got = await read_message(streams[0])
            assert got.status == 502
            assert [len(lines) for lines in asked] == [2]

    run(main)


def test_a_fresh_connection_that_ends_is_not_replaced(run: Run) -> None:
    """Where the new connection ends too the answer is 502: asked twice in all, not without end."""

    async def main() -> None:
        count = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            count += 1
            await reader.readuntil(b"\r\n\r\n")
            if count == 1:
                writer.write(OK)
                await reader.readuntil(b"\r\n\r\n")

        async with target(serve) as port, proxy() as here, client(here.address) as streams:
            for status in (200, 502):
                assert (await exchange(streams, ask(f"http://127.0.0.1:{port}/"))).status == status
            assert count == 2

    run(main)


@pytest.mark.parametrize("second", [False, True])
def test_a_head_octet_by_octet_has_one_deadline(run: Run, second: bool) -> None:
    """No octet prolongs it, of the first request as of the later ones."""

    async def main() -> None:
        async with origin() as there, proxy(handshake=0.5) as here, client(here.address) as streams:
            reader, writer = streams
            if second:
                await exchange(streams, ask(there.url))
            for octet in ask(there.url, fields="A: b\r\n" * 1000):
                writer.write(b"%c" % octet)
                await asyncio.sleep(0.005)
                if here.ended.qsize() > second:
                    break
            assert await end_of(reader) in ("end", "reset")
            if second:
                await here.ended.get()
            session = here.ended.get_nowait()
            assert session.error == "handshake: not done within 0.5 s"
            assert len(there.requests) == second

    run(main)


def test_a_kept_connection_ends_when_it_is_idle(run: Run) -> None:
    """After the idle deadline, in silence: what was asked for on it has its line already."""

    async def main() -> None:
        async with origin() as there, proxy(idle=0.1) as here, client(here.address) as streams:
            await exchange(streams, ask(there.url))
            assert await end_of(streams[0]) == "end"
            await here.ended.get()
            await until(lambda: not here.server.parts.sessions.running)
            assert here.ended.empty()

    run(main)


# --- users ---


def basic(name: str, password: str) -> str:
    """The field that logs in."""
    return f"Proxy-Authorization: Basic {b64encode(f'{name}:{password}'.encode()).decode()}\r\n"


ALICE = basic("alice", "secret")


@pytest.mark.parametrize(
    "fields",
    [
        "",
        basic("alice", "wrong"),
        basic("bob", "secret"),
        "Proxy-Authorization: Basic !\r\n",
        "Proxy-Authorization: Bearer x\r\n",
        "Authorization: Basic YWxpY2U6c2VjcmV0\r\n",
    ],
)
@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_who_does_not_log_in_gets_407(run: Run, method: str, fields: str) -> None:
    """It names what is wanted, and the same request with the password succeeds: on the same connection, or on another
    where it is a CONNECT, for what a client sends behind that may be meant for the tunnel."""

    async def main() -> None:
        async with origin() as there, proxy(users={"alice": "secret"}) as here, client(here.address) as streams:
            url = there.url if method == "GET" else f"127.0.0.1:{there.port}"
            got = await exchange(streams, ask(url, method, fields))
            assert (got.status, got.fields.get("connection")) == (407, None if method == "GET" else "close")
            assert got.fields["proxy-authenticate"] == 'Basic realm="tabi", charset="UTF-8"'
            assert not there.connections
            if method == "GET":
                assert (await exchange(streams, ask(url, method, ALICE))).content == b"hello"
                streams[1].close()
            else:
                assert await end_of(streams[0]) == "end"
                streams[1].close()
                async with client(here.address) as again:
                    again[1].write(ask(url, method, ALICE))
                    assert await again[0].readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
                    assert (await exchange(again, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).content == b"hello"
            refused, served = await here.ended.get(), await here.ended.get()
            assert (refused.close, refused.reply_code, refused.user) == ("denied", 407, None)
            assert str(refused.destination) == f"127.0.0.1:{there.port}"
            assert (served.reply_code, served.user, served.error) == (200, "alice", None)

    run(main)


def test_each_request_is_checked(run: Run) -> None:
    """A password counts for its own request only; one with content that is refused ends the connection."""

    async def main() -> None:
        async with origin() as there, proxy(users={"alice": "secret"}) as here, client(here.address) as streams:
            for fields, status in ((ALICE, 200), ("", 407), (basic("alice", ""), 407), (ALICE, 200)):
                assert (await exchange(streams, ask(there.url, fields=fields))).status == status
            content = ask(there.url, fields=ALICE)  # which must not be read as a request
            got = await exchange(streams, ask(there.url, "POST", content=content))
            assert (got.status, got.fields["connection"]) == (407, "close")
            assert await end_of(streams[0]) == "end"
            assert len(there.requests) == 2

    run(main)


def test_each_user_has_a_connection_to_the_destination(run: Run) -> None:
    """Another user on the client's connection gets a new one: the destination may have tied it to the first (NTLM)."""

    async def main() -> None:
        users = {"alice": "secret", "bob": "secret"}
        async with origin() as there, proxy("optional", users=users) as here, client(here.address) as streams:
            for fields in (ALICE, ALICE, basic("bob", "secret"), basic("bob", "secret"), "", ALICE):
                assert (await exchange(streams, ask(there.url, fields=fields))).status == 200
            assert [len(asked) for asked in there.connections] == [2, 2, 1, 1]

    run(main)


def test_optional_users(run: Run) -> None:
    """Who sends no password is served as nobody; who sends a wrong one is refused."""

    async def main() -> None:
        async with (
            origin() as there,
            proxy("optional", users={"alice": "secret"}) as here,
            client(here.address) as streams,
        ):
            wanted = (("", 200, None), (ALICE, 200, "alice"), (basic("alice", "x"), 407, None), ("", 200, None))
            for fields, status, _ in wanted:
                assert (await exchange(streams, ask(there.url, fields=fields))).status == status
            streams[1].close()
            for _, status, user in wanted:
                session = await here.ended.get()
                assert (session.reply_code, session.user) == (status, user)

    run(main)


# --- CONNECT ---


@pytest.mark.every_hosting
def test_connect_hands_over_to_the_relay(run: Run) -> None:
    """Octets behind the head go first, bulk and ends pass in both directions; its session is the relay's."""

    async def main() -> None:
        async with target() as port, proxy() as here, client(here.address) as (reader, writer):
            data = bytes(range(256)) * 4096 * 4
            writer.write(ask(f"127.0.0.1:{port}", "CONNECT") + b"early " + data)
            writer.write_eof()
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
            assert await reader.read() == b"early " + data
            session = await here.ended.get()
            assert (session.command, session.reply_code, session.close) == ("connect", 200, "client")
            assert session.up == session.down == 6 + len(data)
            assert session.connect_seconds is not None

    run(main)


def test_connect_behind_other_requests(run: Run) -> None:
    """A connection that has served requests may still become a tunnel; that to the destination before is closed."""

    async def main() -> None:
        async with target() as port, origin() as there, proxy() as here, client(here.address) as (reader, writer):
            await exchange((reader, writer), ask(there.url))
            writer.write(ask(f"127.0.0.1:{port}", "CONNECT") + b"ping")
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(4) == b"ping"
            writer.write_eof()
            assert await reader.read() == b""
            assert [(await here.ended.get()).command for _ in range(2)] == ["forward", "connect"]

    run(main)


@pytest.mark.parametrize("last", ["CONNECT", "bad"])
def test_nothing_overtakes_answers_that_wait(run_once: Run, last: str) -> None:
    """Small answers to a client that asks and asks before it reads come whole and in order, and what follows them
    comes behind them: a tunnel, or a refusal."""
    count = 2000
    content = "x" * 3500

    async def main() -> None:
        def answer(message: Message) -> bytes:
            path = message.line.split()[1]
            return f"HTTP/1.1 200 OK\r\nContent-Length: {len(path + content)}\r\n\r\n{path}{content}".encode()

        async with target() as port, origin(answer) as there, proxy() as here:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (str(here.address.host), here.address.port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
            writer.write(b"".join(ask(f"{there.url}/{number}") for number in range(count)))
            writer.write(ask(f"127.0.0.1:{port}", "CONNECT") + b"ping" if last == "CONNECT" else b"rubbish\r\n\r\n")
            done = 0
            while len(there.requests) > done:  # until the proxy waits for us
                done = len(there.requests)
                await asyncio.sleep(0.05)
            for number in range(count):
                message = await read_message(reader)
                assert (message.status, message.content) == (200, f"/{number}{content}".encode())
            if last == "CONNECT":
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
                assert await reader.readexactly(4) == b"ping"
            else:
                assert (await read_message(reader)).status == 400
            writer.close()

    run_once(main)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("users", [None, {"alice": "secret"}])
def test_what_follows_a_refused_connect_is_no_request(run: Run, users: dict[str, str] | None, waits: bool) -> None:
    """A client that did not wait has sent it to the destination: whoever chose it must not speak for the client."""

    async def main() -> None:
        with closed_port() as port:
            async with origin() as there, proxy(users=users) as here, client(here.address) as (reader, writer):
                writer.write(ask(f"127.0.0.1:{port}", "CONNECT") + (b"" if waits else ask(there.url, fields=ALICE)))
                got = await read_message(reader)
                writer.write(ask(there.url, fields=ALICE) if waits else b"")
                assert (got.status, got.fields["connection"]) == (407 if users else 502, "close")
                assert await end_of(reader) == "end"
                assert not there.connections

    run(main)


def test_a_refused_connect_says_why(run: Run) -> None:
    """502 with the reason; the connection ends, since what comes next might be meant for the destination."""

    async def main() -> None:
        with closed_port() as port:
            async with proxy() as here, client(here.address) as streams:
                got = await exchange(streams, ask(f"127.0.0.1:{port}", "CONNECT"))
                assert (got.status, got.fields["connection"]) == (502, "close")
                assert "error=connection_refused" in got.fields["proxy-status"]
                assert await end_of(streams[0]) == "end"

    run(main)


# --- what is refused ---

SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("POST {url}/ HTTP/1.1", "Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Content-Length: 5, 5\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Content-Length: +5\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding: xchunked\r\n", 501),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding: gzip, chunked\r\n", 501),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding : chunked\r\n", 400),
        ("POST {url}/ HTTP/1.0", "Transfer-Encoding: chunked\r\n", 400),
        ("POST {url}/ HTTP/1.1", "Transfer-Encoding:\x0bchunked\r\n", 400),
        ("GET {url}/ HTTP/1.1", "A: b\r\n c\r\n", 400),
        ("GET {url}/ HTTP/1.1", "A: b\nContent-Length: 5\r\n", 400),
        ("GET {url}/ HTTP/1.1", "A: b\rC: d\r\n", 400),
        ("GET {url}/ HTTP/1.1", "A: b\x00\r\n", 400),
        ("GET {url}/ HTTP/1.1", "Host: y\r\n", 400),
        ("GET  {url}/ HTTP/1.1", "", 400),
        ("GET {url}/ HTTP/1.1 ", "", 400),
        ("GET {url}/a b HTTP/1.1", "", 400),
        ("GET {url}/ HTTP/2.0", "", 505),
        ("GET {url}/", "", 505),
        ("GET / HTTP/1.1", "", 400),
        ("GET ftp://127.0.0.1/ HTTP/1.1", "", 501),
        ("GET http://a@b@127.0.0.1/ HTTP/1.1", "", 400),
        ("GET http://a\\@127.0.0.1/ HTTP/1.1", "", 400),
        ("CONNECT {authority} HTTP/1.1", "Host: y\r\n", 400),
        ("CONNECT 127.0.0.1 HTTP/1.1", "", 400),
        ("CONNECT {authority} HTTP/1.1", "Content-Length: 5\r\n", 400),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_what_could_be_read_in_two_ways(
    run_once: Run, later: bool, request_line: str, fields: str, status: int
) -> None:
    """It is refused as a whole: nothing of it and nothing behind it reaches a destination, and the connection ends."""

    async def main() -> None:
        async with origin() as there, proxy() as here, client(here.address) as streams:
            if later:
                await exchange(streams, ask(there.url))
            line = request_line.format(url=there.url, authority=f"127.0.0.1:{there.port}")
            got = await exchange(streams, f"{line}\r\nHost: x\r\n{fields}\r\n0\r\n\r\n{SMUGGLED}".encode())
            assert (got.status, got.fields["connection"]) == (status, "close")
            assert "error=http_request_error" in got.fields["proxy-status"]
            assert await end_of(streams[0]) == "end"
            assert len(there.requests) == later
            assert not there.octets
            streams[1].close()
            if later:
                await here.ended.get()
            session = await here.ended.get()
            assert (session.reply_code, session.close) == (status, "error")

    run_once(main)


# --- draining ---


def test_a_drain_ends_what_waits_and_lets_the_rest_finish(run: Run) -> None:
    """Idle kept connections end at once; the one under way gets its answer, with Connection: close."""

    async def main() -> None:
        asked, go = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await go.wait()
            writer.write(OK)
            await reader.read()

        async with (
            target(serve) as port,
            origin() as there,
            proxy() as here,
            client(here.address) as idle,
            client(here.address) as busy,
        ):
            await exchange(idle, ask(there.url))
            busy[1].write(ask(f"http://127.0.0.1:{port}/"))
            await asked.wait()
            async with asyncio.TaskGroup() as group:
                drained = group.create_task(here.server.drain(10))
                assert await end_of(idle[0]) == "end"
                go.set()
                got = await read_message(busy[0])
                assert (got.content, got.fields["connection"]) == (b"hello", "close")
                assert await end_of(busy[0]) == "end"
                busy[1].close()
            assert drained.result() == 0

    run(main)


def test_an_answer_that_waits_at_the_servers_end_is_a_reset(run_once: Run) -> None:
    """Small answers that nobody has taken, on a connection that waits for more."""

    async def main() -> None:
        content = "x" * 3500
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode()
        async with origin(answer) as there, proxy() as here:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (str(here.address.host), here.address.port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
            waiting = here.server.parts.forwarding.kept.clients
            while not any(stream.unsent for stream in waiting):
                writer.write(ask(there.url))
                await here.ended.get()
                await until(lambda: waiting)
            await here.server.close()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run_once(main)


# --- the log ---


def test_every_request_has_its_line(run: Run, tmp_path: Path) -> None:
    """Status, user and octets each, connect_ms only where a connection was made; none for an end in silence."""
    path = tmp_path / "access.log"

    async def main() -> None:
        listening = Config(listen=[Listen(HTTP)], log=Log(access=str(path)))
        async with (
            origin() as there,
            proxy(config=listening, users={"alice": "secret"}) as here,
            client(here.address) as streams,
        ):
            for octets in (
                ask(there.url, fields=ALICE),
                ask(there.url),
                ask(there.url, fields=ALICE),
                ask(there.url, "POST", ALICE, b"data"),
            ):
                await exchange(streams, octets)

    run(main)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("protocol", "command", "reply", "user", "up", "down", "close")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        ("http", "forward", 200, "alice", 0, 5, "server"),
        ("http", "forward", 407, None, 0, 0, "denied"),
        ("http", "forward", 200, "alice", 0, 5, "server"),
        ("http", "forward", 200, "alice", 4, 5, "server"),
    ]
    assert [line["connect_ms"] is None for line in lines] == [False, True, True, False]
    assert len({line["id"] for line in lines}) == 4
    assert "secret" not in path.read_text()


def test_the_document_names_tests_that_exist() -> None:
    """Each point of HTTP in docs/conformance.md leads to tests here, to those of the exchange or of TLS."""
    files = (Path(__file__).parents[1] / "relay" / "test_exchange.py", Path(__file__).with_name("test_origin_tls.py"))
    known = {*globals(), *(name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M))}
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    rows = re.findall(r"^\| H\d+ \|.*$", page, re.M)
    assert len(rows) == 16
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row)
        assert names
        assert set(names) <= known


# --- a client that has ended its side ---


@pytest.mark.parametrize("content", [b"", b"four"])
def test_a_request_whose_client_has_ended_its_side_has_half_closed_left(run_once: Run, content: bytes) -> None:
    """An end is not a reset: the answer is still waited for, but not as long as if the client were there. Its user's
    connections are free then, too."""

    async def main() -> None:
        asked, ended = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await reader.read()
            ended.set()

        async with (
            target(serve) as port,
            proxy(idle=1e6, half_closed=0.1) as here,
            client(here.address) as (reader, writer),
        ):
            writer.write(ask(f"http://127.0.0.1:{port}/", "POST" if content else "GET", content=content))
            await asked.wait()
            assert not ended.is_set()
            writer.write_eof()
            assert (await read_message(reader)).status == 504
            await ended.wait()
            session = await here.ended.get()
            assert session.error == f"127.0.0.1:{port}: no answer within 0.1 s"

    run_once(main)


def test_an_answer_to_a_client_that_has_ended_its_side(run: Run) -> None:
    """It arrives whole, as long as something moves within `half_closed`."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
            for _ in range(10):
                await asyncio.sleep(0.03)
                writer.write(b"xx")

        async with (
            target(serve) as port,
            proxy(idle=1e6, half_closed=0.2) as here,
            client(here.address) as (reader, writer),
        ):
            writer.write(ask(f"http://127.0.0.1:{port}/"))
            writer.write_eof()
            assert (await read_message(reader)).content == b"x" * 20
            assert (await here.ended.get()).error is None

    run(main)
