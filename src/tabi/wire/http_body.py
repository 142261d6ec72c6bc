"""The chunked transfer coding of RFC 9112 section 7.1, followed while it passes. No I/O.

    chunk      size in hexadecimal, [;extensions] CRLF, content, CRLF
    the last   a size of 0, [;extensions] CRLF
    trailers   NAME: VALUE CRLF, any number
    the end    CRLF

A proxy forwards the octets of a chunked body unchanged, so it must find the same end as the next reader: what two
readers could understand in two ways is refused. White space behind a size, which some readers refuse though section
7.1.1 has it, does not go on, nor does a semicolon without an extension.
"""

from __future__ import annotations

import re
import sys

from tabi.errors import RemoteProtocolError

MAX_CHUNK_LINE = 256
"""Octets of a line with a chunk's size, its extensions and CRLF. Extensions mean something only between neighbours."""

MAX_TRAILERS = 8192
"""Octets of all lines after the last chunk."""

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
"""RFC 9110 section 5.6.2: methods, names of fields and other words."""

TEXT = rb"[\t -~\x80-\xff]*+"
"""RFC 9110 section 5.5: a line may hold anything but control octets; HTAB is allowed."""

LF = re.compile(rb"\n")
# 60 bits: what is 2**63 or more is negative to some readers. Leading zeros count, for some have room for 16 digits.
SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*+)((?:;" + TEXT + rb")?)\r\n")
TRAILER_LINE = re.compile(rb"(" + TOKEN + rb"):" + TEXT + rb"\r\n")

NOT_IN_TRAILERS = frozenset(
    b"authorization connection content-encoding content-length content-range content-type cookie expect host "
    b"keep-alive max-forwards proxy-authenticate proxy-authorization proxy-connection set-cookie te trailer "
    b"transfer-encoding upgrade".split()
)
"""Fields of framing, routing and authentication, and how content is read: too late there (RFC 9110 section 6.5.1)."""

DIGITS = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "[aA]", "[bB]", "[cC]", "[dD]", "[eE]", "[fF]")
SMALL = "|".join(rf"{digit}\r\n.{{{size}}}\r\n" for size, digit in enumerate(DIGITS, 1))
SMALL_CHUNKS = re.compile(rf"(?s:(?:0{{0,14}}(?:{SMALL}))*)".encode())
"""Whole chunks of 1 to 15 octets, as many as follow each other. One by one they would take thirty times as long."""

SIZE, CONTENT_END, TRAILER = "chunk size", "end of a chunk", "trailers"
LIMITS = {SIZE: MAX_CHUNK_LINE, CONTENT_END: 2}


class Chunked:
    """Follows one chunked body. It keeps at most one line, never content.

    Attributes:
        done: the body has ended; what follows is the next message.
    """

    __slots__ = ("done", "expects", "left", "line", "room")

    def __init__(self) -> None:
        self.done = False
        self.expects = SIZE  # which line comes next
        self.left = 0  # octets of content until then
        self.line = bytearray()  # of that line, what has come
        self.room = MAX_TRAILERS  # octets that trailers may still have

    def scan(
        self,
        data: bytes | bytearray | memoryview,
        payload: list[memoryview] | None = None,
        onward: list[memoryview | bytes] | None = None,
        steps: int = sys.maxsize,
    ) -> int:
        """Read on; returns how many octets of ``data`` were read: fewer than all only when `done`, or after ``steps``.

        Args:
            data: the octets that came after those of the last call.
            payload: gets the content alone, as slices of ``data``, valid as long as its octets stay where they are.
            onward: gets what a proxy sends on, as such slices and as lines. A line goes on when all of it has come.
            steps: chunks and lines at most, of 1 to 3 us each. Small chunks in a row are one, unless there is a
                ``payload``.

        Raises:
            RemoteProtocolError: it is not chunked, or a line is longer than allowed. The caller chooses the answer: 400
                for a request, 502 for a response.
        """
        view, at, size = memoryview(data), 0, len(data)
        unchanged = 0  # where the octets begin that go on as they came
        while at < size and steps > 0 and not self.done:
            steps -= 1
            if self.left:
                end = min(at + self.left, size)
                if payload is not None:
                    payload.append(view[at:end])
                self.left -= end - at
            elif self.line or self.expects is not SIZE or (end := pass_chunks(view, at, payload)) == at:
                end, line = self.scan_line(view, at)
                if onward is not None and line != view[at:end]:
                    onward += (view[unchanged:at], line)
                    unchanged = end
            at = end
        if onward is not None:
            onward.append(view[unchanged:at])
        return at

    def scan_line(self, view: memoryview, at: int) -> tuple[int, bytes]:
        """Read the available part of a line; returns the index after it, and the line that goes on if this ends it."""
        room = LIMITS.get(self.expects, self.room) - len(self.line)
        found = LF.search(view, at, at + room)
        end = found.end() if found else min(at + room, len(view))
        self.line += view[at:end]
        if found:
            line = bytes(self.line)
            self.line.clear()
            return end, self.read_line(line)
        if end == at + room:
            if self.expects is TRAILER:
                raise RemoteProtocolError(f"trailers: more than {MAX_TRAILERS} octets")
            raise RemoteProtocolError(f"{self.expects}: no CRLF within {LIMITS[self.expects]} octets")
        return end, b""

    def read_line(self, line: bytes) -> bytes:
        """Take a whole line, its LF included, as the expected one; returns what goes on of it."""
        if self.expects is SIZE:
            found = SIZE_LINE.fullmatch(line)
            if found is None:
                raise RemoteProtocolError("chunk size: expected 1 to 15 hexadecimal digits and CRLF")
            digits, space, extension = found.groups()
            self.left = int(digits, 16)
            self.expects = CONTENT_END if self.left else TRAILER
            if space or extension:
                line = digits + (b"" if is_empty(extension) else extension) + b"\r\n"
        elif self.expects is CONTENT_END:
            if line != b"\r\n":
                raise RemoteProtocolError("end of a chunk: expected CRLF")
            self.expects = SIZE
        elif line == b"\r\n":
            self.done = True
        else:
            self.room -= len(line)
            found = TRAILER_LINE.fullmatch(line)
            if found is None:
                raise RemoteProtocolError("trailers: a line that is not a field")  # which may hold a secret
            if found[1].lower() in NOT_IN_TRAILERS:
                raise RemoteProtocolError(f"trailers: {found[1].decode()} is only for the head")
        return line


def is_empty(extension: bytes) -> bool:
    """Whether there is nothing behind the semicolon."""
    return not extension.strip(b"; \t")


def pass_chunks(view: memoryview, at: int, payload: list[memoryview] | None) -> int:
    """Pass a chunk that is whole and goes on as it is, or many small ones; returns the index after it, or ``at``."""
    if payload is None:
        small = SMALL_CHUNKS.match(view, at)
        if small is not None and small.end() > at:
            return small.end()
    found = SIZE_LINE.match(view, at, at + MAX_CHUNK_LINE)
    if found is None or found[2] or (found[3] and is_empty(found[3])):
        return at
    start = found.end()
    end = start + int(found[1], 16)
    if end == start or view[end : end + 2].tobytes() != b"\r\n":
        return at
    if payload is not None:
        payload.append(view[start:end])
    return end + 2
