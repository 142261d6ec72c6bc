"""`tabi udp`: lines of standard input as datagrams through a proxy."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tabi
from conftest import Run
from processes import PATIENCE, TABI, Serve, environment, failure, in_thread, run_here, run_tabi, serve
from support import closed_port, datagram_target, replying, target
from tabi.cli import udp
from tabi.wire.address import parse_address


class Udp:
    """A running `tabi udp` to a destination that is in the test's hands."""

    def __init__(self, proxy: Serve, *options: str) -> None:
        self.destination = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.destination.settimeout(PATIENCE)
        self.destination.bind(("127.0.0.1", 0))
        self.client: Any = None
        self.process = subprocess.Popen(
            [*TABI, "udp", "--via", proxy.url, f"127.0.0.1:{self.destination.getsockname()[1]}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )

    def write(self, data: bytes) -> None:
        """Give it input."""
        assert self.process.stdin
        os.write(self.process.stdin.fileno(), data)

    def line(self) -> bytes:
        """The next line of its output."""
        assert self.process.stdout
        return self.process.stdout.readline()

    def arrived(self) -> bytes:
        """The next datagram at the destination."""
        data, self.client = self.destination.recvfrom(65536)
        return data

    def answer(self, data: bytes) -> None:
        """Send a datagram to where the last one came from."""
        self.destination.sendto(data, self.client)

    def __enter__(self) -> Udp:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=PATIENCE)
        self.destination.close()


def test_each_line_is_a_datagram_as_it_comes(proxy: Serve) -> None:
    """Without its end, empty ones too; and each datagram is a line at once, while standard input stays open."""
    with Udp(proxy) as running:
        running.write(b"one\n\npart of")
        assert [running.arrived(), running.arrived()] == [b"one", b""]
        running.answer(b"first answer")
        assert running.line() == b"first answer\n"
        running.write(b" two\r\n")
        assert running.arrived() == b"part of two\r"
        running.answer(b"")
        assert running.line() == b"\n"


def test_at_the_end_of_input_it_waits_for_answers(proxy: Serve) -> None:
    """The last line needs no end; each answer prolongs the wait, and then the command ends with 0."""
    with Udp(proxy, "--wait", "1.5") as running:
        running.write(b"question")
        assert running.process.stdin
        running.process.stdin.close()
        running.process.stdin = None
        assert running.arrived() == b"question"
        for number in range(3):
            running.answer(b"answer %d" % number)
            assert running.line() == b"answer %d\n" % number
        assert running.process.wait(PATIENCE) == 0


def test_hexadecimal_lines(proxy: Serve) -> None:
    """For datagrams that are no text: --hex, both ways."""
    with Udp(proxy, "--hex") as running:
        running.write(b"000a FF\n")
        assert running.arrived() == b"\0\n\xff"
        running.answer(b"\n\0")
        assert running.line() == b"0a00\n"


def test_ctrl_c_ends_it(proxy: Serve) -> None:
    """SIGINT ends with 130 and without a traceback."""
    with Udp(proxy) as running:
        running.write(b"x\n")
        assert running.arrived() == b"x"
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == 130
        assert running.process.stderr
        assert running.process.stderr.read() == b""


def test_the_end_of_the_proxy_is_an_error(proxy: Serve) -> None:
    """One line and exit code 1."""
    with Udp(proxy) as running:
        running.write(b"x\n")
        assert running.arrived() == b"x"
        proxy.stop()
        assert running.process.wait(PATIENCE) == 1
        assert running.process.stderr
        assert running.process.stderr.read() == b"tabi: the proxy has ended the association\n"


def test_a_name_and_a_chain(tmp_path: Path, run_once: Run) -> None:
    """--via twice, each with its user; the last proxy resolves the name."""

    async def main() -> None:
        async with datagram_target() as port:
            vias = ["--via", first.url.replace("//", "//a:1@"), "--via", second.url.replace("//", "//b:2@")]
            done = await in_thread([*TABI, "udp", "--wait", "1.5", *vias, f"localhost:{port}"], stdin=b"hello\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")

    with serve(tmp_path, "-u", "a:1") as first, serve(tmp_path, "-u", "b:2") as second:
        run_once(main)


@pytest.mark.parametrize(
    ("options", "line", "text"),
    [
        ([], b"x" * 65500, "a datagram of 65500 octets, expected at most 65497"),
        ([], b"x" * 140000, "a line of more than 131014 octets is not a datagram"),
        (["--hex"], b"xyz", "'xyz' is not hexadecimal"),
        (["--hex"], "ä".encode(), "'\\xc3\\xa4' is not hexadecimal"),
    ],
)
def test_a_line_that_cannot_be_sent_is_one_line(proxy: Serve, options: list[str], line: bytes, text: str) -> None:
    """Exit code 1, and the number of the line."""
    done = run_tabi("udp", "--via", proxy.url, "--wait", "0", *options, "127.0.0.1:9", stdin=b"\n" + line + b"\n")
    assert failure(done, 1).startswith(f"tabi: line 2: {text}")


def test_answers_are_waited_for_where_a_line_cannot_be_sent(proxy: Serve) -> None:
    """What the lines before have asked for is printed as if it were the end of input; then it fails."""
    with Udp(proxy, "--hex", "--wait", "1.5") as running:
        running.write(b"00\nzz\n01\n")
        assert running.arrived() == b"\0"
        running.answer(b"\1")
        assert running.line() == b"01\n"
        assert running.process.wait(PATIENCE) == 1
        assert running.process.stderr
        assert running.process.stderr.read() == b"tabi: line 2: 'zz' is not hexadecimal\n"


def test_output_that_fails_is_the_only_error(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind `| head -1`: that the input ends at the same moment changes nothing."""
    failed = threading.Event()
    threads: list[threading.Thread] = []
    reported: list[Any] = []

    def lines() -> Iterator[bytes]:
        threads.append(threading.current_thread())
        yield b"question"
        failed.wait(PATIENCE)

    def write(fd: int, data: bytes) -> None:
        failed.set()
        threads[0].join(PATIENCE)
        raise OSError(errno.ENOSPC, "full")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with datagram_target() as port, tabi.Server("socks5://127.0.0.1:0") as server:
            with pytest.raises(OSError, match="full"):
                await udp.exchange(tabi.Proxy(server.url), parse_address(f"127.0.0.1:{port}"), 1.0, False)
            await asyncio.sleep(0)

    monkeypatch.setattr(udp, "lines", lines)
    monkeypatch.setattr(udp, "write", write)
    run_once(main)
    assert reported == []


def test_a_proxy_without_associations_is_one_line(run_once: Run) -> None:
    """What the proxy says is what the user reads; exit code 1."""

    async def main() -> None:
        async with target(replying(b"\x05\x07\x00\x01" + bytes(6))) as port:
            done = await in_thread([*TABI, "udp", "--via", f"socks5://127.0.0.1:{port}", "127.0.0.1:9"])
        assert "command not supported (reply 07)" in failure(done, 1)

    run_once(main)


def test_a_proxy_that_is_not_there_is_one_line() -> None:
    """The address that could not be reached is named; exit code 1."""
    with closed_port() as port:
        line = failure(run_tabi("udp", "--via", f"socks5://127.0.0.1:{port}", "127.0.0.1:9"), 1)
    assert line == f"tabi: 127.0.0.1:{port}: connection refused\n"


@pytest.mark.parametrize(
    ("via", "destination", "options"),
    [
        ("socks5://127.0.0.1:1", "127.0.0.1", []),
        ("socks5://127.0.0.1:1", "127.0.0.1:0", []),
        ("socks5://127.0.0.1:1", "::1:53", []),
        ("socks5://127.0.0.1:1", "127.0.0.1:53", ["--wait", "-1"]),
        ("socks5://127.0.0.1:1", "127.0.0.1:53", ["--wait", "inf"]),
        ("ftp://127.0.0.1:1", "127.0.0.1:1", []),
        ("socks5://alice:hunter2@127.0.0.1:99999", "127.0.0.1:1", []),
    ],
)
def test_wrong_arguments_are_one_line(via: str, destination: str, options: list[str]) -> None:
    """Exit code 2, and no password in the message."""
    assert "hunter2" not in failure(run_here("udp", "--via", via, *options, destination), 2)
