"""The schema of HAR 1.2 (http://www.softwareishard.com/blog/har-12-spec/), and a check against it.

A schema is a dict of members, ``name?`` for one that may be missing; a list has the schema of its items; else a type or
a function that says whether a value is good. Members that begin with ``_`` are a tool's own.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

Schema = Any

WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def number(value: object) -> bool:
    """A number, which is not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def time(value: object) -> bool:
    """Milliseconds."""
    return number(value) and value >= 0  # type: ignore[operator]


def optional_time(value: object) -> bool:
    """Milliseconds, or -1 for what does not apply."""
    return number(value) and (value == -1 or value >= 0)  # type: ignore[operator]


def size(value: object) -> bool:
    """Octets, or -1 where they are not known."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= -1


def when(value: object) -> bool:
    """A time of ISO 8601."""
    return isinstance(value, str) and bool(WHEN.fullmatch(value)) and bool(datetime.fromisoformat(value))


PAIR = {"name": str, "value": str, "comment?": str}
COOKIE = PAIR | {"path?": str, "domain?": str, "expires?": when, "httpOnly?": bool, "secure?": bool}
PARAMETER = {"name": str, "value?": str, "fileName?": str, "contentType?": str, "comment?": str}
CACHED = {"expires?": when, "lastAccess": when, "eTag": str, "hitCount": int, "comment?": str}
REQUEST = {
    "method": str,
    "url": str,
    "httpVersion": str,
    "cookies": [COOKIE],
    "headers": [PAIR],
    "queryString": [PAIR],
    "postData?": {"mimeType": str, "params?": [PARAMETER], "text?": str, "comment?": str},
    "headersSize": size,
    "bodySize": size,
    "comment?": str,
}
CONTENT = {"size": int, "compression?": int, "mimeType": str, "text?": str, "encoding?": str, "comment?": str}
RESPONSE = {
    "status": int,
    "statusText": str,
    "httpVersion": str,
    "cookies": [COOKIE],
    "headers": [PAIR],
    "content": CONTENT,
    "redirectURL": str,
    "headersSize": size,
    "bodySize": size,
    "comment?": str,
}
TIMINGS = {
    "blocked?": optional_time,
    "dns?": optional_time,
    "connect?": optional_time,
    "send": time,
    "wait": time,
    "receive": time,
    "ssl?": optional_time,
    "comment?": str,
}
ENTRY = {
    "pageref?": str,
    "startedDateTime": when,
    "time": time,
    "request": REQUEST,
    "response": RESPONSE,
    "cache": {"beforeRequest?": CACHED, "afterRequest?": CACHED, "comment?": str},
    "timings": TIMINGS,
    "serverIPAddress?": str,
    "connection?": str,
    "comment?": str,
}
PROGRAM = {"name": str, "version": str, "comment?": str}
PAGE = {
    "startedDateTime": when,
    "id": str,
    "title": str,
    "pageTimings": {"onContentLoad?": optional_time, "onLoad?": optional_time, "comment?": str},
    "comment?": str,
}
LOG = {"version": str, "creator": PROGRAM, "browser?": PROGRAM, "pages?": [PAGE], "entries": [ENTRY], "comment?": str}
HAR = {"log": LOG}


def check(value: Any, schema: Schema, place: str) -> None:
    """Compare a value with a schema. Raises AssertionError, which names the place."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), f"{place}: {value!r}, expected an object"
        names = {name.rstrip("?") for name in schema}
        strange = [name for name in value if name not in names and not name.startswith("_")]
        assert not strange, f"{place}: {strange} are not of the specification"
        for name, inner in schema.items():
            key = name.rstrip("?")
            assert key in value or name.endswith("?"), f"{place}: {key} is missing"
            if key in value:
                check(value[key], inner, f"{place}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), f"{place}: {value!r}, expected a list"
        for index, item in enumerate(value):
            check(item, schema[0], f"{place}[{index}]")
    elif isinstance(schema, type):
        good = isinstance(value, schema) and (schema is bool or not isinstance(value, bool))
        assert good, f"{place}: {value!r}, expected {schema.__name__}"
    else:
        good_value: Callable[[object], bool] = schema
        assert good_value(value), f"{place}: {value!r}, expected a {schema.__name__}"


def check_har(value: Any) -> None:
    """Check a whole HAR: its schema, and what the specification says beside it. Raises AssertionError."""
    check(value, HAR, "har")
    for entry in value["log"]["entries"]:
        timings = entry["timings"]
        parts = [timings.get(name, -1) for name in ("blocked", "dns", "connect", "send", "wait", "receive")]
        assert abs(entry["time"] - sum(part for part in parts if part >= 0)) < 0.01
        assert timings.get("ssl", -1) <= timings.get("connect", -1)
        content = entry["response"]["content"]
        if content.get("encoding") == "base64":
            base64.b64decode(content["text"], validate=True)
