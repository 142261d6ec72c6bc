"""Messages of the proxy on the standard error of the program."""

from __future__ import annotations

import logging
import queue

import pytest

from tabi.launch.messages import Handler, messages

log = logging.getLogger("tabi")


def test_warnings_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """They begin with tabi:, control no terminal, and are all there at the end; less important ones are left out."""
    with messages("WARNING"):
        log.info("not this")
        log.warning("a\x1b[2J %s", "name")
        log.error("an error")
    assert capsys.readouterr().err == "tabi: a\\x1b[2J name\ntabi: an error\n"


def test_it_leaves_the_logger_as_it_was() -> None:
    """Also if something was raised."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with pytest.raises(KeyError), messages("ERROR"):
        raise KeyError
    assert (root.level, root.handlers) == before


def test_what_waits_has_a_bound() -> None:
    """Nobody reads: the messages beyond are lost, and nothing waits or raises."""
    waiting: queue.Queue[object] = queue.Queue(2)
    handler = Handler(waiting)
    for number in range(5):
        handler.handle(logging.LogRecord("tabi", logging.ERROR, "", 0, "%d", (number,), None))
    assert waiting.qsize() == 2
