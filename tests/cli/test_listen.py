"""`tabi listen`: standard input and output with whoever calls at a proxy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from processes import (
    PATIENCE,
    TABI,
    Serve,
    environment,
    failure,
    receive_all,
    receive_exactly,
    run_here,
    run_tabi,
    serve,
)
from support import closed_port
from tabi.wire.address import parse_address


class Listen:
    """A running `tabi listen` that has said where to call."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*TABI, "listen", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self.line = self.stdout.readline().decode()

    def __enter__(self) -> Listen:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=PATIENCE)

    def call(self, source: str = "127.0.0.1") -> socket.socket:
        """Call from an address."""
        address = parse_address(self.line.removesuffix("\n"))
        return socket.create_connection((str(address.host), address.port), PATIENCE, (source, 0))


def test_the_first_line_is_the_address_and_the_rest_is_the_peers(proxy: Serve) -> None:
    """Octets go both ways as they come, each end is passed on, and people read the same on stderr."""
    with Listen("--via", proxy.url) as running, running.call() as peer:
        peer.sendall(b"question")
        assert os.read(running.stdout.fileno(), 100) == b"question"
        os.write(running.stdin.fileno(), b"answer")
        assert receive_exactly(peer, 6) == b"answer"
        running.stdin.close()
        running.process.stdin = None
        assert receive_all(peer) == b""
        peer.sendall(b"the rest")
        peer.shutdown(socket.SHUT_WR)
        assert running.stdout.read() == b"the rest"
        assert running.process.wait(PATIENCE) == 0
        waiting, connected = running.stderr.read().decode().splitlines()
        assert waiting == f"waiting for a connection to {running.line.strip()}"
        assert connected == "connected with {}:{}".format(*peer.getsockname())


def test_only_the_peer_that_was_named(proxy: Serve) -> None:
    """--peer: somebody else is refused, and the wait goes on."""
    with Listen("--via", proxy.url, "--peer", "127.0.0.2") as running:
        try:
            with running.call() as wrong:
                assert wrong.recv(1) == b"never"
        except ConnectionResetError:
            pass
        with running.call("127.0.0.2") as peer:
            peer.sendall(b"it is me")
            peer.shutdown(socket.SHUT_WR)
            assert running.stdout.read() == b"it is me"
            assert running.process.wait(PATIENCE) == 0


def test_a_chain_of_two_proxies(tmp_path: Path) -> None:
    """--via twice: the last proxy listens, each has its user."""
    with serve(tmp_path, "-u", "a:1") as first, serve(tmp_path, "-u", "b:2") as second:
        vias = ["--via", first.url.replace("//", "//a:1@"), "--via", second.url.replace("//", "//b:2@")]
        with Listen(*vias) as running, running.call() as peer:
            peer.sendall(b"hello")
            peer.shutdown(socket.SHUT_WR)
            assert running.stdout.read() == b"hello"
            assert running.process.wait(PATIENCE) == 0
        (outer,), (inner,) = first.sessions(1), second.sessions(1)
        assert (outer["user"], outer["command"]) == ("a", "connect")
        assert (inner["user"], inner["command"]) == ("b", "bind")


def test_nobody_calls(tmp_path: Path) -> None:
    """The proxy gives up, and that is one line behind the one that says where to call; exit code 1."""
    config = tmp_path / "tabi.toml"
    config.write_text('[[listen]]\nurl = "socks5://127.0.0.1:0"\n[timeouts]\nbind = 0.05\n')
    with serve(tmp_path, "-c", config) as proxy, Listen("--via", proxy.url) as running:
        assert running.process.wait(PATIENCE) == 1
        waiting, error = running.stderr.read().decode().splitlines()
        assert waiting.startswith("waiting for a connection")
        assert error == f"tabi: {running.line.strip()}: the proxy says TTL expired (reply 06)"


def test_the_wait_for_a_call_can_be_shorter(proxy: Serve) -> None:
    """--wait: our own deadline, before the proxy's; exit code 1."""
    with Listen("--via", proxy.url, "--wait", "0.05") as running:
        assert running.process.wait(PATIENCE) == 1
        assert running.stderr.read().decode().splitlines()[1:] == [
            f"tabi: {running.line.strip()}: no peer called within 0.05 s"
        ]


def test_ctrl_c_ends_the_wait(proxy: Serve) -> None:
    """SIGINT ends it with 130 and without a traceback, and the proxy stops listening."""
    with Listen("--via", proxy.url) as running:
        assert running.stderr.readline().startswith(b"waiting")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == 130
        assert b"Traceback" not in running.stderr.read()
        (session,) = proxy.sessions(1)
        assert (session["command"], session["close"]) == ("bind", "client")
        with pytest.raises(ConnectionRefusedError):
            running.call()


def test_a_proxy_that_is_not_there_is_one_line() -> None:
    """The address that could not be reached is named; exit code 1."""
    with closed_port() as port:
        line = failure(run_tabi("listen", "--via", f"socks5://127.0.0.1:{port}"), 1)
    assert line == f"tabi: 127.0.0.1:{port}: connection refused\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--via", "http://127.0.0.1:1"],
        ["--via", "socks5://alice:hunter2@127.0.0.1:99999"],
        ["--via", "socks5://127.0.0.1:1", "--peer", "white space"],
        ["--via", "socks5://127.0.0.1:1", "--timeout", "0"],
        ["--via", "socks5://127.0.0.1:1", "--wait", "0"],
        ["--via", "socks5://127.0.0.1:1", "--wait", "nan"],
        ["--via", "socks5://127.0.0.1:1", "127.0.0.1:1"],
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str]) -> None:
    """Exit code 2, and no password in the message."""
    assert "hunter2" not in failure(run_here("listen", *arguments), 2)
