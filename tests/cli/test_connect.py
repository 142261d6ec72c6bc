"""`tabi connect`: standard input and output through a proxy."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import Run
from processes import (
    PATIENCE,
    TABI,
    Serve,
    accept,
    environment,
    failure,
    in_thread,
    listening,
    receive_all,
    receive_exactly,
    run_here,
    run_tabi,
    serve,
)
from support import closed_port, reset_on_close, target
from tabi.cli import connect


class Connect:
    """A running `tabi connect` to a target whose end is in the test's hands."""

    def __init__(self, proxy: Serve, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        self.process = subprocess.Popen(
            [*TABI, "connect", "--via", proxy.url, f"127.0.0.1:{port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        try:
            self.server = accept(listener)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Connect:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=PATIENCE)
        if hasattr(self, "server"):
            self.server.close()


def test_octets_go_both_ways_as_they_come(proxy: Serve) -> None:
    """Nothing waits for more or for an end: each side's octets arrive while both stay open."""
    with listening() as (listener, _), Connect(proxy, listener) as running:
        for _ in range(3):
            os.write(running.stdin.fileno(), b"question")
            assert receive_exactly(running.server, 8) == b"question"
            running.server.sendall(b"answer")
            assert os.read(running.stdout.fileno(), 100) == b"answer"


def test_the_end_of_standard_input_is_passed_on_and_the_answer_still_comes(proxy: Serve) -> None:
    """Half-close: the destination sees the end, answers after it, and its end ends the command with 0."""
    with listening() as (listener, _), Connect(proxy, listener) as running:
        running.stdin.write(b"the whole question")
        running.stdin.close()
        running.process.stdin = None
        assert receive_all(running.server) == b"the whole question"
        running.server.sendall(b"the answer")
        running.server.shutdown(socket.SHUT_WR)
        assert running.stdout.read() == b"the answer"
        assert running.process.wait(PATIENCE) == 0


def test_the_end_of_the_destination_ends_the_command(proxy: Serve) -> None:
    """It does not wait for a standard input that stays open, as ssh leaves it."""
    with listening() as (listener, _), Connect(proxy, listener) as running:
        running.server.sendall(b"bye")
        running.server.close()
        assert running.process.wait(PATIENCE) == 0
        assert running.stdout.read() == b"bye"


def test_a_reset_is_an_error(proxy: Serve) -> None:
    """A connection that broke is no orderly end: one line and exit code 1."""
    with listening() as (listener, _), Connect(proxy, listener) as running:
        os.write(running.stdin.fileno(), b"x")
        assert receive_exactly(running.server, 1) == b"x"
        reset_on_close(running.server)
        running.server.close()
        assert running.process.wait(PATIENCE) == 1
        assert running.process.stderr
        assert running.process.stderr.read() == b"tabi: Connection reset by peer\n"


def test_it_ends_with_whoever_uses_it(proxy: Serve) -> None:
    """Both of its pipes have ended, as when ssh has died, whose SIGHUP means nothing to it: it does not stay behind for
    a destination that goes on."""
    with listening() as (listener, _), Connect(proxy, listener) as running:
        os.write(running.stdin.fileno(), b"x")
        assert receive_exactly(running.server, 1) == b"x"
        running.process.send_signal(signal.SIGHUP)
        running.stdin.close()
        running.process.stdin = None
        assert running.server.recv(1) == b""
        assert running.process.poll() is None
        running.stdout.close()
        assert running.process.wait(PATIENCE) == 0
        assert running.process.stderr
        assert running.process.stderr.read() == b""
        running.process.stdout = None


def test_ctrl_c_ends_it(proxy: Serve) -> None:
    """SIGINT ends with 130 and without a traceback."""
    with listening() as (listener, _), Connect(proxy, listener) as running:
        running.server.sendall(b"x")
        assert os.read(running.stdout.fileno(), 1) == b"x"
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == 130
        assert running.process.stderr
        assert b"Traceback" not in running.process.stderr.read()


def test_a_non_blocking_standard_input_and_output_are_waited_for(proxy: Serve) -> None:
    """Whoever shares the terminal or the pipe may have made it non-blocking: no octet is lost for that."""
    ours, theirs = socket.socketpair()
    data = os.urandom(1 << 21)
    with listening() as (listener, port), ours, theirs:
        theirs.setblocking(False)
        ours.settimeout(PATIENCE)
        process = subprocess.Popen(
            [*TABI, "connect", "--via", proxy.url, f"127.0.0.1:{port}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            env=environment(),
        )
        try:
            theirs.close()
            with accept(listener) as server:
                server.sendall(b"first")  # its answer comes when standard input was found empty for long
                assert receive_exactly(ours, 5) == b"first"
                ours.sendall(b"second")
                assert receive_exactly(server, 6) == b"second"
                server.sendall(data[: 1 << 20])
                server.shutdown(socket.SHUT_WR)
            assert receive_all(ours) == data[: 1 << 20]
            assert process.wait(PATIENCE) == 0
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=PATIENCE)


def test_big_data_arrives_whole_in_both_directions(proxy: Serve, run_once: Run) -> None:
    """16 MiB through an echo, with the half-close behind them: the same octets come back."""
    data = hashlib.shake_256(b"tabi").digest(16 << 20)

    async def main() -> None:
        async with target() as port:
            done = await in_thread([*TABI, "connect", "--via", proxy.url, f"127.0.0.1:{port}"], stdin=data)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == data

    run_once(main)
    (session,) = proxy.sessions(1)
    assert session["up"] == session["down"] == len(data)


def test_a_chain_of_two_proxies(tmp_path: Path, run_once: Run) -> None:
    """--via twice: the first proxy is asked for the second, the second for the destination, each with its user."""

    async def main() -> None:
        async with target() as port:
            vias = ["--via", first.url.replace("//", "//a:1@"), "--via", second.url.replace("//", "//b:2@")]
            done = await in_thread([*TABI, "connect", *vias, f"localhost:{port}"], stdin=b"hello")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"hello", b"")
        (outer,), (inner,) = first.sessions(1), second.sessions(1)
        assert (outer["user"], outer["host"], outer["port"]) == ("a", "127.0.0.1", second.address.port)
        assert (inner["user"], inner["host"], inner["port"]) == ("b", "localhost", port)

    with serve(tmp_path, "-u", "a:1") as first, serve(tmp_path, "-u", "b:2") as second:
        run_once(main)


def test_a_refused_destination_is_one_line(proxy: Serve) -> None:
    """What the proxy says is what the user reads; exit code 1."""
    with closed_port() as port:
        line = failure(run_tabi("connect", "--via", proxy.url, f"127.0.0.1:{port}"), 1)
    assert line == f"tabi: 127.0.0.1:{port}: the proxy says connection refused (reply 05)\n"


def test_a_proxy_that_is_not_there_is_one_line() -> None:
    """The address that could not be reached is named; exit code 1."""
    with closed_port() as port:
        line = failure(run_tabi("connect", "--via", f"socks5://127.0.0.1:{port}", "127.0.0.1:1"), 1)
    assert line == f"tabi: 127.0.0.1:{port}: connection refused\n"


def test_a_wrong_password_is_one_line_without_it(tmp_path: Path) -> None:
    """Neither password shows up; exit code 1."""
    with serve(tmp_path, "-u", "alice:swordfish") as proxy:
        url = proxy.url.replace("//", "//alice:herring@")
        line = failure(run_tabi("connect", "--via", url, "127.0.0.1:1"), 1)
    assert "did not accept" in line
    assert "herring" not in line


def test_a_proxy_that_does_not_answer_is_given_up(run_once: Run) -> None:
    """--timeout sets the patience."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def main() -> None:
        async with target(silent) as port:
            via = f"socks5://127.0.0.1:{port}"
            done = await in_thread([*TABI, "connect", "--timeout", "0.05", "--via", via, "127.0.0.1:1"])
        assert "did not answer within 0.05 s" in failure(done, 1)

    run_once(main)


@pytest.mark.parametrize(
    ("via", "destination"),
    [
        ("socks5://127.0.0.1:1", "127.0.0.1"),
        ("socks5://127.0.0.1:1", "127.0.0.1:http"),
        ("socks5://127.0.0.1:1", "::1:80"),
        ("ftp://127.0.0.1:1", "127.0.0.1:1"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("socks5://alice:hunter2@127.0.0.1:99999", "127.0.0.1:1"),
    ],
)
def test_wrong_arguments_are_one_line(via: str, destination: str) -> None:
    """Exit code 2, and no password in the message."""
    assert "hunter2" not in failure(run_here("connect", "--via", via, destination), 2)


def test_a_break_that_only_the_upload_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of a reset once: where sending has heard of it, receiving sees what looks like an end."""
    reset = threading.Event()

    class Broken:
        """A connection that was reset while something was sent."""

        def sendall(self, data: bytes) -> None:
            reset.set()
            raise ConnectionResetError(104, "Connection reset by peer")

        def recv(self, size: int) -> bytes:
            reset.wait(20)
            return b""

    monkeypatch.setattr(connect, "read", lambda fd: b"x")
    with pytest.raises(ConnectionResetError):
        connect.join(Broken())  # type: ignore[arg-type]
