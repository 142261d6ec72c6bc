"""`tabi check`: a configuration as it would be used, or what is wrong with it."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest

from authorities import LONG_AGO, authority, write_server
from processes import failure, run_here, run_tabi
from tabi.config import Config, load_config, make_config
from tabi.policy.rules import FILES
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


MATCHERS = ("hosts", "ports", "users", "clients", "commands", "listeners", "protocols", "hours")

BAD = """
wokers = 2
workers = "two"
[[listen]]
url = "ftp://127.0.0.1:1"
user = "none"
[[listen]]
url = 7
udp = { advertise = "x", prots = "1" }
[users.alice]
password = "hunter2"
plian = true
[users.bob]
password = "hunter2"
limits = { bandwidth = "10", connections = 0 }
[[rule]]
action = "dney"
ports = ["x", 25, "y-"]
hosts = ["re:(", "10.0.0.1/8"]
via = "tor"
[[rule]]
name = ""
via = "nowhere"
[[rule]]
ports = [25]
[guard]
allow = ["10.0.0.1/8", "x"]
[egress.a]
url = "socks6://b"
mark = 0
[egress.b]
chain = ["a", "c"]
resolve = "heer"
[timeouts]
idel = 3
idle = -1
[resolver]
servers = ["dns.example", "quic://1"]
tries = 0
hosts = { a = ["b", "1.1.1.1", "c"], "*.x" = ["1.1.1.1"] }
[log]
level = "loud"
"""

BAD_KEYS = [
    "wokers",
    "workers",
    "listen[0].url",
    "listen[0].user",
    "listen[1].url",
    "listen[1].udp.advertise",
    "listen[1].udp.prots",
    "users.alice.plian",
    "users.bob.password",
    "users.bob.limits.bandwidth",
    "users.bob.limits.connections",
    "rule[0].action",
    "rule[0].ports[0]",
    "rule[0].ports[2]",
    "rule[0].hosts[0]",
    "rule[0].hosts[1]",
    "rule[0].via",
    "rule[1].name",
    "rule[1].via",
    "rule[2].action",
    "guard.allow[0]",
    "guard.allow[1]",
    "egress.a.url",
    "egress.a.mark",
    "egress.b.chain[1]",
    "egress.b.resolve",
    "timeouts.idel",
    "timeouts.idle",
    "resolver.servers[0]",
    "resolver.servers[1]",
    "resolver.tries",
    "resolver.hosts.a[0]",
    "resolver.hosts.a[2]",
    "resolver.hosts.*.x",
    "log.level",
]


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
    assert lines["listen[1].users"] == '"required"'
    assert (lines["listen[0].tls"], lines["listen[0].proxy_protocol"]) == ("none  # there is no TLS", "[]")
    assert lines["listen[1].tls.certificate"].endswith('certificate.pem"')
    assert lines["listen[1].tls.key"].endswith('certificate.key"')
    assert lines["listen[1].tls.client_ca"] == "none  # no certificate is asked for"
    assert lines["listen[1].tls.client_name"] == '"cn"'
    assert [lines[f"listen[1].proxy_protocol[{index}]"] for index in (0, 1)] == ['"10.0.0.0/8"', '"unix"']
    assert lines["users.alice.plain"] == "true"
    assert lines["users.bob.b.plain"] == "false"
    assert (lines["timeouts.idle"], lines["timeouts.connect"]) == ("300.0", "2.5")
    assert {f"timeouts.{name}" for name in ("handshake", "half_closed", "drain")} < set(lines)
    assert (lines["log.access"], lines["log.level"]) == ('"none"', '"info"')


def test_a_key_without_a_value_says_what_that_means(tmp_path: Path) -> None:
    """Whatever the file has, in words that are right where the key is."""
    text = """
[[listen]]
url = "mixed://127.0.0.1:0"
tls = { certificate = "certificate.pem", key = "certificate.key" }
[users.alice]
password = "very secret indeed"
plain = true
[[rule]]
action = "allow"
[egress.a]
url = "ssh://alice@192.0.2.1"
[egress.b]
members = ["a"]
check = { connect = "192.0.2.2:80" }
[egress.c]
members = ["a"]
check = { http = "http://192.0.2.2/" }
[[intercept]]
tls = false
"""
    done = run_here("check", write(tmp_path, text))
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" = ", 1) for line in done.stdout.decode().splitlines())
    assert [key for key, value in lines.items() if value == "none"] == []
    assert lines["listen[0].keepalive"] == "none  # the client is not probed"
    assert lines["egress.a.keepalive"] == "none  # the destination is not probed"
    assert lines["intercept[0].hosts"] == "none  # it matches all"
    assert lines["intercept[0].key"] == "none  # destinations get no certificate"


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    """Nothing has to be configured: the defaults are printed."""
    done = run_here("check", write(tmp_path, ""))
    assert done.returncode == 0
    assert 'listen[0].url = "mixed://127.0.0.1:1080"\n' in done.stdout.decode()
    assert "users = {}\n" in done.stdout.decode()
    assert "= default" not in done.stdout.decode()
    for key in Config.__struct_fields__:
        assert re.search(rf"^{key}\W", done.stdout.decode(), re.MULTILINE), key


def test_defaults_are_what_they_come_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that depend on other keys or on the machine are filled in, with their units; others say what they mean."""
    text = """
[users.alice]
password = "x"
plain = true
limits = { bandwidth = "1 MB/s" }
[groups.dev]
limits = { bandwidth = 1000, burst = "10 kB" }
[[rule]]
via = "out"
[[rule]]
action = "deny"
[egress.out]
url = "socks5://alice:hunter2@127.0.0.1:1"
[[intercept]]
tls = false
body_limit = "64 KiB"
har = "flows.har"
"""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    done = run_here("check", write(tmp_path, text))
    lines = dict(line.split(" = ", 1) for line in done.stdout.decode().splitlines())
    assert lines["ca.certificate"] == f'"{tmp_path}/tabi/ca.crt"'
    assert lines["intercept[0].name"] == '"intercept[0]"'
    assert lines["intercept[0].har"] == f'"{tmp_path}/flows.har"'
    assert lines["intercept[0].body_limit"] == '"64 KiB"'
    assert {key: lines[key] for key in lines if key.startswith("rule[")} == {
        "rule[0].action": '"allow"',
        "rule[0].name": '"rule[0]"',
        "rule[0].via": '"out"',
        "rule[0].idle": "300.0",
        "rule[0].sniff": "false",
        "rule[1].action": '"deny"',
        "rule[1].name": '"rule[1]"',
        "rule[1].via": "none",
        "rule[1].idle": "none",
        "rule[1].sniff": "false",
        **{f"rule[{index}].{key}": "none  # it matches all" for index in (0, 1) for key in MATCHERS},
        **{f"rule[{index}].{key}": "none  # there are no more" for index in (0, 1) for key in FILES},
    }
    assert lines["listen[0].users"] == '"required"'
    assert lines["quotas.path"] == f'"{tmp_path}/tabi/quotas.sqlite"'
    assert lines["users.alice.limits.bandwidth"] == '"1 MB/s"'
    assert lines["users.alice.limits.burst"] == '"100 kB"'
    assert (lines["groups.dev.limits.bandwidth"], lines["groups.dev.limits.burst"]) == ('"1 kB/s"', '"10 kB"')
    assert lines["limits.quota"] == "none  # no limit"
    assert lines["listen[0].keepalive"] == "none  # the client is not probed"
    assert lines["limits.per_client.unauthenticated"] == '"25%"'
    assert lines["limits.per_client.connections"] == "none  # no limit"
    assert "users.alice.limits.per_client" not in lines
    assert lines["users.alice.expires"] == "none  # never"
    assert lines["egress.out.ssh.known_hosts"].endswith('/.ssh/known_hosts"')
    assert lines["egress.out.url"] == '"socks5://…@127.0.0.1:1"'
    assert lines["listen[0].udp.ports"] == "none  # any that is free"
    assert "= default" not in done.stdout.decode()


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_no_secret_is_printed(tmp_path: Path, flags: list[str]) -> None:
    """Neither a password nor its hash shows up."""
    text = make_hash(b"bobs secret")
    done = run_here("check", write(tmp_path, FULL.format(hash=text)), *flags)
    assert done.returncode == 0
    output = (done.stdout + done.stderr).decode().replace(str(tmp_path), "")  # whose name has the test's
    assert "secret" not in output
    assert text.rpartition("$")[2] not in output
    assert "alice" in output


MOLDED = """
[[distort]]
hosts = ["*.example.com"]
fault = { latency = "200ms", limit = "10 MB", down = { bandwidth = "1.5 MB/s" }, from = "22:00 Europe/Berlin" }
[[distort]]
name = "fields"
headers = { set = { User-Agent = "x", Authorization = "secret" }, append = { Cookie = ["secret"] } }
map_remote = "http://user:secret@127.0.0.1:8000"
[[distort]]
fault = "mine"
probability = "10%"
[profile.mine]
rtt = "300ms"
bandwidth = 0.5e1
up = { mtu = 1200, bandwidth = 2.5 }
"""


def test_faults_are_printed_with_what_they_say(tmp_path: Path) -> None:
    """Of a fault and a profile the keys that are there; secrets in fields and URLs are not shown."""
    done = run_here("check", write(tmp_path, MOLDED))
    assert done.returncode == 0, done.stderr
    assert b"secret" not in done.stdout
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith(("distort", "profile"))]
    none = "none  # it matches all"
    assert [line for line in lines if none not in line and not re.search("none  # [a-z]", line)] == [
        'distort[0].name = "distort[0]"',
        'distort[0].hosts[0] = "*.example.com"',
        "distort[0].probability = 1.0",
        "distort[0].fault.latency = 0.2",
        'distort[0].fault.limit = "10 MB"',
        'distort[0].fault.down.bandwidth = "1500 kB/s"',
        'distort[0].fault.from = "22:00 Europe/Berlin"',
        "distort[0].strip_cookies = false",
        'distort[1].name = "fields"',
        "distort[1].probability = 1.0",
        "distort[1].headers.remove = []",
        'distort[1].headers.set.User-Agent = "x"',
        'distort[1].headers.set.Authorization = "…"',
        'distort[1].headers.append.Cookie = "…"',
        "distort[1].headers.order = []",
        "distort[1].strip_cookies = false",
        'distort[1].map_remote = "http://…@127.0.0.1:8000"',
        'distort[2].name = "distort[2]"',
        "distort[2].probability = 0.1",
        'distort[2].fault = "mine"',
        "distort[2].strip_cookies = false",
        'profile.mine.bandwidth = "5 B/s"',
        "profile.mine.up.bandwidth = 2.5",
        'profile.mine.up.mtu = "1200 B"',
        "profile.mine.rtt = 0.3",
    ]
    assert f"distort[0].ports = {none}" in lines
    assert "distort[0].headers = none  # fields of requests stay" in lines
    assert "distort[1].fault = none  # nothing goes wrong" in lines


def test_what_is_printed_of_faults_is_the_same_configuration(tmp_path: Path) -> None:
    """The JSON is read again; of what is secret only the names."""
    path = write(tmp_path, MOLDED)
    data = json.loads(run_here("check", "--json", path).stdout)
    again, config = make_config(data), load_config(path)
    assert again.profile == config.profile
    assert [entry.fault for entry in again.distort] == [entry.fault for entry in config.distort]
    assert [entry.probability for entry in again.distort] == [entry.probability for entry in config.distort]
    assert data["distort"][1]["headers"]["set"] == {"User-Agent": "x", "Authorization": "…"}


def test_a_seed_and_the_workers_of_the_command_line(tmp_path: Path) -> None:
    """They contradict each other there too."""
    path = write(tmp_path, "[[distort]]\nfault = '3g'\nseed = 7")
    assert run_here("check", path).returncode == 0
    line = failure(run_here("serve", "-c", path, "--workers", "2"), 2)
    assert "distort[0].seed: sessions are drawn by each worker for itself: expected workers = 1" in line


def test_json_is_one_object_with_the_same_content(tmp_path: Path) -> None:
    """--json prints the whole configuration for programs."""
    done = run_here("check", "--json", write(tmp_path, FULL.format(hash=make_hash(b"x"))))
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
        ("[timeouts]\nidle = -1", "timeouts.idle"),
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
    line = failure(run_here("check", path), 2)
    assert line.startswith(f"tabi: {path}: {key}: "), line
    assert "hunter2" not in line


def test_all_errors_of_a_file_are_told(tmp_path: Path) -> None:
    """A line for each, in the order of the file: of names, types, values and of what stands somewhere else."""
    path = write(tmp_path, BAD)
    done = run_here("check", path)
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    start = f"tabi: {path}: "
    assert all(line.startswith(start) for line in lines)
    assert [line.removeprefix(start).partition(": ")[0] for line in lines] == BAD_KEYS
    assert "hunter2" not in done.stderr.decode()
    line = failure(run_here("serve", "-c", path), 2)
    assert line.startswith(f"{start}wokers: unknown key, ")
    assert line.rstrip().endswith(f"(and {len(BAD_KEYS) - 1} more: tabi check {path})")


def test_all_broken_lines_of_lists_are_told(tmp_path: Path) -> None:
    """With the file, the line and the reason; behind them what else is wrong."""
    (tmp_path / "hosts").write_text("a.test\ntwo words\n*\n")
    path = write(tmp_path, '[[rule]]\nhosts_file = "hosts"\naction = "deny"\n[auth]\nusers_file = "none"\n')
    done = run_here("check", path)
    assert done.returncode == 2
    where = f"tabi: {path}: rule[0].hosts_file: {tmp_path}/hosts"
    assert done.stderr.decode().splitlines() == [
        f"{where}, line 2: 'two words', expected one host in each line",
        f"{where}, line 3: '*' may stand in hosts, but not in a file: expected a name, *.example.com or a network",
    ]
    (tmp_path / "hosts").write_text("a.test\n")
    path = write(tmp_path, '[[rule]]\nhosts_file = "hosts"\naction = "deny"\n')
    done = run_here("check", path)
    assert done.returncode == 0
    said = f'rule[0].hosts_file = "{tmp_path}/hosts"\nrule[0].networks_file = none  # there are no more\n'
    assert said in done.stdout.decode()


def test_all_that_is_in_the_way_of_a_start_is_told(tmp_path: Path) -> None:
    """What the file says is right, and what it names cannot be used."""
    text = '[[listen]]\nurl = "socks5://0.0.0.0:0"\n[[listen]]\nurl = "unix:///nonexistent/a"\n[log]\naccess = "/etc"'
    path = write(tmp_path, text)
    done = run_here("check", path)
    assert done.returncode == 2
    keys = [line.removeprefix(f"tabi: {path}: ").partition(": ")[0] for line in done.stderr.decode().splitlines()]
    assert keys == ["listen[0].url", "log.access", "listen[1].url"]


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    """A log that could be written and a path that could be listened at are fine, and neither file is there then."""
    path = write(tmp_path, f'[[listen]]\nurl = "unix://{tmp_path}/tabi.sock"\n[log]\naccess = "{tmp_path}/access.log"')
    before = sorted(tmp_path.iterdir())
    assert run_here("check", path).returncode == 0
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "access.log").write_text("a line\n")
    assert run_here("check", path).returncode == 0
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
    assert "line 2" in failure(run_here("check", path), 2)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file is one line with its name."""
    path = tmp_path / "missing.toml"
    assert f"{path}: No such file" in failure(run_here("check", path), 2)
    (tmp_path / "latin1.toml").write_bytes(b'# \xe9\nworkers = "\xff"')
    assert "latin1.toml" in failure(run_here("check", tmp_path / "latin1.toml"), 2)


def test_open_checks_as_serve_open_would(tmp_path: Path) -> None:
    """An open proxy is an error, unless --open says that it is wanted."""
    path = write(tmp_path, '[[listen]]\nurl = "socks5://0.0.0.0:0"')
    assert "open proxy" in failure(run_here("check", path), 2)
    assert run_here("check", "--open", path).returncode == 0


def test_what_may_not_be_meant_is_said(tmp_path: Path) -> None:
    """A rule that can never match is a line on stderr, with the file and the key; the file is right all the same."""
    path = write(tmp_path, '[[rule]]\nname = "all"\naction = "deny"\n[[rule]]\nname = "late"\naction = "allow"')
    done = run_here("check", path)
    assert done.returncode == 0
    assert done.stderr.decode() == f"{path}: rule[1]: late can never match, since all matches all that it would\n"
    assert 'rule[1].name = "late"' in done.stdout.decode()


HOSTILE = '[[rule]]\naction = "deny"\nusers = ["a\\u001b[2J\\u0085\\u202e\\u2028\\u2066ü"]\n'


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_nothing_of_a_file_controls_the_terminal(tmp_path: Path, flags: list[str]) -> None:
    """Names with characters of control come out escaped, in the answer and in what is reported; others as they are."""
    done = run_here("check", *flags, write(tmp_path, HOSTILE))
    assert done.returncode == 0
    text = done.stdout.decode()
    assert text.replace("\n", "").isprintable()
    assert done.stderr.decode().replace("\n", "").isprintable()
    assert "ü" in text
    if flags:
        assert json.loads(text)["rule"][0]["users"] == ["a\x1b[2J\x85\u202e\u2028\u2066ü"]
    else:
        assert r"\u001b[2J\x85\u202e\u2028\u2066" in text
