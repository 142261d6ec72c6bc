"""Hellos of real clients, and how near what tabi sends in their place comes: the table of docs/fingerprint.md."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import Run
from fingerprints import destination, http2_text, record_of, showing
from processes import PATIENCE, environment, in_thread, listening, need
from tabi.distort.fingerprint.difference import read_hello
from tabi.distort.fingerprint.mirror import Mirror, seen
from tabi.wire.client_hello import decode_client_hello, hello_body

pytestmark = [pytest.mark.interop, pytest.mark.linux]

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "fingerprint.md"

JAVA = """
public class Ask { public static void main(String[] arguments) throws Exception {
  new java.net.URL(arguments[0]).openStream();
}}
"""

CLIENTS: dict[str, tuple[Sequence[str], str]] = {
    "curl": (("curl", "-sk", "--noproxy", "*", "URL"), "JA3 and JA4"),
    "Python": (("python3", "-c", "import urllib.request as u; u.urlopen('URL')"), "JA3 and JA4"),
    "Node": (("node", "-e", "require('https').get('URL')"), "JA3 and JA4"),
    "PHP": (("php", "-r", "file_get_contents('URL');"), "JA3 and JA4"),
    "openssl s_client": (
        ("openssl", "s_client", "-connect", "localhost:PORT"),
        "JA3 and JA4",
    ),
    "Chromium": (("chromium-headless-shell", "--no-sandbox", "--dump-dom", "URL"), "JA4"),
    "wget": (("wget", "-q", "-O-", "--no-proxy", "URL"), "nearest"),
    "git": (("git", "ls-remote", "URL"), "nearest"),
    "Java": (("java", "Ask.java", "URL"), "nearest"),
}
"""What each is started with, and what of it a destination sees."""


def capture(command: Sequence[str], folder: Path) -> bytes:
    """The hello of a client."""
    (folder / "Ask.java").write_text(JAVA)
    env = {key: value for key, value in environment().items() if not re.search("(?i)proxy", key)}
    with listening() as (listener, port):
        listener.settimeout(PATIENCE)
        url = f"https://localhost:{port}/"
        ready = [part.replace("URL", url).replace("PORT", str(port)) for part in command]
        ready[0] = need(command[0])
        nothing = subprocess.DEVNULL
        with subprocess.Popen(
            ready, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing
        ) as client:
            try:
                with contextlib.closing(accept_one(listener)) as sock:
                    octets = b""
                    while not hello_body(octets):
                        data = sock.recv(65536)
                        assert data
                        octets += data
            finally:
                client.kill()
    return octets


def accept_one(listener: socket.socket) -> socket.socket:
    """The first connection."""
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_destination_sees_of_a_client(client: str, tmp_path: Path) -> None:
    """As the page says: both fingerprints, JA4, or the nearest, whose differences are named."""
    command, same = CLIENTS[client]
    octets = capture(command, tmp_path)
    mirror = Mirror(octets)
    wanted, sent = mirror.wanted.hello, decode_client_hello(seen(mirror.make(), mirror.wanted.hello.sni))
    assert sent is not None
    found = "JA3 and JA4" if sent.ja3 == wanted.ja3 else "JA4" if sent.ja4 == wanted.ja4 else "nearest"
    assert (found, sent.ja4 == wanted.ja4) == (same, same != "nearest")
    words = mirror.differs(seen(mirror.make(), wanted.sni)).removeprefix("versions below TLS 1.2").removeprefix("; ")
    assert bool(words) == (same == "nearest"), words


def test_the_page_has_this_table() -> None:
    """Each client, and what is the same."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", PAGE.read_text(), re.M)
    for client, (_, same) in CLIENTS.items():
        (found,) = (text for name, text in rows if name.startswith(f"{client} "))
        assert found.startswith(same), client


def test_chromium_through_a_proxy(run_once: Run, tmp_path: Path) -> None:
    """Its TLS and its HTTP/2 are at the destination as without the proxy, SETTINGS with large values too."""

    async def main() -> None:
        async with showing(tmp_path, tls="mirror") as proxy, destination(None, "h2", "http/1.1") as there:
            command = [need("chromium-headless-shell"), "--no-sandbox", "--ignore-certificate-errors", "--dump-dom"]
            url = f"https://localhost:{there.port}/"
            through = (f"--proxy-server=socks5://{proxy.address}", "--proxy-bypass-list=<-loopback>")
            for number, options in enumerate(((), through)):
                profile = f"--user-data-dir={tmp_path / str(number)}"
                done = await in_thread([*command, profile, *options, url])
                assert b"ok" in done.stdout
            hellos = [read_hello(octets).hello.ja4 for octets in there.hellos]
            assert len(set(hellos)) == 1
            alone, proxied = (http2_text(octets) for octets in (there.inside[0], there.inside[-1]))
            assert proxied == alone
            record = await record_of(proxy)
            assert (record.sent_ja4, record.sent_http2, record.fingerprint_differs) == (hellos[0], alone[0], None)

    run_once(main)
