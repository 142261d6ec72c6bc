"""Huffman's code of HPACK: the table of the RFC, both ways, and strings that end wrongly."""

from __future__ import annotations

import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import H2Error
from tabi.wire.huffman import CODES, LENGTHS, decode_huffman, encode_huffman


def test_codes_are_those_of_the_rfc() -> None:
    """What we compute from lengths is what another implementation has as a table (appendix B)."""
    assert list(LENGTHS) == REQUEST_CODES_LENGTH
    assert [int(code, 2) for code in CODES] == REQUEST_CODES


@pytest.mark.parametrize(
    ("text", "coded"),
    [
        (b"", ""),
        (b"www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
        (b"no-cache", "a8eb10649cbf"),
        (b"302", "6402"),
        (b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1", None),
    ],
)
def test_examples_of_the_rfc(text: bytes, coded: str | None) -> None:
    """Appendix C.4 and C.6."""
    if coded is not None:
        assert encode_huffman(text).hex() == coded
    assert decode_huffman(encode_huffman(text)) == text


@given(st.binary(max_size=300))
def test_what_is_encoded_is_decoded(text: bytes) -> None:
    """Every octet has a code."""
    assert decode_huffman(encode_huffman(text)) == text


@pytest.mark.parametrize(
    "coded",
    [
        "ff",  # an octet of padding
        "1fff",  # "a", and more than an octet of it
        "18",  # padding with a 0
        "ffffffff",  # EOS and more
        "fffffffffffffffc" + "00" * 9,  # EOS in the middle
        "fffffffc18",  # 30 bits of it, and a character
    ],
)
def test_wrong_ends_are_refused(coded: str) -> None:
    """EOS, and padding that is not the beginning of EOS or longer than 7 bits, are errors (section 5.2)."""
    with pytest.raises(H2Error) as caught:
        decode_huffman(bytes.fromhex(coded))
    assert caught.value.code == 9


@given(st.binary(max_size=64))
def test_any_octets_are_a_text_or_an_error(coded: bytes) -> None:
    """And a text that was accepted has no other coding: encoded again it gives the same octets."""
    try:
        text = decode_huffman(coded)
    except H2Error:
        return
    assert encode_huffman(text) == coded
