"""Chromium without a window through `tabi serve`: a page of this machine, with what it refers to and what it sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from origin import make_certificates, origin
from processes import environment, need, run_program, serve

pytestmark = pytest.mark.interop

FILES = {
    "/page.html": b'<p id="said">nothing</p><script src="said.js"></script>',
    "/said.js": b"""
        const asking = new XMLHttpRequest();
        asking.open("POST", "/post", false);
        asking.send("by the script");
        document.getElementById("said").textContent = "said " + asking.responseText;
    """,
}


def load(url: str, proxy: str, folder: Path) -> str:
    """The page as it is once its scripts have run."""
    options = [
        "--no-sandbox",  # which root has none of
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--timeout=10000",  # milliseconds
        f"--user-data-dir={folder / 'profile'}",
        "--ignore-certificate-errors",
        f"--proxy-server={proxy}",
        "--proxy-bypass-list=<-loopback>",  # not even loopback is an exception
        # It finds nobody by itself, "localhost" included: only the proxy can.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--dump-dom",
    ]
    program = need("chromium-headless-shell")
    done = run_program([program, *options, url], env=environment() | {"HOME": str(folder)})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_page(tmp_path: Path, scheme: str, tls: bool) -> None:
    """The page comes, its script too, and what that posts comes back; every request went through the proxy."""
    certificates = make_certificates(tmp_path)
    with (
        serve(tmp_path, "-l", "mixed://127.0.0.1:0") as proxy,
        origin(FILES, tls=certificates if tls else None) as server,
    ):
        page = load(server.url("/page.html", "localhost"), f"{scheme}://{proxy.address}", tmp_path)
        assert '<p id="said">said by the script</p>' in page
        assert [asked.path for asked in server.asked if asked.path != "/favicon.ico"] == [
            "/page.html",
            "/said.js",
            "/post",
        ]
        forwarded = scheme == "http" and not tls
        count = len(server.asked) if forwarded else len({asked.port for asked in server.asked})
        lines = [line for line in proxy.sessions(count) if line["port"] == server.port]
        assert len(lines) == count
        assert {(line["protocol"], line["host"]) for line in lines} == {(scheme, "localhost")}
        assert {line["command"] for line in lines} == {"forward" if forwarded else "connect"}
