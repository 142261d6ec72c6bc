"""The access log as JSON: an object a line."""

from __future__ import annotations

import re

import msgspec

from tabi.observe.log_record import Record

ENCODER = msgspec.json.Encoder()
encode, encode_lines = ENCODER.encode, ENCODER.encode_lines


def json_line(record: Record) -> bytes:
    """One line of the log, with its end."""
    try:
        line = encode_lines([record])  # faster than to add the end to a line
    except UnicodeEncodeError:  # lone surrogates: a user name that is not text, or any name from a program
        for name in record.__struct_fields__:
            value = getattr(record, name)
            if isinstance(value, str):
                setattr(record, name, value.encode("utf-8", "backslashreplace").decode())
        line = encode_lines([record])
    return line if line.isascii() and 0x7F not in line else escape_json(line.decode()).encode()


def quote(text: str) -> str:
    """A text in double quotes, escaped as in the JSON line."""
    try:
        return escape_json(encode(text).decode())
    except UnicodeEncodeError:
        return quote(text.encode("utf-8", "backslashreplace").decode())


UNUSUAL = re.compile(r"[^\n -~]")


def escape_json(text: str) -> str:
    """JSON in which what controls a terminal or a log, or cannot be seen, is escaped; its meaning stays the same."""
    return UNUSUAL.sub(escape_character, text)


def escape_character(found: re.Match[str]) -> str:
    """One character as JSON escapes it, if it cannot be seen."""
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return found[0] if found[0].isprintable() else "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
