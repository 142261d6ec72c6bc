"""Commands that ask the running server by its admin API, in place of the control socket."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
import trustme

from processes import TABI, Serve, environment, failure, run_program, serve, tunnels
from tabi.admin.operations import OPERATIONS
from tabi.cli.admin_client import AdminClient, request_for
from tabi.errors import ConfigError, TabiError

TOKEN, READ_TOKEN = "0123456789abcdef", "fedcba9876543210"

FILE = """
[[listen]]
url = "socks5://127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
token = "{token}"
read_token = "{read_token}"
"""


class Operator:
    """Who knows where the API of a server is."""

    def __init__(self, proxy: Serve) -> None:
        self.proxy = proxy
        (self.url,) = re.findall(r"for operators: (\S+)", proxy.messages)

    def run(self, *arguments: str | Path, token: str = TOKEN, **environ: str) -> Any:
        """Run a command to its end."""
        env = {**environment(), "TABI_ADMIN_TOKEN": token, **environ}
        return run_program((*TABI, *arguments, "--admin", self.url), env=env)

    def __call__(self, *arguments: str | Path) -> str:
        """What it prints, if it succeeds."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        return str(done.stdout.decode())


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """A server with the API."""
    folder = tmp_path_factory.mktemp("admin")
    (folder / "tabi.toml").write_text(FILE.format(token=TOKEN, read_token=READ_TOKEN))
    with serve(folder, "-c", folder / "tabi.toml", environ={"XDG_RUNTIME_DIR": str(folder)}) as proxy:
        yield Operator(proxy)


def test_sessions_are_listed_and_ended(operator: Operator) -> None:
    """As by the control socket: the same filters, the same output."""
    with tunnels(operator.proxy.address, 2) as (first, second):
        client = "{}:{}".format(*first.client.getsockname())
        rows = json.loads(operator("sessions", "--json", "--sort", "seconds"))
        (found,) = (row["id"] for row in rows if row["client"] == client)
        assert client in operator("sessions", "--id", found)
        assert client in operator("top", "--once")
        assert operator("kick", "--id", found) == "1 ended\n"
        assert first.client.recv(1) == b""
        second.check()
        assert operator("kick", "--user", "a b&c/%") == "0 ended\n"


def test_faults_are_set_and_removed(operator: Operator) -> None:
    """Profile and figures, changes, names that need quotes."""
    assert operator("fault", "add", "3g", "--name", "a / b?", "--for", "5min") == "a / b?\n"
    assert "3g" in operator("fault", "list")
    assert operator("fault", "add", "--latency", "20ms", "--name", "slow") == "slow\n"
    operator("fault", "change", "slow", "--latency", "30ms")
    assert "30ms" in operator("fault", "list")
    operator("fault", "remove", "slow")
    assert "slow" not in operator("fault", "list")
    operator("fault", "remove", "--all")
    assert operator("fault", "list") == "no faults\n"
    assert "--latency" in failure(operator.run("fault", "add", "--latency", "soon"), 2)


def test_metrics_come_in_both_formats(operator: Operator) -> None:
    """As `tabi metrics` has them."""
    assert "# EOF" not in operator("metrics")
    assert operator("metrics", "--openmetrics").endswith("# EOF\n")


def test_top_shows_each_view(operator: Operator) -> None:
    """All that it asks for is there."""
    for view in ("sessions", "users", "egress", "refusals"):
        assert operator("top", "--view", view).startswith("tabi ")


def test_who_may_not_is_told_why(operator: Operator, tmp_path: Path) -> None:
    """No token, a wrong one, one that is only for reading. None of them is in the message."""
    assert "--token-file" in failure(operator.run("sessions", token=""), 1)
    wrong = "x" * 20
    assert wrong not in failure(operator.run("sessions", token=wrong), 1)
    assert operator.run("sessions", token=READ_TOKEN).returncode == 0
    assert "for reading only" in failure(operator.run("kick", "--user", "a", token=READ_TOKEN), 1)
    bad = "short\r\nX: y"
    assert "short" not in failure(operator.run("sessions", token=bad), 2)
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o644)
    assert "chmod 600" in failure(operator.run("sessions", "--token-file", path, token=""), 2)
    path.chmod(0o600)
    assert operator.run("sessions", "--token-file", path, token="").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--token-file", "x"), "--token-file"),
        (("--admin", "http://127.0.0.1:1", "--socket", "x"), "--admin"),
        (("--admin", "socks5://127.0.0.1:1"), "expected http://HOST:PORT"),
        (("--admin", "http://127.0.0.1:1/sessions"), "expected http://HOST:PORT"),
        (("--admin", "http://user@127.0.0.1:1"), "expected http://HOST:PORT"),
        (("--admin", "http://127.0.0.1:99999"), "--admin"),
        (("--admin", "http://[::"), "--admin"),
        (("--admin", "http://192.0.2.1:9180"), "https"),
        (("--admin", "http://localhost.example.com:9180"), "https"),
    ],
)
def test_what_is_wrong_is_named(arguments: tuple[str, ...], words: str) -> None:
    """In one line; a token is not sent through a network in clear."""
    assert words in failure(run_program((*TABI, "sessions", *arguments), env=environment()), 2)


def test_all_sessions_are_not_ended_at_once(operator: Operator) -> None:
    """The API ends chosen ones, as it says."""
    assert "--user NAME" in failure(operator.run("kick", "--all"), 2)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("status", {}),
        ("users", {}),
        ("egress", {}),
        ("refusals", {}),
        ("sessions", {"filter": {"search": "a b&c=d/\u65c5"}, "sort": "up", "limit": 200}),
        ("sessions", {"filter": {"user": "al%20ice", "client": "::1"}, "sort": None, "limit": 10_000}),
        ("kick", {"filter": {"id": "5f3a1c-2b", "host": "a+b"}}),
        ("steer", {"action": "drain", "pool": "exits", "member": "http://a.example:8080"}),
        ("steer", {"action": "undrain", "pool": "a/b", "member": "%2F?#"}),
        ("fault", {"action": "list"}),
        ("fault", {"action": "add", "for": "5min", "fault": {"profile": "3g", "up": {"loss": "1%"}}}),
        ("fault", {"action": "change", "name": "a/b", "for": None, "fault": {"latency": "1s"}}),
        ("fault", {"action": "remove", "names": ["fault-1"]}),
        ("fault", {"action": "remove", "names": None}),
    ],
)
def test_the_api_makes_the_same_request_of_it(command: str, arguments: Mapping[str, Any]) -> None:
    """What a command asks the control socket for arrives, by the API, as the same question to the server."""
    method, target, body = request_for(command, arguments)
    parts = urlsplit(target)
    for operation in OPERATIONS:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(operation.path))
        found = re.fullmatch(pattern, parts.path)
        if operation.method == method and found:
            given = {
                **dict(parse_qsl(parts.query)),
                **{name: unquote(text) for name, text in found.groupdict().items()},
            }
            assert set(given) <= {parameter.name for parameter in operation.parameters}
            assert operation.make(given, body) == {"command": command, **arguments}
            return
    raise AssertionError(f"the API has no {method} {target}")


def test_what_the_api_does_not_have_is_said() -> None:
    """`tabi top` asks for nothing of that; a command that comes later may."""
    with pytest.raises(ConfigError, match="the admin API has no reboot"):
        request_for("reboot", {})
    with pytest.raises(ConfigError, match="one fault at a time"):
        request_for("fault", {"action": "remove", "names": ["a", "b"]})


def test_the_token_is_in_no_repr() -> None:
    """Tracebacks show local variables."""
    client = AdminClient("http://127.0.0.1:1", TOKEN)
    assert TOKEN not in repr(client)
    with pytest.raises(TabiError, match="Connection refused"):
        client.ask("status")


class Other(http.server.BaseHTTPRequestHandler):
    """A server that is not tabi's."""

    answer: bytes = b""

    def do_GET(self) -> None:
        """Answer."""
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "no admin API of tabi"),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", "no admin API of tabi"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n", "no admin API of tabi"),
        (b"HTTP/1.1 503 No\r\n\r\n" + b'{"error": "not answered in time"}', "not answered in time"),
        (b"SSH-2.0-x\r\n", "SSH-2.0-x"),
        (b"", "closed"),
    ],
)
def test_another_server_is_no_traceback(answer: bytes, words: str) -> None:
    """Whatever listens there; a redirection, which would take the token elsewhere, is not followed."""
    with http.server.HTTPServer(("127.0.0.1", 0), type("One", (Other,), {"answer": answer})) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        try:
            with pytest.raises(TabiError, match=words):
                AdminClient(f"http://127.0.0.1:{server.server_port}", TOKEN).ask("status")
        finally:
            thread.join()


def test_tls_is_checked(tmp_path: Path) -> None:
    """A certificate of an authority that this machine knows, for this name; no other server learns the token."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, pem, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(ca)
    certificate.cert_chain_pems[0].write_to_path(pem)
    certificate.private_key_pem.write_to_path(key)
    text = FILE.format(token=TOKEN, read_token=READ_TOKEN)
    (tmp_path / "tabi.toml").write_text(f'{text}tls = {{ certificate = "{pem}", key = "{key}" }}\n')
    with serve(tmp_path, "-c", tmp_path / "tabi.toml", environ={"XDG_RUNTIME_DIR": str(tmp_path)}) as proxy:
        operator = Operator(proxy)
        done = operator.run("sessions", SSL_CERT_FILE=str(ca))
        assert (done.returncode, done.stdout) == (0, b"no sessions\n")
        assert "CERTIFICATE_VERIFY_FAILED" in failure(operator.run("sessions"), 1)
