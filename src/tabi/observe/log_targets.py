"""Composes the access log of a configuration: where its lines go, and what makes them."""

from __future__ import annotations

import errno
import os
import socket
import sys

from tabi.config.schema import Log
from tabi.observe import journald, syslog
from tabi.observe.log_json import json_line
from tabi.observe.log_outputs import FLAGS, DatagramOutput, DescriptorOutput, FileOutput, Output, check_socket
from tabi.observe.log_record import Format
from tabi.observe.log_text import IN_FILE, ON_TERMINAL, LocalTime, TextLines
from tabi.observe.logfmt import logfmt_line
from tabi.observe.terminal import wants_colour
from tabi.url import parse_syslog_url


def open_log(settings: Log) -> tuple[Output, Format]:
    """Where lines go, and what makes them. Raises OSError where a file or a socket cannot be opened."""
    target, form = settings.access, settings.format
    if target == "journald":
        entries = journald.JournalEntries(line_format(form, "text"))
        return journald.JournalOutput(socket.AF_UNIX, journald.SOCKET), entries
    if target == "syslog":
        return DatagramOutput(socket.AF_UNIX, syslog.SOCKET), syslog.LocalMessages(line_format(form, "json"))
    if target.startswith("syslog:"):
        host, port = parse_syslog_url(target)
        family, _, _, _, address = socket.getaddrinfo(str(host), port, type=socket.SOCK_DGRAM)[0]
        return DatagramOutput(family, address), syslog.NetworkMessages(line_format(form, "json"))
    output = open_stream(target)
    terminal = os.isatty(output.fd)
    when = LocalTime(ON_TERMINAL if terminal else IN_FILE)
    return output, line_format(form, "text" if terminal else "json", when, wants_colour(output.fd))


def line_format(form: str, auto: str, when: LocalTime | None = None, colour: bool = False) -> Format:
    """What makes a line.

    Args:
        form: of ``log.format``.
        auto: what ``auto`` is there.
        when: the time in lines for people.
        colour: whether these are coloured.
    """
    form = auto if form == "auto" else form
    formats: dict[str, Format] = {"json": json_line, "logfmt": logfmt_line, "text": TextLines(when, colour)}
    return formats[form]


def open_stream(target: str) -> DescriptorOutput | FileOutput:
    """``stdout``, ``stderr`` or a path. Raises OSError where a file cannot be opened."""
    if target == "stdout":
        return DescriptorOutput(sys.__stdout__.fileno() if sys.__stdout__ else 1)
    if target == "stderr":
        return DescriptorOutput(sys.__stderr__.fileno() if sys.__stderr__ else 2)
    return FileOutput(target)


def check_log(settings: Log) -> None:
    """Check whether `open_log` could open it, without creating a file or resolving a name. Raises OSError."""
    target = settings.access
    if target in ("syslog", "journald"):
        check_socket(syslog.SOCKET if target == "syslog" else journald.SOCKET)
    elif target not in ("stdout", "stderr", "none") and not target.startswith("syslog:"):
        check_file(target)


def check_file(path: str) -> None:
    """Check whether a file can be appended to. Raises OSError."""
    if os.path.exists(path):
        os.close(os.open(path, FLAGS & ~os.O_CREAT))
        return
    folder = os.path.dirname(path) or "."
    if not os.access(folder, os.W_OK | os.X_OK):
        os.stat(folder)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
