"""The messages of `tabi serve` on standard error, written by a process of their own.

A terminal that is halted or a pipe that is not read blocks any process that writes to it. So the supervisor and the
workers only hand their messages over, which never waits: messages that the writer does not take are lost, counted,
and reported. All of
them share one socket, which keeps messages apart (SOCK_SEQPACKET).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import textwrap
from typing import Any

import msgspec

from tabi.errors import printable
from tabi.net.privileges import Identity, become
from tabi.observe.log_outputs import write_all
from tabi.server.channel import Channel
from tabi.server.child import Child

MAX_MESSAGE = 65_536
"""Octets of one message, such as a traceback; longer ones are cut."""

BECOME = b"\0user "
"""In front of whom the writer becomes; no message begins like this, since what is not printable is escaped."""

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class LineFormatter(logging.Formatter):
    """One line for each message, whatever is in it; a traceback follows, set in, so that no line of it looks like a
    message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """See `logging.Formatter`."""
        return textwrap.indent(printable(super().formatException(ei), "\n"), "  ")


class LogWriter(logging.Handler):
    """Hands messages to a process that writes them, which it starts; the supervisor keeps that `child` up."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(FORMAT))
        self.source, self.sink = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sink.setblocking(False)
        self.lost = 0
        self.child = Child("tabi-log", self.write, lambda: (self.source.fileno(),))
        self.child.start()

    def give_up_root(self, identity: Identity) -> None:
        """Have the writer become another user, behind the messages that it has by now."""
        self.child.identity = identity
        with contextlib.suppress(OSError):
            self.sink.send(BECOME + msgspec.json.encode(identity), socket.MSG_NOSIGNAL)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.say(self.format(record) + "\n")

    def say(self, text: str) -> None:
        """Have a text written, lines and all. Never waits, never raises."""
        before = (
            f"{self.lost} messages before this one are lost, since standard error was not read\n" if self.lost else ""
        )
        try:
            self.sink.send(printable(before + text, "\n").encode()[:MAX_MESSAGE], socket.MSG_NOSIGNAL)
            self.lost = 0
        except OSError:  # it does not read, or supervisor and writer are both gone
            self.lost += 1

    def write(self, channel: Channel) -> None:
        """The work of the process: write, until no process is left to hand over messages."""
        while data := self.source.recv(MAX_MESSAGE):
            if data.startswith(BECOME):
                if os.geteuid() == 0:
                    become(msgspec.json.decode(data[len(BECOME) :], type=Identity))
                continue
            with contextlib.suppress(OSError):  # no process reads them any more
                write_all(2, data)

    def close(self) -> None:
        """Take no more messages in this process, and end the writer when it has written what it has."""
        if self.lost:
            self.say("")
        self.source.close()
        self.sink.close()
        self.child.close()
        super().close()
