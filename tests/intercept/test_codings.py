"""Codings of content: undone within a bound of memory and time, and done again."""

from __future__ import annotations

import functools
import gzip
import random
import sys
import time
import tracemalloc
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import TooLarge
from tabi.intercept.codings import codings_of, decode_content, decode_part, encode_content

CODINGS = ("gzip", "deflate", "br", "zstd")
MANY = 1 << 25


def raw_deflate(data: bytes) -> bytes:
    """As some servers send it: without zlib's header."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


@given(st.binary(max_size=3000), st.lists(st.sampled_from(CODINGS), max_size=4))
def test_what_was_encoded_is_decoded_again(data: bytes, codings: list[str]) -> None:
    """One coding or several, one after another."""
    encoding = ", ".join(codings)
    assert decode_content(encode_content(data, encoding), encoding, 5000) == data


@given(st.binary(max_size=300), st.sampled_from(CODINGS))
def test_any_octets_are_decoded_or_refused(data: bytes, coding: str) -> None:
    """Only with the errors that are promised."""
    for decode in (decode_content, decode_part):
        try:
            found = decode(data, coding, 100)
        except (ValueError, TooLarge):
            continue
        assert len(found if isinstance(found, bytes) else found[0]) <= 100


@given(st.binary(min_size=1, max_size=200_000), st.sampled_from(CODINGS), st.data())
def test_a_part_is_refused(data: bytes, coding: str, choose: st.DataObject) -> None:
    """Whatever was cut off: content that is not whole is not shown as if it were."""
    encoded = encode_content(data, coding)
    with pytest.raises(ValueError, match=coding):
        decode_content(encoded[: choose.draw(st.integers(1, len(encoded) - 1))], coding, 1 << 20)


@pytest.mark.parametrize("coding", CODINGS)
def test_the_beginning_of_what_is_not_whole_or_too_large(coding: str) -> None:
    """For whoever can do with it, and with whether that is all."""
    data = random.Random(1).randbytes(200_000) + b"text " * 20_000
    encoded = encode_content(data, coding)
    assert decode_part(encoded, coding, len(data)) == (data, True)
    assert decode_part(encoded, coding, len(data) - 1) == (data[:-1], False)
    assert decode_part(b"", coding, 5) == (b"", True)
    for cut in (1, 20, 9000, len(encoded) - 1):
        part, whole = decode_part(encoded[:cut], coding, len(data))
        assert not whole
        assert data.startswith(part)
    assert part
    twice = encode_content(encoded, "gzip")
    assert decode_part(twice, f"{coding}, gzip", 10**6) == (data, True)
    part, whole = decode_part(twice[:-1], f"{coding}, gzip", 10**6)
    assert (data.startswith(part), whole) == (True, False)
    assert decode_part(b"abc", None, 2) == (b"ab", False)
    with pytest.raises(ValueError, match=coding):
        decode_part(b"\xff\xfe this is not compressed at all", coding, 1000)


@pytest.mark.parametrize("coding", CODINGS)
def test_the_limit_is_exact(coding: str) -> None:
    """As much as the limit is decoded, one octet more is not, with pieces or without."""
    for size in (0, 1, 65535, 65536, 65537, 300_000):
        encoded = encode_content(b"x" * size, coding)
        assert len(decode_content(encoded, coding, size)) == size
        if size:
            with pytest.raises(TooLarge, match=f"more than {size - 1} octets"):
                decode_content(encoded, coding, size - 1)


@functools.cache
def bombs() -> dict[str, tuple[str, bytes]]:
    """Small contents that become large, or take long."""
    zeros = bytes(MANY)
    member = gzip.compress(b"", 9, mtime=0)
    return {
        "gzip": ("gzip", gzip.compress(zeros, 1)),
        "twice": ("gzip, gzip", gzip.compress(gzip.compress(zeros))),
        "deflate": ("deflate", zlib.compress(zeros)),
        "raw": ("deflate", raw_deflate(zeros)),
        "br": ("br", brotli.compress(zeros, quality=1)),
        "zstd": ("zstd", zstandard.ZstdCompressor().compress(zeros)),
        "zstd frames": ("zstd", zstandard.ZstdCompressor().compress(zeros[: 1 << 20]) * 32),
        "empty members": ("gzip", member * (1_000_000 // len(member))),
        "empty blocks": ("deflate", b"\x00\x00\x00\xff\xff" * 200_000),
        "empty frames": ("zstd", zstandard.ZstdCompressor().compress(b"") * 110_000),
        "window": ("zstd", b"\x28\xb5\x2f\xfd\x00\xb0" + bytes(100)),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_stay_within_bounds(name: str) -> None:
    """32 MiB of zeros in a few KiB, a million octets that carry nothing: little time and memory."""
    encoding, data = bombs()[name]
    tracemalloc.start()
    try:
        began = time.process_time()
        assert decode_content(data, encoding, 1 << 20) == b""
    except (TooLarge, ValueError):
        assert name != "empty frames"
    finally:
        seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert seconds < 2
    assert peak < 8 << 20


@pytest.mark.parametrize("coding", CODINGS)
def test_time_grows_as_the_content(coding: str) -> None:
    """30 MB that cannot be made smaller are not copied for each piece."""
    data = bytes(range(256)) * 8 + bytes((i * i * 7919 + (i >> 3)) & 255 for i in range(30_000))
    data *= 1000
    encoded = encode_content(data, coding) if coding in ("br", "zstd") else zlib.compress(data, 0)
    if coding == "gzip":
        encoded = gzip.compress(data, 0)
    began = time.process_time()
    assert decode_content(encoded, coding, 1 << 30) == data
    assert time.process_time() - began < 3


def test_members_and_frames() -> None:
    """Several are one content, as `cat` makes them; of gzip, what follows them is ignored, as by browsers."""
    one, two = gzip.compress(b"one "), gzip.compress(b"two")
    assert decode_content(one + two, "gzip", 100) == b"one two"
    assert decode_content(one + two + b"\0\0\0 rubbish", "gzip", 100) == b"one two"
    assert decode_content(gzip.compress(b"ab" * 100) * 900, "gzip", 1 << 20) == b"ab" * 90_000
    with pytest.raises(ValueError, match=r"^gzip: the content is not whole$"):
        decode_content(one + two[:-1], "gzip", 100)
    frame = zstandard.ZstdCompressor().compress
    assert decode_content(frame(b"one ") + frame(b"two"), "zstd", 100) == b"one two"
    with pytest.raises(ValueError, match="br"):
        decode_content(brotli.compress(b"one") + b"rubbish", "br", 100)


@given(st.binary(max_size=1000))
def test_deflate_without_a_header(data: bytes) -> None:
    """Some servers take the name at its word."""
    assert decode_content(raw_deflate(data), "deflate", 1000) == data


def test_names() -> None:
    """Any case, the old names of RFC 9110, and `identity`, which is none; others are not known, nor too many."""
    assert codings_of(" X-GZIP , identity,,br") == ["gzip", "br"]
    assert codings_of(None) == []
    assert decode_content(b"as it is", "identity", 3) == b"as it is"
    assert decode_content(b"", "compress", 3) == b""
    with pytest.raises(ValueError, match="'aes128gcm' is not known"):
        decode_content(b"x", "aes128gcm", 9)
    with pytest.raises(ValueError, match="'aes128gcm' is not known"):
        encode_content(b"x", "aes128gcm")
    with pytest.raises(ValueError, match=r"^Content-Encoding: 5 codings, at most 4 are undone$"):
        decode_content(b"x", "gzip,gzip,gzip,gzip,gzip", 9)


def test_zstd_has_a_bound_for_its_window() -> None:
    """8 MiB (RFC 9659), whatever the frame asks for."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=25, enable_ldm=True)
    encoder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = encoder.compress(b"x" * 1000) + encoder.flush()
    with pytest.raises(ValueError, match=r"zstd: .*memory"):
        decode_content(data, "zstd", 1 << 20)


@pytest.mark.parametrize(("coding", "package"), [("br", "brotli"), ("zstd", "zstandard")])
def test_a_package_that_is_not_there(coding: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs {package}: pip install 'tabi\[intercept\]'$"):
        decode_content(b"x", coding, 9)
    with pytest.raises(ValueError, match=rf"needs {package}: pip install 'tabi\[intercept\]'$"):
        encode_content(b"x", coding)
