"""HTTP clients of several languages through an intercepting `tabi serve`, by both versions of HTTP."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from h2_origin import H2Origin, h2_origin
from looking import Looking, looking
from origin import Certificates, Origin, origin
from processes import PATIENCE, need, run_program
from tabi.intercept.export import FORMS, PASSWORD

pytestmark = [pytest.mark.interop, pytest.mark.linux]

LARGE = hashlib.shake_256(b"large").digest(1 << 20)
FILES = {"/large": LARGE}


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Looking]:
    """The proxy, for all tests of the file."""
    with looking(tmp_path_factory.mktemp("looks"), certificates) as running:
        yield running


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[tuple[Origin | H2Origin, str]]:
    """A destination, and the version that it speaks."""
    if request.param == "HTTP/2":
        with h2_origin(certificates, FILES) as second:
            yield second, request.param
    else:
        with origin(FILES, tls=certificates) as first:
            yield first, request.param


def by_curl(looks: Looking, url: str, folder: Path) -> tuple[bytes, bytes]:
    """It offers both versions."""
    found = []
    for name, *options in (("down",), ("up", "--data-binary", f"@{folder / 'large'}", "-H", "Expect:")):
        where: list[str | Path] = [
            "--socks5-hostname",
            str(looks.proxy.address),
            "--noproxy",
            "",
            "--cacert",
            looks.authority,
        ]
        done = run_program([need("curl"), "-sS", "--max-time", "15", *where, *options, url, "-o", folder / name])
        assert (done.returncode, done.stderr) == (0, b"")
        found.append((folder / name).read_bytes())
    return found[0], found[1]


def by_httpx(looks: Looking, url: str, folder: Path) -> tuple[bytes, bytes]:
    """One connection, by HTTP CONNECT."""
    context = ssl.create_default_context(cafile=looks.authority)
    proxy = f"http://{looks.proxy.address}"
    with httpx.Client(http2=True, proxy=proxy, verify=context, trust_env=False, timeout=PATIENCE) as client:
        return client.get(url).content, client.post(url, content=LARGE).content


JAVA = """
import java.net.*; import java.net.http.*; import java.nio.file.*;
public class Ask { public static void main(String[] arguments) throws Exception {
  var address = new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0]));
  var client = HttpClient.newBuilder().proxy(ProxySelector.of(address)).build();
  var folder = Path.of(arguments[2]);
  var builder = HttpRequest.newBuilder(URI.create(arguments[1]));
  client.send(builder.build(), HttpResponse.BodyHandlers.ofFile(folder.resolve("down")));
  var post = builder.POST(HttpRequest.BodyPublishers.ofFile(folder.resolve("large"))).build();
  client.send(post, HttpResponse.BodyHandlers.ofFile(folder.resolve("up")));
}}
"""


def by_java(looks: Looking, url: str, folder: Path) -> tuple[bytes, bytes]:
    """java.net.http, with a trust store of ours alone."""
    (folder / "Ask.java").write_text(JAVA)
    need("javac")  # a JRE does not run source
    store = folder / "trust.p12"
    store.write_bytes(FORMS["p12"](x509.load_pem_x509_certificate(looks.authority.read_bytes())))
    trust = [f"-Djavax.net.ssl.trustStore={store}", f"-Djavax.net.ssl.trustStorePassword={PASSWORD}"]
    arguments: list[str | Path] = [folder / "Ask.java", str(looks.proxy.address.port), url, folder]
    done = run_program([need("java"), "-XX:TieredStopAtLevel=1", *trust, *arguments])
    assert done.returncode == 0, done.stderr.decode()
    return (folder / "down").read_bytes(), (folder / "up").read_bytes()


NODE = """
const [proxy, url, folder] = process.argv.slice(1), { hostname, port, pathname } = new URL(url)
const fs = require("fs"), http = require("http"), https = require("https"), tls = require("tls")
class Agent extends https.Agent {
  createConnection(options, done) {
    http.request({ port: proxy, method: "CONNECT", path: `${hostname}:${port}` }).on("connect", (_, socket) =>
      done(null, tls.connect({ ...options, socket, servername: hostname }))).end()
  }
}
const agent = new Agent({ keepAlive: true })
const ask = (method, name) => new Promise(done => {
  const request = https.request({ hostname, port, path: pathname, method, agent }, answer =>
    answer.pipe(fs.createWriteStream(`${folder}/${name}`)).on("finish", done))
  request.end(method == "POST" ? fs.readFileSync(`${folder}/large`) : "")
})
ask("GET", "down").then(() => ask("POST", "up")).then(() => agent.destroy())
"""


def by_node(looks: Looking, url: str, folder: Path) -> tuple[bytes, bytes]:
    """Its https module, with an agent that asks by CONNECT."""
    port = str(looks.proxy.address.port)
    env = {"NODE_EXTRA_CA_CERTS": str(looks.authority)}
    done = run_program([need("node"), "-e", NODE, port, url, folder], env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    return (folder / "down").read_bytes(), (folder / "up").read_bytes()


BOTH = (by_curl, by_httpx, by_java)
CLIENTS = [(client, version) for client in BOTH for version in ("HTTP/1.1", "HTTP/2")] + [(by_node, "HTTP/1.1")]


@pytest.mark.parametrize(
    ("client", "server"), CLIENTS, indirect=["server"], ids=[f"{one.__name__}-{version}" for one, version in CLIENTS]
)
def test_a_mebibyte_down_and_up(
    client: Callable[[Looking, str, Path], tuple[bytes, bytes]],
    server: tuple[Origin | H2Origin, str],
    looks: Looking,
    tmp_path: Path,
) -> None:
    """They trust what they see, all octets arrive, and hook and record have both exchanges with their version."""
    there, version = server
    url = f"https://localhost:{there.port}/large"
    (tmp_path / "large").write_bytes(LARGE)
    assert client(looks, url, tmp_path) == (LARGE, LARGE)
    assert [asked.method for asked in there.asked] == ["GET", "POST"]
    lines = looks.seen(2, of=url)
    assert lines == [f"200 {version} {url}"] * 2
    entries = looks.entries(2, of=url)
    assert [entry["request"]["httpVersion"] for entry in entries] == [version] * 2
    assert [entry["response"]["content"]["size"] for entry in entries] == [len(LARGE)] * 2
