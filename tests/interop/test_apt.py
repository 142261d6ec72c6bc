"""apt-get through `tabi serve`: a repository of the test's own, in a root of its own; the system's is not touched."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from origin import Certificates, Origin, origin
from processes import Serve, environment, need, run_program, serve

pytestmark = pytest.mark.interop

PACKAGES = {f"tabi-test-{number}": hashlib.shake_256(b"%d" % number).digest(300_000) for number in range(8)}
"""Packages that apt shall download. It looks at their hash only."""


def repository() -> dict[str, bytes]:
    """The files of a flat repository."""
    index = "".join(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
        f"Filename: ./{name}_1_all.deb\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
        for name, content in PACKAGES.items()
    ).encode()
    files = {"/Packages": index, "/Packages.gz": gzip.compress(index, mtime=0)}
    hashes = "".join(f" {hashlib.sha256(data).hexdigest()} {len(data)} {path[1:]}\n" for path, data in files.items())
    release = f"Suite: test\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n{hashes}".encode()
    files |= {"/Release": release} | {f"/{name}_1_all.deb": content for name, content in PACKAGES.items()}
    return {f"/.{path}": content for path, content in files.items()}  # so apt spells what is in "./"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Serve]:
    """A mixed port with a user."""
    with serve(tmp_path, "-l", "mixed://127.0.0.1:0", "-u", "alice:secret") as running:
        yield running


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Origin]:
    """The repository without TLS and with it."""
    with origin(repository(), tls=certificates if request.param == "https" else None) as running:
        yield running


class Apt:
    """apt-get with a root of its own."""

    def __init__(self, folder: Path, proxy: str, server: Origin, trusted: Path) -> None:
        self.program = need("apt-get")
        self.folder = folder
        for name in ("etc", "lists/partial", "archives/partial", "download"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "etc/sources.list").write_text(f"deb [trusted=yes] {server.url('/')} ./\n")
        # Read before all others, which the settings of the machine would be: its hooks must not run.
        self.settings = folder / "apt.conf"
        self.settings.write_text(
            f'Dir "{folder}";\nDir::Etc "etc";\nDir::Etc::main "/dev/null";\nDir::Etc::parts "/dev/null";\n'
            f'Dir::State "{folder}";\nDir::State::lists "lists";\nDir::State::status "{folder}/status";\n'
            f'Dir::Cache "{folder}";\nDir::Cache::archives "archives";\nDir::Log "{folder}";\n'
            f'Acquire::http::Proxy "{proxy}";\nAcquire::https::Proxy "{proxy}";\n'
            f'Acquire::https::CaInfo "{trusted}";\nAcquire::Retries "0";\nAcquire::Languages "none";\n'
            f'APT::Sandbox::User "";\nDebug::Acquire::http "1";\nDebug::Acquire::https "1";\n'
        )

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run it in the folder for downloads."""
        env = environment() | {"APT_CONFIG": str(self.settings), "LC_ALL": "C"}
        return run_program(["env", "-C", self.folder / "download", self.program, *arguments], env=env)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_update_and_download(
    proxy: Serve, server: Origin, certificates: Certificates, tmp_path: Path, scheme: str
) -> None:
    """An update, another that gets 304, and eight packages at once, which apt asks for in a pipeline."""
    apt = Apt(tmp_path / "apt", f"{scheme}://alice:secret@{proxy.address}", server, certificates.authority)
    check(apt, proxy, server, "forward" if (scheme, server.scheme) == ("http", "http") else "connect")


def test_a_proxy_inside_tls(certificates: Certificates, tmp_path: Path) -> None:
    """The same to an https listener.

    Not to an https repository: apt 2.6 waits for ever when one TLS record of the proxy holds several of the origin.
    """
    config = tmp_path / "tabi.toml"
    config.write_text(
        '[[listen]]\nurl = "https://127.0.0.1:0"\n'
        f'tls = {{ certificate = "{certificates.chain}", key = "{certificates.key}" }}\n'
        '[users.alice]\npassword = "secret"\nplain = true\n'
    )
    with serve(tmp_path, "-c", config) as proxy, origin(repository()) as server:
        apt = Apt(tmp_path / "apt", f"https://alice:secret@{proxy.address}", server, certificates.authority)
        check(apt, proxy, server, "forward")


def check(apt: Apt, proxy: Serve, server: Origin, command: str) -> None:
    """Update twice and download; all of it by this command."""
    for hits in (0, 1):
        done = apt("update")
        assert done.returncode == 0, done.stderr
        assert len(re.findall(rb"^Hit:", done.stdout, re.M)) == hits
    before = len(server.asked)
    done = apt("download", *PACKAGES)
    assert done.returncode == 0, done.stderr
    assert b"GETGETGET" in b"".join(re.findall(rb"^(GET|Answer for)", done.stderr, re.M)), "no pipeline"
    assert {path.name: path.read_bytes() for path in (apt.folder / "download").iterdir()} == {
        f"{name}_1_all.deb": content for name, content in PACKAGES.items()
    }
    assert len({asked.port for asked in server.asked[before:]}) == 1
    lines = proxy.sessions(1)
    assert {line["user"] for line in lines} == {"alice"}
    assert {line["command"] for line in lines} == {command}
