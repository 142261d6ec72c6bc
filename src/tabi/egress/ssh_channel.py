"""One channel of an SSH connection, joined with a socket: the pump between the two.

The socket is one end of a pair (`net.pair`); the other one is a stream like any other, which a relay may splice.

    destination  <->  SSH server  <== one connection ==>  Channel  <->  pair  <->  relay, client

It lives in callbacks, of the reactor on one side and of asyncssh on the other. Octets that one side does not take are
not read from the other: a channel holds at most one read towards the server and its window, WINDOW, towards the client.
An end is passed on as an end, in each direction separately, and a failure of one side resets the other.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import asyncssh

from tabi.net.reactor import ENDED, ERR, IN, OUT, READABLE, Reactor
from tabi.net.stream import RESET

if TYPE_CHECKING:
    from tabi.egress.ssh_link import Link

WINDOW = 1 << 20
"""Octets that a server may send of one channel before they are taken, RFC 4254 section 5.2."""

CHUNK = 1 << 15
"""Octets of a read: those of a packet, as OpenSSH takes them."""

SHARE = 1 << 20
"""Octets that one channel encrypts in one turn of the reactor, a few milliseconds."""


class Channel(asyncssh.SSHTCPSession[bytes]):
    """Carries one channel's octets.

    Args:
        link: the connection that it belongs to.
        sock: our end of the pair, which is closed with the channel.
        reactor: tells when the socket is ready.
    """

    def __init__(self, link: Link, sock: socket.socket, reactor: Reactor) -> None:
        self.link = link
        self.sock = sock
        self.fd = sock.fileno()
        self.reactor = reactor
        self.chan: asyncssh.SSHTCPChannel[bytes] | None = None
        self.rest = b""  # from the server, not yet taken by the socket
        self.readable = False  # the socket may have something
        self.full = False  # the channel takes nothing
        self.up_ended = False  # the client's end was passed on
        self.down_ended = False  # the server's end has come
        self.over = False  # the socket is closed

    # --- what asyncssh calls ---

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """The server has opened the channel."""
        if self.over:  # no task waits for it any more
            chan.abort()
            return
        self.chan = chan
        chan.set_write_buffer_limits(0)  # what does not go is not read
        self.reactor.register(self.fd, self.on_ready)
        self.watch()

    def data_received(self, data: bytes, datatype: object = None) -> None:
        """Octets of the destination."""
        if self.over:
            return
        if self.rest:
            self.rest += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.break_off()
            return
        if sent < len(data):
            self.rest = data[sent:]
            if self.chan is not None:
                self.chan.pause_reading()
            self.watch()

    def eof_received(self) -> bool:
        """The destination will send no more. True: we may."""
        self.down_ended = True
        self.pass_end_on()
        return True

    def pause_writing(self) -> None:
        """The server's window is used up."""
        self.full = True

    def resume_writing(self) -> None:
        """There is room again."""
        self.full = False
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has ended. Without an error the server has closed it, so all has been sent; many servers close
        without sending an end before."""
        self.chan = None
        self.link.forget(self)
        if self.over:
            return
        if exc is not None or not self.link.alive:
            self.break_off()
            return
        self.up_ended = self.down_ended = True
        self.pass_end_on()

    # --- what the reactor calls ---

    def on_ready(self, events: int) -> None:
        """The socket is ready for something."""
        if events & ERR:
            self.break_off()
            return
        if self.rest and events & (OUT | ENDED):
            self.send_rest()
        if events & READABLE and not self.over:
            self.readable = True
            self.read()

    def read(self) -> None:
        """Forward what the client has sent, as much as possible."""
        left = SHARE
        while self.readable and not (self.over or self.full or self.up_ended or self.link.full):
            if left <= 0:
                self.reactor.later(self.read)
                return
            try:
                data = self.sock.recv(CHUNK)
            except BlockingIOError:
                self.readable = False
                break
            except OSError:
                self.break_off()
                return
            left -= len(data)
            self.send(data)
        self.watch()

    def send(self, data: bytes) -> None:
        """Give the channel octets, or the end."""
        assert self.chan is not None
        try:
            if data:
                self.chan.write(data)
                return
            self.up_ended = True
            self.chan.write_eof()
        except OSError:  # the server has closed it, and `connection_lost` is to come
            self.up_ended = True
            return
        self.end_if_both_ended()

    def go_on(self) -> None:
        """Read again in the next turn."""
        if self.readable and not self.over:
            self.reactor.later(self.read)
        self.watch()

    def send_rest(self) -> None:
        """Send the rest that found no room before, and let the channel go on."""
        try:
            sent = self.sock.send(self.rest)
        except BlockingIOError:
            return
        except OSError:
            self.break_off()
            return
        self.rest = self.rest[sent:]
        if self.rest:
            return
        if self.chan is not None:
            self.chan.resume_reading()
        if self.down_ended:
            self.pass_end_on()
        self.watch()

    def watch(self) -> None:
        """On a level-triggered reactor: watch only the events that can be used."""
        if not self.over and not self.reactor.edge_triggered:
            reading = not (self.readable or self.up_ended)
            self.reactor.watch(self.fd, (reading and IN) | (self.rest != b"" and OUT))

    # --- the end ---

    def pass_end_on(self) -> None:
        """Tell the client that no more will come, after all that came."""
        if self.over or self.rest:
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.break_off()
            return
        self.end_if_both_ended()

    def end_if_both_ended(self) -> None:
        """Close both sides once neither has anything left to say."""
        if not self.over and self.up_ended and self.down_ended and not self.rest:
            self.close_socket()
            if self.chan is not None:
                self.chan.close()

    def break_off(self) -> None:
        """One side is broken: reset the other, so that it does not take this for an end."""
        if self.over:
            return
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        except OSError:
            pass
        self.close_socket()
        if self.chan is not None:
            self.chan.abort()

    def close_socket(self) -> None:
        """Close our end. The channel may exist a while longer, until the server has closed it too."""
        self.over = True
        self.rest = b""
        self.reactor.close(self.sock)
        self.link.note_over()
