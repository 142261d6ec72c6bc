"""The access log as logfmt: ``key=value`` and spaces, in the order of the JSON keys. What is not known is left out."""

from __future__ import annotations

import re

from tabi.observe.log_json import quote
from tabi.observe.log_record import Record, pairs

BARE = re.compile(r"[!#-<>-\[\]-~]+")
"""A value that needs no quotes: visible ASCII but ``"``, ``=`` and ``\\``."""


def logfmt_line(record: Record) -> bytes:
    """One line of the log, with its end. Values are quoted, where they have to be, as JSON does it."""
    cells = [f"{key}={text if BARE.fullmatch(text) else quote(text)}" for key, text in pairs(record)]
    return f"{' '.join(cells)}\n".encode()
