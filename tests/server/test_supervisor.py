"""The supervisor: workers that die, a supervisor that dies, and the back-off on a clock of its own."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from processes import Serve, is_running, paused, refuses, serve, tunnels, wait_for
from tabi.config import Config, Listen, Log, RuleConfig, Seconds, Timeouts
from tabi.errors import ConfigError
from tabi.server import child
from tabi.server import supervisor as module
from tabi.server.answers import ABOUT
from tabi.server.channel import MAX_MESSAGE, make_channel
from tabi.server.child import FIRST_DELAY, LAST_DELAY, STEADY
from tabi.server.compiled import Compiled, compile_config
from tabi.server.reload import Reload, Report, load
from tabi.server.supervisor import GRACE, MOST_DRAINED, Supervisor
from tabi.server.worker import AT_ONCE, RELOAD

# --- with real processes ---


def both(proxy: Serve) -> list[int]:
    """The two workers, once there are two."""

    def two() -> list[int]:
        found = proxy.workers()
        return found if len(found) == 2 else []

    found: list[int] = wait_for(two, "two workers")
    return found


def test_the_tunnels_of_the_other_worker_survive_a_killed_one(tmp_path: Path) -> None:
    """SIGKILL to one of two: the other's tunnel carries on, a new worker comes and serves, and it is said so."""
    with serve(tmp_path, "--workers", "2") as proxy:
        first, second = both(proxy)
        with contextlib.ExitStack() as stack:
            with paused(second):
                (doomed,) = stack.enter_context(tunnels(proxy.address))
            with paused(first):
                (tunnel,) = stack.enter_context(tunnels(proxy.address))
            doomed.check()
            tunnel.check()
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: not is_running(first), "the worker to die")
            assert doomed.client.recv(1) == b""
            tunnel.check()
            assert first not in both(proxy)
            tunnel.check()
            with paused(second):
                (other,) = stack.enter_context(tunnels(proxy.address))
            other.check()
        assert f"worker {first} was killed by signal 9; another starts in 0.1 s" in proxy.messages


def test_clients_wait_while_the_only_worker_is_started_again(tmp_path: Path) -> None:
    """The supervisor holds the listening socket: who comes in the gap is served by the next worker."""
    with serve(tmp_path) as proxy:
        (first,) = wait_for(proxy.workers, "the worker")
        for _ in range(2):
            os.kill(first, signal.SIGKILL)
            with tunnels(proxy.address) as (tunnel,):
                tunnel.check()
            (second,) = proxy.workers()
            assert second != first
            first = second
        assert "another starts in 0.2 s" in proxy.messages


def test_workers_drain_and_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    """Nobody is left to restart or stop them: they stop to listen, let their sessions finish, and go."""
    with serve(tmp_path, "--workers", "2") as proxy:
        workers = both(proxy)
        with tunnels(proxy.address, 4) as found:
            proxy.process.kill()
            proxy.process.wait()
            wait_for(lambda: refuses(proxy.address), "the listener to close")
            for tunnel in found:
                tunnel.check()
        wait_for(lambda: not any(map(is_running, workers)), "the workers to end")
        assert [session["up"] for session in proxy.sessions(4)] == [4] * 4
        assert "cut" not in proxy.messages


def test_a_worker_without_a_supervisor_can_be_told_to_hurry(tmp_path: Path) -> None:
    """It drains already, so that one SIGTERM is the second word."""
    with serve(tmp_path) as proxy:
        (worker,) = wait_for(proxy.workers, "the worker")
        with tunnels(proxy.address) as (tunnel,):
            proxy.process.kill()
            proxy.process.wait()
            wait_for(lambda: refuses(proxy.address), "the listener to close")
            tunnel.check()
            os.kill(worker, signal.SIGTERM)
            assert tunnel.client.recv(1) == b""
        wait_for(lambda: not is_running(worker), "the worker to end")
        assert [session["close"] for session in proxy.sessions(1)] == ["shutdown"]


def test_it_works_where_sigchld_was_ignored(tmp_path: Path) -> None:
    """Whoever started it may ignore SIGCHLD, which is inherited; dead workers are found all the same."""

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    with serve(tmp_path, preexec=ignore) as proxy:
        (worker,) = wait_for(proxy.workers, "the worker")
        os.kill(worker, signal.SIGKILL)
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        assert proxy.stop() == 0


# --- with a system that is made up ---


class System:
    """Stands for os, time and signal: workers that die when it wants, on a clock that nobody waits for.

    Args:
        lives: seconds that each worker lives, in order; the last one for all that follow. None is for ever.
        told: signals for the supervisor, by time.
        stubborn: whether workers ignore every signal but SIGKILL.
    """

    def __init__(self, lives: list[float | None], told: dict[float, int], stubborn: bool = False) -> None:
        self.lives = lives
        self.told = sorted(told.items())
        self.stubborn = stubborn
        self.now = 1000.0
        self.forked: list[float] = []
        self.deaths: dict[int, float] = {}
        self.sent: list[tuple[float, int]] = []
        self.refused: set[int] = set()
        self.os = SimpleNamespace(**vars(os))
        self.os.fork, self.os.waitpid, self.os.kill = self.fork, self.waitpid, self.kill
        self.time = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        self.signal = SimpleNamespace(**vars(signal))
        self.signal.pthread_sigmask = self.signal.signal = lambda *_: None
        self.signal.sigtimedwait = self.sigtimedwait
        self.said: list[tuple[float, object]] = []

    def say(self, body: object, fds: Sequence[int] = ()) -> None:
        self.said.append((round(self.now - 1000, 3), body))

    def fork(self) -> int:
        self.forked.append(round(self.now - 1000, 3))
        number = len(self.forked)
        if number in self.refused:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        life = self.lives[min(number, len(self.lives)) - 1]
        self.deaths[number] = float("inf") if life is None else self.now + life
        return number

    def waitpid(self, pid: int, _: int) -> tuple[int, int]:
        return (pid, signal.SIGKILL) if self.deaths[pid] <= self.now else (0, 0)

    def kill(self, pid: int, number: int) -> None:
        self.sent.append((round(self.now - 1000, 3), number))
        if number == signal.SIGKILL or not self.stubborn:
            self.deaths[pid] = self.now

    def sigtimedwait(self, _: set[int], seconds: float) -> Any:
        assert seconds >= 0
        events = [when for when in self.deaths.values() if when > self.now]
        events += [1000 + when for when, _ in self.told]
        self.now = min([self.now + seconds, *events])
        if self.told and 1000 + self.told[0][0] <= self.now:
            return SimpleNamespace(si_signo=self.told.pop(0)[1])
        return SimpleNamespace(si_signo=signal.SIGCHLD) if self.now in self.deaths.values() else None


Start = Callable[..., tuple[Supervisor, System]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Make a supervisor on a `System`; the sockets and the pipe are real ones, and closed behind the test."""
    made: list[Supervisor] = []
    monkeypatch.setattr(module, "raise_descriptor_limit", lambda: None)

    def make(lives: list[float | None], told: dict[float, int], **options: bool) -> tuple[Supervisor, System]:
        system = System(lives, told, **options)
        config = Config(
            listen=[Listen("socks5://127.0.0.1:0")], timeouts=Timeouts(drain=Seconds(5)), log=Log(access="none")
        )
        made.append(Supervisor(compile_config(config)))
        monkeypatch.setattr(made[-1], "tell_all", system.say)
        for name in ("os", "time", "signal"):
            monkeypatch.setattr(module, name, getattr(system, name))
        for name in ("os", "time"):
            monkeypatch.setattr(child, name, getattr(system, name))
        return made[-1], system

    yield make
    for supervisor in made:
        for worker in supervisor.workers:
            worker.empty()
        for sock in itertools.chain(*supervisor.sockets):
            sock.close()
        os.close(supervisor.lifeline)
        os.close(supervisor.held_end)


def gaps(times: list[float]) -> list[float]:
    """Seconds between one and the next."""
    return [round(later - earlier, 3) for earlier, later in itertools.pairwise(times)]


def test_the_back_off_doubles_up_to_a_limit(start: Start) -> None:
    """A worker that dies at once again and again is started later each time, at most 30 s later."""
    supervisor, system = start([0.001], {200: signal.SIGTERM})
    ready: list[float] = []
    assert supervisor.run(lambda: ready.append(system.now)) == 0
    assert ready == [1000]
    delays = [round(gap - 0.001, 3) for gap in gaps(system.forked)]
    assert delays[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert set(delays[9:]) == {LAST_DELAY}
    assert len(delays) > 10


def test_a_worker_that_ran_for_a_while_is_started_again_quickly(start: Start) -> None:
    """The back-off is for those that do not get up: a steady run forgives what was before."""
    supervisor, system = start([1, 1, 1, STEADY, None], {100: signal.SIGTERM})
    assert supervisor.run(lambda: None) == 0
    assert gaps(system.forked) == [1.1, 1.2, 1.4, STEADY + FIRST_DELAY]


def test_a_fork_that_fails_is_tried_again_later(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """No room for a process is no reason to give up the workers that run."""
    supervisor, system = start([1, None], {100: signal.SIGTERM})
    system.refused = {2, 3}
    assert supervisor.run(lambda: None) == 0
    assert gaps(system.forked) == [1.1, 0.2, 0.4]
    assert "no worker could be started: Resource temporarily unavailable; another starts in 0.2 s" in caplog.text


def test_a_first_fork_that_fails_is_an_error(start: Start) -> None:
    """Before anything runs it is said at once."""
    supervisor, system = start([None], {})
    system.refused = {1}
    with pytest.raises(BlockingIOError):
        supervisor.run(lambda: None)


def test_a_worker_that_does_not_end_is_killed_behind_the_drain_time(start: Start) -> None:
    """SIGTERM, the drain time of 5 s and a little more, then SIGKILL; nothing is started again."""
    supervisor, system = start([None], {10: signal.SIGTERM}, stubborn=True)
    assert supervisor.run(lambda: None) == 0
    assert system.sent == [(10, signal.SIGTERM), (15 + GRACE, signal.SIGKILL)]
    assert system.forked == [0]


def test_a_second_signal_leaves_only_a_little(start: Start) -> None:
    """Ctrl-C, Ctrl-C: workers are told to stop at once, and killed if they do not."""
    supervisor, system = start([None], {10: signal.SIGINT, 11: signal.SIGINT}, stubborn=True)
    assert supervisor.run(lambda: None) == 0
    assert system.sent == [(10, signal.SIGTERM), (11 + GRACE, signal.SIGKILL)]
    assert system.said == [(11, AT_ONCE)]


def test_a_worker_that_dies_while_draining_is_not_started_again(start: Start) -> None:
    """The end is the end."""
    supervisor, system = start([12], {10: signal.SIGTERM}, stubborn=True)
    assert supervisor.run(lambda: None) == 0
    assert (system.forked, system.now) == ([0], 1012)


def test_sighup_without_a_file_changes_nothing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """It says that there is nothing to read, and goes on; the workers do not hear of it."""
    supervisor, system = start([None], {10: signal.SIGHUP, 20: signal.SIGTERM})
    assert supervisor.run(lambda: None) == 0
    assert "SIGHUP: nothing to read, since there is no -c FILE" in caplog.text
    assert (system.sent, system.said) == ([(20, signal.SIGTERM)], [])


def test_sighup_tells_all_workers(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file says now is put up for them, with what the command line said; what cannot be taken is named."""
    caplog.set_level("INFO")
    supervisor, system = start([None], {10: signal.SIGHUP, 20: signal.SIGTERM})
    told = msgspec.structs.replace(supervisor.config, workers=3, rule=[RuleConfig("deny", ports=[25])])
    supervisor.reread = lambda: compile_config(told)
    published: list[Compiled] = []

    def tell_all(body: object, fds: Sequence[int] = ()) -> None:
        system.say(body)
        published.extend(map(load, fds))

    monkeypatch.setattr(supervisor, "tell_all", tell_all)
    monkeypatch.setattr(Reload, "poll", finish)
    assert supervisor.run(lambda: None) == 0
    (compiled,) = published
    assert compiled.config == msgspec.structs.replace(supervisor.config, rule=[])
    assert [rule.action for rule in compiled.rules] == ["deny"]
    assert (system.sent, system.said) == ([(20, signal.SIGTERM)], [(10, RELOAD)])
    assert "reloaded, but these wait for a restart: workers" in caplog.text
    assert "reloaded: rules: 1, users: 0" in caplog.text


class Changing:
    """A watch that sees a change at each of these times."""

    def __init__(self, changes: list[float]) -> None:
        self.due = 1000.0
        self.changes = [1000 + when for when in changes]

    def has_changed(self, now: float) -> bool:
        if now < self.due:
            return False
        self.due = now + 1
        if not self.changes or now < self.changes[0]:
            return False
        del self.changes[0]
        return True


def test_files_that_have_changed_are_read_anew(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SIGHUP does it, without one; it looks once a second, and not once it stops."""
    caplog.set_level("INFO")
    supervisor, system = start([None], {20: signal.SIGTERM})
    compiled = supervisor.compiled
    supervisor.reread = lambda: compiled
    supervisor.watch = Changing([3, 12, 21])  # type: ignore[assignment]
    monkeypatch.setattr(Reload, "poll", finish)
    assert supervisor.run(lambda: None) == 0
    assert [when for when, body in system.said if body == RELOAD] == [3, 12]
    assert caplog.text.count("reloaded: rules: 0") == 2


def finish(reload: Reload) -> Report:
    """Wait for what compiles: its process is a real one."""
    os.waitpid(reload.pid, 0)
    return msgspec.json.decode(os.pread(reload.said, 1 << 20, 0), type=Report)


def test_sighup_during_a_reload_is_for_one_more(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written while a child compiled is read by another one; however often it was told, by one."""
    caplog.set_level("INFO")
    supervisor, _ = start(
        [None], {10: signal.SIGHUP, 11: signal.SIGHUP, 12: signal.SIGHUP, 20: signal.SIGCHLD, 30: signal.SIGTERM}
    )
    compiled = supervisor.compiled
    supervisor.reread = lambda: compiled
    polls = iter(range(3))
    monkeypatch.setattr(Reload, "poll", lambda reload: None if next(polls, None) is not None else finish(reload))
    assert supervisor.run(lambda: None) == 0
    assert caplog.text.count("reloaded: rules: 0") == 2
    assert supervisor.reloading is None


@pytest.mark.parametrize("error", [ConfigError("missing", "rule[0].action"), FileNotFoundError(2, "No such file")])
def test_a_broken_file_keeps_the_old_configuration(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """SIGHUP with a file that cannot be taken says why; no worker hears of it."""

    def reread() -> Compiled:
        raise error

    supervisor, system = start([None], {10: signal.SIGHUP, 20: signal.SIGTERM})
    supervisor.reread = reread
    monkeypatch.setattr(Reload, "poll", finish)
    assert supervisor.run(lambda: None) == 0
    assert f"not reloaded, the old configuration stays: {error}" in caplog.text
    assert (system.sent, system.said) == ([(20, signal.SIGTERM)], [])
    assert supervisor.latest is None


def test_a_command_that_fails_does_not_end_it(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked hears of it, and the log has the traceback; what is no command is answered, too."""
    supervisor, _ = start([None], {})

    def fail(request: object, answer: object) -> None:
        raise RuntimeError("a mistake")

    supervisor.commands["fail"] = fail
    ours, theirs = make_channel()
    supervisor.workers[0].channel = ours
    requests: list[object] = [{"command": "fail"}, {"command": ["fail"]}, {}, {"command": "status"}]
    for number, request in enumerate(requests):
        theirs.send({"id": number, "request": request})
    supervisor.hear()
    answers = [theirs.next_body() for _ in requests]
    theirs.close()
    assert answers[0] == {"id": 0, "error": "internal error: RuntimeError"}
    assert "a mistake" in caplog.text
    expected = f"expected one of: status, reload, fault, log_level, upgrade, fail, {', '.join(ABOUT)}"
    assert answers[1] == {"id": 1, "error": f"command ['fail'], {expected}"}
    assert answers[2] == {"id": 2, "error": f"command None, {expected}"}
    assert answers[3] is not None
    assert answers[3]["ok"]["pid"] == os.getpid()


def test_a_question_with_no_room_for_its_number_does_not_end_it(start: Start) -> None:
    """What fills a message to its last octet cannot be passed on: whoever asked hears so."""
    supervisor, _ = start([None], {})
    asker, ours = make_channel()
    worker, supervisor.workers[0].channel = make_channel()
    supervisor.workers[0].pid = 1
    supervisor.children = [child.Child("test", print)]
    supervisor.children[0].channel = ours
    try:
        for size in range(MAX_MESSAGE - 200, MAX_MESSAGE + 1):
            with contextlib.suppress(ValueError):
                asker.send({"id": 5, "request": {"command": "egress", "x": "y" * size}})
                supervisor.hear()
                if (answer := asker.next_body()) is not None:
                    assert answer == {"id": 5, "error": "the request is too large"}
                    break
                assert worker.next_body() is not None
        else:
            pytest.fail("all were passed on")
    finally:
        supervisor.children[0].empty()
        asker.close()
        worker.close()


def test_who_is_drained_is_remembered(start: Start) -> None:
    """For workers that start again; until it is brought back, and no more than so many."""
    supervisor, _ = start([None], {})
    asker, ours = make_channel()

    def steer(action: str, member: str) -> None:
        request = {"command": "steer", "action": action, "pool": "p", "member": member}
        supervisor.carry_out({"request": request, "id": 1}, ours)

    steer("drain", "a")
    steer("drain", "b")
    steer("undrain", "a")
    assert list(supervisor.drained) == [("p", "b")]
    for number in range(MOST_DRAINED + 5):
        steer("drain", str(number))
    assert len(supervisor.drained) == MOST_DRAINED
    assert ("p", "b") not in supervisor.drained
    asker.close()
    ours.close()


def test_the_level_of_messages_is_set(start: Start) -> None:
    """Here and in all workers; what is no level is said."""
    supervisor, system = start([None], {})
    before = logging.getLogger().level
    answers: list[object] = []
    try:
        for level in ("debug", "loud", None, ["debug"]):
            supervisor.set_log_level({"level": level}, answers.append)
        assert logging.getLogger().level == logging.DEBUG
    finally:
        logging.getLogger().setLevel(before)
    assert answers[0] == {"ok": {"level": "debug"}}
    for answer, shown in zip(answers[1:], ("'loud'", "None", "['debug']"), strict=True):
        text = f"{shown}, expected one of: debug, info, warning, error"
        assert answer == {"error": text, "path": "level"}
    assert {"log_level": "debug"} in [said for _, said in system.said]


def test_workers_0_is_one_for_each_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the system says; one where it does not know."""
    monkeypatch.setattr(module, "raise_descriptor_limit", lambda: None)
    for count, expected in ((3, 3), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        config = Config(workers=0, listen=[Listen("socks5://127.0.0.1:0")], log=Log(access="none"))
        supervisor = Supervisor(compile_config(config))
        assert len(supervisor.workers) == expected
        supervisor.sockets[0][0].close()
        os.close(supervisor.lifeline)
        os.close(supervisor.held_end)


def test_what_a_worker_would_refuse_is_refused_before_any_starts() -> None:
    """An open proxy is a ConfigError with the key."""
    with pytest.raises(ConfigError, match=r"listen\[0\].url: socks5://0.0.0.0:0 would be an open proxy"):
        Supervisor(compile_config(Config(listen=[Listen("socks5://0.0.0.0:0")])))
