"""The options of `tabi serve` for interception: what they add to the file, and what is wrong with them."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from authorities import authority, write_server
from conftest import Run
from depth import deep
from intercepting import ask, origin
from processes import failure, run_here, run_tabi, serve, wait_for
from tabi.cli.interception import Interception, add_interception, authority_option, summary
from tabi.cli.serve import merge
from tabi.config import Config, InterceptConfig, make_config
from tabi.errors import ConfigError
from tabi.intercept.authority import Authority

FILE = [{"action": "pass", "hosts": ["bank.example"]}, {"hosts": ["a.example"], "har": "/tmp/a.har"}, {"tls": False}]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data directory, which is empty."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """What the options may name."""
    script = tmp_path / "hooks.py"
    script.write_text("class Hook:\n    def request(self, flow):\n        pass\n")
    write_server(tmp_path, "certificate")
    trust = str(tmp_path / "certificate.pem")
    return {"scripts": (str(script),), "har": str(tmp_path / "flows.har"), "prints": True, "trust": trust}


def test_hosts_are_one_more_entry_behind_those_of_the_file(files: dict[str, Any]) -> None:
    """The other options are for it alone."""
    config = make_config({"intercept": FILE})
    found = add_interception(config, Interception(("*.x.example", "10.0.0.0/8"), **files))
    assert found.intercept[:-1] == config.intercept
    assert found.intercept[-1] == InterceptConfig(
        name="--intercept",
        hosts=["*.x.example", "10.0.0.0/8"],
        scripts=list(files["scripts"]),
        har=files["har"],
        print=True,
        trust=files["trust"],
    )
    assert add_interception(config, Interception()) is config


def test_without_hosts_the_entries_of_the_file_get_it(files: dict[str, Any]) -> None:
    """Those that look into something, in addition to what they say."""
    config = make_config({"intercept": FILE})
    found = add_interception(config, Interception(scripts=files["scripts"] * 2, prints=True)).intercept
    assert [entry.print for entry in found] == [False, True, True]
    assert [entry.scripts for entry in found] == [[], list(files["scripts"]), list(files["scripts"])]
    assert [entry.har for entry in found] == [None, "/tmp/a.har", None]
    found = add_interception(config, Interception(har=files["har"], trust=files["trust"])).intercept
    assert [entry.har for entry in found] == [None, files["har"], files["har"]]
    assert [entry.trust for entry in found] == [None, files["trust"], files["trust"]]


@pytest.mark.parametrize("key", ["scripts", "har", "prints"])
def test_without_any_entry_they_are_for_http_without_tls(files: dict[str, Any], key: str) -> None:
    """It takes no authority."""
    compiled = merge(Config(), None, None, None, None, looks=Interception(**{key: files[key]}))
    (entry,) = compiled.config.intercept
    assert not entry.tls
    assert compiled.intercepts is not None
    assert not compiled.intercepts.need_authority
    assert summary(compiled) == "looking into * (without TLS)"
    assert authority_option(compiled) == ""


def test_names_are_relative_to_the_current_folder(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to that of the file."""
    folder = Path(files["har"]).parent
    monkeypatch.chdir(folder)
    options = Interception(("a.example",), ("hooks.py",), "flows.har", False, "certificate.pem")
    entry = add_interception(Config(), options).intercept[0]
    assert (entry.scripts, entry.har, entry.trust) == (list(files["scripts"]), files["har"], files["trust"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Interception(("a*b",)), "--intercept: 'a*b' has a star within"),
        (Interception(("a.example", "10.0.0.1/8")), "--intercept: '10.0.0.1/8' has host bits set"),
        (Interception(("--",)), "--intercept: '--', expected a host"),
        (Interception(scripts=("/nowhere.py",)), "--script: /nowhere.py: No such file or directory"),
        (Interception(har="/nowhere/x.har"), "--har: /nowhere/x.har: there is no folder /nowhere"),
        (Interception(("a.example",), trust="/nowhere.pem"), "--trust: /nowhere.pem: no such file or directory"),
    ],
)
def test_what_is_wrong_names_the_option(options: Interception, message: str) -> None:
    """Not a key of a file that does not have it."""
    with pytest.raises(ConfigError) as caught:
        add_interception(Config(), options)
    assert str(caught.value).startswith(message)


def test_authorities_without_anything_to_look_into_are_an_error(files: dict[str, Any]) -> None:
    """HTTP without TLS has nothing to verify."""
    with pytest.raises(ConfigError, match=r"^--trust: there is nothing to look into: expected --intercept HOST$"):
        add_interception(Config(), Interception(trust=files["trust"], prints=True))


def test_without_an_authority_it_does_not_listen(data: Path) -> None:
    """One line, which names the command that makes one."""
    said = failure(run_here("serve", "-l", "mixed://127.0.0.1:0", "--intercept", "*"), 2)
    assert said == f"tabi: ca: there is no authority at {data}/tabi/ca.crt: `tabi ca init` makes one\n"


BROKEN = ("class Hook:\n    def request(self\n", "2: SyntaxError: '(' was never closed")
MISSING = ("import nowhere\n", "1: ModuleNotFoundError: No module named 'nowhere'")
NO_HOOK = ("class Hook:\n    pass\n", "no class in it has one of the methods client_hello, ")


@pytest.mark.parametrize(
    ("workers", "text", "message"),
    [
        ("1", *MISSING),
        ("2", *BROKEN),
        ("1", *NO_HOOK),
        *deep([("1", *BROKEN), ("2", *MISSING), ("2", *NO_HOOK)]),
    ],
)
def test_a_script_that_cannot_be_loaded_is_one_line(tmp_path: Path, workers: str, text: str, message: str) -> None:
    """It is run in workers only, and the start fails as a whole."""
    script = tmp_path / "hooks.py"
    script.write_text(text)
    done = run_tabi("serve", "-l", "mixed://127.0.0.1:0", "--workers", workers, "--script", script)
    said = failure(done, 2)
    assert str(script) in said
    assert message in said
    assert said.count("\n") == 1


def test_it_says_what_is_looked_into_and_how_to_try_it(data: Path, tmp_path: Path) -> None:
    """A line, and what curl needs to trust the certificates that it sees."""
    Authority.make(str(data / "tabi"))
    compiled = merge(Config(), None, None, None, None, looks=Interception(("*.a.example", "b", "c", "d")))
    assert summary(compiled) == "looking into *.a.example, b, c, … (4)"
    assert authority_option(compiled) == f"--cacert {data}/tabi/ca.crt "
    exempt = make_config({"intercept": [{"action": "pass"}]})
    (tmp_path / "names").write_text("a.example\n")
    listed = Config(intercept=[InterceptConfig(hosts_file=str(tmp_path / "names"), tls=False)])
    said = f"looking into those of {tmp_path}/names (without TLS)"
    assert summary(merge(listed, None, None, None, None)) == said
    assert summary(merge(exempt, None, None, None, None)) is None
    assert summary(merge(Config(), None, None, None, None)) is None
    assert authority_option(merge(Config(), None, None, None, None)) == ""
    with serve(tmp_path, "--intercept", "*") as proxy:
        assert "\nlooking into *\ntry: curl --cacert " in proxy.messages


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_recorded_and_printed(data: Path, tmp_path: Path, run_once: Run, workers: str) -> None:
    """Of all workers in one file, which is whole while the server runs; a line each on stdout."""
    Authority.make(str(data / "tabi"))
    trust, har = tmp_path / "origins.pem", tmp_path / "flows.har"
    trust.write_bytes(authority().cert_pem.bytes())
    options = ("--intercept", "localhost", "--har", str(har), "--print", "--trust", str(trust), "--access-log", "none")

    def entries() -> list[Any]:
        try:
            found: list[Any] = json.loads(har.read_bytes())["log"]["entries"]
        except (OSError, ValueError):
            return []
        return found

    with serve(tmp_path, *options, "--workers", workers) as proxy:

        async def main() -> int:
            async with origin() as port:
                for _ in range(4):
                    await ask(proxy.url, port)
                await ask(proxy.url, port, sni="other.example")
                return port

        port = run_once(main)
        wait_for(lambda: len(entries()) == 4, "the records")
        assert {one["request"]["url"] for one in entries()} == {f"https://localhost:{port}/"}
        wait_for(lambda: proxy.stdout.read_text().count(f"https://localhost:{port}/") == 4, "the lines")
        assert har.stat().st_mode & 0o777 == 0o600


def test_a_reload_begins_it_in_workers_that_run(data: Path, tmp_path: Path, run_once: Run) -> None:
    """Users and groups are known there too, and records are written though the server began without any."""
    Authority.make(str(data / "tabi"))
    trust, har, file = tmp_path / "origins.pem", tmp_path / "flows.har", tmp_path / "tabi.toml"
    trust.write_bytes(authority().cert_pem.bytes())
    plain = (
        '[[listen]]\nurl = "socks5://127.0.0.1:0"\nusers = "optional"\n[log]\naccess = "none"\n'
        '[users.alice]\npassword = "secret"\nplain = true\ngroups = ["dev"]\n'
    )
    file.write_text(plain)
    with serve(tmp_path, "-c", str(file)) as proxy:
        chosen = f'[[intercept]]\nhosts = ["localhost"]\nusers = ["@dev"]\nhar = "flows.har"\ntrust = "{trust}"\n'

        async def main() -> None:
            async with origin() as port:
                own = await ask(proxy.url, port)
                file.write_text(plain + chosen)
                proxy.process.send_signal(signal.SIGHUP)
                await asyncio.to_thread(wait_for, lambda: "reloaded: rules: 0" in proxy.messages, "the reload")
                alice = proxy.url.replace("//", "//alice:secret@")
                while (await ask(alice, port)).certificate == own.certificate:  # the worker takes it over soon
                    await asyncio.sleep(0.01)
                assert (await ask(proxy.url, port)).certificate == own.certificate

        run_once(main)
        wait_for(har.exists, "the records")
