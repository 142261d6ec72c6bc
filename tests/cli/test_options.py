"""The options of the commands that go through a proxy, and the proxy that the environment names in place of --via."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from authorities import write_server
from conftest import Run
from doubles import config
from processes import TABI, environment, failure, in_thread, run_here, serve
from support import datagram_target, echo, target
from tabi import Server
from tabi.cli.help import Command
from tabi.cli.options import make_proxy, option_ca, option_timeout, option_via
from tabi.client import TIMEOUT
from tabi.config import Listen
from tabi.errors import ConfigError

COMMANDS = (["connect", "127.0.0.1:1"], ["udp", "127.0.0.1:1"], ["listen"])


def test_via_is_a_chain_and_the_environment_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """All URLs in their order, the options with them; ALL_PROXY is not even read."""
    monkeypatch.setenv("all_proxy", "nothing://of the kind")
    proxy = make_proxy(("socks5://127.0.0.1:1", "http://127.0.0.1:2"), 7, None)
    assert (repr(proxy), proxy.timeout) == ("Proxy(socks5://127.0.0.1:1, http://127.0.0.1:2)", 7)


def test_without_via_the_environment_says_which_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `tabi.Proxy.from_environment` reads it, with the same options."""
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1")
    proxy = make_proxy((), 7, None)
    assert (repr(proxy), proxy.timeout) == ("Proxy(socks5://127.0.0.1:1)", 7)


@pytest.mark.parametrize("value", [None, "", " "])
def test_neither_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """It says what there is to do. Nothing is connected to directly because a variable is missing."""
    for name in ("all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(ConfigError, match=r"^no proxy: give --via URL, or set ALL_PROXY$"):
        make_proxy((), 30, None)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "tabi: no proxy: give --via URL, or set ALL_PROXY\n"),
        ("socks5://alice:hunter2@127.0.0.1:99999", "tabi: ALL_PROXY: "),
        ("socks5//alice:hunter2@127.0.0.1", "tabi: ALL_PROXY: "),
        ("ftp://alice:hunter2@127.0.0.1:1", "tabi: ALL_PROXY: protocol 'ftp', expected "),
    ],
)
def test_a_malformed_environment_is_one_line(arguments: list[str], value: str, message: str) -> None:
    """Every command: exit code 2, the name of the variable, and no password."""
    line = failure(run_here(*arguments, env={**environment(), "ALL_PROXY": value}), 2)
    assert line.startswith(message)
    assert "hunter2" not in line


@pytest.mark.parametrize("arguments", COMMANDS[1:], ids=lambda arguments: arguments[0])
def test_what_only_socks5_has_needs_it_in_the_environment_too(arguments: list[str]) -> None:
    """An HTTP proxy in ALL_PROXY is an error of the command line for datagrams and for BIND."""
    line = failure(run_here(*arguments, env={**environment(), "ALL_PROXY": "127.0.0.1:3128"}), 2)
    assert line.endswith(" needs SOCKS5 all the way, and http://127.0.0.1:3128 speaks something else\n")


def test_connect_takes_the_proxy_of_the_environment(tmp_path: Path, run_once: Run) -> None:
    """`tabi connect HOST:PORT` goes through ALL_PROXY as its user, and past it to what NO_PROXY has."""

    async def main() -> None:
        async with target() as port:
            env = {**environment(), "ALL_PROXY": proxy.url.replace("//", "//alice:secret@")}
            for no_proxy in ("example.com", "localhost"):
                command = [*TABI, "connect", f"localhost:{port}"]
                done = await in_thread(command, stdin=b"hello", env={**env, "NO_PROXY": no_proxy})
                assert (done.returncode, done.stdout, done.stderr) == (0, b"hello", b"")
        (session,) = proxy.sessions(1)
        assert (session["user"], session["host"], session["port"]) == ("alice", "localhost", port)

    with serve(tmp_path, "-u", "alice:secret") as proxy:
        run_once(main)
        assert len(proxy.sessions(1)) == 1


def test_udp_takes_the_proxy_of_the_environment(tmp_path: Path, run_once: Run) -> None:
    """Datagrams go through it wherever they go: NO_PROXY is about connections."""

    async def main() -> None:
        async with datagram_target() as port:
            env = {**environment(), "ALL_PROXY": proxy.url, "NO_PROXY": "*"}
            done = await in_thread([*TABI, "udp", f"127.0.0.1:{port}"], stdin=b"hello\n", env=env)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")
        (session,) = proxy.sessions(1)
        assert (session["command"], session["datagrams_up"]) == ("associate", 1)

    with serve(tmp_path) as proxy:
        run_once(main)


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
    [(("--via", "a", "--timeout", "soon"), "--timeout"), (("--via", "a", "--ca"), "--ca"), (("--via",), "--via")],
)
def test_what_is_missing_or_is_no_number(arguments: tuple[str, ...], word: str) -> None:
    """It is an error of the command line that names the option."""
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert word in done.output


def test_the_help_says_the_default_and_the_protocols() -> None:
    """What counts where an option is left out is the same that the library takes."""
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "socks5://host:port. Repeated: a chain, in order. Default: what ALL_PROXY says." in text
    assert f"Default: {TIMEOUT:g}." in text
    assert "Default: the system's." in text


@pytest.mark.parametrize("name", ["connect", "listen", "udp"])
def test_every_command_has_them(name: str) -> None:
    """The deadline and the authorities are checked by the library, and an error is one line."""
    arguments = () if name == "listen" else ("192.0.2.1:7",)
    assert "timeout" in failure(run_here(name, "--via", "socks5://127.0.0.1:1", "--timeout", "0", *arguments), 2)
    assert "nowhere.pem" in failure(
        run_here(name, "--via", "socks5+tls://127.0.0.1:1", "--ca", "nowhere.pem", *arguments), 2
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
