"""Sniff whatever a fuzzer invents, octet by octet: there is an answer in time, and more octets do not change it."""

from __future__ import annotations

import sys

from tabi.wire.machine import NEED_DATA
from tabi.wire.sniff import SNIFF_SIZE, sniff


def fuzz_one(data: bytes) -> None:
    """One connection's first octets. Raises what `sniff` must not raise."""
    found = sniff(data)
    assert found is not NEED_DATA or len(data) < SNIFF_SIZE
    for end in range(min(len(data), SNIFF_SIZE)):
        assert sniff(data[:end]) in (NEED_DATA, found)


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
