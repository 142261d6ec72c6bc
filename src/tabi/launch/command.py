"""The program of a run: started as a shell would start it, told what tabi is told, and waited for.

It is in tabi's own process group, so that a terminal's signals reach it from the terminal, a pipeline stays one job of
the shell, and a terminal stays a terminal. Python's handlers come too late to say who has sent a signal, so that the
main thread holds all of them back and takes them one by one (sigwaitinfo(2)).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Signals that are for the program, and once it has ended end the wait for sessions."""

TAKEN = ENDING | {signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP, signal.SIGCHLD}
"""Signals that are taken one by one. All but the last are passed on."""

DEFAULT_AGAIN = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, for itself alone."""

NOT_FOUND = 127
NOT_EXECUTABLE = 126
SIGNALLED = 128
"""What shells give as the exit code: of a program that is not there, one that cannot be executed, and, with the number
of the signal, of one that a signal has ended."""


class CannotStart(Exception):
    """The program was not started; ``code`` is the exit code that a shell would give."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def hold_signals() -> set[signal.Signals]:
    """Hold back the signals that `Command.wait` takes, also in threads that are started later. Returns which were held
    back before."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # by our parent: then no exit code could be had
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)}


class Command:
    """A program that runs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def start(cls, arguments: Sequence[str], environ: Mapping[str, str], held: set[signal.Signals]) -> Command:
        """Start a program, which is looked for in PATH. It has our standard streams and all descriptors that it would
        have without us.

        Args:
            arguments: its name, and what follows.
            held: the signals that are held back in it.

        Raises:
            CannotStart: it is not there, or cannot be executed.
        """

        def spawn(file: str, *words: str) -> Command:
            return cls(os.posix_spawnp(file, words, environ, setsigmask=held, setsigdef=DEFAULT_AGAIN))

        try:
            try:
                return spawn(arguments[0], *arguments)
            except OSError as exc:
                if exc.errno != errno.ENOEXEC:
                    raise
                found = shutil.which(arguments[0]) or arguments[0]
                return spawn("/bin/sh", "sh", found, *arguments[1:])  # as execvp(3): a script without a line of #!
        except (OSError, ValueError) as exc:
            missing = isinstance(exc, FileNotFoundError) or not arguments[0]
            reason = "command not found" if missing and "/" not in arguments[0] else getattr(exc, "strerror", exc)
            raise CannotStart(f"{arguments[0]}: {reason}", NOT_FOUND if missing else NOT_EXECUTABLE) from exc

    def wait(self) -> int:
        """Pass signals on until it ends; gives the exit code as a shell does. `hold_signals` comes before."""
        while True:
            info = signal.sigwaitinfo(TAKEN)
            if info.si_signo == signal.SIGCHLD:
                if (code := self.look()) is not None:
                    return code
                continue
            if self.is_for_us_alone(info):
                self.tell(info.si_signo)
            if info.si_signo == signal.SIGTSTP:
                self.stop()

    def is_for_us_alone(self, info: signal.struct_siginfo) -> bool:
        """Whether a signal has come from a process, for which tabi stands for the program.

        What the terminal sends is for the whole job, and so is what the program sends, such as an editor on Ctrl-Z.
        """
        return info.si_code <= 0 and info.si_pid not in (self.pid, os.getpid())

    def tell(self, number: int) -> None:
        """Send a signal. SIGCONT does not undo a later Ctrl-Z, which has stopped the program and is yet to stop us."""
        if number == signal.SIGCONT and is_pending(signal.SIGTSTP):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it runs as another user now
            os.kill(self.pid, number)
        if number == signal.SIGCONT and is_pending(signal.SIGTSTP):  # it came just before ours
            self.tell(signal.SIGTSTP)

    def look(self) -> int | None:
        """Its exit code, if it has ended. If it has stopped all by itself, so does the whole job of the shell."""
        everyone = os.getpid() == 1  # the first process of a container is given the orphans
        while True:
            whom = (os.P_ALL, 0) if everyone else (os.P_PID, self.pid)
            info = os.waitid(*whom, os.WEXITED | os.WSTOPPED | os.WNOHANG)
            if info is None:
                return None
            if info.si_pid != self.pid:
                continue
            if info.si_code == os.CLD_EXITED:
                return info.si_status
            if info.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                return SIGNALLED + info.si_status
            if not is_pending(signal.SIGTSTP) and in_foreground():
                os.kill(0, signal.SIGTSTP)

    def stop(self) -> None:
        """Stop this process as Ctrl-Z does, and have the program go on when it goes on."""
        if not is_pending(signal.SIGCONT):
            signal.raise_signal(signal.SIGTSTP)  # while it is held back: if another one has come, they are one stop
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
        signal.sigtimedwait({signal.SIGCONT}, 0)
        self.tell(signal.SIGCONT)


def is_pending(number: int) -> bool:
    """Whether a signal waits to be taken. Of SIGCONT and SIGTSTP it is the later one: either discards the other
    (signal(7))."""
    return number in signal.sigpending()


def in_foreground() -> bool:
    """Whether we are the job that has the terminal; a shell is there then that hears of a stop."""
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


def drain(runs: Callable[[], bool], hurry: Callable[[], object], seconds: float) -> None:
    """Wait while ``runs()``, for ``seconds`` at most. Each look is after a signal, such as SIGCHLD; one that would end
    a program calls ``hurry``, a second one ends the wait."""
    deadline, hurried = monotonic() + seconds, False
    while runs():
        info = signal.sigtimedwait(TAKEN, max(0.0, deadline - monotonic()))
        if info is None or (hurried and info.si_signo in ENDING):
            return
        if info.si_signo in ENDING:
            hurried = True
            hurry()
