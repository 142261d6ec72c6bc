"""How the datagrams of one association leave this machine: directly, or by the relays of proxies in a row.

Each proxy has an association of its own, which lasts as long as the connection that asked for it. There is one socket
however long the row is: it sends to the first relay, and the headers say the rest (`wire.datagram.Layers`).
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from tabi.errors import DialError
from tabi.net.batch import MAX_HOPS, Sock
from tabi.net.datagram import get_datagram_io
from tabi.net.failures import local_error
from tabi.net.reactor import ENDED, IN
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.wire.address import Address
from tabi.wire.datagram import Layers
from tabi.wire.socks5 import ReplyCode

IP = IPv4Address | IPv6Address
Find = Callable[[str], Awaitable[Sequence[IP]]]

READS = 16
"""Times that a control connection is read in one turn."""


class UdpPath:
    """What an egress opens for an association; the caller closes it.

    Args:
        egress: the egress that everything on this path goes through.
        find: the addresses of a name, on this machine.
        binding: where datagrams that go directly come from; None: the system chooses.
    """

    __slots__ = (
        "binding",
        "controls",
        "egress",
        "ended",
        "find",
        "on_close",
        "on_end",
        "relays",
        "resolves_locally",
        "sock",
    )

    def __init__(self, egress: Any, find: Find, binding: SourceBinding | None = None) -> None:
        self.egress = egress
        self.find = find
        self.binding = binding
        self.controls: list[Stream] = []
        """The connections that asked for the associations, the first proxy's first."""
        self.relays: list[Address] = []
        """What each proxy gave as BND, no names; the first is where the datagrams go. None: they go directly."""
        self.resolves_locally = True
        """Whether names are resolved on this machine."""
        self.ended = False
        """Whether a proxy has ended its association."""
        self.sock: Sock | None = None
        self.on_end: Callable[[], object] | None = None
        self.on_close: list[Callable[[], object]] = []
        """Called once, by `close`."""

    def add(self, egress: Any, control: Stream, relay: Address) -> None:
        """Go on through the relay of another proxy, which is asked for by ``egress``.

        Raises DialError where there are too many; the connection is the caller's then.
        """
        if len(self.relays) == MAX_HOPS:
            text = f"{relay}: datagrams go through at most {MAX_HOPS} proxies"
            raise DialError(text, ReplyCode.COMMAND_NOT_SUPPORTED)
        self.egress, self.resolves_locally = egress, False
        self.controls.append(control)
        self.relays.append(relay)

    def layers(self) -> Layers:
        """The headers of datagrams that go through the relays."""
        return Layers(self.relays[1:])

    def connect(self, headed: bool = False) -> None:
        """Connect ``sock`` to the first relay, if there is one, from the address that its proxy knows us by.

        ``headed`` as `DatagramIo.open_socket` has it. Raises DialError; all is closed then.
        """
        if not self.relays:
            return
        relay = self.relays[0]
        assert not isinstance(relay.host, str)
        try:
            family = socket.AF_INET if isinstance(relay.host, IPv4Address) else socket.AF_INET6
            self.sock = get_datagram_io().open_socket(family, headed)
            local, _, *scope = self.controls[0].sock.getsockname()
            if ip_address(local).version == relay.host.version:
                # The relay takes datagrams from the control connection's address only.
                self.sock.bind((local, 0, *scope))
                self.sock.connect((str(relay.host), relay.port, *scope))
            else:
                self.sock.connect((str(relay.host), relay.port))
        except OSError as exc:
            self.close()
            raise local_error(exc, relay) from exc

    def take_socket(self) -> Sock:
        """Give the socket to the caller, who closes it."""
        sock, self.sock = self.sock, None
        assert sock is not None
        return sock

    def watch(self, on_end: Callable[[], object]) -> None:
        """Have the reactor tell, once, when a control connection has ended: that is the end of all."""
        self.on_end = on_end
        for control in self.controls:
            reactor = control.reactor
            reactor.replace(control.fd, partial(self.on_control, control))
            reactor.watch(control.fd, IN)
            self.on_control(control, control.events)

    def on_control(self, control: Stream, events: int) -> None:
        """The reactor's handler of a control connection: its octets mean nothing, its end matters."""
        if control.fd < 0 or not (events & ENDED or self.has_ended(control)):
            return
        control.reactor.watch(control.fd, 0)
        self.ended = True
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()

    def has_ended(self, control: Stream) -> bool:
        """Read what is there, for an end may follow it; much is read in several turns."""
        for _ in range(READS):
            try:
                if not control.sock.recv(4096):
                    return True
            except BlockingIOError:
                return False
            except OSError:  # a reset is an end too
                return True
        control.reactor.later(partial(self.on_control, control, IN))
        return False

    def close(self) -> None:
        """Close the connections, and so the associations, and a socket that was not taken. Harmless when done twice."""
        self.on_end = None
        if self.sock is not None:
            self.take_socket().close()
        for control in self.controls:
            control.close()
        callbacks, self.on_close = self.on_close, []
        for callback in callbacks:
            callback()
