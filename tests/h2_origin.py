"""An HTTP/2 origin server on this machine for programs that speak HTTP: another implementation, a thread each."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, NamedTuple

from h2.settings import SettingCodes, Settings
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from h2_ends import End
from origin import Certificates
from processes import PATIENCE


class Asked(NamedTuple):
    """A request that came: the client's port tells connections apart."""

    port: int
    method: str
    path: str
    fields: dict[str, str]
    body: bytes


class Connection(BaseRequestHandler):
    """One connection: files by GET, what is posted comes back, and an echo by WebSocket (RFC 8441)."""

    request: ssl.SSLSocket
    server: H2Origin

    def handle(self) -> None:
        """Answer until the client ends."""
        sock, end, answered = self.request, End(client=False), set[int]()
        sockets: dict[int, Protocol] = {}
        sock.settimeout(PATIENCE)
        sock.do_handshake()
        self.server.protocols.append(sock.selected_alpn_protocol())
        values: Any = {**dict(end.connection.local_settings.items()), SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}
        end.connection.local_settings = Settings(client=False, initial_values=values)
        end.connection.initiate_connection()
        sock.sendall(end.connection.data_to_send())
        while (data := sock.recv(65536)) and end.goaway is None:
            end.receive(data)
            for id in [id for id, fields in end.heads.items() if (b":protocol", b"websocket") in fields]:
                if id not in sockets:
                    end.head(id, [(b":status", b"200")])
                    sockets[id] = Protocol(Side.SERVER, state=State.OPEN)
                self.echo(end, id, sockets[id])
            for id in sorted(end.ended - answered - set(sockets)):
                answered.add(id)
                self.answer(end, id)
            end.send_what_fits()
            sock.sendall(end.connection.data_to_send())

    def echo(self, end: End, id: int, socket: Protocol) -> None:
        """Send back the messages that have come, and say whom they are to be heard by."""
        socket.receive_data(end.bodies.pop(id, b""))
        for frame in socket.events_received():
            if isinstance(frame, Frame) and frame.opcode is Opcode.TEXT:
                socket.send_text(frame.data)
                self.server.hear(bytes(frame.data).decode())
        octets = b"".join(socket.data_to_send())
        if octets and id not in end.resets:
            end.connection.send_data(id, octets)

    def answer(self, end: End, id: int) -> None:
        """Answer one request."""
        fields = {name.decode(): value.decode() for name, value in end.heads[id]}
        method, path, body = fields[":method"], fields[":path"], end.bodies.get(id, b"")
        self.server.asked.append(Asked(self.client_address[1], method, path, fields, body))
        answer = body if method == "POST" else self.server.files.get(path)
        if answer is None:
            end.head(id, [(b":status", b"404")], end=True)
            return
        length = str(len(answer)).encode()
        end.head(id, [(b":status", b"200"), (b"content-type", b"text/javascript"), (b"content-length", length)])
        end.body(id, answer)


class H2Origin(ThreadingTCPServer):
    """What it serves, and what it was asked for.

    Attributes:
        files: paths and their content.
        asked: the requests in the order in which they came.
        protocols: what was agreed on (ALPN), for each connection.
    """

    request_queue_size = 128

    def __init__(self, tls: Certificates, hear: Callable[[str], object]) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.hear = hear
        self.files: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.protocols: list[str | None] = []
        self.failures: list[BaseException] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.chain, tls.key)
        context.set_alpn_protocols(["h2"])
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def url(self, path: str = "/") -> str:
        """The URL of one of its files."""
        return f"https://localhost:{self.port}{path}"

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close a connection; there may be none any more."""
        assert isinstance(request, socket.socket)
        request.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep what went wrong here; clients that leave did not."""
        failure = sys.exc_info()[1]
        if failure is not None and not isinstance(failure, OSError):
            self.failures.append(failure)


@contextlib.contextmanager
def h2_origin(
    tls: Certificates, files: dict[str, bytes] | None = None, hear: Callable[[str], object] = str
) -> Iterator[H2Origin]:
    """Run one; ``hear`` is told each text that comes by WebSocket. Connections must be at their end before it is."""
    with H2Origin(tls, hear) as server:
        server.files |= files or {}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
    assert not server.failures, server.failures
