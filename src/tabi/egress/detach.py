"""Taking the socket out of a stream, for code that brings its own loop, library or threads."""

from __future__ import annotations

import socket
from time import monotonic

from tabi.net.stream import LayeredSock, Stream
from tabi.relay.relays import Relays
from tabi.session import Session
from tabi.wire.address import UNSPECIFIED

FOREVER = 1e9
HALF_CLOSED = 300.0
"""Maximum idle seconds of the bridge of `take_socket` after one side has ended."""


def take_socket(stream: Stream) -> socket.socket:
    """Take the socket away from a stream, non-blocking.

    It cannot be taken away from under TLS: then it is one end of a pair, and a relay joins the other end with the
    stream as long as the loop runs.
    """
    if not isinstance(stream.sock, LayeredSock):
        return stream.detach()
    try:
        ours, theirs = socket.socketpair()
    except OSError:
        stream.close()
        raise
    theirs.setblocking(False)
    ours.setblocking(False)
    relays = Relays(stream.reactor, FOREVER, HALF_CLOSED, 0, lambda session: relays.close("client"))
    relays.start(Stream(stream.reactor, ours), stream, Session(0, "", UNSPECIFIED, monotonic()), b"", b"")
    return theirs
