"""`tabi explain`: what would become of a request, for people and as JSON, from the parts that the server has."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from processes import failure, listening, receive_exactly, run_here, run_tabi, serve
from support import credentials, request
from tabi.config import make_config
from tabi.egress.base import CONNECTIONS_ALONE
from tabi.intercept.authority import Authority
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Limits as Accounts
from tabi.server.quota_store import QuotaStore
from tabi.wire.address import parse_host

ROOT = Path(__file__).resolve().parent.parent.parent
POLICY = ROOT / "examples" / "policy.toml"


def explain(
    *arguments: str | Path, config: Path = POLICY, run: Callable[..., CompletedProcess[bytes]] = run_here
) -> str:
    """What it prints."""
    done = run("explain", "-c", config, *arguments)
    assert done.stderr == b""
    assert done.returncode in (0, 3)
    text = done.stdout.decode()
    refused = '"error": null' not in text if "--json" in arguments else "answer    allowed" not in text
    assert done.returncode == (3 if refused else 0), text
    return text


def explain_json(*arguments: str | Path, config: Path = POLICY) -> Any:
    """The same as JSON."""
    return json.loads(explain("--json", *arguments, config=config))


def test_every_rule_the_guard_and_the_limits_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole answer for the metadata service, asked for by a user from outside, within office hours."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # where no quota was used
    options = ("--from", "203.0.113.9", "--user", "alice", "--at", "2026-11-23T09:00+01:00")
    assert explain(*options, "connect", "169.254.169.254:80", run=run_tabi) == (
        """connect 169.254.169.254:80, from 203.0.113.9 by socks5 to mixed://0.0.0.0:1080

client    user alice, of @dev
rules     no-mail             no          ports: 80 is not 25, 465-587
          no-trackers         no          hosts: 169.254.169.254 is not one of *.doubleclick.net, re:^ads?[0-9]*\\.
          office-hours        no          hosts: 169.254.169.254 is not one of *.example.com, 198.51.100.0/24
          guests-browse       no          users: alice is not guest
          guests-only-browse  no          users: alice is not guest
          none matches: allowed, subject to the guard
resolver  169.254.169.254 is an address
guard     refuses: 169.254.169.254 is in 169.254.0.0/16
limits    user alice: 100 connections at once, new ones 20/s, 10 MB/s each way, 50 GB/month
          group dev: 50 MB/s each way
          server: 10000 connections at once

answer    refused with reply 02: guard: 169.254.169.254 is in 169.254.0.0/16, which a client from outside may not reach
"""
    )


def test_the_same_as_json() -> None:
    """One object, its keys those of the access log where there are such."""
    found = explain_json("--from", "203.0.113.9", "--user", "guest", "connect", "8.8.8.8:25")
    assert found["rules"] == [{"rule": "no-mail", "matched": True, "why": "ports 25, 465-587", "action": "deny"}]
    assert (found["action"], found["rule"], found["reply"]) == ("deny", "no-mail", 2)
    assert found["error"] == "rule no-mail: deny 8.8.8.8:25"
    assert found["egress"] is None
    assert found["guard"] == "lets 8.8.8.8 through"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--user", "alice", "connect", "8.8.8.8:443"], "allowed"),
        (["--user", "guest", "connect", "8.8.8.8:443"], "allowed by guests-browse"),
        (["--user", "guest", "associate", "8.8.8.8:443"], "refused with reply 02: rule guests-only-browse: deny"),
        (["--user", "alice", "associate", "8.8.8.8:25"], "allowed"),
        (["--user", "alice", "bind", "0.0.0.0:0"], "allowed"),
        (["--user", "alice", "associate", "[::]:0", "--from", "203.0.113.9"], "allowed"),
        (["--user", "alice", "--protocol", "http", "connect", "8.8.8.8:25"], "refused with status 403: rule no-mail"),
        (["--user", "alice", "--protocol", "socks4", "connect", "8.8.8.8:25"], "refused with reply 91: rule no-mail"),
        (["--protocol", "http", "forward", "8.8.8.8:80"], "refused with status 407: this listener wants a user"),
        (["--user", "alice", "forward", "nowhere.invalid:80"], "refused with status 502: nowhere.invalid: domain name"),
        (
            ["--user", "alice", "connect", "ads1.example.net:80"],
            "connection reset: rule no-trackers: reset ads1.example.net:80",
        ),
        (["connect", "8.8.8.8:443"], "refused without a reply: this listener wants a user"),
        (
            ["--user", "alice", "connect", "nowhere.invalid:80"],
            "refused with reply 04: nowhere.invalid: domain name not found",
        ),
        (
            ["--user", "alice", "connect", "1.2.3.4.5:80"],
            "refused with reply 04: 1.2.3.4.5: neither an address nor a name",
        ),
        (["--user", "alice", "connect", "localhost:80"], "allowed"),
        (["--user", "alice", "--from", "203.0.113.9", "connect", "localhost:80"], "refused with reply 02: guard: ::1"),
        (
            ["--user", "alice", "--from", "203.0.113.9", "connect", "0x7f.1:80"],
            "refused with reply 02: guard: 127.0.0.1 is in 127.0.0.0/8",
        ),
        (["--user", "alice", "--from", "203.0.113.9", "bind", "10.20.0.1:80"], "allowed"),
        (
            ["--user", "guest", "--at", "2031-01-01T00:00", "connect", "8.8.8.8:443"],
            "refused with reply 02: limit: user guest: expired at 2030-01-01T00:00:00Z",
        ),
        (
            ["--user", "alice", "--at", "2026-11-23T09:00+01:00", "connect", "198.51.100.9:443"],
            "allowed by office-hours",
        ),
        (["--user", "alice", "--at", "2026-11-22T09:00+01:00", "connect", "198.51.100.9:443"], "allowed"),
        (["--user", "guest", "--from", "unix", "--protocol", "http", "forward", "8.8.8.8:80"], "allowed"),
    ],
)
def test_answers(arguments: list[str], answer: str) -> None:
    """What the client would get, in the words of the access log."""
    text = explain(*arguments)
    (line,) = [line for line in text.splitlines() if line.startswith("answer")]
    assert line.removeprefix("answer").strip().startswith(answer), text


def test_what_is_judged_later_is_said() -> None:
    """Of an association what becomes of the datagram that was asked about; of BIND for anybody that callers are."""
    assert "datagrams to 8.8.8.8:25: dropped, rule no-mail: deny 8.8.8.8:25\n" in explain(
        "--user", "alice", "associate", "8.8.8.8:25"
    )
    assert "datagrams to 8.8.8.8:53: sent\n" in explain("--user", "alice", "associate", "8.8.8.8:53")
    text = explain("--user", "alice", "--from", "203.0.113.9", "associate", "10.0.0.1:53")
    assert "datagrams to 10.0.0.1:53: dropped, guard: 10.0.0.1 is in 10.0.0.0/8" in text
    assert "callers   each is judged when it comes\n" in explain("--user", "alice", "bind", "0.0.0.0:0")


def test_what_stands_beside_the_rules(tmp_path: Path) -> None:
    """No rules, no guard, an egress of a rule's own, a listener of choice, a program that fails, a client that is not
    in the file."""
    path = tmp_path / "tabi.toml"
    (tmp_path / "said.py").write_text("def no(session):\n    raise ValueError('why')\n")
    path.write_text(
        '[[listen]]\nurl = "http://127.0.0.1:1"\n[[listen]]\nurl = "socks5+tls://127.0.0.1:2"\n'
        'tls = { certificate = "c", key = "k", client_ca = "a" }\n[guard]\ndeny = []\n'
    )
    text = explain("connect", "10.0.0.1:80", config=path)
    assert "there are none: everything is allowed, subject to the guard" in text
    assert "off: guard.deny is empty" in text
    assert "egress    direct" in text
    assert "limits    none" in text
    assert "by http to http://127.0.0.1:1" in text
    text = explain("--listener", "socks5+tls://127.0.0.1:2", "--user", "carol", "connect", "10.0.0.1:80", config=path)
    assert "by socks5+tls to socks5+tls://127.0.0.1:2" in text
    assert "user carol, who is not in [users]: by a certificate" in text


def test_what_was_used_of_a_quota_is_told(tmp_path: Path) -> None:
    """From the file that the server keeps; a file that is none of it is no trouble."""
    path = tmp_path / "tabi.toml"
    quotas = tmp_path / "quotas.sqlite"
    path.write_text(
        f"[users.alice]\npassword = 'x'\nplain = true\nlimits = {{ quota = '1 kB/month' }}\n[quotas]\npath = '{quotas}'"
    )
    assert "limits    user alice: 1 kB/month\n" in explain("--user", "alice", "connect", "8.8.8.8:80", config=path)
    limits = Accounts(Ledger(), users={"alice": make_config({"limits": {"quota": "1 kB/month"}}).limits})
    lease = limits.admit("alice", parse_host("192.0.2.1"), 0, time.time())
    assert lease is not None
    lease.spend(1, 250, 0)
    store = QuotaStore(quotas)
    store.save(limits.ledger)
    assert "user alice: 1 kB/month (25% used)" in explain("--user", "alice", "connect", "8.8.8.8:80", config=path)
    lease.spend(1, 750, 0)
    store.save(limits.ledger)
    text = explain("--user", "alice", "connect", "8.8.8.8:80", config=path)
    assert "refused with reply 02: limit: user alice: the quota of 1 kB/month is used up" in text
    with sqlite3.connect(quotas) as database:
        database.execute("DROP TABLE quota")
    assert "limits    user alice: 1 kB/month\n" in explain("--user", "alice", "connect", "8.8.8.8:80", config=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conect", "a:1"], "COMMAND: 'conect', expected one of: connect, bind, associate, forward, resolve"),
        (["connect", "a"], "HOST:PORT: "),
        (["connect", "a:1", "--from", "alice"], "--from: 'alice', expected an IP address or unix"),
        (["connect", "a:1", "--at", "noon"], "--at: 'noon', expected a time such as 2027-01-31T08:00"),
        (
            ["forward", "a:1", "--protocol", "socks5"],
            "--protocol: socks5, but only HTTP has requests that are forwarded",
        ),
        (["resolve", "a:0", "--protocol", "http"], "--protocol: http, but only SOCKS5 has questions for names"),
        (["connect", "a:1", "--protocol", "ftp"], "--protocol: 'ftp', expected one of: socks5, socks4"),
        (
            ["connect", "a:1", "--user", "carol"],
            "--user: 'carol' is not a user here: there is no [users.carol], and mixed://0.0.0.0:1080 has no",
        ),
        (["connect", "a:1", "--listener", "x"], "--listener: 'x', expected one of: mixed://0.0.0.0:1080"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], message: str) -> None:
    """One line, and which argument it was."""
    assert message in failure(run_here("explain", "-c", POLICY, *arguments), 2)


def test_the_server_says_the_same(tmp_path: Path) -> None:
    """What is explained is what happens: rule, error and reply of the access log."""
    path = tmp_path / "tabi.toml"
    with listening() as (_, port):
        path.write_text(
            '[[listen]]\nurl = "socks5://127.0.0.1:0"\n[users.alice]\npassword = "x"\nplain = true\n'
            f'[[rule]]\nname = "closed"\nports = [{port}]\naction = "deny"'
        )
        found = explain_json("--user", "alice", "connect", f"127.0.0.1:{port}", config=path)
        with serve(tmp_path, "-c", path) as proxy:
            with socket.create_connection((str(proxy.address.host), proxy.address.port)) as sock:
                sock.sendall(b"\x05\x01\x02" + credentials(b"alice", b"x") + request("127.0.0.1", port))
                assert receive_exactly(sock, 6)[-1] == 2
            (line,) = proxy.sessions(1)
    assert {key: line[key] for key in ("rule", "error", "reply")} == {
        key: found[key] for key in ("rule", "error", "reply")
    }
    assert line["rule"] == "closed"


def test_names_are_found_as_the_server_finds_them(tmp_path: Path) -> None:
    """By `[resolver]`: hosts of the configuration, and the kind of address that is preferred."""
    path = tmp_path / "tabi.toml"
    path.write_text('[resolver]\nprefer = "ipv6"\nhosts = { "db.internal" = ["10.0.0.9", "fd00::9"] }\n')
    found = explain_json("connect", "db.internal:5432", config=path)
    assert found["addresses"] == ["fd00::9", "10.0.0.9"]


def test_a_name_that_a_proxy_resolves_is_not_judged_here(tmp_path: Path) -> None:
    """As the server has it: it sends the name on, so that it need have no address on this machine."""
    path = tmp_path / "tabi.toml"
    rule = "[[rule]]\naction = 'allow'\nvia = 'out'\n[egress.out]\nurl = 'socks5://127.0.0.1:1'\n"
    path.write_text(rule)
    found = explain_json("--from", "203.0.113.9", "connect", "nowhere.invalid:80", config=path)
    assert (found["action"], found["error"], found["proxy_resolves"]) == ("allow", None, True)
    assert found["guard"] == "not asked: the name is the proxy's to resolve"
    path.write_text(f"{rule}resolve = 'here'\n")
    found = explain_json("--from", "203.0.113.9", "connect", "nowhere.invalid:80", config=path)
    assert (found["reply"], found["proxy_resolves"]) == (4, False)


def test_questions_for_names_and_addresses(tmp_path: Path) -> None:
    """Whether the listener answers them, who may ask, and what the answer is; a proxy's is not known here."""
    path = tmp_path / "tabi.toml"
    listen = "[[listen]]\nurl = 'mixed://127.0.0.1:1'\n"
    hosts = "[resolver]\nhosts = { 'db.internal' = ['10.0.0.9'] }\n"
    for command, asked in (("resolve", "db.internal:0"), ("resolve_ptr", "10.0.0.9:0")):
        path.write_text(listen + hosts)
        found = explain_json(command, asked, config=path)
        assert (found["reply"], found["error"]) == (7, "resolve_commands of this listener is false")
        path.write_text(f"{listen}resolve_commands = true\n{hosts}")
        found = explain_json(command, asked, config=path)
        assert (found["reply"], found["error"], found["action"]) == (0, None, "allow")
        assert explain_json(command, asked, "--from", "203.0.113.9", config=path)["reply"] == 2
        rule = f"[[rule]]\naction = 'deny'\ncommands = ['{command}']\n"
        path.write_text(f"{listen}resolve_commands = true\n{hosts}{rule}")
        assert explain_json(command, asked, config=path)["error"] == f"rule rule[0]: deny {asked}"
    assert explain_json("resolve_ptr", "db.internal:0", config=path)["reply"] == 8
    path.write_text(f"{listen}resolve_commands = true\n{hosts}")
    assert "resolver  10.0.0.9 is called db.internal\n" in explain("resolve_ptr", "10.0.0.9:0", config=path)
    server = "servers = ['udp://127.0.0.1:1']\ntimeout = 0.1\ntries = 1\n"
    path.write_text(f"{listen}resolve_commands = true\n{hosts}{server}")
    assert explain_json("resolve_ptr", "8.8.8.8:0", config=path)["error"].startswith("8.8.8.8: ")
    way = "[[rule]]\naction = 'allow'\nvia = 'out'\n[egress.out]\nurl = 'socks5://127.0.0.1:1'\n"
    path.write_text(f"{listen}resolve_commands = true\n{hosts}{server}{way}")
    text = explain("resolve", "nowhere.invalid:0", "--from", "203.0.113.9", config=path)
    assert "not asked: the name is the proxy's to resolve, and what it finds is looked at then\n" in text
    assert explain_json("resolve_ptr", "8.8.8.8:0", config=path)["error"] is None
    assert explain_json("resolve_ptr", "10.0.0.9:0", "--from", "203.0.113.9", config=path)["reply"] == 2
    path.write_text(path.read_text().replace("socks5://", "http://"))
    for command, asked in (("resolve", "nowhere.invalid:0"), ("resolve_ptr", "8.8.8.8:0")):
        found = explain_json(command, asked, config=path)
        assert (found["reply"], found["error"]) == (7, f"127.0.0.1:1 is not a SOCKS5 proxy: {CONNECTIONS_ALONE}")


def test_datagrams_and_bind_through_proxies(tmp_path: Path) -> None:
    """Which way they would go, for every destination or for one; and which ways cannot carry them."""
    path = tmp_path / "tabi.toml"

    def with_way(egress: str, rule: str = "") -> Path:
        rules = f"[[rule]]\naction = 'allow'\nvia = 'out'\n{rule}\n[egress.out]\n{egress}\n"
        path.write_text(f"[[listen]]\nurl = 'socks5://127.0.0.1:1'\n{rules}")
        return path

    chain = "chain = ['http://127.0.0.1:1', 'socks5://127.0.0.1:2']"
    through = "out: through http://127.0.0.1:1, then socks5://127.0.0.1:2"
    for command, asked in (
        ("associate", "0.0.0.0:0"),
        ("associate", "8.8.8.8:53"),
        ("bind", "0.0.0.0:0"),
        ("bind", "8.8.8.8:0"),
    ):
        found = explain_json(command, asked, config=with_way("url = 'socks5://127.0.0.1:2'"))
        assert (found["reply"], found["egress"]) == (0, "out: through socks5://127.0.0.1:2")
        found = explain_json(command, asked, config=with_way(chain))
        if command == "bind":  # the last one listens, whatever leads there
            assert (found["reply"], found["egress"]) == (0, through)
        else:
            assert (found["reply"], found["error"]) == (7, f"127.0.0.1:1 is not a SOCKS5 proxy: {CONNECTIONS_ALONE}")
        found = explain_json(
            command, asked, config=with_way("members = ['http://127.0.0.1:1', 'socks5://127.0.0.1:2']")
        )
        assert found["reply"] == 0
        found = explain_json(
            command, asked, config=with_way("members = ['http://127.0.0.1:1', 'socks4://127.0.0.1:2']")
        )
        text = f"pool out: no member can do that: 127.0.0.1:1 is not a SOCKS5 proxy: {CONNECTIONS_ALONE}"
        assert (found["reply"], found["error"]) == (7, text)
        found = explain_json(command, asked, config=with_way("chain = ['block']"))
        assert found["reply"] == 2
    config = with_way("url = 'socks5://127.0.0.1:2'", "ports = [53]")
    found = explain_json("associate", "nowhere.invalid:53", config=config)
    assert (found["later"], found["egress"]) == ("to nowhere.invalid:53: sent", "out: through socks5://127.0.0.1:2")
    config = with_way("url = 'http://127.0.0.1:2'", "ports = [53]")
    found = explain_json("associate", "8.8.8.8:53", config=config)
    assert found["later"].startswith("to 8.8.8.8:53: dropped, 127.0.0.1:2 is not a SOCKS5 proxy")


# --- parameters in the user name ---

GRAMMAR = """
[[listen]]
url = "socks5://127.0.0.1:0"
[[listen]]
url = "socks4://127.0.0.1:0"
users = "none"
[users.alice]
password = "x"
plain = true
groups = ["dev"]
[users_grammar]
keys = { country = "label", city = "label", session = "session", ttl = "ttl" }
[egress.pool]
members = [
    { to = "socks5://u:hunter2@127.0.0.1:1", labels = ["de", "berlin"] },
    { to = "socks5://127.0.0.1:2", labels = ["de"] },
    { to = "hash", labels = ["fr"] },
]
balance = "sticky"
sticky = { by = "user+session" }
[egress.hash]
members = ["socks5://127.0.0.1:3"]
balance = "hash"
sticky = { by = "user+session" }
[egress.turns]
members = ["socks5://127.0.0.1:4"]
[egress.alias]
chain = ["pool"]
[egress.far]
chain = ["pool", "http://127.0.0.1:5"]
[egress.tor]
url = "socks5://127.0.0.1:6"
isolate = ["session"]
"""

SOMEWHERE = ("connect", "192.0.2.7:80")


@pytest.fixture
def grammar(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a file with a grammar, whose rule sends everything by an egress."""

    def write(via: str) -> Path:
        path = tmp_path / "tabi.toml"
        path.write_text(f"{GRAMMAR}[[rule]]\naction = 'allow'\nvia = '{via}'\n")
        return path

    return write


def test_a_user_name_is_taken_apart_as_a_login_is(grammar: Callable[[str], Path]) -> None:
    """The user is who the rules see; the parameters and what they select have lines of their own."""
    text = explain("--user", "alice-country-de-session-7f3a-ttl-10m", *SOMEWHERE, config=grammar("pool"))
    assert "client    user alice, of @dev\n" in text
    assert "user name alice-country-de-session-7f3a-ttl-10m: label de, session 7f3a, ttl 600 s\n" in text
    assert (
        "selects   label de: socks5://127.0.0.1:1, socks5://127.0.0.1:2\n"
        "          session 7f3a: the same member as long as it is used\n"
        "          ttl 600 s: how long that is remembered without a request\n"
    ) in text
    assert "hunter2" not in text
    assert "answer    allowed by rule[0]\n" in text


def test_parameters_as_json(grammar: Callable[[str], Path]) -> None:
    """The user as the log has it, the name as it was given, and what is in it."""
    path = grammar("pool")
    found = explain_json("--user", "alice-country-de-city-berlin", *SOMEWHERE, config=path)
    assert (found["user"], found["login"]) == ("alice", "alice-country-de-city-berlin")
    assert found["parameters"] == {"labels": ["de", "berlin"], "session": None, "ttl": None}
    assert found["selects"] == ["label de and berlin: socks5://127.0.0.1:1"]
    found = explain_json("--user", "alice", *SOMEWHERE, config=path)
    assert (found["user"], found["login"], found["parameters"], found["selects"]) == ("alice", "alice", None, [])
    found = explain_json("--listener", "socks4://127.0.0.1:0", *SOMEWHERE, config=path)
    assert (found["user"], found["login"], found["parameters"], found["selects"]) == (None, None, None, [])


@pytest.mark.parametrize(
    ("via", "name", "selects"),
    [
        ("alias", "alice-country-fr", ["label fr: hash"]),
        ("alias", "alice-session-a", ["session a: the same member as long as it is used"]),
        (
            "hash",
            "alice-session-a-ttl-1h",
            ["session a: always the same member", "ttl 3600 s: nothing, hash remembers no client"],
        ),
        ("turns", "alice-session-a", ["session a: nothing, turns does not go by it"]),
        ("turns", "alice-ttl-5", ["ttl 5 s: nothing, turns remembers no client"]),
        ("pool", "alice-ttl-5", ["ttl 5 s: how long that is remembered without a request"]),
        ("direct", "alice-country-de", ["nothing: direct is not a pool"]),
        ("far", "alice-country-de", ["label de: socks5://127.0.0.1:1, socks5://127.0.0.1:2"]),
        ("tor", "alice-session-a", ["session a: a user name of its own at the last proxy"]),
        ("tor", "alice-country-de-session-a", ["session a: a user name of its own at the last proxy"]),
    ],
)
def test_what_parameters_select(grammar: Callable[[str], Path], via: str, name: str, selects: list[str]) -> None:
    """It depends on the way out: one that is no pool, or goes by something else, has nothing of them."""
    found = explain_json("--user", name, *SOMEWHERE, config=grammar(via))
    assert found["selects"] == selects


REFUSED = [
    ("alice-country-de-color-red", "user name: unknown key 'color', expected one of: country, ", None),
    ("alice-country-de-country-fr", "user name: country twice", None),
    ("alice-session", "user name: session: expected a value of 1 to 64 characters", None),
    ("alice-ttl-soon", "user name: 'soon' is not a time to live, ", None),
    ("alice-country-xx", "pool pool: no member has what the user name asks for", "alice"),
    ("alice-country-de-city-paris", "pool pool: no member has what the user name asks for", "alice"),
]


def test_the_server_says_the_same_of_a_user_name(tmp_path: Path, grammar: Callable[[str], Path]) -> None:
    """A slip of the pen is a refused login, a label that no member has a refused request."""
    path = grammar("pool")
    with serve(tmp_path, "-c", path) as proxy:
        for count, (name, error, user) in enumerate(REFUSED, 1):
            found = explain_json("--user", name, *SOMEWHERE, config=path)
            assert (found["user"], found["egress"], found["selects"]) == (user, None, []), name
            with socket.create_connection((str(proxy.address.host), proxy.address.port)) as sock:
                sock.sendall(b"\x05\x01\x02" + credentials(name.encode(), b"x") + request("192.0.2.7", 80))
                while sock.recv(100):
                    pass
            line = proxy.sessions(count)[-1]
            assert line["error"].startswith(error)
            # The log of a server has the name that was refused behind it.
            assert line["error"] == (found["error"] if user else f"{found['error']}: {name!r}")
            for key in ("user", "reply"):
                assert line[key] == found[key], name


def test_who_does_not_log_in_has_no_parameters(grammar: Callable[[str], Path]) -> None:
    """The name in a certificate is a name and nothing else: SOCKS4, and listeners without users, know no other."""
    path = grammar("pool")
    tls = "tls = { certificate = 'c', key = 'k', client_ca = 'a' }"
    path.write_text(f"{path.read_text()}[[listen]]\nurl = 'socks4+tls://127.0.0.1:3'\n{tls}")
    options = ("--listener", "socks4+tls://127.0.0.1:3", "--user", "a-country-de")
    found = explain_json(*options, *SOMEWHERE, config=path)
    assert (found["user"], found["parameters"]) == ("a-country-de", None)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_nothing_of_a_file_controls_the_terminal(tmp_path: Path, flags: list[str]) -> None:
    """Names with characters of control come out escaped, in both forms."""
    path = tmp_path / "tabi.toml"
    name = "a\\u001b[2J\\u0085\\u202e\\u2028\\u2066ü"
    path.write_text(f'[[rule]]\nusers = ["{name}"]\naction = "deny"\n', "utf-8")
    text = explain(*flags, "connect", "192.0.2.1:80", config=path)
    assert text.replace("\n", "").isprintable()
    assert "ü" in text
    assert r"\u202e\u2028\u2066" in text


def test_a_client_that_needs_no_user(tmp_path: Path) -> None:
    """By its address; anybody else must log in."""
    path = tmp_path / "tabi.toml"
    path.write_text(
        '[[listen]]\nurl = "mixed://127.0.0.1:0"\nno_user = ["10.1.0.0/16"]\n[users.a]\npassword = "x"\nplain = true\n'
    )
    found = explain_json("--from", "10.1.2.3", "connect", "192.88.98.1:80", config=path)
    assert found["identity"] == "no user, and this listener wants none of clients there (no_user)"
    assert found["error"] is None
    found = explain_json("--from", "10.2.2.3", "connect", "192.88.98.1:80", config=path)
    assert (found["identity"], found["reply"]) == ("no user, and this listener wants one", None)
    assert found["error"] == "this listener wants a user"


@pytest.fixture
def intercepting(tmp_path: Path) -> Path:
    """A file with entries for names that it knows."""
    path = tmp_path / "tabi.toml"
    path.write_text(
        '[resolver]\nhosts = { "a.test" = ["198.51.100.7"], "b.test" = ["10.0.0.1"] }\n'
        '[[rule]]\nports = [25]\naction = "deny"\n'
        '[[intercept]]\nhosts = ["a.test", "10.0.0.0/8"]\non_pinning = "pass"\n'
    )
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["connect", "a.test:443"], "intercept intercept[0]  yes, intercept  hosts a.test, 10.0.0.0/8 (a.test)"),
        (["connect", "b.test:443"], "intercept intercept[0]  yes, intercept  hosts a.test, 10.0.0.0/8 (b.test)"),
        (["connect", "192.0.2.1:443"], "          a hello for a.test is looked into, by intercept[0]"),
        (["--sni", "A.test", "connect", "192.0.2.1:443"], "yes, intercept  hosts a.test, 10.0.0.0/8 (a.test)"),
        (["--sni", "c.test", "connect", "192.0.2.1:443"], "          none matches: it is passed on as it is"),
        (["connect", "a.test:443"], "          tls true, verify true, on_pinning pass, on_invalid mirror"),
        (["forward", "a.test:80"], "yes, intercept  hosts a.test"),
    ],
)
def test_what_would_be_looked_into_is_told(intercepting: Path, arguments: list[str], expected: str) -> None:
    """By which entry and why, and what the name in a hello would change; --sni says that name."""
    assert expected in explain(*arguments, config=intercepting)


def test_interception_as_json(intercepting: Path) -> None:
    """The same; null where it is refused, and where there is nothing to look into."""
    found = explain_json("connect", "a.test:443", config=intercepting)["intercept"]
    assert (found["action"], found["by"], found["hello"]) == ("intercept", "intercept[0]", [])
    assert [entry["matched"] for entry in found["entries"]] == [True]
    assert found["settings"]["on_pinning"] == "pass"
    assert explain_json("connect", "a.test:25", config=intercepting)["intercept"] is None
    assert explain_json("bind", "192.0.2.1:443", config=intercepting)["intercept"] is None
    assert explain_json("--user", "alice", "connect", "198.51.100.9:443")["intercept"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sni", "1.2.3.4", "connect", "a.test:1"], "--sni: '1.2.3.4', expected a name: a hello has no addresses"),
        (["--sni", "a b", "connect", "a.test:1"], "--sni: "),
        (["--sni", "a.test", "forward", "a.test:1"], "--sni: forward has no TLS hello of a client"),
    ],
)
def test_a_name_that_no_hello_has_is_an_error(intercepting: Path, arguments: list[str], message: str) -> None:
    """It names the option."""
    assert failure(run_here("explain", "-c", intercepting, *arguments), 2).startswith(f"tabi: {message}")


def test_lists_in_files_are_asked_too(tmp_path: Path) -> None:
    """Of rules, interception and faults; and the file is named."""
    (tmp_path / "names").write_text("*.b.test\n")
    (tmp_path / "who").write_text("127.0.0.1\n")
    path = tmp_path / "tabi.toml"
    path.write_text(
        '[resolver]\nhosts = { "a.b.test" = ["192.0.2.1"], "c.test" = ["192.0.2.1"] }\n'
        '[[rule]]\nname = "no"\nhosts_file = "names"\nports = [25]\naction = "deny"\n'
        '[[intercept]]\nhosts_file = "names"\nnetworks_file = "who"\n[[distort]]\nfault = "3g"\nhosts_file = "names"\n'
    )
    assert explain("connect", "a.b.test:25", config=path).endswith("02: rule no: deny a.b.test:25\n")
    told = explain("connect", "c.test:25", config=path)
    assert f"no          hosts: c.test is not one of those of {tmp_path}/names\n" in told
    told = explain("connect", "a.b.test:80", config=path)
    assert f"hosts_file {tmp_path}/names; networks_file {tmp_path}/who (a.b.test)" in told
    assert told.count(f"hosts_file {tmp_path}/names") == 2


@pytest.fixture
def molding(tmp_path: Path) -> Path:
    """A file with faults, one of which has a network."""
    path = tmp_path / "tabi.toml"
    path.write_text(
        '[resolver]\nhosts = { "a.test" = ["198.51.100.7"] }\n'
        '[[rule]]\nports = [25]\naction = "deny"\n'
        '[[distort]]\nname = "slow"\nhosts = ["a.test"]\nfault = { latency = "200ms", from = "22:00" }\n'
        '[[distort]]\nhosts = ["198.51.100.0/24"]\nfault = "offline"\n'
        '[[distort]]\nname = "net"\nhosts = ["198.51.100.0/24"]\nfault = { latency = "1s" }\n'
    )
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["connect", "a.test:443"], "distort   slow        yes  hosts a.test\n"),
        (["connect", "a.test:443", "--at", "2027-01-01T23:00"], "latency 200 ms; from 22:00 UTC (acts now)\n"),
        (["connect", "a.test:443", "--at", "2027-01-01T12:00"], "from 22:00 UTC (next at 2027-01-01T22:00:00Z)\n"),
        (["connect", "a.test:443"], "distort[1]  no   hosts: a.test is not one of 198.51.100.0/24\n"),
        (["connect", "a.test:443"], "net         yes  hosts 198.51.100.0/24\n"),
        (["connect", "198.51.100.7:443"], "stall at once, refused: 3 (network unreachable)\n"),
        (["associate", "198.51.100.7:53"], "distort[1]  yes  hosts 198.51.100.0/24\n"),
    ],
)
def test_what_would_go_wrong_is_told(molding: Path, arguments: list[str], expected: str) -> None:
    """By which entry and why, what it does and when; before it is dialled a name has no address."""
    assert expected in explain(*arguments, config=molding)


def test_faults_as_json(molding: Path) -> None:
    """The same; nothing where it is refused, and where the destinations are not known yet."""
    found = explain_json("connect", "a.test:443", config=molding)["distort"]
    assert [(step["entry"], step["matched"]) for step in found] == [
        ("slow", True),
        ("distort[1]", False),
        ("net", True),
    ]
    assert explain_json("connect", "a.test:25", config=molding)["distort"] == []
    assert explain_json("associate", "0.0.0.0:0", config=molding)["distort"] == []
    unknown = explain_json("connect", "nowhere.invalid:443", config=molding)  # entries come before the resolver
    assert [step["matched"] for step in unknown["distort"]] == [False, False, False]


def test_rewrites_are_told(tmp_path: Path) -> None:
    """What changes in HTTP, without values that may be secret, and where it takes an [[intercept]]."""
    Authority.make(str(tmp_path / "ca"))
    path = tmp_path / "tabi.toml"
    path.write_text(
        f'[ca]\ncertificate = "{tmp_path}/ca/ca.crt"\nkey = "{tmp_path}/ca/ca.key"\n'
        '[resolver]\nhosts = { "a.test" = ["198.51.100.7"], "b.test" = ["198.51.100.7"] }\n'
        '[[intercept]]\nhosts = ["a.test"]\n'
        '[[distort]]\nstrip_cookies = true\nheaders.set = { Authorization = "s3cret" }\n'
    )
    does = "request fields: set Authorization; no cookies"
    for command, destination, expected in (
        ("connect", "a.test:443", f"{does}\n"),
        ("connect", "b.test:443", f"{does}; not inside TLS, since no [[intercept]] opens it\n"),
        ("forward", "b.test:80", f"{does}\n"),
    ):
        found = explain(command, destination, config=path)
        assert expected in found
        assert "s3cret" not in found
