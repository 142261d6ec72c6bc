"""HTTP/1 as a forward proxy has it: what is written for the next one, and what none is asked with."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from http_heads import (
    CODING,
    GET,
    HOST,
    LENGTH,
    OK,
    POST,
    from_server,
    head,
    lines,
    outcome,
    request,
    response,
)
from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.address import Address, parse_host
from tabi.wire.http import (
    CHUNKED,
    HEAD_LIMIT,
    UNTIL_CLOSE,
    Chunked,
    RequestHead,
    Response,
    decode_request,
    decode_response,
    encode_date,
    encode_request,
    encode_response,
    parse_request,
    parse_response,
    rewrite_request,
    rewrite_response,
)
from tabi.wire.http_fields import REWRITTEN


def test_fields_are_kept_as_they_came() -> None:
    """Order, case, repetitions, empty values, inner white space and octets outside ASCII."""
    fields = ["X-A:1", "x-a: \t two  words\t ", "Empty:", "Blank:  ", "Bytes: \xfc\xff", "!#$%&'*+-.^_`|~9: :"]
    assert lines(encode_request(request(*fields)))[2:] == [*fields, "Via: 1.1 tabi"]
    assert lines(encode_response(response(*fields, LENGTH), True))[1:] == [*fields, LENGTH, "Via: 1.1 tabi"]


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "GET"])
@pytest.mark.parametrize(("value", "left"), [("0", "0"), ("1", "0"), ("010", "9"), ("9" * 18, "9" * 17 + "8")])
def test_max_forwards(method: str, value: str, left: str) -> None:
    """RFC 9110 section 7.6.2: TRACE and OPTIONS count down and end at 0; of other methods it is a field like any."""
    message = request(f"Max-Forwards: {value}", line=f"{method} http://a.example/ HTTP/1.1")
    assert message.final_recipient == (method != "GET" and value == "0")
    assert message.max_forwards == (None if method == "GET" else int(value))
    assert f"Max-Forwards: {value if method == 'GET' else left}" in lines(encode_request(message))


def test_without_max_forwards_it_goes_on() -> None:
    """A TRACE without it ends at the destination."""
    assert not request(line="TRACE http://a.example/ HTTP/1.1").final_recipient


def test_secrets_are_not_in_the_repr() -> None:
    """A request in a log line tells no password, no cookie and no path."""
    message = request(
        "Proxy-Authorization: Basic secret", "Cookie: secret", line="GET http://a.example/secret HTTP/1.1"
    )
    assert message.authorization == b"Basic secret"
    assert repr(message) == "Request(GET a.example:80)"
    assert "secret" not in repr(message.__rich_repr__())


# --- what is refused ---

REFUSED: list[tuple[str, bytes, int]] = [
    # Host
    ("no Host", head(GET), 400),
    ("two Hosts", head(GET, HOST, "Host: b.example"), 400),
    ("two equal Hosts", head(GET, HOST, HOST), 400),
    ("two Hosts in other case", head(GET, HOST, "hOST: b.example"), 400),
    ("two Hosts of CONNECT", head("CONNECT a.example:443 HTTP/1.1", HOST, HOST), 400),
    ("an empty Host and another", head(GET, "Host:", HOST), 400),
    ("Host with control octet", head(GET, "Host: a\1"), 400),
    ("Host folded", head(GET, "Host: a.example", " b"), 400),
    ("two Hosts in HTTP/1.0", head("GET http://a.example/ HTTP/1.0", HOST, HOST), 400),
    # others
    ("two passwords", head(GET, HOST, "Proxy-Authorization: Basic a", "Proxy-Authorization: Basic b"), 400),
    ("two Max-Forwards", head("TRACE http://a.example/ HTTP/1.1", HOST, "Max-Forwards: 1", "Max-Forwards: 2"), 400),
    ("Max-Forwards no number", head("OPTIONS http://a.example/ HTTP/1.1", HOST, "Max-Forwards: x"), 400),
]


@pytest.mark.parametrize(("data", "status"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_requests(data: bytes, status: int) -> None:
    """Two fields of which there is one, or a value that nobody can take for what it is, the same in any cut."""
    assert outcome(data) == (HttpError, status)


# --- what is sent on ---


def test_a_request_for_the_destination() -> None:
    """Origin-form, our Host first, fields in their order, what is for us removed, and a Via at the end."""
    message = request(
        "User-Agent: curl",
        "Proxy-Connection: keep-alive",
        "Connection: keep-alive, X-Mine , te",
        "Keep-Alive: timeout=5",
        "x-mine: secret",
        "TE: trailers",
        "Upgrade: h2c",
        "Via: 1.0 other",
        "Proxy-Authorization: Basic secret",
        "Proxy-Authenticate: Basic",
        "Proxy-Authentication-Info: x",
        "Accept: */*",
        "Trailer: X-Sum",
        line="GET http://b.example:8080/x?y HTTP/1.1",
    )
    assert lines(encode_request(message)) == [
        "GET /x?y HTTP/1.1",
        "Host: b.example:8080",
        "User-Agent: curl",
        "Via: 1.0 other",
        "Accept: */*",
        "Trailer: X-Sum",
        "Via: 1.1 tabi",
    ]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://a.example/", "a.example"),
        ("http://a.example:80/", "a.example"),
        ("http://a.example:8080/", "a.example:8080"),
        ("http://192.0.2.1/", "192.0.2.1"),
        ("http://[2001:db8::80]/", "[2001:db8::80]"),
        ("http://[::80]:81/", "[::80]:81"),
    ],
)
def test_host_is_the_targets(target: str, host: str) -> None:
    """RFC 9112 section 3.2.2: whatever the received Host said; HTTP/1.0 gets one too, and its own version in Via."""
    odd = [
        "a, b",
        "a@b",
        "http://a/x",
        "a b",
        "a:x",
        "a:65536",
        "a:80:80",
        ":80",
        "::1",
        "a%2e",
        "\xfc",
        "a!b",
        "a_b",
        "\\",
    ]
    for fields in (["Host: other.example"], ["Host:"], *([f"Host: {value}"] for value in odd), []):
        message, _ = outcome(head(f"GET {target} HTTP/1.{int(bool(fields))}", *fields))
        assert lines(encode_request(message))[1:] == [f"Host: {host}", f"Via: 1.{int(bool(fields))} tabi"]


def test_a_connect_without_host() -> None:
    """Several clients send it so; where it leads is in the target."""
    message, _ = outcome(head("CONNECT a.example:443 HTTP/1.1"))
    assert (str(message.destination), message.head) == ("a.example:443", b"")


def test_user_information_is_sent_as_a_field() -> None:
    """Behind the other fields, unless the client has sent one."""
    line = "GET http://joe:pw@a.example/ HTTP/1.1"
    assert lines(encode_request(request("X: y", line=line)))[2:] == [
        *("X: y", "Authorization: Basic am9lOnB3", "Via: 1.1 tabi")
    ]
    assert lines(encode_request(request("Authorization: x", line=line)))[2:] == ["Authorization: x", "Via: 1.1 tabi"]


def test_credentials_of_a_connection() -> None:
    """NTLM and Negotiate are told from others, in requests and in answers (RFC 4559)."""
    for value in ("NTLM TlRM", "Negotiate YII=", "negotiate x", "ntlm"):
        assert request(f"Authorization: {value}").authenticates_connection
        assert request("X: y", f"AUTHORIZATION:{value}").authenticates_connection
        for fields in ([value], ["Basic realm=x", value], [f"Basic realm=x, {value}"]):
            challenges = [f"WWW-Authenticate: {field}" for field in fields]
            assert response(*challenges, line="HTTP/1.1 401 x").authenticates_connection
            assert not response(*challenges, line="HTTP/1.1 403 x").authenticates_connection
    for value in ("Basic TlRM", "Bearer NTLM", "NTLMv2 x", "", 'Digest realm="NTLM"'):
        assert not request(f"Authorization: {value}").authenticates_connection
        assert not response(f"WWW-Authenticate: {value}", line="HTTP/1.1 401 x").authenticates_connection
    assert not request("Proxy-Authorization: NTLM x", "X-Authorization: NTLM x").authenticates_connection
    assert lines(encode_request(request("authorization:\tNTLM  x ")))[2] == "authorization:\tNTLM  x "


def test_clients_are_told_that_connections_are_their_own() -> None:
    """RFC 4559 section 6: else some do not log one in through a proxy. Only where NTLM or Negotiate is asked for."""
    support = "Proxy-Support: Session-Based-Authentication"
    for fields in (["WWW-Authenticate: Negotiate"], ["Www-authenticate: Basic a, NTLM", support.lower()]):
        written = lines(encode_response(response(*fields, LENGTH, line="HTTP/1.1 401 x"), True))
        assert [text for text in written if "proxy-support" in text.lower()] == [support]
    for line, field in (("HTTP/1.1 401 x", "WWW-Authenticate: Basic"), ("HTTP/1.1 200 x", "WWW-Authenticate: NTLM")):
        assert support not in lines(encode_response(response(field, LENGTH, line=line), True))


@pytest.mark.parametrize("field", ["Date: now", "date:now", "DATE: now"])
def test_an_answer_gets_a_date(field: str) -> None:
    """RFC 9110 section 6.6.1: where it has none; interim answers and 101 need none."""
    assert response(field).dated
    assert response(line="HTTP/1.1 100 Continue").dated
    assert not response("X-Date: now", "Dated: x").dated
    written = encode_response(response(LENGTH), True, date=encode_date(0))
    assert lines(written)[1:] == [LENGTH, "Date: Thu, 01 Jan 1970 00:00:00 GMT", "Via: 1.1 tabi"]


def test_connection_takes_nothing_away_that_others_need() -> None:
    """A client that names framing, routing or caching fields in Connection does not make another message of it."""
    names = "Host, Content-Length, Transfer-Encoding, Via, Cache-Control, Expect, Max-Forwards, X"
    fields = ["Connection: " + names, "Cache-Control: no-store", "Via: 1.1 a", "X: y", "Expect: 100-continue"]
    assert lines(encode_request(request(*fields, LENGTH, "Max-Forwards: 3", line=POST)))[1:] == [
        "Host: a.example",
        "Cache-Control: no-store",
        "Via: 1.1 a",
        "Expect: 100-continue",
        "Content-Length: 5",
        "Max-Forwards: 3",
        "Via: 1.1 tabi",
    ]
    assert "Transfer-Encoding: chunked" in lines(encode_request(request(*fields, CODING, line=POST)))


def test_a_connection_that_is_not_kept() -> None:
    """`Connection: close` is our word to the destination, not the client's."""
    assert "Connection: close" not in lines(encode_request(request("Connection: close")))
    assert lines(encode_request(request(), keep_alive=False))[-1] == "Connection: close"
    message = request("Connection: upgrade", "Upgrade: websocket")
    assert lines(encode_request(message, keep_alive=False))[-2:] == ["Connection: close, upgrade", "Upgrade: websocket"]


@pytest.mark.parametrize(
    ("values", "left"),
    [
        (["cache; hit"], "cache; hit"),
        (["tabi"], None),
        (['tabi; error=dns_error; details="a, b"'], None),
        (['"tabi"; error=dns_error', " Tabi ;x"], None),
        (["a; x, tabi; error=dns_error", "b"], "a; x, b"),
        (['a; details="x, tabi; error=y", tabi;z'], 'a; details="x, tabi; error=y"'),
        (['a; details="\\", tabi; error=y"'], 'a; details="\\", tabi; error=y"'),
        (['a", tabi; error=y'], None),
        (['a; b="c\\'], None),
        (['"' + '\\"' * 1_000], None),
        (["tabiya; error=x"], "tabiya; error=x"),
        ([""], None),
    ],
)
def test_no_destination_speaks_for_the_proxy(values: list[str], left: str | None) -> None:
    """Proxy-Status of others goes on (RFC 9209 section 2), members that claim to be of tabi do not."""
    written = lines(encode_response(response("X: y", *[f"Proxy-Status: {value}" for value in values], LENGTH), True))
    found = [text for text in written if text.lower().startswith("proxy-status")]
    assert found == ([] if left is None else [f"Proxy-Status: {left}"])
    assert "X: y" in written
    named = response("Connection: proxy-status", *[f"Proxy-Status: {value}" for value in values], LENGTH)
    assert named.fields == f"\r\n{LENGTH}".encode()


def test_proxy_status_in_a_request_is_a_field_like_any() -> None:
    """It means nothing there."""
    assert "Proxy-Status: tabi" in lines(encode_request(request("Proxy-Status: tabi")))


def test_a_response_for_the_client() -> None:
    """Fields in their order, what is for us removed, Via at the end."""
    message = response(
        "Date: now",
        "Connection: keep-alive, X-Mine",
        "Keep-Alive: timeout=5",
        "X-Mine: y",
        "Proxy-Authenticate: Basic",
        "Upgrade: h2c",
        "Set-Cookie: a",
        "set-cookie: b",
        "Trailer: X-Sum",
        CODING,
    )
    expected = ["HTTP/1.1 200 OK", "Date: now", "Set-Cookie: a", "set-cookie: b", "Trailer: X-Sum"]
    assert lines(encode_response(message, True)) == [*expected, "Transfer-Encoding: chunked", "Via: 1.1 tabi"]
    # HTTP/1.0 knows no chunks: the caller takes them apart, and the end of the connection is the end of the body.
    assert lines(encode_response(message, True, minor=0)) == [*expected, "Via: 1.1 tabi", "Connection: close"]


def test_the_connection_to_the_client() -> None:
    """Nothing need be said to HTTP/1.1 that keeps it, all else is said; a body until the end is never kept."""
    message = response("Content-Length: 0", line="HTTP/1.0 200 OK")
    assert lines(encode_response(message, True))[2:] == ["Via: 1.0 tabi"]
    assert lines(encode_response(message, False))[2:] == ["Via: 1.0 tabi", "Connection: close"]
    assert lines(encode_response(message, True, minor=0))[2:] == ["Via: 1.0 tabi", "Connection: keep-alive"]
    assert lines(encode_response(message, False, minor=0))[2:] == ["Via: 1.0 tabi", "Connection: close"]
    assert lines(encode_response(response(), True))[1:] == ["Via: 1.1 tabi", "Connection: close"]
    assert lines(encode_response(response(line="HTTP/1.1 100 Continue"), False))[1:] == ["Via: 1.1 tabi"]


def test_a_body_that_is_sent_in_another_way() -> None:
    """The caller may send in chunks what came until the end, and the other way round: no length is told then."""
    assert lines(encode_response(response(), True, body=CHUNKED))[1:] == ["Transfer-Encoding: chunked", "Via: 1.1 tabi"]
    for body, expected in ((CHUNKED, ["Transfer-Encoding: chunked", "Via: 1.1 tabi"]), (UNTIL_CLOSE, None)):
        written = lines(encode_response(response(LENGTH), True, body=body))[1:]
        assert written == (expected or ["Via: 1.1 tabi", "Connection: close"])


def test_bodies_are_here_too() -> None:
    """Whoever forwards imports one module."""
    chunked = Chunked()
    assert chunked.scan(b"0\r\n\r\nx") == 5
    assert chunked.done


# --- properties ---

tokens = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=20)
values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f") | st.just("\t"), max_size=30
).map(lambda text: text.strip(" \t"))
hosts = st.one_of(
    st.text("abcxyz019-._~", min_size=1, max_size=60).filter(lambda text: isinstance(parse_host(text), str)),
    st.ip_addresses(v=4).map(lambda host: IPv4Address(int(host))),
    st.ip_addresses(v=6).map(lambda host: IPv6Address(int(host))),
)
MEANING = {name.decode() for name in REWRITTEN | {b"via"}}
plain = st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in MEANING), values), max_size=12)
bodies = st.one_of(st.just(0), st.integers(1, 10**18 - 1), st.just(CHUNKED))


def named(octets: bytes) -> list[tuple[str, str]]:
    """The fields of a head, names in lower case, that mean nothing to a proxy."""
    fields = [
        (name.lower(), value.strip(" \t")) for name, _, value in (text.partition(":") for text in lines(octets)[1:])
    ]
    return [field for field in fields if field[0] not in MEANING]


def framing(body: int) -> list[str]:
    """The field that says so."""
    return [CODING] if body == CHUNKED else [f"Content-Length: {body}"] if body > 0 else []


def test_the_upgrade_of_a_response_is_sent_on() -> None:
    """Of a 101 and of a 426 that offers it; of any other it is for one connection."""
    for status, sent in ((101, True), (426, True), (200, False)):
        message = response("Upgrade: a/1", "upgrade: b", LENGTH, line=f"HTTP/1.1 {status} x")
        assert ("Upgrade: a/1, b" in lines(encode_response(message, True))) is sent


def test_a_changed_response_that_could_be_read_in_two_ways() -> None:
    """It is the server's fault, or that of who changed it; no status is of the client's making."""
    found = parse_response(head(OK, LENGTH))
    assert found is not None
    found[0].fields.add(b"Content-Length", b"6")
    with pytest.raises(RemoteProtocolError) as caught:
        rewrite_response(found[0], "GET")
    assert not isinstance(caught.value, HttpError)


def test_a_connect_is_not_sent_on() -> None:
    """It opens a tunnel: there is no head for the destination."""
    message = request(line="CONNECT a.example:443 HTTP/1.1")
    assert (message.path, message.head, message.body) == ("", b"", 0)


@given(
    tokens.filter(lambda text: text != "CONNECT"),
    st.builds(Address, hosts, st.integers(0, 65535)),
    st.text("/abc?%2=&;:@!", max_size=30).map(lambda text: "/" + text),
    plain,
    bodies,
    st.sampled_from([None, b"websocket"]),
    st.booleans(),
)
def test_requests_survive_the_way(
    method: str,
    destination: Address,
    path: str,
    fields: list[tuple[str, str]],
    body: int,
    upgrade: bytes | None,
    keep_alive: bool,
) -> None:
    """What we send on, another proxy would read as the same: target, fields, content and what is asked for."""
    texts = [f"{name}: {value}" for name, value in fields] + framing(body)
    if upgrade:
        texts += ["Connection: Upgrade", "Upgrade: websocket"]
    found = decode_request(head(f"{method} http://{destination}{path} HTTP/1.1", "Host: x", *texts))
    assert found is not None
    message = found[0]
    assert (message.destination, message.path, message.body) == (destination, path, body)
    octets = encode_request(message, keep_alive)
    assert octets.startswith(f"{method} {path} HTTP/1.1\r\n".encode())
    # In absolute-form again, as one more proxy on the way would get it.
    again = decode_request(octets.replace(b" /", f" http://{destination}/".encode(), 1))
    assert again is not None
    assert again[1] - len(f"http://{destination}") == len(octets)
    other = again[0]
    assert (other.method, other.destination, other.path, other.body, other.upgrade, other.keep_alive) == (
        *(method, destination, path, body),
        message.upgrade,
        keep_alive,
    )
    assert named(octets) == named(encode_request(other)) == [(name.lower(), value) for name, value in fields]
    assert lines(octets)[1] == f"Host: {str(destination).removesuffix(':80')}"


@given(
    st.integers(100, 999).filter(lambda status: status != 101), values, plain, bodies, st.booleans(), st.integers(0, 1)
)
def test_responses_survive_the_way(
    status: int, reason: str, fields: list[tuple[str, str]], body: int, keep_alive: bool, minor: int
) -> None:
    """What we send back, the client reads as the same."""
    texts = [f"{name}: {value}" for name, value in fields] + framing(body)
    found = decode_response(head(f"HTTP/1.1 {status} {reason}", *texts), "GET")
    assert found is not None
    message = found[0]
    octets = encode_response(message, keep_alive, minor)
    again = decode_response(octets, "GET")
    assert again is not None
    other = again[0]
    assert (other.status, other.reason, other.interim) == (message.status, message.reason, message.interim)
    assert other.body == (UNTIL_CLOSE if message.body == CHUNKED and not minor else message.body)
    assert other.interim or other.keep_alive is (keep_alive and other.body != UNTIL_CLOSE)
    assert named(octets) == [(name.lower(), value) for name, value in fields]


def spelled(name: str) -> st.SearchStrategy[str]:
    """A name in any case."""
    return st.lists(st.booleans(), min_size=len(name), max_size=len(name)).map(
        lambda upper: "".join(letter.upper() if up else letter for letter, up in zip(name, upper, strict=True))
    )


ONE_CONNECTION = [
    *("close", "connection", "keep-alive", "proxy-authenticate", "proxy-authentication-info", "proxy-authorization"),
    *("proxy-connection", "te", "upgrade"),
]
NEAR = ["x", "accept", "t", "tea", "hosts", "x-host", "content-lengths", "content", "keep", "proxy", "upgrade-insecure"]
FOR_ALL = ["via", "cache-control", "expect", "max-forwards"]
options = st.lists(st.sampled_from(["", *NEAR, *FOR_ALL, *ONE_CONNECTION, "content-length", "host"]).flatmap(spelled))
blanks = st.text(" \t", max_size=2)


@given(
    st.lists(st.tuples(st.sampled_from(NEAR + FOR_ALL + ONE_CONNECTION).flatmap(spelled), blanks, values), max_size=8),
    options,
    st.booleans(),
)
def test_what_is_sent_on(fields: list[tuple[str, str, str]], options: list[str], is_request: bool) -> None:
    """What a walk over the fields, one by one, would leave: none of one connection, none that Connection names."""
    fields = [field for field in fields if field[0].lower() not in ("connection", "proxy-authorization")]
    texts = [f"{name}:{blank}{value}{blank}" for name, blank, value in fields]
    half = len(texts) // 2
    received = [*texts[:half], "cOnnection:" + " ,\t".join(options), *texts[half:], "content-LENGTH: 07"]
    octets = (
        encode_request(decode_request(head(GET, HOST, *received))[0])  # type: ignore[index]
        if is_request
        else encode_response(decode_response(head(OK, *received), "GET")[0], True)  # type: ignore[index]
    )
    protected = {"via", "cache-control", *(("expect", "max-forwards") if is_request else ())}
    dropped = {*ONE_CONNECTION, *({option.lower() for option in options} - protected)}
    written = lines(octets)[1 + is_request :]
    walked = [text for (name, _, _), text in zip(fields, texts, strict=True) if name.lower() not in dropped]
    assert written == [*walked, "Content-Length: 7", "Via: 1.1 tabi"]


WORDS = (
    *(
        b"GET ",
        b"CONNECT ",
        b"http://",
        b"https://",
        b"a.example",
        b":80",
        b"/",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b"HTTP/1.1",
    ),
    *(
        b" 200",
        b" 304",
        b" OK",
        b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b"Host: a",
        b"Content-Length",
        b": ",
        b"5",
    ),
    *(
        b"Transfer-Encoding: ",
        b"chunked",
        b"Connection: ",
        b"close",
        b"upgrade",
        b" ",
        b"\t",
        b",",
        b"\0",
        b"\xff",
        b"@",
        b"#",
        b"%41",
        b"Authorization: Negotiate x",
    ),
    *(head(GET, HOST), head(OK), head(POST, HOST, LENGTH)[:-2], head(POST, HOST, CODING)[:-2], head(OK, LENGTH)[:-2]),
)
inventions = st.one_of(st.binary(max_size=80), st.lists(st.sampled_from(WORDS), max_size=16).map(b"".join))


@given(inventions, st.sampled_from([HEAD_LIMIT, 60, 31]))
@example(b"\r\r\n", HEAD_LIMIT)
@example(b"\r\n\r\n\r\n", HEAD_LIMIT)
@example(b"GET /\r\r\n", HEAD_LIMIT)
def test_any_octets(data: bytes, limit: int) -> None:
    """A message, None or the error come of any octets, nothing else, and the same in every cut."""
    for decode in (decode_request, from_server):
        found = outcome(data, decode, limit)
        if found is None or not isinstance(found[0], msgspec.Struct):
            continue
        message, end = found
        assert end <= min(len(data), limit)
        if isinstance(message, Response):
            assert decode_response(encode_response(message, True), "HEAD") is not None
        elif message.path:
            written = encode_request(message)
            assert written.count(b"\r\n\r\n") == 1
            assert written.endswith(b"\r\n\r\n")


# --- parsing and rewriting is decoding ---


def fused_request(data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0) -> Any:
    """Forward a request in one go; the octets to send on with what was made of it."""
    found = decode_request(data, limit, seen)
    return found and (found[0], found[1], found[0].path and encode_request(found[0]))


def parsed_request(data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0) -> Any:
    """Parse a request, look at all of it, and have it rewritten."""
    found = parse_request(data, limit, seen)
    if found is None:
        return None
    message, end = found
    assert message.encode() == bytes(data[:end]).lstrip(b"\r\n")
    rewritten = rewrite_request(RequestHead(message.method, message.target, message.fields, message.minor))
    framing = message.framing()
    assert (framing.body, framing.keep_alive, framing.upgrade, framing.expects_continue) == (
        *(rewritten.body, rewritten.keep_alive),
        *(rewritten.upgrade, rewritten.expects_continue),
    )
    return rewritten, end, rewritten.path and encode_request(rewritten)


def both_responses(method: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward the answer to a method in one go; and parse, look and rewrite."""

    def fused(data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0) -> Any:
        found = decode_response(data, method, limit, seen)
        return found and (*found, encode_response(found[0], True))

    def parsed(data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0) -> Any:
        found = parse_response(data, limit, seen)
        if found is None:
            return None
        message, end = found
        rewritten = rewrite_response(message, method)
        framing = message.framing(method)
        assert (framing.body, framing.keep_alive, framing.interim) == (
            *(rewritten.body, rewritten.keep_alive),
            rewritten.interim,
        )
        return rewritten, end, encode_response(rewritten, True)

    return fused, parsed


def what_comes(decode: Callable[..., Any], data: bytes, limit: int) -> Any:
    """What is made of octets, or the error with its text and its status."""
    try:
        return decode(data, limit)
    except RemoteProtocolError as exc:
        return type(exc), str(exc), getattr(exc, "status", None)


FIELD_NAMES = (
    *("Host", "Content-Length", "Transfer-Encoding", "Connection", "Proxy-Connection", "Upgrade", "Expect", "Via", "X"),
    *("Max-Forwards", "Proxy-Authorization", "Proxy-Status", "TE", "Cookie", "Close"),
)
FIELD_VALUES = (
    *("", "5", "005", "x", "chunked", "Close", "keep-alive", "upgrade, x", "websocket", "a.example", "b/c", "0"),
    *("100-continue", "tabi; error=x, other", '"', "\xfc", "s\tt"),
)
FIELDS = st.tuples(
    st.sampled_from(FIELD_NAMES).flatmap(lambda name: st.sampled_from([name, name.lower(), name.upper()])),
    st.sampled_from([":", ": ", ":\t "]),
    st.sampled_from(FIELD_VALUES),
).map("".join)
BROKEN = st.sampled_from([" folded", "no colon", "a b: c", "X : y", "X: \0", ": x", "X: a\rb"])
LINES = st.lists(FIELDS | FIELDS | FIELDS | BROKEN, max_size=6)
TARGETS = (
    *("http://a.example/x?y", "http://a.example", "ws://[::1]:81?z", "a.example:443"),
    *("/x", "*", "https://a/", "http://u@a/"),
)
REQUEST_LINES = st.builds(
    "{} {} HTTP/1.{}".format,
    st.sampled_from(["GET", "POST", "CONNECT", "OPTIONS", "TRACE", "HEAD", "b(d"]),
    st.sampled_from(
        [
            "http://a.example/x?y",
            "http://a.example",
            "ws://[::1]:81?z",
            "a.example:443",
            "/x",
            "*",
            "https://a/",
            "ftp://a/",
            "http://u@a/",
            "http://u:%zz@a/x#y",
            "http://a/\xe4?b",
        ]
    ),
    st.integers(0, 9),
)
STATUS_LINES = st.builds(
    "HTTP/1.{} {}{}".format,
    st.integers(0, 2),
    st.sampled_from([100, 101, 200, 204, 304, 426, 99]),
    st.sampled_from(["", " ", " OK"]),
)
ENDS = st.sampled_from([b"", b"", b"rest", b"\r\n"])
LIMITS = st.sampled_from([HEAD_LIMIT, HEAD_LIMIT, 60])


@given(REQUEST_LINES, st.booleans(), LINES, ENDS, LIMITS, st.integers(0, 2))
@example(
    "GET http://a.example/ HTTP/1.1", True, ["Content-Length: 5", "Transfer-Encoding: chunked"], b"", HEAD_LIMIT, 0
)
def test_requests_come_out_the_same(
    line: str, hosted: bool, fields: list[str], rest: bytes, limit: int, cut: int
) -> None:
    """Same octets, same request, same error with the same status, accepted or refused, whole or cut."""
    data = head(line, *([HOST] if hosted else []), *fields)
    data = data[: len(data) - cut] if cut else data + rest
    assert what_comes(parsed_request, data, limit) == what_comes(fused_request, data, limit)
    assert outcome(data, parsed_request, limit) == outcome(data, fused_request, limit)


@given(STATUS_LINES, LINES, ENDS, LIMITS, st.integers(0, 2), st.sampled_from(["GET", "HEAD", "CONNECT"]))
def test_responses_come_out_the_same(
    line: str, fields: list[str], rest: bytes, limit: int, cut: int, method: str
) -> None:
    """As requests do."""
    data = head(line, *fields)
    data = data[: len(data) - cut] if cut else data + rest
    fused, parsed = both_responses(method)
    assert what_comes(parsed, data, limit) == what_comes(fused, data, limit)
    assert outcome(data, parsed, limit) == outcome(data, fused, limit)


@given(st.binary(max_size=80))
def test_any_octets_come_out_the_same(data: bytes) -> None:
    """A head, None or the error come of any octets, the same on both ways."""
    fused, parsed = both_responses("GET")
    assert what_comes(parsed_request, data, HEAD_LIMIT) == what_comes(fused_request, data, HEAD_LIMIT)
    assert what_comes(parsed, data, HEAD_LIMIT) == what_comes(fused, data, HEAD_LIMIT)
