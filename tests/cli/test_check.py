"""`tabi check`: a configuration as it would be used, or what is wrong with it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from authorities import LONG_AGO, authority, write_server
from processes import failure, run_tabi
from tabi.config import Config
from tabi.policy.users import make_hash

FULL = """
workers = 2
[[listen]]
url = "socks5://127.0.0.1:0"
users = "required"
[[listen]]
url = "unix:///run/tabi.sock?protocol=mixed&mode=0660"
proxy_protocol = ["10.0.0.0/8", "unix"]
tls = {{ certificate = "certificate.pem", key = "certificate.key" }}
[users.alice]
password = "very secret indeed"
plain = true
[users."bob.b"]
password = "{hash}"
[timeouts]
idle = "5 min"
connect = 2.5
[log]
access = "none"
"""


def write(folder: Path, text: str) -> Path:
    write_server(folder, "certificate")
    path = folder / "tabi.toml"
    path.write_text(text)
    return path


def test_every_key_is_printed_with_its_value_or_default(tmp_path: Path) -> None:
    """A line for each key, in the words of the error messages; what the file does not say has its default."""
    done = run_tabi("check", write(tmp_path, FULL.format(hash=make_hash(b"bobs secret").replace("\n", ""))))
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" = ", 1) for line in done.stdout.decode().splitlines())
    assert lines["workers"] == "2"
    assert lines["listen[0].url"] == '"socks5://127.0.0.1:0"'
    assert lines["listen[0].users"] == '"required"'
    assert lines["listen[1].url"] == '"unix:///run/tabi.sock?protocol=mixed&mode=0660"'
    assert lines["listen[1].users"] == "default"
    assert (lines["listen[0].tls"], lines["listen[0].proxy_protocol"]) == ("default", "[]")
    assert lines["listen[1].tls.certificate"].endswith('certificate.pem"')
    assert lines["listen[1].tls.key"].endswith('certificate.key"')
    assert (lines["listen[1].tls.client_ca"], lines["listen[1].tls.client_name"]) == ("default", '"cn"')
    assert [lines[f"listen[1].proxy_protocol[{index}]"] for index in (0, 1)] == ['"10.0.0.0/8"', '"unix"']
    assert lines["users.alice.plain"] == "true"
    assert lines["users.bob.b.plain"] == "false"
    assert (lines["timeouts.idle"], lines["timeouts.connect"]) == ("300.0", "2.5")
    assert {f"timeouts.{name}" for name in ("handshake", "half_closed", "drain")} < set(lines)
    assert (lines["log.access"], lines["log.level"]) == ('"none"', '"info"')


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    """Nothing has to be configured: the defaults are printed."""
    done = run_tabi("check", write(tmp_path, ""))
    assert done.returncode == 0
    assert 'listen[0].url = "mixed://127.0.0.1:1080"\n' in done.stdout.decode()
    assert "users = {}\n" in done.stdout.decode()


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_no_secret_is_printed(tmp_path: Path, flags: list[str]) -> None:
    """Neither a password nor its hash shows up."""
    text = make_hash(b"bobs secret")
    done = run_tabi("check", write(tmp_path, FULL.format(hash=text)), *flags)
    assert done.returncode == 0
    output = (done.stdout + done.stderr).decode().replace(str(tmp_path), "")  # whose name has the test's
    assert "secret" not in output
    assert text.rpartition("$")[2] not in output
    assert "alice" in output


def test_json_is_one_object_with_the_same_content(tmp_path: Path) -> None:
    """--json prints the whole configuration for programs."""
    done = run_tabi("check", "--json", write(tmp_path, FULL.format(hash=make_hash(b"x"))))
    data = json.loads(done.stdout)
    assert tuple(data) == Config.__struct_fields__
    assert data["timeouts"]["idle"] == 300
    assert set(data["users"]) == {"alice", "bob.b"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("wokers = 2", "wokers"),
        ('workers = "two"', "workers"),
        ("workers = -1", "workers"),
        ("[timeouts]\nidel = 3", "timeouts.idel"),
        ("[timeouts]\nidle = 0", "timeouts.idle"),
        ('[[listen]]\nurl = "ftp://127.0.0.1:1"', "listen[0].url"),
        ('[[listen]]\nurl = "unix://run/tabi.sock"', "listen[0].url"),
        ('[[listen]]\nurl = "https://127.0.0.1:1"', "listen[0].tls"),
        ('[[listen]]\nproxy_protocol = ["proxy"]', "listen[0].proxy_protocol"),
        ('[[listen]]\n[[listen]]\nurl = "socks5://127.0.0.1:99999"', "listen[1].url"),
        ('[[listen]]\nurl = "socks5://0.0.0.0:1080"', "listen[0].url"),
        ('[users.alice]\npassword = "hunter2"', "users.alice.password"),
        ("[users.alice]\nplain = true", "users.alice.password"),
        ('[log]\nlevel = "loud"', "log.level"),
        ('[log]\naccess = "/nonexistent/access.log"', "log.access"),
        ('[log]\naccess = "/etc"', "log.access"),
        ('[[listen]]\nurl = "unix:///nonexistent/tabi.sock"', "listen[0].url"),
        ('[[listen]]\nurl = "unix:///tmp/tabi.sock?owner=nobody-is-called-so"', "listen[0].url"),
        ('[[listen]]\n[[listen]]\nurl = "unix:///tmp/tabi.sock?group=nobody-is-called-so"', "listen[1].url"),
        ('[[listen]]\nurl = "mixed://a..b:1123"', "listen[0].url"),
        ('[[listen]]\nurl = "socks4://127.0.0.1:1"\n[users.a]\npassword = "x"\nplain = true', "listen[0].url"),
        ('[[rule]]\naction = "dney"', "rule[0].action"),
        ("[[rule]]\nports = [25]", "rule[0].action"),
        ('decide = "python:nowhere:decide"', "decide"),
        ('[guard]\nallow = ["10.0.0.1/8"]', "guard.allow[0]"),
        ('[limits]\nquota = "1 GB"', "limits.quota"),
        ('[egress.tor]\nchain = ["socks6://127.0.0.1:9050"]', "egress.tor.chain[0]"),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, text: str, key: str) -> None:
    """Exit code 2 and one line, FILE: KEY: what is wrong; a password that is in the way is not quoted."""
    path = write(tmp_path, text)
    line = failure(run_tabi("check", path), 2)
    assert line.startswith(f"tabi: {path}: {key}: "), line
    assert "hunter2" not in line


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    """A log that could be written and a path that could be listened at are fine, and neither file is there then."""
    path = write(tmp_path, f'[[listen]]\nurl = "unix://{tmp_path}/tabi.sock"\n[log]\naccess = "{tmp_path}/access.log"')
    before = sorted(tmp_path.iterdir())
    assert run_tabi("check", path).returncode == 0
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "access.log").write_text("a line\n")
    assert run_tabi("check", path).returncode == 0
    assert (tmp_path / "access.log").read_text() == "a line\n"


def test_an_expired_certificate_is_a_warning(tmp_path: Path) -> None:
    """It is said in one line, and the file is right all the same."""
    path = write(tmp_path, '[[listen]]\ntls = { certificate = "certificate.pem", key = "certificate.key" }')
    made = authority().issue_cert("localhost", not_before=LONG_AGO - timedelta(days=1), not_after=LONG_AGO)
    (tmp_path / "certificate.pem").write_bytes(made.cert_chain_pems[0].bytes())
    (tmp_path / "certificate.key").write_bytes(made.private_key_pem.bytes())
    done = run_tabi("check", path)
    assert done.returncode == 0
    words = f"{tmp_path}/certificate.pem: has expired, clients will not trust it\n"
    assert done.stderr.decode() == f"listen[0].tls.certificate: {words}"


def test_what_is_no_toml_is_named_with_its_line(tmp_path: Path) -> None:
    """A file that cannot be parsed says where."""
    path = write(tmp_path, "workers = 1\nlisten = !")
    assert "line 2" in failure(run_tabi("check", path), 2)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file is one line with its name."""
    path = tmp_path / "missing.toml"
    assert f"{path}: No such file" in failure(run_tabi("check", path), 2)
    (tmp_path / "latin1.toml").write_bytes(b'# \xe9\nworkers = "\xff"')
    assert "latin1.toml" in failure(run_tabi("check", tmp_path / "latin1.toml"), 2)


def test_open_checks_as_serve_open_would(tmp_path: Path) -> None:
    """An open proxy is an error, unless --open says that it is wanted."""
    path = write(tmp_path, '[[listen]]\nurl = "socks5://0.0.0.0:0"')
    assert "open proxy" in failure(run_tabi("check", path), 2)
    assert run_tabi("check", "--open", path).returncode == 0


def test_what_may_not_be_meant_is_said(tmp_path: Path) -> None:
    """A rule that can never match is a line on stderr, with the file and the key; the file is right all the same."""
    path = write(tmp_path, '[[rule]]\nname = "all"\naction = "deny"\n[[rule]]\nname = "late"\naction = "allow"')
    done = run_tabi("check", path)
    assert done.returncode == 0
    assert done.stderr.decode() == f"{path}: rule[1]: late can never match, since all matches all that it would\n"
    assert 'rule[1].name = "late"' in done.stdout.decode()
