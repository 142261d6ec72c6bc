"""Feed the SOCKS5 machines with whatever a fuzzer invents: messages and RemoteProtocolError may come out, nothing else.

The first octet chooses the machine and its state, the second how the rest is cut.
"""

from __future__ import annotations

import sys
from typing import Any

from tabi.errors import RemoteProtocolError
from tabi.wire.address import UNSPECIFIED
from tabi.wire.machine import NEED_DATA, State
from tabi.wire.socks5 import (
    ClientMachine,
    Credentials,
    CredentialsReply,
    Greeting,
    MethodSelection,
    Reply,
    Request,
    ServerMachine,
)

ANSWERS: dict[State, Any] = {
    State.GREETING_SEEN: MethodSelection(2),
    State.CREDENTIALS_SEEN: CredentialsReply(0),
    State.REQUEST_SEEN: Reply(0),
    State.CREDENTIALS: Credentials(b"user", b"password"),
    State.REQUEST: Request(2, UNSPECIFIED),
}


def make_machine(choice: int) -> Any:
    """A server, or a client that has greeted, by the lowest bit; the next says whether without a password."""
    if choice & 1:
        client = ClientMachine()
        client.send(Greeting(b"\x00" if choice & 2 else b"\x00\x02"))
        return client
    server = ServerMachine()
    if choice & 2:
        server.receive_data(b"\x05\x01\x00")
        server.next_event()
        server.send(MethodSelection(0))
    return server


def fuzz_one(data: bytes) -> None:
    """One conversation. Raises what the machines must not raise."""
    if len(data) < 3:
        return
    machine, size, rest = make_machine(data[0]), data[1] + 1, data[2:]
    try:
        for at in range(0, len(rest), size):
            machine.receive_data(rest[at : at + size])
            while machine.next_event() is not NEED_DATA:
                if machine.state in ANSWERS and machine.state not in machine.decoders:
                    machine.send(ANSWERS[machine.state])
            if isinstance(machine, ClientMachine):
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
