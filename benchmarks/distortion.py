"""Faults to measure: the configuration of each, and what `load` cannot do by itself."""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from process import Failure, Server, free_port, running

NOTHING = (
    'latency = 0.0001, bandwidth = "1 TB/s", loss = 1e-9, corrupt = 1e-12, slice = "1 GB", limit = "1000 TB", '
    'stall = "1 h", slow_close = "1ms", reset_after = "1 h", tls_cut = "reset"'
)
"""Every fault of a connection, none of which changes anything: each chunk passes through all of them."""

RATES = {"1 MB/s": 1e6, "10 MB/s": 1e7, "100 MB/s": 1e8}

OTHERS = "a fault of other hosts"

HALF = "half of the chain"

FAULTS = {
    "100 ms later": 'latency = "100ms", direction = "down"',
    "1 s later": 'latency = "1s", direction = "down"',
    "faults that change nothing": NOTHING,
    **{f"a line of {rate}": f'bandwidth = "{rate}", direction = "down"' for rate in RATES},
    f"a line of {HALF}": "",
    OTHERS: 'latency = "100ms", loss = 0.1',
}
"""By the listener of a scenario."""

PATIENCE = 60.0
"""Seconds until all octets have arrived."""

LOOK = 0.05
"""Seconds between two looks at the memory."""

GREETING = b"\x05\x01\x00"


def fault_command(fault: str | None, port: int, folder: Path) -> list[str]:
    """tabi with a fault, or with none."""
    if fault == f"a line of {HALF}":
        table = f'bandwidth = {wanted_rate(fault):.0f}, direction = "down"'
    else:
        table = FAULTS[fault] if fault else ""
    text = f'workers = 1\n[log]\naccess = "{folder}/access.log"\n'
    if table:
        text += f"[[distort]]\nfault = {{ {table} }}\n"
    if fault == OTHERS:
        text += 'hosts = ["*.tabi.bench"]\n'
    config = folder / "tabi.toml"
    config.write_text(text)
    return [f"{Path(sys.executable).parent}/tabi", "serve", "-c", str(config), "-l", f"socks5://127.0.0.1:{port}"]


def wanted_rate(fault: str) -> float:
    """Octets per second of a line."""
    return chain_rate() / 2 if fault.endswith(HALF) else RATES[fault.removeprefix("a line of ")]


@functools.cache
def chain_rate(seconds: float = 2.0) -> float:
    """Octets per second that one connection carries through all faults, measured once in a run."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tabi-bench-") as name:
        folder = Path(name)
        command = fault_command("faults that change nothing", port, folder)
        with running(command, port, folder / "output"), tunnel(port) as (near, far):
            sender = threading.Thread(target=pour, args=(far,), daemon=True)
            sender.start()
            buffer, octets, began = bytearray(1 << 18), 0, time.monotonic()
            while time.monotonic() < began + seconds:
                octets += near.recv_into(buffer)
            rate = octets / (time.monotonic() - began)
            near.close()
            sender.join(5)
            return rate


def pour(sock: socket.socket) -> None:
    """Send until the connection is gone."""
    data = bytes(1 << 18)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(data)


@contextlib.contextmanager
def tunnel(port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """One connection through a proxy: both ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near, far = open_tunnel(port, listener)
    with near, far:
        yield near, far


def open_tunnel(port: int, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A connection through a proxy to a listener: both ends. Raises Failure."""
    near = socket.create_connection(("127.0.0.1", port), 10)
    there = listener.getsockname()[1]
    near.sendall(GREETING + b"\x05\x01\x00\x01\x7f\x00\x00\x01" + there.to_bytes(2))
    answer = b""
    while len(answer) < 12:
        more = near.recv(12 - len(answer))
        if not more:
            raise Failure("the server closed it before the reply")
        answer += more
    if answer[3]:
        raise Failure(f"the reply is {answer[3]}")
    return near, listener.accept()[0]


def measure_many(server: Server, count: int, size: int) -> tuple[float, int]:
    """Send so many octets on each of many connections at once.

    Returns:
        by how much the memory is larger at most while they are under way, in octets, and how many connections have not
        brought all of them.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        pairs = [open_tunnel(server.port, listener) for _ in range(count)]
        selector = stack.enter_context(selectors.EpollSelector())
        missing = {}
        for near, far in pairs:
            stack.enter_context(near)
            stack.enter_context(far)
            near.setblocking(False)
            selector.register(near, selectors.EVENT_READ)
            missing[near] = size
        time.sleep(0.5)
        before = most = server.user_memory()
        data = bytes(size)
        for _, far in pairs:
            far.sendall(data)
            far.shutdown(socket.SHUT_WR)
        looked, until = 0.0, time.monotonic() + PATIENCE
        whole = ended = 0
        while ended < count and time.monotonic() < until:
            if time.monotonic() > looked + LOOK:
                looked, most = time.monotonic(), max(most, server.user_memory())
            for key, _ in selector.select(LOOK):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                try:
                    got = len(sock.recv(1 << 18))
                except OSError:
                    got = 0
                missing[sock] -= got
                if not got:
                    selector.unregister(sock)
                    ended += 1
                    whole += missing[sock] == 0
        return most - before, count - whole
