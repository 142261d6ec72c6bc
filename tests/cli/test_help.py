"""The help of the commands: what it explains, and how it looks."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess

import click
import pytest

from depth import deep
from processes import PATIENCE, TABI, environment, run_here, run_tabi
from tabi.cli.help import Command
from tabi.cli.main import COMMANDS, app


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    """`tabi COMMAND -h` explains it with an example, explains each argument and option, and ends with 0."""
    done = run_here(command, "-h")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert text.startswith(f"Usage: tabi {command}")
    assert text.count(f"tabi {command}") > 1, "no example"
    found = app.get_command(click.Context(app), command)
    assert found is not None
    for parameter in found.params:
        assert getattr(parameter, "help", None), f"{parameter.name} is not explained"


@pytest.mark.parametrize(
    ("arguments", "environ", "coloured"),
    [
        (("-h",), {}, True),
        (("serve", "-h"), {"NO_COLOR": "1"}, False),
        ((), {}, True),
        *deep([(("-h",), {"NO_COLOR": "1"}, False), (("serve", "-h"), {}, True), ((), {"NO_COLOR": "1"}, False)]),
    ],
)
def test_only_a_terminal_gets_colours(arguments: tuple[str, ...], environ: dict[str, str], coloured: bool) -> None:
    """The help has bold headings on a terminal that nobody asked to be without, and no escape codes elsewhere."""
    done = run_here(*arguments)
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


def test_the_list_of_commands_has_whole_sentences() -> None:
    """Each command is there with its first sentence, which click would cut at 45 characters."""
    sentence = "Do a thing whose description is longer than click would show of it"

    @click.command(cls=Command, help=f"{sentence}. More of it.")
    def thing() -> None:
        """Nothing."""

    assert thing.get_short_help_str() == f"{sentence}."
    text = " ".join(run_tabi("-h").stdout.decode().split())
    for name in COMMANDS:
        found = app.get_command(click.Context(app), name)
        assert found is not None
        first = " ".join(str(found.help).split("\n\n")[0].split()).split(". ")[0].removesuffix(".")
        assert f" {name} {first}." in text
