"""The page of the authority: what is at which path, and what a browser may do with it."""

from __future__ import annotations

import hashlib
import re
import ssl
from base64 import b64encode
from http.client import HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from destinations import make_authority
from tabi.intercept.authority import Authority
from tabi.intercept.export import fingerprint
from tabi.intercept.page import Page
from tabi.wire.http import HEAD_LIMIT

BROWSER = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
AT = 1_795_000_000.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The proxy's."""
    return make_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def page(authority: Authority) -> Page:
    """Its page, at a fixed time."""
    return Page(authority.certificate, lambda: AT)


class Octets(BytesIO):
    """Stays open where the response closes it."""

    def close(self) -> None:
        pass


def ask(page: Page, target: str = "/", accept: str = "*/*", method: str = "GET") -> tuple[HTTPResponse, bytes]:
    """What a client gets, read by the standard library."""
    octets = page.answer(f"{method} {target} HTTP/1.1\r\nHost: tabi.invalid\r\nAccept: {accept}\r\n\r\n".encode())
    assert octets is not None
    file = Octets(octets)
    response = HTTPResponse(cast("Any", type("Sock", (), {"makefile": lambda *_: file})()), method=method)
    response.begin()
    body = response.read()
    assert file.read() == b""
    return response, body


@pytest.mark.parametrize("target", ["/", "/?x=1", "http://tabi.invalid/", "http://tabi.invalid"])
def test_a_browser_gets_a_page(page: Page, authority: Authority, target: str) -> None:
    """With the fingerprint, links to the files, and how to trust the certificate."""
    response, body = ask(page, target, BROWSER)
    text = body.decode()
    assert (response.status, response.getheader("Content-Type")) == (200, "text/html; charset=utf-8")
    assert fingerprint(authority.certificate) in text
    assert re.findall('href="([^"]+)"', text) == ["/ca.crt", "/ca.der", "/ca.p12"]
    for who in ("Debian, Ubuntu", "Windows", "Android", "NODE_EXTRA_CA_CERTS=ca.crt"):
        assert who in text
    assert "PRIVATE" not in text


def test_others_get_text(page: Page, authority: Authority) -> None:
    """curl on a terminal shows something to read."""
    response, body = ask(page)
    assert response.getheader("Content-Type") == "text/plain; charset=utf-8"
    assert fingerprint(authority.certificate) in body.decode()
    assert b"<" not in body


def test_the_files_are_the_certificate(page: Page, authority: Authority) -> None:
    """Of a kind that browsers and phones offer to install."""
    for path, octets in (("/ca.crt", authority.certificate_pem), ("/ca.der", authority.certificate_der)):
        response, body = ask(page, path)
        assert response.getheader("Content-Type") == "application/x-x509-ca-cert"
        assert body == octets
    response, body = ask(page, "/ca.p12")
    assert response.getheader("Content-Type") == "application/x-pkcs12"
    assert b"PRIVATE" not in body
    assert ssl.PEM_cert_to_DER_cert(ask(page, "/ca.crt")[1].decode()) == authority.certificate_der


def test_a_file_is_encoded_once_and_if_asked_for(authority: Authority) -> None:
    """A trust store costs a start or a reload nothing, and who asks again and again costs no more than the first."""
    page = Page(authority.certificate)
    assert page.files == {}
    (_, one), (_, other) = ask(page, "/ca.p12"), ask(page, "/ca.p12")
    assert one == other  # each that is made has salts of its own
    assert list(page.files) == ["/ca.p12"]


@pytest.mark.parametrize("target", ["/", "/ca.crt", "/ca.p12"])
def test_what_a_browser_may_do(page: Page, target: str) -> None:
    """Keep nothing, run nothing, be framed by nobody; the page's own style is the only one."""
    response, body = ask(page, target, BROWSER)
    assert response.getheader("Cache-Control") == "no-store"
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert response.getheader("Referrer-Policy") == "no-referrer"
    assert response.getheader("Connection") == "close"
    assert response.getheader("Date") == "Wed, 18 Nov 2026 11:06:40 GMT"
    policy = response.getheader("Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    if target == "/":
        (style,) = re.findall("<style>(.*?)</style>", body.decode(), re.S)
        assert f"'sha256-{b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy
        assert "<script" not in body.decode()


@pytest.mark.parametrize("target", ["/", "/ca.crt", "/nothing"])
def test_head_has_the_same_fields(page: Page, target: str) -> None:
    """And no content."""
    response, body = ask(page, target, method="HEAD")
    assert body == b""
    assert response.getheader("Content-Length") == ask(page, target)[0].getheader("Content-Length")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /nothing HTTP/1.1", 404),
        ("GET /ca.key HTTP/1.1", 404),
        ("GET /../ca.crt HTTP/1.1", 404),
        ("POST / HTTP/1.1", 405),
        ("CONNECT tabi.invalid:80 HTTP/1.1", 405),
        ("garbage", 400),
        ("GET / HTTP/2.0", 505),
        ("GET /" + "x" * HEAD_LIMIT + " HTTP/1.1", 414),
    ],
)
def test_anything_else_is_an_error(page: Page, request_line: str, status: int) -> None:
    """With the right status."""
    octets = page.answer(f"{request_line}\r\nHost: tabi.invalid\r\n\r\n".encode())
    assert octets is not None
    assert octets.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in octets


def test_a_request_in_pieces(page: Page) -> None:
    """Octet by octet: there is no answer before the head is whole."""
    request = b"GET /ca.crt HTTP/1.1\r\nHost: tabi.invalid\r\n\r\n"
    for end in range(len(request)):
        assert page.answer(request[:end]) is None
    assert page.answer(request) is not None


@given(st.binary(max_size=200), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"GET /"]))
def test_any_octets_get_an_answer_or_wait(page: Page, data: bytes, before: bytes) -> None:
    """No octets raise anything."""
    answer = page.answer(before + data)
    assert answer is None or answer.startswith(b"HTTP/1.1 ")


def test_what_an_authority_is_called_is_escaped(tmp_path: Path) -> None:
    """A company's own may have any name; there is no way from it into the page."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    from destinations import DAY, NOW, subject

    key, who = ec.generate_private_key(ec.SECP256R1()), subject("<script>alert(1)</script>")
    builder = x509.CertificateBuilder(who, who, key.public_key(), 1, NOW, NOW + DAY)
    _, body = ask(Page(builder.sign(key, hashes.SHA256())), accept=BROWSER)
    assert b"<script" not in body
    assert b"&lt;script" in body
