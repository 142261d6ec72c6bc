"""Messages of syslog, in the form of syslog(3) and in that of RFC 5424."""

from __future__ import annotations

import os
import re

import pytest

from log_sessions import HOSTILE, make_session, record_of
from tabi.observe.log_json import json_line
from tabi.observe.log_text import LocalTime, TextLines
from tabi.observe.syslog import LocalMessages, NetworkMessages

FORM = re.compile(rb"<(\d+)>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ([!-~]{1,255}) tabi (\d+) - - ([^\x00-\x1f\x7f]+)")
"""RFC 5424 section 6, with an app-name and a process, without a message id and structured data."""


def test_a_message_of_this_machine() -> None:
    """Facility daemon, info; the line as it is, without its end."""
    record = record_of(make_session())
    messages = LocalMessages(json_line, LocalTime("%b %e %H:%M:%S", lambda: 0.0))
    head, _, line = messages(record).partition(b": ")
    assert re.fullmatch(rb"<30>(Jan  1|Dec 31) \d\d:\d\d:00 tabi\[%d\]" % os.getpid(), head)
    assert line + b"\n" == json_line(record)
    assert LocalMessages(json_line)(record).endswith(line)


def test_a_message_over_the_network() -> None:
    """The time is that of the line, in UTC with milliseconds."""
    record = record_of(make_session())
    message = NetworkMessages(json_line, "gate")(record)
    assert message == b"<30>1 2026-01-02T03:04:05.678Z gate tabi %d - - %b" % (os.getpid(), json_line(record)[:-1])
    assert FORM.fullmatch(message)


@pytest.mark.parametrize(("name", "shown"), [("", b"-"), ("a b\n\x1b\xe9c", b"abc"), ("x" * 300, b"x" * 255)])
def test_the_name_of_this_machine(name: str, shown: bytes) -> None:
    """Visible ASCII, or nothing."""
    found = FORM.fullmatch(NetworkMessages(json_line, name)(record_of(make_session())))
    assert found is not None
    assert found[2] == shown


def test_the_name_that_the_system_has() -> None:
    """There is one, or a dash."""
    assert FORM.fullmatch(NetworkMessages(TextLines(None))(record_of(make_session())))


def test_what_went_wrong_is_a_notice() -> None:
    """Whoever wants only that has a severity for it."""
    session = make_session()
    session.error = "rule no-mail: deny"
    for messages in (LocalMessages(json_line), NetworkMessages(json_line)):
        assert messages(record_of(session)).startswith(b"<29>")


def test_no_name_makes_another_message() -> None:
    """Ends of lines and what controls a terminal are escaped in every format of the line."""
    session = make_session()
    session.user = "".join(HOSTILE)
    for line in (json_line, TextLines(None)):
        for messages in (LocalMessages(line), NetworkMessages(line)):
            assert messages(record_of(session)).decode().isprintable()
