"""`tabi run` of real programs: each finds the proxy by the variables that it reads."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from origin import Certificates, Origin, make_authority, make_certificates, origin
from processes import TABI, environment, need, run_program

pytestmark = [pytest.mark.interop, pytest.mark.linux]

JAVA = """
import java.net.*; import java.net.http.*;
public class Get { public static void main(String[] arguments) throws Exception {
  var request = HttpRequest.newBuilder(URI.create(arguments[0])).build();
  System.out.print(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
  System.out.print(new String(new URL(arguments[0]).openStream().readAllBytes()));
}}
"""
PHP = "$c = curl_init($argv[1]); curl_exec($c) || fwrite(STDERR, curl_error($c));"
PERL = "$u = LWP::UserAgent->new; $u->env_proxy; $r = $u->get($ARGV[0]); print $r->content; warn $r->status_line"
URLLIB = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode(), end='')"
REQUESTS = "import sys, requests; print(requests.get(sys.argv[1]).text, end='')"
HTTPX = "import sys, httpx; print(httpx.get(sys.argv[1]).text, end='')"

BODY = b"what the origin says\n"


def java(folder: Path, url: str) -> list[str]:
    """Both of its clients, one after the other."""
    (folder / "Get.java").write_text(JAVA)
    need("javac")  # a JRE does not run source
    return [need("java"), str(folder / "Get.java"), url]


def perl(folder: Path, url: str) -> list[str]:
    """By the library that lwp-request is of."""
    need("lwp-request")
    return [need("perl"), "-MLWP::UserAgent", "-e", PERL, url]


Make = Callable[[Path, str], list[str]]

PROGRAMS: dict[str, tuple[Make, int]] = {
    "curl": (lambda folder, url: [need("curl"), "-sS", url], 1),
    "wget": (lambda folder, url: [need("wget"), "-qO-", url], 1),
    "java": (java, 2),
    "php": (lambda folder, url: [need("php"), "-r", PHP, url], 1),
    "perl": (perl, 1),
    "urllib": (lambda folder, url: [sys.executable, "-c", URLLIB, url], 1),
    "requests": (lambda folder, url: [sys.executable, "-c", REQUESTS, url], 1),
    "httpx": (lambda folder, url: [sys.executable, "-c", HTTPX, url], 1),
}
"""Programs that fetch a page and print it, and how often."""


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """`tabi run` to its end."""
    return run_program((*TABI, "run", *arguments), env=env)


def bare_repository(folder: Path) -> dict[str, bytes]:
    """A repository as files that any web server has (gitrepository-layout(5)), with one branch."""
    git = need("git")
    who = ["-c", "user.name=alice", "-c", "user.email=alice@localhost"]
    here, bare = folder / "here", folder / "bare.git"
    commands: tuple[list[str | Path], ...] = (
        ["init", "--quiet", "--initial-branch=main", here],
        ["-C", here, *who, "commit", "--quiet", "--allow-empty", "-m", "First"],
        ["clone", "--quiet", "--bare", here, bare],
        ["-C", bare, "update-server-info"],
    )
    for arguments in commands:
        assert run_program([git, *arguments]).returncode == 0
    return {f"/bare.git/{path.relative_to(bare)}": path.read_bytes() for path in bare.rglob("*") if path.is_file()}


def wheel() -> bytes:
    """A distribution that pip takes."""
    info = "demo-1.0.dist-info"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("demo.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return data.getvalue()


FILE = "demo-1.0-py3-none-any.whl"
INDEX = {"/index.html": f'<a href="/files/{FILE}">{FILE}</a>'.encode(), f"/files/{FILE}": wheel()}
PACKAGE = {
    "/demo": json.dumps(
        {"name": "demo", "dist-tags": {"latest": "1.2.3"}, "versions": {"1.2.3": {"name": "demo", "version": "1.2.3"}}}
    ).encode()
}


@pytest.fixture
def server() -> Iterator[Origin]:
    """A destination."""
    with origin({"/page": BODY, **INDEX, **PACKAGE}) as running:
        yield running


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_page(name: str, server: Origin, tmp_path: Path) -> None:
    """Each gets it, this machine's own too, and by the proxy."""
    make, times = PROGRAMS[name]
    done = run("--", *make(tmp_path, server.url("/page")))
    assert done.stdout == BODY * times, done.stderr.decode()
    assert f"127.0.0.1:{server.port}: {times} session" in done.stderr.decode()


def test_git(tmp_path: Path) -> None:
    """It asks for branches."""
    with origin(bare_repository(tmp_path)) as server:
        done = run("--", need("git"), "ls-remote", server.url("/bare.git"))
    assert b"refs/heads/main" in done.stdout, done.stderr.decode()
    assert f"127.0.0.1:{server.port}: " in done.stderr.decode()


def pip(tmp_path: Path, server: Origin) -> list[str]:
    """A command that downloads the distribution. It must not trust the origin for being this machine."""
    options = ["--disable-pip-version-check", "--no-deps", "--no-cache-dir", "-d", str(tmp_path)]
    links = server.url("/index.html", "localhost")
    return [sys.executable, "-m", "pip", "download", *options, "--no-index", "--find-links", links, "demo"]


def test_pip(server: Origin, tmp_path: Path) -> None:
    """It reads a page of links, and downloads."""
    done = run("--", *pip(tmp_path, server))
    assert (tmp_path / FILE).read_bytes() == INDEX[f"/files/{FILE}"], done.stderr.decode()
    assert f"localhost:{server.port}: " in done.stderr.decode()


def npm(server: Origin, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Ask a registry for the version of a package."""
    env = environment() | {"HOME": str(tmp_path), "npm_config_cache": str(tmp_path / "cache")}
    registry = server.url("/", "localhost")
    return run(*options, "--", need("npm"), "view", "demo", "version", "--registry", registry, env=env)


def test_npm(server: Origin, tmp_path: Path) -> None:
    """It reads the variables by itself, whatever Node does."""
    done = npm(server, tmp_path)
    assert b"1.2.3" in done.stdout, done.stderr.decode()
    assert f"localhost:{server.port}: " in done.stderr.decode()


# --- interception ---


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[Origin]:
    """A destination inside TLS that only the proxy trusts."""
    with origin({"/page": BODY, **INDEX, **PACKAGE}, tls=certificates) as running:
        yield running


def look_into(certificates: Certificates, *command: str, env: dict[str, str] | None = None) -> tuple[bytes, str]:
    """Run a program whose TLS is opened; gives what it prints, and the summary."""
    done = run("--intercept", "*", "--trust", str(certificates.authority), "--", *command, env=env)
    return done.stdout, done.stderr.decode()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_page_of_https(name: str, secure: Origin, certificates: Certificates, tmp_path: Path) -> None:
    """Each finds our authority by its own variable."""
    make, times = PROGRAMS[name]
    found, said = look_into(certificates, *make(tmp_path, secure.url("/page", "localhost")))
    assert found == BODY * times, said
    assert f"{times} intercepted" in said


def test_git_by_https(certificates: Certificates, tmp_path: Path) -> None:
    """GIT_SSL_CAINFO."""
    with origin(bare_repository(tmp_path), tls=certificates) as server:
        found, said = look_into(certificates, need("git"), "ls-remote", server.url("/bare.git"))
    assert b"refs/heads/main" in found, said
    assert "intercepted" in said


def test_pip_by_https(secure: Origin, certificates: Certificates, tmp_path: Path) -> None:
    """PIP_CERT."""
    _, said = look_into(certificates, *pip(tmp_path, secure))
    assert (tmp_path / FILE).read_bytes() == INDEX[f"/files/{FILE}"], said
    assert "intercepted" in said


@pytest.mark.parametrize("cafile", [False, True], ids=["usual", "cafile in .npmrc"])
def test_npm_by_https(secure: Origin, certificates: Certificates, tmp_path: Path, cafile: bool) -> None:
    """NODE_EXTRA_CA_CERTS, and npm_config_cafile, which wins over its own settings."""
    if cafile:
        (tmp_path / "other.pem").write_bytes(trustme.CA().cert_pem.bytes())
        (tmp_path / ".npmrc").write_text(f"cafile={tmp_path / 'other.pem'}\n")
    done = npm(secure, tmp_path, "--intercept", "*", "--trust", str(certificates.authority))
    assert b"1.2.3" in done.stdout, done.stderr.decode()
    assert b"intercepted" in done.stderr


NODE = """
const [host, port] = process.env.https_proxy.replace("http://", "").split(":")
const target = `localhost:${process.argv[1]}`
require("http").request({ host, port, method: "CONNECT", path: target }).on("connect", (_, socket) => {
  require("https").get({ host: "localhost", path: "/page", createConnection: options =>
    require("tls").connect({ ...options, socket, servername: "localhost" }) }, answer => answer.pipe(process.stdout))
}).end()
"""
"""CONNECT by hand: versions before 22.21 and 24.5 read no variables for proxies."""


def test_node(secure: Origin, certificates: Certificates) -> None:
    """NODE_EXTRA_CA_CERTS."""
    found, said = look_into(certificates, need("node"), "-e", NODE, str(secure.port))
    assert found == BODY, said
    assert "1 intercepted" in said


def test_wget_keeps_its_settings(secure: Origin, certificates: Certificates, tmp_path: Path) -> None:
    """Those of ~/.wgetrc hold beside ours."""
    (tmp_path / ".wgetrc").write_text("user_agent = of the user\nhttps_proxy = http://127.0.0.1:1/\n")
    url = secure.url("/page", "localhost")
    found, said = look_into(certificates, need("wget"), "-qO-", url, env=environment() | {"HOME": str(tmp_path)})
    assert found == BODY, said
    assert secure.asked[0].fields["user-agent"] == "of the user"


def test_go(tmp_path: Path) -> None:
    """terraform stands for programs in Go: HTTPS_PROXY, but never for localhost, and SSL_CERT_FILE."""
    terraform, name = need("terraform"), "registry.example.test"
    files = make_certificates(tmp_path)
    leaf = make_authority().issue_cert(name)
    leaf.cert_chain_pems[0].write_to_path(files.chain)
    leaf.private_key_pem.write_to_path(files.key)
    config = tmp_path / "tabi.toml"
    config.write_text(f'[resolver]\nhosts = {{ "{name}" = ["127.0.0.1"] }}\n')
    with origin(tls=files) as server:
        demo = f'demo = {{\nsource = "{name}:{server.port}/ns/demo"\n}}'
        (tmp_path / "main.tf").write_text(f"terraform {{\nrequired_providers {{\n{demo}\n}}\n}}\n")
        env = environment() | {"HOME": str(tmp_path), "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": "/dev/null"}
        options = ("-c", str(config), "--intercept", "*", "--trust", str(files.authority))
        done = run(*options, "--", terraform, f"-chdir={tmp_path}", "init", "-no-color", env=env)
    assert [asked.path for asked in server.asked] == ["/.well-known/terraform.json"], done.stderr.decode()
    assert f"{name}:{server.port}: 1 session, " in done.stderr.decode()
    assert "1 intercepted" in done.stderr.decode()


def test_cargo(certificates: Certificates, tmp_path: Path) -> None:
    """CARGO_HTTP_CAINFO."""
    entry = {"name": "demo", "vers": "1.2.3", "deps": [], "cksum": "0" * 64, "features": {}, "yanked": False}
    files = {"/config.json": b'{"dl": "https://localhost/"}', "/de/mo/demo": json.dumps(entry).encode() + b"\n"}
    (tmp_path / "Cargo.toml").write_text(
        '[package]\nname = "one"\nversion = "1.0.0"\n[lib]\npath = "one.rs"\n'
        '[dependencies]\ndemo = { version = "1", registry = "here" }\n'
    )
    (tmp_path / "one.rs").write_text("")
    with origin(files, tls=certificates) as server:
        index = f"sparse+{server.url('/', 'localhost')}"
        env = environment() | {"CARGO_HOME": str(tmp_path / "home"), "CARGO_REGISTRIES_HERE_INDEX": index}
        lock = [need("cargo"), "generate-lockfile", "--manifest-path", str(tmp_path / "Cargo.toml")]
        _, said = look_into(certificates, *lock, env=env)
    assert 'version = "1.2.3"' in (tmp_path / "Cargo.lock").read_text(), said
    assert "1 intercepted" in said
