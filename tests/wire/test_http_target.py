"""What a client may ask a proxy for, and what becomes of what it puts into a target."""

from __future__ import annotations

from base64 import b64decode
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_heads import GET, HOST, head, lines, outcome, request
from tabi.errors import HttpError
from tabi.wire.address import MAX_NAME, Address, Host
from tabi.wire.http import decode_request, encode_request


@pytest.mark.parametrize(
    ("method", "target", "host", "port", "path"),
    [
        ("GET", "http://a.example/", "a.example", 80, "/"),
        ("GET", "http://a.example", "a.example", 80, "/"),
        ("GET", "http://a.example?q=1", "a.example", 80, "/?q=1"),
        ("GET", "ws://a.example/chat", "a.example", 80, "/chat"),
        ("GET", "HTTP://A.example:8080/x/../y?q=%2f#"[:-1], "A.example", 8080, "/x/../y?q=%2f"),
        ("GET", "https://a.example/", "a.example", 443, "/"),
        ("GET", "HTTPS://a.example:443/x", "a.example", 443, "/x"),
        ("GET", "https://a.example:80", "a.example", 80, "/"),
        ("GET", "wss://[::1]/chat", IPv6Address("::1"), 443, "/chat"),
        ("GET", "http://a.example/x#", "a.example", 80, "/x"),
        ("GET", "http://a.example/x?y#z/?@:", "a.example", 80, "/x?y"),
        ("GET", "http://a.example#x", "a.example", 80, "/"),
        ("OPTIONS", "http://a.example#x", "a.example", 80, "*"),
        ("GET", "http://a.example:/x", "a.example", 80, "/x"),
        ("GET", "http://a_b.example./x@y:z", "a_b.example.", 80, "/x@y:z"),
        ("POST", "http://192.0.2.1:81/", IPv4Address("192.0.2.1"), 81, "/"),
        ("get", "http://[2001:db8::1]/", IPv6Address("2001:db8::1"), 80, "/"),
        ("M-SEARCH", "http://[::1]:8080?x", IPv6Address("::1"), 8080, "/?x"),
        ("OPTIONS", "http://a.example", "a.example", 80, "*"),
        ("OPTIONS", "http://a.example:81", "a.example", 81, "*"),
        ("OPTIONS", "http://a.example/", "a.example", 80, "/"),
        ("OPTIONS", "http://a.example?x", "a.example", 80, "/?x"),
        ("CONNECT", "a.example:443", "a.example", 443, ""),
        ("CONNECT", "192.0.2.1:0", IPv4Address("192.0.2.1"), 0, ""),
        ("CONNECT", "[::1]:65535", IPv6Address("::1"), 65535, ""),
        ("CONNECT", "a" * MAX_NAME + ":1", "a" * MAX_NAME, 1, ""),
    ],
)
def test_targets(method: str, target: str, host: Host, port: int, path: str) -> None:
    """Absolute-form for every method, authority-form for CONNECT: where to connect to, and what to ask for there."""
    message = request(line=f"{method} {target} HTTP/1.1")
    assert (message.method, message.target) == (method, target)
    assert message.destination == Address(host, port)
    assert message.path == path


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("https://a.example/", "a.example"),
        ("https://a.example:443/", "a.example"),
        ("https://a.example:80/", "a.example:80"),
        ("http://a.example:443/", "a.example:443"),
        ("wss://[::443]:443/", "[::443]"),
        ("http://u:p@a.example:80/", "a.example"),
    ],
)
def test_host_without_the_port_of_the_scheme(target: str, host: str) -> None:
    """Only the default port of the target's own scheme is left out; TLS is wanted where the scheme says so."""
    message = request(line=f"GET {target} HTTP/1.1")
    assert lines(encode_request(message))[1] == f"Host: {host}"
    assert message.tls is (target[:5] in ("https", "wss:/"))


@pytest.mark.parametrize(
    ("user", "credentials"),
    [
        ("joe:pw", b"joe:pw"),
        ("joe", b"joe:"),
        ("joe:", b"joe:"),
        (":pw", b":pw"),
        ("joe:p:w", b"joe:p:w"),
        ("joe:p%3Aw%40%2f%25", b"joe:p:w@/%"),
        ("j%c3%B6e:+ä!$&'()*+,;=-._~", "jöe:+ä!$&'()*+,;=-._~".encode()),
        ("%FF:%fe", b"\xff:\xfe"),
        ("", None),
        (":", None),
    ],
)
def test_user_information(user: str, credentials: bytes | None) -> None:
    """It becomes Basic (RFC 7617), its percent-encoding undone, and is nowhere else; an empty one is nothing."""
    data = head(GET, HOST).replace(b"//a", f"//{user}@a".encode())
    found = decode_request(data)
    assert found is not None
    written = lines(encode_request(found[0]))
    assert written[0] == "GET / HTTP/1.1"
    assert written[1] == HOST
    assert str(found[0].destination) == "a.example:80"
    sent = [text.removeprefix("Authorization: Basic ") for text in written if text.startswith("Authorization")]
    assert [b64decode(text) for text in sent] == ([] if credentials is None else [credentials])
    assert user == "" or f"{user}@" not in "".join(written)


@pytest.mark.parametrize("field", ["Authorization: Bearer x", "authorization: Basic eDp5", "AUTHORIZATION:"])
def test_a_request_with_credentials_keeps_them(field: str) -> None:
    """User information gives way to a field, also to one that Connection removes."""
    for fields in ([field], ["Connection: authorization", field]):
        written = lines(encode_request(request(*fields, line="GET http://joe:pw@a.example/ HTTP/1.1")))
        assert [text for text in written if text.lower().startswith("auth")] == ([field] if len(fields) == 1 else [])


def test_octets_beyond_ascii() -> None:
    """They are percent-encoded in path and query, whatever their encoding is, and cut with a fragment."""
    for octets, path in (
        (b"/\xc3\xbc?\xfc%fc", b"/%C3%BC?%FC%fc"),
        (b"?\x85\xa0", b"/?%85%A0"),
        (b"/#\xc3\xbc", b"/"),
    ):
        data = b"GET http://a.example" + octets + b" HTTP/1.1\r\nHost: \xfc\r\n\r\n"
        message, end = outcome(data)
        assert end == len(data)
        assert encode_request(message).startswith(b"GET " + path + b" HTTP/1.1\r\nHost: a.example\r\n")
        assert message.target.encode("utf-8", "surrogateescape") == b"http://a.example" + octets


REFUSED: list[tuple[str, bytes, int]] = [
    ("origin-form", head("GET / HTTP/1.1", HOST), 400),
    ("origin-form with //", head("GET //a.example/ HTTP/1.1", HOST), 400),
    ("asterisk-form", head("OPTIONS * HTTP/1.1", HOST), 400),
    ("authority-form for GET", head("GET a.example:80 HTTP/1.1", HOST), 400),
    ("ftp", head("GET ftp://a.example/ HTTP/1.1", HOST), 501),
    ("ws without host", head("GET ws:///chat HTTP/1.1", HOST), 400),
    ("scheme httpx", head("GET httpx://a.example/ HTTP/1.1", HOST), 501),
    ("no host", head("GET http:/// HTTP/1.1", HOST), 400),
    ("port only", head("GET http://:80/ HTTP/1.1", HOST), 400),
    ("one slash", head("GET http:/a.example/ HTTP/1.1", HOST), 400),
    ("backslashes", head("GET http:\\\\a.example/ HTTP/1.1", HOST), 400),
    ("backslash in the host", head("GET http://a.example\\b.example/ HTTP/1.1", HOST), 400),
    ("fragment behind the host", head("GET http://a.example#@b.example/ HTTP/1.1", HOST), 400),
    ("host percent-encoded", head("GET http://a%2eexample/ HTTP/1.1", HOST), 400),
    ("IPv6 with zone", head("GET http://[fe80::1%25eth0]/ HTTP/1.1", HOST), 400),
    ("IPv6 that is none", head("GET http://[::1::]/ HTTP/1.1", HOST), 400),
    ("IPv6 without end", head("GET http://[::1/ HTTP/1.1", HOST), 400),
    ("IPv6 without brackets", head("GET http://::1/ HTTP/1.1", HOST), 400),
    ("IPv4 in brackets", head("GET http://[192.0.2.1]/ HTTP/1.1", HOST), 400),
    ("octets behind the bracket", head("GET http://[::1]x/ HTTP/1.1", HOST), 400),
    ("address of the future", head("GET http://[v1.a:b]/ HTTP/1.1", HOST), 400),
    ("port too large", head("GET http://a.example:65536/ HTTP/1.1", HOST), 400),
    ("port of six digits", head("GET http://a.example:000080/ HTTP/1.1", HOST), 400),
    ("port with sign", head("GET http://a.example:+80/ HTTP/1.1", HOST), 400),
    ("two ports", head("GET http://a.example:80:81/ HTTP/1.1", HOST), 400),
    ("host of 256 octets", head(f"GET http://{'a' * 256}/ HTTP/1.1", HOST), 400),
    ("CONNECT without port", head("CONNECT a.example HTTP/1.1", HOST), 400),
    ("CONNECT with empty port", head("CONNECT a.example: HTTP/1.1", HOST), 400),
    ("CONNECT to a URI", head("CONNECT http://a.example:80/ HTTP/1.1", HOST), 400),
    ("CONNECT with path", head("CONNECT a.example:80/x HTTP/1.1", HOST), 400),
    ("CONNECT with user", head("CONNECT u@a.example:80 HTTP/1.1", HOST), 400),
    ("CONNECT to IPv6 without brackets", head("CONNECT ::1:80 HTTP/1.1", HOST), 400),
    ("two users", head("GET http://u@v@a.example/ HTTP/1.1", HOST), 400),
    ("two users, one empty", head("GET http://@@a.example/ HTTP/1.1", HOST), 400),
    ("user without host", head("GET http://u@/ HTTP/1.1", HOST), 400),
    ("user with backslash", head("GET http://b.example\\@a.example/ HTTP/1.1", HOST), 400),
    ("password with backslash", head("GET http://u:p\\@a.example/ HTTP/1.1", HOST), 400),
    ("user with brackets", head("GET http://[::1]@a.example/ HTTP/1.1", HOST), 400),
    ("user with angle", head("GET http://u<p@a.example/ HTTP/1.1", HOST), 400),
    ("user with quote", head('GET http://"u"@a.example/ HTTP/1.1', HOST), 400),
    ("user with bar", head("GET http://u|p@a.example/ HTTP/1.1", HOST), 400),
    ("user with percent alone", head("GET http://u%@a.example/ HTTP/1.1", HOST), 400),
    ("user with half an octet", head("GET http://u%4@a.example/ HTTP/1.1", HOST), 400),
    ("user with no hexadecimal", head("GET http://u%4g@a.example/ HTTP/1.1", HOST), 400),
    ("user with a colon", head("GET http://u%3av:p@a.example/ HTTP/1.1", HOST), 400),
    ("user with CR and LF", head("GET http://u%0d%0aX:p@a.example/ HTTP/1.1", HOST), 400),
    ("password with NUL", head("GET http://u:p%00@a.example/ HTTP/1.1", HOST), 400),
    ("password with DEL", head("GET http://u:p%7f@a.example/ HTTP/1.1", HOST), 400),
    ("password with space", head("GET http://u:p q@a.example/ HTTP/1.1", HOST), 400),
    ("password with #", head("GET http://u:80#@a.example/ HTTP/1.1", HOST), 400),
    ("password with /", head("GET http://u:p/@a.example/ HTTP/1.1", HOST), 400),
    ("user with control octet", head("GET http://u\1@a.example/ HTTP/1.1", HOST), 400),
    ("two fragments", head("GET http://a.example/#x#y HTTP/1.1", HOST), 400),
    ("fragment with space", head("GET http://a.example/#x y HTTP/1.1", HOST), 400),
    ("fragment with control octet", head("GET http://a.example/#x\1 HTTP/1.1", HOST), 400),
    ("fragment of CONNECT", head("CONNECT a.example:80#x HTTP/1.1", HOST), 400),
    ("empty user of CONNECT", head("CONNECT @a.example:80 HTTP/1.1", HOST), 400),
    ("latin-1 in the host", head("GET http://\xfc.example/ HTTP/1.1", HOST), 400),
    ("latin-1 in the port", head("GET http://a.example:8\xb2/ HTTP/1.1", HOST), 400),
    ("latin-1 in the scheme", head("GET http\xfc://a.example/ HTTP/1.1", HOST), 400),
    ("latin-1 in CONNECT", head("CONNECT \xfc.example:80 HTTP/1.1", HOST), 400),
    ("latin-1 in a path alone", head("GET /\xfc HTTP/1.1", HOST), 400),
    ("NBSP for a space", head("GET\xa0http://a.example/ HTTP/1.1", HOST), 400),
    ("NEL before the version", head("GET http://a.example/\x85HTTP/1.1", HOST), 505),
    ("scheme httpss", head("GET httpss://a.example/ HTTP/1.1", HOST), 501),
    ("https without host", head("GET https:/// HTTP/1.1", HOST), 400),
    ("CONNECT to https", head("CONNECT https://a.example/ HTTP/1.1", HOST), 400),
]


@pytest.mark.parametrize(("data", "status"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_targets(data: bytes, status: int) -> None:
    """What one reader could take for another host, or for another user, is refused, the same in any cut."""
    assert outcome(data) == (HttpError, status)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_any_credentials(name: bytes, password: bytes) -> None:
    """Whatever a client percent-encodes arrives as it was, unless Basic cannot carry it."""
    data = (
        f"GET http://{quote(name, safe='')}:{quote(password, safe='')}@a.example/ HTTP/1.1\r\n{HOST}\r\n\r\n".encode()
    )
    possible = b":" not in name and not any(octet < 32 or octet == 127 for octet in name + password)
    if not possible:
        assert outcome(data) == (HttpError, 400)
        return
    found = decode_request(data)
    assert found is not None
    fields = dict(text.split(": ", 1) for text in lines(encode_request(found[0]))[1:])
    assert b64decode(fields.get("Authorization", "Basic Og==")[6:]) == name + b":" + password


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=30))
def test_any_target_leads_where_it_says(text: str) -> None:
    """A target that is taken has one host, that behind its only user information, and its octets add no line."""
    found = outcome(head(f"GET http://{text} HTTP/1.1", HOST))
    if found == (HttpError, 400) or found[0] is HttpError:
        return
    authority = text.partition("#")[0].partition("?")[0].partition("/")[0]
    host = authority.rpartition("@")[2]
    assert authority.count("@") <= 1
    assert str(found[0].destination).removesuffix(":80") == host.removesuffix(":").removesuffix(":80")
    written = lines(encode_request(found[0]))
    assert [line.partition(":")[0] for line in written[1:]] in (["Host", "Via"], ["Host", "Authorization", "Via"])
    assert written[0].isascii()
