"""A relay with TLS at one side or both: octets are copied, and an end is a close_notify that may have to wait."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tabi.net.stream import Sock, Stream
from tabi.net.tls import USUAL_READ
from tabi.relay.flow import BLOCKED, READY, Flow
from tabi.relay.relay import Relay
from tabi.session import Close, Session

if TYPE_CHECKING:
    from tabi.relay.relays import Relays


class TlsFlow(Flow):
    """A flow whose end may have to wait for room: it is BLOCKED then, and has ended."""

    __slots__ = ()

    def resume(self) -> None:
        """See `Flow.resume`."""
        if self.ended:
            self.state = READY
            self.relay.flow_ended(self)
        else:
            super().resume()

    @property
    def prompt(self) -> bool:
        """See `Prompt`: not while much is decrypted at a time, or what takes long."""
        return getattr(self.source, "appetite", USUAL_READ) == USUAL_READ


class TlsRelay(Relay):
    """A relay that copies. What it counts is plaintext."""

    __slots__ = ("up_to_end",)

    flow = TlsFlow

    def __init__(
        self, relays: Relays, client: Stream, server: Stream, session: Session, now: float, staged: bool
    ) -> None:
        super().__init__(relays, client, server, session, now, staged)
        self.pipes = relays.no_pipes
        self.up_to_end = -1  # octets of the uplink when the downlink's end was told

    def break_off(self, whole: Sock | None = None, reason: Close = "reset") -> None:
        """See `Relay.break_off`. But a client that has all it wanted often closes with our close_notify unread, and
        its kernel makes a reset of that: if it has sent nothing since, this is an end like any other."""
        if reason == "reset" and self.up.octets == self.up_to_end and not self.up.held:
            self.close(self.first)
        else:
            super().break_off(whole, reason)

    def flow_ended(self, flow: Flow) -> None:
        """See `Relay.flow_ended`; called again where the end did not fit. It ends when both sides were told."""
        other = flow.other
        if not other.ended:
            self.first = "client" if flow is self.up else "server"
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            flow.wait(BLOCKED)
            return
        except OSError:
            if not other.ended:
                self.break_off()
                return
        if flow is self.down:
            self.up_to_end = self.up.octets
        if other.ended and other.state == READY:
            self.close(self.first)
        else:
            self.watch()
