"""What a process begins with that takes over from another one: its listening sockets, and the faults that were set.

The process before has started it with the program's own command line. ``TABI_UPGRADE`` names two descriptors: a channel
to it, and memory with a `State` in JSON. What goes through the channel is in `tabi.server.upgrade`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import msgspec

from tabi.errors import ConfigError
from tabi.net.passed import Group, Inherited, Passed
from tabi.server.channel import Channel

log = logging.getLogger("tabi")

VARIABLE = "TABI_UPGRADE"
"""``CHANNEL:MEMORY``, the descriptors."""


class State(msgspec.Struct):
    """What one process tells the next. Keys may be added: a program ignores those that it does not know."""

    pid: int
    """The supervisor's."""
    groups: list[Group]
    """The listening sockets."""
    passed: dict[int, str] = {}
    """Names of the sockets that a service manager has passed, by descriptor."""
    faults: dict[str, dict[str, Any]] = {}
    """Those that were set, see `FaultControl.state`."""


class Predecessor:
    """The process before, as the one that takes over sees it."""

    def __init__(self, channel: Channel, state: State) -> None:
        self.channel = channel
        self.pid = state.pid
        self.inherited = Inherited(state.groups)
        self.passed = Passed(state.passed)
        for number in state.passed:
            os.set_inheritable(number, False)
        self.faults: Mapping[str, dict[str, Any]] = state.faults
        self.channel.interrupt()

    @contextlib.contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """Tell it why this process does not start, if an error comes."""
        try:
            yield
        except Exception as exc:
            self.channel.send({"failed": (str(exc) or type(exc).__name__)[:1000]})
            raise


def take_predecessor(environ: MutableMapping[str, str]) -> Predecessor | None:
    """The process that has started this one to take over, or None; the environment does not name it any more.

    Raises:
        ConfigError: it cannot be understood.
    """
    text = environ.pop(VARIABLE, "")
    if not text:
        return None
    try:
        channel, memory = map(int, text.split(":"))
        data = b""
        while part := os.pread(memory, 1 << 20, len(data)):
            data += part
        os.close(memory)
        with contextlib.closing(socket.socket(fileno=channel)) as sock:
            state = msgspec.json.decode(data, type=State)
            sock.set_inheritable(False)
            return Predecessor(Channel(sock.dup()), state)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{text!r} is not from a process that this one takes over from: {exc}", VARIABLE) from exc
