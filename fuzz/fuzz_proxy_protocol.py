"""Feed the PROXY protocol's decoders with whatever a fuzzer invents: however it is cut, the same must come of it.

The first octet says what comes before the rest: nothing, the beginning of a line, or of a binary header.
"""

from __future__ import annotations

import sys

from tabi.errors import RemoteProtocolError
from tabi.wire.proxy_protocol import (
    MAX_HEADER,
    SIGNATURE,
    ProxyHeader,
    TlvType,
    decode_header,
    decode_ssl,
    encode_v1,
    encode_v2,
    missing_octets,
)

BEGINNINGS = (b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", SIGNATURE, SIGNATURE + b"\x21")


def read_by_what_is_missing(wire: bytes) -> tuple[ProxyHeader, int] | None:
    """Decode as one reads who takes no octet too many; None where ``wire`` ends before the header does."""
    end = 0
    while (found := decode_header(wire[:end])) is None:
        missing = missing_octets(wire[:end])
        assert missing > 0
        end += missing
        if end > len(wire):
            return None
    assert found[1] == end
    return found


def fuzz_one(data: bytes) -> None:
    """One connection's beginning. Raises what must not be raised."""
    wire = BEGINNINGS[data[0] % len(BEGINNINGS)] + data[1:] if data else b""
    try:
        found = decode_header(wire)
    except RemoteProtocolError:
        try:
            assert read_by_what_is_missing(wire) is None
        except RemoteProtocolError:
            pass
        return
    assert read_by_what_is_missing(wire) == found
    if found is None:
        assert len(wire) < MAX_HEADER
        return
    header, _ = found
    for kind, value in header.tlvs:
        if kind == TlvType.SSL:
            try:
                decode_ssl(value)
            except RemoteProtocolError:
                pass
    if header.source:
        again = (
            encode_v1(header.source, header.destination),
            encode_v2(header.source, header.destination, tlvs=header.tlvs[:1], checksum=len(wire) < MAX_HEADER - 50),
        )
        for octets in again:
            decoded = decode_header(octets)
            assert decoded is not None
            assert decoded[0].source == header.source
            assert decoded[0].destination == header.destination


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
