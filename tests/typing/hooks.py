"""A file of hooks, with every method and everything that they are given."""

import time
from typing import Literal

import tabi


class Requests:
    """HTTP."""

    def __init__(self) -> None:
        self.last: tabi.FlowRequest | None = None

    async def request(self, flow: tabi.Flow) -> None:
        """One that waits."""
        asked = self.last = flow.request
        headers: tabi.Headers = asked.headers
        headers["X-Name"] = "value"
        headers.add("X-Name", "another")
        names: list[str] = list(headers)
        values: list[str] = headers.get_all("X-Name")
        maybe: str | None = headers.get("Cookie")
        print(asked.method, asked.url, asked.path, asked.host, asked.scheme, names, values, maybe, flow.client[1])
        del headers["X-Name"]
        asked.headers = tabi.Headers([("Accept", "*/*")])
        try:
            text: str = await asked.text(limit=1000)
            content: bytes = await asked.read(raw=True)
        except tabi.TooLarge:
            return flow.drop()
        if text and content:
            asked.set_body(text.upper())
        if asked.path == "/old":
            flow.reroute("https://example.com/new", via="block")
        if flow.host == "example.com" and flow.port == 443:
            flow.respond(403, b"no", headers=[("Content-Type", "text/plain")])
            flow.respond(status=200, body="yes", headers={"Content-Type": "text/plain"})

    @tabi.in_thread
    def response(self, flow: tabi.Flow) -> None:
        """One that blocks."""
        time.sleep(0.01)
        answer: tabi.FlowResponse | None = flow.response
        if answer is not None and answer.status == 404:
            answer.status = 410
            flow.tags.add("gone")

    def request_body(self, flow: tabi.Flow, chunk: bytes) -> bytes | None:
        """Content as it comes."""
        return chunk.upper() if flow.user == "alice" else None

    async def response_body(self, flow: tabi.Flow, chunk: bytes) -> bytes:
        """The same, back."""
        return chunk

    def flow_end(self, flow: tabi.Flow) -> None:
        """All is over."""
        flow.store["end"] = time.monotonic()

    def error(self, flow: tabi.Flow) -> None:
        """There is no whole answer."""
        why: str | None = flow.error
        print(why, flow.id, flow.listener, flow.tls is not None)

    def websocket_message(self, flow: tabi.Flow, message: tabi.WebSocketMessage) -> None:
        """A message."""
        if message.is_text and message.direction == "up":
            message.text = message.text.replace("cat", "dog")
        elif len(message.content) > 1000:
            message.drop()


class Connections:
    """All else."""

    def client_hello(self, hello: tabi.ClientHelloInfo) -> None:
        """Before TLS."""
        if hello.name.endswith(".bank") or "h2" not in hello.alpn:
            hello.pass_through()
        elif hello.ja4 is None or hello.sni is None or hello.port != 443:
            hello.drop()

    def tls_established(self, tls: tabi.TlsInfo, connection: tabi.Connection) -> None:
        """After it."""
        print(tls.sni, tls.alpn, tls.version, tls.verdict, connection.host, connection.client[0], connection.tls == tls)

    def tcp_data(self, connection: tabi.Connection, direction: Literal["up", "down"], data: bytes) -> bytes | None:
        """What is no HTTP."""
        return data.replace(b"a", b"b") if direction == "up" else None

    def udp_data(self, datagram: tabi.DatagramInfo) -> None:
        """A datagram."""
        dns: tabi.DnsInfo | None = datagram.dns
        quic: tabi.QuicInfo | None = datagram.quic
        if dns is not None and dns.name == "ads.example":
            datagram.drop()
        elif dns is not None and dns.is_response:
            records: tuple[tabi.DnsRecord, ...] = dns.answers
            print(dns.addresses, [record.ttl for record in records if record.text is not None])
        elif quic is None:
            datagram.payload = datagram.payload.upper()
