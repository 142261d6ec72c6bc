"""Headers as hooks see them: text, in any case, with case and order kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.intercept.headers import Headers, to_octets, to_text
from tabi.wire.http_fields import Fields

HEAD = b"\r\nHost:  a.example \r\nSet-cookie: a=1\r\nX-Odd:\r\nset-COOKIE:b=2\t\r\nX-Octets: \xff\xc3\xbc"

NAMES = st.text("abcXYZ-_09", min_size=1, max_size=8)
VALUES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=10)


def test_what_is_only_read_goes_on_octet_for_octet() -> None:
    """White space, case, order, odd octets."""
    headers = Headers(HEAD)
    assert headers.encode() is HEAD
    assert headers["HOST"] == headers.get("host") == "a.example"
    assert headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert headers["x-odd"] == ""
    assert headers["x-octets"] == "\udcffü"
    assert headers.items()[3] == ("set-COOKIE", "b=2")
    assert (list(headers), len(headers)) == (["Host", "Set-cookie", "X-Odd", "set-COOKIE", "X-Octets"], 5)
    assert "SET-cookie" in headers
    assert "no" not in headers
    assert 5 not in headers
    assert headers.get("no") is None
    assert headers.get("no", "none") == "none"
    with pytest.raises(KeyError, match="no"):
        headers["no"]
    assert headers.encode() == HEAD
    assert not headers.changed


def test_changes() -> None:
    """Only the fields that are meant; a name stays as it was spelled, and its field where it stands."""
    headers = Headers(HEAD)
    headers["SET-COOKIE"] = "c=3"
    headers["New"] = "ü"
    headers.add("new", "\udcff")
    del headers["x-ODD"]
    assert headers.changed
    assert headers.encode() == (
        b"\r\nHost:  a.example \r\nSet-cookie: c=3\r\nX-Octets: \xff\xc3\xbc\r\nNew: \xc3\xbc\r\nnew: \xff"
    )
    assert headers.remove("NEW") == 2
    assert headers.remove("NEW") == 0
    with pytest.raises(KeyError, match="new"):
        del headers["new"]
    assert repr(headers) == "Headers(Host, Set-cookie, X-Octets)"


def test_nothing_is_changed_by_a_look_or_a_failure() -> None:
    """`changed` stays false, and the list of fields the same."""
    headers = Headers(HEAD)
    raw = headers.raw
    headers.remove("not there")
    for name, value in (("a b", "x"), ("", "x"), ("ü", "x"), ("a", "x\r\ny: z"), ("a", "\0"), ("a", "\ud800")):
        for function in (headers.add, headers.__setitem__):
            with pytest.raises(ValueError, match=r"expected|surrogates"):
                function(name, value)
    assert headers.raw is raw
    assert not headers.changed


def test_of_pairs_and_mappings() -> None:
    """Text is checked; octets, which an engine gives, are not."""
    assert Headers([("A", "1"), ("a", "2")]).encode() == b"\r\nA: 1\r\na: 2"
    assert Headers({"A": "1"}).encode() == b"\r\nA: 1"
    assert Headers([(b"a", b"1")]).raw == [(b"a", b"1")]
    assert Headers(iter([(b"a", b" 1 ")]))["A"] == "1"
    assert Headers().encode() == b""
    for wrong in ([("A", "1\r\nB: 2")], {"A:": "1"}):
        with pytest.raises(ValueError, match="expected"):
            Headers(wrong)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_what_is_written_is_read_again(pairs: list[tuple[str, str]]) -> None:
    """As text, through the octets of a head."""
    octets = Headers(pairs).encode()
    assert Headers(octets).items() == [(name, value.strip(" \t")) for name, value in pairs]
    assert Fields.decode(octets).encode() == octets


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.one_of(NAMES, st.sampled_from(["", "a:b", "a\r\nb", ":"])))
def test_a_field_is_found_before_and_after_all_are_taken_apart(pairs: list[tuple[str, str]], name: str) -> None:
    """The first look does not take them apart, and finds the same."""
    headers, known = Headers(Headers(pairs).encode()), Headers(pairs)
    pairs = [*pairs, (name.lower(), "")]
    for asked in [pairs[0][0].upper(), pairs[-1][0], name]:
        assert headers.get(asked) == known.get(asked)
    assert headers._raw is None or any(":" in asked for asked, _ in pairs)


@given(st.binary(max_size=30))
def test_text_has_no_loss(octets: bytes) -> None:
    """Any octets come back."""
    assert to_octets(to_text(octets)) == octets
