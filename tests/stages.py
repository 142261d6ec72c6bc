"""Stages for the tests of relay/: each does one thing that a stage may do."""

from __future__ import annotations

from tabi.relay.stage import Stage


class Passing(Stage):
    """Passes everything on, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = bytearray()
        self.unsent: int | None = None

    def receive(self, data: bytes) -> None:
        """Remember it too."""
        self.seen += data
        super().receive(data)

    def closed(self, unsent: int) -> None:
        """Remember that."""
        self.unsent = unsent


class Holding(Passing):
    """Holds everything until it is told to let go."""

    def __init__(self, limit: int = 1 << 18) -> None:
        super().__init__()
        self.limit = limit
        self.octets = bytearray()

    def receive(self, data: bytes) -> None:
        """Hold it."""
        self.seen += data
        self.octets += data
        self.held = len(self.octets)

    def receive_end(self) -> None:
        """Hold that too."""

    def flush(self) -> None:
        """Let everything go but the end."""
        data = bytes(self.octets)
        self.octets.clear()
        self.held = 0
        if data:
            self.emit(data)

    def release(self) -> None:
        """Let everything go, and go on; nothing where the relay has closed."""
        if self.flow is not None:
            self.flow.run(self.let_go)

    def let_go(self) -> None:
        """Let everything go."""
        self.flush()
        if self.ended:
            self.emit_end()


class Slicing(Passing):
    """Passes everything on in small pieces."""

    def receive(self, data: bytes) -> None:
        """Cut it."""
        for at in range(0, len(data), 1000):
            self.emit(data[at : at + 1000])


class Counting(Stage):
    """Sees no octets. It may be closed: then nothing is read."""

    copies = False

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.shut = False

    def room(self, most: int) -> int:
        """All, or nothing."""
        return 0 if self.shut else most

    def note(self, count: int) -> None:
        """Count."""
        self.count += count

    def open(self) -> None:
        """Let it read on."""
        self.shut = False
        self.go_on()


class Failing(Stage):
    """Fails where it is told to, for the reason that it is given."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def fail(self, where: str) -> None:
        """Fail here?"""
        if where == self.where:
            raise ZeroDivisionError(where)

    def attached(self) -> None:
        """See `Stage`; so for the others."""
        self.fail("attached")

    def room(self, most: int) -> int:
        self.fail("room")
        return most

    def note(self, count: int) -> None:
        self.fail("note")

    def receive(self, data: bytes) -> None:
        self.fail("receive")
        super().receive(data)

    def receive_end(self) -> None:
        self.fail("receive_end")
        super().receive_end()

    def flush(self) -> None:
        self.fail("flush")

    def closed(self, unsent: int) -> None:
        self.fail("closed")
