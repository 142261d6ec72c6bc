"""HAR 1.2: entries are as the specification says, and become the same record again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import make_record
from har_schema import check_har
from tabi.intercept.har import decode_entry, encode_entry, make_entry
from tabi.intercept.masking import prepare
from tabi.intercept.record import Record, WebSocketMessage


def entry_of(record: Record, secrets: bool = True) -> dict[str, Any]:
    """The entry, checked against the schema."""
    found: dict[str, Any] = json.loads(encode_entry(prepare(record, 1_000_000, secrets)))
    check_har({"log": {"version": "1.2", "creator": {"name": "tabi", "version": "1"}, "entries": [found]}})
    return found


def test_an_entry_says_what_the_record_does() -> None:
    """Times in milliseconds, -1 for what is not known."""
    entry = entry_of(make_record(dns=0.1, connect=0.2, tls=0.3, tags=["a"], user="alice", sni="example.com"))
    assert entry["startedDateTime"] == "2026-01-01T00:00:00.000Z"
    assert entry["time"] == 624
    assert entry["timings"] == {
        "blocked": -1, "dns": 100, "connect": 500, "ssl": 300, "send": 1, "wait": 20, "receive": 3,
    }  # fmt: skip
    assert entry["request"]["queryString"] == [{"name": "b", "value": "1"}]
    assert entry["request"]["headers"][0] == {"name": "Host", "value": "example.com"}
    assert entry["request"]["bodySize"] == 0
    assert entry["response"]["content"] == {"size": 5, "mimeType": "text/plain", "text": "hello"}
    assert (entry["serverIPAddress"], entry["connection"]) == ("192.0.2.1", "7")
    assert (entry["_tags"], entry["_user"], entry["_sni"]) == (["a"], "alice", "example.com")
    assert "_truncated" not in entry


def test_an_entry_says_what_the_destination_was_sent() -> None:
    """Fingerprints stand in fields of their own, and are read back; without any there are none."""
    sent = {
        "sent_ja3": "e7d7",
        "sent_ja4": "t13d",
        "sent_http2": "3:100|1|0|m,s,a,p",
        "fingerprint": "mirror",
        "fingerprint_differs": "ciphers",
    }
    entry = entry_of(make_record(**sent))  # type: ignore[arg-type]
    names = ("_sentJa3", "_sentJa4", "_sentHttp2", "_fingerprint", "_fingerprintDiffers")
    assert [entry[name] for name in names] == list(sent.values())
    found = decode_entry(entry)
    assert {name: getattr(found, name) for name in sent} == sent
    assert not set(names) & set(entry_of(make_record()))


def test_a_flow_without_an_answer_has_status_0_and_its_error() -> None:
    """As Chrome writes it."""
    entry = entry_of(make_record(status=0, reason="", response_fields=[], body=b"", error="reset", wait=None))
    response = entry["response"]
    assert (response["status"], response["bodySize"], response["_error"]) == (0, -1, "reset")
    assert entry["timings"]["wait"] == 0


@pytest.mark.parametrize(
    ("data", "mime_type", "text"),
    [
        (b"hello", b"text/plain", "hello"),
        ("é".encode(), b"text/html", "é"),
        ("é".encode("latin-1"), b"text/html; charset=ISO-8859-1", "é"),
        ("é".encode("utf-16-le"), b'text/html; charset="utf-16le"', "é"),
        (b"{}", b"application/vnd.api+json", "{}"),
        (b"<a/>", b"image/svg+xml", "<a/>"),
        (b"hello", b"", "hello"),
        (b"\xff", b"text/plain", None),
        (b"\xff", b"", None),
        (b"hello", b"image/png", None),
        (b"hello", b"text/plain; charset=punycode", None),
        (b"\xff\xfea\0", b"text/plain; charset=utf-16", "a"),
        (b"\xfe\xff\0a", b"text/plain; charset=utf-16", None),
    ],
)
def test_bodies_are_text_where_they_are_the_same_as_text(data: bytes, mime_type: bytes, text: str | None) -> None:
    """Type and charset must say so, and encoding it again gives the same octets; all others are base64."""
    record = make_record(body=data, response_fields=[(b"Content-Type", mime_type)])
    record.request_body, record.request_size, record.request_fields = data, len(data), record.response_fields
    entry = entry_of(record)
    content, post = entry["response"]["content"], entry["request"]["postData"]
    assert (content.get("encoding"), post.get("_encoding")) == ((None, None) if text is not None else ("base64",) * 2)
    if text is not None:
        assert content["text"] == post["text"] == text
    again = decode_entry(entry)
    assert (again.response_body, again.request_body) == (data, data)


def test_a_body_that_is_cut_within_a_character_is_still_text() -> None:
    """The half character is left out."""
    entry = entry_of(make_record(body="aé".encode()[:2], response_size=3))
    assert entry["response"]["content"]["text"] == "a"
    assert entry["_truncated"] is True


def test_content_codings_are_undone_and_counted() -> None:
    """``compression`` is what the coding saved."""
    import gzip

    data = gzip.compress(b"a" * 1000)
    fields = [(b"Content-Type", b"text/plain"), (b"Content-Encoding", b"gzip")]
    response = entry_of(make_record(body=data, response_fields=fields))["response"]
    assert response["bodySize"] == len(data)
    content = response["content"]
    assert (content["size"], content["compression"], content["text"]) == (1000, 1000 - len(data), "a" * 1000)


def test_what_was_not_kept_has_a_size_but_no_text() -> None:
    """A body that is not recorded is not an empty one."""
    content = entry_of(make_record(response_body=b"", response_size=99))["response"]["content"]
    assert content == {"size": 99, "mimeType": "text/plain"}
    assert entry_of(make_record(body=b""))["response"]["content"]["text"] == ""


def test_forms_and_cookies_are_taken_apart() -> None:
    """Parameters and cookies beside the text that they stand in."""
    fields = [
        (b"Content-Type", b"application/x-www-form-urlencoded"),
        (b"Cookie", b"a=b; c=d=e;"),
    ]
    answer = [
        (b"Set-Cookie", b"s=1; Path=/x; Domain=d; Secure; HttpOnly; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
        (b"Set-Cookie", b"t=; Expires=never"),
    ]
    body = b"a=b%20c&d=%C3%A9&e"
    entry = entry_of(make_record(request_fields=fields, request_body=body, request_size=18, response_fields=answer))
    assert entry["request"]["postData"]["params"] == [
        {"name": "a", "value": "b c"},
        {"name": "d", "value": "é"},
        {"name": "e", "value": ""},
    ]
    assert entry["request"]["cookies"] == [{"name": "a", "value": "b"}, {"name": "c", "value": "d=e"}]
    first, second = entry["response"]["cookies"]
    assert first == {
        "name": "s", "value": "1", "path": "/x", "domain": "d", "secure": True, "httpOnly": True,
        "expires": "2026-10-21T07:28:00.000Z",
    }  # fmt: skip
    assert second == {"name": "t", "value": "", "secure": False, "httpOnly": False}


def test_messages_of_a_websocket() -> None:
    """As Chrome writes them: text as it is, octets as base64."""
    messages = [WebSocketMessage("send", 1.5, 1, b"hi"), WebSocketMessage("receive", 2.0, 2, b"\0\xff")]
    entry = entry_of(make_record("wss://example.com/", messages=messages))
    assert entry["_resourceType"] == "websocket"
    assert entry["_webSocketMessages"] == [
        {"type": "send", "time": 1.5, "opcode": 1, "data": "hi"},
        {"type": "receive", "time": 2.0, "opcode": 2, "data": "AP8="},
    ]
    assert decode_entry(entry).messages == messages


def test_lone_surrogates_are_escaped() -> None:
    """A user name that is not text must not lose the entry."""
    assert entry_of(make_record(user="\udcff"))["_user"] == "\udcff"


TOKEN = st.text(alphabet="abc-XYZ", min_size=1, max_size=8)
FIELDS = st.lists(st.tuples(TOKEN.map(str.encode), st.text(max_size=9).map(str.encode)), max_size=4)


@given(FIELDS, FIELDS, st.binary(max_size=30), st.binary(max_size=30), st.integers(0, 999), st.text(max_size=20))
def test_any_record_becomes_the_same_record_again(
    asked: Any, answered: Any, request_body: bytes, body: bytes, status: int, url: str
) -> None:
    """What an entry says is all there is to say."""
    record = make_record(
        url, body, request_fields=asked, response_fields=answered, request_body=request_body,
        request_size=len(request_body), status=status, tags=["a", "b"], error=None, user="u",
    )  # fmt: skip
    record = prepare(record, 1_000_000, secrets=True)
    again = decode_entry(make_entry(record))
    record.response_size = record.response_size if status else again.response_size
    assert again == record


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    "request response method url headers name value postData text encoding mimeType content timings wait connect ssl "
    "status bodySize startedDateTime _webSocketMessages time opcode data _tags params httpVersion"
)


@given(
    st.recursive(
        ANY, lambda inner: st.dictionaries(st.sampled_from(NAMES.split()), inner | st.lists(inner, max_size=2))
    )
)
def test_anything_is_read_leniently(value: Any) -> None:
    """Whatever another tool writes, or leaves out, nothing is raised."""
    decode_entry(value if isinstance(value, dict) else {"request": value, "response": value, "timings": value})


def test_a_form_of_which_only_the_parameters_are_there() -> None:
    """As the specification has it, where text and params exclude each other."""
    post = {"mimeType": "application/x-www-form-urlencoded", "params": [{"name": "a b", "value": "c"}]}
    assert decode_entry({"request": {"postData": post}}).request_body == b"a+b=c"


def test_what_browsers_write_is_read() -> None:
    """Chrome's version of HTTP and pseudo-fields, Firefox' time zone."""
    record = decode_entry(
        {
            "startedDateTime": "2026-01-01T01:00:00.000+01:00",
            "time": 50,
            "request": {
                "method": "GET",
                "url": "https://h/",
                "httpVersion": "http/2.0",
                "headers": [{"name": ":path", "value": "/"}, {"name": "a", "value": "b"}],
                "bodySize": -1,
            },
            "response": {"status": 200, "content": {"size": 3}, "bodySize": -1, "_error": None},
        }
    )
    assert (record.started, record.version, record.request_fields) == (1_767_225_600.0, "HTTP/2", [(b"a", b"b")])
    assert (record.wait, record.truncated, record.response_size) == (0.05, True, 3)
