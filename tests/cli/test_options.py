"""The options of the commands that go through a proxy: each means the same in all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from authorities import write_server
from conftest import Run
from doubles import config
from processes import TABI, failure, in_thread, run_tabi
from support import echo, target
from tabi import Server
from tabi.cli.help import Command
from tabi.cli.options import option_ca, option_timeout, option_via
from tabi.client import TIMEOUT
from tabi.config import Listen


@click.command(cls=Command)
@option_via("socks5://host:port")
@option_timeout
@option_ca
def command(**options: Any) -> None:
    """Print what it was given."""
    click.echo(repr(options))


def given(*arguments: str) -> Any:
    """What a command gets of its command line."""
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return eval(done.output)


def test_what_a_command_gets() -> None:
    """A chain of proxies in their order, the deadline of the library unless another is said, the file as it is."""
    assert given("--via", "socks5://a:1") == {"via": ("socks5://a:1",), "timeout": TIMEOUT, "ca": None}
    found = given("--via", "http://b:1", "--timeout", "2.5", "--via", "socks5://a:1", "--ca", "x.pem")
    assert found == {"via": ("http://b:1", "socks5://a:1"), "timeout": 2.5, "ca": "x.pem"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((), "--via"), (("--via", "a", "--timeout", "soon"), "--timeout"), (("--via", "a", "--ca"), "--ca")],
)
def test_what_is_missing_or_is_no_number(arguments: tuple[str, ...], word: str) -> None:
    """It is an error of the command line that names the option."""
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert word in done.output


def test_the_help_says_the_default_and_the_protocols() -> None:
    """What counts where an option is left out is the same that the library takes."""
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "socks5://host:port. Repeated: a chain, in order. [required]" in text
    assert f"Default: {TIMEOUT:g}." in text
    assert "Default: the system's." in text


@pytest.mark.parametrize("name", ["connect", "listen", "udp"])
def test_every_command_has_them(name: str) -> None:
    """The deadline and the authorities are checked by the library, and an error is one line."""
    arguments = () if name == "listen" else ("192.0.2.1:7",)
    assert "timeout" in failure(run_tabi(name, "--via", "socks5://127.0.0.1:1", "--timeout", "0", *arguments), 2)
    assert "nowhere.pem" in failure(
        run_tabi(name, "--via", "socks5+tls://127.0.0.1:1", "--ca", "nowhere.pem", *arguments), 2
    )


def test_the_authorities_of_a_file_are_trusted(run_once: Run, tmp_path: Path) -> None:
    """A proxy inside TLS is known by ``--ca``, and by nothing else where the system does not know it."""
    tls = write_server(tmp_path)

    async def main() -> None:
        async with target(echo) as port, Server(config=config(Listen("https://127.0.0.1:0", tls=tls))) as server:
            command = [*TABI, "connect", f"127.0.0.1:{port}", "--via", server.url]
            done = await in_thread([*command, "--ca", str(tmp_path / "server-ca.pem")], stdin=b"hello")
            assert (done.returncode, done.stdout, done.stderr) == (0, b"hello", b"")
            assert "certificate" in failure(await in_thread(command), 1)

    run_once(main)
