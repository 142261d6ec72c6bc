"""The entries of a HAR file one by one, in bounded memory: tabi's own, and those of browsers and other tools."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tabi.errors import TabiError
from tabi.intercept.har import decode_entry
from tabi.intercept.record import Record

MAX_ENTRY = 64 << 20
"""Octets of an entry."""

MAX_DEPTH = 200
"""Objects and lists in one another."""

CHUNK = 1 << 20

TOKEN = re.compile(rb'([^"\[\]{}]*+)("[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}])', re.DOTALL)
CLOSES = {b"}": b"{", b"]": b"["}

check_json = msgspec.json.Decoder(msgspec.Raw).decode


class HarError(TabiError):
    """This is not a HAR file, or not one that can be read."""


class HarReader:
    """Finds the entries of an open file, and where a new one would have to be written.

    Args:
        fd: the file; it is read by pread(2) and stays the caller's.

    Attributes:
        end: the offset behind the last whole entry, or behind the bracket that opens their list.
        count: entries that were found.
        whole: whether the file ends as it should; after the last entry.
        clean: whether nothing but entries and commas stands in their list.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.buffer = bytearray()
        self.base = 0
        """The offset of the buffer's first octet."""
        self.at = 0
        """The offset of what comes next."""
        self.end = 0
        self.count = 0
        self.whole = False
        self.clean = True
        self.before = b""
        """What stands in front of the last token."""
        self.stack: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        """Each entry as it is written. Raises HarError, also OSError."""
        self.find_list()
        self.start = self.end = self.at
        while (token := self.token()) is not None:
            expected = (b",",) if self.count and token == b"{" else (b"",)
            self.clean = self.clean and token in (b"{", b"]") and self.before.strip(b" \t\r\n") in expected
            if token == b"]" and len(self.stack) == 2:
                break
            if token == b"{" and len(self.stack) == 4:
                entry = self.take_entry(self.at - 1)
                if entry is None:
                    return
                self.end = self.at
                self.count += 1
                yield entry
        while self.stack and self.token() is not None:
            pass
        self.whole = not self.stack and self.rest_is_blank()

    def find_list(self) -> None:
        """Go to the list of entries, ``log.entries``. Raises HarError if there is none."""
        name, in_log = b"", False
        token = self.token()
        if token != b"{":
            raise HarError("not a HAR file, expected a JSON object")
        while (token := self.token()) is not None:
            if token == b"{" and len(self.stack) == 2:
                in_log = name == b'"log"'
            elif token == b"[" and len(self.stack) == 3 and in_log and name == b'"entries"':
                return
            name = token
        raise HarError("not a HAR file, expected log.entries")

    def token(self, start: int | None = None) -> bytes | None:
        """The next string or bracket, None at the end. From ``start`` on octets stay in the buffer."""
        while not (found := TOKEN.match(self.buffer, self.at - self.base)):
            if not self.read_more(self.at if start is None else start):
                return None
        self.at = self.base + found.end()
        self.before, token = found[1], found[2]
        if not self.stack and self.before.strip(b" \t\r\n\xef\xbb\xbf"):
            raise HarError("not a HAR file, expected a JSON object")
        if token in (b"{", b"["):
            self.stack.append(token)
            if len(self.stack) > MAX_DEPTH:
                raise HarError(f"more than {MAX_DEPTH} objects in one another")
        elif token in CLOSES and (not self.stack or self.stack.pop() != CLOSES[token]):
            raise HarError(f"not JSON at octet {self.at - 1}: {token.decode()} closes nothing")
        return token

    def take_entry(self, start: int) -> bytes | None:
        """The entry that begins at ``start``, or None if the file ends in it."""
        if entry := self.take_line(start):
            return entry
        depth = len(self.stack)
        while len(self.stack) >= depth:
            if self.token(start) is None:
                return None
        return bytes(self.buffer[start - self.base : self.at - self.base])

    def take_line(self, start: int) -> bytes | None:
        """The entry if it is one line, as tabi writes it: that is much faster."""
        at = start - self.base
        newline = self.buffer.find(b"\n", at)
        line = bytes(self.buffer[at:newline]) if newline >= 0 else b""
        if not line.endswith(b"},") and not (line.endswith(b"}") and self.buffer[newline + 1 : newline + 2] == b"]"):
            return None
        line = line.removesuffix(b",")
        try:
            check_json(line)
        except (msgspec.DecodeError, RecursionError):
            return None
        self.stack.pop()
        self.at = start + len(line)
        return line

    def read_more(self, start: int) -> bool:
        """Read on, and keep what is behind ``start``. Returns whether there was more."""
        del self.buffer[: start - self.base]
        self.base = start
        if len(self.buffer) > MAX_ENTRY:
            raise HarError(f"an entry of more than {MAX_ENTRY >> 20} MiB at octet {start}")
        data = os.pread(self.fd, max(CHUNK, len(self.buffer)), start + len(self.buffer))
        self.buffer += data
        return bool(data)

    def rest_is_blank(self) -> bool:
        """Whether nothing follows."""
        while True:
            if self.buffer[self.at - self.base :].strip():
                return False
            self.at = self.base + len(self.buffer)
            if not self.read_more(self.at):
                return True


def read_records(fd: int) -> Iterator[Record]:
    """The records of an open HAR file. What follows the last whole entry is left out.

    Raises:
        HarError: it is not a HAR file, or an entry is not JSON.
    """
    reader = HarReader(fd)
    for data in reader:
        yield decode_entry(decode_object(data, reader.count), reader.count)


def decode_object(data: bytes, number: int) -> dict[str, Any]:
    """An entry's members. Raises HarError."""
    try:
        found = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as exc:
        raise HarError(f"entry {number}: not JSON: {exc}") from None
    return found if isinstance(found, dict) else {}
