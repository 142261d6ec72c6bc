"""How octets may arrive: whole, and cut in every way that matters."""

from __future__ import annotations

from collections.abc import Iterator


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same octets whole, octet by octet, and cut in two at every offset."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]
