"""Where lines go: nothing on their way to a disk or a socket tears or surprises them."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PATIENCE
from small_pipes import fill, read_exactly, small_pipe
from tabi.observe import log_outputs
from tabi.observe.log_outputs import (
    ATOMIC,
    DatagramOutput,
    DescriptorOutput,
    FileOutput,
    check_socket,
    pieces,
    write_all,
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe as small as can be: its reading and its writing end."""
    with small_pipe() as ends:
        yield ends


@given(st.lists(st.integers(1, 2 * ATOMIC), max_size=20))
def test_pieces_keep_lines_whole(sizes: list[int]) -> None:
    """Lines are joined up to what a pipe takes in one, in their order; a longer one goes alone."""
    lines = [b"x" * (size - 1) + b"\n" for size in sizes]
    found = pieces(lines)
    assert b"".join(found) == b"".join(lines)
    for piece in found:
        assert piece.endswith(b"\n")
        assert len(piece) <= ATOMIC or piece.count(b"\n") == 1
    for piece, following in itertools.pairwise(found):
        assert len(piece) + following.index(b"\n") + 1 > ATOMIC, "the next line would have had room"


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """What is there stays; a new file is for its owner and group."""
    path = tmp_path / "access.log"
    path.write_text("before\n")
    output = FileOutput(str(path))
    assert output.write([b"one\n", b"two\n"]) == 2
    output.close()
    output.close()
    assert path.read_text() == "before\none\ntwo\n"
    new = FileOutput(str(tmp_path / "new.log"))
    new.close()
    assert (tmp_path / "new.log").stat().st_mode & 0o027 == 0


def test_a_rotated_file_is_opened_again(tmp_path: Path) -> None:
    """What was moved away gets no more lines; the name gets a new file, and so does a removed one."""
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"
    output = FileOutput(str(path))
    output.write([b"one\n"])
    path.rename(old)
    output.write([b"two\n"])
    assert (old.read_text(), path.read_text()) == ("one\n", "two\n")
    path.unlink()
    output.write([b"three\n"])
    assert path.read_text() == "three\n"
    output.close()


def test_a_folder_that_was_away_for_a_while(tmp_path: Path) -> None:
    """While the file cannot be opened writing fails; when it can be again, it goes on."""
    folder = tmp_path / "log"
    folder.mkdir()
    output = FileOutput(str(folder / "access.log"))
    folder.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            output.write([b"lost\n"])
    folder.mkdir()
    output.write([b"one\n"])
    output.close()
    assert (folder / "access.log").read_text() == "one\n"


def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    """When the server starts, not with the first line."""
    with pytest.raises(FileNotFoundError):
        FileOutput(str(tmp_path / "missing" / "access.log"))


def test_a_device_gets_pieces(tmp_path: Path) -> None:
    """A path that is no regular file, such as /dev/null or a terminal, is written in pieces."""
    output = FileOutput("/dev/null")
    assert output.write([b"x" * 3000 + b"\n"] * 3) == 3
    output.close()


def test_standard_output_is_not_ours_to_close(pipe: tuple[int, int]) -> None:
    """Lines are written; close leaves the descriptor open."""
    reading, writing = pipe
    output = DescriptorOutput(writing)
    assert output.write([b"one\n", b"two\n"]) == 2
    output.close()
    os.write(writing, b"!")
    assert read_exactly(reading, 9) == b"one\ntwo\n!"


def test_a_descriptor_that_somebody_made_non_blocking(pipe: tuple[int, int]) -> None:
    """The writer waits until there is room, and every octet arrives."""
    reading, writing = pipe
    filled = fill(writing)
    os.set_blocking(writing, False)
    data = bytes(range(256)) * 64
    thread = threading.Thread(target=write_all, args=(writing, data))
    thread.start()
    assert read_exactly(reading, filled + len(data))[filled:] == data
    thread.join(PATIENCE)
    assert not thread.is_alive()


# --- datagrams ---


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    """What reads datagrams at a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def output(daemon: socket.socket) -> Iterator[DatagramOutput]:
    """An output to it."""
    output = DatagramOutput(socket.AF_UNIX, daemon.getsockname())
    yield output
    output.close()


def read_all(daemon: socket.socket) -> list[bytes]:
    """The datagrams that are there."""
    found = []
    try:
        while True:
            found.append(daemon.recv(1 << 20))
    except BlockingIOError:
        return found


def test_a_datagram_for_each_line(daemon: socket.socket, output: DatagramOutput) -> None:
    """In their order."""
    assert output.write([b"one", b"two"]) == 2
    assert read_all(daemon) == [b"one", b"two"]


def test_a_daemon_that_was_started_again(daemon: socket.socket, output: DatagramOutput, tmp_path: Path) -> None:
    """While nobody is there writing fails; at the same path another one is found."""
    daemon.close()
    with pytest.raises(ConnectionRefusedError):
        output.write([b"lost"])
    (tmp_path / "log").unlink()
    with pytest.raises(FileNotFoundError):
        output.write([b"lost"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "log"))
        assert output.write([b"one"]) == 1
        assert again.recv(10) == b"one"


def test_a_daemon_that_does_not_read(daemon: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has room for is written, the rest is told as not written; then there is an error, later room."""
    monkeypatch.setattr(log_outputs, "TIMEOUT", 0.01)
    output = DatagramOutput(socket.AF_UNIX, daemon.getsockname())
    lines = [b"%d" % number for number in range(10_000)]
    written = output.write(lines)
    assert 0 < written < len(lines)
    with pytest.raises(BlockingIOError, match=f"nobody reads {daemon.getsockname()}"):
        output.write(lines)
    assert read_all(daemon) == lines[:written]
    assert output.write([b"again"]) == 1
    output.close()


def test_a_line_that_is_too_large_is_left_out(daemon: socket.socket, output: DatagramOutput) -> None:
    """Alone."""
    output.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert output.write([b"one", b"x" * (1 << 20), b"two"]) == 2
    assert read_all(daemon) == [b"one", b"two"]


def test_datagrams_over_the_network() -> None:
    """UDP goes out whether somebody listens or not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        output = DatagramOutput(socket.AF_INET, daemon.getsockname())
        assert output.write([b"one"]) == 1
        assert daemon.recv(10) == b"one"
    for _ in range(3):
        assert output.write([b"two", b"three"]) == 2
    output.close()


def test_whether_somebody_reads(daemon: socket.socket, tmp_path: Path) -> None:
    """A path where nobody is, or somebody who reads no datagrams, is told at once."""
    check_socket(daemon.getsockname())
    with pytest.raises(FileNotFoundError):
        DatagramOutput(socket.AF_UNIX, str(tmp_path / "missing"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(tmp_path / "stream"))
        with pytest.raises(OSError, match="Protocol wrong type") as found:
            check_socket(str(tmp_path / "stream"))
        assert found.value.errno == errno.EPROTOTYPE
    assert read_all(daemon) == []
