"""`tabi completion`: the scripts in the shells that they are for."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import PATIENCE, environment, failure, need, run_here, run_program
from tabi.cli.main import COMMANDS
from tabi.config.faults import PROFILES

pytestmark = pytest.mark.interop

COMPLETIONS = [
    ("tabi ", [*COMMANDS]),
    ("tabi fault ", ["list", "add", "change", "remove"]),
    ("tabi fault li", ["list"]),
    ("tabi --debug fault ch", ["change"]),
    ("tabi ca export --format ", ["pem", "der", "p12"]),
    ("tabi serve --fault ", [*PROFILES]),
    ("tabi fault add s", ["slow-3g", "satellite"]),
    ("tabi fault add --latency 1 --profile off", ["offline"]),
    ("tabi serve -c x --wor", ["--workers"]),
    ("tabi serve --via fault --wor", ["--workers"]),
    ("tabi explain a", ["associate"]),
    ("tabi completion ", ["bash", "zsh", "fish"]),
    ("tabi fault add --up lat", ["latency="]),
    ("tabi ping ssh", ["ssh://"]),
    ("tabi serve -l uni", ["unix://"]),
    ("tabi check tabi.t", ["tabi.toml"]),
    ("tabi serve --config tab", ["tabi.toml"]),
    ("tabi serve --access-log std", ["stdout", "stderr"]),
]
"""A line, and what may stand at its end: in every shell."""

IN_WORDS = [(line, words) for line, words in COMPLETIONS if "tabi.toml" not in words]


def script(shell: str, folder: Path) -> Path:
    """The script for a shell, in a file; with something to complete beside it."""
    done = run_here("completion", shell)
    assert (done.returncode, done.stderr) == (0, b"")
    path = folder / ("_tabi" if shell == "zsh" else f"tabi.{shell}")
    path.write_bytes(done.stdout)
    (folder / "tabi.toml").touch()
    return path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_well_formed(shell: str, tmp_path: Path) -> None:
    """As the shell itself says."""
    done = run_program([need(shell), "-n", script(shell, tmp_path)])
    assert (done.returncode, done.stderr) == (0, b"")


def test_another_shell_is_refused() -> None:
    """In one line, which names those that there are."""
    assert "'bash', 'zsh', 'fish'" in failure(run_here("completion", "tcsh"), 2)


# --- bash ---

ASK_BASH = """
source "$1"
while IFS= read -r line; do
    COMP_LINE=$line COMP_POINT=${#line}
    _tabi
    echo "${COMPREPLY[*]}"
done
"""


def ask_bash(path: Path, *lines: str) -> list[list[str]]:
    """What the function of the script gives for lines; files are bash's own."""
    done = run_program([need("bash"), "-c", ASK_BASH, "bash", path], stdin="".join(f"{x}\n" for x in lines).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    return [line.split() for line in done.stdout.decode().splitlines()]


def test_bash_completes_words(tmp_path: Path) -> None:
    """Commands, options, and the words that they take."""
    found = ask_bash(script("bash", tmp_path), *(line for line, _ in IN_WORDS))
    assert [sorted(words) for words in found] == [sorted(words) for _, words in IN_WORDS]


def test_bash_completes_behind_signs_that_break_words(tmp_path: Path) -> None:
    """For readline a word begins behind : and =, so that the reply has only what follows."""
    lines = ("tabi serve --via socks5:", "tabi serve --fault=of", "tabi ping socks5://h", "tabi fault add --up=lat")
    assert ask_bash(script("bash", tmp_path), *lines) == [["//"], ["offline"], [], ["latency="]]


def test_bash_leaves_the_command_of_run_alone(tmp_path: Path) -> None:
    """First programs, then what is none of tabi's options."""
    programs, behind, after = ask_bash(
        script("bash", tmp_path), "tabi run -- bas", "tabi run bash --inter", "tabi run --via x -- --inter"
    )
    assert "bash" in programs
    assert behind == after == []


# --- with a terminal ---


class Terminal:
    """An interactive shell at a terminal of ours."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.ours, theirs = pty.openpty()
        env = environment() | {"TERM": "xterm", "HOME": str(folder), "PS1": "", "LC_ALL": "C.UTF-8", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=folder, start_new_session=True
        )
        os.close(theirs)
        self.text = ""

    def send(self, text: str) -> None:
        """Type."""
        os.write(self.ours, text.encode())

    def expect(self, pattern: str) -> None:
        """Wait for some output, and forget what came before it."""
        ends = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < ends, f"waited for {pattern!r}, got {self.text!r}"
            if select.select([self.ours], [], [], 0.2)[0]:
                self.text += os.read(self.ours, 65536).decode(errors="replace")
        self.text = self.text[found.end() :]

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self.ours)


@contextlib.contextmanager
def terminal(command: list[str], folder: Path, *setup: str) -> Iterator[Terminal]:
    """A shell that has read some lines."""
    shell = Terminal(command, folder)
    try:
        for line in (*setup, "echo rea''dy"):
            shell.send(f"{line}\n")
        shell.expect("\nready|\rready|^ready")
        yield shell
    finally:
        shell.close()


TYPED = [
    ("fault li\tx", "fault list x"),
    ("check tabi.t\tx", "check tabi.toml x"),
    ("serve --via ssh\tx", "serve --via ssh://x"),
    ("serve --via socks5:\tx", "serve --via socks5://x"),
    ("serve --fault=off\tx", "serve --fault=offline x"),
    ("--debug explain -c tabi.t\tresolve_\tx", "--debug explain -c tabi.toml resolve_ptr x"),
]
"""What is typed behind `tabi`, with TABs, and the arguments that it is called with then."""

STAND_IN = "tabi() { echo got: $*; }"


def try_typing(shell: Terminal) -> None:
    """Type all of it."""
    for typed, called in TYPED:
        shell.send(f"tabi {typed}\n")
        shell.expect(f"[\r\n]got: {re.escape(called)}\r")


def test_bash_at_a_terminal(tmp_path: Path) -> None:
    """With readline, as a user has it: words and files, and no blank where the word goes on."""
    command = [need("bash"), "--norc", "--noprofile", "-i"]
    with terminal(command, tmp_path, f"source {script('bash', tmp_path)}", STAND_IN) as shell:
        try_typing(shell)


def zsh(tmp_path: Path) -> contextlib.AbstractContextManager[Terminal]:
    """A zsh that finds the script by its name in a folder of fpath."""
    script("zsh", tmp_path)
    setup = (f"fpath=({tmp_path} $fpath)", "autoload -Uz compinit && compinit -u -D", STAND_IN)
    return terminal([need("zsh"), "-f", "-i"], tmp_path, *setup)


def test_zsh_at_a_terminal(tmp_path: Path) -> None:
    """The same."""
    with zsh(tmp_path) as shell:
        try_typing(shell)


def test_zsh_lists_commands_with_their_sentences(tmp_path: Path) -> None:
    """Two TABs show all that there is."""
    with zsh(tmp_path) as shell:
        shell.send("tabi ca \t\t")
        shell.expect("export +-- Write an authority's certificate to standard output")


# --- fish ---


def test_fish_completes(tmp_path: Path) -> None:
    """As `complete -C` says it for a line."""
    path = script("fish", tmp_path)
    lines = [line for line, _ in COMPLETIONS]
    ask = f"source {path}; for line in (cat); complete -C $line; echo ---; end"
    command = [need("fish"), "--no-config", "-c", f"cd {tmp_path}; {ask}"]
    done = run_program(command, stdin="".join(f"{line}\n" for line in lines).encode())
    assert done.returncode == 0, done.stderr
    *answers, rest = done.stdout.decode().split("---\n")
    assert rest == ""
    for (line, words), answer in zip(COMPLETIONS, answers, strict=True):
        found = {one.partition("\t")[0] for one in answer.splitlines()}
        assert set(words) <= found, line
        if "tabi.toml" not in words and "std" not in line:
            assert found == set(words), line


def test_it_takes_no_time_to_complete(tmp_path: Path) -> None:
    """The scripts ask nobody: tabi itself need not even be there."""
    for shell in ("bash", "zsh", "fish"):
        text = script(shell, tmp_path).read_text()
        assert "$(tabi" not in text
        assert sys.executable not in text
