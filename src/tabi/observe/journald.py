"""The access log in the journal of systemd: a line for people as the message, and each key as a field of its own.

The protocol is https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: a datagram for each entry, or a sealed file in memory for
one that is too large for a datagram.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys

from tabi.errors import printable
from tabi.observe.log_outputs import DatagramOutput
from tabi.observe.log_record import Format, Record, pairs
from tabi.observe.syslog import DAEMON, severity

SOCKET = "/run/systemd/journal/socket"
"""Where the journal reads."""

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class JournalEntries:
    """Makes entries of the journal.

    Args:
        line: makes the message.
    """

    def __init__(self, line: Format) -> None:
        self.line = line

    def __call__(self, record: Record) -> bytes:
        """One entry: a field in each line, for no value has a line's end in it."""
        head = f"PRIORITY={severity(record)}\nSYSLOG_FACILITY={DAEMON}\nSYSLOG_IDENTIFIER=tabi\nMESSAGE="
        fields = [f"TABI_{key.upper()}={printable(text)}\n" for key, text in pairs(record)]
        return b"%b%b%b" % (head.encode(), self.line(record), "".join(fields).encode())


class JournalOutput(DatagramOutput):
    """The journal's socket."""

    def send(self, line: bytes) -> None:
        """See `DatagramOutput`."""
        try:
            super().send(line)
        except OSError as exc:
            if exc.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self.send_file(line)

    def send_file(self, entry: bytes) -> None:
        """Send an entry as a file that nobody can change any more."""
        fd = os.memfd_create("tabi-access-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(entry)
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))
            self.sock.sendmsg([], [rights], 0, self.address)
        finally:
            os.close(fd)
