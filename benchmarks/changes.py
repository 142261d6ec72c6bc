"""What clients notice of reloads and upgrades: downloads that are under way, and new connections at a steady rate.

    .venv/bin/python benchmarks/changes.py [--downloads 500] [--rate 200] [--reloads 10] [--upgrades 2] [--workers 2]

The bar: no connection fails, and no download is cut or loses an octet. Exit code: 0 all of it holds, 1 something does
not. The downloads and the destination share the machine with tabi, so the times of connections are those of both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

LOOPBACK = "127.0.0.1"
CHUNK, EVERY = bytes(4096), 0.5
"""What a download gets, and how often, in seconds."""

PATIENCE = 20.0
"""Seconds for a connection, or for a process to end."""

BETWEEN = 3.0
"""Seconds between two changes."""


class Origin:
    """The destination: a connection that says ``d`` is a download until all end, any other has 64 octets echoed."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.sent: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(1) == b"d":
                octets = 0
                while not self.over.is_set():
                    writer.write(CHUNK)
                    octets += len(CHUNK)
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.over.wait(), EVERY)
                self.sent.append(octets)
            else:
                writer.write(await reader.readexactly(64))
                await writer.drain()
        writer.close()


async def connect(proxy: int, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A tunnel to the destination."""
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy)
    try:
        writer.write(b"\5\1\0")
        if await reader.readexactly(2) != b"\5\0":
            raise ConnectionError("not the method that was asked for")
        writer.write(b"\5\1\0\1\x7f\0\0\1" + struct.pack("!H", port))
        reply = await reader.readexactly(10)
        if reply[1]:
            raise ConnectionError(f"reply {reply[1]}")
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def download(proxy: int, port: int, few: asyncio.Semaphore, begun: list[int]) -> int:
    """Read to the end; gives the octets."""
    async with few:
        reader, writer = await connect(proxy, port)
        writer.write(b"d")
        octets = len(await reader.read(65536))
        begun.append(octets)
    while data := await reader.read(65536):
        octets += len(data)
    writer.close()
    return octets


async def once(proxy: int, port: int, times: list[float], failures: Counter[str]) -> None:
    """One connection: 64 octets there and back."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await connect(proxy, port)
            try:
                writer.write(b"c" + bytes(64))
                await reader.readexactly(64)
            finally:
                writer.close()
        times.append(time.perf_counter() - began)
    except Exception as exc:
        failures[repr(exc)] += 1


async def connections(proxy: int, port: int, rate: float, times: list[float], failures: Counter[str]) -> None:
    """New ones at a steady rate, until it is cancelled; then those that have begun come to their end."""
    running: set[asyncio.Task[None]] = set()
    began, count = time.perf_counter(), 0
    try:
        while True:
            while count < (time.perf_counter() - began) * rate:
                count += 1
                task = asyncio.get_running_loop().create_task(once(proxy, port, times, failures))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(1 / rate)
    except asyncio.CancelledError:
        await asyncio.gather(*running)


class Proxy:
    """The running tabi, and the processes that it was."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = folder / "tabi.toml"
        self.config.write_text(
            f'workers = {workers}\n[[listen]]\nurl = "socks5://{LOOPBACK}:{self.port}"\n'
            '[timeouts]\ndrain = "never"\nidle = "never"\n[log]\naccess = "none"\n'
        )
        self.environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        self.log = folder / "log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "tabi", "serve", "-c", str(self.config)]
            self.process = subprocess.Popen(command, stderr=log, env=self.environ)
        self.pids = [self.process.pid]

    def start(self) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + PATIENCE
        while "listening on" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() >= deadline:
                raise SystemExit(f"tabi does not start: {self.log.read_text()}")
            time.sleep(0.01)

    async def reload(self) -> None:
        """Read the file anew."""
        done = self.log.read_text().count("reloaded:")
        os.kill(self.pids[-1], signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while self.log.read_text().count("reloaded:") == done:
                await asyncio.sleep(0.01)

    async def upgrade(self) -> None:
        """Start the program anew."""
        place = str(self.folder / "tabi" / "control.sock")  # others may run on this machine
        made = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tabi", "upgrade", "--socket", place), env=self.environ, stdout=subprocess.PIPE
        )
        out, _ = await made.communicate()
        if made.returncode:
            raise SystemExit(f"not upgraded: {self.log.read_text()}")
        self.pids.append(int(out))

    def ended(self) -> list[int]:
        """Those of the processes before the last one that run no more."""
        self.process.poll()
        return [pid for pid in self.pids[:-1] if not Path(f"/proc/{pid}").exists()]

    def stop(self) -> None:
        """End it."""
        for pid in self.pids:
            for _ in range(2):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        self.process.wait(PATIENCE)


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server((LOOPBACK, 0)) as sock:
        return int(sock.getsockname()[1])


async def measure(proxy: Proxy, arguments: argparse.Namespace) -> bool:
    """Do it all, print the figures; gives whether the bar holds."""
    origin = Origin()
    async with await asyncio.start_server(origin.serve, LOOPBACK, 0, backlog=4096) as server:
        port = server.sockets[0].getsockname()[1]
        loop, few, begun = asyncio.get_running_loop(), asyncio.Semaphore(20), list[int]()
        downloads = [loop.create_task(download(proxy.port, port, few, begun)) for _ in range(arguments.downloads)]
        async with asyncio.timeout(60):
            while len(begun) < arguments.downloads:
                await asyncio.sleep(0.1)
        times: list[float] = []
        failures: Counter[str] = Counter()
        connecting = loop.create_task(connections(proxy.port, port, arguments.rate, times, failures))
        total = arguments.reloads + arguments.upgrades
        every = total // (arguments.upgrades + 1) if arguments.upgrades else 0
        began, upgrades = time.perf_counter(), 0
        for number in range(1, total + 1):
            await asyncio.sleep(BETWEEN)
            before = time.perf_counter()
            upgrading = upgrades < arguments.upgrades and number % (every + 1) == every
            upgrades += upgrading
            await (proxy.upgrade() if upgrading else proxy.reload())
            print(f"{'upgrade' if upgrading else 'reload'}: {time.perf_counter() - before:.2f} s", flush=True)
        await asyncio.sleep(BETWEEN)
        seconds = time.perf_counter() - began
        connecting.cancel()
        await connecting
        cut = sum(task.done() for task in downloads)
        origin.over.set()
        octets = await asyncio.gather(*downloads, return_exceptions=True)
        broken = [one for one in octets if isinstance(one, BaseException)]
        whole = sorted(one for one in octets if isinstance(one, int)) == sorted(origin.sent)
        async with asyncio.timeout(PATIENCE):
            while len(proxy.ended()) < len(proxy.pids) - 1:
                await asyncio.sleep(0.05)
    times.sort()
    shown = [times[int(len(times) * part)] * 1000 for part in (0.5, 0.99)]
    print(f"connections: {len(times)} in {seconds:.0f} s, failed: {sum(failures.values())} {dict(failures) or ''}")
    print(f"p50 {shown[0]:.1f} ms, p99 {shown[1]:.1f} ms, longest {times[-1] * 1000:.1f} ms")
    print(f"downloads: {len(downloads)}, ended early: {cut}, broken: {len(broken)}, all octets came: {whole}")
    print(f"processes before the last one: {len(proxy.pids) - 1}, all have ended")
    return not (failures or cut or broken) and whole


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("downloads", 500), ("rate", 200), ("reloads", 10), ("upgrades", 2), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f}, CPUs {os.cpu_count()}")
    with tempfile.TemporaryDirectory(prefix="tabi-") as folder:
        proxy = Proxy(Path(folder), arguments.workers)
        try:
            proxy.start()
            return not asyncio.run(measure(proxy, arguments))
        finally:
            proxy.stop()


if __name__ == "__main__":
    sys.exit(main())
