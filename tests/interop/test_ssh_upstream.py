"""OpenSSH's sshd as a way out: of `tabi serve` with curl, of `tabi connect`, of the client, alone and in chains."""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tabi
from authorities import authority, write_server
from conftest import Run
from processes import (
    PATIENCE,
    TABI,
    accept,
    answer_http,
    environment,
    failure,
    in_thread,
    listening,
    need,
    open_tunnel,
    receive_exactly,
    run_program,
    serve,
    wait_for,
)
from sshd import Sshd, run_sshd, user_url
from support import closed_port, target
from tabi.config import Listen, Log

pytestmark = pytest.mark.interop


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[tuple[Sshd, int]]:
    """A running one and its port."""
    (tmp_path / "sshd").mkdir()
    with run_sshd(tmp_path / "sshd") as running:
        yield running


def home(folder: Path, server: Sshd) -> dict[str, str]:
    """The environment of a user who has the keys where ssh(1) has them, and no agent."""
    keys = folder / ".ssh"
    keys.mkdir(exist_ok=True)
    for name, source in (("known_hosts", "known_hosts"), ("id_ed25519", "user")):
        (keys / name).write_text((server.folder / source).read_text())
        (keys / name).chmod(0o600)
    env = environment() | {"HOME": str(folder)}
    env.pop("SSH_AUTH_SOCK", None)
    return env


def configure(folder: Path, server: Sshd, port: int, more: str = "") -> Path:
    """A tabi.toml whose way out is the sshd; paths are relative to it."""
    path = folder / "tabi.toml"
    path.write_text(
        'listen = [{ url = "mixed://127.0.0.1:0" }]\nrule = [{ action = "allow", via = "jump" }]\n'
        f'[egress.jump]\nurl = "{user_url(port)}"\nssh.known_hosts = "sshd/known_hosts"\nssh.key = "sshd/user"\n{more}'
    )
    return path


def test_curl_through_tabi_serve(tmp_path: Path, sshd: tuple[Sshd, int], run_once: Run) -> None:
    """By name and by address, over one connection; the log has the way and the server's address."""
    server, port = sshd
    curl = need("curl")
    body = hashlib.shake_256(b"curl").digest(1 << 20)

    async def main() -> None:
        async with target(answer_http(body)) as there:
            for scheme, host in (("socks5h", "localhost"), ("http", "127.0.0.1")):
                proxy = f"{scheme}://{running.address}"
                done = await in_thread([curl, "-sS", "-x", proxy, f"http://{host}:{there}/"])
                assert done.stdout == body, done.stderr

    with serve(tmp_path, "-c", configure(tmp_path, server, port)) as running:
        run_once(main)
        with closed_port() as nobody:
            done = run_program([curl, "-sS", "-x", f"socks5h://{running.address}", f"http://127.0.0.1:{nobody}/"])
            assert b"(5)" in done.stderr
        first, second, refused = running.sessions(3)
        assert (first["via"], first["host"], first["address"]) == ("jump", "localhost", f"127.0.0.1:{port}")
        assert (second["via"], second["host"]) == ("jump", "127.0.0.1")
        assert (refused["reply"], refused["error"].partition(": ")[2]) == (5, "the SSH server says connection refused")
        assert "ssh" not in running.messages  # nothing of each channel


def test_serve_via_takes_the_keys_of_the_user(
    tmp_path: Path, sshd: tuple[Sshd, int], run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in ~/.ssh, and those of an agent: what ssh itself would take."""
    server, port = sshd
    curl, agent, add = need("curl"), need("ssh-agent"), need("ssh-add")
    for name, value in home(tmp_path, server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    async def main() -> None:
        async with target(answer_http(b"hello")) as there:
            done = await in_thread([curl, "-sS", "-x", f"socks5h://{running.address}", f"http://localhost:{there}/"])
            assert done.stdout == b"hello", done.stderr

    with serve(tmp_path, "--via", user_url(port)) as running:
        run_once(main)
    (tmp_path / ".ssh" / "id_ed25519").unlink()
    process = subprocess.Popen([agent, "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "agent").exists, "the agent")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        done = run_program([add, server.folder / "user"])
        assert done.returncode == 0, done.stderr
        with serve(tmp_path, "--via", user_url(port)) as running:
            run_once(main)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_connect_and_its_ends(tmp_path: Path, sshd: tuple[Sshd, int]) -> None:
    """Much, both ways, and each direction's end for itself."""
    server, port = sshd
    env = home(tmp_path, server)
    data = hashlib.shake_256(b"connect").digest(8 << 20)
    with listening() as (listener, there):
        command = [*TABI, "connect", "--via", user_url(port), f"localhost:{there}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
            assert process.stdin
            assert process.stdout
            with accept(listener) as sock:
                process.stdin.write(data)
                process.stdin.close()
                assert receive_exactly(sock, len(data)) == data
                assert sock.recv(1) == b""
                with ThreadPoolExecutor(1) as sending:  # what nobody reads yet need not fit into all the buffers
                    sent = sending.submit(sock.sendall, data)
                    assert process.stdout.read(len(data)) == data
                    sent.result()
            assert process.stdout.read() == b""
            assert process.wait(PATIENCE) == 0


def test_what_connect_says(tmp_path: Path, sshd: tuple[Sshd, int]) -> None:
    """One line for each failure; what is wrong with the URL is a mistake of the command line."""
    server, port = sshd
    env = home(tmp_path, server)

    def says(url: str, code: int, env: dict[str, str] = env, to: str = "127.0.0.1:1") -> str:
        done = run_program([*TABI, "connect", "--via", url, to], env=env)
        return failure(done, code).removeprefix("tabi: ").removesuffix("\n")

    here, me = f"127.0.0.1:{port}", getpass.getuser()
    assert says(user_url(port), 1) == "127.0.0.1:1: the SSH server says connection refused"
    assert says(user_url(port), 1, to="no.such.name.invalid:1").endswith("the SSH server says no such name")
    words = "the SSH server does not accept the user by"
    assert says(f"ssh://{me}:hunter2@{here}", 1) == f"{here}: {words} the password"
    assert says(f"ssh://nobody-here@{here}", 1) == f"{here}: {words} the keys of the agent and those in ~/.ssh"
    assert says(f"ssh://{here}", 2) == "an SSH server wants a user, expected ssh://user[:password]@host:port"
    (tmp_path / ".ssh" / "known_hosts").unlink()
    assert f"is not known: if it is the right one, add it to {tmp_path}/.ssh/known_hosts" in says(user_url(port), 1)
    done = run_program([*TABI, "udp", "--via", user_url(port), "127.0.0.1:1"], env=env)
    assert "UDP needs SOCKS5 all the way, and ssh://" in failure(done, 2)


def test_our_proxies_before_and_behind(
    run_once: Run, tmp_path: Path, sshd: tuple[Sshd, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every order, TLS included, by the public client."""
    server, port = sshd
    for name, value in home(tmp_path, server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(ca)
    listeners = [Listen("https://127.0.0.1:0", tls=write_server(tmp_path)), Listen("socks5://127.0.0.1:0")]
    data = os.urandom(1 << 20)

    async def main() -> None:
        config = tabi.Config(listen=listeners, log=Log(access="none"))
        async with target() as there, tabi.Server(config=config) as ours:
            https, socks = ours.urls
            ssh = user_url(port)
            for urls in ((ssh,), (https, ssh), (ssh, https), (socks, ssh, https), (ssh, ssh)):
                async with tabi.Proxy(*urls, ca=ca).connect("localhost", there) as stream, asyncio.TaskGroup() as group:
                    group.create_task(send(stream))
                    received = bytearray()
                    while some := await stream.receive():
                        received += some
                    assert received == data, urls
            reader, writer = await tabi.Proxy(https, ssh, ca=ca).open_connection("localhost", there)
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            writer.close()
            await writer.wait_closed()
            await ours.drain()
        async with asyncio.timeout(PATIENCE):  # the connections end a moment after their channels
            while asyncio.all_tasks() != {asyncio.current_task()}:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)

    async def send(stream: tabi.Stream) -> None:
        await stream.send_all(data)
        stream.send_eof()

    run_once(main)


def test_a_reload_leaves_running_channels_alone(tmp_path: Path, sshd: tuple[Sshd, int]) -> None:
    """The old connection goes on until its last channel has ended; new requests have one of their own."""
    server, port = sshd

    def count() -> int:
        return sum(
            line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01"
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        )

    path = configure(tmp_path, server, port)
    with serve(tmp_path, "-c", path) as running, listening() as (listener, there):
        with open_tunnel(running.address, there) as first, accept(listener) as one:
            assert count() == 1
            configure(tmp_path, server, port, "resolve = 'here'\n")
            running.signal(signal.SIGHUP)
            wait_for(lambda: "reloaded" in running.messages, "the reload")

            def reach_anew() -> tuple[socket.socket, socket.socket] | None:
                found = open_tunnel(running.address, there), accept(listener)
                if count() == 2:
                    return found
                for sock in found:  # the worker has not reloaded yet
                    sock.close()
                return None

            second, two = wait_for(reach_anew, "a connection of the new configuration")
            with second, two:
                for here, other in ((first, one), (one, first), (second, two), (two, second)):
                    here.sendall(b"ping")
                    assert receive_exactly(other, 4) == b"ping"
                first.close()
                one.close()
                wait_for(lambda: count() == 1, "the end of the old connection")
                second.sendall(b"pong")
                assert receive_exactly(two, 4) == b"pong"
        assert running.stop() == 0


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, sshd: tuple[Sshd, int]) -> None:
    """Its channels are reset, which the log says; the next request opens a connection again."""
    server, port = sshd
    with serve(tmp_path, "-c", configure(tmp_path, server, port)) as running, listening() as (listener, there):
        with open_tunnel(running.address, there) as sock, accept(listener):
            pids = session_processes(server)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert running.sessions(1)[0]["close"] == "reset"
        with open_tunnel(running.address, there) as sock, accept(listener) as peer:
            sock.sendall(b"ping")
            assert receive_exactly(peer, 4) == b"ping"


def session_processes(server: Sshd) -> list[int]:
    """The processes of an sshd's connections: children of the one that has its configuration on its command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            above = Path(f"/proc/{parent}/cmdline").read_bytes()
            grand = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
            top = Path(f"/proc/{grand}/cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(b"sshd: ") and str(server.config).encode() in above + top:
            found.append(int(folder.name))
    return found


def test_check_and_explain(tmp_path: Path, sshd: tuple[Sshd, int]) -> None:
    """They name the way as others, without a user or a password; what is missing is a mistake that names its key."""
    server, port = sshd
    path = configure(tmp_path, server, port)
    done = run_program([*TABI, "check", path])
    assert done.returncode == 0, done.stderr
    assert f'known_hosts = "{server.folder}/known_hosts"'.encode() in done.stdout
    done = run_program([*TABI, "explain", "-c", path, "connect", "example.com:443"])
    assert f"jump: through ssh://127.0.0.1:{port}".encode() in done.stdout, done.stdout
    for name, message in (("user", "ssh.key"), ("known_hosts", "ssh.known_hosts")):
        (server.folder / name).rename(server.folder / "away")
        text = failure(run_program([*TABI, "check", path]), 2)
        assert text == f"tabi: {path}: egress.jump.{message}: {server.folder}/{name}: No such file or directory\n"
        (server.folder / "away").rename(server.folder / name)


def test_ping_logs_in(tmp_path: Path, sshd: tuple[Sshd, int]) -> None:
    """With the user's key, several times, and directly or through a proxy; a server without that key is not well."""
    server, port = sshd
    server.know(port)
    url = user_url(port)
    with serve(tmp_path) as proxy:
        for more in ([], ["--count", "2", "--interval", "10ms"], ["--via", proxy.url]):
            done = run_program([*TABI, "ping", *more, url], env=home(tmp_path, server))
            assert (done.returncode, done.stderr) == (0, b"")
            assert b" ms (logged in)\n" in done.stdout
    (tmp_path / ".ssh" / "id_ed25519").unlink()
    env = environment() | {"HOME": str(tmp_path)}
    assert "does not accept" in failure(run_program([*TABI, "ping", url], env=env), 1)
