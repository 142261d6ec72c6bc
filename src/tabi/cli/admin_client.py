"""Asks the admin API of a server (``[admin]``), with the commands of the control socket."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tabi.config.admin import is_local, wrong
from tabi.errors import ConfigError, TabiError
from tabi.server.control import PATIENCE
from tabi.server.frames import MAX_ANSWER
from tabi.wire.address import Address, parse_host

PORTS = {"http": 80, "https": 443}

METHODS = {"list": "GET", "add": "POST", "change": "PATCH", "remove": "DELETE"}
"""What is done to faults."""

LISTS = ("egress", "refusals", "users", "status")


class AdminClient:
    """Asks one server. Each question is a connection of its own, which goes through no proxy.

    Args:
        url: ``http://127.0.0.1:9180`` or ``https://proxy.example.com:9180``.
        token: one of ``[admin]``, or nothing.

    Raises ConfigError: URL or token are wrong, or everybody on the way could read the token.
    """

    __slots__ = ("address", "context", "token", "url")

    def __init__(self, url: str, token: str = "") -> None:
        try:
            parts = urlsplit(url)
            if (
                parts.scheme not in PORTS
                or not parts.hostname
                or parts.path.strip("/")
                or parts.query
                or parts.username
            ):
                raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
            self.address = Address(parse_host(parts.hostname), parts.port or PORTS[parts.scheme])
        except ValueError as exc:
            raise ConfigError(str(exc), "--admin") from None
        if parts.scheme == "http" and not is_local(self.address):
            raise ConfigError("without TLS the network can read the token: expected https://HOST:PORT", "--admin")
        self.context = ssl.create_default_context() if parts.scheme == "https" else None
        if token and wrong(token):
            raise ConfigError(wrong(token), "TABI_ADMIN_TOKEN")
        self.token = token
        self.url = f"{parts.scheme}://{parts.netloc}"

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """What the server answers, as `tabi.server.control.ask_server`; it raises the same."""
        method, path, body = request_for(command, arguments)
        openmetrics = command == "metrics" and arguments.get("format") == "openmetrics"
        status, text = self.exchange(method, path, body, "application/openmetrics-text" if openmetrics else "*/*")
        if command == "metrics":
            if status != 200:
                raise TabiError(f"{self.url}: {text[:1000].decode('utf-8', 'replace').strip()}")
            return {"text": text.decode("utf-8", "replace"), "silent": []}
        try:
            answer = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TabiError(f"{self.url}: this is no admin API of tabi: it answers with {status} and no JSON") from None
        if "path" in answer and status == 400:
            raise ConfigError(str(answer.get("error")), answer["path"])
        if status != 200:
            hint = "" if status != 401 else ": set TABI_ADMIN_TOKEN, or --token-file FILE"
            raise TabiError(f"{self.url}: {answer.get('error', status)}{hint}")
        return {"silent": [], "left_out": 0, **answer}

    def exchange(self, method: str, path: str, body: Any, accept: str) -> tuple[int, bytes]:
        """The status and the content that the server answers with. Raises TabiError."""
        host, port = str(self.address.host), self.address.port
        if self.context is None:
            connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=self.context)
        headers = {"Accept": accept, **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        try:
            content = None if body is None else msgspec.json.encode(body)
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER + 1)
        except (OSError, http.client.HTTPException) as exc:
            raise TabiError(f"{self.url}: {getattr(exc, 'strerror', None) or exc}") from exc
        finally:
            connection.close()
        if len(data) > MAX_ANSWER:
            raise TabiError(f"{self.url}: an answer of more than {MAX_ANSWER:,} octets")
        return answer.status, data


def request_for(command: str, arguments: Mapping[str, Any]) -> tuple[str, str, Any]:
    """Method, path and body of the API for a command. Raises ConfigError if the API does not have it."""
    if command in LISTS:
        return "GET", f"/{command}", None
    if command == "metrics":
        return "GET", "/metrics", None
    if command == "sessions":
        shape = {name: arguments[name] for name in ("sort", "limit") if arguments.get(name) is not None}
        return "GET", f"/sessions?{query(arguments.get('filter', {}), shape)}", None
    if command == "kick":
        if arguments.get("all"):
            raise ConfigError("the admin API ends chosen sessions alone, such as by --user NAME: without --all")
        return "DELETE", f"/sessions?{query(arguments['filter'])}", None
    if command == "steer":
        pool, member = (quote(arguments[name], safe="", errors="backslashreplace") for name in ("pool", "member"))
        return "POST", f"/egress/{pool}/{member}/{arguments['action']}", None
    if command == "fault":
        return request_for_fault(arguments)
    raise ConfigError(f"the admin API has no {command}: expected --socket")


def request_for_fault(arguments: Mapping[str, Any]) -> tuple[str, str, Any]:
    """The same for faults."""
    action, names = arguments["action"], arguments.get("names")
    method, body = METHODS[action], None
    if action in ("add", "change"):
        body = {**arguments["fault"], "for": arguments.get("for")}
    if names is not None and len(names) != 1:
        raise ConfigError("the admin API removes one fault at a time, or all of them")
    name = names[0] if names else arguments.get("name")
    place = "" if name is None or action == "add" else f"/{quote(name, safe='', errors='backslashreplace')}"
    return method, f"/faults{place}", body


def query(*parts: Mapping[str, Any]) -> str:
    """Parameters as a query."""
    return urlencode({name: value for part in parts for name, value in part.items()}, errors="backslashreplace")
