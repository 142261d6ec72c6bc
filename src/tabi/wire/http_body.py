"""The chunked transfer coding of RFC 9112 section 7.1, followed while it passes. No I/O.

    chunk      size in hexadecimal, [;extensions] CRLF, content, CRLF
    the last   a size of 0, [;extensions] CRLF
    trailers   NAME: VALUE CRLF, any number
    the end    CRLF

A proxy forwards the octets of a chunked body unchanged, so it must find the same end as the next reader: what two
readers could understand in two ways is refused.
"""

from __future__ import annotations

import re

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
SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;" + TEXT + rb")?\r\n")
TRAILER_LINE = re.compile(rb"(" + TOKEN + rb"):" + TEXT + rb"\r\n")

NOT_IN_TRAILERS = frozenset(
    b"authorization connection content-encoding content-length content-range content-type cookie expect host "
    b"keep-alive max-forwards proxy-authenticate proxy-authorization proxy-connection set-cookie te trailer "
    b"transfer-encoding upgrade".split()
)
"""Fields of framing, routing and authentication, and how content is read: too late there (RFC 9110 section 6.5.1)."""

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

    def scan(self, data: bytes | bytearray | memoryview, payload: list[memoryview] | None = None) -> int:
        """Read on; returns how many octets of ``data`` belong to the body, fewer than all only when `done`.

        Args:
            data: the octets that came after those of the last call.
            payload: gets the content alone, as slices of ``data``, valid as long as its octets stay where they are.

        Raises:
            RemoteProtocolError: it is not chunked, or a line is longer than allowed. The caller chooses the answer: 400
                for a request, 502 for a response.
        """
        view, at, size = memoryview(data), 0, len(data)
        while at < size and not self.done:
            if self.left:
                end = min(at + self.left, size)
                if payload is not None:
                    payload.append(view[at:end])
                self.left -= end - at
            else:
                end = self.scan_line(view, at)
            at = end
        return at

    def scan_line(self, view: memoryview, at: int) -> int:
        """Read the available part of a line; returns the index after it."""
        room = LIMITS.get(self.expects, self.room) - len(self.line)
        found = LF.search(view, at, at + room)
        end = found.end() if found else min(at + room, len(view))
        self.line += view[at:end]
        if found:
            line = bytes(self.line)
            self.line.clear()
            self.read_line(line)
        elif end == at + room:
            if self.expects is TRAILER:
                raise RemoteProtocolError(f"trailers: more than {MAX_TRAILERS} octets")
            raise RemoteProtocolError(f"{self.expects}: no CRLF within {LIMITS[self.expects]} octets")
        return end

    def read_line(self, line: bytes) -> None:
        """Take a whole line, its LF included, as the expected one."""
        if self.expects is SIZE:
            found = SIZE_LINE.fullmatch(line)
            if found is None:
                raise RemoteProtocolError("chunk size: expected 1 to 15 hexadecimal digits and CRLF")
            self.left = int(found[1], 16)
            self.expects = CONTENT_END if self.left else TRAILER
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
