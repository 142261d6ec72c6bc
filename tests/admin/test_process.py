"""The process of the admin API: slow clients, many clients, workers that hang or die, and its own end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from asyncio import constants
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from operating import FILE, READ_TOKEN, TOKEN, Operator, operated
from origin import make_certificates
from processes import (
    environment,
    failure,
    is_running,
    listening,
    open_tunnel,
    paused,
    refuses,
    run_tabi,
    tunnels,
    wait_for,
)
from support import GREETING, request
from tabi.admin import process as module
from tabi.admin.access import Access
from tabi.admin.process import AdminProcess
from tabi.config import parse_config
from tabi.server.channel import Channel, Message, make_channel

# --- in this process, with a supervisor that the test plays ---


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[int, Channel]]:
    """Run one; gives its port and the supervisor's end."""
    ours, theirs = make_channel()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        process = AdminProcess(parse_config(FILE), sock, "1.2.3", Access(TOKEN, READ_TOKEN))
        ready: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def heard(message: Message) -> None:
            if not ready.done():
                ready.set_result(message)
                return
            command, number = message.body["request"]["command"], message.body["id"]
            found = {"pid": 1, "state": "running", "workers": [1]} if command == "status" else None
            ours.send({"id": number, "silent": []} if found is None else {"id": number, "ok": found})

        ours.watch(asyncio.get_running_loop(), heard, lambda: None)
        task = asyncio.Task(process.serve(theirs))
        try:
            await ready
            yield sock.getsockname()[1], ours
        finally:
            ours.close()
            async with asyncio.timeout(10):
                await task
            theirs.close()


async def exchange(port: int, *parts: bytes) -> bytes:
    """What comes back for these octets until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
        async with asyncio.timeout(15):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
BEARER = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
POST = b"POST /faults HTTP/1.1\r\n" + BEARER + b"Content-Length: 5\r\n\r\n1"


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"", 0),
        (b"GET /he", 0),
        (HEAD, 0),
        (HEAD + b"\r\n", 1),
        (HEAD + b"\r\n" + HEAD, 1),
        (HEAD + b"\r\n" + HEAD + b"\r\nGET", 2),
        (POST, 0),
    ],
)
def test_a_slow_client_is_cut(run_once: Run, monkeypatch: pytest.MonkeyPatch, sent: bytes, answers: int) -> None:
    """Wherever it stops: before or within the first head, between requests, within a later head, within a body."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    async def main() -> bytes:
        async with serving() as (port, _):
            return await exchange(port, sent)

    assert run_once(main).count(b"HTTP/1.1 200 OK") == answers


def test_a_client_that_trickles_is_cut(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is for the whole head, not for each octet, also of a later request."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    async def main() -> None:
        async with serving() as (port, _):
            for first in (b"", HEAD + b"\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(first + b"GET / HTTP/1.1\r\nX: ")
                reading = asyncio.Task(reader.read())
                async with asyncio.timeout(10):
                    while not reading.done():
                        writer.write(b"x")
                        await asyncio.sleep(0.02)
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await reading

    run_once(main)


def test_a_client_that_reads_nothing_is_cut(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers do not wait for ever."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    async def main() -> None:
        async with serving() as (port, _):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
                request = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
                cut = False
                async with asyncio.timeout(10):
                    while not cut:
                        try:
                            sock.send(request * 100)
                        except BlockingIOError:
                            await asyncio.sleep(0.01)
                        except ConnectionError:
                            cut = True

    run_once(main)


def test_a_handshake_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of TLS, too: a client that says nothing is cut."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(constants, "SSL_HANDSHAKE_TIMEOUT", 60.0)
    certificates = make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.chain, certificates.key)
    ours, theirs = make_channel()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        process = AdminProcess(parse_config(FILE), sock, "1.2.3", Access(None, None), tls)
        thread = threading.Thread(target=process.run, args=(theirs,))
        thread.start()
        with socket.create_connection(sock.getsockname(), 10) as silent:
            assert silent.recv(1) == b""
        ours.close()
        thread.join(10)
        assert not thread.is_alive()
    theirs.close()


def test_connections_are_bounded(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one takes the place of the oldest that waits for its client: who says nothing keeps nobody out."""
    monkeypatch.setattr(module, "MOST", 3)

    async def main() -> None:
        async with serving() as (port, _):
            open_ = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for reader, writer in open_:  # in this order
                writer.write(HEAD + b"\r\n")
                await reader.readuntil(b"ok\n")
            for cut in range(2):
                assert b"ok\n" in await exchange(port, HEAD + b"Connection: close\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    assert await open_[cut][0].read() == b""
                replaced = await asyncio.open_connection("127.0.0.1", port)
                open_.append(replaced)
                replaced[1].write(HEAD + b"\r\n")
                await replaced[0].readuntil(b"ok\n")
            for _, writer in open_:
                writer.close()

    run_once(main)


def test_those_that_are_served_are_not_cut(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all of them hear news, it is the new one that is closed."""
    monkeypatch.setattr(module, "MOST", 3)

    async def main() -> None:
        async with serving() as (port, _):
            open_ = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for reader, writer in open_:
                writer.write(b"GET /events HTTP/1.1\r\n" + BEARER + b"\r\n")
                await reader.readuntil(b"news of tabi")
            assert await exchange(port, HEAD + b"\r\n") == b""
            for reader, writer in open_:
                assert not reader.at_eof()
                writer.close()

    run_once(main)


def test_many_that_listen_and_do_not_read(run_once: Run) -> None:
    """So many hear news, the others are refused; none keeps the process from its end."""

    async def main() -> None:
        async with serving() as (port, _):
            head = b"GET /events HTTP/1.1\r\n" + BEARER + b"\r\n"
            answers = []
            writers = []
            for _ in range(100):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writers.append(writer)
                writer.write(head)
                answers.append(await reader.readline())
            assert answers.count(b"HTTP/1.1 200 OK\r\n") == 64
            assert answers.count(b"HTTP/1.1 503 Service Unavailable\r\n") == 36
            began = time.monotonic()
        assert time.monotonic() - began < 5
        for writer in writers:
            writer.close()

    run_once(main)


def test_what_is_no_http_is_refused(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """And logged by nobody: outsiders could fill a disk so."""

    async def main() -> None:
        async with serving() as (port, _):
            assert (await exchange(port, b"\x16\x03\x01\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
            long = await exchange(port, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000)
            assert long.startswith(b"HTTP/1.1 400 ") or not long
            assert b" 421 " in await exchange(port, b"GET / HTTP/1.0\r\n\r\n")

    run_once(main)
    assert caplog.text == ""


# --- beside a server ---


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """Two workers and a pool, for tests that leave nothing behind."""
    text = f'workers = 2\n{FILE}[egress.pool]\nmembers = ["direct", "socks5://127.0.0.1:1"]\n'
    with operated(tmp_path_factory.mktemp("admin"), text) as found:
        wait_for(lambda: found.call("GET", "/readyz", token=None).status == 200, "both workers")
        yield found


def test_sessions_are_seen_and_ended(operator: Operator) -> None:
    """Of all workers; the tunnel that was named is closed, the others go on."""
    with tunnels(operator.proxy.address, 4) as found:
        for tunnel in found:
            tunnel.check()
        port = found[0].client.getsockname()[1]
        answer = operator.get("/sessions?sort=seconds")
        assert answer["matching"] == len(answer["sessions"]) == 4
        (row,) = (row for row in answer["sessions"] if row["client"].endswith(f":{port}"))
        assert (row["up"], row["down"], row["command"]) == (4, 4, "connect")
        assert operator.call("DELETE", f"/sessions/{row['id']}", token=READ_TOKEN).status == 403
        assert operator.call("DELETE", f"/sessions/{row['id']}").json == {"ended": 1, "silent": []}
        with contextlib.suppress(ConnectionError):
            assert found[0].client.recv(1) == b""
        for tunnel in found[1:]:
            tunnel.check()
        assert operator.call("DELETE", "/sessions?client=127.0.0.1").json["ended"] == 3
    lines = operator.proxy.sessions(4)
    assert [line["close"] for line in lines] == ["kicked"] * 4


def test_members_are_drained_and_brought_back(operator: Operator) -> None:
    """In all workers, and in one that is started again."""

    def drained() -> dict[str, bool]:
        return {row["member"]: row["drained"] for row in operator.get("/egress")["members"]}

    names = list(drained())
    assert operator.call("POST", "/egress/pool/none/drain").status == 400
    assert operator.call("POST", f"/egress/pool/{names[1].replace('/', '%2F')}/drain").json["done"]
    assert drained() == {names[0]: False, names[1]: True}
    before = set(operator.proxy.workers())
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: len(set(operator.proxy.workers()) - before) == 2, "two others")
    wait_for(lambda: len(drained()) == 2, "their answer")
    assert drained() == {names[0]: False, names[1]: True}
    assert operator.call("POST", f"/egress/pool/{names[1].replace('/', '%2F')}/undrain").json["done"]
    assert drained() == {names[0]: False, names[1]: False}


def test_a_worker_that_hangs_is_said(operator: Operator) -> None:
    """Within its time; the others are shown meanwhile, and it is not ready."""
    wait_for(lambda: operator.call("GET", "/readyz", token=None).status == 200, "both workers")
    (held, _) = operator.proxy.workers()
    with paused(held):
        began = time.monotonic()
        answer = operator.get("/sessions")
        assert 1.5 < time.monotonic() - began < 4
        assert answer["silent"] == [held]
        ready = operator.call("GET", "/readyz", token=None)
        assert (ready.status, ready.body) == (503, b"not ready: workers that do not answer: 1\n")
        assert operator.metrics()["tabi_workers"] == 1
        assert operator.call("GET", "/healthz", token=None).status == 200
    wait_for(lambda: operator.call("GET", "/readyz", token=None).status == 200, "that it is ready again")


def test_counters_never_fall_while_workers_die(operator: Operator) -> None:
    """Scrapes go on while workers are killed: none fails, and no count is less than before."""
    last: dict[str, float] = {}
    before = operator.metrics().get("tabi_workers", 0)
    assert before == 2
    for round_ in range(6):
        with tunnels(operator.proxy.address, 2) as found:
            for tunnel in found:
                tunnel.check()
        for _ in range(3):
            metrics = operator.metrics()
            counted = {name: value for name, value in metrics.items() if "_total" in name or "_count" in name}
            assert {name for name, value in last.items() if counted.get(name, 0) < value} == set()
            last = counted
        if round_ % 2:
            workers = operator.proxy.workers()
            os.kill(workers[round_ // 2 % len(workers)], signal.SIGKILL)
            wait_for(lambda: operator.metrics().get("tabi_workers") == 2, "the next one")
    assert sum(value for name, value in last.items() if name.startswith("tabi_sessions_total")) >= 6


def test_the_proxy_never_dials_it(operator: Operator) -> None:
    """By whatever address or name of this machine."""
    port = operator.address.port
    for host in ("127.0.0.1", "localhost", "127.0.0.77", "0.0.0.0", "::1", "::ffff:127.0.0.1", "::"):
        with socket.create_connection((str(operator.proxy.address.host), operator.proxy.address.port), 10) as sock:
            sock.sendall(GREETING + request(host, port))
            data = b""
            while len(data) < 4 and (more := sock.recv(100)):
                data += more
            assert data[2:4] in (b"\x05\x02", b"\x05\x04"), (host, data)
    assert {line["error"] for line in operator.proxy.sessions(1, port=port)} >= {
        f"127.0.0.1:{port} is for the operators of this proxy"
    }
    with listening() as (listener, other):
        open_tunnel(operator.proxy.address, other).close()
        del listener


def test_many_scrape_at_once(operator: Operator) -> None:
    """Each is answered: with figures, or that there are too many."""
    found: list[int] = []

    def scrape() -> None:
        found.append(operator.call("GET", "/metrics", token=None).status)

    threads = [threading.Thread(target=scrape) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {200, 503}
    assert 200 in found
    assert operator.metrics()["tabi_workers"] == 2


def test_nothing_of_it_is_imported_by_others() -> None:
    """`tabi serve` has uvicorn and starlette only in the process that needs them."""
    text = "import sys, tabi.cli.serve, tabi.cli.check; print({'uvicorn', 'starlette'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment(), timeout=20)
    assert done.stdout == "set()\n"


def test_a_storm_of_reloads(tmp_path: Path) -> None:
    """Each is answered, they are done together as far as they can be, and what runs goes on."""
    with operated(tmp_path) as operator, tunnels(operator.proxy.address) as (tunnel,):
        found: list[tuple[int, object]] = []

        def reload() -> None:
            answer = operator.call("POST", "/reload")
            found.append((answer.status, answer.json))

        threads = [threading.Thread(target=reload) for _ in range(50)]
        for thread in threads:
            thread.start()
        tunnel.check()
        for thread in threads:
            thread.join()
        assert found == [(200, {"rules": 0, "users": 0, "wait_for_restart": []})] * 50
        assert operator.proxy.messages.count("reloaded: rules: 0") < 50
        tunnel.check()
        assert operator.call("GET", "/readyz", token=None).status == 200


def test_it_is_started_again_with_the_configuration_that_holds(tmp_path: Path) -> None:
    """Killed, it is there again, on the same port, and knows what was reloaded meanwhile. What [admin] itself says
    waits for a restart."""
    with operated(tmp_path) as operator:
        path = tmp_path / "tabi.toml"
        text = FILE.replace(TOKEN, "another-token-entirely")
        path.write_text(f'{text}[[rule]]\naction = "deny"\nname = "new"\nports = [25]\n')
        answer = operator.call("POST", "/reload").json
        assert answer == {"rules": 1, "users": 0, "wait_for_restart": ["admin"]}
        wait_for(lambda: operator.get("/config")["rule"], "the rule")
        assert operator.call("GET", "/config", token="another-token-entirely").status == 401
        process = operator.process
        assert process is not None
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: operator.process not in (None, process), "another one")

        def rules() -> Any:
            with contextlib.suppress(OSError):
                return operator.get("/config")["rule"]

        (rule,) = wait_for(rules, "the rule")
        assert rule["name"] == "new"
        explained = operator.call("POST", "/explain", {"destination": "127.0.0.1:25"}, READ_TOKEN).json
        assert explained["rules"][0]["matched"] is True
        path.write_text("bogus = 1")
        answer = operator.call("POST", "/reload")
        assert answer.status == 503
        assert "bogus: unknown key" in answer.json["error"]
        assert operator.get("/config")["rule"] == [rule]


def test_its_end(tmp_path: Path) -> None:
    """With the server's, at once, whoever listens; nobody listens there then, and no process stays."""
    with operated(tmp_path) as operator:
        host, port = operator.address
        process = operator.process
        assert process is not None
        with socket.create_connection((str(host), port), 10) as sock:
            head = f"GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {READ_TOKEN}\r\n\r\n"
            sock.sendall(head.encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")
            operator.proxy.signal(signal.SIGTERM)
            assert operator.proxy.wait() == 0
        assert refuses(operator.address)
        assert not is_running(process)
        assert "rror" not in operator.proxy.messages


def test_workers_that_drain_do_not_hold_its_port(tmp_path: Path) -> None:
    """Not even where the supervisor was killed: another server can have it."""
    with operated(tmp_path) as operator, tunnels(operator.proxy.address) as (tunnel,):
        workers = operator.proxy.workers()
        operator.proxy.process.kill()
        wait_for(lambda: refuses(operator.address), "that nobody listens there")
        assert is_running(workers[0])
        tunnel.check()


def test_it_answers_while_the_server_drains(tmp_path: Path) -> None:
    """And says that it is not ready, so that a balancer sends clients elsewhere."""
    with operated(tmp_path) as operator, tunnels(operator.proxy.address) as (tunnel,):
        operator.proxy.signal(signal.SIGTERM)
        wait_for(lambda: operator.call("GET", "/readyz", token=None).status == 503, "that it is not ready")
        assert operator.get("/status")["state"] == "stopping"
        assert operator.get("/sessions")["matching"] == 1
        tunnel.check()


def test_inside_tls(tmp_path: Path) -> None:
    """By its own certificate, for names that are listed."""
    certificates = make_certificates(tmp_path)
    tls = f'tls = {{certificate = "{certificates.chain}", key = "{certificates.key}"}}\nhosts = ["tabi.example"]\n'
    with operated(tmp_path, FILE + tls) as operator:
        assert operator.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificates.authority))
        host, port = operator.address
        for name, status in (("localhost", b"200"), ("tabi.example", b"200"), ("evil.example", b"421")):
            with (
                socket.create_connection((str(host), port), 10) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as sock,
            ):
                origin = f"https://{name}"
                head = f"GET /healthz HTTP/1.1\r\nHost: {name}\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n"
                sock.sendall(head.encode())
                assert sock.recv(100).startswith(b"HTTP/1.1 " + status)


STARTS = [
    ('listen = "0.0.0.0:0"', "admin.tls: missing: the network can reach it"),
    ('listen = "127.0.0.1:0"\ntoken_file = "token"', "others can read it or write to it: chmod 600"),
    ('listen = "127.0.0.1:0"\ntoken_file = "none"', "no such file or directory"),
    ('listen = "127.0.0.1:0"\ntls = {certificate = "a", key = "token"}', "admin.tls."),
]


@pytest.mark.parametrize(("text", "message"), STARTS)
def test_what_keeps_it_from_starting(tmp_path: Path, text: str, message: str) -> None:
    """One line, and the exit code 2; `tabi check` says the same."""
    path, token = tmp_path / "tabi.toml", tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    path.write_text(f'[[listen]]\nurl = "socks5://127.0.0.1:0"\n[admin]\n{text}\n')
    assert message in failure(run_tabi("serve", "-c", path), 2)
    checked: subprocess.CompletedProcess[bytes] = run_tabi("check", path)
    assert checked.returncode == 2
    assert json.dumps(message)[1:-1] in checked.stderr.decode()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """The message names the place."""
    with listening() as (_, port):
        path = tmp_path / "tabi.toml"
        path.write_text(f'[[listen]]\nurl = "socks5://127.0.0.1:0"\n[admin]\nlisten = "127.0.0.1:{port}"\n')
        assert f"admin.listen: 127.0.0.1:{port}: address already in use" in failure(run_tabi("serve", "-c", path), 2)
