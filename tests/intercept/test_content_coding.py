"""Content codings: what they were is found again, within a bound, and nothing else is raised than ValueError."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tabi.intercept.content_coding import decode_content


def raw_deflate(data: bytes) -> bytes:
    """Deflate without the head of zlib, as some servers send it."""
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(data) + machine.flush()


ENCODERS: dict[bytes, list[Callable[[bytes], bytes]]] = {
    b"gzip": [gzip.compress],
    b"x-gzip": [gzip.compress],
    b"deflate": [zlib.compress, raw_deflate],
    b"br": [brotli.compress],
    b"zstd": [zstandard.compress],
}
CASES = [(name, encode) for name, encoders in ENCODERS.items() for encode in encoders]
TEXT = random.Random(1).randbytes(10_000) + b"text " * 10_000


@pytest.mark.parametrize(("name", "encode"), CASES)
def test_each_coding_is_undone(name: bytes, encode: Callable[[bytes], bytes]) -> None:
    """Whole, in any case of the name; the bound is exact, and a cut body gives its beginning."""
    data = encode(TEXT)
    assert decode_content(data, name.upper(), len(TEXT)) == (TEXT, True)
    assert decode_content(data, name, len(TEXT) - 1) == (TEXT[:-1], False)
    part, whole = decode_content(data[:-5000] if len(data) > 15_000 else data[:9_000], name, len(TEXT))
    assert not whole
    assert TEXT.startswith(part)


@pytest.mark.parametrize(("name", "encode"), CASES)
def test_a_bomb_gives_no_more_than_its_bound(name: bytes, encode: Callable[[bytes], bytes]) -> None:
    """A few octets that become 50 MB."""
    found, whole = decode_content(encode(bytes(50_000_000)), name, 1000)
    assert (found, whole) == (bytes(1000), False)


def test_several_codings_are_undone_the_last_one_first() -> None:
    """As the list of Content-Encoding says; identity is none, and nothing has nothing to undo."""
    data = brotli.compress(gzip.compress(b"hello"))
    assert decode_content(data, b"gzip, identity , br", 100) == (b"hello", True)
    assert decode_content(b"hello", b"", 3) == (b"hel", False)
    assert decode_content(b"", b"gzip", 3) == (b"", True)


def test_gzip_may_have_several_members_and_zstd_several_frames() -> None:
    """As `cat` makes them; what follows and is none is ignored."""
    assert decode_content(gzip.compress(b"a") + gzip.compress(b"b"), b"gzip", 9) == (b"ab", True)
    assert decode_content(gzip.compress(b"a") + b"garbage", b"gzip", 9)[0] == b"a"
    assert decode_content(zstandard.compress(b"a") + zstandard.compress(b"b"), b"zstd", 9) == (b"ab", True)


@pytest.mark.parametrize("name", [b"gzip", b"deflate", b"br", b"zstd", b"compress", b"gzip,br,gzip,br,gzip"])
def test_what_is_not_so_coded_is_an_error(name: bytes) -> None:
    """Also a coding that is unknown, and more of them than anybody uses."""
    with pytest.raises(ValueError, match="coding"):
        decode_content(b"\xff\xfe this is not compressed at all", name, 1000)


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate", b"br", b"zstd"]))
def test_any_octets_are_decoded_or_refused(data: bytes, name: bytes) -> None:
    """Nothing else is raised."""
    try:
        found, _ = decode_content(data, name, 100)
    except ValueError:
        return
    assert len(found) <= 100
