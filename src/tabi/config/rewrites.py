"""Checks of what a ``[[distort]]`` changes in HTTP: fields, and what answers in place of destinations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tabi.config.distort import DistortConfig, FaultConfig, HeadersConfig
from tabi.errors import ConfigError, HttpError
from tabi.wire.http_body import TEXT, TOKEN
from tabi.wire.http_target import URI, decode_target

FIELD_NAME, FIELD_VALUE, WHOLE_URI = re.compile(TOKEN), re.compile(TEXT), re.compile(URI)

OURS = frozenset(
    (
        *("connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    )
)
"""Fields that say where a message goes, where it ends, and what becomes of its connection."""


def rewrite_errors(distort: DistortConfig, path: str) -> Iterator[ConfigError]:
    """What is wrong with what an entry changes in HTTP."""
    for key in ("headers", "response_headers"):
        headers: HeadersConfig | None = getattr(distort, key)
        if headers is not None:
            yield from header_errors(headers, f"{path}.{key}")
    if distort.status is not None and not 200 <= distort.status <= 599:
        yield ConfigError(f"{distort.status}, expected 200 to 599", f"{path}.status")
    if distort.status is not None and isinstance(distort.fault, FaultConfig) and distort.fault.status is not None:
        yield ConfigError("it contradicts fault.status: expected one of both", f"{path}.status")
    if distort.map_local is not None and distort.map_remote is not None:
        yield ConfigError("it contradicts map_local: expected one of both", f"{path}.map_remote")
    if distort.map_local is not None and distort.body is not None:
        yield ConfigError("it contradicts map_local: expected one of both", f"{path}.body")
    if distort.body is not None and distort.status in (204, 304):
        yield ConfigError(f"an answer with status {distort.status} has no content", f"{path}.body")
    if distort.map_remote is not None:
        fault = url_fault(distort.map_remote)
        if fault is not None:
            yield ConfigError(fault, f"{path}.map_remote")


def header_errors(headers: HeadersConfig, path: str) -> Iterator[ConfigError]:
    """What is wrong with changes of fields. No value stands in an error."""
    yield from name_errors(enumerate(headers.remove), f"{path}.remove")
    yield from name_errors(((name, name) for name in headers.set), f"{path}.set")
    yield from name_errors(((name, name) for name in headers.append), f"{path}.append")
    yield from name_errors(enumerate(headers.order), f"{path}.order", ours=True)
    for name, value in headers.set.items():
        yield from value_error(value, f"{path}.set.{name}")
    for name, given in headers.append.items():
        if isinstance(given, str):
            yield from value_error(given, f"{path}.append.{name}")
        else:
            for number, value in enumerate(given):
                yield from value_error(value, f"{path}.append.{name}[{number}]")


def name_errors(names: Iterable[tuple[int | str, str]], path: str, ours: bool = False) -> Iterator[ConfigError]:
    """What is wrong with names of fields, each with its place; ``ours``: those that tabi writes are allowed."""
    seen: set[str] = set()
    for place, name in names:
        key = (
            f"{path}[{place}]" if isinstance(place, int) else f"{path}.{place if place.isprintable() else repr(place)}"
        )
        if name.startswith(":"):
            yield ConfigError(f"{name!r} is no field, but part of the request or the status", key)
        elif not name.isascii() or not FIELD_NAME.fullmatch(name.encode()):
            yield ConfigError(f"{name!r}, expected the name of a field", key)
        elif name.lower() in OURS and not ours:
            yield ConfigError(f"{name} cannot be changed: it says where a message goes, or where it ends", key)
        elif name.lower() in seen:
            yield ConfigError(f"{name}: the same field twice", key)
        seen.add(name.lower())


def value_error(value: str, path: str) -> Iterator[ConfigError]:
    """The reason if a value cannot be sent."""
    try:
        octets = value.encode()
    except UnicodeEncodeError:
        octets = b"\0"
    if not FIELD_VALUE.fullmatch(octets):
        yield ConfigError("expected text without control characters and line ends", path)
    elif value != value.strip(" \t"):
        yield ConfigError("expected text without white space around it", path)


def url_fault(url: str) -> str | None:
    """Why requests cannot be mapped to a URL; None if they can. The URL is not shown: it may hold a password."""
    expected = "expected http://host:port/path or https://host:port/path"
    try:
        octets = url.encode()
        found = WHOLE_URI.fullmatch(octets)
        if found is None or not octets.lower().startswith((b"http://", b"https://")):
            return expected
        destination = decode_target(b"GET", octets, *found.groups())[0]
    except UnicodeEncodeError:
        return expected
    except HttpError as exc:
        return f"{exc}, {expected}"
    if "?" in url or "#" in url:
        return "a query or a fragment, expected a path alone"
    return "port 0, expected one of a server" if destination.port == 0 else None
