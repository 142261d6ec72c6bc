"""Chromium without a window through `tabi serve`: a page of this machine, with what it refers to and what it sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from origin import Certificates, make_certificates, origin
from processes import Serve, environment, need, run_program, serve

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
    with serve(tmp_path, "-l", "mixed://127.0.0.1:0") as proxy:
        check(tmp_path, proxy, scheme, make_certificates(tmp_path) if tls else None)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_page_by_a_proxy_inside_tls(tmp_path: Path, tls: bool) -> None:
    """The same on a mixed port with a certificate."""
    certificates = make_certificates(tmp_path)
    config = tmp_path / "tabi.toml"
    config.write_text(
        '[[listen]]\nurl = "mixed://127.0.0.1:0"\n'
        f'tls = {{ certificate = "{certificates.chain}", key = "{certificates.key}" }}\n'
    )
    with serve(tmp_path, "-c", config) as proxy:
        check(tmp_path, proxy, "https", certificates if tls else None)


def check(folder: Path, proxy: Serve, scheme: str, certificates: Certificates | None) -> None:
    """Load the page, and look at what was asked for and at the log."""
    with origin(FILES, tls=certificates) as server:
        page = load(server.url("/page.html", "localhost"), f"{scheme}://{proxy.address}", folder)
        assert '<p id="said">said by the script</p>' in page
        assert [asked.path for asked in server.asked] == ["/page.html", "/said.js", "/post"]
        forwarded = scheme != "socks5" and certificates is None
        count = 3 if forwarded else len({asked.port for asked in server.asked})
        lines = proxy.sessions(count)
        assert {(line["protocol"], line["host"], line["port"]) for line in lines} == {
            (scheme, "localhost", server.port)
        }
        assert {line["command"] for line in lines} == {"forward" if forwarded else "connect"}
