"""Blackhole: everything is thrown away, the end too. The sender does not notice, and the receiver waits."""

from __future__ import annotations

from tabi.relay.stage import LONGEST_HOLD, Stage


class Blackhole(Stage):
    """Throws octets away. An end that it has swallowed goes on when it is taken off."""

    __slots__ = ()

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""

    def receive_end(self) -> None:
        """See `Stage.receive_end`: it is kept, and the relay is not taken for idle."""
        self.call_later(LONGEST_HOLD, self.emit_end)
