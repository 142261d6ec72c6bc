"""The control socket: who may ask, what is answered, and whose file it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tabi
from conftest import Run
from doubles import until
from processes import PATIENCE, Serve, is_running, serve, tunnels, wait_for
from tabi.errors import TabiError
from tabi.server import asker
from tabi.server import control as module
from tabi.server.channel import Channel, Message, make_channel
from tabi.server.control import (
    MAX_CLIENTS,
    NAME,
    RUN,
    Control,
    ask_server,
    find_socket,
    folders,
    open_socket,
    step_aside,
    take,
)
from tabi.server.frames import MAX_REQUEST, encode_frame, read_frame

# --- the process, in a loop of the test's ---


@pytest.fixture(autouse=True)
def empty_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server of the machine that has its socket in /run is none of the tests' business."""
    monkeypatch.setattr("tabi.server.control.RUN", str(tmp_path / "run"))


class Asked:
    """A running `Control` whose supervisor is the test."""

    def __init__(self, path: Path, control: Control, channel: Channel) -> None:
        self.path = path
        self.control = control
        self.channel = channel
        self.requests: list[dict[str, Any]] = []

    def answer(self, message: Message) -> None:
        """Answer with what was asked; nothing at all if it was ``silence``."""
        request = message.body["request"]
        self.requests.append(request)
        if request.get("command") != "silence":
            self.channel.send({"id": message.body["id"], "ok": {"asked": request}})

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client."""
        return await asyncio.open_unix_connection(str(self.path))

    async def exchange(self, data: bytes) -> dict[str, Any] | None:
        """The answer to these octets, or None where it only closes."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            return await read_frame(reader, 1 << 20)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def controlled(folder: Path) -> AsyncIterator[Asked]:
    """Run one; it is gone behind the block, and its file with it."""
    ours, theirs = make_channel()
    control = Control(folder, "1.2.3")
    ready: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    ours.watch(asyncio.get_running_loop(), ready.set_result, lambda: None)
    async with asyncio.TaskGroup() as group:
        group.create_task(control.serve(theirs))
        try:
            found = await ready
            ours.unwatch()
            asked = Asked(Path(found.body["ready"]), control, ours)
            ours.watch(asyncio.get_running_loop(), asked.answer, lambda: None)
            yield asked
        finally:
            ours.close()
    theirs.close()
    assert not asked.path.exists()


def test_a_request_is_answered(tmp_path: Path, run_once: Run) -> None:
    """By what the supervisor says; several of one connection one after the other; the version is added to a status."""

    async def main() -> None:
        async with controlled(tmp_path / "tabi") as asked:
            reader, writer = await asked.connect()
            for request in ({"command": "status"}, {"command": "reload", "x": [1]}):
                writer.write(encode_frame(request))
                answer = await read_frame(reader, 1 << 20)
                assert answer is not None
                assert answer["ok"]["asked"] == request
                assert answer["ok"].get("version") == ("1.2.3" if request["command"] == "status" else None)
                assert set(answer) == {"ok"}
            writer.close()

    run_once(main)


WRONG = [
    (struct.pack("!I", MAX_REQUEST + 1), "expected at most 65536"),
    (struct.pack("!I", 1) + b"?", "not a request"),
    (struct.pack("!I", 4) + b"null", "not a request"),
]


@pytest.mark.parametrize(("data", "text"), WRONG)
def test_what_is_not_a_request_is_refused(tmp_path: Path, run_once: Run, data: bytes, text: str) -> None:
    """By its length or its form; the supervisor does not hear of it."""

    async def main() -> None:
        async with controlled(tmp_path / "tabi") as asked:
            answer = await asked.exchange(data)
            assert answer is not None
            assert text in answer["error"]
            assert not asked.requests

    run_once(main)


def test_a_slow_client_is_cut(tmp_path: Path, run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stops in the middle of a request has its time, whatever it has sent; others are answered meanwhile."""
    monkeypatch.setattr(module, "PATIENCE", 1.0)

    async def main() -> None:
        async with controlled(tmp_path / "tabi") as asked:
            reader, writer = await asked.connect()
            writer.write(encode_frame({"command": "status"})[:-1])
            answer = await asked.exchange(encode_frame({"command": "x"}))
            assert answer == {"ok": {"asked": {"command": "x"}}}
            assert await reader.read() == b""
            writer.close()

    run_once(main)


def test_a_client_that_does_not_read_is_cut(tmp_path: Path, run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers do not pile up."""
    monkeypatch.setattr(module, "PATIENCE", 0.3)

    async def main() -> None:
        async with controlled(tmp_path / "tabi") as asked:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, str(asked.path))
                frame = encode_frame({"command": "x", "text": "y" * 30_000})

                async def send() -> None:
                    while True:
                        await asyncio.get_running_loop().sock_sendall(sock, frame)

                with pytest.raises((BrokenPipeError, ConnectionResetError)):
                    await send()
            assert len(asked.requests) < 100

    run_once(main)


def test_a_supervisor_that_does_not_answer(tmp_path: Path, run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client hears so, and nothing is kept of the question."""
    monkeypatch.setattr(asker, "PATIENCE", 0.5)

    async def main() -> None:
        async with controlled(tmp_path / "tabi") as asked:
            answer = await asked.exchange(encode_frame({"command": "silence"}))
            assert answer == {"error": "the server has not answered within 0.5 s"}
            assert not asked.control.asker.asked
            asked.channel.send({"id": 1, "ok": {}})  # too late, and for nobody
            assert await asked.exchange(encode_frame({"command": "x"})) == {"ok": {"asked": {"command": "x"}}}

    run_once(main)


def test_clients_beyond_the_bound_are_refused(tmp_path: Path, run_once: Run) -> None:
    """They hear why; when one has gone the next is answered."""

    async def main() -> None:
        async with controlled(tmp_path / "tabi") as asked:
            held = [await asked.connect() for _ in range(MAX_CLIENTS)]
            while len(asked.control.clients) < MAX_CLIENTS:
                await asyncio.sleep(0)
            assert await asked.exchange(b"") == {"error": "too many clients, try again later"}
            held[0][1].close()
            while len(asked.control.clients) >= MAX_CLIENTS:
                await asyncio.sleep(0)
            answer = await asked.exchange(encode_frame({"command": "x"}))
            assert answer == {"ok": {"asked": {"command": "x"}}}
            for _, writer in held:
                writer.close()

    run_once(main)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter. pytest closes its own again for each run that begins meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_other_users_are_refused(tmp_path: Path, open_folder: Path) -> None:
    """Also where the file lets them: the kernel tells who they are. root and the server's own user are answered."""
    environ = {"XDG_RUNTIME_DIR": str(open_folder)}
    with serve(tmp_path, environ=environ) as proxy:
        path = find_socket(environ)
        assert path.stat().st_mode & 0o777 == 0o600
        assert ask_server(path, "status")["pid"] == proxy.process.pid
        os.chmod(path.parent, 0o711)
        os.chmod(path, 0o666)
        assert as_user(65534, lambda: ask_server(path, "status")) == "not for user 65534"


def as_user(uid: int, do: Callable[[], object]) -> str:
    """The TabiError that something raises in a process of another user."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setresuid(uid, uid, uid)
            do()
            os.write(writing, b"it was done")
        except TabiError as exc:
            os.write(writing, str(exc).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        text = os.read(reading, 1000).decode()
        os.waitpid(pid, 0)
    finally:
        os.close(reading)
    return text


# --- the file ---


def test_the_folders(tmp_path: Path) -> None:
    """The user's own, if there is one, and the system's."""
    assert RUN == "/run"  # the module's, before the test had another one put in its place
    empty = tmp_path / "run/tabi"
    assert folders({"XDG_RUNTIME_DIR": "/run/user/7"}) == [Path("/run/user/7/tabi"), empty]
    assert folders({}) == folders({"XDG_RUNTIME_DIR": ""}) == [empty]


def test_the_file_of_a_server_that_is_gone_is_replaced(tmp_path: Path) -> None:
    """That of one that runs is not: the next server has another name, and says so; its stale one goes, too."""
    folder = tmp_path / "tabi"
    path, sock = open_socket(folder, 1)
    assert (path, folder.stat().st_mode & 0o777) == (folder / NAME, 0o700)
    sock.close()
    path, sock = open_socket(folder, 2)
    assert path == folder / NAME
    further, other = open_socket(folder, 3)
    assert further == folder / "control-3.sock"
    other.close()
    third, another = open_socket(folder, 4)
    assert third == folder / "control-4.sock"
    assert not further.exists()
    assert path.exists()
    sock.close()
    another.close()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A file of that name stays, and the socket gets another name."""
    (tmp_path / NAME).write_text("mine")
    os.chmod(tmp_path, 0o700)
    path, sock = open_socket(tmp_path, 5)
    sock.close()
    assert path.name == "control-5.sock"
    assert (tmp_path / NAME).read_text() == "mine"


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_of_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Where others may write they could put a socket of their own in place of ours."""
    os.chmod(tmp_path, mode)
    with pytest.raises(PermissionError, match="others than the user of this server may write there"):
        open_socket(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A link in place of the folder is an error."""
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "tabi").symlink_to("real")
    with pytest.raises(OSError, match=r"[Nn]ot a directory|symbolic"):
        open_socket(tmp_path / "tabi", 1)


def test_a_folder_that_somebody_keeps_to_himself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an error after a while, not a wait without end."""
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.02)
    os.chmod(tmp_path, 0o700)
    with module.locked(tmp_path), pytest.raises(BlockingIOError):
        open_socket(tmp_path, 1)


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many start together, each has a name of its own, and one has the usual one."""
    monkeypatch.setattr(module, "LOCK_PATIENCE", PATIENCE)
    found: list[tuple[Path, socket.socket]] = []
    threads = [
        threading.Thread(target=lambda pid=pid: found.append(open_socket(tmp_path / "t", pid))) for pid in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path for path, _ in found}) == 8
    assert tmp_path / "t" / NAME in {path for path, _ in found}
    for _, sock in found:
        sock.close()


# --- of `tabi serve` ---


@pytest.fixture
def runtime(tmp_path: Path) -> dict[str, str]:
    """The environment in which the sockets of this test lie apart."""
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_status(tmp_path: Path, runtime: dict[str, str]) -> None:
    """What runs, since when, where it listens and in which version; the file is gone with the server."""
    with serve(tmp_path, "--workers", "2", environ=runtime) as proxy:
        path = find_socket(runtime)
        assert path == tmp_path / "tabi" / NAME
        found = ask_server(path, "status")
        assert found["pid"] == proxy.process.pid
        assert found["state"] == "running"
        assert found["listening"] == proxy.urls
        assert found["version"] == tabi.__version__
        assert sorted(worker["pid"] for worker in found["workers"]) == proxy.workers()
        for worker in found["workers"]:
            assert 0 <= worker["started"] - found["started"] < 60
        assert proxy.stop() == 0
        assert not path.exists()
        with pytest.raises(TabiError, match=r"no server runs that this user may ask: no socket in .* or .*/run/tabi"):
            find_socket(runtime)
        with pytest.raises(TabiError, match="No such file"):
            ask_server(path, "status")


def test_reload_says_whether_it_was_taken(tmp_path: Path, runtime: dict[str, str]) -> None:
    """Taken, with what waits for a restart, or why not; SIGHUP goes on to work."""
    file = tmp_path / "tabi.toml"
    text = '[[listen]]\nurl = "socks5://127.0.0.1:0"\n'
    file.write_text(text)
    with serve(tmp_path, "-c", file, environ=runtime) as proxy:
        path = find_socket(runtime)
        file.write_text("workers = 3\n" + text + '[[rule]]\naction = "deny"\nports = [1]\n')
        assert ask_server(path, "reload") == {"rules": 1, "users": 0, "wait_for_restart": ["workers"]}
        file.write_text(text + "frobnicate = 1\n")
        with pytest.raises(TabiError, match=r"not reloaded, the old configuration stays: .*frobnicate"):
            ask_server(path, "reload")
        file.write_text(text)
        proxy.signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: rules: 0" in proxy.messages, "the reload")


def test_commands_that_it_has_not(tmp_path: Path, runtime: dict[str, str]) -> None:
    """They are named with those that there are; without a file there is nothing to reload."""
    with serve(tmp_path, environ=runtime):
        path = find_socket(runtime)
        with pytest.raises(TabiError, match="command 'frobnicate', expected one of: status, reload"):
            ask_server(path, "frobnicate")
        with pytest.raises(TabiError, match="nothing to read, since there is no -c FILE"):
            ask_server(path, "reload")


def test_while_it_drains(tmp_path: Path, runtime: dict[str, str]) -> None:
    """It says that it is stopping, and takes no reload any more."""
    with serve(tmp_path, environ=runtime) as proxy, tunnels(proxy.address) as (tunnel,):
        path = find_socket(runtime)
        proxy.signal(signal.SIGTERM)
        wait_for(lambda: ask_server(path, "status")["state"] == "stopping", "the drain")
        found = ask_server(path, "status")
        assert (len(found["workers"]), found["listening"]) == (1, [])
        with pytest.raises(TabiError, match="the server is stopping"):
            ask_server(path, "reload")
        tunnel.check()


def test_a_second_server_has_another_name(tmp_path: Path, runtime: dict[str, str]) -> None:
    """It says so, and who asks must say which one is meant."""
    with serve(tmp_path, environ=runtime) as first, serve(tmp_path, environ=runtime) as second:
        other = tmp_path / "tabi" / f"control-{second.process.pid}.sock"
        assert f"control socket: {other}, since another server has {NAME}" in second.messages
        with pytest.raises(TabiError, match="several servers run, say which one is meant: "):
            find_socket(runtime)
        assert ask_server(other, "status")["pid"] == second.process.pid
        assert first.stop() == 0
        assert find_socket(runtime) == other


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The server says so and goes on without."""
    with serve(tmp_path, environ={"XDG_RUNTIME_DIR": str(tmp_path / "missing")}) as proxy:
        assert f"no control socket: {tmp_path}/missing/tabi: No such file or directory" in proxy.messages
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()


def control_of(proxy: Serve) -> int:
    """The process that has the control socket."""
    found = wait_for(lambda: proxy.child("tabi-control"), "the process of the control socket")
    assert isinstance(found, int)
    return found


def test_its_process_is_started_again(tmp_path: Path, runtime: dict[str, str]) -> None:
    """Killed, it is replaced, and has the same file."""
    with serve(tmp_path, environ=runtime) as proxy:
        path = find_socket(runtime)
        first = control_of(proxy)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: control_of(proxy) != first, "the next one")

        def answers() -> bool:
            with contextlib.suppress(TabiError):
                return bool(ask_server(path, "status")["pid"] == proxy.process.pid)
            return False

        wait_for(answers, "an answer of the next one")
        assert f"tabi-control {first} was killed by signal 9; another starts in 0.1 s" in proxy.messages


def test_its_process_ends_with_the_supervisor(tmp_path: Path, runtime: dict[str, str]) -> None:
    """However that ends: nothing of it stays, not the file either."""
    with serve(tmp_path, environ=runtime) as proxy:
        path = find_socket(runtime)
        pid = control_of(proxy)
        proxy.process.kill()
        proxy.process.wait()
        wait_for(lambda: not is_running(pid), "its end")
        assert not path.exists()


def test_a_file_that_is_another_server_s_by_now_stays(tmp_path: Path, runtime: dict[str, str]) -> None:
    """What is removed at the end is its own file alone."""
    with serve(tmp_path, environ=runtime) as proxy:
        path = find_socket(runtime)
        path.unlink()
        _, sock = open_socket(path.parent, 1)
        assert proxy.stop() == 0
        assert path.exists()
        sock.close()


def test_a_client_that_waits_has_its_answer_at_the_end(tmp_path: Path, run_once: Run) -> None:
    """The supervisor has ended, or its answer was its last word: it comes before the end of the connection."""

    async def main() -> None:
        async with controlled(tmp_path) as asked:
            reader, writer = await asked.connect()
            writer.write(encode_frame({"command": "silence"}))
            await until(lambda: asked.requests)
            asked.channel.close()
            assert await read_frame(reader, 1000) == {"error": "the server has ended"}
            assert await reader.read() == b""
            writer.close()

    run_once(main)


def test_a_socket_that_steps_aside_and_the_one_that_takes_its_place(tmp_path: Path) -> None:
    """There is one under the usual name at any time; the old one is found by its other name alone."""
    with contextlib.ExitStack() as stack:
        old, sock = open_socket(tmp_path, 1)
        stack.enter_context(sock)
        aside = step_aside(old, 1)
        assert (old.name, aside.name) == (NAME, "draining-1.sock")
        assert os.path.samestat(os.stat(old), os.stat(aside))
        new, other = open_socket(tmp_path, 2, before=1)
        stack.enter_context(other)
        found = os.stat(new)
        assert new.name == "control-2.sock"
        assert take(new, 1) == old
        assert os.path.samestat(os.stat(old), found)
        assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, aside.name]


def test_the_name_of_another_server_is_not_taken(tmp_path: Path) -> None:
    """The first server of two goes on; the second one is upgraded, and keeps the name that it has had."""
    with contextlib.ExitStack() as stack:
        for pid in (1, 2, 3):
            stack.enter_context(open_socket(tmp_path, pid)[1])
        second, third = tmp_path / "control-2.sock", tmp_path / "control-3.sock"
        found = os.stat(third)
        step_aside(second, 2)
        assert take(third, 2) == second
        assert os.path.samestat(os.stat(second), found)
        assert take(second, 7) == second  # of a server that nothing is known of


def test_the_name_of_a_server_that_is_gone_is_free(tmp_path: Path) -> None:
    """The old one was killed, and its process of the control socket has removed the file."""
    old, sock = open_socket(tmp_path, 1)
    new, other = open_socket(tmp_path, 2, before=1)
    with sock, other:
        old.unlink()
        assert take(new, 1) == old
