"""The page of `http://tabi.invalid/`: the authority's certificate, and how to trust it. Octets to octets, no I/O.

    /           instructions: HTML for those that take it (Accept), else text
    /ca.crt     the certificate in PEM
    /ca.der     in DER
    /ca.p12     as a trust store for Java

There is one request on a connection.
"""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html import escape
from typing import NamedTuple

from cryptography import x509

from tabi.errors import HttpError
from tabi.intercept.export import FORMS, PASSWORD, fingerprint, ways_to_trust
from tabi.wire.address import Address
from tabi.wire.http import encode_date, encode_error, parse_request

PAGE = Address("tabi.invalid", 80)
"""No name server knows this name (RFC 6761 section 6.4): without interception there is nothing here."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --link: #0b63c4 }
@media (prefers-color-scheme: dark) { :root { --link: #7cb7ff } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 3rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
code { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
a { color: var(--link) }
p.files a { display: inline-block; margin: 0 .5rem .5rem 0; padding: .5rem 1rem; border-radius: .5rem;
  background: var(--link); color: Canvas; text-decoration: none }
dl, table { border: 1px solid var(--line); border-radius: .5rem; padding: .25rem 1rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem } dd { margin: 0 }
table { border-spacing: 0; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0 }
tr + tr > * { border-top: 1px solid var(--soft) }
th { white-space: nowrap; font-weight: 600 }
"""

HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>tabi: the authority of this proxy</title>
<style>{style}</style>
<h1>The authority of this proxy</h1>
<p>This proxy looks into connections inside TLS. Programs that trust this certificate accept what it signs; all others
refuse. Whoever has its key can read and change what they send: trust it only if you know whose proxy this is, and
compare the fingerprint with what <code>tabi ca show</code> prints there.</p>
<p class="files"><a href="/ca.crt">ca.crt (PEM)</a><a href="/ca.der">ca.der (DER)</a><a href="/ca.p12">ca.p12 (Java)</a>
<dl>{facts}</dl>
<h2>How to trust it</h2>
<table>{ways}</table>
<p>Trust stores of Java in a file: ca.p12, whose password is <code>{password}</code>. On a phone, open ca.crt.</p>
</html>
"""

TEXT = """The authority of this proxy

This proxy looks into connections inside TLS. Programs that trust this certificate accept what it signs.
Compare the fingerprint with what `tabi ca show` prints where the proxy runs.

{facts}

  /ca.crt     PEM
  /ca.der     DER
  /ca.p12     a trust store for Java, password {password}

How to trust it:

{ways}
"""

METHODS = ("GET", "HEAD")
FILES = {f"/ca.{'crt' if form == 'pem' else form}": form for form in FORMS}
"""Where the certificate is, in which form."""
ORIGIN = re.compile(r"http://[^/?#]*", re.IGNORECASE)


class Content(NamedTuple):
    """What is at a path."""

    kind: str
    octets: bytes


class Page:
    """Answers requests for the page.

    Args:
        certificate: the authority's.
        clock: seconds since 1970.
    """

    def __init__(self, certificate: x509.Certificate, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        facts = {
            "Authority": certificate.subject.rfc4514_string(),
            "SHA-256": fingerprint(certificate),
            "Valid": f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}",
        }
        ways = ways_to_trust("ca.crt")
        html = HTML.format(
            style=STYLE,
            facts="".join(
                f"<dt>{escape(name)}</dt><dd><code>{escape(text)}</code></dd>" for name, text in facts.items()
            ),
            ways="".join(f"<tr><th>{escape(who)}</th><td><code>{escape(text)}</code></td></tr>" for who, text in ways),
            password=PASSWORD,
        )
        text = TEXT.format(
            facts="\n".join(f"  {name + ':':<12}{text}" for name, text in facts.items()),
            ways="\n".join(f"  {who + ':':<16}{text}" for who, text in ways),
            password=PASSWORD,
        )
        style = b64encode(sha256(STYLE.encode()).digest()).decode()
        self.fields = (
            f"Content-Security-Policy: default-src 'none'; style-src 'sha256-{style}'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
            "Vary: Accept\r\nConnection: close"
        )
        self.html = Content("text/html; charset=utf-8", html.encode())
        self.text = Content("text/plain; charset=utf-8", text.encode())
        self.certificate = certificate
        self.files: dict[str, Content] = {}
        """By the path: those that somebody has asked for."""

    def find(self, path: str) -> Content | None:
        """The certificate in the form that is at a path. It is encoded once, and only if asked for: a trust store takes
        10 ms of CPU, which is more than all else at the start of a server."""
        form = FILES.get(path)
        if form is None:
            return None
        if path not in self.files:
            kind = "application/x-pkcs12" if form == "p12" else "application/x-x509-ca-cert"
            self.files[path] = Content(kind, FORMS[form](self.certificate))
        return self.files[path]

    def answer(self, data: bytes | bytearray) -> bytes | None:
        """The whole response to a request, or None while octets of its head are missing. ``data`` is bounded by
        HEAD_LIMIT of `wire.http`: what is longer is answered with an error."""
        date = encode_date(int(self.clock()))
        try:
            found = parse_request(data, proxied=False)
        except HttpError as exc:
            return encode_error(exc.status, None, str(exc), date=date)
        if found is None:
            return None
        head = found[0]
        if head.method not in METHODS:
            return encode_error(
                405, None, "there is nothing to send here", fields=[(b"Allow", b"GET, HEAD")], date=date
            )
        path = ORIGIN.sub("", head.target).partition("?")[0] or "/"
        content = self.find(path)
        if path == "/":
            accepted = b",".join(head.fields.get_all(b"Accept")).lower()
            content = self.html if b"text/html" in accepted else self.text
        if content is None:
            return encode_error(404, None, "see /", head=head.method == "HEAD", date=date)
        lines = (
            f"HTTP/1.1 200 OK\r\nContent-Type: {content.kind}\r\nContent-Length: {len(content.octets)}\r\n{self.fields}"
        )
        return lines.encode() + date + b"\r\n\r\n" + (b"" if head.method == "HEAD" else content.octets)
