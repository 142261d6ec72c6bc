"""The program of a run: its start, its signals, its end. Most of this is seen from outside, by `tabi run`."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import PATIENCE, TABI, children, environment, is_running, need, state_of, wait_for
from tabi.launch import command
from tabi.launch.command import CannotStart, Command

pytestmark = pytest.mark.linux

RUN = (*TABI, "run", "--quiet", "--")

NOTES = """
import os, signal, sys
def note(number, frame):
    print(signal.Signals(number).name, flush=True)
for name in sys.argv[1].split(","):
    signal.signal(getattr(signal, name), note)
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
"""
"""Prints the names of the signals that come."""


class Noting:
    """`tabi run` of a program that notes signals."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = int(self.line().removeprefix("ready "))

    def line(self) -> str:
        """What the program prints next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def noting(names: str) -> Iterator[Noting]:
    """Run it in a process group of its own, without a terminal."""
    arguments = [*RUN, sys.executable, "-c", NOTES, names]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as process:
        try:
            yield Noting(process)
        finally:
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait(PATIENCE)


def run(*arguments: str, stdin: bytes = b"", pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    """Run a program by `tabi run` to its end."""
    command = [*RUN, *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, env=environment(), timeout=PATIENCE, pass_fds=pass_fds
    )


PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT")


def test_a_signal_is_passed_on() -> None:
    """One that somebody has sent to tabi alone is for the program, which decides what becomes of it."""
    with noting(",".join(PASSED_ON)) as running:
        for name in [*PASSED_ON, *PASSED_ON]:
            running.process.send_signal(signal.Signals[name])
            assert running.line() == name
        assert running.process.poll() is None


def test_a_program_that_a_signal_ends() -> None:
    """The exit code is that of a shell."""
    with noting("SIGUSR1") as running:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE) == 128 + signal.SIGTERM


@pytest.mark.parametrize(("code", "expected"), [("exit 0", 0), ("exit 77", 77), ("exit 255", 255), ("kill -9 $$", 137)])
def test_exit_codes(code: str, expected: int) -> None:
    """Those of the program, and 128 and the signal's number."""
    assert run("sh", "-c", code).returncode == expected


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("no-such-program", 127, "no-such-program: command not found"),
        ("./no-such-program", 127, "./no-such-program: No such file or directory"),
        ("/etc/passwd", 126, "/etc/passwd: Permission denied"),
        ("/", 126, "/: Permission denied"),
        ("", 127, ": command not found"),
    ],
)
def test_what_cannot_be_started(name: str, code: int, text: str) -> None:
    """The exit codes of shells, and one line that says why, also with --quiet."""
    done = run(name)
    assert (done.returncode, done.stderr.decode()) == (code, f"tabi: {text}\n")


def test_a_script_without_a_first_line_that_names_its_interpreter(tmp_path: Path) -> None:
    """sh runs it, as execvp(3) has it."""
    script = tmp_path / "script"
    script.write_text("echo $1 $#\n")
    script.chmod(0o755)
    assert run(str(script), "one", "two").stdout == b"one 2\n"


def test_standard_streams_and_descriptors_are_the_program_s() -> None:
    """Octets pass unchanged, a descriptor that is inherited stays open, and none of ours is there."""
    reading, writing = os.pipe()
    try:
        code = f"cat; echo err >&2; echo three >&{writing}; ls /proc/self/fd | wc -l >&{writing}"
        arguments = [need("bash"), "-c", code]
        done = run(*arguments, stdin=b"\x00\xff in", pass_fds=(writing,))
        assert (done.stdout, done.stderr) == (b"\x00\xff in", b"err\n")
        with_tabi = os.read(reading, 100)
        subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(writing,), check=True)
        assert with_tabi == os.read(reading, 100)
    finally:
        os.close(reading)
        os.close(writing)


STATE = "grep -E '^(SigBlk|SigIgn)' /proc/self/status | sed 's/:.*\\(.\\{7\\}\\)$/ \\1/'; ulimit -n"
"""Both sets, without what is above signal 28: the C library keeps two there for itself (nptl(7))."""


@pytest.mark.parametrize("trap", ["", "trap '' HUP USR1;"], ids=["usual", "some ignored"])
def test_signals_and_limits_are_as_they_were(trap: str) -> None:
    """What is ignored or held back in tabi is not in the program, unless it was before."""
    plain = subprocess.run(["sh", "-c", f'{trap} sh -c "{STATE}"'], capture_output=True, check=True)
    through = " ".join((*RUN, "sh", "-c", f'"{STATE}"'))
    done = subprocess.run(["sh", "-c", f"{trap} {through}"], capture_output=True, env=environment(), check=True)
    assert done.stdout == plain.stdout


def test_children_that_are_left_do_not_keep_it() -> None:
    """A program that has put something into the background ends, and tabi with it."""
    done = run("sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!")
    pid = int(done.stdout)
    assert (done.returncode, is_running(pid)) == (0, True)
    os.kill(pid, signal.SIGKILL)


def test_a_parent_that_ignores_the_end_of_children() -> None:
    """SIGCHLD may be ignored as tabi starts."""
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *RUN, "sh", "-c", "exit 5"], env=environment(), timeout=PATIENCE)
    assert done.returncode == 5


# --- terminals ---


SHELL = ["bash", "--norc", "--noprofile", "--noediting", "-i"]


class Terminal:
    """A shell with job control on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(need("bash"), SHELL, environment() | {"PS1": "$ "})
        self.text = ""
        attributes = termios.tcgetattr(self.fd)
        attributes[3] &= ~termios.ECHO  # what is typed is not to be taken for what is answered
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.fd, text.encode())

    def until(self, text: str) -> str:
        """Read until a text comes; gives what was before it. What follows is kept."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            self.text += os.read(self.fd, 4096).decode()
        before, _, self.text = self.text.partition(text)
        return before

    def close(self) -> None:
        """End the shell and what runs in it."""
        os.close(self.fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """One with nothing on it but the shell."""
    found = Terminal()
    try:
        yield found
    finally:
        found.close()


def start_noting(terminal: Terminal, folder: Path, names: str) -> tuple[int, int]:
    """Run the program that notes signals there. Gives its process, and that of tabi."""
    script = folder / "notes.py"
    script.write_text(NOTES)
    terminal.type(f"{' '.join(RUN)} {sys.executable} {script} {names}\n")
    terminal.until("ready ")
    pid = int(terminal.until("\n"))
    return pid, state_of(pid)[1]


def test_the_terminal_s_signals_reach_the_program_once(terminal: Terminal, tmp_path: Path) -> None:
    """Ctrl-C is for all of the job: tabi does not pass it on again, since many programs take the second for haste."""
    _, tabi = start_noting(terminal, tmp_path, "SIGINT,SIGUSR1")
    for _ in range(3):
        terminal.type("\x03")
        terminal.until("SIGINT")
        os.kill(tabi, signal.SIGUSR1)  # taken after a Ctrl-C that waits, which has the lower number
        assert "SIGINT" not in terminal.until("SIGUSR1")


def test_ctrl_c_ends_a_program_that_does_not_catch_it(terminal: Terminal) -> None:
    """And tabi gives the exit code."""
    code = 'import signal; signal.signal(2, signal.SIG_DFL); print("begun", flush=True); signal.pause()'
    terminal.type(f"{' '.join(RUN)} {sys.executable} -c '{code}'; echo code $?.\n")
    terminal.until("begun")
    terminal.type("\x03")
    terminal.until("code ")
    assert terminal.until(".") == "130"


def test_ctrl_z_stops_the_job_and_fg_has_it_go_on(terminal: Terminal, tmp_path: Path) -> None:
    """Program and proxy stop and go on together, as often as the user wants it."""
    pid, tabi = start_noting(terminal, tmp_path, "SIGCONT,SIGUSR1")
    for _ in range(2):
        terminal.type("\x1a")
        terminal.until("Stopped")
        wait_for(lambda: {state_of(pid)[0], state_of(tabi)[0]} == {"T"}, "both to stop")
        terminal.type("fg\n")
        terminal.until("SIGCONT")
        wait_for(lambda: "T" not in {state_of(pid)[0], state_of(tabi)[0]}, "both to go on")
    os.kill(tabi, signal.SIGUSR1)
    terminal.until("SIGUSR1")


def test_tabi_that_is_told_to_stop_tells_the_program(terminal: Terminal, tmp_path: Path) -> None:
    """SIGTSTP from a process, to tabi alone."""
    pid, tabi = start_noting(terminal, tmp_path, "SIGCONT")
    os.kill(tabi, signal.SIGTSTP)
    terminal.until("Stopped")
    wait_for(lambda: state_of(pid)[0] == "T", "the program to stop")
    terminal.type("fg\n")
    terminal.until("SIGCONT")


def test_a_program_that_stops_by_itself_stops_the_job(terminal: Terminal, tmp_path: Path) -> None:
    """As an inner shell's `suspend`: the outer shell gets the terminal."""
    pid, _ = start_noting(terminal, tmp_path, "SIGCONT")
    os.kill(pid, signal.SIGSTOP)
    terminal.until("Stopped")
    terminal.type("fg\n")
    terminal.until("SIGCONT")


def test_a_signal_of_the_program_to_its_group_comes_once(terminal: Terminal, tmp_path: Path) -> None:
    """As an editor stops its job: it has sent the signal to itself as well."""
    code = "import os, signal\n"
    code += "signal.signal(signal.SIGUSR1, lambda *_: print('one', flush=True))\n"
    code += "signal.signal(signal.SIGUSR2, lambda *_: print('two', flush=True))\n"
    code += "os.kill(0, signal.SIGUSR1)\nprint('parent', os.getppid(), 'waits', flush=True)\n"
    code += "while True: signal.pause()\n"
    (tmp_path / "group.py").write_text(code)
    terminal.type(f"{' '.join(RUN)} {sys.executable} {tmp_path / 'group.py'}\n")
    terminal.until("one")
    terminal.until("parent ")
    os.kill(int(terminal.until(" waits")), signal.SIGUSR2)  # taken after the other one, which has the lower number
    assert "one" not in terminal.until("two")


def test_a_program_that_stops_without_a_terminal() -> None:
    """Nobody would have tabi go on: it goes on waiting."""
    with noting("SIGCONT,SIGUSR1") as running:
        os.kill(running.pid, signal.SIGSTOP)
        wait_for(lambda: state_of(running.pid)[0] == "T", "the program to stop")
        running.process.send_signal(signal.SIGCONT)
        assert running.line() == "SIGCONT"
        assert state_of(running.process.pid)[0] != "T"


def test_a_terminal_stays_a_terminal(terminal: Terminal) -> None:
    """Also for an inner shell with jobs of its own, and at either end of a pipeline."""
    terminal.type(f"{' '.join(RUN)} sh -c 'test -t 0 && test -t 1 && test -t 2 && echo all three'\n")
    terminal.until("all three")
    terminal.type(f"{' '.join(RUN)} bash --norc --noprofile --noediting -i\n")
    terminal.type("jobs; (exit 3); echo inner $?; exit 4\n")
    terminal.until("inner 3")
    terminal.type("echo outer $?\n")
    terminal.until("outer 4")
    terminal.type(f"echo word | {' '.join(RUN)} cat | sed s/word/sentence/\n")
    terminal.until("sentence")


# --- in this process ---


@pytest.fixture
def held() -> Iterator[set[signal.Signals]]:
    """Signals that are held back, and at the end as they were."""
    before = command.hold_signals()
    try:
        yield before
    finally:
        while signal.sigtimedwait(command.TAKEN, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


START_AND_WAIT = """
import os, signal
from tabi.launch import command
held = command.hold_signals()
started = command.Command.start(("sh", "-c", "exit $CODE"), {"CODE": "9", "PATH": os.environ["PATH"]}, held)
code = started.wait()
started.tell(signal.SIGTERM)  # it is gone: nothing happens
print(code)
"""
"""In a process of its own: a thread that does not hold signals back may get what another one waits for."""


def test_start_and_wait() -> None:
    """The program gets the environment that it is given."""
    done = subprocess.run([sys.executable, "-c", START_AND_WAIT], capture_output=True, timeout=PATIENCE, check=True)
    assert done.stdout == b"9\n"


@pytest.fixture
def stopped() -> Iterator[int]:
    """A program that is stopped, in a process group of its own. It comes before `held`, which it would inherit."""
    with subprocess.Popen([need("sleep"), "60"], process_group=0) as program:
        try:
            program.send_signal(signal.SIGSTOP)
            wait_for(lambda: state_of(program.pid)[0] == "T", "the program to stop")
            yield program.pid
        finally:
            program.kill()


def test_ctrl_z_before_the_signal_of_fg_is_passed_on(stopped: int, held: set[signal.Signals]) -> None:
    """The program has stopped again by the time that tabi tells it to go on: it is not told."""
    signal.raise_signal(signal.SIGTSTP)
    Command(stopped).tell(signal.SIGCONT)
    assert os.waitid(os.P_PID, stopped, os.WCONTINUED | os.WNOHANG) is None


def test_ctrl_z_as_the_signal_of_fg_is_passed_on(
    stopped: int, held: set[signal.Signals], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the look whether one has come and the signal: the program stops once more."""
    kill = os.kill

    def press_ctrl_z(pid: int, number: int) -> None:
        if number == signal.SIGCONT:
            kill(pid, signal.SIGTSTP)
            signal.raise_signal(signal.SIGTSTP)
        kill(pid, number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", press_ctrl_z)
        Command(stopped).tell(signal.SIGCONT)
    assert signal.SIGTSTP in signal.sigpending()
    wait_for(lambda: state_of(stopped)[0] == "T", "the program to stop again")


STOP = """
import os, signal, sys
from tabi.launch.command import Command, hold_signals
hold_signals()
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
Command(os.getpid()).stop()
assert signal.SIGCONT in signal.sigpending()  # the program, which is this one, is told to go on
"""
"""Stops after a signal that has come since it was told to."""


@pytest.mark.parametrize(("name", "stops"), [("SIGTSTP", 1), ("SIGCONT", 0)])
def test_what_comes_before_the_stop(name: str, stops: int) -> None:
    """A second SIGTSTP, such as that of an editor to its group, is no second stop. SIGCONT is the later word."""
    with subprocess.Popen([sys.executable, "-c", STOP, name], env=environment(), process_group=0) as process:
        try:
            for _ in range(stops):
                wait_for(lambda: state_of(process.pid)[0] == "T", "it to stop")
                process.send_signal(signal.SIGCONT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_an_environment_that_cannot_be_given(held: set[signal.Signals]) -> None:
    """Arguments that are too many for the system."""
    with pytest.raises(CannotStart, match="Argument list too long") as caught:
        Command.start(("true", "x" * (1 << 20)), {}, held)
    assert caught.value.code == 126


def test_the_end_of_the_proxy_is_waited_for(held: set[signal.Signals]) -> None:
    """Each signal is a reason to look; one that ends programs hurries it."""
    hurried: list[bool] = []
    answers = iter((True, True, True, False))
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGWINCH):
        signal.raise_signal(number)
    command.drain(lambda: next(answers), lambda: hurried.append(True), PATIENCE)
    assert hurried == [True]
    assert next(answers, None) is None


@pytest.mark.parametrize("sent", [(), (signal.SIGINT, signal.SIGTERM)], ids=["deadline", "two signals"])
def test_a_proxy_that_does_not_end(held: set[signal.Signals], sent: tuple[signal.Signals, ...]) -> None:
    """It is waited for so long and no longer, and less if the user says it twice."""
    for number in sent:
        signal.raise_signal(number)
    command.drain(lambda: True, lambda: None, PATIENCE if sent else 0.01)
