"""The examples: each is run as a stranger runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

EXPECTED = {
    "own_proxy.py": (
        "socks5 as alice: hello from the destination\n",
        "http as bob: hello from the destination\n",
        "http as alice: AuthError\n",
    ),
    "serve.py": ("listening on socks5://127.0.0.1:", "received: hello from the destination", "sessions left: 0"),
    "users.py": ("alice received: hello from the destination", ": the proxy did not accept the user name"),
    "bind.py": (
        "the proxy listens on 127.0.0.1:",
        "called by 127.0.0.1:",
        "received: the file\n",
        "nobody else: 127.0.0.1:",
        "nobody called within 0.1 s",
    ),
    "unix_socket.py": ("rights 600\n", "received: hello from the destination\n", "client unix:", "left behind: []\n"),
    "client.py": ("connect: ONE\n", "open_connection: TWO\n", "refused with reply 5\n"),
    "datagrams.py": ("one: BY ADDRESS\n", "two: BY NAME\n", "not sent: a datagram of 65507 octets"),
    "http_proxy.py": (
        "without a password: 407\n",
        "forwarded: hello from /one\n",
        "through CONNECT: hello from /two\n",
        "nobody: forward of ",
        "alice: forward of ",
        "alice: connect of ",
    ),
    "log_sessions.py": (
        "alice: 1000 octets up, 1000 down; ended by: client",
        "nobody: no acceptable method: offered 00, expected 0x02; ended by: denied",
        "total of alice: 2000 octets",
    ),
    "policy.py": (
        "refused with reply 2\n",
        "denied: rule no-mail, error: rule no-mail: deny 127.0.0.1:25\n",
        "denied: rule None, error: telnet is over\n",
        "received octets: 200000\n",
        "server: rule None, error: None\n",
        "received octets: 200000\n",
        "limit: rule None, error: limit: server: the quota of 500 kB/day is used up\n",
        "received octets: 100000\n",
        "refused with reply 2\n",
    ),
    "ways_out.py": (
        "THROUGH LOCALHOST\n",
        "connect by chain, member -\n",
        "THROUGH 127.0.0.1\n",
        "connect by pool, member of the pool\n",
        "A DATAGRAM THROUGH TWO PROXIES\n",
        "associate by chain, member -\n",
    ),
    "tls.py": (
        "listening on socks5+tls://127.0.0.1:",
        "without a certificate: TLSV13_ALERT_CERTIFICATE_REQUIRED\n",
        "alice received: hello from the destination\n",
        "tls, user None, error: TLS: peer did not return a certificate\n",
        "socks5+tls, user alice, error: None\n",
    ),
}
"""What each of them prints, among other things, in this order."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python on something, with every warning an error."""
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_runs_by_itself_and_ends(name: str) -> None:
    """`python examples/NAME.py` needs no other program and no network, says what it should, and nothing on stderr."""
    done = run_python(f"examples/{name}")
    assert (done.returncode, done.stderr) == (0, "")
    at = 0
    for text in EXPECTED[name]:
        assert text in done.stdout[at:], done.stdout
        at = done.stdout.index(text, at) + len(text)


def test_the_example_configuration_is_accepted() -> None:
    """`tabi check` takes examples/tabi.toml and shows its durations in seconds, but no password."""
    done = run_python("-m", "tabi", "check", "examples/tabi.toml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "timeouts.idle = 600.0" in lines
    assert 'listen[1].users = "required"' in lines
    assert "plain text" not in done.stdout
    assert "$scrypt$" not in done.stdout


def test_the_example_behind_a_load_balancer_is_accepted() -> None:
    """`tabi check` takes examples/load_balancer.toml, without --open, and shows whom it trusts."""
    done = run_python("-m", "tabi", "check", "examples/load_balancer.toml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert 'listen[0].proxy_protocol[1] = "10.0.0.2"' in lines
    assert "egress.direct.send_proxy_protocol = 0" in lines
    assert "$scrypt$" not in done.stdout


def test_the_example_policy_is_accepted_and_explained() -> None:
    """`tabi check` and `tabi explain` take examples/policy.toml: no advice, and the metadata service stays closed."""
    done = run_python("-m", "tabi", "check", "examples/policy.toml")
    assert (done.returncode, done.stderr) == (0, "")
    command = ["--from", "203.0.113.9", "--user", "alice", "connect", "169.254.169.254:80"]
    done = run_python("-m", "tabi", "explain", "-c", "examples/policy.toml", *command)
    assert (done.returncode, done.stderr) == (3, "")
    assert "guard     refuses: 169.254.169.254 is in 169.254.0.0/16\n" in done.stdout


def test_the_example_pool_is_accepted_and_explained() -> None:
    """`tabi check` and `tabi explain` take examples/pool.toml: no advice, and the pool is the way out."""
    done = run_python("-m", "tabi", "check", "examples/pool.toml")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_python("-m", "tabi", "explain", "-c", "examples/pool.toml", "--user", "alice", "connect", "8.8.8.8:443")
    assert (done.returncode, done.stderr) == (0, "")
    assert "egress    pool: sticky of socks5://127.0.0.1:1081, http://127.0.0.1:8888, far\n" in done.stdout
