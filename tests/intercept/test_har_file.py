"""HAR files that grow: valid after each entry, never through a link, mended after a crash, whole on a full disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import make_record
from har_schema import check_har
from processes import PATIENCE, environment
from tabi.intercept import har_file
from tabi.intercept.har import encode_entry
from tabi.intercept.har_file import HEADER, TRAILER, HarFile, check_file
from tabi.intercept.har_reader import HarError
from tabi.intercept.masking import prepare


def entry(number: int, size: int = 10) -> bytes:
    """One entry, with a number."""
    return encode_entry(prepare(make_record(id=f"n{number}", body=b"x" * size), 1 << 30))


def ids(path: Path) -> list[str]:
    """The entries of a file, which must be valid."""
    found = json.loads(path.read_bytes())
    check_har(found)
    return [one.get("_id", "?") for one in found["log"]["entries"]]


def append(path: Path, *entries: bytes) -> None:
    """Open, append, close."""
    file = HarFile(str(path))
    try:
        for one in entries:
            file.append(one)
    finally:
        file.close()


def test_the_file_is_valid_after_each_entry(tmp_path: Path) -> None:
    """And before the first one; it is for its owner alone, and goes on where another program stopped."""
    path = tmp_path / "a.har"
    file = HarFile(str(path))
    assert ids(path) == []
    assert path.stat().st_mode & 0o777 == 0o600
    for number in range(3):
        file.append(entry(number))
        assert ids(path) == [f"n{one}" for one in range(number + 1)]
    file.close()
    append(path, entry(3))
    assert ids(path) == ["n0", "n1", "n2", "n3"]
    assert path.read_bytes().count(b"\n") == 6


def test_an_entry_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over what closes the file, whatever its length."""
    calls: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        return real(fd, data, offset)

    file = HarFile(str(tmp_path / "a.har"))
    monkeypatch.setattr(os, "pwrite", pwrite)
    file.append(entry(1))
    file.append(entry(2))
    file.close()
    assert calls == [len(HEADER), len(HEADER) + 1 + len(entry(1))]


def test_several_write_to_one_file(tmp_path: Path) -> None:
    """Two processes, or two files of one: none overwrites what another has appended."""
    path = tmp_path / "a.har"
    files = [HarFile(str(path)) for _ in range(4)]

    def work(index: int) -> None:
        for number in range(25):
            files[index].append(entry(index * 100 + number, 5000))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for file in files:
        file.close()
    assert sorted(ids(path)) == sorted(f"n{index * 100 + number}" for index in range(4) for number in range(25))


def refused(path: Path) -> str:
    """Why a file is not written to; it is as it was before."""
    with pytest.raises(HarError) as caught:
        HarFile(str(path))
    return str(caught.value)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Symbolic or hard, nor to what is not a file, or somebody else's."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    link, hard, pipe = tmp_path / "link", tmp_path / "hard", tmp_path / "pipe"
    link.symlink_to(target)
    assert "symbolic link" in refused(link)
    link.unlink()
    link.symlink_to(tmp_path / "missing")
    assert "symbolic link" in refused(link)
    assert not (tmp_path / "missing").exists()
    os.link(target, hard)
    assert "2 names" in refused(hard)
    os.mkfifo(pipe)
    assert "not a regular file" in refused(pipe)
    assert "not a regular file" in refused(tmp_path)
    assert "not a regular file" in refused(Path("/dev/null"))
    assert target.read_bytes() == b""


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who put it there could read it."""
    path = tmp_path / "a.har"
    path.touch()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert "belongs to user" in refused(path)


def test_a_file_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    """It gets what is private."""
    path = tmp_path / "a.har"
    path.touch(0o644)
    append(path, entry(1))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"hello", b"[]", b'{"a":1}', b'{"log":{"entries":[{"a":nope}]}}', b" " * 5000 + b"x"])
def test_what_is_not_a_har_stays_as_it_is(tmp_path: Path, data: bytes) -> None:
    """It is somebody's file."""
    path = tmp_path / "a.har"
    path.write_bytes(data)
    assert "HAR" in refused(path)
    path.write_bytes(b'{"log":{"entries":[]}} and more')
    assert "follows" in refused(path)


def test_a_check_changes_nothing(tmp_path: Path) -> None:
    """It finds what is not a HAR file, or not ours to write to."""
    path = tmp_path / "a.har"
    with pytest.raises(FileNotFoundError):
        check_file(str(path))
    for data in (b"", b"\xef\xbb\xbf {", HEADER[:10]):
        path.write_bytes(data)
        path.chmod(0o644)
        check_file(str(path))
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, 0o644)
    path.write_bytes(b"hello")
    with pytest.raises(HarError, match="not a HAR file"):
        check_file(str(path))
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(HarError, match="symbolic link"):
        check_file(str(tmp_path / "link"))


def test_files_of_other_tools_are_continued(tmp_path: Path) -> None:
    """However they are laid out, and whatever follows their entries."""
    path = tmp_path / "a.har"
    creator = {"name": "WebInspector", "version": "537"}
    for entries in ([], [json.loads(entry(0))]):
        for indent in (None, 2):
            for last in ({}, {"comment": "kept"}):
                har: Any = {"log": {"version": "1.2", "creator": creator, "pages": [], "entries": entries, **last}}
                path.write_text(json.dumps(har, indent=indent))
                append(path, entry(1))
                append(path, entry(2))
                assert ids(path) == ["n0"] * len(entries) + ["n1", "n2"]
                assert json.loads(path.read_bytes())["log"].get("comment") == last.get("comment")


def test_an_empty_or_torn_beginning_is_a_new_file(tmp_path: Path) -> None:
    """As a crash in the first write leaves it."""
    path = tmp_path / "a.har"
    for data in (b"", b"\n", HEADER[:1], HEADER[:20], HEADER[:-1], HEADER, HEADER + b"\n]"):
        path.write_bytes(data)
        append(path, entry(1))
        assert ids(path) == ["n1"]


def test_a_file_torn_anywhere_is_cut_back_to_its_last_whole_entry(tmp_path: Path) -> None:
    """By a crash in the middle of a write, or before what closed the file was cut off."""
    path = tmp_path / "a.har"
    append(path, entry(1), entry(2))
    good = path.read_bytes()
    start = len(good) - len(TRAILER)
    data = good[:start] + b",\n" + entry(3, 300) + TRAILER
    for cut in range(start, len(data)):
        path.write_bytes(data[:cut])
        append(path, entry(4))
        assert ids(path) == ["n1", "n2", *["n3"] * (data[:cut].count(b"}\n]") or cut >= len(data) - 5), "n4"]
    for rest in (b"\0" * 5000, TRAILER + entry(3)[40:], b",\n", b',\n{"a"', b"\n]}}"):
        path.write_bytes(good[:start] + rest)
        append(path, entry(4))
        assert ids(path) == ["n1", "n2", "n4"]


def test_a_torn_file_of_another_tool_is_cut_back_too(tmp_path: Path) -> None:
    """To its last whole entry."""
    path = tmp_path / "a.har"
    head = b'{"log": {"version": "1.2", "creator": {"name": "x", "version": "1"}, "entries": [\n '
    for torn, before in ((b"", []), (b'{"a', []), (entry(0) + b", ", ["n0"]), (entry(0) + b', {"a": [', ["n0"])):
        path.write_bytes(head + torn)
        append(path, entry(1))
        assert ids(path) == [*before, "n1"]


def test_the_end_of_a_long_file_is_found_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a hole of 10 GB in its middle is opened at once, whole or torn."""
    path = tmp_path / "a.har"
    append(path, entry(1), entry(2))
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(10 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b",\n" + data[-2000:])
    monkeypatch.setattr(har_file, "HarReader", None)
    append(path, entry(3))
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.truncate()
    append(path, entry(4))
    with path.open("rb") as file:
        file.seek(-len(entry(3) + entry(4)) - 20, os.SEEK_END)
        assert file.read().endswith(entry(3) + b",\n" + entry(4) + TRAILER)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A file system of 64 KiB would need root; a limit of the file's size writes as short."""
    path = tmp_path / "a.har"
    file = HarFile(str(path))
    file.append(entry(1))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                file.append(entry(2, 10_000))
            assert path.read_bytes() == before
        file.append(entry(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.append(entry(4, 10_000))
    file.close()
    assert ids(path) == ["n1", "n3", "n4"]


def test_a_disk_that_takes_nothing_back_is_mended_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If not even the end can be restored, the next entry finds what is whole."""
    path = tmp_path / "a.har"
    file = HarFile(str(path))
    file.append(entry(1))
    real = os.pwrite
    left = [100]

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "full")
        count = real(fd, data[: left[0]], offset)
        left[0] -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="full"):
            file.append(entry(2))
    with pytest.raises(json.JSONDecodeError):
        json.loads(path.read_bytes())
    file.append(entry(3))
    file.close()
    assert ids(path) == ["n1", "n3"]


WRITE = """
import sys
sys.path.insert(0, {tests!r})
from intercept.test_har_file import *
file = HarFile({path!r})
for number in range(1_000_000):
    file.append(entry(number, number * 977 % 300_000))
    if number == 2:
        print(flush=True)
"""


def test_sigkill_at_any_moment_leaves_whole_entries(tmp_path: Path) -> None:
    """The next program to open the file finds all that were whole; between two writes it is valid as it is."""
    path = tmp_path / "a.har"
    code = WRITE.format(tests=str(Path(__file__).parent.parent), path=str(path))
    for moment in range(5):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        threading.Event().wait(moment * 0.007)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        process.stdout.close()
        HarFile(str(path)).close()
        assert len(ids(path)) >= 3 * (moment + 1)


@pytest.mark.parametrize("move", [Path.unlink, lambda path: path.rename(path.with_suffix(".old"))])
def test_a_file_that_was_moved_away_is_noticed(tmp_path: Path, move: Callable[[Path], object]) -> None:
    """As log rotation does."""
    path = tmp_path / "a.har"
    file = HarFile(str(path))
    assert not file.moved
    move(path)
    assert file.moved
    path.touch()
    assert file.moved
    file.close()


@given(st.binary(max_size=60))
def test_any_file_is_continued_or_refused_and_left_alone(data: bytes) -> None:
    """What is appended to is valid afterwards."""
    for start in (b"", HEADER, HEADER + b"\n" + entry(1), b'{"log":{"entries":['):
        path = Path("/dev/shm") / f"tabi-{os.getpid()}.har"
        path.write_bytes(start + data)
        path.chmod(0o600)
        try:
            append(path, entry(2))
        except HarError:
            assert path.read_bytes() == start + data
        else:
            assert json.loads(path.read_bytes())["log"]["entries"][-1]["_id"] == "n2"
        finally:
            path.unlink()
