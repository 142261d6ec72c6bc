"""The access log for people: one line a session, coloured on a terminal.

    10:40:29 alice socks5 10.0.0.7 -> example.com:443 direct 200 B/18 kB 18 ms ok

Names that clients choose are quoted where they could be taken for something else, and nothing controls a terminal.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from tabi.errors import printable
from tabi.observe.log_json import quote
from tabi.observe.log_record import AssociationRecord, Record, SniffedRecord
from tabi.observe.terminal import BOLD, CYAN, DIM, GREEN, RED, YELLOW, painted, shown_size, shown_time

WORD = re.compile(r"(?!-$)[!#-~]+")
"""What needs no quotes. A name that is not ASCII has some: it may look like anything."""

COMMON = ("connect", None)
"""Commands that a line does not name."""

ORDERLY = ("client", "server")
"""How sessions end that both sides have ended."""

ON_TERMINAL, IN_FILE = "%H:%M:%S", "%Y-%m-%d %H:%M:%S"
"""The time of a line, where its day is known and where not."""


class LocalTime:
    """The time of day where tabi runs; one text serves all calls within its second."""

    def __init__(self, form: str, now: Callable[[], float] = time.time) -> None:
        self.form = form
        self.now = now
        self.second = -1
        self.text = ""

    def __call__(self) -> str:
        second = int(self.now())
        if second != self.second:
            self.second = second
            self.text = time.strftime(self.form, time.localtime(second))
        return self.text


class TextLines:
    """Makes lines for people.

    Args:
        clock: the time of a line; None where it is noted beside the line.
        colour: for a terminal.
    """

    def __init__(self, clock: Callable[[], str] | None, colour: bool = False) -> None:
        self.clock = clock
        self.colour = colour

    def __call__(self, record: Record) -> bytes:
        """One line of the log, with its end."""
        colour = self.colour
        command = "" if record.command in COMMON else f" {word(record.command)}"
        parts: list[tuple[str, int | None]] = [] if self.clock is None else [(self.clock(), DIM)]
        parts += [
            (user_of(record), None),
            (word(record.protocol) + command, DIM),
            (word(client_of(record)), None),
            ("->", DIM),
            (destination_of(record), BOLD),
            (egress_of(record), CYAN),
        ]
        if record.close is None:
            parts.append(("begins", GREEN))
        else:
            parts.append((f"{shown_size(record.up)}/{shown_size(record.down)}", None))
            if isinstance(record, AssociationRecord):
                parts.append((f"{record.datagrams_up}/{record.datagrams_down} datagrams", None))
            parts.append((shown_time(record.seconds), DIM))
            parts += [(note, YELLOW) for note in notes_of(record)]
            parts.append(result_of(record))
        return f"{' '.join([painted(text, code, colour) for text, code in parts])}\n".encode()


def word(text: str | None) -> str:
    """A text that ends at the next space, in quotes if it does not do so by itself; None is a dash."""
    if text is None:
        return "-"
    return text if WORD.fullmatch(text) else quote(text)


def user_of(record: Record) -> str:
    """The user, and the session that the user name asks for."""
    user, token = word(record.user), record.session_token
    return f"{user}/{word(token)}" if isinstance(token, str) else user


def client_of(record: Record) -> str:
    """The client's address. Its port tells people nothing; of a unix socket it is the user."""
    host, _, port = record.client.rpartition(":")
    return record.client if host == "unix" or not port else host.strip("[]")


def destination_of(record: Record) -> str:
    """Where the client wants to go, and the name that its TLS asks for if that says more."""
    host = record.host
    if host is None:
        return "-"
    text = f"[{host}]" if ":" in host else host
    text = word(text) + (f":{record.port}" if record.port else "")
    sni = record.sni if isinstance(record, SniffedRecord) else None
    return f"{text} ({word(sni)})" if isinstance(sni, str) and sni != host else text


def egress_of(record: Record) -> str:
    """The egress, and the member that its pool has chosen."""
    return word(record.via) if record.member is None else f"{word(record.via)}/{word(record.member)}"


def notes_of(record: Record) -> list[str]:
    """What is special: what was lost, faults that were drawn, what has looked into it."""
    notes = []
    if isinstance(record, AssociationRecord) and record.drops:
        notes.append(f"dropped {', '.join([f'{count} {reason}' for reason, count in record.drops.items()])}")
    faults = getattr(record, "faults", ())
    if faults:
        notes.append(f"faults {', '.join(map(word, faults))}")
    if isinstance(record, SniffedRecord):
        if isinstance(record.intercepted, str):
            notes.append(f"intercepted by {word(record.intercepted)}")
        if record.pinned is True:
            notes.append("pinned")
    return [f"[{note}]" for note in notes]


def result_of(record: Record) -> tuple[str, int]:
    """How it ended: what went wrong, in the words of ``error``, or how it was ended, or that all went well."""
    if record.error is not None:
        return printable(record.error), RED
    if record.close in ORDERLY:
        return "ok", GREEN
    return str(record.close), RED if record.close in ("denied", "error") else YELLOW
