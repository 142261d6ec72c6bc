"""The program itself: its commands, its exit codes, and errors of one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tabi
from processes import PATIENCE, TABI, environment, failure, run_here, run_program, run_tabi
from tabi.cli.main import COMMANDS


def test_help_names_every_command() -> None:
    """`tabi --help` lists what there is and ends with 0."""
    done = run_tabi("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout.decode()


WITHOUT_EXTRAS = """
import sys
for name in ("cryptography", "brotli", "websockets", "zstandard", "dns", "asyncssh", "utls"):
    sys.modules[name] = None  # as where it is not installed
from tabi.__main__ import main
main()
"""


@pytest.mark.parametrize("arguments", [("-h",), *((command, "-h") for command in COMMANDS), ("completion", "bash")])
def test_help_needs_no_extra(arguments: tuple[str, ...]) -> None:
    """Whoever has installed tabi alone sees what there is; the commands themselves say what they need."""
    done = run_program([sys.executable, "-c", WITHOUT_EXTRAS, *arguments])
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_command_shows_the_help() -> None:
    """`tabi` alone is no command line: the help, and exit code 2."""
    done = run_tabi()
    assert done.returncode == 2
    assert "Commands" in (done.stdout + done.stderr).decode()


def test_version() -> None:
    """`tabi --version` prints the package's version."""
    done = run_tabi("--version")
    assert (done.returncode, done.stdout.decode()) == (0, f"tabi {tabi.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "--frobnicate"),
        (["serve", "--frobnicate"], "--frobnicate"),
        (["serve", "extra"], "extra"),
        (["serve", "--workers", "many"], "--workers"),
        (["serve", "--through", "socks5://127.0.0.1:1"], "--through"),
        (["udp", "127.0.0.1:53"], "--via"),
        (["check"], "TABI.TOML"),
        (["connect", "127.0.0.1:1"], "--via"),
        (["connect", "127.0.0.1:1", "--via"], "--via"),
        (["ping"], "ALL_PROXY"),
        (["ping", "--timeout", "0", "socks5://127.0.0.1:1"], "--timeout"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_named_in_one_line(arguments: list[str], words: str) -> None:
    """What is unknown, missing or not there yet is refused with exit code 2 and one line that names it."""
    assert words in failure(run_here(*arguments), 2)


def test_debug_adds_the_traceback_and_changes_nothing_else() -> None:
    """With --debug the traceback comes first; the line and the exit code stay."""
    arguments = ("serve", "-l", "socks5://127.0.0.1:0", "-u", "nobody")
    line = failure(run_tabi(*arguments), 2)
    done = run_tabi("--debug", *arguments)
    assert done.returncode == 2
    text = done.stderr.decode()
    assert text.startswith("Traceback ")
    assert "ConfigError" in text
    assert text.endswith(line)


def test_a_reader_that_has_read_enough_gets_no_message() -> None:
    """Whoever closes the pipe early, as head(1) does, has it end with 1, and nothing is on stderr."""
    with subprocess.Popen([*TABI, "-h"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1
