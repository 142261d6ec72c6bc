"""Feed the header's decoder and the reassembler with whatever a fuzzer invents: each fragment must be accounted for.

The first octet is the limit; then come datagrams, each behind an octet of seconds since the last and one of its length.
"""

from __future__ import annotations

import sys

from tabi.errors import RemoteProtocolError
from tabi.wire.datagram import Reassembler, decode_header, encode_header


def fuzz_one(data: bytes) -> None:
    """One client's datagrams. Raises what must not be raised."""
    queue = Reassembler(limit=data[0] if data else 0)
    fragments = delivered = 0
    now, at = 0.0, 1
    while at + 1 < len(data):
        now += data[at]
        datagram = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
        try:
            frag, address, start = decode_header(datagram)
        except RemoteProtocolError:
            continue
        again = encode_header(address, frag)
        assert decode_header(again) == (frag, address, len(again))
        fragments += frag != 0
        waiting, dropped = len(queue.parts), queue.dropped
        whole = queue.add(frag, address, datagram[start:], now)
        if frag and whole is not None:
            assert len(whole) <= queue.limit
            delivered += waiting + 1 - (queue.dropped - dropped)
        assert queue.octets == sum(map(len, queue.parts)) <= queue.limit
        assert delivered + len(queue.parts) + queue.dropped == fragments


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
