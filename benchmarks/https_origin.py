"""What scenarios of interception need beside a proxy: an origin of HTTPS, an authority that proxies sign with, names.

All of it is made once in a run. Nothing of it needs root: proxies know the names by their own configurations, or are
asked for an address and hear the name in TLS.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from process import Failure, free_port, running

HOST = "origin.tabi.bench"
HOSTS = 2500
"""Names beside it: h0.tabi.bench, h1.tabi.bench and so on."""

FIRST = 500
"""The first of them that is measured; a warm-up begins with h0.tabi.bench."""

SIZES = {"1k": 1024, "10m": 10_000_000, "1g": 1_000_000_000}
"""The files that the origin has, with their octets."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A running origin."""

    port: int
    authority: Path
    """The authority of its certificate, in PEM."""


def names() -> list[str]:
    """All names; each stands for 127.0.0.1."""
    return [HOST, *(f"h{number}.tabi.bench" for number in range(HOSTS))]


def openssl(*words: str) -> None:
    """Make a key (ECDSA P-256) and a certificate. Raises Failure."""
    kind = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    try:
        done = subprocess.run([*kind, *words], capture_output=True, text=True)
    except OSError:
        raise Failure("no certificate without openssl (Debian package openssl)") from None
    if done.returncode:
        raise Failure(f"openssl cannot make a certificate: {done.stderr.strip().splitlines()[-1]}")


def make_authority(folder: Path, name: str) -> None:
    """Make an authority: ca.crt, ca.key, both in ca.pem, and this under the name that mitmproxy looks for."""
    certificate, key = folder / "ca.crt", folder / "ca.key"
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    openssl("-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate), *usage)
    for both in ("ca.pem", "mitmproxy-ca.pem"):
        (folder / both).touch(0o600)
        (folder / both).write_text(key.read_text() + certificate.read_text())


def temporary(purpose: str) -> Path:
    """A folder that goes away with the run."""
    folder = Path(tempfile.mkdtemp(prefix=f"tabi-bench-{purpose}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def proxy_authority() -> Path:
    """The folder of the authority that every proxy signs with. Raises Failure."""
    folder = temporary("authority")
    make_authority(folder, "tabi bench")
    return folder


@functools.cache
def origin() -> Origin:
    """Start the origin: nginx with HTTP/1.1 and HTTP/2, one worker. Raises Failure."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    nginx = shutil.which("nginx", path=path)
    if nginx is None:
        raise Failure("no origin without nginx (Debian package nginx)")
    folder, port = temporary("origin"), free_port()
    make_authority(folder, "tabi bench origin")
    issuer = ["-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"), "-addext", "basicConstraints=CA:FALSE"]
    files = ["-keyout", str(folder / "origin.key"), "-out", str(folder / "origin.crt")]
    openssl("-subj", f"/CN={HOST}", *files, *issuer, "-addext", f"subjectAltName=DNS:{HOST},DNS:*.tabi.bench")
    (folder / "files").mkdir()
    for name, size in SIZES.items():
        (folder / "files" / name).touch()
        os.truncate(folder / "files" / name, size)
    user = f"user {pwd.getpwuid(os.geteuid()).pw_name};\n" if os.geteuid() == 0 else ""
    temporaries = "".join(
        f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
        "events { worker_connections 4096; }\n"
        "http {\n"
        f"  access_log off;\n  sendfile on;\n  keepalive_requests 100000000;\n{temporaries}"
        f"  ssl_certificate {folder}/origin.crt;\n  ssl_certificate_key {folder}/origin.key;\n"
        f"  server {{ listen 127.0.0.1:{port} ssl http2 backlog=4096; root {folder}/files; }}\n"
        "}\n"
    )
    stack = contextlib.ExitStack()
    command = [nginx, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    stack.enter_context(running(command, port, folder / "output"))
    atexit.register(stack.close)
    return Origin(port, folder / "ca.crt")
