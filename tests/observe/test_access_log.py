"""The access log: nothing on the way of its lines holds up or surprises anyone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import PATIENCE, Run
from doubles import until
from log_sessions import KEYS, make_session
from small_pipes import fill, read_exactly, small_pipe
from support import closed_port, target
from tabi import Config, Proxy, ProxyError, Server
from tabi.config import Listen, Log
from tabi.observe import access_log
from tabi.observe.access_log import DELAY, AccessLog, BeginningsToo
from tabi.observe.log_outputs import DescriptorOutput, FileOutput, Output
from tabi.observe.observers import methods_of


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe as small as can be: its reading and its writing end."""
    with small_pipe() as ends:
        yield ends


class Timers:
    """The loop's call_later, fired by hand."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, delay: float, callback: Callable[[], None]) -> None:
        self.waiting.append((delay, callback))

    def fire(self) -> None:
        """Let the one timer's time come."""
        ((delay, callback),) = self.waiting
        assert delay == DELAY
        self.waiting.clear()
        callback()


class Memory:
    """An output that keeps batches, waits at a gate, and fails where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.closed = 0

    def write(self, lines: list[bytes]) -> int:
        """As an Output."""
        assert self.gate.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        self.batches.append(lines)
        return len(lines)

    def close(self) -> None:
        """As an Output."""
        self.closed += 1

    def numbers(self) -> list[list[str]]:
        """The ids of the lines, batch by batch."""
        return [[json.loads(line)["id"] for line in batch] for batch in self.batches]


class Kit:
    """A log on an output, with timers of ours."""

    def __init__(self, output: Output) -> None:
        self.timers = Timers()
        self.log = AccessLog(output, "", self.timers)

    def add(self, *numbers: int) -> None:
        """Sessions end."""
        for number in numbers:
            self.log.add(make_session(number), 101.0)

    def flush(self) -> None:
        """The time of the batch comes, and the writer is done with it."""
        self.timers.fire()
        assert self.log.idle.wait(PATIENCE)


@pytest.fixture
def make_kit() -> Iterator[Callable[[Output], Kit]]:
    """Makes logs, and closes them at the end."""
    kits: list[Kit] = []

    def make(output: Output) -> Kit:
        kits.append(Kit(output))
        return kits[-1]

    yield make
    for kit in kits:
        kit.log.close()
        kit.log.thread.join(PATIENCE)


MakeKit = Callable[[Output], Kit]


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """The messages of one level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_lines_are_written_in_batches(make_kit: MakeKit) -> None:
    """The first line starts one timer; all that came until then go together, in their order."""
    output = Memory()
    kit = make_kit(output)
    assert not kit.timers.waiting
    kit.add(1, 2, 3)
    assert output.batches == []
    kit.flush()
    kit.add(4)
    kit.flush()
    assert output.numbers() == [["1", "2", "3"], ["4"]]
    assert not kit.timers.waiting, "nothing to write, no timer"


def test_a_slow_writer_holds_up_nobody(make_kit: MakeKit) -> None:
    """While a batch is being written, lines collect and the timer tries again; then all of them go at once."""
    output = Memory()
    kit = make_kit(output)
    output.gate.clear()
    kit.add(1)
    kit.timers.fire()
    kit.add(2)
    kit.timers.fire()
    kit.add(3)
    kit.timers.fire()
    assert output.batches == []
    output.gate.set()
    assert kit.log.idle.wait(PATIENCE)
    kit.flush()
    assert output.numbers() == [["1"], ["2", "3"]]
    assert kit.log.lost == 0


def test_what_waits_is_bounded(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the limit lines are lost, counted, and said so with the next batch; then there is room again."""
    monkeypatch.setattr(access_log, "LIMIT", 1000)
    output = Memory()
    kit = make_kit(output)
    kit.add(*range(1, 101))
    kept = len(kit.log.lines)
    assert 1 <= kept < 10
    assert kit.log.size < 1000 + 1000
    kit.flush()
    assert len(output.batches[0]) == kept
    assert kit.log.lost == 100 - kept
    kit.add(1)
    kit.flush()
    assert len(output.batches) == 2
    assert said(caplog, logging.WARNING) == [f"access log: {100 - kept} lines lost so far"]


def test_close_writes_what_is_left(make_kit: MakeKit) -> None:
    """Nothing waits for a timer that no longer comes; the thread has ended and the output is closed."""
    output = Memory()
    kit = make_kit(output)
    kit.add(1, 2)
    kit.log.close()
    assert output.numbers() == [["1", "2"]]
    assert output.closed == 1
    assert not kit.log.thread.is_alive()
    kit.timers.fire()
    assert output.numbers() == [["1", "2"]]


def test_close_with_nothing_left(make_kit: MakeKit) -> None:
    """A log that never had a line ends as well."""
    output = Memory()
    kit = make_kit(output)
    kit.log.close()
    assert (output.batches, output.closed, kit.log.thread.is_alive()) == ([], 1, False)


def test_a_full_disk_loses_lines_and_nothing_else(make_kit: MakeKit, caplog: pytest.LogCaptureFixture) -> None:
    """The error is said once, not with each batch; lines are counted."""
    kit = make_kit(FileOutput("/dev/full"))
    kit.add(1, 2)
    kit.flush()
    kit.add(3)
    kit.flush()
    kit.log.close()
    assert kit.log.lost == 3
    assert not kit.log.thread.is_alive()
    assert said(caplog, logging.ERROR) == [
        "access log: No space left on device; lines are lost until it can be written again"
    ]
    assert said(caplog, logging.WARNING)[-1].startswith("access log: 3 lines lost")


def test_a_disk_that_has_room_again(make_kit: MakeKit, caplog: pytest.LogCaptureFixture) -> None:
    """Lines are written again, and the next failure is said again."""
    output = Memory()
    kit = make_kit(output)
    for number, failure in enumerate([OSError(28, "full"), OSError(28, "full"), None, OSError("full again")], 1):
        output.failure = failure
        kit.add(number)
        kit.flush()
    assert output.numbers() == [["3"]]
    assert kit.log.lost == 3
    ending = "; lines are lost until it can be written again"
    assert said(caplog, logging.ERROR) == [f"access log: full{ending}", f"access log: full again{ending}"]


def test_a_fault_of_ours_does_not_end_the_writer(make_kit: MakeKit, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is logged with its traceback, the lines are counted, and the next batch is tried."""
    output = Memory()
    kit = make_kit(output)
    output.failure = ValueError("ours")
    kit.add(1)
    kit.flush()
    output.failure = None
    kit.add(2)
    kit.flush()
    assert (output.numbers(), kit.log.lost) == ([["2"]], 1)
    assert said(caplog, logging.ERROR) == ["access log: the writer failed"]
    assert caplog.records[0].exc_info is not None


def test_what_an_output_has_not_written_is_lost(make_kit: MakeKit, caplog: pytest.LogCaptureFixture) -> None:
    """A socket takes some lines of a batch: the others are counted."""

    class Half(Memory):
        def write(self, lines: list[bytes]) -> int:
            return len(lines) // 2

    kit = make_kit(Half())
    kit.add(1, 2, 3)
    kit.flush()
    assert kit.log.lost == 2
    kit.add(4, 5)
    kit.flush()
    assert (kit.log.lost, said(caplog, logging.WARNING)) == (3, ["access log: 2 lines lost so far"])


def test_a_line_when_a_session_begins(make_kit: MakeKit) -> None:
    """It has the keys of all lines; how it ended is null. Who does not ask for it is not told of beginnings."""
    output, timers = Memory(), Timers()
    log = BeginningsToo(output, "", timers)
    session = make_session()
    log.connected(session)
    session.up = 518
    log.ended(session)
    log.close()
    begin, end = (json.loads(line) for line in output.batches[0])
    assert list(begin) == list(end) == KEYS
    assert (begin["close"], begin["up"], end["close"], end["up"]) == (None, 517, "client", 518)
    assert methods_of([log], "connected") == (log.connected,)
    assert methods_of([make_kit(Memory()).log], "connected") == ()


def test_a_broken_pipe(make_kit: MakeKit, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    """Whoever read our standard output has gone: the proxy goes on."""
    reading, writing = pipe
    os.close(reading)
    kit = make_kit(DescriptorOutput(writing))
    kit.add(1)
    kit.flush()
    assert kit.log.lost == 1
    assert said(caplog, logging.ERROR) == ["access log: Broken pipe; lines are lost until it can be written again"]


def test_a_pipe_that_nobody_reads(
    make_kit: MakeKit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """close() gives up after its patience and says what is lost; once somebody reads, the thread ends too."""
    monkeypatch.setattr(access_log, "PATIENCE", 0.02)
    reading, writing = pipe
    filled = fill(writing)
    kit = make_kit(DescriptorOutput(writing))
    kit.add(1)
    kit.timers.fire()
    kit.add(2, 3)
    kit.timers.fire()
    kit.log.close()
    assert kit.log.lost == 3
    assert said(caplog, logging.WARNING) == ["access log: 3 lines lost"]
    read_exactly(reading, filled)
    kit.log.thread.join(PATIENCE)
    assert not kit.log.thread.is_alive()


def test_the_last_batch_may_be_the_one_that_hangs(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What close() itself handed over is counted as well; the output stays open for the thread that still has it."""
    monkeypatch.setattr(access_log, "PATIENCE", 0.02)
    output = Memory()
    kit = make_kit(output)
    output.gate.clear()
    kit.add(1, 2)
    kit.log.close()
    assert (kit.log.lost, output.closed) == (2, 0)
    assert said(caplog, logging.WARNING) == ["access log: 2 lines lost"]
    output.gate.set()
    kit.log.thread.join(PATIENCE)
    assert not kit.log.thread.is_alive()


def test_on_a_loop(run: Run, tmp_path: Path) -> None:
    """With a real loop's timer and a real file, on each hosting."""
    path = tmp_path / "access.log"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        written = asyncio.Event()

        class Telling(FileOutput):
            def write(self, lines: list[bytes]) -> int:
                count = super().write(lines)
                loop.call_soon_threadsafe(written.set)
                return count

        log = AccessLog(Telling(str(path)), "p", loop.call_later)
        log.add(make_session(1), 101.0)
        log.add(make_session(2), 101.0)
        await written.wait()
        log.add(make_session(3), 101.0)
        await asyncio.to_thread(log.close)

    path.unlink(missing_ok=True)
    run(main)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["p1", "p2", "p3"]


def test_beginnings_of_a_server(run_once: Run, tmp_path: Path) -> None:
    """Of a connection and an association, before they end; what is refused has only an end."""
    path = tmp_path / "access.log"

    async def main() -> None:
        config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log(str(path), begin=True))
        async with Server(config=config) as server, target() as port:
            proxy = Proxy(server.url_for("socks5"))
            async with proxy.connect("127.0.0.1", port), proxy.associate():
                await until(lambda: path.read_text().count("\n") == 2)
            with closed_port() as closed, pytest.raises(ProxyError):
                await proxy.connect("127.0.0.1", closed)

    run_once(main)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    begun = {line["id"]: line for line in lines if line["close"] is None}
    ended = {line["id"]: line for line in lines if line["close"] is not None}
    assert [line["command"] for line in begun.values()] == ["connect", "associate"]
    assert len(ended) == 3
    assert len(lines) == 5
    for number, line in begun.items():
        assert (line["via"], line["reply"], line["error"], line["up"]) == ("direct", 0, None, 0)
        assert ended[number]["client"] == line["client"]
    (refused,) = (line for number, line in ended.items() if number not in begun)
    assert refused["error"] is not None
