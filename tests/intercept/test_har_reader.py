"""Reading HAR files: every tool's layout, in bounded memory, and what is torn up to its last whole entry."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import make_record
from tabi.intercept import har_reader
from tabi.intercept.har import make_entry
from tabi.intercept.har_reader import HarError, HarReader, read_records


def memory_of(data: bytes) -> int:
    """A file in memory."""
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def read(data: bytes) -> tuple[list[Any], HarReader]:
    """The entries, and the reader at its end."""
    fd = memory_of(data)
    try:
        reader = HarReader(fd)
        return [json.loads(entry) for entry in reader], reader
    finally:
        os.close(fd)


def log_of(entries: list[Any], **more: Any) -> dict[str, Any]:
    """A HAR whose list of entries has neighbours."""
    pages = [{"id": "p", "entries": [{"a": 1}], "log": {"entries": [2]}}]
    return {"log": {"version": "1.2", "creator": {"name": "x"}, "pages": pages, "entries": entries, **more}}


ENTRIES: list[Any] = [{"a": [1, {"b": '}]\\"'}]}, {}, {"é": '"entries":[', "n": None}]


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(log_of(ENTRIES)).encode(),
        json.dumps(log_of(ENTRIES), ensure_ascii=False, separators=(",", ":")).encode() + b"\n",
        json.dumps(log_of(ENTRIES), indent=2).encode() + b"\r\n\r\n",
        json.dumps(log_of(ENTRIES, comment="after"), indent="\t").encode(),
        b"\xef\xbb\xbf" + json.dumps(log_of(ENTRIES)).encode(),
        b'{"log":{"entries":[\n' + b",\n".join(json.dumps(one).encode() for one in ENTRIES) + b"\n]}}\n",
    ],
)
def test_every_layout_is_read(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one line, indented, with a byte order mark, an entry a line; in chunks of any size."""
    for chunk in (1, 2, 7, 1 << 20):
        monkeypatch.setattr(har_reader, "CHUNK", chunk)
        entries, reader = read(data)
        assert entries == ENTRIES
        assert reader.whole
        assert data[: reader.end].rstrip().endswith(b"}")
        assert data[reader.end :].strip().startswith(b"]")


def test_what_is_torn_is_read_up_to_its_last_whole_entry() -> None:
    """A file cut anywhere gives entries that were whole, and where they end."""
    data = b'{"log":{"entries":[\n' + b",\n".join(json.dumps(one).encode() for one in ENTRIES) + b"\n]}}\n"
    for cut in range(data.index(b"[") + 1, len(data)):
        entries, reader = read(data[:cut])
        assert entries == ENTRIES[: len(entries)]
        assert reader.whole == (cut >= len(data) - 1)
        assert json.loads(data[: reader.end] + b"]}}")["log"]["entries"] == entries
    assert len(entries) == len(ENTRIES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a JSON object"),
        (b"hello", "expected a JSON object"),
        (b"[]", "expected a JSON object"),
        (b'"{"', "expected a JSON object"),
        (b"x{}", "expected a JSON object"),
        (b"{}", "expected log.entries"),
        (b'{"entries":[]}', "expected log.entries"),
        (b'{"log":{"pages":[]}}', "expected log.entries"),
        (b'{"log":[{"entries":[]}]}', "expected log.entries"),
        (b'{"log":{"entries":[}]}}', "closes nothing"),
        (b'{"log":{"entries":[{"a":' + b"[" * 300, "in one another"),
    ],
)
def test_what_is_not_a_har_is_said_to_be_none(data: bytes, message: str) -> None:
    """One line says what was expected."""
    with pytest.raises(HarError, match=message):
        read(data)


def test_entries_that_are_not_json_are_named() -> None:
    """By their number."""
    fd = memory_of(b'{"log":{"entries":[{}, {"a":nope}]}}')
    with pytest.raises(HarError, match="entry 2: not JSON"):
        list(read_records(fd))
    os.close(fd)


def test_memory_is_bounded_by_the_largest_entry(tmp_path: Path) -> None:
    """Not by the file, however its lines are."""
    entry = json.dumps(make_entry(make_record(body=b"x" * 10_000)))
    for between in (",\n", ","):
        path = tmp_path / "a.har"
        path.write_text('{"log":{"entries":[\n' + between.join([entry] * 2_000) + "\n]}}\n")
        fd = os.open(path, os.O_RDONLY)
        tracemalloc.start()
        assert sum(1 for _ in HarReader(fd)) == 2_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()
        os.close(fd)


def test_an_entry_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never ends is an error, not memory."""
    monkeypatch.setattr(har_reader, "MAX_ENTRY", 100_000)
    monkeypatch.setattr(har_reader, "CHUNK", 1000)
    with pytest.raises(HarError, match="an entry of more than"):
        read(b'{"log":{"entries":[{"a":"' + b"x" * 1_000_000)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=4), st.sampled_from([None, 1]))
def test_any_entries_are_found(entries: list[Any], indent: int | None) -> None:
    """Whatever stands in their strings."""
    assert read(json.dumps(log_of(entries), indent=indent).encode())[0] == entries


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_any_octets_are_read_or_refused(one: bytes, two: bytes) -> None:
    """Nothing else is raised."""
    for data in (one, b'{"log":{"entries":[' + one, b'{"log":{"entries":[{"a":"b"},' + one + b"{}" + two):
        fd = memory_of(data)
        try:
            list(read_records(fd))
        except HarError:
            pass
        finally:
            os.close(fd)
