"""The grammar of HTTP/1 heads: where one ends, and whether it is one. No I/O.

    request     METHOD SP TARGET SP HTTP/1.x CRLF      TARGET: see `wire/http_target.py`
    response    HTTP/1.x SP STATUS SP REASON CRLF      REASON may be missing, also with its space
    then        NAME ":" OWS VALUE OWS CRLF            any number of fields
                CRLF

What two readers of the same octets could understand in two ways is refused: lines that end in LF alone, control
octets, folded lines of a request; those of a response are joined. An error goes to the log, so of the peer's text it
holds only a number or a version.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tabi.errors import HttpError
from tabi.wire.http_body import TEXT, TOKEN
from tabi.wire.http_target import OCTET, TARGET, decode_target

HEAD_LIMIT = 32768
"""Octets of a request's head. Browsers stay under 16 KiB, nginx takes 32 KiB, Apache at most 100 fields of 8 KiB."""

ANSWER_HEAD_LIMIT = 65536
"""Octets of a response's head: policies and cookies make them large, and Squid takes as much."""

FIELDS_LIMIT, ANSWER_FIELDS_LIMIT = 200, 500
EMPTY_LINES = 4
"""Empty lines in front of a request that are ignored: section 2.2 has one, which old clients sent after a POST."""

CheckLine = Callable[[bytes], object]
"""Raises HttpError for a first line that is wrong."""

# Every run of octets is possessive: it is read once, whatever is in it. No group is: Python 3.11.2 takes some wrongly.
REQUEST_LINE = rb"(" + TOKEN + rb") (" + TARGET + rb") HTTP/1\.([0-9])"
STATUS_LINE = rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: (" + TEXT + rb"))?"
FIELD_LINE = rb"\r\n" + TOKEN + rb":" + TEXT
FIELD_LINES = rb"((?:%b){0,%d})\r\n\r\n"
REQUEST_HEAD = re.compile(REQUEST_LINE + FIELD_LINES % (FIELD_LINE, FIELDS_LIMIT))
RESPONSE_HEAD = re.compile(STATUS_LINE + FIELD_LINES % (FIELD_LINE, ANSWER_FIELDS_LIMIT))
REQUEST_LINE_ONLY = re.compile(REQUEST_LINE)
STATUS_LINE_ONLY = re.compile(STATUS_LINE)
FIELD = re.compile(FIELD_LINE + rb"(?=\r\n)")
SPACE_BEFORE_COLON = re.compile(rb"(?<=\n)(" + TOKEN + rb")[ \t]++:")
FOLD = re.compile(rb"(?<![ \t])[ \t]*+\r\n[ \t]++(?=[^ \t\r\n])")
"""Between two lines of one field (RFC 9112 section 5.2). A line of blanks alone is none: it could be taken for the end
of the head."""

LINES = re.compile(rb"(?:[^\x00-\x08\x0a-\x1f\x7f]++|\r\n)*(?:\r\Z)?")
"""The part of a head that has come so far."""

OLD_REQUEST_LINE = re.compile(TOKEN + rb" (?!HTTP/)" + OCTET + rb"++")
"""Of HTTP/0.9, which has no versions and no fields."""

OTHER_VERSION = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")


def find_request(
    data: bytes | bytearray, limit: int, seen: int, check_line: CheckLine
) -> tuple[re.Match[bytes], int] | None:
    """Find a request's head: its match of REQUEST_HEAD and the octets consumed; None while octets are missing.

    Raises:
        HttpError: it is not a request, or too long; as soon as that is certain.
    """
    at = pass_empty_lines(data, "request") if data.startswith(b"\r\n") else 0
    end = data.find(b"\r\n\r\n", max(at, seen - 3) if seen else at, limit) + 4
    if end < 4:
        check_beginning(data, at, limit, seen, check_line)
        return None
    found = REQUEST_HEAD.match(data, at, end)
    if found is None:
        raise wrong_head(bytes(data[at:end]), check_line, FIELDS_LIMIT)
    return found, end


def find_response(
    data: bytes | bytearray, limit: int, seen: int, after_interim: bool = False
) -> tuple[re.Match[bytes], int] | None:
    """Find a response's head: its match of RESPONSE_HEAD and the octets consumed; None while octets are missing.

    ``after_interim`` allows empty lines in front: some servers write one too many behind an interim response.

    Raises:
        HttpError: it is not a response, or too long; as soon as that is certain.
    """
    at = pass_empty_lines(data, "response") if after_interim else 0
    end = data.find(b"\r\n\r\n", max(at, seen - 3) if seen else at, limit) + 4
    if end < 4:
        check_beginning(data, at, limit, seen, check_status_line)
        return None
    found = RESPONSE_HEAD.match(data, at, end)
    if found is None:
        head = mend_response(bytes(data[at:end]))
        found = RESPONSE_HEAD.match(head)
        if found is None:
            raise wrong_head(head, check_status_line, ANSWER_FIELDS_LIMIT)
    return found, end


def pass_empty_lines(data: bytes | bytearray, what: str) -> int:
    """Where a message begins behind empty lines. Raises HttpError if there are more than EMPTY_LINES."""
    at = 0
    while data.startswith(b"\r\n", at):
        at += 2
        if at > 2 * EMPTY_LINES:
            raise HttpError(f"{what}: more than {EMPTY_LINES} empty lines before it")
    return at


def mend_response(head: bytes) -> bytes:
    """A response's head as a proxy is to read it: without white space before colons (RFC 9112 section 5.1), and with
    folded lines joined by SP (section 5.2); but what is behind the status line belongs to no field."""
    head = SPACE_BEFORE_COLON.sub(rb"\1:", head)
    fields = head.index(b"\r\n") + 2
    return head if head[fields] in b" \t" else head[:fields] + FOLD.sub(b" ", head[fields:])


def check_beginning(data: bytes | bytearray, at: int, limit: int, seen: int, check_line: CheckLine) -> None:
    """Raise HttpError if the head at ``data[at]``, whose end has not come, is wrong already.

    The order of the checks is that in which octets come, so that an error is the same however they are cut.
    """
    if data.find(b"\n", seen, limit) >= 0:  # a line has ended; perhaps it is the first
        line_end = data.find(b"\r\n", at, limit)
        if line_end >= 0 and line_end + 2 > seen:
            check_line(bytes(data[at:line_end]))
    start = max(at, seen)
    if start > at and data[start - 1] == 0x0D:
        start -= 1
    check_octets(data, start, min(limit, len(data)))
    if len(data) >= limit:
        what, status = ("first line", 414) if data.find(b"\r\n", at, limit) < 0 else ("head", 431)
        raise HttpError(f"{what}: more than {limit} octets", status)


def wrong_head(head: bytes, check_line: CheckLine, fields_limit: int) -> HttpError:
    """The error in a whole head, without the text of its fields."""
    start = head.index(b"\r\n")
    try:
        check_line(head[:start])
        check_octets(head, start, len(head))
    except HttpError as exc:
        return exc
    for number in range(1, fields_limit + 2):
        found = FIELD.match(head, start)
        if found is None:
            if head[start + 2] in b" \t":
                return HttpError(f"field {number}: white space before its name, or a folded line")
            return HttpError(f"field {number}: expected a name and a colon behind it")
        start = found.end()
    return HttpError(f"head: more than {fields_limit} fields", 431)


def check_octets(data: bytes | bytearray, start: int, end: int) -> None:
    """Raise HttpError if a control octet that has no place in a head stands before ``data[end]``."""
    found = LINES.match(data, start, end)
    if found is not None and found.end() < end:
        raise HttpError(f"head: octet {data[found.end()]:#04x}, expected text and CRLF")


def check_request_line(line: bytes) -> None:
    """Raise HttpError if it is not a request line, or if its target is not one that a proxy is asked for."""
    decode_target(*match_request_line(line).groups()[:-1])


def match_request_line(line: bytes) -> re.Match[bytes]:
    """Match a request line, whatever its target is. Raises HttpError if it is not one."""
    found = REQUEST_LINE_ONLY.fullmatch(line)
    if found is not None:
        return found
    check_octets(line + b"\r\n", 0, len(line) + 2)
    words = line.split(b" ")
    if OLD_REQUEST_LINE.fullmatch(line):
        raise HttpError("request line: HTTP/0.9, expected HTTP/1.0 or HTTP/1.1", 505)
    if len(words) == 3 and OTHER_VERSION.fullmatch(words[2]) and not words[2].startswith(b"HTTP/1."):
        raise HttpError(f"request line: {words[2].decode()}, expected HTTP/1.0 or HTTP/1.1", 505)
    raise HttpError("request line: expected a method, a target and HTTP/1.1 with one space between them")


def check_status_line(line: bytes) -> None:
    """Raise HttpError if it is not a status line."""
    if STATUS_LINE_ONLY.fullmatch(line) is None:
        check_octets(line + b"\r\n", 0, len(line) + 2)
        raise HttpError("status line: expected HTTP/1.1 and a status of three digits")
