"""Octets to messages and back: the protocol machines, without any I/O.

Vocabulary: a *machine* is fed with ``receive_data(octets)`` and asked with ``next_event()``, which returns the
peer's next message or ``NEED_DATA``; ``send(message)`` returns the octets to write. It never blocks, calls back,
reads a clock or knows a user. An *Address* is what RFC 1928 calls DST or BND: a host and a port.
"""

from tabi.wire.address import Address, Host, parse_address
from tabi.wire.machine import NEED_DATA
from tabi.wire.socks5 import (
    ClientMachine,
    Command,
    Credentials,
    CredentialsReply,
    Greeting,
    Method,
    MethodSelection,
    Reply,
    ReplyCode,
    Request,
    ServerMachine,
)

__all__ = [
    "NEED_DATA",
    "Address",
    "ClientMachine",
    "Command",
    "Credentials",
    "CredentialsReply",
    "Greeting",
    "Host",
    "Method",
    "MethodSelection",
    "Reply",
    "ReplyCode",
    "Request",
    "ServerMachine",
    "parse_address",
]
