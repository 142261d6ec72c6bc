"""The admin API as an ASGI application. It asks the server through `server.asker`, and holds nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib import resources
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Scopes

from tabi.admin.access import Access, Scope
from tabi.admin.description import describe
from tabi.admin.history import EVERY, History
from tabi.admin.operations import EXPLAIN, OPERATIONS, Operation, table
from tabi.config import Config
from tabi.errors import ConfigError
from tabi.observe.exposition import OPENMETRICS, TEXT
from tabi.server.asker import Asker
from tabi.server.explain_request import explain_request, make_request
from tabi.server.shown import resolved
from tabi.session import UNIX

LARGEST = 65_536
"""Octets of a body."""

LISTENERS = 64
"""Clients of ``/events`` at a time."""

BODY_SECONDS = 10.0
"""How long a client may take for a body."""

EXPLAIN_SECONDS = 30.0
"""How long an explanation may take, which may ask name servers."""

OPTIONS = {"HOST:PORT": "destination", "COMMAND": "command", "--from": "client"}
"""What the API calls the options of ``tabi explain``."""

WAITING = 16
"""News that wait for a client."""

UNHEARD = 30.0
"""Seconds without news after which a comment is sent to clients of ``/events``, so that those who have left are
noticed."""

Answer = Callable[[Request], Awaitable[Response]]

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Of every answer."""


PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""The files of the page."""


class Admin:
    """Answers requests.

    Args:
        asker: asks the server.
        access: decides who may.
        config: what the server serves by; set it when it serves by another.
        secure: whether clients come through TLS.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        asker: Asker,
        access: Access,
        config: Config,
        secure: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.asker = asker
        self.access = access
        self.config = config
        self.secure = secure
        self.history = History(clock)
        self.listeners: set[asyncio.Queue[bytes | None]] = set()
        self.routes = [
            self.route("GET", "/healthz", "none", self.health),
            self.route("GET", "/readyz", "none", self.ready),
            self.route("GET", "/metrics", "none", self.metrics),
            *(self.route("GET", path, "none", page(name, media)) for path, (name, media) in PAGE.items()),
            self.route("GET", "/openapi.json", "read", self.description),
            self.route("GET", "/history", "read", self.past),
            self.route("GET", "/egress/history", "read", self.health_of_members),
            self.route("GET", "/events", "read", self.events),
            self.route("GET", "/config", "read", self.configuration),
            self.route("POST", "/explain", "read", self.explain),
            *(self.route(one.method, one.path, one.scope, self.operation(one)) for one in OPERATIONS),
        ]
        starlette = Starlette(routes=self.routes, exception_handlers={HTTPException: refuse})
        starlette.router.redirect_slashes = False  # to whatever the client has called us
        self.app = by_raw_path(starlette)

    def route(self, method: str, path: str, scope: Scope, answer: Answer) -> Route:
        """A route behind the decision who may use it."""

        async def guarded(request: Request) -> Response:
            headers = request.headers
            refused = self.access.refuse(
                scope, headers.get("authorization", ""), headers.get("host", ""), headers.get("origin"), self.secure
            )
            if refused is not None:
                found = as_json({"error": refused.text}, refused.status)
                if refused.status == 401:
                    found.headers["WWW-Authenticate"] = 'Bearer realm="tabi"'
            else:
                try:
                    found = await answer(request)
                except ConfigError as exc:
                    path = {} if exc.path is None else {"path": exc.path}
                    found = as_json({"error": exc.message, **path}, 400)
                except TimeoutError:
                    found = as_json({"error": "not answered in time"}, 503)
                except ClientDisconnect:
                    found = Response(status_code=400)
            found.headers.update(HEADERS)
            return found

        return Route(path, guarded, methods=[method])

    # --- what there is to know ---

    async def health(self, _: Request) -> Response:
        """This process answers."""
        return Response("ok\n", media_type="text/plain")

    async def ready(self, _: Request) -> Response:
        """Whether clients are accepted, and all workers answer."""
        found = await self.asker.ask({"command": "egress"})
        status = await self.asker.ask({"command": "status"})
        well = "ok" in found and "ok" in status and status["ok"]["state"] == "running"
        silent = found["ok"]["silent"] if "ok" in found else []
        if well and status["ok"]["workers"] and not silent:
            return Response("ready\n", media_type="text/plain")
        why = f"workers that do not answer: {len(silent)}" if silent else "it does not accept clients"
        return Response(f"not ready: {why}\n", 503, media_type="text/plain")

    async def metrics(self, request: Request) -> Response:
        """Metrics, as the client wants them."""
        openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
        found = await self.asker.ask({"command": "metrics", "format": "openmetrics" if openmetrics else "text"})
        if "error" in found:
            return Response(f"{found['error']}\n", 503, media_type="text/plain")
        return Response(found["ok"]["text"], headers={"Content-Type": OPENMETRICS if openmetrics else TEXT})

    async def description(self, _: Request) -> Response:
        """The API in the words of OpenAPI."""
        return as_json(describe(OPERATIONS, self.asker.version))

    async def past(self, _: Request) -> Response:
        """The last hour."""
        return as_json({"every": EVERY, "rows": list(self.history.rows)})

    async def health_of_members(self, _: Request) -> Response:
        """How the members of pools were in the last hour."""
        return as_json({"every": EVERY, "members": self.history.health})

    async def configuration(self, _: Request) -> Response:
        """The configuration as it is used, without secrets."""
        return as_json(await asyncio.to_thread(resolved, self.config))

    async def explain(self, request: Request) -> Response:
        """What would become of a request, and why."""
        given = table(await self.body(request))
        for name in given:
            if name not in EXPLAIN["properties"]:
                raise ConfigError(f"unknown key, expected one of: {', '.join(EXPLAIN['properties'])}", name)
            if not isinstance(given[name], str):
                raise ConfigError("expected a text", name)
        wanted = [given.get(name) for name in ("user", "listener", "protocol", "at", "sni")]
        try:
            asked = make_request(
                self.config,
                given.get("command", "connect"),
                given.get("destination", ""),
                given.get("client", UNIX),
                *wanted,
            )
        except ConfigError as exc:
            raise ConfigError(exc.message, OPTIONS.get(exc.path or "", (exc.path or "").removeprefix("--"))) from None
        async with asyncio.timeout(EXPLAIN_SECONDS):
            return as_json(await explain_request(self.config, asked))

    def operation(self, one: Operation) -> Answer:
        """What answers an operation."""

        async def answer(request: Request) -> Response:
            given = {**request.query_params, **{name: unquote(text) for name, text in request.path_params.items()}}
            unknown = set(given) - {parameter.name for parameter in one.parameters}
            if unknown:
                raise ConfigError("unknown parameter", min(unknown))
            body = await self.body(request) if one.body is not None else None
            found = await self.asker.ask(one.make(given, body))
            if "error" in found:
                status = 400 if "path" in found else 503
                return as_json({name: value for name, value in found.items() if value is not None}, status)
            self.tell(one, given)
            if one.take is None:
                return as_json(found["ok"])
            return as_json({one.take: found["ok"][one.take], "silent": found["ok"].get("silent", [])})

        return answer

    async def body(self, request: Request) -> Any:
        """The body of a request, which is JSON. Raises ConfigError, and TimeoutError."""
        data = b""
        async with asyncio.timeout(BODY_SECONDS), contextlib.aclosing(request.stream()) as parts:
            async for part in parts:
                data += part
                if len(data) > LARGEST:
                    raise ConfigError(f"a body of more than {LARGEST:,} octets")
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise ConfigError(f"the body is not JSON: {exc}") from None

    # --- news ---

    async def events(self, request: Request) -> Response:
        """News as they come (server-sent events): ``history``, a row of the last hour; ``change``, what was steered."""
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if len(self.listeners) >= LISTENERS:
            return as_json({"error": f"{LISTENERS} clients listen already"}, 503)
        return News(self.listeners)

    def publish(self, event: str, data: Any) -> None:
        """Send news to all that listen. One that does not read misses some."""
        text = b"event: " + event.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
        for queue in self.listeners:
            if not queue.full():
                queue.put_nowait(text)

    def close(self) -> None:
        """End what would go on for ever."""
        for queue in self.listeners:
            while queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    def tell(self, one: Operation, given: Mapping[str, str]) -> None:
        """Tell of an operation that has changed something."""
        if one.method != "GET":
            self.publish("change", {"method": one.method, "path": one.path, "parameters": given})

    async def keep_history(self) -> None:
        """Add a row to the last hour every ten seconds."""
        while True:
            found = await self.asker.ask({"command": "metrics"})
            if "ok" in found:
                self.history.add(self.asker.answers.metrics)
                if self.history.rows:
                    self.publish("history", self.history.rows[-1])
            await asyncio.sleep(EVERY)


class News(StreamingResponse):
    """News for one client, until it leaves.

    Args:
        listeners: where what is new is put.
    """

    def __init__(self, listeners: set[asyncio.Queue[bytes | None]]) -> None:
        self.listeners = listeners
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)
        super().__init__(self.news(), media_type="text/event-stream")

    async def __call__(self, scope: Scopes, receive: Receive, send: Send) -> None:
        """See `StreamingResponse`."""
        self.listeners.add(self.queue)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.listeners.discard(self.queue)

    async def news(self) -> AsyncIterator[bytes]:
        """What is sent."""
        yield b": news of tabi\n\n"
        while True:
            try:
                async with asyncio.timeout(UNHEARD):
                    text = await self.queue.get()
            except TimeoutError:
                text = b":\n\n"
            if text is None:
                return
            yield text


def by_raw_path(app: ASGIApp) -> ASGIApp:
    """An application that is given paths as they were sent: a name in one may hold a slash."""

    async def found(scope: Scopes, receive: Receive, send: Send) -> None:
        await app({**scope, "path": scope["raw_path"].decode("latin-1")}, receive, send)

    return found


async def refuse(_: Request, exc: Exception) -> Response:
    """The answer to a request for what there is not."""
    assert isinstance(exc, HTTPException)
    found = as_json({"error": exc.detail}, exc.status_code)
    found.headers.update({**HEADERS, **(exc.headers or {})})
    return found


def page(name: str, media: str) -> Answer:
    """What answers with a file of the page."""
    data = resources.files("tabi.admin").joinpath("page", name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(data, media_type=media)

    return answer


def as_json(found: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(found), status, media_type="application/json")
