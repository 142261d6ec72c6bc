"""Feed the reader of ClientHello with whatever a fuzzer invents: a hello, None or RemoteProtocolError, nothing else.

The octets are read as they are, and as the body of a hello; in pieces of the size that the first octet says.
"""

from __future__ import annotations

import sys

from tabi.errors import RemoteProtocolError
from tabi.wire.client_hello import MAX_HELLO, ClientHello, HelloReader, decode_hello
from tabi.wire.tls_alert import decode_alert


def fuzz_one(data: bytes) -> None:
    """One client. Raises what the reader must not raise."""
    step = 1 + data[0] if data else 1
    outcomes = [read(data[1:], size) for size in (step, MAX_HELLO)]
    assert outcomes[0] == outcomes[1]
    try:
        check(decode_hello(data, quic=True))
    except RemoteProtocolError:
        pass
    try:
        decode_alert(data)
    except RemoteProtocolError:
        pass


def read(data: bytes, size: int) -> object:
    """Read it in pieces."""
    reader = HelloReader()
    try:
        for at in range(0, len(data), size):
            found = reader.receive(data[at : at + size])
            if found is not None:
                check(found)
                return found
    except RemoteProtocolError as exc:
        return str(exc)
    assert len(reader.octets) <= 6 * MAX_HELLO
    return None


def check(hello: ClientHello) -> None:
    """What is logged of a hello is printable."""
    assert f"{hello.ja3}{hello.ja4}{hello.sni}".isprintable()
    assert len(hello.ja4) == 36


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
