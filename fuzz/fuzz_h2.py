"""Feed the decoders of HTTP/2's frames and fields with whatever a fuzzer invents: what they say, or H2Error.

Frames as they are on the wire; a block is read as one of a request, a response and trailers.
"""

from __future__ import annotations

import sys

from tabi.errors import H2Error
from tabi.wire import h2
from tabi.wire.hpack import Decoder


def take(kind: int, flags: int, stream: int, payload: bytes, decoder: Decoder) -> None:
    """One frame. Raises H2Error, and what must not be raised."""
    h2.check_frame(len(payload), kind, flags, stream)
    if kind == h2.SETTINGS:
        settings = h2.decode_settings(payload)
        assert h2.encode_settings(settings)[9:] == payload
    elif kind == h2.GOAWAY:
        h2.encode_goaway(*h2.decode_goaway(payload))
    elif kind == h2.WINDOW_UPDATE:
        assert 0 < h2.decode_window_update(payload, stream) <= h2.MAX_WINDOW
    elif kind == h2.DATA:
        assert len(h2.strip_padding(payload, flags)) <= len(payload)
    elif kind in (h2.HEADERS, h2.PUSH_PROMISE):
        _, block = h2.split_headers(payload, flags) if kind == h2.HEADERS else h2.split_promise(payload, flags)
        fields = decoder.decode(block)
        for decode in (h2.decode_request, h2.decode_response, h2.check_trailers):
            try:
                decode(fields)
            except h2.H2StreamError:
                continue


def fuzz_one(data: bytes) -> None:
    """The frames of one direction of a connection."""
    decoder, at = Decoder(), 0
    while at + h2.HEAD_SIZE <= len(data):
        length, kind, flags, stream = h2.read_head(data, at)
        payload = data[at + h2.HEAD_SIZE : at + h2.HEAD_SIZE + length]
        at += h2.HEAD_SIZE + length
        try:
            take(kind, flags, stream, payload, decoder)
        except h2.H2StreamError:
            continue
        except H2Error:
            return


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
