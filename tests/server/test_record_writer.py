"""The writer of records: orders of all workers arrive whole, and nothing that it waits for holds up a worker."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from flows import make_record
from har_schema import check_har
from origin import origin
from processes import PATIENCE, is_running, name_of, serve, wait_for
from tabi.intercept.recorder import Order
from tabi.intercept.writer import Writer
from tabi.server import record_writer as module
from tabi.server.record_writer import FIRST, HEAD, LAST, PIECE, Pieces, RecordWriter, SocketSink, write_orders


def order(path: Path, **more: Any) -> Order:
    """An order for a file."""
    return Order(make_record(**more), str(path), False, 10_000_000, False, ())


def ids(path: Path) -> list[str]:
    """The entries of a file, which must be valid."""
    found = json.loads(path.read_bytes())
    check_har(found)
    return [one["_id"] for one in found["log"]["entries"]]


@pytest.fixture
def writer() -> Iterator[RecordWriter]:
    """A running one."""
    made = RecordWriter()
    made.child.start()
    try:
        yield made
    finally:
        made.close()


def test_orders_of_several_workers_are_written(writer: RecordWriter, tmp_path: Path) -> None:
    """Small and large ones, mixed; when the writer is closed all of them are in the file."""
    path = tmp_path / "a.har"
    pid = writer.child.pid
    assert pid is not None
    wait_for(lambda: name_of(pid) == "tabi-records", "its name")
    children = []
    for worker in range(3):
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                asyncio.run(send(writer, path, worker))
                code = 0
            os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    writer.close()
    assert not is_running(pid)
    assert sorted(ids(path)) == sorted(f"{worker}-{number}" for worker in range(3) for number in range(20))
    assert path.stat().st_mode & 0o777 == 0o600


async def send(writer: RecordWriter, path: Path, worker: int) -> None:
    """The work of a worker."""
    sink = SocketSink(writer.sink, asyncio.get_running_loop())
    for number in range(20):
        sink.take(order(path, id=f"{worker}-{number}", body=bytes(number % 3 * 200_000)))
        await asyncio.sleep(0)
    await sink.aclose()


def test_it_has_a_session_of_its_own(writer: RecordWriter, tmp_path: Path) -> None:
    """What is sent to the server's process group does not reach it."""
    pid = writer.child.pid
    assert pid is not None
    wait_for(lambda: os.getsid(pid) == pid, "a session of its own")


def test_one_that_died_is_started_again(writer: RecordWriter, tmp_path: Path, run_once: Run) -> None:
    """What it had not read yet is written by the next one; a piece without its beginning is left out."""
    pid = writer.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    path = tmp_path / "a.har"

    async def main() -> None:
        sink = SocketSink(writer.sink, asyncio.get_running_loop())
        writer.sink.send(HEAD.pack(1, LAST) + b"the end of something")
        writer.sink.send(HEAD.pack(1, FIRST | LAST) + b"no order")
        sink.take(order(path, id="n1"))
        await sink.aclose()

    run_once(main)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid), "its end")
    writer.child.reap(writer.child.started)
    writer.child.keep_up(writer.child.due)
    writer.close()
    assert ids(path) == ["n1"]


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends, without a process."""
    source, sink = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sink.setblocking(False)
    with source, sink:
        yield source, sink


def test_a_writer_that_is_held_up_holds_up_no_worker(
    run_once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What finds no room is lost and counted; what waits is sent when it reads again."""
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    path = tmp_path / "a.har"

    async def main() -> None:
        with pair() as (source, sock):
            sink = SocketSink(sock, asyncio.get_running_loop(), bound=1_000_000)
            for number in range(20):
                sink.take(order(path, id=f"n{number}", body=bytes(150_000)))
                assert sink.size <= 1_000_000
            assert sink.watched
            lost = sink.lost
            assert 10 < lost < 17
            source.setblocking(False)
            pieces = Pieces()
            whole: list[object] = []
            while sink.waiting or not whole:
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    while data := source.recv(HEAD.size + PIECE):
                        whole += [pieces.add(data)]
            assert sum(one is not None for one in whole) == 20 - lost
            assert not sink.watched
            assert caplog.messages == [f"flows lost, since they came faster than they could be written: {lost}"]
            for number in range(20):
                sink.take(order(path, id=f"n{number}", body=bytes(150_000)))
            await sink.aclose()
            assert re.fullmatch(
                r"flows lost, since they came faster than they could be written: 1\d", caplog.messages[-1]
            )
            assert sink.size == 0

    run_once(main)


def test_a_writer_that_is_gone_is_said(run_once: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is raised to the session whose flow it was."""

    async def main() -> None:
        with pair() as (source, sock):
            sink = SocketSink(sock, asyncio.get_running_loop())
            source.close()
            sink.take(order(tmp_path / "a.har"))
            await sink.aclose()

    run_once(main)
    assert caplog.messages[0] == "records: Broken pipe"


def test_lines_that_wait_are_printed_though_nothing_comes(tmp_path: Path) -> None:
    """The writer tries again by itself."""
    tried: list[int] = []

    class Waiting(Writer):
        patience = 0.001

        def flush(self) -> None:
            tried.append(1)
            sock.close()

    source, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    write_orders(source, Waiting())
    source.close()
    assert tried


def test_pieces_of_several_senders_are_put_together() -> None:
    """Whatever their order; what a worker left unfinished is dropped when another one has its pid."""
    chance = random.Random(1)
    wanted = {sender: chance.randbytes(sender * 1000) for sender in range(1, 6)}
    sends = []
    for sender, data in wanted.items():
        parts = [data[at : at + 700] for at in range(0, len(data), 700)]
        sends.append(
            [HEAD.pack(sender, FIRST * (part is parts[0]) | LAST * (part is parts[-1])) + part for part in parts]
        )
    pieces, found = Pieces(), []
    pieces.add(HEAD.pack(5, FIRST) + b"left behind")
    while sends:
        one = chance.choice(sends)
        if (whole := pieces.add(one.pop(0))) is not None:
            found.append(bytes(whole))
        sends = [rest for rest in sends if rest]
    assert sorted(found) == sorted(wanted.values())
    assert pieces.size == 0


def test_what_does_not_come_whole_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are dropped whose sender is silent longest."""
    monkeypatch.setattr(module, "MAX_UNFINISHED", 1000)
    pieces = Pieces()
    for sender in range(10):
        pieces.add(HEAD.pack(sender, FIRST) + b"")
        pieces.add(HEAD.pack(sender, 0) + bytes(300))
        assert pieces.size <= 1000
    assert list(pieces.by_sender) == [7, 8, 9]


def load(proxy: str, target: str, over: threading.Event) -> None:
    """Requests with large and small bodies, until it is over or the proxy is gone."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        while not over.is_set():
            for size in (1, 700_000):
                with contextlib.closing(http.client.HTTPConnection(proxy, timeout=PATIENCE)) as connection:
                    connection.request("POST", f"http://{target}/", b"x" * size, {"Content-Type": "text/plain"})
                    with connection.getresponse() as response:
                        response.read()


def test_a_server_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    """SIGKILL to all of its process group, while two workers record: what they have handed over is written."""
    path = tmp_path / "a.har"
    with origin() as target:
        for moment in (0.1, 0.23):
            options = ("--workers", "2", "--access-log", "none", "--har", path, "-l", "http://127.0.0.1:0")
            with serve(tmp_path, *options, own_group=True) as running:
                over = threading.Event()
                threads = [
                    threading.Thread(target=load, args=(str(running.address), f"127.0.0.1:{target.port}", over))
                    for _ in range(4)
                ]
                for thread in threads:
                    thread.start()
                wait_for(lambda: path.exists() and path.stat().st_size > 1_000_000, "the first flows")
                writer = running.child("tabi-records")
                assert writer is not None
                over.wait(moment)
                os.killpg(running.process.pid, signal.SIGKILL)
                running.wait()
                over.set()
                for thread in threads:
                    thread.join()
                wait_for(partial(lambda pid: not is_running(pid), writer), "the end of the writer")
            found = json.loads(path.read_bytes())
            check_har(found)
            assert {entry["response"]["status"] for entry in found["log"]["entries"]} == {200}


def test_only_the_first_flow_of_a_connection_took_the_time_to_open_it(tmp_path: Path) -> None:
    """Later ones find it open: their time does not count it again."""
    path = tmp_path / "a.har"
    with origin({"/": b"hello"}) as target:
        options = ("--access-log", "none", "--har", path, "-l", "http://127.0.0.1:0")
        with serve(tmp_path, *options) as running:
            with contextlib.closing(http.client.HTTPConnection(str(running.address), timeout=PATIENCE)) as connection:
                connection.set_tunnel("127.0.0.1", target.port)
                for _ in range(2):
                    connection.request("GET", "/")
                    assert connection.getresponse().read() == b"hello"
            wait_for(lambda: path.exists() and len(ids(path)) == 2, "both flows")
    first, second = (entry["timings"] for entry in json.loads(path.read_bytes())["log"]["entries"])
    assert first["connect"] >= 0
    assert second["connect"] == -1
