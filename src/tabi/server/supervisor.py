"""The supervisor: binds the sockets, starts the workers that listen on them, and starts again the one that dies.

It carries no octet and runs no loop: it sleeps in sigtimedwait(2) until a child or the operator wants something, or
there are used quotas to store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import signal
import time
from collections.abc import Callable

from tabi.errors import ConfigError
from tabi.net.datagram import get_mail
from tabi.net.listen import Listeners, urls_of
from tabi.net.passed import take_passed
from tabi.observe.access_log import open_output
from tabi.server.compiled import Compiled, refuse_open_proxy
from tabi.server.ledger import SharedLedger
from tabi.server.notify import notify, notify_reloading
from tabi.server.quota_keeper import INTERVAL, QuotaKeeper
from tabi.server.quota_store import open_store, path_of
from tabi.server.reload import Bulletin, Reload, Report, load
from tabi.server.worker import AT_ONCE, Shared, run_worker

log = logging.getLogger("tabi")

SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

FIRST_DELAY, LAST_DELAY = 0.1, 30.0
"""Seconds before a dead worker is started again: doubled each time."""

STEADY = 10.0
"""Seconds after which a worker counts as one that works, so that its next start is quick again."""

FIRST_START = 10.0
"""Seconds that the first worker may take until it accepts; then the supervisor goes on as if it did."""

READY = "."
"""What a worker tells when it accepts."""

GRACE = 3.0
"""Seconds that workers get beyond the drain time before they are killed."""


class Worker:
    """One place for a worker process: who fills it, and when it is filled again if nobody does."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.delay = FIRST_DELAY
        self.started = 0.0
        self.due = 0.0


class Supervisor:
    """Runs ``config.workers`` workers until SIGTERM or SIGINT.

    Args:
        compiled: what to serve by.
        reread: reads and compiles the configuration anew, for SIGHUP. None: there is no file.

    Raises:
        ConfigError: an address cannot be listened on, a file cannot be written, or it would be an open proxy.
    """

    def __init__(self, compiled: Compiled, reread: Callable[[], Compiled] | None = None) -> None:
        self.compiled = compiled
        self.config = config = compiled.config
        self.reread = reread
        self.reloading: Reload | None = None
        self.reload_again = False
        self.latest: int | None = None
        """Memory that has what was compiled last, where that is not what it began with."""
        raise_descriptor_limit()
        try:
            if config.log.access != "none":
                open_output(config.log.access).close()
        except OSError as exc:
            raise ConfigError(f"{config.log.access}: {exc.strerror}", "log.access") from exc
        passed = take_passed(os.environ)
        self.listeners = Listeners()
        self.sockets = self.listeners.sockets
        self.workers = [Worker() for _ in range(config.workers or os.cpu_count() or 1)]
        self.ledger = SharedLedger(len(self.workers))
        self.bulletin = Bulletin(len(self.workers))
        self.keeper: QuotaKeeper | None = None
        try:
            self.listeners.open(config.listen, passed)
            refuse_open_proxy(compiled, self.sockets)  # where passed ones are is known only now
            self.keep_quotas(compiled.with_quotas)
        except OSError as exc:
            where, _, url = str(exc.filename).partition(": ")
            raise ConfigError(f"{url}: {exc.strerror}", where) from exc
        except ConfigError:
            self.listeners.close()
            raise
        passed.warn()
        # Workers watch the other end: it ends when this process does, however it does.
        self.lifeline, self.held_end = os.pipe2(os.O_CLOEXEC)
        self.told_end: int | None = None
        self.stopping = False

    @property
    def urls(self) -> list[str]:
        """Where it listens, with the ports that port 0 became."""
        return urls_of(self.config.listen, self.sockets)

    def run(self, ready: Callable[[], None]) -> int:
        """Start the workers, call ``ready`` and stay until all of them have ended. Returns the exit code."""
        try:
            return self.supervise(ready)
        finally:
            self.listeners.close()
            if self.reloading is not None:
                self.reloading.kill()
            if self.keeper is not None:
                self.keeper.save()
            self.ledger.close()
            self.bulletin.close()

    def supervise(self, ready: Callable[[], None]) -> int:
        """The same; the listeners may be left open."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as who started us may have it, nobody could be reaped
        try:
            self.start_all()
        except ConfigError:
            self.stop()
            for worker in self.workers:
                if worker.pid is not None:
                    os.waitpid(worker.pid, 0)
            raise
        ready()
        notify("READY=1")
        log.info("datagrams: %s", get_mail().describe())
        killing = False
        while True:
            self.reap()
            running = [worker for worker in self.workers if worker.pid is not None]
            now = time.monotonic()
            if self.stopping and not running:
                return 0
            if self.stopping and now >= self.deadline and not killing:
                killing = True
                self.signal_all(signal.SIGKILL)
            if not self.stopping:
                for worker in self.workers:
                    if worker.pid is None and worker.due <= now:
                        self.start_again(worker)
            told = signal.sigtimedwait(SIGNALS, self.patience(now))
            if told is not None and told.si_signo in (signal.SIGTERM, signal.SIGINT):
                self.stop()
            elif told is not None and told.si_signo == signal.SIGHUP and not self.stopping:
                self.reload()
            if self.keeper is not None:
                self.keeper.save()

    def patience(self, now: float) -> float:
        """Seconds until something is due without a signal."""
        if self.stopping:
            return max(0.0, min(self.deadline - now, 1.0))
        due = [worker.due - now for worker in self.workers if worker.pid is None]
        return max(0.0, min(due, default=3600.0 if self.keeper is None else INTERVAL))

    def start_all(self) -> None:
        """Start every worker and wait until one of them accepts; it listens on the sockets, which were bound here.

        Raises:
            ConfigError: it cannot listen, as when another program took the address meanwhile.
        """
        ready_end, self.told_end = os.pipe2(os.O_CLOEXEC)
        try:
            for worker in self.workers:
                self.start(worker)
            os.close(self.told_end)
            self.told_end = None
            select.select((ready_end,), (), (), FIRST_START)
            os.set_blocking(ready_end, False)
            with contextlib.suppress(BlockingIOError):
                told = os.read(ready_end, 4096).decode()
                if told not in ("", READY * len(told)):
                    raise ConfigError(told.strip(READY).partition("\n")[0])
        finally:
            if self.told_end is not None:
                os.close(self.told_end)
                self.told_end = None
            os.close(ready_end)

    def tell(self, text: str = READY) -> None:
        """In a worker: it accepts, or why it cannot. One that was started again has nobody to tell."""
        if self.told_end is not None:
            with contextlib.suppress(BrokenPipeError):  # another was first
                os.write(self.told_end, text.encode())

    def start(self, worker: Worker) -> None:
        """Fork a worker."""
        worker.started = time.monotonic()
        pid = os.fork()
        if pid:
            worker.pid = pid
            return
        code = 1
        try:
            os.close(self.held_end)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the supervisor says what it means
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            number = self.workers.index(worker)
            self.ledger.settle(number)
            self.bulletin.forget(number)
            compiled = self.compiled if self.latest is None else load(self.latest)
            shared = Shared(self.sockets, self.lifeline, self.ledger, self.bulletin.pairs[number][1])
            run_worker(compiled, shared, self.tell)
            code = 0
        except OSError as exc:
            if self.told_end is None:
                log.exception("a worker failed")
            self.tell(f"{exc.filename or 'a worker failed'}: {(exc.strerror or str(exc)).lower()}\n")
        except BaseException:
            log.exception("a worker failed")
        finally:
            os._exit(code)

    def start_again(self, worker: Worker) -> None:
        """Fork it once more, or later if the system has no room for a process."""
        try:
            self.start(worker)
        except OSError as exc:
            self.postpone(worker, f"no worker could be started: {exc.strerror}")

    def postpone(self, worker: Worker, why: str) -> None:
        """Set when a worker is started again: each time later, unless it ran for a while."""
        now = time.monotonic()
        if now - worker.started >= STEADY:
            worker.delay = FIRST_DELAY
        worker.due = now + worker.delay
        log.error("%s; another starts in %.1f s", why, worker.delay)
        worker.delay = min(worker.delay * 2, LAST_DELAY)

    def reap(self) -> None:
        """Take note of the children that have ended."""
        if self.reloading is not None and (report := self.reloading.poll()) is not None:
            self.reloaded(self.reloading, report)
        for worker in self.workers:
            if worker.pid is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            worker.pid = None
            self.ledger.forget_worker(self.workers.index(worker))
            if self.stopping:
                continue
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self.postpone(worker, f"worker {pid} {how}")

    # --- quotas, and another configuration ---

    def keep_quotas(self, wanted: bool) -> None:
        """Take up what was used before, where there are quotas, and store from now on what is. Raises ConfigError."""
        if wanted and self.keeper is None:
            self.keeper = QuotaKeeper(self.ledger, open_store(path_of(self.config)))

    def reload(self) -> None:
        """Have a child compile the file as it is now. One that comes while it does is for a reload more."""
        if self.reread is None:
            log.warning("SIGHUP: nothing to read, since there is no -c FILE")
        elif self.reloading is not None:
            self.reload_again = True
        else:
            notify_reloading()
            try:
                self.reloading = Reload(self.reread, self.config, self.sockets)
            except OSError as exc:
                log.error("not reloaded, the old configuration stays: %s", exc)
                notify("READY=1")

    def reloaded(self, reload: Reload, report: Report) -> None:
        """Hand to all workers what was compiled, for new sessions; what failed changes nothing."""
        self.reloading = None
        try:
            if report.error is not None:
                raise ConfigError(report.error)
            self.keep_quotas(report.with_quotas)
        except ConfigError as exc:
            log.error("not reloaded, the old configuration stays: %s", exc)
            os.close(reload.memory)
        else:
            if self.latest is not None:
                os.close(self.latest)
            self.latest = reload.memory
            self.bulletin.publish(self.latest)
            if report.later:
                log.warning("reloaded, but these wait for a restart: %s", ", ".join(report.later))
            log.info("reloaded: rules: %d, users: %d", report.rules, report.users)
        reload.close()
        notify("READY=1")
        if self.reload_again and not self.stopping:
            self.reload_again = False
            self.reload()

    def stop(self) -> None:
        """The first time: drain. The second time: at once."""
        now = time.monotonic()
        if not self.stopping:
            self.stopping = True
            self.deadline = now + self.config.timeouts.drain + GRACE
            notify("STOPPING=1")
            self.listeners.close()
            self.signal_all(signal.SIGTERM)
        else:
            self.deadline = now + GRACE
            self.signal_all(AT_ONCE)

    def signal_all(self, number: int) -> None:
        """Send a signal to every worker that was not reaped."""
        for worker in self.workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)


def raise_descriptor_limit() -> None:
    """Two descriptors carry one session: take as many as we are allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass
