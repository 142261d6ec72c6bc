"""Heads of HTTP/2 as hooks see them, and as they have left them. On streams: test_http2_stream_flow.py."""

from __future__ import annotations

import pytest

from tabi.intercept.flow import FlowResponse
from tabi.intercept.headers import Headers
from tabi.intercept.http2_heads import headers_of, host_of, reframe, settle_response, to_fields
from tabi.wire.h2 import H2Request
from tabi.wire.hpack import Field, NeverIndexed, NotIndexed


def test_crumbs_of_cookies_are_one_field() -> None:
    """Where the first stood; nothing else moves, and nothing counts as changed."""
    fields = [(b"a", b"1"), (b"cookie", b"x=1"), (b"b", b"2"), (b"cookie", b"y=2"), (b"cookie", b"z=3")]
    headers = headers_of(fields)
    assert headers.raw == [(b"a", b"1"), (b"cookie", b"x=1; y=2; z=3"), (b"b", b"2")]
    assert not headers.changed
    assert headers_of(fields[:3]).raw == fields[:3]


@pytest.mark.parametrize(
    ("authority", "fields", "expected"),
    [(b"a", [(b"host", b"b")], b"a"), (b"", [(b"x", b"y"), (b"host", b"b")], b"b"), (b"", [], None)],
)
def test_the_host_of_a_request(authority: bytes, fields: list[Field], expected: bytes | None) -> None:
    """:authority, else Host."""
    assert host_of(H2Request(b"GET", b"https", authority, b"/", b"", fields)) == expected


def test_fields_as_http2_has_them() -> None:
    """Small letters, no white space around values, nothing of a connection."""
    headers = Headers(
        [
            *(("X-A", " b "), ("Connection", "x"), ("Keep-Alive", "5"), ("Transfer-Encoding", "chunked")),
            *(("Upgrade", "h2c"), ("HTTP2-Settings", "x"), ("Proxy-Connection", "x"), ("TE", "gzip")),
            *(("TE", "Trailers"), ("Host", "a")),
        ]
    )
    assert to_fields(headers) == [(b"x-a", b"b"), (b"te", b"Trailers"), (b"host", b"a")]
    assert to_fields(headers, (), b"a") == [(b"x-a", b"b"), (b"te", b"Trailers")]


def test_what_was_not_indexed_is_not() -> None:
    """Another value of such a field is a secret too (RFC 7541 section 7.1.3)."""
    came: list[Field] = [NeverIndexed((b"authorization", b"a")), NotIndexed((b"x", b"1")), (b"y", b"2")]
    headers = Headers(came)
    headers["Authorization"] = "b"
    assert [type(field).__name__ for field in to_fields(headers, came)] == ["NeverIndexed", "NotIndexed", "tuple"]
    assert list(to_fields(headers, came)[0]) == [b"authorization", b"b"]


def response(status: int, now: int | None = None, content: bytes | None = None) -> FlowResponse:
    """An answer, as a hook has left it."""
    message = FlowResponse(status, "", "HTTP/2", Headers([(b"content-length", b"3")]))
    if now is not None:
        message.status = now
    message._content = content
    return message


@pytest.mark.parametrize(
    ("message", "asked", "method", "nothing", "content"),
    [
        (response(200), "GET", b"GET", False, None),
        (response(200), "GET", b"HEAD", True, None),
        (response(200), "HEAD", b"GET", False, b""),
        (response(200, content=b"x"), "HEAD", b"GET", False, b"x"),
        (response(200, 204), "GET", b"GET", True, b""),
        (response(204), "GET", b"GET", True, None),
        (response(204, 200), "GET", b"GET", False, b""),
        (response(304, content=b"x"), "GET", b"GET", True, b"x"),
    ],
)
def test_answers_with_and_without_content(
    message: FlowResponse, asked: str, method: bytes, nothing: bool, content: bytes | None
) -> None:
    """By the status as it is now, the client's method and the destination's."""
    assert settle_response(message, asked, method) == nothing
    assert message._content == content


def test_the_length_is_what_is_sent() -> None:
    """Of another content its own; none where hooks change it, or 204 has none; else the one that came."""
    came: list[Field] = [(b"content-length", b"3")]
    message = response(200, content=b"hello")
    reframe(message, came)
    assert message.headers.items() == [("content-length", "5")]
    message = response(200, content=b"abc")
    reframe(message, came)
    assert not message.headers.changed
    message = response(200, 204, b"")
    reframe(message, came)
    assert message.headers.raw == []
    message = response(200)
    reframe(message, came, shown=True)
    assert message.headers.raw == []
    for other in ("77", "", None):
        message = response(200)
        if other is None:
            del message.headers["Content-Length"]
        else:
            message.headers["Content-Length"] = other
        message.headers.add("Content-Length", "1")
        reframe(message, came)
        assert message.headers.raw == came
    message = response(200)
    message.headers["a"] = "b"
    reframe(message, came)
    assert message.headers.items() == [("content-length", "3"), ("a", "b")]
