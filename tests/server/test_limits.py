"""Limits with real processes: what a restart, a SIGKILL and a second worker must not change."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import PATIENCE, Serve, accept, is_running, listening, receive_all, receive_exactly, serve, wait_for
from support import GREETING, credentials, request
from tabi.wire.address import Address

MIB = 1 << 20
LISTEN = '[[listen]]\nurl = "mixed://127.0.0.1:0"\n'


def configure(folder: Path, limits: str, more: str = "") -> Path:
    """A file with one user, alice, who has limits; quotas are kept in the folder."""
    path = folder / "tabi.toml"
    path.write_text(
        f"{LISTEN}[users.alice]\npassword = 'x'\nplain = true\nlimits = {{ {limits} }}\n"
        f"[quotas]\npath = '{folder}/quotas.sqlite'\n{more}"
    )
    return path


def ask(proxy: Address, port: int, command: int = 1) -> tuple[socket.socket, int]:
    """A request of alice's, and its reply's code."""
    sock = socket.create_connection((str(proxy.host), proxy.port), PATIENCE)
    sock.sendall(b"\x05\x01\x02" + credentials(b"alice", b"x") + request("127.0.0.1", port, command))
    assert receive_exactly(sock, 4) == b"\x05\x02\x01\x00"
    return sock, receive_exactly(sock, 10)[1]


@contextlib.contextmanager
def tunnel(proxy: Address, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A tunnel of alice's: both ends."""
    client, code = ask(proxy, listener.getsockname()[1])
    with client:
        assert code == 0
        with accept(listener) as server:
            yield client, server


def send_until_cut(client: socket.socket, server: socket.socket, size: int) -> int:
    """Send from the client what is too much; gives how many octets came out before the end."""
    with contextlib.suppress(OSError):
        client.settimeout(0.5)
        client.sendall(bytes(size))
    return len(receive_all(server))


def used(folder: Path) -> int:
    """What the file says that alice has used."""
    with contextlib.closing(sqlite3.connect(folder / "quotas.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = database.execute("SELECT used FROM quota WHERE account = 'user alice'").fetchall()
    return rows[0][0] if rows else 0


def kill_all(proxy: Serve) -> None:
    """SIGKILL for the supervisor and all of its workers at once."""
    workers = proxy.workers()
    proxy.process.kill()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    proxy.process.wait(PATIENCE)
    wait_for(lambda: not any(map(is_running, workers)), "the workers to be gone")


def test_a_quota_survives_sigkill(tmp_path: Path) -> None:
    """Everything is killed in the middle of a transfer: the file is whole, lacks at most what came in the last few
    seconds, and the next start goes on from there."""
    path = configure(tmp_path, 'quota = "8 MiB/month"')
    with serve(tmp_path, "-c", path) as proxy, listening() as (listener, _):
        with tunnel(proxy.address, listener) as (client, server):
            client.sendall(bytes(5 * MIB // 4))
            receive_exactly(server, 5 * MIB // 4)
            wait_for(lambda: used(tmp_path) == 5 * MIB // 4, "the quota to be stored")
            client.sendall(bytes(1000))
            receive_exactly(server, 1000)
            kill_all(proxy)
        stored = used(tmp_path)
        assert 5 * MIB // 4 <= stored <= 5 * MIB // 4 + 1000
    with serve(tmp_path, "-c", path) as proxy, listening() as (listener, _):
        with tunnel(proxy.address, listener) as (client, server):
            assert send_until_cut(client, server, 12 * MIB) == 8 * MIB - stored
        client, code = ask(proxy.address, 1)
        client.close()
        assert code == 2
        assert proxy.stop() == 0
    assert used(tmp_path) == 8 * MIB


def test_what_is_used_after_the_supervisor_was_killed_is_stored_too(tmp_path: Path) -> None:
    """Its workers drain, and whatever they carry meanwhile counts."""
    path = configure(tmp_path, 'quota = "8 MiB/month"')
    with serve(tmp_path, "-c", path, "--workers", "2") as proxy, listening() as (listener, _):
        workers = proxy.workers()
        with tunnel(proxy.address, listener) as (client, server):
            proxy.process.kill()
            proxy.process.wait(PATIENCE)
            client.sendall(bytes(MIB))
            receive_exactly(server, MIB)
        wait_for(lambda: not any(map(is_running, workers)), "the workers to end")
    assert used(tmp_path) == MIB


def test_a_quota_ends_a_transfer_to_the_octet(tmp_path: Path) -> None:
    """What was counted arrives, nothing else does, the other side sees an end and no reset, and the log says why."""
    path = configure(tmp_path, 'quota = "3 MiB/day"')
    with serve(tmp_path, "-c", path) as proxy, listening() as (listener, port):
        with tunnel(proxy.address, listener) as (client, server):
            assert send_until_cut(client, server, 5 * MIB) == 3 * MIB
        (line,) = proxy.sessions(1)
        assert (line["close"], line["up"], line["down"], line["reply"]) == ("limit", 3 * MIB, 0, 0)
        assert line["error"] == "limit: user alice: the quota of 3 MiB/day is used up"
        client, code = ask(proxy.address, port)
        client.close()
        assert code == 2
        line = proxy.sessions(2)[1]
        assert (line["close"], line["reply"], line["error"]) == (
            "limit",
            2,
            "limit: user alice: the quota of 3 MiB/day is used up",
        )


def test_a_quota_of_two_workers_and_eight_tunnels(tmp_path: Path) -> None:
    """All of them use one quota at once: together it is exceeded by less than 64 kB for each."""
    path = configure(tmp_path, 'quota = "16 MiB/day"')
    with (
        serve(tmp_path, "-c", path, "--workers", "2") as proxy,
        listening() as (listener, _),
        contextlib.ExitStack() as stack,
    ):
        pairs = [stack.enter_context(tunnel(proxy.address, listener)) for _ in range(8)]
        for client, server in pairs:
            client.setblocking(False)
            server.setblocking(False)
        arrived, ended, chunk = 0, 0, bytes(65536)
        deadline = time.monotonic() + PATIENCE
        while ended < len(pairs) and time.monotonic() < deadline:
            ended = 0
            for client, server in pairs:
                with contextlib.suppress(OSError):
                    client.send(chunk)
                try:
                    data = server.recv(MIB)
                except BlockingIOError:
                    continue
                arrived += len(data)
                ended += not data
        assert 16 * MIB <= arrived <= 16 * MIB + 8 * 65536
        assert sum(line["up"] for line in proxy.sessions(8)) == arrived
        assert {line["close"] for line in proxy.sessions(8)} == {"limit"}


def test_connections_at_once_of_two_workers(tmp_path: Path) -> None:
    """Exactly as many as are allowed, whichever workers have them; those of a worker that dies are free again."""
    path = configure(tmp_path, "connections = 5")
    with serve(tmp_path, "-c", path, "--workers", "2") as proxy, listening() as (_, port):
        wait_for(lambda: len(proxy.workers()) == 2, "two workers")
        with contextlib.ExitStack() as stack:
            codes = []
            for _ in range(12):
                sock, code = ask(proxy.address, port)
                stack.enter_context(sock)
                codes.append(code)
            assert codes == [0] * 5 + [2] * 7
            refused = [line for line in proxy.sessions(7) if line["reply"] == 2]
            assert {line["error"] for line in refused} == {"limit: user alice: 5 connections at once"}
            before = proxy.workers()
            for worker in before:
                os.kill(worker, signal.SIGKILL)
            wait_for(lambda: not any(map(is_running, before)), "the workers to die")
        wait_for(lambda: len(proxy.workers()) == 2, "two workers again")
        with contextlib.ExitStack() as stack:
            codes = []
            for _ in range(7):
                sock, code = ask(proxy.address, port)
                stack.enter_context(sock)
                codes.append(code)
            assert codes == [0] * 5 + [2] * 2


@pytest.mark.parametrize(("limits", "reason"), [("max_session = '1 s'", "1 s for a session")])
def test_a_session_that_is_long_enough_ends(tmp_path: Path, limits: str, reason: str) -> None:
    """Whatever it carries, and within a second of its time."""
    path = configure(tmp_path, limits)
    with serve(tmp_path, "-c", path) as proxy, listening() as (listener, _):
        with tunnel(proxy.address, listener) as (client, server):
            assert client.recv(1) == b""
            assert server.recv(1) == b""
        (line,) = proxy.sessions(1)
        assert (line["close"], line["error"]) == ("limit", f"limit: user alice: {reason}")
        assert 1 <= line["seconds"] < 4


def test_a_user_whose_time_is_over_in_the_middle_of_a_session(tmp_path: Path) -> None:
    """The session ends then, and another does not begin."""
    path = configure(tmp_path, "", "")
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    path.write_text(path.read_text().replace("plain = true", f"plain = true\nexpires = {moment}"))
    with serve(tmp_path, "-c", path) as proxy, listening() as (listener, port):
        with tunnel(proxy.address, listener) as (client, server):
            assert client.recv(1) == b""
            assert server.recv(1) == b""
        sock, code = ask(proxy.address, port)
        sock.close()
        assert code == 2
        ends = [(line["close"], line["error"].partition(" at ")[0]) for line in proxy.sessions(2)]
        assert ends == [("limit", "limit: user alice: expired")] * 2


def test_who_is_to_wait_waits_for_room(tmp_path: Path) -> None:
    """``over = "wait"``: the reply comes when another tunnel has ended."""
    path = configure(tmp_path, "connections = 1, over = 'wait'")
    with serve(tmp_path, "-c", path) as proxy, listening() as (listener, port):
        with tunnel(proxy.address, listener):
            waiting = socket.create_connection((str(proxy.address.host), proxy.address.port), PATIENCE)
            waiting.sendall(b"\x05\x01\x02" + credentials(b"alice", b"x") + request("127.0.0.1", port))
            assert receive_exactly(waiting, 4) == b"\x05\x02\x01\x00"
        with waiting:
            assert receive_exactly(waiting, 10)[1] == 0


def test_datagrams_count_like_octets_of_tcp(tmp_path: Path) -> None:
    """An association uses the same quota, ends when it is used up, and its line says so."""
    path = configure(tmp_path, 'quota = "100 kB/day"')
    with serve(tmp_path, "-c", path) as proxy, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.1", 0))
        there.settimeout(PATIENCE)
        control = socket.create_connection((str(proxy.address.host), proxy.address.port), PATIENCE)
        with control, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
            control.sendall(b"\x05\x01\x02" + credentials(b"alice", b"x") + request("0.0.0.0", 0, 3))
            assert receive_exactly(control, 4) == b"\x05\x02\x01\x00"
            reply = receive_exactly(control, 10)
            assert reply[1] == 0
            relay = ("127.0.0.1", int.from_bytes(reply[8:]))
            head = b"\0\0\0\x01\x7f\0\0\x01" + there.getsockname()[1].to_bytes(2)
            for _ in range(10):
                here.sendto(head + bytes(10_000), relay)
                assert len(there.recv(20_000)) == 10_000
            here.sendto(head + b"more", relay)
            assert control.recv(1) == b""
        (line,) = proxy.sessions(1)
        assert (line["close"], line["up"]) == ("limit", 100_000)
        assert line["error"] == "limit: user alice: the quota of 100 kB/day is used up"


def test_http_says_429(tmp_path: Path) -> None:
    """A client of HTTP gets the status for too much, with a reason for people and one for programs."""
    path = configure(tmp_path, "connections = 1")
    with serve(tmp_path, "-c", path) as proxy, listening() as (listener, port), tunnel(proxy.address, listener):
        with socket.create_connection((str(proxy.address.host), proxy.address.port), PATIENCE) as sock:
            sock.sendall(
                f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                "Proxy-Authorization: Basic YWxpY2U6eA==\r\n\r\n".encode()
            )
            answer = sock.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 429 ")
        assert "connection_limit_reached" in answer
        assert GREETING not in answer.encode()
