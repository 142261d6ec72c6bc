"""An HTTP/1.1 origin server on this machine for programs that speak HTTP, and certificates for all who need one."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import NamedTuple

import trustme

from processes import PATIENCE

MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"
"""When every file here was changed."""


class Certificates(NamedTuple):
    """PEM files of an authority, of a server on this machine, and of the client "alice"."""

    authority: Path
    chain: Path
    key: Path
    client_chain: Path
    client_key: Path


@cache
def make_authority() -> trustme.CA:
    """The authority of all tests: to make one is slow."""
    return trustme.CA()


def make_certificates(folder: Path) -> Certificates:
    """Write the files to a folder."""
    authority = make_authority()
    files = Certificates(*(folder / f"{name}.pem" for name in Certificates._fields))
    authority.cert_pem.write_to_path(files.authority)
    server = authority.issue_cert("localhost", "127.0.0.1", "::1")
    client = authority.issue_cert("alice@localhost", common_name="alice")
    for certificate, chain, key in (
        (server, files.chain, files.key),
        (client, files.client_chain, files.client_key),
    ):
        certificate.cert_chain_pems[0].write_to_path(chain)
        certificate.private_key_pem.write_to_path(key)
    return files


class Asked(NamedTuple):
    """A request that came: the client's port tells connections apart; ``body`` is without its chunks."""

    port: int
    method: str
    path: str
    fields: dict[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """Serves files by GET and HEAD, ranges and conditions included; sends back what is posted or put."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: Origin

    def do_GET(self) -> None:
        self.take()
        body = self.server.files.get(self.path.partition("?")[0])
        if body is None:
            self.answer(404, b"not here\n")
        elif self.headers["If-Modified-Since"] == MODIFIED:
            self.answer(304, b"")
        elif found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
            first, last = int(found[1]), min(int(found[2] or len(body)), len(body) - 1)
            self.answer(206, body[first : last + 1], f"bytes {first}-{last}/{len(body)}")
        else:
            self.answer(200, body)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.answer(200, self.take())

    do_PUT = do_POST

    def take(self) -> bytes:
        """Read the request's content, and note the request."""
        if self.headers["Transfer-Encoding"] == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size + 2)[:-2]
            while self.rfile.readline().strip():  # trailers
                pass
        else:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        fields = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.client_address[1], self.command, self.path, fields, body))
        return body

    def answer(self, status: int, body: bytes, content_range: str | None = None) -> None:
        """Send a response."""
        self.send_response(status)
        if status != 304:
            self.send_header("Content-Type", "text/html" if self.path.endswith(".html") else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", MODIFIED)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what came is in ``Origin.asked``."""


USED_PORTS: set[int] = set()
"""Of all origins so far."""


class Origin(ThreadingTCPServer):
    """What it serves, and what it was asked for.

    Attributes:
        files: paths and their content.
        asked: the requests in the order in which they came.
    """

    request_queue_size = 128

    def __init__(self, host: str, handler: type[Handler], tls: Certificates | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.failures: list[BaseException] = []
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.chain, tls.key)
            # The handshake is the connection's own thread's, with its first read: here it would keep others waiting.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.scheme = "https"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """The URL of one of its files."""
        return f"{self.scheme}://{host}:{self.port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep what went wrong here; clients that leave did not."""
        failure = sys.exc_info()[1]
        if failure is not None and not isinstance(failure, OSError):
            self.failures.append(failure)


@contextlib.contextmanager
def origin(
    files: dict[str, bytes] | None = None,
    *,
    tls: Certificates | None = None,
    host: str = "127.0.0.1",
    handler: type[Handler] = Handler,
) -> Iterator[Origin]:
    """Run one, at a port that none of this process had before: in the log of a server that several tests share, it says
    which sessions are whose. Its connections must be at their end before it is."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Origin(host, handler, tls))
        while server.port in USED_PORTS:
            server = stack.enter_context(Origin(host, handler, tls))
        USED_PORTS.add(server.port)
        server.files |= files or {}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
    assert not server.failures, server.failures
