"""`tabi serve` where a sandbox refuses calls: it does without and says so once, or says why it cannot begin."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from datagrams import udp_socket
from depth import deep
from processes import (
    PATIENCE,
    TABI,
    Serve,
    accept,
    environment,
    failure,
    listening,
    open_tunnel,
    receive_exactly,
    serve,
    wait_for,
)
from sandbox import CALLS, LINUX_ALONE, enter_portable, refusing
from support import GREETING, request

pytestmark = pytest.mark.skipif(not CALLS, reason="the numbers of this machine's calls are not known to the tests")

ERRORS = (errno.ENOSYS, errno.EPERM)
MORE_CALLS = ("pipe2", "epoll_ctl", "epoll_wait", "prlimit64")
SILENT = ("getpriority", "setpriority")
NEEDED = ("socketpair", "clone", "clone3", "wait4", "recvmsg", "sendmsg", "shutdown", "ftruncate")


def check(proxy: Serve) -> None:
    """Bulk, datagrams, a reload, and the end."""
    whole = os.urandom(3 << 20)
    with listening() as (listener, port), open_tunnel(proxy.address, port) as client, accept(listener) as server:
        giving = threading.Thread(target=server.sendall, args=(whole,))
        giving.start()
        assert receive_exactly(client, len(whole)) == whole
        giving.join()
    with socket.create_connection((str(proxy.address.host), proxy.address.port), PATIENCE) as control:
        control.sendall(GREETING + request("0.0.0.0", 0, 3))
        assert receive_exactly(control, 4)[1:] == b"\x00\x05\x00"
        reply = receive_exactly(control, 8)
        assert reply[:2] == b"\x00\x01"
        with udp_socket() as sock, udp_socket() as target:
            sock.connect((socket.inet_ntoa(reply[2:6]), int.from_bytes(reply[6:], "big")))
            head = b"\0\0\0\1" + socket.inet_aton("127.0.0.1") + struct.pack("!H", target.getsockname()[1])
            for _ in range(2):
                for number in range(20):
                    sock.send(head + bytes([number]) * 100)
                for number in range(20):
                    data, relay = receive_from(target)
                    assert data == bytes([number]) * 100
                    target.sendto(data, relay)
                for number in range(20):
                    assert receive_from(sock)[0] == head + bytes([number]) * 100
    proxy.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reloaded: rules: 0" in proxy.messages, "the reload")
    open_tunnel(proxy.address, proxy.address.port).close()
    assert proxy.stop() == 0


def receive_from(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    """The next datagram and its sender, with a deadline."""
    assert select.select((sock,), (), (), PATIENCE)[0]
    return sock.recvfrom(2000)


def said(proxy: Serve) -> dict[str, int]:
    """The calls that are named as refused, and how often."""
    lines = [line for line in proxy.messages.splitlines() if "is refused" in line]
    names = [line.split(" WARNING ")[1].split("(2)")[0] for line in lines]
    return {name: names.count(name) for name in names}


def configuration(folder: Path) -> Path:
    """A file to reload, for two workers."""
    path = folder / "tabi.toml"
    path.write_text('workers = 2\n[[listen]]\nurl = "socks5://127.0.0.1:0"\n')
    return path


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_it_does_without_all_calls_that_others_replace(tmp_path: Path, number: int) -> None:
    """Octets and datagrams arrive whole, it reloads and ends; each call is named once, not once for each process."""
    calls = (*LINUX_ALONE, "prlimit64", *SILENT)
    with serve(tmp_path, "-c", configuration(tmp_path), preexec=refusing(number, *calls)) as proxy:
        check(proxy)
        assert said(proxy) == dict.fromkeys(set(calls) - {"sendmmsg", *SILENT}, 1)


@pytest.mark.parametrize("call", ["splice", "sendmmsg", *deep([*LINUX_ALONE, *MORE_CALLS])])
def test_it_does_without_any_one_call(tmp_path: Path, call: str) -> None:
    """What is refused alone is named, and nothing else."""
    for number in ERRORS:
        with serve(tmp_path, "-c", configuration(tmp_path), preexec=refusing(number, call)) as proxy:
            check(proxy)
            assert said(proxy) == {call: 1}


def test_it_runs_without_anything_that_linux_alone_has(tmp_path: Path) -> None:
    """The calls, netlink, SO_BINDTODEVICE and IP_FREEBIND."""
    with serve(tmp_path, "-c", configuration(tmp_path), preexec=enter_portable) as proxy:
        check(proxy)
        assert said(proxy) == {**dict.fromkeys(set(LINUX_ALONE) - {"sendmmsg"}, 1), "socket(AF_NETLINK), bind": 1}


@pytest.mark.parametrize("call", ["accept4", "getrandom"])
def test_a_call_that_nothing_replaces_is_named_at_the_start(call: str) -> None:
    """One line and the exit code of what is wrong from the beginning. A kernel without it has what it replaced."""
    ended = run_refusing(errno.EPERM, call)
    assert f"{call}(2) is refused" in failure(ended, 2)


@pytest.mark.parametrize("call", ["getsockopt", *deep(NEEDED)])
def test_a_call_that_cannot_be_missing_is_named_at_the_start(call: str) -> None:
    """Whatever the sandbox answers. Where clone3 does not exist there is clone."""
    for number in ERRORS:
        if (call, number) != ("clone3", errno.ENOSYS):
            assert f"{call}(2) is refused" in failure(run_refusing(number, call), 2)


def run_refusing(number: int, call: str) -> subprocess.CompletedProcess[bytes]:
    """`tabi serve` to its early end."""
    command = [*TABI, "serve", "-l", "socks5://127.0.0.1:0"]
    return subprocess.run(
        command, capture_output=True, env=environment(), timeout=PATIENCE, preexec_fn=refusing(number, call)
    )
