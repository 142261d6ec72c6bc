"""An operator beside `tabi serve` with ``[admin]``: calls of its API, by plain HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from processes import PATIENCE, Serve, serve
from tabi.wire.address import Address, parse_address

TOKEN, READ_TOKEN = "full-token-of-the-test", "read-token-of-the-test"

FILE = f"""
[[listen]]
url = "socks5://127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
token = "{TOKEN}"
read_token = "{READ_TOKEN}"
"""


class Answer(NamedTuple):
    """An answer of HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What it holds."""
        return json.loads(self.body)


class Operator:
    """Calls the API of a server."""

    def __init__(self, proxy: Serve, folder: Path) -> None:
        self.proxy = proxy
        self.socket = folder / "tabi/control.sock"
        (url,) = re.findall(r"for operators: (\S+)", proxy.messages)
        self.url: str = url

    @property
    def address(self) -> Address:
        """Where it is."""
        return parse_address(self.url.partition("://")[2].rstrip("/"))

    @property
    def process(self) -> int | None:
        """The process of the API."""
        return self.proxy.child("tabi-admin")

    def call(
        self, method: str, path: str, body: Any = None, token: str | None = TOKEN, headers: Mapping[str, str] = {}
    ) -> Answer:
        """What it answers."""
        found = dict(headers) if token is None else {"Authorization": f"Bearer {token}", **headers}
        host, port = self.address
        connection = http.client.HTTPConnection(str(host), port, timeout=PATIENCE)
        with contextlib.closing(connection):
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, found)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def get(self, path: str) -> Any:
        """What there is to know."""
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer.json

    def metrics(self) -> dict[str, float]:
        """All metrics."""
        answer = self.call("GET", "/metrics", token=None)
        assert answer.status == 200, answer
        lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@contextlib.contextmanager
def operated(folder: Path, text: str = FILE, arguments: tuple[str, ...] = ()) -> Iterator[Operator]:
    """A server with this file, and its operator."""
    path = folder / "tabi.toml"
    path.write_text(text)
    with serve(folder, "-c", path, *arguments, environ={"XDG_RUNTIME_DIR": str(folder)}) as proxy:
        yield Operator(proxy, folder)
