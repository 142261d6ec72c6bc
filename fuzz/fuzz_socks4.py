"""Feed the SOCKS4 machines with whatever a fuzzer invents: messages and RemoteProtocolError may come out, nothing else.

The first octet chooses the machine and its command, the second how the rest is cut.
"""

from __future__ import annotations

import sys
from typing import Any

from tabi.errors import RemoteProtocolError
from tabi.wire.address import UNSPECIFIED
from tabi.wire.machine import NEED_DATA, State
from tabi.wire.socks4 import (
    HEAD,
    MAX_USERID,
    ClientMachine4,
    Reply4,
    Request4,
    ServerMachine4,
    decode_request4,
    encode_request4,
)

MAX_REQUEST = HEAD + MAX_USERID + 1 + 255 + 1


def make_machine(choice: int) -> Any:
    """A server, or a client that has asked, by the lowest bit; the next says whether it asked for BIND."""
    if choice & 1:
        client = ClientMachine4()
        client.send(Request4(2 if choice & 2 else 1, UNSPECIFIED))
        return client
    return ServerMachine4()


def fuzz_one(data: bytes) -> None:
    """One conversation. Raises what the machines must not raise."""
    if len(data) < 3:
        return
    machine, size, rest = make_machine(data[0]), data[1] + 1, data[2:]
    try:
        for at in range(0, len(rest), size):
            machine.receive_data(rest[at : at + size])
            while (message := machine.next_event()) is not NEED_DATA:
                if isinstance(message, Request4):
                    again = encode_request4(message)
                    assert decode_request4(bytearray(again)) == (message, len(again))
                    machine.send(Reply4(0x5A))
            if machine.state is State.REQUEST:
                assert len(machine.buffer) < MAX_REQUEST
            if isinstance(machine, ClientMachine4):
                assert (machine.missing > 0) == (machine.state in machine.decoders)
        machine.receive_data(b"")
        machine.next_event()
    except RemoteProtocolError:
        pass


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
