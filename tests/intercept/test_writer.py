"""The writer: entries in files, one message for a file that cannot be written, and a thread that holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flows import Rule, make_record
from har_schema import check_har
from processes import wait_for
from tabi.intercept import writer as module
from tabi.intercept.recorder import Order, Recorder
from tabi.intercept.writer import MAX_FILES, ThreadSink, Writer


def order(path: Path, **more: Any) -> Order:
    """An order for a file."""
    return Order(make_record(**more), str(path), False, 1_000_000, False, ())


def ids(path: Path) -> list[str]:
    """The entries of a file, which must be valid."""
    found = json.loads(path.read_bytes())
    check_har(found)
    return [one["_id"] for one in found["log"]["entries"]]


def test_records_become_entries(tmp_path: Path) -> None:
    """In any number of files, of which some are open; one that was moved away begins anew."""
    writer = Writer()
    paths = [tmp_path / f"{number}.har" for number in range(MAX_FILES + 3)]
    for number in range(2):
        for path in paths:
            writer.write(order(path, id=f"n{number}"))
    assert len(writer.files) == MAX_FILES
    assert [ids(path) for path in paths] == [["n0", "n1"]] * len(paths)
    paths[-1].rename(tmp_path / "old")
    writer.write(order(paths[-1], id="n2"))
    assert ids(paths[-1]) == ["n2"]
    writer.close()
    assert not writer.files


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And again when it can be, with how many flows are lost; the others are written."""
    writer = Writer()
    bad, good = tmp_path / "folder" / "bad.har", tmp_path / "good.har"
    for _ in range(3):
        writer.write(order(bad))
        writer.write(order(good))
    assert [message for message in caplog.messages if "lost" in message] == [
        f"{bad}: No such file or directory; flows are lost until it can be written"
    ]
    bad.parent.mkdir()
    writer.write(order(bad))
    assert caplog.messages[-1] == f"{bad}: can be written again, flows lost: 3"
    assert (len(ids(good)), len(ids(bad))) == (3, 1)
    (tmp_path / "link").symlink_to(good)
    writer.write(order(tmp_path / "link"))
    writer.close()
    assert caplog.messages[-1] == f"{tmp_path / 'link'}: flows lost: 1"


def test_a_disk_that_is_almost_full_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Small flows find room and large ones do not: that is said seldom, and in the end how many are lost."""
    now = [100.0]
    writer, path = Writer(clock=lambda: now[0]), tmp_path / "a.har"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        for _ in range(20):
            writer.write(order(path, body=b"x" * 60_000))
            writer.write(order(path))
        assert len(caplog.messages) == 2
        assert caplog.messages[1] == f"{path}: can be written again, flows lost: 1"
        now[0] += 11
        writer.write(order(path))
        assert caplog.messages[2:] == [f"{path}: can be written again, flows lost: 19"]
        writer.write(order(path, body=b"x" * 60_000))
        assert len(caplog.messages) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    assert caplog.messages[4:] == [f"{path}: flows lost: 1"]
    assert len(ids(path)) == 21


def test_an_entry_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too long is written without its content."""
    monkeypatch.setattr(module, "MAX_ENTRY", 10_000)
    writer = Writer()
    writer.write(order(tmp_path / "a.har", body=bytes(20_000)))
    writer.close()
    (entry,) = json.loads((tmp_path / "a.har").read_bytes())["log"]["entries"]
    assert "text" not in entry["response"]["content"]
    assert entry["response"]["content"]["size"] == 20_000
    assert entry["_truncated"]


def test_a_failure_of_ours_ends_no_writer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback."""
    writer = Writer()
    writer.write(order(tmp_path / "a.har", started=1e99))
    writer.write(order(tmp_path / "a.har", id="n1"))
    writer.close()
    assert caplog.records[0].exc_info
    assert ids(tmp_path / "a.har") == ["n1"]


def test_a_thread_writes_what_it_was_given(tmp_path: Path) -> None:
    """All of it is written when it is closed; without orders there is no thread."""
    path = tmp_path / "a.har"
    sink = ThreadSink()
    recorder = Recorder(sink)
    assert sink.thread is None
    for number in range(100):
        recorder.record(make_record(id=f"n{number}"), Rule(har=str(path)))
    sink.close()
    assert ids(path) == [f"n{number}" for number in range(100)]
    assert sink.size == 0
    ThreadSink().close()


def test_a_thread_that_is_held_up_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has no room is lost and counted; what comes after the end, too."""
    go_on = threading.Event()
    monkeypatch.setattr(Writer, "append", lambda *_: go_on.wait(10))
    sink = ThreadSink(bound=50_000)
    for _ in range(20):
        sink.take(order(tmp_path / "a.har", body=bytes(10_000)))
    assert sink.size <= 50_000
    assert 10 < sink.lost < 20
    lost = sink.lost
    go_on.set()
    sink.close()
    sink.take(order(tmp_path / "a.har"))
    sink.close()
    text = "flows lost, since they came faster than they could be written"
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in said] == [f"{text}: {lost}", f"{text}: 1"]


def test_an_embedded_server_waits_for_its_thread(tmp_path: Path) -> None:
    """Without holding up the loop."""
    sink = ThreadSink()
    sink.take(order(tmp_path / "a.har", id="n1"))
    asyncio.run(sink.aclose())
    assert ids(tmp_path / "a.har") == ["n1"]


def test_lines_are_printed_once_somebody_reads(tmp_path: Path) -> None:
    """Without secrets, and without holding up what is written to files; nothing else has to happen meanwhile."""
    path = tmp_path / "a.har"
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(sink, bytes(4096))
    os.set_blocking(sink, True)
    records = ThreadSink(fd=sink)
    one = msgspec.structs.replace(order(path, url="https://u:p@h/"), print=True)
    records.take(one)
    wait_for(lambda: path.exists() and ids(path), "the file")
    data = b""
    while not data.endswith(b"\n"):
        data += os.read(source, 65536)
    assert data.lstrip(b"\0") == b"GET https://***@h/ 200 5 B 24 ms\n"
    records.close()
    os.close(source)
    os.close(sink)
