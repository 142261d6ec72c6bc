"""git through `tabi serve`: clone and push over http, which is forwarded, and https."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from origin import Certificates, Handler, origin
from processes import Serve, environment, need, run_program, serve

pytestmark = pytest.mark.interop

FILE = os.urandom(3 << 20)
"""More than git's http.postBuffer of 1 MiB: it is pushed in chunks."""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Serve]:
    """A mixed port with a user."""
    with serve(tmp_path, "-l", "mixed://127.0.0.1:0", "-u", "alice:secret") as running:
        yield running


class Backend(Handler):
    """git's own CGI program (git-http-backend(1), RFC 3875), for all requests."""

    root: Path

    def do_GET(self) -> None:
        body = self.take()
        path, _, query = self.path.partition("?")
        meta = {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "alice",
            "REMOTE_ADDR": self.client_address[0],
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers["Content-Type"] or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
            "GIT_PROTOCOL": self.headers["Git-Protocol"] or "",
        }
        done = run_program([need("git"), "http-backend"], stdin=body, env=alone() | meta)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().split("\r\n"):
            self.send_header(*line.split(": ", 1))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET


def alone() -> dict[str, str]:
    """An environment in which git asks nobody and knows no settings of the machine's."""
    who = {f"GIT_{role}_{what}": "alice@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    return environment() | who | settings


def git(*arguments: str | Path, **settings: str) -> None:
    """Run it."""
    done = run_program([need("git"), *arguments], env=alone() | settings)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_clone_and_push(proxy: Serve, certificates: Certificates, tmp_path: Path, tls: bool, scheme: str) -> None:
    """A repository with a large file is cloned, changed, and pushed; what arrives is what was committed."""
    here, there, bare = tmp_path / "here", tmp_path / "there", tmp_path / "bare.git"
    git("init", "--quiet", "--bare", bare)
    git("-C", bare, "config", "http.receivepack", "true")
    through = ("-c", f"http.proxy={scheme}://alice:secret@{proxy.address}")
    trust = {"GIT_SSL_CAINFO": str(certificates.authority)}
    handler = type("Of", (Backend,), {"root": tmp_path})
    with origin(tls=certificates if tls else None, handler=handler) as server:
        git(*through, "clone", "--quiet", server.url("/bare.git"), here, **trust)
        (here / "file").write_bytes(FILE)
        git("-C", here, "add", "file")
        git("-C", here, "commit", "--quiet", "-m", "A file")
        git("-C", here, *through, "push", "--quiet", "origin", "HEAD:refs/heads/main", **trust)
        git(*through, "clone", "--quiet", "--branch", "main", server.url("/bare.git"), there, **trust)
        assert "chunked" in [asked.fields.get("transfer-encoding") for asked in server.asked]
    assert (there / "file").read_bytes() == FILE
    forwarded = scheme == "http" and not tls
    assert {line["command"] for line in proxy.sessions(1)} == {"forward" if forwarded else "connect"}
    assert "alice" in {line["user"] for line in proxy.sessions(1)}
