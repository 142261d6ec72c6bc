"""proxychains4, which replaces connect(2) in a program that knows no proxies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from conftest import Run
from processes import Serve, answer_http, in_thread, need, serve
from support import target

pytestmark = pytest.mark.interop

BODY = b"through a library that was slipped under\n"


def fetch(run: Run, folder: Path, lines: list[str], host: str = "127.0.0.1") -> subprocess.CompletedProcess[bytes]:
    """Run a curl that is told of no proxy under proxychains4 with these proxies."""
    proxychains, curl = need("proxychains4"), need("curl")
    config = folder / "proxychains.conf"
    # Loopback is what the tests have: it must not be an exception.
    config.write_text("\n".join(["strict_chain", "proxy_dns", "quiet_mode", "[ProxyList]", *lines, ""]))

    async def main() -> subprocess.CompletedProcess[bytes]:
        async with target(answer_http(BODY)) as port:
            options = ["--silent", "--show-error", "--max-time", "15"]
            return await in_thread([proxychains, "-q", "-f", config, curl, *options, f"http://{host}:{port}/"])

    return run(main)


def line(proxy: Serve, login: str = "") -> str:
    """A proxy as the configuration says it."""
    return f"socks5 127.0.0.1 {proxy.address.port} {login}"


def test_curl_under_proxychains(run_once: Run, tmp_path: Path) -> None:
    """The connection goes through the proxy although curl does not know it."""
    with serve(tmp_path) as proxy:
        done = fetch(run_once, tmp_path, [line(proxy)])
        assert (done.returncode, done.stdout) == (0, BODY)
        (session,) = proxy.sessions(1)
        assert (session["host"], session["reply"]) == ("127.0.0.1", 0)


def test_a_user(run_once: Run, tmp_path: Path) -> None:
    """The right password gets through, a wrong one does not."""
    with serve(tmp_path, "-u", "alice:secret") as proxy:
        assert fetch(run_once, tmp_path, [line(proxy, "alice secret")]).stdout == BODY
        assert fetch(run_once, tmp_path, [line(proxy, "alice wrong")]).returncode != 0
        assert {session["user"] for session in proxy.sessions(2)} == {"alice", None}


def test_a_strict_chain_of_two(run_once: Run, tmp_path: Path) -> None:
    """The first proxy is asked for the second, the second for the destination."""
    with serve(tmp_path) as first, serve(tmp_path, "-u", "alice:secret") as second:
        done = fetch(run_once, tmp_path, [line(first), line(second, "alice secret")])
        assert (done.returncode, done.stdout) == (0, BODY)
        assert [session["port"] for session in first.sessions(1)] == [second.address.port]
        assert [session["user"] for session in second.sessions(1)] == ["alice"]
