"""The page for operators, in Chromium: it logs in, shows what runs, and what is clicked there really happens.

With TABI_SCREENSHOTS=FOLDER pictures of the views are written there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from browsing import Browser, browser
from operating import FILE, READ_TOKEN, TOKEN, Operator, operated
from origin import origin
from processes import environment, need, wait_for
from tabi.admin.app import HEADERS

pytestmark = [pytest.mark.interop, pytest.mark.timeout(90)]

EVIL = "<img src=x onerror=alert(1)>"

CONFIG = f"""
workers = 2
{FILE}
[users.alice]
password = "secret"
plain = true
limits = {{quota = "1 GB/day", connections = 100}}
[users.'{EVIL}']
password = "secret"
plain = true
[egress.pool]
members = ["direct", "socks5://127.0.0.1:1"]
[[rule]]
name = "no-mail"
ports = [25]
action = "deny"
[[rule]]
action = "allow"
via = "pool"
"""

BIG = b"x" * 100_000_000


class Desk:
    """A server with downloads, and the page."""

    def __init__(self, operator: Operator, tab: Browser, url: str) -> None:
        self.operator = operator
        self.tab = tab
        self.url = url

    def download(self, user: str = "alice", url: str | None = None) -> subprocess.Popen[bytes]:
        """Curl, slowly."""
        proxy = f"socks5h://{self.operator.proxy.address}"
        command = [need("curl"), "-s", "--limit-rate", "2M", "-x", proxy, "--proxy-user", f"{user}:secret"]
        return subprocess.Popen([*command, "-o", "/dev/null", url or self.url], env=environment())

    def show(self, view: str) -> None:
        """Go to a view, and wait until it is there."""
        self.tab.click(f'nav a[href="#{view}"]')
        self.tab.wait(f"document.querySelector('nav a[aria-current]').hash === '#{view}'")
        self.tab.wait("document.getElementById('found').children.length > 0")
        self.tab.wait("document.getElementById('state').textContent.startsWith('running')")

    def text(self) -> str:
        """What is shown."""
        return str(self.tab.run("document.getElementById('view').innerText"))

    def picture(self, name: str) -> None:
        """One for the docs, if that is wanted."""
        if folder := os.environ.get("TABI_SCREENSHOTS"):
            self.tab.run("document.getElementById('notice').textContent = ''")
            self.tab.call(
                "Emulation.setDeviceMetricsOverride", width=1000, height=400, deviceScaleFactor=1, mobile=False
            )
            self.tab.picture(Path(folder) / f"page-{name}.png")
            self.tab.call("Emulation.clearDeviceMetricsOverride")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Somebody who has logged in."""
    need("chromium-headless-shell")
    folder = tmp_path_factory.mktemp("page")
    with (
        origin({"/big": BIG}) as server,
        operated(folder, CONFIG) as operator,
        browser(folder) as tab,
    ):
        tab.open(operator.url)
        tab.wait("document.getElementById('login').open")
        tab.type("#token", "a-wrong-token-of-the-test")
        tab.click("#login button")
        tab.wait("document.getElementById('login-error').textContent.startsWith('expected Authorization')")
        tab.type("#token", TOKEN)
        tab.press("Enter")
        tab.wait("document.getElementById('state').textContent.startsWith('running, 2 workers')")
        refused = [one for one in tab.complaints if one.get("entry", {}).get("source") != "network"]
        assert refused == []  # but for the answers 401
        tab.complaints.clear()
        yield Desk(operator, tab, server.url("/big", "127.0.0.1"))
        assert tab.complaints == []


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End what still runs of our own."""
    for process in processes:
        process.kill()
        process.wait()


def test_a_click_on_end_ends_a_download(desk: Desk) -> None:
    """The one of that row: curl says that it was cut, the other goes on."""
    with ExitStack() as closing:
        first = desk.download()
        closing.callback(end, [first])
        (row,) = wait_for(lambda: desk.operator.get("/sessions")["sessions"], "the download")
        other = desk.download()
        closing.callback(end, [other])
        desk.show("sessions")
        desk.tab.wait("document.querySelectorAll('#found tbody tr').length === 2")
        desk.tab.wait("/[1-9][0-9.]* [kM]?B\\/s/.test(document.getElementById('found').innerText)")
        desk.picture("sessions")
        desk.tab.click(f'button[aria-label="End {row["id"]}"]')
        assert first.wait(20) in (18, 56)
        desk.tab.wait("document.getElementById('notice').textContent === '1 ended'")
        desk.tab.wait("document.querySelectorAll('#found tbody tr').length === 1")
        assert other.poll() is None


def test_sessions_are_searched(desk: Desk) -> None:
    """As it is typed."""
    download = desk.download()
    try:
        desk.show("sessions")
        desk.tab.wait("document.querySelectorAll('#found tbody tr').length === 1")
        desk.tab.type("input[type=search]", "nobody")
        desk.tab.wait("document.getElementById('found').innerText.includes('No sessions')")
        desk.tab.type("input[type=search]", "alice")
        desk.tab.wait("document.querySelectorAll('#found tbody tr').length === 1")
        desk.tab.type("input[type=search]", "127.0.0")
        desk.tab.wait("document.querySelectorAll('#found tbody tr').length === 1")
        desk.tab.run("document.querySelector('input[type=search]').value = ''")
    finally:
        end([download])


def test_names_are_text(desk: Desk) -> None:
    """A user may have any name: none is an element of the page, or does anything."""
    download = desk.download(EVIL)
    try:
        for view in ("sessions", "users"):
            desk.show(view)
            desk.tab.wait(f"document.getElementById('found').innerText.includes({json.dumps(EVIL)})")
            assert desk.tab.run("document.querySelectorAll('#view img, #view script').length") == 0
    finally:
        end([download])


def test_users_have_bars(desk: Desk) -> None:
    """Of what they have used of their quota, and of their connections."""
    downloads = [desk.download() for _ in range(3)]
    try:
        wait_for(lambda: desk.operator.get("/sessions?user=alice")["matching"] == 3, "the downloads")
        desk.show("users")
        desk.tab.wait("document.getElementById('found').innerText.includes('3 of 100')")
        desk.tab.wait("document.getElementById('found').innerText.includes('of 1 GB/day')")
        assert desk.tab.run("document.querySelectorAll('#found svg.usage').length") >= 2
        desk.picture("users")
        desk.tab.run("window.confirm = () => true")
        rows = "[...document.querySelectorAll('#found tbody tr')]"
        desk.tab.run(f"{rows}.find(row => row.cells[0].innerText === 'alice').querySelector('button').click()")
        for download in downloads:
            assert download.wait(20) in (18, 56)
    finally:
        end(downloads)


def test_a_member_is_drained_and_brought_back(desk: Desk) -> None:
    """By its button."""
    desk.show("egress")
    desk.tab.wait("document.querySelectorAll('#found tbody tr').length === 2")
    desk.tab.wait("document.querySelectorAll('#found svg.history rect').length >= 2")
    desk.picture("egress")
    desk.tab.click("#found tbody tr:last-child button")
    desk.tab.wait("document.querySelector('#found tbody tr:last-child').innerText.includes('drained')")
    assert [row["drained"] for row in desk.operator.get("/egress")["members"]] == [False, True]
    desk.tab.click("#found tbody tr:last-child button")
    desk.tab.wait("!document.querySelector('#found tbody tr:last-child').innerText.includes('drained')")
    assert [row["drained"] for row in desk.operator.get("/egress")["members"]] == [False, False]


def test_refusals_say_why(desk: Desk) -> None:
    """With the rule."""
    assert desk.download(url="http://127.0.0.1:25/").wait(20) == 97
    desk.show("refusals")
    desk.tab.wait("document.getElementById('found').innerText.includes('no-mail')")
    desk.picture("refusals")
    assert "127.0.0.1:25" in desk.text()


def test_faults_are_set_and_removed(desk: Desk) -> None:
    """By a form; a mistake in it is said."""
    desk.show("faults")
    desk.tab.type("input[name=latency]", "200ms")
    desk.tab.type("input[name=hosts]", "*.example.com a.test")
    desk.tab.press("Enter")
    desk.tab.wait("document.querySelectorAll('#found tbody tr').length === 1")
    desk.picture("faults")
    assert "latency 200ms" in desk.text()
    (fault,) = desk.operator.get("/faults")["faults"]
    assert "*.example.com" in fault["matchers"]
    desk.tab.type("input[name=loss]", "lots")
    desk.tab.press("Enter")
    desk.tab.wait("document.getElementById('notice').textContent.includes('loss')")
    desk.tab.click("#found tbody button")
    desk.tab.wait("document.getElementById('found').innerText.includes('No faults')")
    desk.tab.complaints[:] = [one for one in desk.tab.complaints if one.get("entry", {}).get("source") != "network"]


def test_graphs(desk: Desk) -> None:
    """One for each figure of the last hour."""
    desk.show("graphs")
    desk.tab.wait("document.querySelectorAll('svg.graph polyline').length === 8")
    wait_for(lambda: len(desk.operator.get("/history")["rows"]) > 1, "two rows", 40)
    desk.tab.wait("document.querySelector('svg.graph polyline').getAttribute('points').includes(' ')")
    desk.picture("graphs")


def test_keys_are_enough(desk: Desk) -> None:
    """Tab leads to all that can be done, and what has the focus keeps it when figures change."""
    download = desk.download()
    try:
        desk.show("sessions")
        desk.tab.wait("document.querySelectorAll('#found tbody tr').length === 1")
        desk.tab.run("document.querySelector('nav a').focus()")
        reached = []
        for _ in range(12):
            desk.tab.press("Tab")
            reached.append(desk.tab.run("document.activeElement.getAttribute('aria-label') || ''"))
            if reached[-1].startswith("End "):
                break
        assert reached[-1].startswith("End "), reached
        before = desk.tab.run("document.getElementById('found').innerText")
        desk.tab.wait(f"document.getElementById('found').innerText !== {json.dumps(before)}")
        assert desk.tab.run("document.activeElement.getAttribute('aria-label')") == reached[-1]
        desk.tab.press("Enter")
        assert download.wait(20) in (18, 56)
    finally:
        end([download])


def test_the_page_is_good_on_a_phone(desk: Desk) -> None:
    """Nothing but its tables is wider than the screen."""
    try:
        desk.tab.call("Emulation.setDeviceMetricsOverride", width=375, height=700, deviceScaleFactor=2, mobile=True)
        for view in ("sessions", "users", "egress", "refusals", "faults", "graphs"):
            desk.show(view)
            assert desk.tab.run("document.documentElement.scrollWidth") <= 375, view
    finally:
        desk.tab.call("Emulation.clearDeviceMetricsOverride")


def test_the_token_for_reading_changes_nothing(desk: Desk) -> None:
    """What it may not is said."""
    download = desk.download()
    try:
        wait_for(lambda: desk.operator.get("/sessions")["matching"] == 1, "the download")
        desk.tab.run(f"token = {json.dumps(READ_TOKEN)}")
        desk.show("sessions")
        desk.tab.click("#found tbody button")
        desk.tab.wait("document.getElementById('notice').textContent === 'this token is for reading only'")
        assert download.poll() is None
    finally:
        desk.tab.run(f"token = {json.dumps(TOKEN)}")
        desk.tab.complaints[:] = [one for one in desk.tab.complaints if one.get("entry", {}).get("source") != "network"]
        end([download])


def test_nothing_of_others_is_used() -> None:
    """No style or script stands in the page itself, nothing is loaded from elsewhere, and no text becomes markup."""
    folder = Path(__file__).parents[2] / "src/tabi/admin/page"
    page, script, style = ((folder / name).read_text() for name in ("index.html", "page.js", "page.css"))
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page + script + style)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|cookie|localStorage", script)
    assert not re.search(r"\son\w+=|style=", page)
