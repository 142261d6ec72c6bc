"""The supervisor: binds the sockets, starts the workers that listen on them, and restarts one that dies.

It carries no octet and runs no loop: it sleeps, in sigtimedwait(2) where there is one, until a child or the operator
wants something, or there are used quotas to store.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tabi.errors import ConfigError
from tabi.net.datagram import get_datagram_io
from tabi.net.kernel import (
    check_calls,
    has_epoll,
    has_netlink,
    has_splice,
    has_timed_wait,
    raise_descriptor_limit,
    try_files,
)
from tabi.net.listen import Listeners, urls_of
from tabi.net.passed import Group, take_passed
from tabi.net.privileges import acting_as, become, keep_few
from tabi.observe.log_targets import open_log
from tabi.server.answers import ABOUT
from tabi.server.channel import Channel, close_all
from tabi.server.child import Child, Place, describe_end
from tabi.server.compiled import Compiled, check_listeners
from tabi.server.fault_control import Answer, FaultControl
from tabi.server.handled_signals import HandledSignals
from tabi.server.ledger import SharedLedger
from tabi.server.notify import notify, notify_reloading
from tabi.server.predecessor import Predecessor, State
from tabi.server.questions import Questions
from tabi.server.quota_keeper import INTERVAL, QuotaKeeper
from tabi.server.quota_store import open_store, path_of
from tabi.server.reload import Reload, Report, load
from tabi.server.trust import user_of
from tabi.server.upgrade import Succession
from tabi.server.watch import Watch
from tabi.server.worker import AT_ONCE, RELOAD, Shared, run_worker

log = logging.getLogger("tabi")

SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGIO}
"""SIGIO says that something has come through a channel."""

FIRST_START = 10.0
"""Seconds that the first worker may take until it accepts; then the supervisor goes on as if it did."""

CHILD_START = 1.0
"""Seconds that a child may take until it says that it is ready."""

MOST_DRAINED = 1000
"""Members that a worker which starts again knows to be out; of more, the latest."""

LEVELS = ("debug", "info", "warning", "error")

GRACE = 3.0
"""Seconds that workers get beyond the drain time before they are killed."""


class Supervisor:
    """Runs ``config.workers`` workers until SIGTERM or SIGINT.

    Args:
        compiled: what to serve by.
        reread: reads and compiles the configuration anew, for SIGHUP. None if there is no file.
        children: processes that help it. It keeps them up; their creator ends them.
        records: for workers, to that of them that writes records of interception.
        watch: tells when the files have changed, and that is read anew then.
        predecessor: the process that this one takes over from.
        admin: what the place of the admin API is called for `Inherited`, and its socket. Workers close that, and never
            dial its port.

    Raises:
        ConfigError: an address cannot be listened on, a file cannot be written, or it would be an open proxy.
    """

    def __init__(
        self,
        compiled: Compiled,
        reread: Callable[[], Compiled] | None = None,
        children: Sequence[Child] = (),
        records: socket.socket | None = None,
        watch: Watch | None = None,
        predecessor: Predecessor | None = None,
        admin: tuple[str, socket.socket] | None = None,
    ) -> None:
        self.admin = admin
        self.records = records
        self.watch = watch
        self.compiled = compiled
        self.config = config = compiled.config
        self.reread = reread
        self.reloading: Reload | None = None
        self.reload_again = False
        self.answers: list[Answer] = []
        """For the clients that asked for the next reload; ``asked`` has those of the current one."""
        self.asked: list[Answer] = []
        self.latest: int | None = None
        """Memory with the last compiled configuration, if it is not the one from the start."""
        self.identity = user_of(config)
        """Who the other processes become, if this one is root and they are not to be."""
        for child in children:
            child.identity = self.identity
        probe()
        try:
            with acting_as(self.identity):
                if config.log.access != "none":
                    open_log(config.log)[0].close()
        except OSError as exc:
            raise ConfigError(f"{config.log.access}: {exc.strerror}", "log.access") from exc
        self.passed = passed = take_passed(os.environ) if predecessor is None else predecessor.passed
        inherited = None if predecessor is None else predecessor.inherited
        self.listeners = Listeners()
        self.sockets = self.listeners.sockets
        self.workers = [Place() for _ in range(config.workers or os.cpu_count() or 1)]
        self.children = children
        self.faults = FaultControl(self.workers, config)
        self.drained: dict[tuple[str, str], None] = {}
        """Members of pools that an operator has taken out: workers that start again know them, too."""
        self.questions = Questions(self.workers)
        self.commands: dict[str, Callable[[Mapping[str, Any], Answer], None]] = {
            "status": self.tell_status,
            "reload": lambda _, answer: self.reload(answer),
            "fault": self.faults.do,
            "log_level": self.set_log_level,
            "upgrade": lambda _, answer: self.succession.begin(answer),
        }
        self.succession = Succession(
            predecessor, self.describe, self.hand_over, self.stop_at_once, self.tell_control, self.orphaned, notify
        )
        if predecessor is not None:
            self.faults.adopt(predecessor.faults)
        self.began = time.time()
        self.ledger = SharedLedger(len(self.workers), merges=predecessor is not None)
        self.keeper: QuotaKeeper | None = None
        try:
            self.listeners.open(config.listen, passed, inherited)
            check_listeners(compiled, self.sockets)  # the places of passed sockets are known only now
            self.keep_quotas(compiled.with_quotas)
        except OSError as exc:
            where, _, url = str(exc.filename).partition(": ")
            raise ConfigError(f"{url}: {exc.strerror}", where) from exc
        except ConfigError:
            self.listeners.close()
            raise
        passed.warn()
        if inherited is not None:
            inherited.close()
        # Workers watch the other end: it ends when this process does, however it does.
        self.lifeline, self.held_end = (sock.detach() for sock in socket.socketpair())
        self.handled: HandledSignals | None = None
        if self.identity is not None:
            keep_few()
        self.starting = True
        self.stopping = False
        self.spared = False
        """Whether it drains for another process, and was not told to stop yet."""

    @property
    def urls(self) -> list[str]:
        """Where it listens, with the ports that port 0 became."""
        return urls_of(self.config.listen, self.sockets)

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call ``ready`` and stay until all of them have ended. Returns the exit code."""
        try:
            code = self.supervise(ready)
        finally:
            self.listeners.close()
            if self.reloading is not None:
                self.reloading.kill()
            self.save_quotas()
            self.ledger.close()
            if self.handled is not None:
                self.handled.close()
        self.succession.close()  # the next one counts now what is stored; an error goes through it to the one before
        return code

    def supervise(self, ready: Callable[[], None]) -> int:
        """Start the workers and stay until all have ended, as `run`; the listeners may be left open."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if our parent had it ignored, no child could be reaped
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # it is blocked now: one that is ignored would not be seen
        if not has_timed_wait():
            self.handled = HandledSignals(SIGNALS)
        try:
            self.start_all()
        except ConfigError:
            self.stop()
            for worker in self.workers:
                if worker.pid is not None:
                    os.waitpid(worker.pid, 0)
                    worker.empty()
            raise
        ready()
        self.succession.ready(self.listeners.keep_inherited())
        log.info("datagrams: %s", get_datagram_io().describe())
        killing = False
        while True:
            self.reap()
            running = [worker for worker in self.workers if worker.pid is not None]
            now = time.monotonic()
            if self.stopping and now >= self.deadline and not killing:
                killing = True
                self.signal_all(signal.SIGKILL)
                self.succession.stopped(at_once=True)
            if self.stopping and not running and (killing or not self.succession.waits):
                return 0
            if not self.stopping:
                for worker in self.workers:
                    if worker.pid is None and worker.due <= now:
                        self.start_again(worker)
            for child in self.children:
                child.keep_up(now)
            told = self.wait(self.patience(now))
            if told in (signal.SIGTERM, signal.SIGINT):
                self.stop()
            elif told == signal.SIGUSR2 and (not self.stopping or self.succession.handed_over):
                self.succession.begin()
            elif not self.stopping and (told == signal.SIGHUP or self.has_changed()):
                self.reload()
            self.hear()
            self.succession.look(time.monotonic())
            self.faults.keep_time()
            self.questions.keep_time()
            self.save_quotas()

    def wait(self, seconds: float) -> int | None:
        """Sleep until a signal comes. Returns it, or None."""
        if self.handled is None:
            found = signal.sigtimedwait(SIGNALS, seconds)
            return None if found is None else found.si_signo
        places = (*self.workers, *self.children)
        channels = [place.channel for place in places if place.channel is not None]
        return self.handled.wait(seconds, [*channels, *self.succession.channels()])

    def has_changed(self) -> bool:
        """Whether the files have changed, if they are watched."""
        return self.watch is not None and self.watch.has_changed(time.monotonic())

    def patience(self, now: float) -> float:
        """Seconds until something is due without a signal."""
        if self.stopping:
            return max(0.0, min(self.deadline - now, 1.0))
        due = [place.due - now for place in (*self.workers, *self.children) if place.pid is None]
        waiting = (self.faults, self.questions, self.succession)
        due += [seconds for one in waiting if (seconds := one.due(now)) is not None]
        if self.watch is not None:
            due.append(self.watch.due - now)
        return max(0.0, min(due, default=3600.0 if self.keeper is None else INTERVAL))

    def start_all(self) -> None:
        """Start every process, and wait until one of the workers accepts; it listens on the sockets bound here.

        Raises:
            ConfigError: it cannot listen, as when another program took the address meanwhile. Or none accepts, and
                there is a process before this one, which goes on then.
        """
        now = time.monotonic()
        for child in self.children:
            child.keep_up(now)
        for worker in self.workers:
            self.start(worker)
        self.starting = False
        waiting = [worker.channel for worker in self.workers if worker.channel is not None]
        while waiting:
            readable = select.select(waiting, (), (), FIRST_START)[0]
            told = [channel.next_body() for channel in readable]
            for body in told:
                if body is not None and "failed" in body:
                    raise ConfigError(body["failed"])
            if any(told):
                break
            waiting = [channel for channel in waiting if channel not in readable] if readable else []
        else:
            if self.succession.predecessor is not None:
                raise ConfigError("no worker accepts clients")
        for child in self.children:
            if child.channel is not None and child.says_ready:
                with contextlib.suppress(EOFError, ValueError):  # it has died already, and is started again
                    child.channel.receive_within(CHILD_START)

    def start(self, worker: Place) -> None:
        """Fork a worker."""
        end = worker.fork()
        if end is None:
            return
        code = 1
        try:
            os.close(self.held_end)
            for place in (*self.workers, *self.children):
                if place.channel is not None:
                    place.channel.close()
            self.succession.close()
            ports = []
            if self.admin is not None:
                ports.append(self.admin[1].getsockname()[1])
                self.admin[1].close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the supervisor decides what it means
            self.ledger.settle(self.workers.index(worker))
            compiled = self.compiled if self.latest is None else load(self.latest)
            told = self.faults.messages
            if self.identity is not None:
                compiled = compiled.complete()  # with keys that perhaps root alone can read
                become(self.identity)
                for certificates in filter(None, compiled.certificates):
                    certificates.rest_if_unreadable()
            shared = Shared(
                self.sockets, self.lifeline, self.ledger, end, self.records, ports, tuple(self.drained), told
            )
            run_worker(compiled, shared, lambda: end.send({"ready": True}))
            code = 0
        except ConfigError as exc:  # a script of interception, which only workers load
            if not self.starting:
                log.error("a worker failed: %s", exc)
            end.send({"failed": str(exc)})
        except OSError as exc:
            if not self.starting:
                log.exception("a worker failed")
            end.send({"failed": f"{exc.filename or 'a worker failed'}: {(exc.strerror or str(exc)).lower()}"})
        except BaseException:
            log.exception("a worker failed")
        finally:
            os._exit(code)

    def start_again(self, worker: Place) -> None:
        """Fork it once more, or later if the system has no room for a process."""
        try:
            self.start(worker)
        except OSError as exc:
            self.postpone(worker, f"no worker could be started: {exc.strerror}")

    def postpone(self, worker: Place, why: str) -> None:
        """Say why a worker is started again, and when."""
        log.error("%s; another starts in %.1f s", why, worker.postpone(time.monotonic()))

    def reap(self) -> None:
        """Take note of the processes that have ended."""
        if self.reloading is not None and (report := self.reloading.poll()) is not None:
            self.reloaded(self.reloading, report)
        for child in self.children:
            child.reap(time.monotonic())
        for worker in self.workers:
            if worker.pid is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            worker.empty()
            self.faults.left(worker)
            self.questions.left(worker)
            self.ledger.forget_worker(self.workers.index(worker))
            if self.stopping:
                continue
            self.postpone(worker, f"worker {pid} {describe_end(status)}")

    # --- what comes through the channels ---

    def hear(self) -> None:
        """Take what has come through the channels, and send on what waits in them."""
        for place in (*self.workers, *self.children):
            channel = place.channel
            while channel is not None and (message := channel.next_message()) is not None:
                body = message.body
                if "request" in body:
                    self.carry_out(body, channel)
                elif "faults" in body:
                    self.faults.heard(place, body)
                elif "ready" in body and self.latest is not None and getattr(place, "hears_reloads", False):
                    channel.send(RELOAD, (self.latest,))  # it has started again, with the first configuration
                elif "told" in body:
                    self.questions.told(place, body["told"], message.fds)
                elif "aside" in body:
                    self.succession.made_room()
                elif "taken" in body:
                    self.succession.named()
                close_all(message.fds)

    def carry_out(self, body: Mapping[str, Any], channel: Channel) -> None:
        """Do what the control socket's process asks for, and have it answered."""

        def answer(found: Mapping[str, Any]) -> None:
            channel.send({**found, "id": body["id"]})

        request = body["request"]
        name = request.get("command")
        command = self.commands.get(name) if isinstance(name, str) else None
        if command is None and isinstance(name, str) and name in ABOUT:
            self.pass_on(request, body["id"], channel, answer)
        elif command is None:
            answer({"error": f"command {name!r}, expected one of: {', '.join((*self.commands, *ABOUT))}"})
        elif self.stopping and name != "status":
            answer({"error": "the server is stopping"})
        else:
            try:
                command(request, answer)
            except Exception as exc:  # a request must not end the server
                log.exception("command %s failed", name)
                answer({"error": f"internal error: {type(exc).__name__}"})

    def pass_on(self, request: Mapping[str, Any], number: int, channel: Channel, answer: Answer) -> None:
        """Ask all workers."""
        if request["command"] == "steer":
            member = str(request.get("pool")), str(request.get("member"))
            self.drained.pop(member, None)
            if request.get("action") == "drain":
                self.drained[member] = None
                if len(self.drained) > MOST_DRAINED:
                    del self.drained[next(iter(self.drained))]
        try:
            self.questions.ask(request["command"], request, number, channel)
        except ValueError:  # with our own number it has no room in a message
            answer({"error": "the request is too large"})

    def set_log_level(self, request: Mapping[str, Any], answer: Answer) -> None:
        """Have messages from this level on logged, in all workers, until the server ends."""
        level = request.get("level")
        if level not in LEVELS:
            answer({"error": f"{level!r}, expected one of: {', '.join(LEVELS)}", "path": "level"})
            return
        logging.getLogger().setLevel(level.upper())
        self.tell_all({"log_level": level})
        answer({"ok": {"level": level}})

    def tell_status(self, _: Mapping[str, Any], answer: Answer) -> None:
        """Answer with what runs."""
        now, monotonic = time.time(), time.monotonic()
        workers = [
            {"pid": worker.pid, "started": round(now - monotonic + worker.started, 3)}
            for worker in self.workers
            if worker.pid is not None
        ]
        state = "draining" if self.succession.handed_over else "stopping" if self.stopping else "running"
        urls = [] if self.stopping else self.urls
        found = {"pid": os.getpid(), "state": state, "started": self.began, "listening": urls, "workers": workers}
        answer({"ok": found})

    # --- quotas, and another configuration ---

    def keep_quotas(self, wanted: bool) -> None:
        """Load what was used before, if there are quotas, and store it from now on. Raises ConfigError."""
        if wanted and self.keeper is None:
            with acting_as(self.identity):
                self.keeper = QuotaKeeper(self.ledger, open_store(path_of(self.config)))
            self.keeper.together = self.keeper.merges = self.succession.predecessor is not None

    def save_quotas(self) -> None:
        """Store what was used since the last time."""
        if self.keeper is not None:
            with acting_as(self.identity):
                self.keeper.save()

    def reload(self, answer: Answer = lambda _: None) -> None:
        """Have a child compile the file as it is now. A request that comes meanwhile causes one more reload."""
        if self.reread is None:
            log.warning("SIGHUP: nothing to read, since there is no -c FILE")
            answer({"error": "nothing to read, since there is no -c FILE"})
            return
        self.answers.append(answer)
        if self.reloading is not None:
            self.reload_again = True
        else:
            self.begin_reload()

    def begin_reload(self) -> None:
        """Start the child that compiles the file."""
        assert self.reread is not None
        notify_reloading()
        self.asked, self.answers = self.answers, []
        try:
            channels = [place.channel for place in (*self.workers, *self.children) if place.channel is not None]
            private = (self.held_end, *[channel.fileno() for channel in [*channels, *self.succession.channels()]])
            self.reloading = Reload(self.reread, self.config, self.sockets, private, self.identity)
        except OSError as exc:
            self.tell_reload({"error": f"not reloaded, the old configuration stays: {exc}"})

    def reloaded(self, reload: Reload, report: Report) -> None:
        """Hand to all workers what was compiled, for new sessions; what failed changes nothing."""
        self.reloading = None
        try:
            if report.error is not None:
                raise ConfigError(report.error)
            self.keep_quotas(report.with_quotas)
        except ConfigError as exc:
            os.close(reload.memory)
            self.tell_reload({"error": f"not reloaded, the old configuration stays: {exc}"})
        else:
            if self.latest is not None:
                os.close(self.latest)
            self.latest = reload.memory
            self.tell_all(RELOAD, (self.latest,))
            for child in self.children:
                if child.hears_reloads and child.channel is not None:
                    child.channel.send(RELOAD, (self.latest,))
            self.faults.learn(report.profiles, report.distorts)
            if report.later:
                log.warning("reloaded, but these wait for a restart: %s", ", ".join(report.later))
            log.info("reloaded: rules: %d, users: %d", report.rules, report.users)
            found = {"rules": report.rules, "users": report.users, "wait_for_restart": report.later}
            self.tell_reload({"ok": found})
        reload.close()
        if self.reload_again and not self.stopping:
            self.reload_again = False
            self.begin_reload()

    def tell_reload(self, found: Mapping[str, Any]) -> None:
        """Report the result of a reload, in the log and to all clients that asked for it."""
        if "error" in found:
            log.error("%s", found["error"])
        notify("READY=1")
        asked, self.asked = self.asked, []
        for answer in asked:
            answer(found)

    # --- the processes before and after this one ---

    def describe(self) -> tuple[State, list[int]]:
        """What the next process is told, and the descriptors that it gets."""
        groups = self.listeners.groups(self.config.listen)
        if self.admin is not None:
            groups.append(Group(self.admin[0], [self.admin[1].fileno()], []))
        state = State(os.getpid(), groups, self.passed.names, self.faults.state())
        return state, [*itertools.chain(*[group.numbers for group in groups]), *self.passed.names]

    def hand_over(self, files: Collection[str]) -> None:
        """Another process serves: drain, and leave it the files that it has taken."""
        self.listeners.files = [file for file in self.listeners.files if file[0] not in files]
        if self.keeper is not None:
            self.keeper.together = True
        if self.admin is not None:
            self.admin[1].close()
            for child in self.children:
                if child.hears_reloads:
                    child.retire()
        if not self.stopping:
            self.drain()
            self.spared = True

    def tell_control(self, body: Mapping[str, Any]) -> bool:
        """Send a message to the process of the control socket. False if there is none."""
        found = [child.channel for child in self.children if child.name == "tabi-control" and child.channel]
        return any(channel.send(body) for channel in found)

    def orphaned(self) -> None:
        """The process before has ended: what it has used counts, and from now on this one is alone."""
        self.save_quotas()
        if self.keeper is not None:
            self.keeper.together = self.keeper.merges = False

    # --- the end ---

    def stop(self) -> None:
        """The first time: drain. The second time: at once."""
        if not self.stopping:
            notify("STOPPING=1")
            self.succession.stopped(at_once=False)
            self.drain()
        elif self.spared:
            self.spared = False
            log.info("draining; once more stops at once")
        else:
            self.stop_at_once()

    def drain(self) -> None:
        """Accept no more, and let the sessions end."""
        self.stopping = True
        self.deadline = time.monotonic() + self.config.timeouts.drain + GRACE
        self.listeners.close()
        self.signal_all(signal.SIGTERM)

    def stop_at_once(self) -> None:
        """Cut what still runs, in the process before too."""
        self.deadline = min(self.deadline, time.monotonic() + GRACE)
        self.tell_all(AT_ONCE)
        self.succession.stopped(at_once=True)

    def tell_all(self, body: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message to every worker. One that does not read has an equal one waiting, or is killed soon."""
        for worker in self.workers:
            if worker.channel is not None:
                worker.channel.send(body, fds)

    def signal_all(self, number: int) -> None:
        """Send a signal to every worker that was not reaped."""
        for worker in self.workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)


def probe() -> None:
    """Find out, before there are workers, what the system offers. They know it too, and each thing is logged once.

    Raises:
        ConfigError: it does not offer enough.
    """
    raise_descriptor_limit()
    has_epoll()
    has_splice()
    has_timed_wait()
    has_netlink()
    get_datagram_io()
    check_calls(try_files())
