"""Real processes for the tests from outside: `tabi serve` and other commands, foreign programs, and plain targets.

Every wait has a deadline, and every process is ended by its own id. The import sets what the processes inherit: they
can be interrupted, also where the tests themselves run in the background of a shell, which has SIGINT ignored.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from debian import OTHERS
from support import GREETING, Handler, request
from tabi.cli.main import main
from tabi.wire.address import Address, parse_address

signal.signal(signal.SIGINT, signal.default_int_handler)

PATIENCE = 20.0
"""Seconds that anything may take."""

POLL = 0.01
"""Seconds between two looks at what only an outside process can change."""

TABI = (sys.executable, "-m", "tabi")

RUNTIME = tempfile.TemporaryDirectory(prefix="tabi-")
"""Where the control sockets and the used quotas of all servers lie that tests start, unless a test says otherwise."""
atexit.register(RUNTIME.cleanup)
# What a server of the user's own has counted is no part of a test.
os.environ["XDG_STATE_HOME"] = RUNTIME.name
os.environ.pop("STATE_DIRECTORY", None)

SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def environment() -> dict[str, str]:
    """This process' environment, with a PYTHONPATH that holds in any directory and without proxies."""
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env["XDG_RUNTIME_DIR"] = RUNTIME.name
    if "PYTHONPATH" in env:
        env["PYTHONPATH"] = os.pathsep.join(str(Path(part).resolve()) for part in env["PYTHONPATH"].split(os.pathsep))
    return env


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Look until ``condition()`` is true, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(POLL)
    return found


def need(program: str) -> str:
    """The path of a foreign program. Without it the test is skipped, and with CI=true it fails if it can be had."""
    path = shutil.which(program, path=SYSTEM_PATH)
    if path is None:
        if program in OTHERS:
            pytest.skip(f"{program} is not installed")
        reason = f"{program} is not installed (tests/debian.py installs it as root)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def run_program(
    arguments: Sequence[str | Path], *, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end."""
    return subprocess.run(
        [*map(str, arguments)], input=stdin, capture_output=True, env=env or environment(), timeout=PATIENCE
    )


PASS = """
import os, sys
numbers, names, *command = sys.argv[1:]
high = [os.dup(int(number)) for number in numbers.split(",")]
high = [os.dup2(fd, 100 + index) for index, fd in enumerate(high)]
for index, fd in enumerate(high):
    os.dup2(fd, 3 + index)
environment = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}
os.execve(sys.executable, command, environment)
"""
"""Does what systemd does before it executes a service: the sockets are descriptors 3 and up of the same process."""

Passed = Sequence[tuple[socket.socket, str]]
"""Sockets to pass, and their names."""


def passing(passed: Passed) -> list[str]:
    """What stands in front of a command that gets these sockets."""
    numbers = ",".join(str(sock.fileno()) for sock, _ in passed)
    return [sys.executable, "-c", PASS, numbers, ":".join(name for _, name in passed)]


def run_passed(passed: Passed, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run `tabi serve` to its end with sockets as systemd passes them."""
    command = [*passing(passed), *TABI, "serve", *arguments]
    numbers = [sock.fileno() for sock, _ in passed]
    return subprocess.run(command, capture_output=True, env=environment(), timeout=PATIENCE, pass_fds=numbers)


def run_tabi(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command of tabi to its end."""
    return run_program((*TABI, *arguments), stdin=stdin)


def run_here(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """The same in this process, outside any loop: for tests that ask a command many things, not how a program begins
    and ends."""
    command = [*map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: object = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["tabi", *command])
        for name in os.environ.keys() - env.keys() if env else ():
            patch.delenv(name)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        disabled = logging.root.manager.disable
        try:
            main()
        except SystemExit as exc:
            code = exc.code
        finally:
            logging.disable(disabled)
    assert isinstance(code, int)
    written = (stream.buffer.getvalue() for stream in (out, err))
    return subprocess.CompletedProcess(command, code, *written)


async def in_thread(
    arguments: Sequence[str | Path], *, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end while this loop's targets go on."""
    return await asyncio.to_thread(run_program, arguments, stdin=stdin, env=env)


def failure(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line of a command that failed with an exit code, and without a traceback."""
    text = done.stderr.decode()
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}: {text}"
    assert text.startswith("tabi: "), text
    assert text.count("\n") == 1, f"not one line: {text}"
    return text


def state_of(pid: int) -> tuple[str, int]:
    """The state of a process (proc_pid_stat(5): S sleeps, T is stopped, X is gone) and its parent."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state, int(parent)


def name_of(pid: int) -> str:
    """The name of a process (proc_pid_comm(5)), or nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """The processes that a process has started, as far as they are running."""
    found = {int(folder.name): state_of(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    return sorted(number for number, (state, parent) in found.items() if parent == pid and state not in "ZX")


def is_running(pid: int) -> bool:
    """Whether a process that need not be our child still runs."""
    return state_of(pid)[0] not in "ZX"


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: state_of(pid)[0] == "T", f"process {pid} to stop")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Serve:
    """A running `tabi serve`: what it said, its access log, its workers."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> None:
        self.process = process
        self.stdout = stdout
        self.stderr = stderr
        self.known: set[int] = set()

    @property
    def messages(self) -> str:
        """What it has written on stderr."""
        return self.stderr.read_text()

    def wait_ready(self) -> None:
        """Wait for the messages that say where it listens."""

        def ready() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.messages}"
            return "listening on " in self.messages and self.messages.endswith("\n")

        wait_for(ready, "the ready message")
        self.workers()

    @property
    def urls(self) -> list[str]:
        """Where it says that it listens."""
        head = "listening on "
        return [line.removeprefix(head) for line in self.messages.splitlines() if line.startswith(head)]

    @property
    def url(self) -> str:
        """The first of them."""
        return self.urls[0]

    @property
    def address(self) -> Address:
        """The same as host and port."""
        return parse_address(self.url.partition("://")[2])

    def workers(self) -> list[int]:
        """The worker processes that run now."""
        found = children(self.process.pid)
        self.known.update(found)
        return [pid for pid in found if not name_of(pid).startswith("tabi-")]

    def child(self, name: str) -> int | None:
        """The process with a name that helps the supervisor, if it runs now."""
        return next((pid for pid in children(self.process.pid) if name_of(pid) == name), None)

    def sessions(self, count: int, log: Path | None = None, port: int | None = None) -> list[dict[str, Any]]:
        """The lines of the access log, or those for a destination's port, once there are ``count``."""

        def lines() -> list[bytes]:
            path = log or self.stdout
            found = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            whole = found and found[-1].endswith(b"\n")
            found = [line for line in found if port is None or b'"port":%d,' % port in line]
            return found if whole and len(found) >= count else []

        return [json.loads(line) for line in wait_for(lines, f"{count} lines in the access log")]

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended; gives its exit code."""
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        """End it in its own order: what still runs ends at once."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(0.5)
            self.signal(signal.SIGTERM)
        return self.wait()

    def clean_up(self) -> None:
        """Whatever happened: nothing of it stays."""
        try:
            self.stop()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(PATIENCE)
            for pid in self.known:
                if is_running(pid) and "tabi" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def serve(
    folder: Path,
    *arguments: str | Path,
    stdout: int | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    own_group: bool = False,
    preexec: Callable[[], object] | None = None,
    passed: Passed = (),
) -> Iterator[Serve]:
    """Run `tabi serve` on a free port of 127.0.0.1, unless the arguments say where; its output goes to ``folder``.

    It gets the sockets of ``passed`` as from systemd.
    """
    if not {"-l", "--listen", "-c", "--config"} & set(arguments):
        arguments = ("-l", "socks5://127.0.0.1:0", *arguments)
    number = len(list(folder.glob("serve-*.stderr")))
    out, err = folder / f"serve-{number}.stdout", folder / f"serve-{number}.stderr"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            [*(passing(passed) if passed else ()), *TABI, "serve", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=out_file if stdout is None else stdout,
            stderr=err_file,
            env={**environment(), **environ},
            process_group=0 if own_group else None,
            preexec_fn=preexec,
            pass_fds=[sock.fileno() for sock, _ in passed],
        )
    running = Serve(process, out, err)
    try:
        running.wait_ready()
        yield running
    finally:
        running.clean_up()


# --- blocking sockets, for tests that hold many of them ---


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Read so many octets, or fail."""
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        assert chunk, f"ended after {data!r}"
        data += chunk
    return data


def receive_all(sock: socket.socket, chunk: int = 65536) -> bytes:
    """Read to the end, ``chunk`` octets at a time."""
    parts = []
    while data := sock.recv(chunk):
        parts.append(data)
    return b"".join(parts)


def open_tunnel(proxy: Address, port: int, host: str = "127.0.0.1") -> socket.socket:
    """A tunnel through a proxy without users, as a blocking socket with a deadline."""
    sock = socket.create_connection((str(proxy.host), proxy.port), PATIENCE)
    try:
        sock.sendall(GREETING + request(host, port))
        assert receive_exactly(sock, 2) == b"\x05\x00"
        reply = receive_exactly(sock, 4)
        assert reply[:3] == b"\x05\x00\x00", f"reply {reply.hex()}"
        receive_exactly(sock, 6 if reply[3] == 1 else 18)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, int]]:
    """A listening socket that the test accepts on itself, and its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=4096) as sock:
        sock.settimeout(PATIENCE)
        yield sock, sock.getsockname()[1]


def accept(listener: socket.socket) -> socket.socket:
    """The next connection, with a deadline."""
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


class Tunnel:
    """A tunnel with both of its ends in the test."""

    def __init__(self, proxy: Address, listener: socket.socket) -> None:
        self.client = open_tunnel(proxy, listener.getsockname()[1], listener.getsockname()[0])
        self.server = accept(listener)

    def check(self) -> None:
        """Octets go through in both directions."""
        for here, there in ((self.client, self.server), (self.server, self.client)):
            here.sendall(b"ping")
            assert receive_exactly(there, 4) == b"ping"

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        self.server.close()


@contextlib.contextmanager
def tunnels(proxy: Address, count: int = 1) -> Iterator[list[Tunnel]]:
    """Several of them, to a target of their own."""
    found: list[Tunnel] = []
    with listening() as (listener, _):
        try:
            while len(found) < count:
                found.append(Tunnel(proxy, listener))
            yield found
        finally:
            for tunnel in found:
                tunnel.close()


def refuses(address: Address) -> bool:
    """Whether nobody listens there any more; found out without a connection, which would be a session."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, _, state = line.split()[:4]
            if state == "0A" and int(local.rpartition(":")[2], 16) == address.port:  # TCP_LISTEN
                return False
    return True


def answer_http(body: bytes) -> Handler:
    """A handler for `support.target` that gives every HTTP request the same answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    return handle
