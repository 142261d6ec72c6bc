"""Heads as hooks have left them: they say how their content is sent, whatever the hooks have made of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tabi.intercept.exchange import message_of
from tabi.intercept.flow import Answer, FlowRequest, FlowResponse
from tabi.intercept.framing import answer_of, own_head, request_octets, response_octets, settle_response
from tabi.intercept.headers import Headers
from tabi.wire.http_origin import OriginRequest, OriginResponse, decode_origin_request, decode_origin_response


def read_request(head: bytes) -> tuple[OriginRequest, FlowRequest]:
    """A request, and what hooks see of it."""
    found = decode_origin_request(head)
    assert found is not None
    request = found[0]
    fields = Headers(request.fields)
    return request, FlowRequest(request.method, "https", "a.example", request.target, "HTTP/1.1", fields)


def read_response(head: bytes, method: str = "GET") -> tuple[OriginResponse, FlowResponse]:
    """A response, and what hooks see of it."""
    found = decode_origin_response(head, method)
    assert found is not None
    return found[0], message_of(found[0])


POST = b"POST /a HTTP/1.1\r\nhost:a.example\r\ncontent-LENGTH:  5\r\nX: y\r\n\r\n"
CHUNKS = b"POST /a HTTP/1.1\r\nhost:a.example\r\nTransfer-Encoding: Chunked\r\nTrailer: T\r\n\r\n"


def test_what_is_not_changed_goes_on_as_it_came() -> None:
    """Octet for octet, also where a hook has only looked at it."""
    for head in (POST, CHUNKS):
        request, message = read_request(head)
        assert message.headers.items()
        assert request_octets(request, message) == head
    for head in (b"HTTP/1.0 200 \r\nA:b\r\n\r\n", b"HTTP/1.1 204 x\r\ncontent-Length: 0\r\n\r\n"):
        response, answer = read_response(head)
        assert not settle_response(response, answer, "GET", "GET") or response.status == 204
        assert response_octets(response, answer) == head


def change_target(message: FlowRequest) -> None:
    message.method, message.path = "PUT", "/b?c"


def change_fields(message: FlowRequest) -> None:
    message.headers["X"] = "z"


def break_length(message: FlowRequest) -> None:
    message.headers["Content-Length"] = "7"


def add_coding(message: FlowRequest) -> None:
    message.headers.add("Transfer-Encoding", "chunked")


def other_fields(message: FlowRequest) -> None:
    message.headers = Headers([("Host", "a.example")])


def set_body(message: FlowRequest) -> None:
    message.set_body(b"longer")


LENGTH = b"content-LENGTH:  5\r\n"
CHANGES: dict[Callable[[FlowRequest], None], bytes] = {
    change_target: POST.replace(b"POST /a", b"PUT /b?c"),
    change_fields: POST.replace(b"X: y", b"X: z"),
    break_length: POST.replace(LENGTH, b"").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"),
    add_coding: POST,
    other_fields: b"POST /a HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\n",
    set_body: POST.replace(LENGTH, b"content-LENGTH: 6\r\n"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_requests_that_hooks_have_changed(change: Callable[[FlowRequest], None]) -> None:
    """Framing is ours: it is what it was, unless there is another content."""
    request, message = read_request(POST)
    change(message)
    assert request_octets(request, message) == CHANGES[change]


def test_chunks_for_chunks() -> None:
    """Content that hooks see in pieces goes on in chunks, and without the trailers that are lost."""
    request, message = read_request(CHUNKS)
    assert request_octets(request, message, True) == CHUNKS.replace(b"Trailer: T\r\n", b"")
    request, message = read_request(POST)
    expected = POST.replace(LENGTH, b"").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert request_octets(request, message, True) == expected
    request, message = read_request(CHUNKS)
    message.headers["Transfer-Encoding"] = "gzip"
    assert decode_origin_request(request_octets(request, message, True)) is not None
    message.set_body(b"")
    assert request_octets(request, message) == b"POST /a HTTP/1.1\r\nhost:a.example\r\nContent-Length: 0\r\n\r\n"


FULL = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


def settle(head: bytes, change: Callable[[FlowResponse], object], asked: str = "GET", method: str = "GET") -> bytes:
    """The head, and the content that a hook's change has led to; ``-`` where the content that comes goes on."""
    response, message = read_response(head, asked)
    change(message)
    nothing = settle_response(response, message, asked, method)
    content = b"" if nothing else b"-" if message._content is None else message._content
    return response_octets(response, message) + content


def status(number: int) -> Callable[[FlowResponse], None]:
    """A hook that sets the status."""

    def change(message: FlowResponse) -> None:
        message.status = number

    return change


def test_statuses_without_content() -> None:
    """A client that is told 204 or 304 reads none; one that is told something else waits for some."""
    assert settle(FULL, status(204)) == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert settle(FULL, status(304)) == b"HTTP/1.1 304 Not Modified\r\n\r\n"
    empty = b"HTTP/1.1 204 No Content\r\n\r\n"
    assert settle(empty, status(200)) == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert settle(empty, status(304)) == b"HTTP/1.1 304 Not Modified\r\n\r\n"
    assert settle(empty, lambda message: message.set_body(b"x")) == empty
    old = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"
    assert settle(old, lambda message: None) == old
    assert settle(old, status(200)) == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_methods_without_content() -> None:
    """A hook that has asked with another method: the client gets what its own method has."""
    assert settle(FULL, lambda message: None, "HEAD", "GET") == FULL.replace(b"5", b"0")
    assert settle(FULL, lambda message: message.set_body(b"abc"), "HEAD", "GET") == FULL.replace(b"5", b"3") + b"abc"
    assert settle(FULL, lambda message: None, "GET", "HEAD") == FULL
    assert settle(FULL, lambda message: message.set_body(b"abc"), "HEAD", "HEAD") == FULL.replace(b"5", b"3")
    assert settle(FULL, lambda message: None) == FULL + b"-"


def test_an_open_end() -> None:
    """A client that knows no chunks, for content that hooks see in pieces."""
    response, message = read_response(FULL)
    assert response_octets(response, message, open_end=True) == b"HTTP/1.1 200 OK\r\n\r\n"
    response, message = read_response(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n")
    assert response_octets(response, message, chunks=True) == (
        b"HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def test_answers_of_hooks() -> None:
    """They have the length that they have, whatever the hook says of it, and a date."""
    fields = [("Content-Length", "9"), ("Connection", "x"), ("Date", "today"), ("A", "b")]
    response, body = answer_of(Answer(200, Headers(fields), b"hello"))
    assert body == b"hello"
    head = b"HTTP/1.1 200 OK\r\nDate: today\r\nA: b\r\nContent-Length: 5"
    assert own_head(response, True, 1) == head + b"\r\n\r\n"
    assert own_head(response, True, 0) == head + b"\r\nConnection: keep-alive\r\n\r\n"
    assert own_head(response, False, 1) == head + b"\r\nConnection: close\r\n\r\n"
    response, body = answer_of(Answer(204, Headers(), b"hello"))
    assert body == b""
    assert own_head(response, True, 1).startswith(b"HTTP/1.1 204 No Content\r\nDate: ")
    response, body = answer_of(Answer(299, Headers(), b""))
    assert own_head(response, True, 1).startswith(b"HTTP/1.1 299 \r\nContent-Length: 0\r\nDate: ")
