"""Messages of the proxy on standard error, which it shares with the program.

A thread writes them, so that a terminal that is halted holds up no session.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
from collections.abc import Iterator
from typing import Any

from tabi.server.log_writer import LineFormatter

MOST = 1_000
"""Messages that wait; more are lost."""


class Handler(logging.handlers.QueueHandler):
    """Queues messages, and loses those for which there is no room."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """See `logging.handlers.QueueHandler`."""
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)

    def prepare(self, record: logging.LogRecord) -> Any:
        """The record as it is: it stays in this process."""
        return record


@contextlib.contextmanager
def messages(level: str) -> Iterator[None]:
    """Write messages of this level and above to standard error, as lines that begin with ``tabi:``."""
    waiting: queue.Queue[Any] = queue.Queue(MOST)
    handler, writer = Handler(waiting), logging.StreamHandler()
    writer.setFormatter(LineFormatter("tabi: %(message)s"))
    listener = logging.handlers.QueueListener(waiting, writer)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()
