"""Fields of heads: a list that is read and changed, and what the values of single ones say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import HttpError
from tabi.wire.http_fields import (
    KNOWN_OF_REQUEST,
    KNOWN_OF_RESPONSE,
    PROTECTED,
    Fields,
    any_of,
    decode_number,
    find_known,
    members,
    shown,
    take_out,
    too_many,
    without,
)

RAW = b"\r\nX-A:1\r\nAccept: \t*/* \r\nx-a:\r\nCookie: secret"


def test_fields_are_read_in_any_case() -> None:
    """Names as they were spelled, values without the white space around them, repetitions in their order."""
    fields = Fields.decode(RAW)
    assert list(fields) == [(b"X-A", b"1"), (b"Accept", b"*/*"), (b"x-a", b""), (b"Cookie", b"secret")]
    assert (fields.get(b"ACCEPT"), fields.get(b"x-A"), fields.get(b"x")) == (b"*/*", b"1", None)
    assert (fields.get_all(b"x-a"), fields.get_all(b"x")) == ([b"1", b""], [])
    assert b"COOKIE" in fields
    assert b"x" not in fields
    assert fields.encode() == RAW


def test_an_empty_list() -> None:
    """A head may have no fields."""
    assert list(Fields.decode(b"")) == []
    assert Fields.decode(b"").encode() == b""


def test_values_are_not_in_the_repr() -> None:
    """They hold passwords and cookies."""
    assert repr(Fields.decode(RAW)) == "Fields(X-A, Accept, x-a, Cookie)"


def test_a_value_is_replaced_where_it_stands() -> None:
    """The first of that name keeps its place and its spelling, the others of the name go, all else stays as it came."""
    fields = Fields.decode(RAW)
    fields.set(b"x-A", b"2")
    assert fields.encode() == b"\r\nX-A: 2\r\nAccept: \t*/* \r\nCookie: secret"
    fields.set(b"X-New", b"")
    assert fields.encode() == b"\r\nX-A: 2\r\nAccept: \t*/* \r\nCookie: secret\r\nX-New: "


def test_fields_are_added_and_removed() -> None:
    """At the end, also where the name is there already; in any case, all of a name."""
    fields = Fields.decode(RAW)
    fields.add(b"X-A", b"3")
    assert fields.get_all(b"x-a") == [b"1", b"", b"3"]
    assert fields.remove(b"X-a") == 3
    assert fields.remove(b"X-a") == 0
    assert fields.encode() == b"\r\nAccept: \t*/* \r\nCookie: secret"
    assert Fields(fields).encode() == b"\r\nAccept: */*\r\nCookie: secret"


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\n", b"\xfc", b"a\0"])
@pytest.mark.parametrize("change", [Fields.add, Fields.set])
def test_names_that_cannot_be_sent(change: object, name: bytes) -> None:
    """Nobody splits a head by a name; the fields are what they were."""
    fields = Fields.decode(RAW)
    with pytest.raises(ValueError, match="expected a field name"):
        change(fields, name, b"x")  # type: ignore[operator]
    assert fields.encode() == RAW


@pytest.mark.parametrize("value", [b"s3cret\r\nX: y", b"s3cret\n", b"s3cret\r", b"s3cret\0", b"s3cret\x7f"])
@pytest.mark.parametrize("change", [Fields.add, Fields.set])
def test_values_that_cannot_be_sent(change: object, value: bytes) -> None:
    """Nor by a value, which the error does not tell."""
    fields = Fields.decode(RAW)
    with pytest.raises(ValueError, match="value of X-A: expected text") as caught:
        change(fields, b"X-A", value)  # type: ignore[operator]
    assert "s3cret" not in str(caught.value)
    assert fields.encode() == RAW


NAMES = st.sampled_from([b"X-A", b"x-a", b"X-B", b"Accept"])
VALUES = st.sampled_from([b"1", b"a b", b"", b"\xff"])
CHANGES = st.lists(st.tuples(st.sampled_from(["add", "set", "remove"]), NAMES, VALUES), max_size=6)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), CHANGES)
def test_changes_leave_the_others_alone(
    before: list[tuple[bytes, bytes]], changes: list[tuple[str, bytes, bytes]]
) -> None:
    """Whatever is changed, fields of other names keep order, case and value, and what is written is read again."""
    fields = Fields(before)
    for change, name, value in changes:
        others = [field for field in fields if field[0].lower() != name.lower()]
        had = fields.get_all(name)
        if change == "remove":
            assert fields.remove(name) == len(had)
            expected = []
        else:
            getattr(fields, change)(name, value)
            expected = [*had, value] if change == "add" else [value]
        assert fields.get_all(name) == expected
        assert [field for field in fields if field[0].lower() != name.lower()] == others
        assert list(Fields.decode(fields.encode())) == list(fields)


def test_what_means_something_is_taken_out() -> None:
    """By the name in lower case, repeated ones joined by LF; the length stays with the others, in its shortest form."""
    raw = b"\r\nHOST: a\r\nX: y\r\nTE:\r\nConnection: a \r\nconnection:\tb\r\nContent-length: 007\r\nHosts: c"
    known, others = take_out(raw, KNOWN_OF_REQUEST)
    assert known == {b"host": b"a", b"te": b"", b"connection": b"a\nb", b"content-length": b"007"}
    assert others == b"\r\nX: y\r\nContent-Length: 7\r\nHosts: c"
    assert take_out(b"\r\nHost: a\r\nContent-Length: 00", KNOWN_OF_RESPONSE) == (
        {b"content-length": b"00"},
        b"\r\nHost: a\r\nContent-Length: 0",
    )


def test_what_means_something_is_found() -> None:
    """The same as `take_out` finds, in any case, each value without white space, several with LF between them."""
    fields = b"\r\nA: 1\r\nhOST:  x \r\nconnection: a\r\nConnection:b\r\nHostile: y"
    pattern = any_of([b"host", b"connection"])
    assert find_known(fields, pattern) == take_out(fields, pattern)[0] == {b"host": b"x", b"connection": b"a\nb"}
    assert find_known(b"", pattern) == {}


def test_an_authorization_is_known_and_stays() -> None:
    """As it came, where it stood."""
    raw = b"\r\nA: b\r\naUthorization:\tNTLM x \r\nHost: a\r\nC: d"
    known, others = take_out(raw, KNOWN_OF_REQUEST)
    assert known == {b"authorization": b"NTLM x", b"host": b"a"}
    assert others == b"\r\nA: b\r\naUthorization:\tNTLM x \r\nC: d"


def test_what_connection_names_goes() -> None:
    """But not what is protected."""
    raw = b"\r\nX: y\r\nx : z\r\nVia: a\r\nY: z"
    assert without(raw, frozenset(), PROTECTED) == raw
    assert without(raw, frozenset([b"via", b"host"]), PROTECTED) == raw
    assert without(raw, frozenset([b"x", b"via"]), PROTECTED) == b"\r\nx : z\r\nVia: a\r\nY: z"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, set()),
        (b"", set()),
        (b"Close", {b"close"}),
        (b"keep-alive", {b"keep-alive"}),
        (b"a, B\t,,c\nD", {b"a", b"b", b"c", b"d"}),
    ],
)
def test_lists_of_words(value: bytes | None, expected: set[bytes]) -> None:
    """In lower case, over all fields of a name, without empty ones."""
    assert members(value) == expected


def test_numbers() -> None:
    """Digits only, at most 18, of one field only; the error tells a short word and no more."""
    assert decode_number(b"007", "Content-Length") == 7
    assert decode_number(b"9" * 18, "Content-Length") == 10**18 - 1
    for value, text in (
        (b"", "Content-Length: expected 1 to 18 digits"),
        (b"+5", "Content-Length: '+5', expected 1 to 18 digits"),
        (b"\xb2", "Content-Length: expected 1 to 18 digits"),
        (b"1" * 19, f"Content-Length: '{'1' * 19}', expected 1 to 18 digits"),
        (b"5\n5", "2 Content-Length fields, expected 1"),
    ):
        with pytest.raises(HttpError) as caught:
            decode_number(value, "Content-Length")
        assert str(caught.value) == text
    assert str(too_many(b"a\nb\nc", "Host")) == "3 Host fields, expected 1"
    assert (shown(b"gzip"), shown(b"a b"), shown(b"x" * 33)) == ("'gzip', ", "", "")
