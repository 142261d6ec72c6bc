"""QUIC through an association: aioquic's client and server, a handshake and a stream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import trustme
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamDataReceived

from conftest import Run
from tabi import Association, Proxy, Server, Session
from tabi.config import make_config

pytestmark = pytest.mark.interop

NAME = "quic.invalid"


class Echo(QuicConnectionProtocol):
    """A server that sends the octets of each stream back."""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, event.data, event.end_stream)
            self.transmit()


class Transport(asyncio.DatagramTransport):
    """What aioquic's client sends on: an association, fed from a queue and read by a task."""

    def __init__(self, association: Association, protocol: QuicConnectionProtocol) -> None:
        super().__init__()
        self.association = association
        self.protocol = protocol
        self.waiting: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        protocol.connection_made(self)

    def sendto(self, data: bytes, addr: Any = None) -> None:  # type: ignore[override]
        self.waiting.put_nowait((data, addr))

    async def send(self) -> None:
        """Send what comes, for ever."""
        while True:
            await self.association.send(*await self.waiting.get())

    async def receive(self) -> None:
        """Hand over what comes, for ever."""
        while True:
            data, address = await self.association.receive()
            self.protocol.datagram_received(data, (str(address.host), address.port))


async def exchange(association: Association, port: int, configuration: QuicConfiguration, data: bytes) -> bytes:
    """Handshake with the server, send on a stream, end it, and read it to its end."""
    protocol = QuicConnectionProtocol(QuicConnection(configuration=configuration))
    transport = Transport(association, protocol)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(transport.send()), group.create_task(transport.receive())]
        protocol.connect(("127.0.0.1", port))
        await protocol.wait_connected()
        reader, writer = await protocol.create_stream()
        writer.write(data)
        writer.write_eof()
        received = await reader.read()
        protocol.close()
        await protocol.wait_closed()
        for task in tasks:
            task.cancel()
    return received


LINES: dict[str, list[dict[str, Any]]] = {
    "perfect": [],
    "lossy": [{"seed": 7, "fault": {"loss": 0.05, "reorder": 0.1, "duplicate": 0.05}}],
    "in bursts": [{"seed": 7, "fault": {"loss": 0.03, "burst": 2, "reorder": 0.05, "duplicate": 0.02}}],
    "far": [{"seed": 7, "fault": {"latency": "20ms", "jitter": "5ms", "reorder": 0.05, "mtu": 1400}}],
    "thin": [{"fault": {"bandwidth": "4 MB/s", "loss": 0.01}, "seed": 7}],
}
"""The ``[[distort]]`` entries of a server."""


@pytest.mark.parametrize("line", LINES)
def test_a_handshake_and_a_stream(run: Run, tmp_path: Path, line: str) -> None:
    """The handshake, which a middle that changes or cuts datagrams would break, and half a mebibyte there and back: it
    comes whole, however bad the line is."""
    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    chain, key, roots = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "roots.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(roots)
    data = bytes(range(256)) * 2048
    sessions: list[Session] = []

    async def main() -> None:
        there = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
        there.load_cert_chain(chain, key)
        here = QuicConfiguration(alpn_protocols=["echo"], server_name=NAME)
        here.load_verify_locations(str(roots))
        quic = await serve("127.0.0.1", 0, configuration=there, create_protocol=Echo)
        assert quic._transport is not None
        port = quic._transport.get_extra_info("sockname")[1]
        try:
            settings = {"log": {"access": "none"}, "listen": [{"url": "socks5://127.0.0.1:0"}], "distort": LINES[line]}
            async with Server(config=make_config(settings), on_close=sessions.append) as server:
                async with Proxy(server.url).associate() as association:
                    assert await exchange(association, port, here, data) == data
                await server.drain()
        finally:
            quic.close()
            await asyncio.sleep(0)

    run(main)
    (session,) = sessions
    assert session.up > len(data)
    assert session.drops is not None
    assert ("fault" in session.drops) is (line in ("lossy", "in bursts", "thin"))
    assert line != "perfect" or session.drops == {}
