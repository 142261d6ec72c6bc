"""wget through `tabi serve`: requests that are forwarded, and CONNECT for https."""

from __future__ import annotations

import hashlib
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from origin import Certificates, Origin, origin
from processes import Serve, need, run_program

pytestmark = pytest.mark.interop

FILES = {"/small": b"small\n", "/large": hashlib.shake_256(b"wget").digest(2 << 20)}


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Origin]:
    """A destination without TLS and one with it."""
    with origin(FILES, tls=certificates if request.param == "https" else None) as running:
        yield running


def wget(
    proxy: Serve, trusted: Path, *arguments: str | Path, password: str = "secret"
) -> subprocess.CompletedProcess[bytes]:
    """Run it with a proxy and alice's password."""
    place = f"http://{proxy.address}"
    options = ["--no-config", "--no-verbose", "--tries=1", "--timeout=15", f"--ca-certificate={trusted}"]
    through = ["-e", "use_proxy=yes", "-e", f"http_proxy={place}", "-e", f"https_proxy={place}"]
    login = ["--proxy-user=alice", f"--proxy-password={password}"]
    return run_program([need("wget"), *options, *through, *login, *arguments])


def test_downloads(proxy: Serve, server: Origin, certificates: Certificates) -> None:
    """Two files over one connection to the proxy, by name."""
    urls = (server.url(path, "localhost") for path in FILES)
    done = wget(proxy, certificates.authority, "-O", "-", *urls)
    assert (done.returncode, done.stdout) == (0, b"".join(FILES.values())), done.stderr
    assert len({asked.port for asked in server.asked}) == 1
    command, count = ("forward", 2) if server.scheme == "http" else ("connect", 1)
    lines = proxy.sessions(count, port=server.port)
    assert [(line["user"], line["host"], line["command"]) for line in lines] == [
        ("alice", "localhost", command)
    ] * count


def test_a_download_that_is_continued(proxy: Serve, server: Origin, certificates: Certificates, tmp_path: Path) -> None:
    """-c asks for the rest by a range."""
    part = tmp_path / "large"
    part.write_bytes(FILES["/large"][:1_000_000])
    done = wget(proxy, certificates.authority, "-c", "-P", tmp_path, server.url("/large"))
    assert done.returncode == 0, done.stderr
    assert part.read_bytes() == FILES["/large"]
    assert server.asked[-1].fields["range"] == "bytes=1000000-"


def test_a_wrong_password(proxy: Serve, server: Origin, certificates: Certificates) -> None:
    """wget says why, and nothing reaches the destination."""
    done = wget(proxy, certificates.authority, "-O", "-", server.url("/small"), password="wrong")
    assert (done.returncode != 0, done.stdout) == (True, b"")
    assert b"Proxy Authentication Required" in done.stderr
    assert not server.asked


def test_a_user_in_the_url(proxy: Serve, certificates: Certificates) -> None:
    """wget leaves it to the proxy to make a field of it; the log has nothing of it."""
    with origin(FILES) as server:
        url = server.url("/small", "joe:s3cr%40t@127.0.0.1")
        done = wget(proxy, certificates.authority, "-O", "-", "--auth-no-challenge", url)
        assert (done.returncode, done.stdout) == (0, FILES["/small"]), done.stderr
        (asked,) = server.asked
        assert (asked.path, asked.fields["host"]) == ("/small", f"127.0.0.1:{server.port}")
        assert asked.fields["authorization"] == "Basic " + b64encode(b"joe:s3cr@t").decode()
        assert "s3cr" not in str(proxy.sessions(1, port=server.port))
