"""Upgrade in place: the new program serves on the same sockets, and the old one goes on until its sessions end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from processes import (
    PATIENCE,
    Tunnel,
    accept,
    children,
    is_running,
    listening,
    name_of,
    open_tunnel,
    receive_all,
    receive_exactly,
    refuses,
    tunnels,
    wait_for,
)
from sandbox import enter_portable
from support import GREETING, request
from tabi.server.upgrade import command_line, first_line
from tabi.wire.address import Address
from upgrading import Upgraded, upgrading


class Connecting:
    """Connects to a proxy again and again, in a thread, with a request to a target each time."""

    def __init__(self, proxy: Address, port: int) -> None:
        self.proxy = proxy
        self.port = port
        self.over = threading.Event()
        self.count = 0
        self.failures: list[str] = []
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.over.is_set():
            try:
                with open_tunnel(self.proxy, self.port) as sock:
                    sock.sendall(b"ping")
                    assert receive_exactly(sock, 4) == b"ping"
                self.count += 1
            except (OSError, AssertionError) as exc:
                self.failures.append(repr(exc))

    def more(self) -> None:
        """Wait for some that began after this call."""
        least = self.count + 5
        wait_for(lambda: self.count >= least or self.failures, "connections")


@contextlib.contextmanager
def echoing() -> Iterator[int]:
    """A target that sends four octets back, to many."""
    with listening() as (listener, port):
        over = threading.Event()
        listener.settimeout(0.05)

        def run() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    sock, _ = listener.accept()
                    with sock, contextlib.suppress(OSError):
                        sock.settimeout(PATIENCE)
                        sock.sendall(sock.recv(4))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield port
        finally:
            over.set()
            thread.join()


@contextlib.contextmanager
def connecting(proxy: Address) -> Iterator[Connecting]:
    """Connections while something else happens; none may fail."""
    with echoing() as port:
        found = Connecting(proxy, port)
        found.thread.start()
        try:
            found.more()
            yield found
            found.more()
        finally:
            found.over.set()
            found.thread.join()
        assert found.failures == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_client_is_refused_and_no_session_cut(tmp_path: Path, workers: str) -> None:
    """Connections go on through two upgrades, a tunnel of before is carried on, and the first process ends with it."""
    with (
        upgrading(tmp_path, "--workers", workers) as server,
        listening() as (listener, _),
        connecting(server.proxy.address) as clients,
    ):
        tunnel = Tunnel(server.proxy.address, listener)
        first = server.pids[0]
        second = server.upgrade()
        clients.more()
        assert server.proxy.process.poll() is None
        tunnel.check()
        third = server.upgrade()
        clients.more()
        tunnel.check()
        assert len({first, second, third}) == 3
        tunnel.close()
        server.wait_gone(first)
        server.wait_gone(second)
        assert server.proxy.process.returncode == 0
        with tunnels(server.proxy.address) as (one,):
            one.check()
    assert "cut" not in server.proxy.messages


def test_who_waits_in_the_queue_is_served_by_the_new_one(tmp_path: Path) -> None:
    """A client that nobody has accepted yet when the old one stops to accept: the queue belongs to both."""
    with upgrading(tmp_path) as server, echoing() as port:
        (worker,) = wait_for(server.proxy.workers, "the worker")
        os.kill(worker, signal.SIGSTOP)
        try:
            waiting = [socket.create_connection(("127.0.0.1", server.proxy.address.port), PATIENCE) for _ in range(20)]
            server.upgrade()
            for sock in waiting:
                with sock:
                    sock.sendall(GREETING + request("127.0.0.1", port))
                    receive_exactly(sock, 12)
                    sock.sendall(b"ping")
                    assert receive_exactly(sock, 4) == b"ping"
        finally:
            os.kill(worker, signal.SIGCONT)
        server.wait_gone(server.pids[0])


def test_sigusr2_does_the_same(tmp_path: Path) -> None:
    """Without a client of the control socket: the log says which process serves."""
    with upgrading(tmp_path) as server, connecting(server.proxy.address):
        server.proxy.signal(signal.SIGUSR2)
        server.wait_gone(server.pids[0])
        (line,) = [line for line in server.proxy.messages.splitlines() if "upgraded: process" in line]
        server.pids.append(int(line.split("process ")[1].split()[0]))


def test_it_needs_nothing_that_linux_alone_has(tmp_path: Path) -> None:
    """In a sandbox without sigtimedwait(2), epoll, memory files and more."""
    with upgrading(tmp_path, preexec=enter_portable) as server, connecting(server.proxy.address) as clients:
        for _ in range(2):
            server.upgrade()
            clients.more()
        server.proxy.process.wait(PATIENCE)


def test_it_drains_as_long_as_it_takes(tmp_path: Path) -> None:
    """``timeouts.drain = "never"``: the deadline of the old process is none."""
    config = tmp_path / "tabi.toml"
    config.write_text('[[listen]]\nurl = "socks5://127.0.0.1:0"\n[timeouts]\ndrain = "never"\n')
    with upgrading(tmp_path, "-c", config) as server, listening() as (listener, _):
        tunnel = Tunnel(server.proxy.address, listener)
        config.write_text('[[listen]]\nurl = "socks5://127.0.0.1:0"\n')
        server.upgrade()
        tunnel.check()
        tunnel.close()
        server.wait_gone(server.pids[0])


def test_it_cuts_what_lasts_longer_than_the_time_to_drain(tmp_path: Path) -> None:
    """The old process ends for certain, and the sessions in it with "shutdown"."""
    config = tmp_path / "tabi.toml"
    config.write_text('[[listen]]\nurl = "socks5://127.0.0.1:0"\n[timeouts]\ndrain = "10 ms"\n')
    with upgrading(tmp_path, "-c", config) as server, listening() as (listener, _):
        tunnel = Tunnel(server.proxy.address, listener)
        server.upgrade()
        assert tunnel.client.recv(1) == b""
        tunnel.close()
        server.wait_gone(server.pids[0])
        assert server.proxy.sessions(1)[0]["close"] == "shutdown"


def test_a_storm_of_reloads_and_an_upgrade_in_it(tmp_path: Path) -> None:
    """Signals come all the time to the process that serves: no client notices."""
    with upgrading(tmp_path, "-c", config_of(tmp_path)) as server, connecting(server.proxy.address) as clients:
        for _ in range(2):
            over = threading.Event()
            storm = threading.Thread(target=send_until, args=(server.pids[-1], signal.SIGHUP, over))
            storm.start()
            try:
                clients.more()
                server.upgrade()
            finally:
                over.set()
                storm.join()
        clients.more()
        server.wait_gone(server.pids[0])
        server.wait_gone(server.pids[1])


def send_until(pid: int, number: int, over: threading.Event) -> None:
    """Send a signal again and again."""
    while not over.wait(0.005):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


# --- what does not start ---


def config_of(folder: Path, text: str = "") -> Path:
    """A file that is right, with a text in addition."""
    path = folder / "tabi.toml"
    path.write_text(f'[[listen]]\nurl = "socks5://127.0.0.1:0"\n{text}')
    return path


def test_a_configuration_that_is_wrong_leaves_the_old_one_going(tmp_path: Path) -> None:
    """The command says why, with exit code 1, and so does the log; clients notice nothing."""
    path = config_of(tmp_path)
    with upgrading(tmp_path, "-c", path) as server, connecting(server.proxy.address):
        config_of(tmp_path, "[timeouts]\nidel = 3\n")
        code, out, error = server.ask("upgrade")
        assert (code, out) == (1, "")
        why = "timeouts.idel: unknown key"
        assert error.startswith("tabi: not upgraded, the server goes on as before: ")
        assert why in error
        assert f"not upgraded, this process goes on: {path}: {why}" in server.proxy.messages
        assert server.socket.exists()
        config_of(tmp_path)
        server.upgrade()


def test_a_program_that_ends_or_is_not_there(tmp_path: Path) -> None:
    """Whatever lies there in place of the program."""
    program = tmp_path / "tabi"
    program.write_text(f"#!{sys.executable}\nfrom tabi.__main__ import main\nmain()\n")
    program.chmod(0o755)
    with run_script(tmp_path, program) as server:
        program.write_text("#!/bin/sh\nexit 7\n")
        assert "ended with code 7" in server.ask("upgrade")[2]
        program.write_text("#!/bin/sh\nkill -9 $$\n")
        assert "was killed by signal 9" in server.ask("upgrade")[2]
        program.unlink()
        assert "cannot be executed: No such file or directory" in server.ask("upgrade")[2]
        with tunnels(server.proxy.address) as (tunnel,):
            tunnel.check()


@contextlib.contextmanager
def run_script(folder: Path, program: Path) -> Iterator[Upgraded]:
    """A server that was started by a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("processes.TABI", (str(program),))
        with upgrading(folder) as server:
            patch.undo()
            yield server


def test_the_program_that_lies_there_now_is_executed(tmp_path: Path) -> None:
    """Another interpreter in the first line of the script, and other code below it."""
    program, mark = tmp_path / "tabi", tmp_path / "mark"
    program.write_text(f"#!{sys.executable}\nfrom tabi.__main__ import main\nmain()\n")
    program.chmod(0o755)
    with run_script(tmp_path, program) as server:
        program.write_text(
            f"#!{sys.executable} -B\nopen({str(mark)!r}, 'w').close()\nfrom tabi.__main__ import main\nmain()\n"
        )
        server.upgrade()
        assert mark.exists()


def test_one_that_fails_late_leaves_the_files_of_the_old_one(tmp_path: Path) -> None:
    """It has taken a unix socket over before it finds that another address is in use."""
    path, file = tmp_path / "tabi.toml", tmp_path / "tabi.sock"
    path.write_text(f'[[listen]]\nurl = "unix://{file}"\n[[listen]]\nurl = "socks5://127.0.0.1:0"\n')
    with upgrading(tmp_path, "-c", path) as server, socket.create_server(("127.0.0.1", 0)) as other:
        with path.open("a") as text:
            text.write(f'[[listen]]\nurl = "socks5://127.0.0.1:{other.getsockname()[1]}"\n')
        assert "Address already in use" in server.ask("upgrade")[2]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(file))
            sock.sendall(GREETING)
            assert receive_exactly(sock, 2) == b"\x05\x00"
    assert not file.exists()


def test_one_whose_workers_die_is_given_up(tmp_path: Path) -> None:
    """It listens, and nobody accepts: that is no server."""
    program = tmp_path / "tabi"
    begin = f"#!{sys.executable}\nfrom tabi.__main__ import main\n"
    program.write_text(f"{begin}main()\n")
    program.chmod(0o755)
    with run_script(tmp_path, program) as server, connecting(server.proxy.address):
        program.write_text(f"{begin}import os, tabi.server.worker as w\nw.Server = lambda **_: os._exit(3)\nmain()\n")
        assert "no worker accepts clients" in server.ask("upgrade")[2], server.proxy.messages


def test_one_that_hangs_is_given_up(tmp_path: Path) -> None:
    """It has half a minute; here it is stopped, and the supervisor's time is shortened."""
    program = tmp_path / "tabi"
    text = "import tabi.server.upgrade\ntabi.server.upgrade.START = 0.2\nfrom tabi.__main__ import main\nmain()\n"
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)
    with run_script(tmp_path, program) as server:
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        assert "does not serve after 0.2 s" in server.ask("upgrade")[2]
        assert not [pid for pid in children(server.pids[0]) if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        with tunnels(server.proxy.address) as (tunnel,):
            tunnel.check()


def test_a_second_one_is_refused_while_one_is_under_way(tmp_path: Path) -> None:
    """By the process that has started the first one, before and after that serves."""
    program, go = tmp_path / "tabi", tmp_path / "go"
    begin = f"#!{sys.executable}\nfrom tabi.__main__ import main\n"
    program.write_text(f"{begin}main()\n")
    program.chmod(0o755)
    with run_script(tmp_path, program) as server, listening() as (listener, _):
        tunnel = Tunnel(server.proxy.address, listener)
        program.write_text(
            f"{begin}import os, time\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.01)\nmain()\n"
        )
        server.proxy.signal(signal.SIGUSR2)
        wait_for(lambda: "starts" in server.proxy.messages, "the start")
        assert "is about to take over already" in server.ask("upgrade")[2]
        go.touch()
        wait_for(lambda: "serves, this one drains" in server.proxy.messages, "the other one")
        server.proxy.signal(signal.SIGUSR2)
        wait_for(lambda: "has taken over already" in server.proxy.messages, "the refusal")
        (new,) = [pid for pid in children(server.pids[0]) if pid not in server.proxy.known]
        server.pids.append(new)
        tunnel.check()
        tunnel.close()


# --- the end ---


def test_sigterm_while_the_new_one_starts_ends_both(tmp_path: Path) -> None:
    """The new one must not serve on when the operator has ended the server."""
    program = tmp_path / "tabi"
    program.write_text(f"#!{sys.executable}\nfrom tabi.__main__ import main\nmain()\n")
    program.chmod(0o755)
    with run_script(tmp_path, program) as server:
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        server.proxy.signal(signal.SIGUSR2)
        wait_for(lambda: "starts" in server.proxy.messages, "the start")
        started = children(server.pids[0])
        server.proxy.signal(signal.SIGTERM)
        assert server.proxy.wait() == 0
        wait_for(lambda: not any(map(is_running, started)), "all to end")
        assert "not upgraded, this process goes on: the server is stopping" in server.proxy.messages


def test_sigterm_while_the_old_one_drains_ends_both_in_their_time(tmp_path: Path) -> None:
    """The new one is the one to signal: once and it waits for the other's sessions, twice and all are cut."""
    with upgrading(tmp_path) as server, listening() as (listener, _):
        before = Tunnel(server.proxy.address, listener)
        new = server.upgrade()
        after = Tunnel(server.proxy.address, listener)
        os.kill(new, signal.SIGTERM)
        wait_for(lambda: refuses(server.proxy.address), "the listener to close")
        before.check()
        after.check()
        after.close()
        before.check()
        assert is_running(new)
        os.kill(new, signal.SIGTERM)
        assert before.client.recv(1) == b""
        before.close()
        server.wait_gone(new)
        server.wait_gone(server.pids[0])


def test_a_draining_one_that_is_told_to_stop(tmp_path: Path) -> None:
    """Ctrl-C goes to both: the first one cuts nothing in the old process, the second one does."""
    with upgrading(tmp_path) as server, listening() as (listener, _):
        tunnel = Tunnel(server.proxy.address, listener)
        server.upgrade()
        server.proxy.signal(signal.SIGINT)
        wait_for(lambda: "draining; once more stops at once" in server.proxy.messages, "the message")
        tunnel.check()
        server.proxy.signal(signal.SIGINT)
        assert tunnel.client.recv(1) == b""
        tunnel.close()
        server.wait_gone(server.pids[0])
        with tunnels(server.proxy.address) as (one,):
            one.check()


def test_the_new_one_serves_on_when_the_old_one_is_killed(tmp_path: Path) -> None:
    """Nothing but its sessions ends with it."""
    with upgrading(tmp_path) as server, listening() as (listener, _):
        tunnel = Tunnel(server.proxy.address, listener)
        server.upgrade()
        server.proxy.process.kill()
        server.proxy.process.wait()
        tunnel.check()
        tunnel.close()
        with tunnels(server.proxy.address) as (one,):
            one.check()
        assert server.ask("fault", "list")[0] == 0


# --- what belongs to whom ---


def test_listeners_that_are_new_and_listeners_that_are_gone(tmp_path: Path) -> None:
    """A place that stays keeps its socket, whatever is spoken there; others are opened, and closed with the old one."""
    path = tmp_path / "tabi.toml"
    files = [tmp_path / name for name in ("stays.sock", "goes.sock", "comes.sock")]

    def write(*urls: str) -> None:
        path.write_text("".join(f'[[listen]]\nurl = "{url}"\n' for url in urls))

    write("socks5://127.0.0.1:0", f"unix://{files[0]}", f"unix://{files[1]}", "socks5://127.0.0.1:0")
    with upgrading(tmp_path, "-c", path) as server:
        kept, _, _, gone = server.proxy.urls
        inode = files[0].stat().st_ino
        write("mixed://127.0.0.1:0", f"unix://{files[0]}?mode=0666", f"unix://{files[2]}")
        server.upgrade()
        server.wait_gone(server.pids[0])
        now = server.proxy.urls[4:]
        assert now[0] == kept.replace("socks5", "mixed")
        assert (files[0].stat().st_ino, files[0].stat().st_mode & 0o777) == (inode, 0o666)
        assert [one.exists() for one in files] == [True, False, True]
        host, _, port = gone.partition("://")[2].rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
        for file in (files[0], files[2]):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(str(file))
                sock.sendall(GREETING)
                assert receive_exactly(sock, 2) == b"\x05\x00"
    assert not any(one.exists() for one in files)


def test_sockets_of_a_service_manager_go_on(tmp_path: Path) -> None:
    """fd://NAME is the same in the new process, which nobody passes anything to; the manager learns who is its main
    process, and is not told that the service stops."""
    path = tmp_path / "tabi.toml"
    path.write_text('[[listen]]\nurl = "fd://web?protocol=socks5"\n')
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.settimeout(PATIENCE)
    manager.bind(str(tmp_path / "notify"))
    with manager, socket.create_server(("127.0.0.1", 0)) as sock, socket.create_server(("127.0.0.1", 0)) as other:
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        passed = [(sock, "web"), (other, "spare")]
        with upgrading(tmp_path, "-c", path, environ=environ, passed=passed) as server:
            assert manager.recv(100) == b"READY=1"
            path.write_text(
                '[[listen]]\nurl = "fd://spare?protocol=socks5"\n[[listen]]\nurl = "fd://web?protocol=http"\n'
            )
            new = server.upgrade()
            assert manager.recv(100) == f"MAINPID={new}".encode()
            server.wait_gone(server.pids[0])
            with tunnels(Address(server.proxy.address.host, other.getsockname()[1])) as (tunnel,):
                tunnel.check()
            os.kill(new, signal.SIGHUP)
            assert manager.recv(100).startswith(b"RELOADING=1")
            assert manager.recv(100) == b"READY=1"


def test_the_admin_api_goes_to_the_new_one(tmp_path: Path) -> None:
    """At the same place, port 0 too; the old process has none while it drains."""
    pytest.importorskip("uvicorn")
    path = config_of(tmp_path, '[admin]\nlisten = "127.0.0.1:0"\n')
    with upgrading(tmp_path, "-c", path) as server, listening() as (listener, _):

        def place() -> str:
            lines = [line for line in server.proxy.messages.splitlines() if line.startswith("for operators: ")]
            return lines[-1].removeprefix("for operators: ")

        def is_healthy() -> bool:
            with urlopen(f"{place()}healthz", timeout=PATIENCE) as answer:
                return bool(answer.status == 200)

        before = place()
        tunnel = Tunnel(server.proxy.address, listener)
        wait_for(is_healthy, "the API")
        new = server.upgrade()
        wait_for(lambda: "tabi-admin" not in map(name_of, children(server.pids[0])), "the end of the old API")
        assert "tabi-admin" in map(name_of, children(new))
        assert (is_healthy(), place()) == (True, before)
        tunnel.check()
        assert "another starts" not in server.proxy.messages
        config_of(tmp_path)
        server.upgrade()
        wait_for(lambda: "tabi-admin" not in map(name_of, children(new)), "the end of that API")
        with pytest.raises(URLError):
            is_healthy()
        tunnel.close()


def test_the_new_one_has_the_control_socket(tmp_path: Path) -> None:
    """It answers under the usual name at once; the old one keeps another one, as long as it drains."""
    with upgrading(tmp_path) as server, listening() as (listener, _):
        tunnel = Tunnel(server.proxy.address, listener)
        new = server.upgrade()
        names = sorted(path.name for path in server.socket.parent.iterdir())
        assert names == ["control.sock", f"draining-{server.pids[0]}.sock"]
        from tabi.server.control import ask_server

        assert ask_server(server.socket, "status")["pid"] == new
        old = ask_server(server.socket.parent / names[1], "status")
        assert (old["pid"], old["state"], old["listening"]) == (server.pids[0], "draining", [])
        tunnel.close()
        server.wait_gone(server.pids[0])
        wait_for(lambda: [path.name for path in server.socket.parent.iterdir()] == ["control.sock"], "the name to go")


def test_faults_that_were_set_are_set_in_the_new_one(tmp_path: Path) -> None:
    """With their names and what is left of their time, and changed by the same commands."""
    with upgrading(tmp_path) as server:
        assert server.ask("fault", "add", "3g", "--name", "slow", "--for", "1 h")[0] == 0
        name = server.ask("fault", "add", "offline", "--host", "never.example")[1].strip()
        server.upgrade()
        found = {one["name"]: one for one in json.loads(server.ask("fault", "list", "--json")[1])}
        assert set(found) == {"slow", name}
        assert 0 < found["slow"]["seconds_left"] <= 3600
        assert server.ask("fault", "add", "offline", "--host", "never.example")[0] == 0
        assert server.ask("fault", "remove", "--all")[0] == 0


@contextlib.contextmanager
def limited(folder: Path, limits: str) -> Iterator[Upgraded]:
    """A server with a limit for all together."""
    path = folder / "tabi.toml"
    path.write_text(f'[[listen]]\nurl = "socks5://127.0.0.1:0"\n[limits]\n{limits}\n[quotas]\npath = "quotas.sqlite"\n')
    with upgrading(folder, "-c", path) as server:
        yield server


def test_connections_count_for_each_of_both(tmp_path: Path) -> None:
    """A limit of one connection: while the old one has its own, the new one lets in another, and no third."""
    with limited(tmp_path, "connections = 1") as server, listening() as (listener, port):
        first = Tunnel(server.proxy.address, listener)
        with pytest.raises(AssertionError, match="reply 0502"):
            open_tunnel(server.proxy.address, port)
        server.upgrade()
        second = Tunnel(server.proxy.address, listener)
        first.check()
        second.check()
        with pytest.raises(AssertionError, match="reply 0502"):
            open_tunnel(server.proxy.address, port)
        first.close()
        second.close()


def test_quotas_count_what_both_use_and_nothing_twice(tmp_path: Path) -> None:
    """What the old one's session carries after the upgrade is used up for the new one, too, within seconds."""
    with limited(tmp_path, 'quota = "100 kB/day"') as server, listening() as (listener, port):
        old = Tunnel(server.proxy.address, listener)
        send(old, 20_000)
        server.upgrade()
        new = Tunnel(server.proxy.address, listener)
        send(new, 20_000)
        send(old, 40_000)
        old.close()
        server.wait_gone(server.pids[0])
        send(new, 10_000)
        new.close()
        stored = wait_for(lambda: used(tmp_path) == 90_000 and 90_000, f"what is stored, now {used(tmp_path)}")
        assert stored == 90_000
        last = Tunnel(server.proxy.address, listener)
        last.client.sendall(bytes(20_000))
        assert len(receive_all(last.server)) <= 10_000
        last.close()
        wait_for(lambda: used(tmp_path) >= 100_000, "all to be used")
        with pytest.raises(AssertionError, match="reply 0502"):
            open_tunnel(server.proxy.address, port)


def send(tunnel: Tunnel, octets: int) -> None:
    """Send so much, and have it arrive."""
    tunnel.client.sendall(bytes(octets))
    receive_exactly(tunnel.server, octets)


def used(folder: Path) -> int:
    """What the store has, in octets."""
    from tabi.server.quota_store import QuotaStore

    return sum(octets for _, octets in QuotaStore(folder / "quotas.sqlite").load().values())


def associate(proxy: Address) -> tuple[socket.socket, socket.socket, int]:
    """An association: its control connection, a UDP socket, and the port that the proxy names."""
    control = socket.create_connection((str(proxy.host), proxy.port), PATIENCE)
    control.sendall(GREETING + b"\5\3\0\1\0\0\0\0\0\0")
    reply = receive_exactly(control, 12)[2:]
    assert reply[:2] == b"\5\0"
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    return control, sock, int.from_bytes(reply[-2:])


def check_association(sock: socket.socket, port: int, target: socket.socket) -> None:
    """A datagram goes to the target, and back."""
    place = target.getsockname()
    sock.sendto(b"\0\0\0\1\x7f\0\0\1" + place[1].to_bytes(2, "big") + b"ping", ("127.0.0.1", port))
    data, sender = target.recvfrom(100)
    assert data == b"ping"
    target.sendto(b"pong", sender)
    assert sock.recv(100)[-4:] == b"pong"


def test_the_shared_udp_port_stays_with_the_old_one_until_its_last_association_ends(tmp_path: Path) -> None:
    """Meanwhile associations of the new one have ports of their own; then they share that one again."""
    path = tmp_path / "tabi.toml"
    path.write_text('[[listen]]\nurl = "socks5://127.0.0.1:0"\nudp = { ports = "shared" }\n')
    with (
        upgrading(tmp_path, "-c", path) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target,
        contextlib.ExitStack() as stack,
    ):
        target.bind(("127.0.0.1", 0))
        target.settimeout(PATIENCE)
        proxy = server.proxy.address
        old, udp, port = associate(proxy)
        stack.enter_context(old)
        stack.enter_context(udp)
        assert port == proxy.port
        check_association(udp, port, target)
        server.upgrade()
        new, other, own = associate(proxy)
        stack.enter_context(new)
        stack.enter_context(other)
        assert own != proxy.port
        check_association(other, own, target)
        check_association(udp, port, target)
        assert f"shared UDP port {proxy.port}: another process has it" in server.proxy.messages
        old.close()
        server.wait_gone(server.pids[0])
        third, last, port = associate(proxy)
        stack.enter_context(third)
        stack.enter_context(last)
        assert port == proxy.port
        check_association(last, port, target)


def test_who_goes_to_which_member_by_hash_goes_there_afterwards(tmp_path: Path) -> None:
    """A process begins without the sticky keys of the one before, but what is computed is the same."""
    with contextlib.ExitStack() as stack:
        members = [stack.enter_context(listening())[0] for _ in range(4)]
        urls = ", ".join(f'"socks5://127.0.0.1:{sock.getsockname()[1]}"' for sock in members)
        path = tmp_path / "tabi.toml"
        path.write_text(
            '[[listen]]\nurl = "socks5://127.0.0.1:0"\n[timeouts]\ndrain = "1 ms"\n[[rule]]\nvia = "pool"\n'
            f'[egress.pool]\nmembers = [{urls}]\nbalance = "hash"\n'
        )
        server = stack.enter_context(upgrading(tmp_path, "-c", path))

        def member_of(client: str) -> int:
            with socket.create_connection(("127.0.0.1", server.proxy.address.port), PATIENCE, (client, 0)) as sock:
                sock.sendall(GREETING + request("192.0.2.1", 1))
                (found,) = select.select(members, (), (), PATIENCE)[0]
                member = accept(found)
            with member:
                receive_all(member)  # the session ends with its client, and no other member is tried
            return members.index(found)

        clients = [f"127.0.0.{number}" for number in range(1, 9)]
        before = [member_of(client) for client in clients]
        assert len(set(before)) > 1
        server.upgrade()
        server.wait_gone(server.pids[0])
        assert [member_of(client) for client in clients] == before


def test_process_1_of_a_container_says_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others end with it, the new one too."""
    from tabi.server.upgrade import Succession

    monkeypatch.setattr(os, "getpid", lambda: 1)
    told: list[object] = []
    Succession(None, None, None, None, None, None, None).begin(told.append)  # type: ignore[arg-type]
    assert told == [
        {
            "error": "not upgraded: process 1 of a container cannot be replaced, since all others end with it: start "
            "another container"
        }
    ]


# --- the command line ---


def test_which_command_is_executed(tmp_path: Path) -> None:
    """A script whose first line has named the interpreter is executed itself; else the interpreter is the same."""
    script = tmp_path / "tabi"
    script.write_text("#!/opt/tabi/bin/python\nimport tabi\n")
    rest = [str(script), "serve", "-l", "x"]
    assert command_line(["/opt/tabi/bin/python", *rest], [str(script)]) == rest
    assert command_line(["python3", *rest], [str(script)]) == [sys.executable, *rest]
    assert command_line(["python3", "-m", "tabi", "serve"], ["/x/__main__.py"]) == [
        sys.executable,
        "-m",
        "tabi",
        "serve",
    ]
    assert first_line(str(tmp_path / "none")) == ""
