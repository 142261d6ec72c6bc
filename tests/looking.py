"""`tabi serve` that looks into everything, with a hook that sees each head and a record; and an echo by WebSocket."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from origin import Certificates
from processes import Serve, serve, wait_for
from tabi.intercept.authority import Authority

HOOK = """
class Heads:
    def response(self, flow):
        with open({path!r}, "a") as file:
            print(flow.response.status, flow.request.version, flow.request.url, file=file)
"""


class Looking:
    """What runs.

    Attributes:
        proxy: the server.
        authority: the file with the certificate that its clients are to trust.
        heads: what its hook has seen.
        har: its record.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = folder / "tabi" / "ca.crt"
        self.heads = folder / "heads"
        self.har = folder / "flows.har"
        self.proxy: Serve

    def seen(self, count: int, of: str = "") -> list[str]:
        """The heads of answers, once there are so many of a URL: status, version of the request, URL."""

        def lines() -> list[str]:
            found = self.heads.read_text().splitlines() if self.heads.exists() else []
            found = [line for line in found if line.endswith(of)]
            return found if len(found) >= count else []

        return list(wait_for(lines, f"{count} heads"))

    def entries(self, count: int, of: str = "") -> list[dict[str, Any]]:
        """The recorded flows, once there are so many of a URL."""

        def recorded() -> list[dict[str, Any]]:
            with contextlib.suppress(OSError, ValueError):
                found: list[dict[str, Any]] = json.loads(self.har.read_bytes())["log"]["entries"]
                found = [entry for entry in found if entry["request"]["url"].endswith(of)]
                if len(found) >= count:
                    return found
            return []

        return list(wait_for(recorded, f"{count} records"))


@contextlib.contextmanager
def looking(folder: Path, certificates: Certificates, *options: str | Path) -> Iterator[Looking]:
    """Run one that trusts the authority of tests."""
    found, script = Looking(folder), folder / "heads.py"
    script.write_text(HOOK.format(path=str(found.heads)))
    Authority.make(str(found.authority.parent))
    looks = ("--intercept", "*", "--script", script, "--har", found.har, "--trust", certificates.authority)
    environ = {"XDG_DATA_HOME": str(folder)}
    with serve(folder, "-l", "mixed://127.0.0.1:0", *looks, *options, environ=environ) as found.proxy:
        yield found


@contextlib.contextmanager
def websocket_echo(certificates: Certificates, hear: Callable[[str | bytes], object]) -> Iterator[int]:
    """An echo by WebSocket inside TLS, which hears each message; gives its port."""

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)
            hear(message)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.chain, certificates.key)
    with serve_websocket(echo, "127.0.0.1", 0, ssl=context) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()
