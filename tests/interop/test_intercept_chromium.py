"""Chromium without a window through an intercepting `tabi serve`: a page of 200 files, over both versions of HTTP."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from h2_origin import h2_origin
from looking import Looking, looking, websocket_echo
from origin import Certificates, Handler, origin
from processes import PATIENCE, environment, need, run_program

pytestmark = [pytest.mark.interop, pytest.mark.linux]

COUNT = 100
"""Files of each of the two origins."""

PAGE = """<p id="files">0</p><p id="said">nothing</p>
<script>
    const add = () => document.getElementById("files").textContent++
    const talk = url => {
        const socket = new WebSocket(url)
        socket.onopen = () => socket.send("hello".repeat(1000))
        socket.onmessage = event => {
            if (event.data == "end") return
            document.getElementById("said").textContent += " " + event.data.length
            socket.send("end")
        }
    }
    talk("wss://localhost:FIRST/")
</script>
SCRIPTS
<script>talk("wss://localhost:SECOND/")</script>
"""
"""When all scripts are loaded there is a connection of HTTP/2 for the second WebSocket."""

told = threading.Semaphore(0)
"""The page has got its messages back, once for each of its WebSockets."""


class Held(Handler):
    """The page is not complete before that."""

    def take(self) -> bytes:
        if self.path == "/held.js":
            for _ in range(2):
                told.acquire(timeout=PATIENCE)
        return super().take()


def hear(said: str | bytes) -> None:
    """The servers of WebSocket have heard something."""
    if said == "end":
        told.release()


def trust(authority: Path, home: Path) -> None:
    """Have Chromium accept what the authority signs, by the user's database of NSS."""
    database = home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    place = ["-d", f"sql:{database}"]
    for command in (["-N", "--empty-password"], ["-A", "-n", "tabi", "-t", "C,,", "-i", authority]):
        done = run_program([need("certutil"), *command, *place])
        assert done.returncode == 0, done.stderr.decode()


def load(url: str, looks: Looking, home: Path) -> str:
    """The page as it is once it is complete."""
    options = [
        "--no-sandbox",  # which root has none of
        "--disable-gpu",
        "--disable-quic",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--timeout=15000",  # milliseconds
        f"--user-data-dir={home / 'profile'}",
        f"--proxy-server=socks5://{looks.proxy.address}",
        "--proxy-bypass-list=<-loopback>",  # not even loopback is an exception
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--dump-dom",
    ]
    program = need("chromium-headless-shell")
    trust(looks.authority, home)
    done = run_program([program, *options, url], env=environment() | {"HOME": str(home)})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_page_of_200_files_and_websockets(tmp_path: Path, certificates: Certificates) -> None:
    """All arrive, a hook has seen the head of each, all are in the record, and WebSockets echo, over both versions."""
    files = {f"/{number}.js": b"add();" + b" " * 2000 for number in range(COUNT)}
    with (
        h2_origin(certificates, files, hear) as second,
        origin(files, tls=certificates, handler=Held) as first,
        websocket_echo(certificates, hear) as websocket,
        looking(tmp_path, certificates) as looks,
    ):
        h1 = [f"https://localhost:{first.port}/{name}" for name in ("page.html", "held.js")]
        sources = [f"https://localhost:{one.port}{path}" for path in files for one in (first, second)]
        page = PAGE.replace("FIRST", str(websocket)).replace("SECOND", str(second.port))
        page = page.replace("SCRIPTS", "".join(f'<script src="{source}"></script>\n' for source in sources))
        first.files |= {"/page.html": f'{page}<script src="{h1[1]}"></script>'.encode(), "/held.js": b"add()"}
        page = load(h1[0], looks, tmp_path)
        assert f'<p id="files">{2 * COUNT + 1}</p><p id="said">nothing 5000 5000</p>' in page
        assert set(second.protocols) == {"h2"}
        expected = {
            *((200, "HTTP/2" if f":{second.port}/" in url else "HTTP/1.1", url) for url in [*sources, *h1]),
            (101, "HTTP/1.1", f"https://localhost:{websocket}/"),
            (200, "HTTP/2", second.url()),
        }
        lines = [line.split() for line in looks.seen(len(expected))]
        entries = looks.entries(len(expected))
    assert Counter((int(status), version, url) for status, version, url in lines) == Counter(expected)
    recorded = [(entry["request"], entry["response"]) for entry in entries]
    found = [(response["status"], request["httpVersion"], request["url"]) for request, response in recorded]
    assert Counter(found) == Counter(expected)
    messages = [entry["_webSocketMessages"] for entry in entries if "_webSocketMessages" in entry]
    hello = "hello" * 1000
    expected_messages = [("send", hello), ("receive", hello), ("send", "end"), ("receive", "end")]
    assert [[(one["type"], one["data"]) for one in each] for each in messages] == [expected_messages] * 2
    assert {response["content"]["size"] for request, response in recorded if request["url"] in sources} == {2006}
