"""The access log: a line for each session when it ends, and, if wanted, one when it begins.

The loop only formats and collects lines; a thread writes them in batches, so that a slow disk or a reader that stopped
reading holds up no session. Lines that cannot be written are lost and counted, and a warning gives their number.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tabi.observe.log_json import json_line
from tabi.observe.log_outputs import Output
from tabi.observe.log_record import Clock, Format, make_record
from tabi.observe.observers import SessionObserver
from tabi.session import Session

log = logging.getLogger("tabi")

LIMIT = 4 << 20
"""Octets that may wait for the writer; more lines are lost."""

DELAY = 0.2
"""Seconds that a line waits for others to be written with."""

PATIENCE = 1.0
"""Seconds that the end of the program waits for a reader that does not read."""


class AccessLog(SessionObserver):
    """Collects lines and has them written.

    Args:
        output: where they go; closed by `close`.
        prefix: of every id, so that those of several workers differ.
        call_later: the loop's; asked once for each batch.
        form: makes each line.
    """

    def __init__(
        self,
        output: Output,
        prefix: str,
        call_later: Callable[[float, Callable[[], None]], object],
        form: Format = json_line,
    ) -> None:
        self.output = output
        self.form = form
        self.prefix = prefix
        self.call_later = call_later
        self.clock = Clock()
        self.lines: list[bytes] = []
        self.size = 0
        self.lost = 0
        self.lost_said = 0
        self.scheduled = False
        self.closed = False
        self.wanted = threading.Event()
        self.idle = threading.Event()
        self.idle.set()
        self.batch: list[bytes] = []
        self.under_way = 0
        self.thread = threading.Thread(target=self.write_batches, name="tabi-access-log", daemon=True)
        self.thread.start()

    def ended(self, session: Session) -> None:
        """See `SessionObserver`."""
        if session.silent is False:
            self.add(session, time.monotonic())

    def add(self, session: Session, now: float, over: bool = True) -> None:
        """Take the line of a session that is over, or has begun."""
        if self.size >= LIMIT:
            self.lost += 1
            return
        record = make_record(session, self.clock(), self.prefix, now)
        if not over:
            record.close = None
        line = self.form(record)
        self.lines.append(line)
        self.size += len(line)
        if not self.scheduled:
            self.scheduled = True
            self.call_later(DELAY, self.flush)

    def flush(self) -> None:
        """Hand the collected lines to the writer, unless it still writes the last batch."""
        self.scheduled = False
        if not self.idle.is_set():
            if self.lines and not self.closed:
                self.scheduled = True
                self.call_later(DELAY, self.flush)
            return
        if self.lost > self.lost_said:
            log.warning("access log: %d lines lost so far", self.lost)
            self.lost_said = self.lost
        if self.lines:
            self.batch, self.lines, self.size = self.lines, [], 0
            self.under_way = len(self.batch)
            self.idle.clear()
            self.wanted.set()

    def write_batches(self) -> None:
        """The writer's thread."""
        failing = False
        while True:
            self.wanted.wait()
            self.wanted.clear()
            batch, self.batch = self.batch, []
            try:
                if batch:
                    written = self.output.write(batch)  # meanwhile the loop counts, too
                    self.lost += len(batch) - written
                    failing = False
            except OSError as exc:
                self.lost += len(batch)
                if not failing:
                    log.error("access log: %s; lines are lost until it can be written again", exc.strerror or exc)
                failing = True
            except Exception:
                self.lost += len(batch)
                log.exception("access log: the writer failed")
            self.idle.set()
            if self.closed and not batch:
                return

    def close(self) -> None:
        """Write what is left and end the thread, each within PATIENCE seconds."""
        self.closed = True
        done = self.idle.wait(PATIENCE)
        if done:
            self.flush()
            done = self.idle.wait(PATIENCE)
        if not done:
            self.lost += self.under_way + len(self.lines)
            self.lines = []
        self.wanted.set()
        if done:
            self.thread.join(PATIENCE)
        if self.lost > self.lost_said:
            log.warning("access log: %d lines lost", self.lost)
        if not self.thread.is_alive():
            self.output.close()


class BeginningsToo(AccessLog):
    """Has a line also when a session begins: its destination is connected, or its association open. How it ended is
    null there."""

    def connected(self, session: Session) -> None:
        """See `SessionObserver`."""
        self.add(session, time.monotonic(), over=False)
