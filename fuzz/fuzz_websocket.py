"""Feed the readers of WebSocket with whatever a fuzzer invents: messages within the limit, or RemoteProtocolError.

Of the first octet one bit says whether compressed messages refer to each other; the rest are frames.
"""

from __future__ import annotations

import sys

from tabi.errors import RemoteProtocolError
from tabi.intercept.websocket_messages import Deflater, MessageReader
from tabi.wire.websocket import CONTROL, FIN, Compression, decode_head, encode_head, parse_extensions

LIMIT = 1000


def fuzz_one(data: bytes) -> None:
    """The frames of one direction. Raises what the readers must not raise."""
    compression = Compression(bool(data[:1] > b"\x7f"), 15)
    reader, deflater, at = MessageReader(compression, LIMIT), Deflater(compression), 1
    try:
        while (head := decode_head(data, at)) is not None:
            first, mask, length, begin = head
            assert (
                decode_head(encode_head(first, length, mask)) == (first, mask, length, begin - at) or length < 1 << 16
            )
            at = begin + length
            if first & CONTROL:
                continue
            reader.begin(first)
            reader.add(data[begin:at])
            assert len(reader.content) <= LIMIT
            if first & FIN:
                content = reader.end()
                assert len(content) <= LIMIT
                assert deflater.compress(content)
    except RemoteProtocolError:
        pass
    try:
        parse_extensions([data.decode("latin-1")])
    except ValueError:
        pass


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
