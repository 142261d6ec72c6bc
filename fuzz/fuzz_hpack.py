"""Feed HPACK with whatever a fuzzer invents: fields within their bounds or H2Error, and what is encoded again is equal.

The first octet is the size of the table that is allowed, times 8; then come blocks, each behind an octet of its length.
"""

from __future__ import annotations

import sys

from tabi.errors import H2Error, H2StreamError
from tabi.wire.hpack import Decoder, Encoder, NeverIndexed, size_of
from tabi.wire.huffman import decode_huffman, encode_huffman


def fuzz_one(data: bytes) -> None:
    """The blocks of one connection. Raises what must not be raised."""
    decoder, encoder, second = Decoder(max_list_size=4000, max_fields=50), Encoder(), Decoder()
    for one in (decoder, encoder, second):
        one.allow(8 * data[0] if data else 0)
    at = 1
    while at < len(data):
        block = data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
        try:
            fields = decoder.decode(block)
        except H2StreamError:
            continue
        except H2Error:
            break
        assert len(fields) <= 50
        assert sum(map(size_of, fields)) <= 4000
        assert decoder.size <= decoder.limit <= decoder.allowed
        again = second.decode(encoder.encode(fields))
        assert [(*field, type(field) is NeverIndexed) for field in again] == [
            (*field, type(field) is NeverIndexed) for field in fields
        ]
    try:
        text = decode_huffman(data)
    except H2Error:
        return
    assert encode_huffman(text) == data


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
