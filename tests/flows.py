"""Records for tests."""

from __future__ import annotations

from typing import Any

import msgspec

from tabi.intercept.record import Record

STARTED = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""


class Rule(msgspec.Struct, frozen=True):
    """What a recorder needs of an ``[[intercept]]``."""

    har: str | None = None
    body_limit: int = 1_000_000
    secrets: bool = False
    mask: tuple[str, ...] = ()
    print: bool = False


def make_record(url: str = "https://example.com/a?b=1", body: bytes = b"hello", **more: Any) -> Record:
    """A flow that went well."""
    given: dict[str, Any] = {
        "id": "x-1",
        "started": STARTED,
        "client": "127.0.0.1:5000",
        "url": url,
        "request_fields": [(b"Host", b"example.com"), (b"Accept", b"*/*")],
        "status": 200,
        "reason": "OK",
        "response_version": "HTTP/1.1",
        "response_fields": [(b"Content-Type", b"text/plain"), (b"Content-Length", str(len(body)).encode())],
        "response_body": body,
        "response_size": len(body),
        "address": "192.0.2.1",
        "connection": "7",
        "send": 0.001,
        "wait": 0.02,
        "receive": 0.003,
    }
    return Record(**given | more)
