"""TLS cut: a connection ends as soon as the destination answers a hello of TLS. All other protocols pass."""

from __future__ import annotations

from tabi.policy.faults import Ending
from tabi.policy.limits import DOWN, UP
from tabi.relay.stage import Stage

HANDSHAKE = b"\x16\x03"
"""How a TLS record with a hello begins (RFC 8446 section 5.1)."""

MISSED = bytes(len(HANDSHAKE))


class Hello(Stage):
    """Looks whether the client begins with a hello. If it is put on later than that, there was none."""

    __slots__ = ("first",)

    def __init__(self) -> None:
        super().__init__()
        self.first = b""

    def attached(self) -> None:
        """See `Stage.attached`."""
        assert self.flow is not None
        if self.flow.octets or self.flow.is_blocked:
            self.first = MISSED

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        if len(self.first) < len(HANDSHAKE):
            self.first += data[: len(HANDSHAKE) - len(self.first)]
        self.emit(data)


class Cut(Stage):
    """Ends the relay when the destination answers.

    Args:
        hello: of the other direction.
        how: it ends.
        label: of the entry, for the log.
    """

    __slots__ = ("hello", "how", "label", "over")

    def __init__(self, hello: Hello, how: Ending, label: str) -> None:
        super().__init__()
        self.hello = hello
        self.how = how
        self.label = label
        self.over = False

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        if not self.over and self.hello.first == HANDSHAKE:
            self.end_relay(self.how, f"{self.label}: TLS is cut")
            return
        self.over = True
        self.emit(data)


def tls_cut(how: Ending, label: str) -> list[tuple[int, Stage]]:
    """Both stages of a connection."""
    hello = Hello()
    return [(UP, hello), (DOWN, Cut(hello, how, label))]
