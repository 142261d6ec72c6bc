"""The admin API as an application, with a server that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from starlette.requests import Request

from conftest import Run
from doubles import Clock
from sockets import turns
from tabi.admin import app as module
from tabi.admin.access import Access
from tabi.admin.app import HEADERS, LARGEST, LISTENERS, WAITING, Admin
from tabi.admin.operations import OPERATIONS
from tabi.config import parse_config
from tabi.server.answers import Answers

FULL, READ = "full-token-of-the-test", "read-token-of-the-test"
CONFIG = f"""
[users.alice]
password = "very secret indeed"
plain = true
[[rule]]
action = "deny"
name = "no"
ports = [25]
[admin]
token = "{FULL}"
"""


class FakeAsker:
    """Notes what it is asked, and answers what the test says; a status as of a server that runs."""

    version = "1.2.3"

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self.found: dict[str, dict[str, Any]] = {
            "status": {"ok": {"state": "running", "workers": [{"pid": 1}]}},
            "egress": {"ok": {"members": [], "silent": []}},
        }
        self.answers = Answers("1.2.3")

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See `tabi.server.asker.Asker`."""
        self.asked.append(request)
        name = str(request["command"])
        return self.found.get(name, {"ok": {"done": name, "faults": [], "refusals": [], "members": [], "silent": []}})


class Scene:
    """The application, and a client with the token for everything."""

    def __init__(self) -> None:
        self.asker = FakeAsker()
        self.clock = Clock()
        config = parse_config(CONFIG)
        self.admin = Admin(self.asker, Access(FULL, READ), config, clock=self.clock)  # type: ignore[arg-type]

    async def call(self, method: str, path: str, token: str | None = FULL, **more: Any) -> httpx.Response:
        """A request."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        headers |= more.pop("headers", {})
        transport = httpx.ASGITransport(self.admin.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:9180") as client:
            return await client.request(method, path, headers=headers, **more)


def call(run_once: Run, method: str, path: str, token: str | None = FULL, **more: Any) -> httpx.Response:
    """One request to one of its own."""

    async def main() -> httpx.Response:
        return await Scene().call(method, path, token, **more)

    return run_once(main)


EVERY = [
    *((one.method, one.path, one.scope) for one in OPERATIONS),
    *(("GET", path, "read") for path in ("/history", "/egress/history", "/events", "/config", "/openapi.json")),
    ("POST", "/explain", "read"),
]


@pytest.mark.parametrize(("method", "path", "scope"), EVERY)
def test_everything_wants_a_token(run_once: Run, method: str, path: str, scope: str) -> None:
    """One that only reads is refused where something would change; nothing is asked of the server then."""

    async def main() -> None:
        scene = Scene()
        for token, status in ((None, 401), ("wrong", 401), *([(READ, 403)] if scope == "full" else [])):
            answer = await scene.call(method, path, token)
            assert answer.status_code == status
            assert "WWW-Authenticate" in answer.headers or status != 401
        assert not scene.asker.asked

    run_once(main)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/", "/page.js", "/page.css"])
def test_what_wants_none(run_once: Run, path: str) -> None:
    """Health, metrics, and the page, which has nothing in it."""

    async def main() -> None:
        scene = Scene()
        scene.asker.found["metrics"] = {"ok": {"text": "# EOF\n", "silent": []}}
        answer = await scene.call("GET", path, None)
        assert answer.status_code == 200
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert (await scene.call("GET", path, None, headers={"Host": "evil.example"})).status_code == 421
        assert (await scene.call("GET", path, None, headers={"Origin": "http://evil.example"})).status_code == 403

    run_once(main)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/none", 404),
        ("GET", "/sessions/", 404),
        ("GET", "//evil.example/sessions/", 404),
        ("POST", "/sessions", 405),
        ("GET", "/reload", 405),
        ("GET", "/sessions/x", 405),
        ("OPTIONS", "/sessions", 405),
        ("TRACE", "/", 405),
        ("HEAD", "/healthz", 200),
        ("HEAD", "/sessions", 200),
        ("HEAD", "/events", 200),
    ],
)
def test_methods_and_paths(run_once: Run, method: str, path: str, expected: int) -> None:
    """Nothing changes by a GET, no answer leads somewhere else, and none lets another page in."""
    answer = call(run_once, method, f"http://localhost:9180{path}")
    assert answer.status_code == expected
    assert "Location" not in answer.headers
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert answer.headers["Content-Security-Policy"]
    if expected in (404, 405):
        assert set(answer.json()) == {"error"}


MADE: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("GET", "/sessions", None, {"command": "sessions", "filter": {}, "sort": None, "limit": 10_000}),
    (
        "GET",
        "/sessions?user=a%20b&sort=up&limit=5&search=x",
        None,
        {"command": "sessions", "filter": {"user": "a b", "search": "x"}, "sort": "up", "limit": 5},
    ),
    ("DELETE", "/sessions?user=%C3%A9", None, {"command": "kick", "filter": {"user": "é"}}),
    ("DELETE", "/sessions/ab-1", None, {"command": "kick", "filter": {"id": "ab-1"}}),
    (
        "POST",
        "/egress/p%2Fq/socks5%3A%2F%2F127.0.0.1%3A1%2F%25/drain",
        None,
        {"command": "steer", "action": "drain", "pool": "p/q", "member": "socks5://127.0.0.1:1/%"},
    ),
    ("POST", "/egress/p/m/undrain", None, {"command": "steer", "action": "undrain", "pool": "p", "member": "m"}),
    (
        "POST",
        "/faults",
        {"latency": "1s", "for": "5min"},
        {"command": "fault", "action": "add", "for": "5min", "fault": {"latency": "1s"}},
    ),
    (
        "PATCH",
        "/faults/a%2F..%2Fb",
        {"latency": None},
        {"command": "fault", "action": "change", "name": "a/../b", "for": None, "fault": {"latency": None}},
    ),
    ("DELETE", "/faults/x%0A", None, {"command": "fault", "action": "remove", "names": ["x\n"]}),
    ("DELETE", "/faults", None, {"command": "fault", "action": "remove", "names": None}),
    ("PUT", "/log-level", {"level": "debug"}, {"command": "log_level", "level": "debug"}),
    ("POST", "/reload", None, {"command": "reload"}),
]


@pytest.mark.parametrize(("method", "path", "body", "expected"), MADE)
def test_what_the_server_is_asked(run_once: Run, method: str, path: str, body: Any, expected: dict[str, Any]) -> None:
    """Names in paths may hold anything."""

    async def main() -> None:
        scene = Scene()
        answer = await scene.call(method, path, json=body)
        assert answer.status_code == 200, answer.text
        assert scene.asker.asked == [expected]

    run_once(main)


WRONG: list[tuple[str, str, Any, str]] = [
    ("GET", "/sessions?users=a", None, "unknown parameter"),
    ("GET", "/sessions?limit=x", None, "'x', expected a number"),
    ("GET", "/sessions?limit=%C2%B2", None, "'²', expected a number"),
    ("GET", "/sessions?limit=-1", None, "'-1', expected a number"),
    ("GET", f"/sessions?limit={'9' * 5000}", None, "expected a number"),
    ("POST", "/faults", b"", "the body is not JSON"),
    ("POST", "/faults", b"{", "the body is not JSON"),
    ("POST", "/faults", b'"\xff"', "the body is not JSON"),
    ("POST", "/faults", b"[" * 60_000, "the body is not JSON"),
    ("POST", "/faults", b"[]", "expected a JSON object as the body"),
    ("POST", "/faults", b" " * (LARGEST + 1), "a body of more than 65,536 octets"),
    ("PATCH", "/faults/x", b"5", "expected a JSON object as the body"),
    ("PUT", "/log-level", b"null", "expected a JSON object as the body"),
    ("POST", "/explain", b"{}", "'' is not host:port"),
    ("POST", "/explain", b'{"destination": 5}', "expected a text"),
    ("POST", "/explain", b'{"host": "a"}', "unknown key, expected one of: command, destination, client"),
    ("POST", "/explain", b'{"destination": "a:1", "client": "x"}', "'x', expected an IP address"),
    ("POST", "/explain", b'{"destination": "a:1", "command": "x"}', "'x', expected one of: connect"),
]


@pytest.mark.parametrize(("method", "path", "body", "message"), WRONG)
def test_what_is_wrong_is_said(run_once: Run, method: str, path: str, body: bytes | None, message: str) -> None:
    """As JSON, with status 400, and the server is not asked."""

    async def main() -> None:
        scene = Scene()
        answer = await scene.call(method, path, content=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]
        assert answer.json().get("path", "") is not None
        assert not scene.asker.asked

    run_once(main)


def test_the_key_that_is_wrong_has_the_name_of_the_api(run_once: Run) -> None:
    """Not that of the command's option."""
    for body, path in ((b'{"destination": "a:1", "client": "x"}', "client"), (b"{}", "destination")):
        assert call(run_once, "POST", "/explain", content=body).json()["path"] == path


def test_what_the_server_refuses(run_once: Run) -> None:
    """Its mistake in the request is 400, its silence 503."""

    async def main() -> None:
        scene = Scene()
        scene.asker.found["kick"] = {"error": "no", "path": "filter"}
        assert (await scene.call("DELETE", "/sessions")).status_code == 400
        scene.asker.found["kick"] = {"error": "too large", "path": None}
        answer = await scene.call("DELETE", "/sessions")
        assert (answer.status_code, answer.json()) == (400, {"error": "too large"})
        scene.asker.found["kick"] = {"error": "the server does not listen"}
        answer = await scene.call("DELETE", "/sessions")
        assert (answer.status_code, answer.json()) == (503, {"error": "the server does not listen"})
        scene.asker.found["metrics"] = {"error": "gone"}
        answer = await scene.call("GET", "/metrics")
        assert (answer.status_code, answer.text) == (503, "gone\n")

    run_once(main)


READY = [
    ({}, 200, "ready\n"),
    ({"egress": {"ok": {"members": [], "silent": [5, 6]}}}, 503, "not ready: workers that do not answer: 2\n"),
    ({"egress": {"error": "gone"}}, 503, "not ready: it does not accept clients\n"),
    ({"status": {"error": "gone"}}, 503, "not ready: it does not accept clients\n"),
    ({"status": {"ok": {"state": "stopping", "workers": [1]}}}, 503, "not ready: it does not accept clients\n"),
    ({"status": {"ok": {"state": "running", "workers": []}}}, 503, "not ready: it does not accept clients\n"),
]


@pytest.mark.parametrize(("found", "status", "text"), READY)
def test_whether_it_is_ready(run_once: Run, found: dict[str, Any], status: int, text: str) -> None:
    """Only if it accepts clients and every worker answers."""

    async def main() -> None:
        scene = Scene()
        scene.asker.found |= found
        answer = await scene.call("GET", "/readyz", None)
        assert (answer.status_code, answer.text) == (status, text)

    run_once(main)


@pytest.mark.parametrize(
    ("accept", "format_", "media"),
    [
        ("*/*", "text", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "openmetrics",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
def test_metrics_come_as_the_client_wants_them(run_once: Run, accept: str, format_: str, media: str) -> None:
    """With the media type of that format."""

    async def main() -> None:
        scene = Scene()
        scene.asker.found["metrics"] = {"ok": {"text": "x\n"}}
        answer = await scene.call("GET", "/metrics", None, headers={"Accept": accept})
        assert answer.headers["Content-Type"] == media
        assert scene.asker.asked == [{"command": "metrics", "format": format_}]

    run_once(main)


def test_lists_are_what_was_asked_for(run_once: Run) -> None:
    """With those workers that said nothing."""
    assert call(run_once, "GET", "/egress").json() == {"members": [], "silent": []}
    assert call(run_once, "GET", "/refusals").json() == {"refusals": [], "silent": []}
    assert call(run_once, "GET", "/faults").json() == {"faults": [], "silent": []}


def test_the_configuration_has_no_secrets(run_once: Run) -> None:
    """Neither passwords nor tokens."""
    text = call(run_once, "GET", "/config", READ).text
    assert "very secret" not in text
    assert FULL not in text
    assert msgspec.json.decode(text)["users"]["alice"]["password"] == "…"


def test_a_request_is_explained(run_once: Run) -> None:
    """By the configuration that holds, which may be another one later."""

    async def main() -> None:
        scene = Scene()
        body = {"destination": "127.0.0.1:25", "user": "alice"}
        found = (await scene.call("POST", "/explain", READ, json=body)).json()
        assert (found["rules"][0]["rule"], found["rules"][0]["matched"], found["action"]) == ("no", True, "deny")
        scene.admin.config = parse_config("")
        found = (await scene.call("POST", "/explain", READ, json={"destination": "127.0.0.1:25"})).json()
        assert found["rules"] == []

    run_once(main)


# --- time ---


async def nothing_more() -> Any:
    """A client that sends nothing more."""
    await asyncio.Event().wait()


def test_a_body_has_its_time(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stops in the middle is answered; one whose client has gone is nobody's error."""
    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/faults",
        "raw_path": b"/faults",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {FULL}".encode())],
    }

    async def answer_to(receive: Callable[[], Any]) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await Scene().admin.app(scope, receive, send)
        return int(sent[0]["status"])

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def main() -> tuple[int, int]:
        return await answer_to(nothing_more), await answer_to(gone)

    assert run_once(main) == (503, 400)


# --- news ---


@asynccontextmanager
async def listening(scene: Scene, reads: bool = True) -> AsyncIterator[list[bytes]]:
    """A client of ``/events``, and what it has read."""
    read: list[bytes] = []
    request = Request({"type": "http", "method": "GET", "headers": []})
    response = await scene.admin.events(request)

    async def send(message: Any) -> None:
        read.append(message.get("body", b""))
        if not reads:
            await asyncio.Event().wait()

    task = asyncio.Task(response({"type": "http", "asgi": {"spec_version": "2.3"}}, nothing_more, send))
    await turns()
    try:
        yield read
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_news_come_to_all_who_listen(run_once: Run) -> None:
    """What was steered, and each row of the last hour."""

    async def main() -> None:
        scene = Scene()
        async with listening(scene) as read, listening(scene):
            await scene.call("DELETE", "/sessions?user=bob")
            await scene.call("GET", "/sessions")
            await turns()
            scene.admin.publish("history", {"open": 1})
            await turns()
            assert read == [
                b"",
                b": news of tabi\n\n",
                b'event: change\ndata: {"method":"DELETE","path":"/sessions","parameters":{"user":"bob"}}\n\n',
                b'event: history\ndata: {"open":1}\n\n',
            ]
        assert not scene.admin.listeners

    run_once(main)


def test_who_does_not_read_costs_no_more(run_once: Run) -> None:
    """Its news are lost, and no more than so many may listen."""

    async def main() -> None:
        scene = Scene()
        async with listening(scene, reads=False) as read:
            for number in range(1000):
                scene.admin.publish("history", {"row": "x" * 1000, "number": number})
            (queue,) = scene.admin.listeners
            assert queue.qsize() == WAITING
            assert len(read) == 1
            scene.admin.listeners |= {asyncio.Queue() for _ in range(LISTENERS - 1)}
            answer = await scene.call("GET", "/events")
            assert (answer.status_code, answer.json()["error"]) == (503, "64 clients listen already")
            assert len(scene.admin.listeners) == LISTENERS

    run_once(main)


def test_who_hears_nothing_gets_a_comment(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is noticed if a client has left."""
    monkeypatch.setattr(module, "UNHEARD", 0.01)

    async def main() -> None:
        async with listening(Scene()) as read, asyncio.timeout(10):
            while b":\n\n" not in read:
                await asyncio.sleep(0.01)

    run_once(main)


def test_the_end_ends_news(run_once: Run) -> None:
    """Also where more news wait than there is room for."""

    async def main() -> None:
        scene = Scene()
        async with listening(scene) as read:
            for number in range(WAITING + 5):
                scene.admin.publish("change", number)
            scene.admin.close()
            async with asyncio.timeout(10):
                while scene.admin.listeners:
                    await asyncio.sleep(0)
            assert len(read) > WAITING

    run_once(main)


def test_the_last_hour(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row every ten seconds, whether somebody looks or not; none while the server does not answer."""
    monkeypatch.setattr(module, "EVERY", 0.01)

    async def main() -> None:
        scene = Scene()
        member = ("pool", "p"), ("member", "m")
        scene.asker.answers.metrics = {"tabi_sessions_open": {(): 3}, "tabi_member_up": {member: 1}}
        async with listening(scene) as read:
            task = asyncio.Task(scene.admin.keep_history())
            while len(scene.asker.asked) < 2:
                scene.clock.now += 10
                await asyncio.sleep(0.005)
            scene.asker.found["metrics"] = {"error": "gone"}
            await asyncio.sleep(0.05)
            task.cancel()
            rows = (await scene.call("GET", "/history")).json()
            assert rows["rows"][0]["open"] == 3
            health = (await scene.call("GET", "/egress/history")).json()
            assert set(health["members"][0]["looks"]) == {"1"}
            assert len(rows["rows"]) < len(scene.asker.asked)
            assert read[-1].startswith(b"event: history\n")

    run_once(main)
