"""`tabi flows`."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tabi.cli.help import Command
from tabi.errors import ConfigError, TabiError, printable
from tabi.intercept.curl import as_curl
from tabi.intercept.filters import parse_filter
from tabi.intercept.har import decode_entry, encode_body, rfc3339, text_of
from tabi.intercept.har_reader import HarError, HarReader, decode_object
from tabi.intercept.printing import BY_CLASS, cut
from tabi.intercept.record import Fields, Record, first_value
from tabi.observe.log_json import escape_json
from tabi.observe.terminal import BOLD, DIM, RED, painted, shown_size, shown_time, wants_colour

HEADINGS = ("#", "method", "status", "size", "time", "type", "URL")
WIDTHS = (4, 7, 6, 8, 8, 18)
"""Columns of the list, but for the last one."""


@click.command(cls=Command)
@click.argument("file", metavar="FILE.har", type=click.Path(path_type=Path), help="The file.")
@click.argument("filter", metavar="[FILTER]", nargs=-1, help="Which flows; several arguments are one filter.")
@click.option("--show", metavar="N", type=click.IntRange(1), help="Show flow N: heads, bodies, messages.")
@click.option("--curl", metavar="N", type=click.IntRange(1), help="Print the request of flow N as a curl command.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of what was found, or the whole flow.")
def flows(file: Path, filter: tuple[str, ...], show: int | None, curl: int | None, as_json: bool) -> int:
    """List the flows of a HAR file, of tabi's or of another tool's.

    \b
    FILTER is made of:
      host:example.com     the host, or one below it; host:*.example.com
      status:404           also 4xx, 200-299, >=400
      method:POST
      url:/api/            what stands in the URL
      body:text            what stands in a body or a WebSocket message
      type:json            what stands in Content-Type
      tag:NAME             a tag that a hook gave
      error, error:text    flows that failed
      ws                   WebSockets
      and, or, not, ( )    between them; nothing means and

    Examples:

    \b
    tabi flows out.har 'host:example.com and (status:>=400 or error)'
    tabi flows out.har --show 3
    tabi flows out.har --curl 3
    """
    if show is not None and curl is not None:
        raise ConfigError("give only one of --show and --curl", "--curl")
    test = parse_filter(" ".join(filter))
    found = ((number, entry, record) for number, entry, record in read(file) if test(record))
    wanted = show if show is not None else curl
    if wanted is not None:
        entry, record = pick(found, wanted, "--show" if show is not None else "--curl")
        if curl is not None:
            print(as_curl(record))
        elif as_json:
            print(escape_json(json.dumps(entry, indent=1, ensure_ascii=False)))
        else:
            print_lines(lines_of(record, wanted, wants_colour(1)))
    elif as_json:
        print_json(summary(number, record) for number, _, record in found)
    else:
        first = list(itertools.islice(found, 1))  # before the table's head: an error comes alone
        print_lines(table((number, record) for number, _, record in itertools.chain(first, found)))
    return 0


def read(path: Path) -> Iterator[tuple[int, dict[str, Any], Record]]:
    """The flows of a file, each with its number and its entry. Raises TabiError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise TabiError(f"{path}: {(exc.strerror or str(exc)).lower()}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise HarError("not a file")
        reader = HarReader(fd)
        for data in reader:
            try:
                entry = decode_object(data, reader.count)
            except HarError as exc:
                warn(f"{path}: {exc}; it is left out")
                continue
            yield reader.count, entry, decode_entry(entry, reader.count)
        if not reader.whole:
            warn(f"{path}: does not end as it should, read up to its last whole entry")
    except HarError as exc:
        raise TabiError(f"{path}: {exc}") from None
    finally:
        os.close(fd)


def warn(text: str) -> None:
    """Say something about the file in a line of its own."""
    print(printable(f"tabi: {text}"), file=sys.stderr)


def pick(
    found: Iterable[tuple[int, dict[str, Any], Record]], wanted: int, option: str
) -> tuple[dict[str, Any], Record]:
    """The flow of a number. Raises ConfigError if there is none."""
    last = 0
    for number, entry, record in found:
        if number == wanted:
            return entry, record
        last = number
    text = f"the last one is {last}" if last else "nothing was found"
    raise ConfigError(f"there is no flow {wanted}: {text}", option)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, each as soon as it is there if somebody looks."""
    for line in lines:
        sys.stdout.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


# --- the list ---


def table(found: Iterable[tuple[int, Record]]) -> Iterator[str]:
    """The list: one line for each flow, which fits a terminal."""
    colour = wants_colour(1)
    width = shutil.get_terminal_size().columns if os.isatty(1) else None
    room = None if width is None else max(20, width - sum(WIDTHS) - len(WIDTHS))
    yield painted(row(HEADINGS[:-1]) + HEADINGS[-1], BOLD, colour)
    for number, record in found:
        mime = text_of(first_value(record.response_fields, b"content-type") or b"").partition(";")[0].strip()
        status = str(record.status) if record.status else "-"
        size = shown_size(record.response_size) if record.status else "-"
        cells = (str(number), record.method, status, size, shown_time(record.seconds), mime)
        text = row(cells)
        rest = printable(record.url if room is None else cut(printable(record.url), room))
        code = RED if record.error is not None else BY_CLASS.get(record.status // 100)
        notes = [f"WebSocket: {len(record.messages)} messages"] if record.messages else []
        notes += [printable(f"[{', '.join(record.tags)}]")] if record.tags else []
        notes += [] if record.error is None else [printable(record.error)]
        yield painted(text, code, colour) + " ".join([rest, *notes])


def row(cells: Iterable[str]) -> str:
    """Cells in their columns; numbers are on the right."""
    parts = []
    for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True)):
        text = cut(printable(cell), width)
        parts.append(text.rjust(width) if index in (0, 3, 4) else text.ljust(width))
    return " ".join(parts) + " "


def summary(number: int, record: Record) -> dict[str, Any]:
    """What is printed of a flow as JSON."""
    return {
        "number": number,
        "started": rfc3339(record.started),
        "method": record.method,
        "url": record.url,
        "status": record.status or None,
        "size": record.response_size,
        "ms": round(record.seconds * 1000, 3),
        "type": text_of(first_value(record.response_fields, b"content-type") or b"") or None,
        "error": record.error,
        "tags": record.tags,
        "messages": len(record.messages),
    }


def print_json(found: Iterable[dict[str, Any]]) -> None:
    """Print a list, one flow a line."""
    before = "["
    for one in found:
        print(before)
        print(escape_json(json.dumps(one, ensure_ascii=False)), end="")
        before = ","
    print("[]" if before == "[" else "\n]")


# --- one flow ---


def lines_of(record: Record, number: int, colour: bool) -> Iterator[str]:
    """One flow, for people."""
    yield painted(printable(f"flow {number}: {record.method} {record.url}"), BOLD, colour)
    rows = [
        ("started", rfc3339(record.started)),
        ("client", record.client),
        ("user", record.user),
        ("listener", record.listener),
        ("rule", record.rule),
        ("server", record.address),
        ("via", record.via),
        ("TLS", " ".join(filter(None, (record.sni, record.ja4)))),
        ("shown", record.fingerprint),
        ("but not", record.fingerprint_differs),
        ("sent", " ".join(filter(None, (record.sent_ja4, record.sent_ja3)))),
        ("HTTP/2", record.sent_http2),
        ("time", times_of(record)),
        ("tags", ", ".join(record.tags)),
    ]
    for title, text in rows:
        if text:
            yield f"{painted(f'{title:9}', DIM, colour)} {printable(text)}"
    if record.error is not None:
        yield f"{painted('error    ', DIM, colour)} {painted(printable(record.error), RED, colour)}"
    yield ""
    yield painted(printable(f"{record.method} {record.url} {record.version}"), BOLD, colour)
    yield from content_of(record.request_fields, record.request_body, record.request_size, record.request_truncated)
    yield ""
    if record.status:
        start = f"{record.response_version} {record.status} {record.reason}".rstrip()
        yield painted(printable(start), BY_CLASS.get(record.status // 100), colour)
        yield from content_of(record.response_fields, record.response_body, record.response_size, record.truncated)
    else:
        yield "no answer"
    for message in record.messages:
        sender = "client" if message.type == "send" else "server"
        when = datetime.fromtimestamp(message.time, UTC).strftime("%H:%M:%S.%f")[:-3]
        kind = "text" if message.opcode == 1 else "binary"
        yield ""
        yield painted(f"{sender}, {when}, {kind} of {shown_size(len(message.data))}", BOLD, colour)
        yield from body_lines(message.data, "" if message.opcode == 1 else "application/octet-stream", False)


def times_of(record: Record) -> str:
    """The time of a flow and its parts."""
    names = ("dns", "connect", "tls", "send", "wait", "receive")
    parts = [f"{name} {value * 1000:.1f}" for name in names if (value := getattr(record, name)) is not None]
    return shown_time(record.seconds) + (f" ({', '.join(parts)} ms)" if parts else "")


def content_of(fields: Fields, body: bytes, size: int, truncated: bool) -> Iterator[str]:
    """Fields and body of a message."""
    for name, value in fields:
        yield printable(f"{text_of(name)}: {text_of(value)}")
    if body:
        yield ""
        yield from body_lines(body, text_of(first_value(fields, b"content-type") or b""), truncated)
    elif size:
        yield ""
        yield f"({shown_size(size)}, not recorded)"


def body_lines(data: bytes, mime_type: str, truncated: bool) -> Iterator[str]:
    """A body: JSON in lines, text as it is, of octets only how many."""
    text, is_base64 = encode_body(data, mime_type, truncated)
    if is_base64:
        yield f"({shown_size(len(data))} that are not text)"
        return
    if text[:1] in ("{", "["):
        try:
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass  # not JSON, or cut
    for line in text.removesuffix("\n").split("\n"):
        yield printable(line.removesuffix("\r"), "\t")
    if truncated:
        yield "(not all of it was recorded)"
