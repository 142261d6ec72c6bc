"""Feed the reader of QUIC's first datagrams with whatever a fuzzer invents: a hello, None or RemoteProtocolError.

The octets are a datagram, and the frames of an Initial packet, since no fuzzer guesses its keys.
"""

from __future__ import annotations

import sys

from tabi.errors import RemoteProtocolError
from tabi.intercept.quic import QuicHello, begins_quic, crypto_frames, split_packets


def fuzz_one(data: bytes) -> None:
    """One datagram. Raises what the reader must not raise."""
    for datagram in (data, b"\xc0\0\0\0\1" + data):
        begins_quic(datagram)
        try:
            for packet in split_packets(datagram):
                QuicHello(packet).receive(packet)
        except RemoteProtocolError:
            pass
    try:
        for offset, octets in crypto_frames(data):
            assert offset >= 0
            assert len(octets) <= len(data)
    except RemoteProtocolError:
        pass


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
