"""One worker process: serve on sockets that were handed in, drain when told, end when the supervisor has died."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes import PATIENCE, Tunnel, environment, listening, open_tunnel, refuses, wait_for
from sockets import open_listener
from tabi.server.channel import make_channel
from tabi.server.worker import AT_ONCE
from tabi.wire.address import Address, from_sockaddr, parse_host

SCRIPT = """
import logging, socket, sys
from tabi.config import Config, Listen, Log, Seconds, Timeouts
from tabi.server.channel import Channel
from tabi.server.compiled import compile_config
from tabi.server.ledger import SharedLedger
from tabi.server.worker import Shared, run_worker

listener, lifeline, end, drain, log = sys.argv[1:]
logging.basicConfig()
config = Config(
    listen=[Listen("socks5://127.0.0.1:0")], timeouts=Timeouts(drain=Seconds(drain)), log=Log(access=log)
)
sockets = [[socket.socket(fileno=int(listener))]]
channel = Channel(socket.socket(fileno=int(end)))
shared = Shared(sockets, int(lifeline), SharedLedger(1), channel)
run_worker(compile_config(config), shared, lambda: channel.send({"ready": True}))
"""


class Running:
    """A worker whose supervisor is the test."""

    def __init__(self, folder: Path, drain: float) -> None:
        self.log = folder / "access.log"
        with open_listener(Address(parse_host("127.0.0.1"), 0)) as listener:
            self.address = from_sockaddr(listener.getsockname())
            lifeline, self.held_end = os.pipe()
            self.channel, theirs = make_channel()
            numbers = (listener.fileno(), lifeline, theirs.fileno())
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", SCRIPT, *map(str, (*numbers, drain, self.log))],
                    env=environment(),
                    pass_fds=numbers,
                    stderr=subprocess.PIPE,
                )
            finally:
                os.close(lifeline)
                theirs.close()

    def let_go(self) -> None:
        """What the death of the supervisor does."""
        if self.held_end >= 0:
            os.close(self.held_end)
            self.held_end = -1
            self.channel.close()

    def finish(self) -> str:
        """Wait for an end in order; gives its messages."""
        _, messages = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, messages.decode()
        return messages.decode()

    def wait_closed(self) -> None:
        """Wait until it listens no more."""
        wait_for(lambda: refuses(self.address), "the listener to close")


@contextlib.contextmanager
def worker(folder: Path, drain: float = 30) -> Iterator[Running]:
    """Run one; it is gone behind the block."""
    running = Running(folder, drain)
    try:
        yield running
    finally:
        running.let_go()
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate(timeout=PATIENCE)


@contextlib.contextmanager
def tunnel_through(running: Running) -> Iterator[Tunnel]:
    """A tunnel; what is left of it is closed."""
    with listening() as (listener, _):
        tunnel = Tunnel(running.address, listener)
        try:
            tunnel.check()
            yield tunnel
        finally:
            tunnel.close()


def terminate(running: Running) -> None:
    """What a service manager may send."""
    running.process.send_signal(signal.SIGTERM)


def hurry(running: Running) -> None:
    """What the supervisor says."""
    assert running.channel.send(AT_ONCE)


def test_it_says_when_it_accepts(tmp_path: Path) -> None:
    """The first message is that it is ready; a connection that comes then is served."""
    with worker(tmp_path) as running:
        message = running.channel.receive_within(PATIENCE)
        assert message is not None
        assert message.body == {"ready": True}
        with tunnel_through(running) as tunnel:
            tunnel.check()


def test_signals_without_a_meaning_end_nothing(tmp_path: Path) -> None:
    """SIGHUP, SIGUSR1 and SIGUSR2 are nothing to a worker, whoever sends them, nor is SIGIO."""
    with worker(tmp_path) as running, tunnel_through(running) as tunnel:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO):
            running.process.send_signal(number)
        tunnel.check()
        terminate(running)
        running.wait_closed()
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO):
            running.process.send_signal(number)
        tunnel.check()
        tunnel.close()
        assert running.finish() == ""


def test_what_is_not_a_message_harms_nothing(tmp_path: Path) -> None:
    """A message that it does not know is left alone; octets that are none end the channel, not the worker."""
    with worker(tmp_path) as running, tunnel_through(running) as tunnel:
        assert running.channel.send({"frobnicate": 1})
        tunnel.check()
        running.channel.sock.send(b"\xff")
        tunnel.check()
        terminate(running)
        tunnel.close()
        assert running.finish() == ""


def test_it_serves_on_the_sockets_that_were_handed_in(tmp_path: Path) -> None:
    """It opens none of its own: the supervisor's port is where it answers, before and after a first session."""
    with worker(tmp_path) as running:
        for _ in range(2):
            with tunnel_through(running) as tunnel:
                tunnel.check()


def test_sigterm_without_sessions_ends_it(tmp_path: Path) -> None:
    """Nothing to wait for, nothing to say."""
    with worker(tmp_path) as running:
        with tunnel_through(running):
            pass
        wait_for(lambda: running.log.exists() and running.log.read_bytes(), "the session to end")
        running.process.send_signal(signal.SIGTERM)
        assert running.finish() == ""


def test_sigterm_drains(tmp_path: Path) -> None:
    """No new connections; the old one carries on, and the worker ends with it."""
    with worker(tmp_path) as running:
        with tunnel_through(running) as tunnel:
            running.process.send_signal(signal.SIGTERM)
            running.wait_closed()
            with pytest.raises(ConnectionRefusedError):
                open_tunnel(running.address, 1)
            tunnel.check()
        assert running.finish() == ""
        assert b'"up":8' in running.log.read_bytes()


def test_the_end_of_the_lifeline_drains(tmp_path: Path) -> None:
    """The supervisor has died: the same as SIGTERM."""
    with worker(tmp_path) as running:
        with tunnel_through(running) as tunnel:
            running.let_go()
            running.wait_closed()
            tunnel.check()
        assert running.finish() == ""


@pytest.mark.parametrize("tell", [terminate, hurry])
def test_told_once_more_it_stops_at_once(tmp_path: Path, tell: Callable[[Running], object]) -> None:
    """Sessions are cut, logged as "shutdown" and counted."""
    with worker(tmp_path) as running, tunnel_through(running) as tunnel:
        running.process.send_signal(signal.SIGTERM)
        running.wait_closed()
        tunnel.check()
        tell(running)
        assert tunnel.client.recv(1) == b""
        assert "sessions cut: 1" in running.finish()
        assert b'"close":"shutdown"' in running.log.read_bytes()


def test_at_once_needs_no_first_word(tmp_path: Path) -> None:
    """Where the message comes before the signal is seen the order does not matter."""
    with worker(tmp_path) as running, tunnel_through(running) as tunnel:
        hurry(running)
        assert tunnel.client.recv(1) == b""
        assert "sessions cut: 1" in running.finish()


def test_the_drain_time_ends_the_patience(tmp_path: Path) -> None:
    """What still runs then is cut."""
    with worker(tmp_path, drain=0.05) as running, tunnel_through(running) as tunnel:
        running.process.send_signal(signal.SIGTERM)
        assert tunnel.client.recv(1) == b""
        assert "sessions cut: 1" in running.finish()


def test_a_client_that_says_nothing_is_cut_when_told_again(tmp_path: Path) -> None:
    """A handshake that was never begun is a session too, and holds up nobody."""
    with worker(tmp_path) as running:
        place = (str(running.address.host), running.address.port)
        # The tunnel is behind the silent client in the queue: when it stands, both were accepted.
        with socket.create_connection(place, PATIENCE) as silent, tunnel_through(running) as tunnel:
            hurry(running)
            assert silent.recv(1) == tunnel.client.recv(1) == b""
        assert "sessions cut: 2" in running.finish()
        assert running.log.read_bytes().count(b'"close":"shutdown"') == 2
