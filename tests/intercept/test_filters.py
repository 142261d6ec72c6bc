"""Filters: what each term means, how they are combined, and where a wrong one is wrong."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import make_record
from tabi.intercept.filters import FilterError, parse_filter
from tabi.intercept.record import Record, WebSocketMessage

PLAIN = make_record(
    "https://www.Example.com:8443/Api/x?q=1",
    b'{"Name": "value"}',
    method="POST",
    status=404,
    request_body=b"asked \xff",
    response_fields=[(b"Content-Type", b"application/json; charset=utf-8")],
    tags=["slow", "Team A"],
)
FAILED = make_record("http://[2001:db8::1]/", status=0, error="connection reset", response_fields=[])
SOCKET = make_record("wss://h/", status=101, messages=[WebSocketMessage("send", 1.0, 1, b"Hello")])


@pytest.mark.parametrize(
    ("record", "text"),
    [
        *((PLAIN, f"host:{value}") for value in ("www.example.com", "example.com", "COM", "*.example.*", "www.*:8443")),
        *((PLAIN, f"host:{value}") for value in ("www.example.com:8443", "example.com:8443")),
        *((FAILED, f"host:{value}") for value in ("2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:80")),
        *((PLAIN, f"status:{value}") for value in ("404", "4xx", "4XX", ">=400", ">403", "<405", "<=404", "400-499")),
        *((PLAIN, f"status:{value}") for value in ("=404", "!=200", "!=4")),
        (FAILED, "status:0"),
        *((PLAIN, f"method:{value}") for value in ("POST", "post")),
        *((PLAIN, f"url:{value}") for value in ("/api/", "API", "*q=1", "https://*", "*8443/api/x?*")),
        *((PLAIN, f"body:{value}") for value in ("value", '"\\"name\\": "', "ASKED", '"d "')),
        (SOCKET, "body:hello"),
        *((PLAIN, f"type:{value}") for value in ("json", "application/*", "UTF-8")),
        *((PLAIN, f"tag:{value}") for value in ("slow", "SLOW", '"team a"', "team*")),
        *((FAILED, f"{value}") for value in ("error", "error:RESET", "error:conn*", "not ws")),
        *((SOCKET, f"{value}") for value in ("ws", "WS", "not error")),
        (make_record(response_fields=[(b"Upgrade", b" WebSocket")]), "ws"),
        *((PLAIN, text) for text in ("", " ", "method:POST status:404", "method:GET or status:404", "not error")),
        *((PLAIN, text) for text in ("not (error or ws)", "not not tag:slow", "ERROR or NOT ws", "((tag:slow))")),
        *((PLAIN, text) for text in ("ws or error or tag:slow", "tag:slow and method:post and status:4xx")),
        *((PLAIN, text) for text in ("error and ws or tag:slow", "tag:slow or ws and error", "not error not ws")),
    ],
)
def test_what_matches(record: Record, text: str) -> None:
    """``and`` binds closer than ``or``, and stands also between terms with nothing between them."""
    assert parse_filter(text)(record)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        *((PLAIN, f"host:{value}") for value in ("xample.com", "example.org", "example", "example.com:443", "*.co")),
        (make_record("http://[::1"), "host:x"),
        *((PLAIN, f"status:{value}") for value in ("200", "5xx", ">404", "<404", ">=405", "<=403", "!=404", "0")),
        *((FAILED, f"status:{value}") for value in ("<400", "<=400", "2xx", "200-299")),
        *((PLAIN, f"method:{value}") for value in ("POS", "GET")),
        *((PLAIN, f"url:{value}") for value in ("/apix", "api*", '"/API "')),
        *((PLAIN, f"body:{value}") for value in ("q=1", '"name "')),
        *((PLAIN, f"type:{value}") for value in ("html", "json*")),
        *((PLAIN, f"tag:{value}") for value in ("slo", "team")),
        *((PLAIN, text) for text in ("error", "error:x", "ws", "not tag:slow", "tag:slow and ws", "ws or error")),
        *((PLAIN, text) for text in ("not (tag:slow or ws)", "not tag:slow or ws", "tag:slow not tag:slow")),
        (FAILED, "error:other"),
    ],
)
def test_what_does_not_match(record: Record, text: str) -> None:
    """Nor does what is only near."""
    assert not parse_filter(text)(record)


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("hots:x", 0, "'hots', expected one of: host, status"),
        ("status:200 example", 11, "'example', expected one of: host:, status:"),
        ("host:", 5, "expected a value behind host:"),
        ('host:""', 5, "expected a value behind host:"),
        ("status:2000", 7, "'2000', expected a status such as"),
        ("status:abc", 7, "expected a status such as"),
        ("host:a and", 10, "expected a term"),
        ("and host:a", 0, "expected a term"),
        ("not", 3, "expected a term"),
        ("host:a or or ws", 10, "expected a term"),
        ("(ws", 0, "the parenthesis is not closed"),
        ("ws and (ws or (error", 14, "the parenthesis is not closed"),
        ("ws)", 2, "expected and, or, or the end before ')'"),
        ("()", 1, "expected a term"),
        ('ws body:"a b', 8, "the quotation mark is not closed"),
        ("(" * 100 + "ws", 51, "more than 50 parentheses"),
        ("not " * 100 + "ws", 204, "more than 50 parentheses"),
    ],
)
def test_a_wrong_filter_says_where(text: str, at: int, message: str) -> None:
    """In one line, which shows the place."""
    with pytest.raises(FilterError, match=re.escape(message)) as caught:
        parse_filter(text)
    assert caught.value.at == at
    assert f"at character {at + 1}: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "»" + text[at : at + 5] in str(caught.value)


WORDS = st.sampled_from(
    ["and", "or", "not", "(", ")", " ", "ws", "error", "host:a", "status:4xx", 'body:"a b"', "tag:\\", '"', ":", "é"]
)


@given(st.lists(WORDS).map(" ".join) | st.lists(WORDS).map("".join) | st.text())
def test_any_text_is_a_filter_or_an_error_with_a_place(text: str) -> None:
    """Nothing else is raised, neither by parsing nor by filtering."""
    try:
        test = parse_filter(text)
    except FilterError as exc:
        at = exc.at
    else:
        at = 0
        for record in (PLAIN, FAILED, SOCKET):
            assert test(record) in (True, False)
    assert 0 <= at <= len(text)


TERMS = {"ws": True, "error": False, "tag:slow": True, "tag:fast": False}
LEAF = st.sampled_from(sorted(TERMS)).map(lambda term: (term, TERMS[term]))


@given(
    st.recursive(
        LEAF,
        lambda inner: st.one_of(
            inner.map(lambda one: (f"not ({one[0]})", not one[1])),
            st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}) and ({two[1][0]})", two[0][1] and two[1][1])),
            st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}) or ({two[1][0]})", two[0][1] or two[1][1])),
        ),
        max_leaves=8,
    )
)
def test_any_combination_means_what_it_says(pair: tuple[str, bool]) -> None:
    """As Python would have it."""
    text, wanted = pair
    assert parse_filter(text)(make_record("ws://h/", tags=["slow"])) is wanted
