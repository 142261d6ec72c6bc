"""Blackhole: everything is thrown away, the end too. The sender does not notice, and the receiver waits."""

from __future__ import annotations

from tabi.relay.stage import LONGEST_HOLD, Stage


class Blackhole(Stage):
    """Throws octets away. An end that it has swallowed goes on when it is taken off."""

    __slots__ = ()

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        self.stay()

    def receive_end(self) -> None:
        """See `Stage.receive_end`."""
        self.stay()

    def stay(self) -> None:
        """Have the relay not be taken for idle, since it is not the peers that are silent."""
        if not self.timers:
            self.call_later(LONGEST_HOLD, self.stay)

    def holds(self, now: float) -> bool:
        """See `Stage.holds`."""
        assert self.flow is not None
        return bool(self.timers) and now - self.flow.relay.quiet_since < LONGEST_HOLD
