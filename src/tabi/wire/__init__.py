"""Octets to messages and back: the protocol machines, without any I/O.

Vocabulary: a *machine* is fed with ``receive_data(octets)`` and asked with ``next_event()``, which returns the peer's
next message or ``NEED_DATA``; ``send(message)`` returns the octets to write. It never blocks, calls back, reads a
clock or knows a user. An *Address* is what RFC 1928 calls DST or BND: a host and a port. Names that end with 4 are of
SOCKS4 and 4a, the same names without it of SOCKS5. To *sniff* is to name a connection's *Protocol* by its first
octets. Heads and chunks of HTTP, which has its own requests and responses, are in `wire.http`: `parse_request` gives a
head that can be read and changed, `rewrite_request` what a proxy sends on of it. HTTP/2 has frames (`wire.h2`), whose
blocks of fields are compressed (`wire.hpack`). The headers of datagrams are in `wire.datagram`, those of haproxy's
PROXY protocol in `wire.proxy_protocol`.
"""

from tabi.wire import datagram, http, proxy_protocol
from tabi.wire.address import Address, Host, parse_address
from tabi.wire.connect import ConnectAnswer, ConnectMachine, ConnectRequest
from tabi.wire.machine import NEED_DATA, State
from tabi.wire.proxy_protocol import ProxyHeader, SslInfo, TlvType, Transport
from tabi.wire.sniff import SNIFF_SIZE, Protocol, sniff
from tabi.wire.socks4 import ClientMachine4, Reply4, ReplyCode4, Request4, ServerMachine4, reply4_code
from tabi.wire.socks5 import (
    ClientMachine,
    Command,
    Credentials,
    CredentialsReply,
    Greeting,
    Method,
    MethodMessage,
    MethodSelection,
    Reply,
    ReplyCode,
    Request,
    ServerMachine,
)

__all__ = [
    "NEED_DATA",
    "SNIFF_SIZE",
    "Address",
    "ClientMachine",
    "ClientMachine4",
    "Command",
    "ConnectAnswer",
    "ConnectMachine",
    "ConnectRequest",
    "Credentials",
    "CredentialsReply",
    "Greeting",
    "Host",
    "Method",
    "MethodMessage",
    "MethodSelection",
    "Protocol",
    "ProxyHeader",
    "Reply",
    "Reply4",
    "ReplyCode",
    "ReplyCode4",
    "Request",
    "Request4",
    "ServerMachine",
    "ServerMachine4",
    "SslInfo",
    "State",
    "TlvType",
    "Transport",
    "datagram",
    "http",
    "parse_address",
    "proxy_protocol",
    "reply4_code",
    "sniff",
]
