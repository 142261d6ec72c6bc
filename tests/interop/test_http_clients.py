"""The HTTP clients that Python programs have, through an HTTP proxy: urllib, requests and httpx."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import requests

from origin import Certificates, Origin, origin
from processes import PATIENCE, Serve, serve

pytestmark = pytest.mark.interop

FILES = {"/a": b"a\n" * 100_000, "/b": b"b\n"}
POSTED = bytes(range(256)) * 1024

Answers = list[tuple[int, bytes]]
Client = Callable[[str, Origin, Path], Answers]
"""Gets /a, posts to /post in chunks, and gets /b: by a proxy's URL, from an origin, with the authority's file."""


def chunks() -> Iterator[bytes]:
    """What is posted, its length unknown."""
    for start in range(0, len(POSTED), 10_000):
        yield POSTED[start : start + 10_000]


def by_urllib(proxy: str, server: Origin, trusted: Path) -> Answers:
    """A connection for each request: urllib keeps none."""
    handlers = (
        urllib.request.ProxyHandler({"http": proxy, "https": proxy}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=trusted)),
    )
    opener = urllib.request.build_opener(*handlers)
    answers = []
    for path, body in (("/a", None), ("/post", chunks()), ("/b", None)):
        asked = urllib.request.Request(server.url(path), body, {"Content-Type": "application/octet-stream"})
        with opener.open(asked, timeout=PATIENCE) as answer:
            answers.append((answer.status, answer.read()))
    return answers


def by_requests(proxy: str, server: Origin, trusted: Path) -> Answers:
    """One connection."""
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": proxy, "https": proxy}
        session.verify = str(trusted)
        answers = [
            session.get(server.url("/a"), timeout=PATIENCE),
            session.post(server.url("/post"), data=chunks(), timeout=PATIENCE),
            session.get(server.url("/b"), timeout=PATIENCE),
        ]
        return [(answer.status_code, answer.content) for answer in answers]


def by_httpx(proxy: str, server: Origin, trusted: Path) -> Answers:
    """One connection."""
    context = ssl.create_default_context(cafile=trusted)
    through = httpx.Proxy(proxy, ssl_context=context if proxy.startswith("https:") else None)
    with httpx.Client(proxy=through, verify=context, trust_env=False, timeout=PATIENCE) as client:
        answers = [
            client.get(server.url("/a")),
            client.post(server.url("/post"), content=chunks()),
            client.get(server.url("/b")),
        ]
        return [(answer.status_code, answer.content) for answer in answers]


CLIENTS = (by_urllib, by_requests, by_httpx)


@pytest.fixture(autouse=True)
def no_proxies_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment says what goes by which proxy."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Origin]:
    """A destination without TLS and one with it."""
    with origin(FILES, tls=certificates if request.param == "https" else None) as running:
        yield running


def check(answers: Answers, proxy: Serve, server: Origin, connections: int) -> None:
    """All went well, the log has it, and the destination has not seen the password."""
    assert answers == [(200, FILES["/a"]), (200, POSTED), (200, FILES["/b"])]
    lines = proxy.sessions(3 if server.scheme == "http" else connections, port=server.port)
    assert {line["user"] for line in lines} == {"alice"}
    assert {line["command"] for line in lines} == {"forward" if server.scheme == "http" else "connect"}
    assert not any("proxy-authorization" in asked.fields for asked in server.asked)


@pytest.mark.parametrize("client", CLIENTS)
def test_requests_of_a_user(proxy: Serve, server: Origin, certificates: Certificates, client: Client) -> None:
    """GET, POST in chunks and GET again: forwarded to http, tunnelled to https."""
    answers = client(f"http://alice:secret@{proxy.address}", server, certificates.authority)
    check(answers, proxy, server, 3 if client is by_urllib else 1)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_wrong_password(proxy: Serve, server: Origin, certificates: Certificates, client: Client) -> None:
    """407: an answer where the request would be forwarded, an error of the client's own where it is a tunnel."""
    url = f"http://alice:wrong@{proxy.address}"
    if server.scheme == "http" and client is not by_urllib:
        assert {status for status, _ in client(url, server, certificates.authority)} == {407}
    else:
        with pytest.raises((urllib.error.URLError, requests.exceptions.ProxyError, httpx.ProxyError), match="407"):
            client(url, server, certificates.authority)
    assert not server.asked


def test_a_user_in_the_url(proxy: Serve) -> None:
    """urllib leaves it to the proxy to make a field of it."""
    with origin(FILES) as server:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({"http": f"http://alice:secret@{proxy.address}"})
        )
        with opener.open(server.url("/b", "joe:s3cr%40t@127.0.0.1"), timeout=PATIENCE) as answer:
            assert answer.read() == FILES["/b"]
        (asked,) = server.asked
        assert (asked.path, asked.fields["authorization"]) == ("/b", "Basic " + b64encode(b"joe:s3cr@t").decode())


def test_https_without_a_tunnel(certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS is the proxy's part then, by the authorities that SSL_CERT_FILE names."""
    for trusted, status in ((certificates.authority, 200), (None, 502)):
        if trusted is None:
            monkeypatch.delenv("SSL_CERT_FILE")
        else:
            monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with serve(tmp_path, "-l", "http://127.0.0.1:0") as proxy, origin(FILES, tls=certificates) as server:
            connection = http.client.HTTPConnection(str(proxy.address.host), proxy.address.port, timeout=PATIENCE)
            connection.request("GET", server.url("/a"))
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            assert answer.status == status
            if status == 200:
                assert body == FILES["/a"]
            else:
                assert "; error=tls_certificate_error; " in answer.headers["Proxy-Status"]
                assert not server.asked


# requests verifies a proxy only on the way to https: to http it warns that nobody did.
@pytest.mark.parametrize(("client", "tls"), [(by_httpx, False), (by_httpx, True), (by_requests, True)])
def test_a_proxy_inside_tls(certificates: Certificates, client: Client, tls: bool, tmp_path: Path) -> None:
    """The same to an https listener; to an https destination that is TLS in TLS."""
    config = tmp_path / "tabi.toml"
    config.write_text(
        '[[listen]]\nurl = "https://127.0.0.1:0"\n'
        f'tls = {{ certificate = "{certificates.chain}", key = "{certificates.key}" }}\n'
        '[users.alice]\npassword = "secret"\nplain = true\n'
    )
    with serve(tmp_path, "-c", config) as proxy, origin(FILES, tls=certificates if tls else None) as server:
        answers = client(f"https://alice:secret@{proxy.address}", server, certificates.authority)
        check(answers, proxy, server, 1)
