"""nginx as the destination: what it sees of requests that were rewritten, by HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from origin import Certificates, make_authority, make_certificates
from processes import PATIENCE, environment, need, serve
from tabi.intercept.authority import Authority

pytestmark = pytest.mark.interop

CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    underscores_in_headers on;
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{secure} ssl http2;
        listen 127.0.0.1:{clear} http2;
        ssl_certificate {certificates.chain};
        ssl_certificate_key {certificates.key};
        location / {{
            add_header Set-Cookie "id=1";
            add_header X-Seen-Protocol $server_protocol;
            return 200 "$http_user_agent|$http_x_forwarded_for|$http_forwarded|$http_via|$http_cookie|$host|$uri";
        }}
    }}
}}
"""

TABI = """\
[[listen]]
url = "mixed://127.0.0.1:0"
[log]
access = "none"
[resolver]
hosts = {{ "www.example.com" = ["127.0.0.1"], "old.example.com" = ["127.0.0.1"] }}
[[intercept]]
trust = "{authority}"

[[distort]]
strip_cookies = true
headers.remove = ["Via", "Forwarded"]
headers.set = {{ User-Agent = "masked/1.0", X-Forwarded-For = "{{client}}" }}
response_headers = {{ remove = ["Server"], set = {{ X-Answer = "mine" }} }}

[[distort]]
hosts = ["old.example.com"]
map_remote = "https://www.example.com:{secure}/new"

[[distort]]
hosts = ["www.example.com"]
map_local = "site"
"""


@contextlib.contextmanager
def nginx(folder: Path, certificates: Certificates) -> Iterator[tuple[int, int, int]]:
    """A running nginx that listens on sockets of ours; gives the ports of plain HTTP/1, of TLS, and of plain HTTP/2."""
    program = need("nginx")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        numbers = [sock.fileno() for sock in socks]
        plain, secure, clear = (sock.getsockname()[1] for sock in socks)
        path, more = folder / "nginx.conf", {"folder": folder, "certificates": certificates}
        path.write_text(CONFIGURATION.format(plain=plain, secure=secure, clear=clear, **more))
        given = {**environment(), "NGINX": "".join(f"{number};" for number in numbers)}  # as when it replaces itself
        with (folder / "nginx.log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-p", folder, "-c", path],
                env=given,
                pass_fds=numbers,
                stdout=log,
                stderr=log,
            )
    try:
        yield plain, secure, clear  # it listens already: who comes before nginx is ready waits in the backlog
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_what_nginx_sees(tmp_path: Path) -> None:
    """One User-Agent, the client's address, no trace of a proxy and no cookies; another server, and files."""
    certificates = make_certificates(tmp_path)
    leaf = make_authority().issue_cert("www.example.com", "old.example.com")
    leaf.cert_chain_pems[0].write_to_path(certificates.chain)
    leaf.private_key_pem.write_to_path(certificates.key)
    Authority.make(str(tmp_path / "ca"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "local.txt").write_text("from a file")
    (tmp_path / "nginx").mkdir()  # it gives the folder to the user of its workers
    with nginx(tmp_path / "nginx", certificates) as (plain, secure, clear):
        file = tmp_path / "tabi.toml"
        ours = f'[ca]\ncertificate = "{tmp_path}/ca/ca.crt"\nkey = "{tmp_path}/ca/ca.key"\n'
        file.write_text(TABI.format(authority=certificates.authority, secure=secure) + ours)
        with serve(tmp_path, "-c", file) as proxy:

            def fetch(url: str, *options: str) -> tuple[str, str]:
                command = [need("curl"), "-sS", "-i", "-m", "15", "--cacert", str(tmp_path / "ca" / "ca.crt"), *options]
                fields = ("-H", "Via: 1.1 before", "-H", "Forwarded: for=192.0.2.1", "-H", "Cookie: a=b")
                done = subprocess.run([*command, *fields, url], capture_output=True, text=True, timeout=PATIENCE)
                assert (done.returncode, done.stderr) == (0, "")
                head, _, body = done.stdout.replace("\r", "").partition("\n\n")
                return head.lower(), body

            http, socks = (
                ("-x", f"http://{proxy.address}", "--suppress-connect-headers"),
                ("-x", f"socks5h://{proxy.address}"),
            )
            for url, options, protocol in (
                (f"http://www.example.com:{plain}", http, "http/1.1"),
                (f"http://www.example.com:{plain}", socks, "http/1.1"),
                (f"https://www.example.com:{secure}", (*http, "--http1.1"), "http/1.1"),
                (f"https://www.example.com:{secure}", socks, "http/2.0"),
                (f"http://www.example.com:{clear}", (*socks, "--http2-prior-knowledge"), "http/2.0"),
            ):
                head, body = fetch(f"{url}/page", *options)
                assert body == "masked/1.0|127.0.0.1||||www.example.com|/page", (url, options)
                assert f"x-seen-protocol: {protocol}" in head
                assert "x-answer: mine" in head
                assert "cookie" not in head
                assert "nginx" not in head
                head, body = fetch(f"{url}/local.txt", *options)
                assert body == "from a file"
                assert "x-answer: mine" in head
                old = url.replace("www", "old")
                assert fetch(f"{old}/page", *options)[1] == "masked/1.0|127.0.0.1||||www.example.com|/new/page"
