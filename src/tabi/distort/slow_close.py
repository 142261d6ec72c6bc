"""Slow close: octets pass, and the end comes later."""

from __future__ import annotations

from tabi.relay.stage import Stage


class SlowClose(Stage):
    """Holds the end for so many seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def receive_end(self) -> None:
        """See `Stage.receive_end`."""
        self.call_later(self.seconds, self.emit_end)
