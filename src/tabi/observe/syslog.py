"""The access log in syslog: one message a line, of the facility daemon; what went wrong is a notice, else info.

On this machine a message has the form that syslog(3) writes, which every daemon reads from its socket. Over the network
it is RFC 5424 in UDP (RFC 5426).
"""

from __future__ import annotations

import os
import socket

from tabi.observe.log_record import Format, Record
from tabi.observe.log_text import LocalTime

SOCKET = "/dev/log"
"""Where the daemon of this machine reads."""

DAEMON, NOTICE, INFO = 3, 5, 6
"""A facility and severities (RFC 5424 section 6.2.1)."""


def severity(record: Record) -> int:
    """How much a line matters."""
    return INFO if record.error is None else NOTICE


class LocalMessages:
    """Makes messages as syslog(3) does: ``<30>Jan  5 17:05:28 tabi[4711]: line``.

    Args:
        line: makes the line in it.
        clock: gives the time.
    """

    def __init__(self, line: Format, clock: LocalTime | None = None) -> None:
        self.line = line
        self.clock = clock or LocalTime("%b %e %H:%M:%S")
        self.name = f"tabi[{os.getpid()}]"

    def __call__(self, record: Record) -> bytes:
        """One message."""
        head = f"<{DAEMON << 3 | severity(record)}>{self.clock()} {self.name}: "
        return head.encode() + self.line(record)[:-1]


class NetworkMessages:
    """Makes messages of RFC 5424: ``<30>1 2026-01-05T17:05:28.951Z host tabi 4711 - - line``.

    Args:
        line: makes the line in it.
        host: the name of this machine.
    """

    def __init__(self, line: Format, host: str | None = None) -> None:
        host = socket.gethostname() if host is None else host
        self.line = line
        self.name = f"{''.join(letter for letter in host if '!' <= letter <= '~')[:255] or '-'} tabi {os.getpid()} - -"

    def __call__(self, record: Record) -> bytes:
        """One message."""
        head = f"<{DAEMON << 3 | severity(record)}>1 {record.time} {self.name} "
        return head.encode() + self.line(record)[:-1]
