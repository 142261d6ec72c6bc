"""Flow: what hooks may read and change of a request and its answer."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest

from tabi.errors import TooLarge
from tabi.intercept.codings import decode_content
from tabi.intercept.flow import (
    Answer,
    Drop,
    Flow,
    FlowRequest,
    FlowResponse,
    Message,
    Reroute,
    charset_of,
)
from tabi.intercept.headers import Headers


def make_request(target: str = "/a?b=1", headers: bytes = b"\r\nHost: example.com") -> FlowRequest:
    """A request for https://example.com."""
    return FlowRequest("GET", "https", "example.com", target, "HTTP/1.1", Headers(headers))


def make_flow() -> Flow:
    """A flow with an answer."""
    flow = Flow("1", ("192.0.2.1", 5), None, "socks5://[::1]:1080", "example.com", 443, None, make_request())
    flow.response = FlowResponse(200, "OK", "HTTP/1.1", Headers(b"\r\nServer: x"))
    return flow


class Content:
    """A reader of content that is there."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read_all(self, limit: int) -> bytes:
        """See `flow.Reader`."""
        if len(self.data) > limit:
            raise TooLarge("too large")
        return self.data


def with_content(data: bytes, **fields: str) -> Message:
    """A response with content."""
    headers = Headers([(name.replace("_", "-"), value) for name, value in fields.items()])
    response = FlowResponse(200, "OK", "HTTP/1.1", headers)
    response._reader = Content(data)
    return response


def read(message: Message, how: str = "read", *args: Any, **options: Any) -> Any:
    """What one of the methods that wait returns."""
    return asyncio.run(getattr(message, how)(*args, **options))


def test_a_url_and_its_path() -> None:
    """The whole URL can be read, and set within the same server; what cannot be sent is refused."""
    request = make_request()
    assert (request.url, request.path) == ("https://example.com/a?b=1", "/a?b=1")
    assert (request.scheme, request.host) == ("https", "example.com")
    assert not request.changed
    request.url = "https://EXAMPLE.com/c%20d?e#f"
    assert request.path == "/c%20d?e"
    assert request.changed
    request.url = "https://example.com"
    assert request.path == "/"
    request.path = "/ü\udcff"
    for url in ("http://example.com/", "https://example.org/", "https://example.com:444/", "/x", "https://[/"):
        with pytest.raises(ValueError, match=r"reroute|Invalid|netloc"):
            request.url = url
    for path in ("x", "", "/a b", "/a\r\nb", "/a\x7f", "/a#b", "http://example.com/", "/\ud800"):
        with pytest.raises(ValueError, match=r"path|surrogates"):
            request.path = path
    assert request.path == "/ü\udcff"
    assert make_request("*").url == "https://example.com"
    assert make_request("http://other.example/x").url == "http://other.example/x"
    assert repr(make_request("/secret")) == "<FlowRequest GET https://example.com>"


def test_a_method() -> None:
    """A token; CONNECT would open a tunnel."""
    request = make_request()
    request.method = "PATCH"
    assert request.changed
    for method in ("", "GET /x", "a\r\nb", "CONNECT", "ü"):
        with pytest.raises(ValueError, match="method"):
            request.method = method
    assert request.method == "PATCH"


def test_a_status_line() -> None:
    """The reason follows the status, and may be another."""
    response = FlowResponse(200, "Fine", "HTTP/1.1", Headers())
    assert not response.changed
    response.status = 404
    assert (response.status, response.reason) == (404, "Not Found")
    response.reason = "Gone for lunch"
    assert response.changed
    response.status = 599
    assert response.reason == ""
    for status in (101, 199, 600, "200", None):
        with pytest.raises(ValueError, match="expected 200 to 599"):
            response.status = status
    for reason in ("a\r\nb", "\0"):
        with pytest.raises(ValueError, match="reason"):
            response.reason = reason
    assert repr(response) == "<FlowResponse 599>"


def test_headers_may_be_others() -> None:
    """That is a change, too."""
    request = make_request()
    request.headers = Headers({"A": "b"})
    assert request.changed
    with pytest.raises(TypeError, match=r"dict, expected tabi\.Headers"):
        request.headers = {}  # type: ignore[assignment]


def test_content_is_decoded_when_it_is_asked_for() -> None:
    """By all fields of Content-Encoding; raw is as it came."""
    data = gzip.compress(gzip.compress(b"hello", mtime=0), mtime=0)
    message = FlowResponse(
        200, "OK", "HTTP/1.1", Headers([("Content-Encoding", "gzip"), ("content-encoding", "x-gzip")])
    )
    message._reader = Content(data)
    assert read(message) == b"hello"
    assert read(message, "read", raw=True) == data
    assert read(message, "text") == "hello"
    with pytest.raises(TooLarge):
        read(message, "read", 4)
    with pytest.raises(TooLarge):
        read(message, "text", 4)
    assert read(make_request()) == b""
    with pytest.raises(ValueError, match="gzip"):
        read(with_content(b"no gzip", Content_Encoding="gzip"))


@pytest.mark.parametrize(
    ("content_type", "charset"),
    [
        ("text/plain", "utf-8"),
        ("text/plain; charset=ISO-8859-1", "iso-8859-1"),
        ('text/plain; x=y; Charset = "shift_jis"', "shift-jis"),
        ("text/plain; charset=punycode", "utf-8"),
        ("text/plain; charset=zip", "utf-8"),
        ("text/plain; charset=unicode_escape", "utf-8"),
        ("text/plain; charset=idna", "utf-8"),
        ("text/plain; charset=a\0b", "utf-8"),
        ("text/plain; charset=", "utf-8"),
        ("", "utf-8"),
    ],
)
def test_charsets(content_type: str, charset: str) -> None:
    """Those of the web; a peer cannot choose what is slow, is no text, or is not there."""
    assert charset_of(content_type) == charset


def test_text() -> None:
    """In its charset, and what is none is shown as far as it is."""
    assert read(with_content(b"\xe4", Content_Type="text/plain; charset=latin1"), "text") == "ä"
    assert read(with_content(b"\xe4"), "text") == "\ufffd"


def test_json() -> None:
    """ValueError for all that is none, however deep it is nested."""
    assert read(with_content(b'{"a": 1}'), "json") == {"a": 1}
    for data in (b"", b"{", b"\xff\xff", b"[" * 200_000, b"1" * 10_000):
        with pytest.raises(ValueError, match=r"."):
            read(with_content(data), "json")


def test_other_content() -> None:
    """It is encoded as Content-Encoding says, whether octets or text; then it is what is read."""
    message = with_content(b"x", Content_Encoding="br")
    message.set_body("häuser")
    assert message._content is not None
    assert decode_content(message._content, "br", 100) == "häuser".encode()
    assert read(message, "text") == "häuser"
    message.set_body(b"abc")
    assert read(message) == b"abc"
    message.headers["Content-Encoding"] = "compress"
    with pytest.raises(ValueError, match="not known"):
        message.set_body(b"x")
    for wrong in (5, None):
        with pytest.raises(TypeError, match="expected bytes or str"):
            message.set_body(wrong)  # type: ignore[arg-type]


def test_an_answer() -> None:
    """Text or octets, fields of a mapping or pairs; those of framing are not the hook's."""
    flow = make_flow()
    flow.respond(403, "nö", {"Content-Type": "text/plain", "Content-Length": "99", "Connection": "close"})
    assert isinstance(flow.instead, Answer)
    assert (flow.instead.status, flow.instead.body) == (403, "nö".encode())
    assert flow.instead.headers.items() == [("Content-Type", "text/plain")]
    flow.respond(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Transfer-Encoding", "chunked")])
    assert isinstance(flow.instead, Answer)
    assert (flow.instead.status, flow.instead.body) == (200, b"")
    assert flow.instead.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert "Transfer-Encoding" not in flow.instead.headers
    before = flow.instead
    for arguments in ((100,), (600,), (200, b"", {"a": "b\r\nc: d"})):
        with pytest.raises(ValueError, match="expected"):
            flow.respond(*arguments)
    assert flow.instead is before
    flow.drop()
    assert isinstance(flow.instead, Drop)


def test_another_server() -> None:
    """A URL of http or https."""
    flow = make_flow()
    flow.reroute("http://[::1]:8080/x?y", via="eu")
    assert flow.instead == Reroute("http://[::1]:8080/x?y", "eu")
    for url in (
        "ftp://a/",
        "ws://a/",
        "/x",
        "http://",
        "http://[/",
        "http://a/b c",
        "http://a/\r\nX: y",
        "http://\ud800/",
    ):
        with pytest.raises(ValueError, match=r"reroute: |surrogates"):
            flow.reroute(url)
    for url in ("https://a:99999/", "https://a:0/", "http://a b/", "http://[::g]/", "http://a@b@c/", "http://ü/"):
        with pytest.raises(ValueError, match="reroute: "):
            flow.reroute(url)


def test_a_change_is_undone() -> None:
    """All that a hook may change, to the very objects that were there."""
    for message in (make_request(), FlowResponse(200, "OK", "HTTP/1.1", Headers(b"\r\nA: b"))):
        state, headers, encoded = message.state(), message.headers, message.headers.encode()
        headers["X"] = "y"
        message.headers = Headers({"C": "d"})
        message.set_body(b"other")
        message.set_line(("POST", "/other") if isinstance(message, FlowRequest) else (404, "No"))
        message.restore(state)
        assert message.headers is headers
        assert headers.encode() == encoded
        assert not message.headers.changed
        assert message._content is None
        assert message.line() in {("GET", "/a?b=1"), (200, "OK")}


def test_content_that_was_read_can_be_read_again() -> None:
    """Also when the message has gone on; what was not read has gone with it, unless there was nothing."""
    message = with_content(b"content", Content_Length="7")
    assert read(message) == b"content"
    message.pass_on()
    assert read(message, "text") == "content"
    with pytest.raises(TooLarge):
        read(message, "read", 6)
    for fields in ({"Content_Length": "7"}, {"Transfer_Encoding": "chunked"}):
        message = with_content(b"content", **fields)
        message.pass_on()
        with pytest.raises(RuntimeError, match="gone on"):
            read(message)
    for fields in ({"Content_Length": "0"}, {}):
        message = with_content(b"", **fields)
        message.pass_on()
        assert read(message, "text") == ""


def test_content_is_not_read_in_a_thread() -> None:
    """Streams belong to the loop: a copy says how to do it."""
    message = with_content(b"x")
    with pytest.raises(RuntimeError, match="read it in an async hook"):
        read(message.copy())
    assert read(message) == b"x"
    assert read(make_request().copy()) == b""


def test_a_copy_is_taken_over() -> None:
    """What was changed of it, and nothing before that; a copy that was only read changes nothing."""
    flow = make_flow()
    copied = flow.copy()
    assert copied.response is not None
    assert flow.response is not None
    flow.take(copied)
    assert not flow.request.changed
    assert not flow.response.changed
    copied.request.headers["X"] = "y"
    copied.request.path = "/other"
    copied.response.headers = Headers({"C": "d"})
    copied.response.status = 201
    copied.response.set_body("new")
    copied.tags.add("seen")
    copied.drop()
    assert (flow.request.changed, flow.tags, flow.instead) == (False, set(), None)
    flow.take(copied)
    assert flow.request.url == "https://example.com/other"
    assert flow.request.headers["x"] == "y"
    assert flow.response.headers.items() == [("C", "d")]
    assert (flow.response.status, flow.response._content) == (201, b"new")
    assert (flow.tags, flow.instead) == ({"seen"}, Drop())
    flow.response = None
    flow.take(flow.copy())
    assert repr(flow) == "<Flow 1 <FlowRequest GET https://example.com>>"
