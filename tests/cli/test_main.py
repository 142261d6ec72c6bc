"""The program itself: its commands, its exit codes, and errors of one line."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess

import click
import pytest

import tabi
from processes import PATIENCE, TABI, environment, failure, run_tabi
from tabi.cli.main import COMMANDS, app


def test_help_names_every_command() -> None:
    """`tabi --help` lists what there is and ends with 0."""
    done = run_tabi("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout.decode()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    """`tabi COMMAND -h` explains it with an example, explains each argument and option, and ends with 0."""
    done = run_tabi(command, "-h")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert text.startswith(f"Usage: tabi {command}")
    assert text.count(f"tabi {command}") > 1, "no example"
    found = app.get_command(click.Context(app), command)
    assert found is not None
    for parameter in found.params:
        assert getattr(parameter, "help", None), f"{parameter.name} is not explained"


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["usual", "NO_COLOR"])
@pytest.mark.parametrize("arguments", [("-h",), ("serve", "-h"), ()], ids=" ".join)
def test_only_a_terminal_gets_colours(arguments: tuple[str, ...], environ: dict[str, str], coloured: bool) -> None:
    """The help has bold headings on a terminal that nobody asked to be without, and no escape codes in a pipe."""
    done = run_tabi(*arguments)
    assert b"\x1b" not in done.stdout + done.stderr
    assert (b"\x1b[1m" in on_terminal(arguments, environ)) is coloured


def on_terminal(arguments: tuple[str, ...], environ: dict[str, str]) -> bytes:
    """What a command writes on a terminal."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*TABI, *arguments], stdout=theirs, stderr=theirs, env=environment() | environ
        ) as process:
            os.close(theirs)
            text = b""
            with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
                while part := os.read(ours, 65536):
                    text += part
            process.wait(PATIENCE)
    finally:
        os.close(ours)
    return text


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
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_named_in_one_line(arguments: list[str], words: str) -> None:
    """What is unknown, missing or not there yet is refused with exit code 2 and one line that names it."""
    assert words in failure(run_tabi(*arguments), 2)


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
